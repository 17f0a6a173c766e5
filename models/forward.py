"""Batches of readings and a role's forward pass over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.feedback import epsilon_of
from models.loading import RoleModel
from models.packing import plan_packed, shared_with_previous, sort_rows
from models.roles import Template
from models.terms import Batch
from models.thinking import read_with, think
from models.trace import Kind, Trace, View
from models.velocity import Thought, flow

CHUNK_LOGITS = 1 << 24
"""Logits held at once by the log-softmax; above it, chunks are recomputed in the backward pass."""


class Distribution(NamedTuple):
    """What a token was drawn from: softmax(logits / temperature), then top-k, then top-p, renormalised."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def make_view(trace: Trace, template: Template | None) -> View:
    return trace.view(None if template is None else template(trace))


def plan_microbatches(rows: Sequence[np.ndarray], token_budget: int, packs: bool) -> list[list[int]]:
    """Split token rows into micro-batches of at most `token_budget` positions that the model computes.

    packs: distinct positions count, rows with equal beginnings stay together. Otherwise padded ones do, rows of like length stay
    together. A single row longer than the budget gets a micro-batch of its own. Returns row indices; every row appears once.
    """
    if packs:
        return plan_packed(rows, token_budget)
    lengths = [len(row) for row in rows]
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    plan: list[list[int]] = []
    for row in order:
        # ascending order: this row is the longest so far
        if plan and (len(plan[-1]) + 1) * lengths[row] <= token_budget:
            plan[-1].append(row)
        else:
            plan.append([row])
    return plan


def token_budget_of(model: RoleModel, device: torch.device | str) -> int:
    """Positions of one micro-batch whose activations fit in a share of the memory: 2 GiB on a CPU, a quarter of a GPU.

    Fixed on a CPU, so that a run does not depend on the machine's memory. Per position and layer a decoder keeps about 16 vectors of
    the model's width and 4 of its feed-forward width for the backward pass.
    """
    config = model.base.config.get_text_config()
    width = config.hidden_size
    kept = 16 * width + 4 * (getattr(config, "intermediate_size", None) or 4 * width)
    place = torch.device(device)
    memory = torch.cuda.get_device_properties(place).total_memory // 4 if place.type == "cuda" else 2 << 30
    return int(min(max(memory // (4 * kept * config.num_hidden_layers), 512), 1 << 16))


def deal(rows: Sequence[np.ndarray], ranks: int, packs: bool) -> list[list[int]]:
    """Give every rank its rows, like amounts of work each: indices of token rows by rank.

    packs: runs of rows with equal beginnings stay on one rank, as far as the amounts allow.
    """
    if not packs:
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
        return [order[rank::ranks] for rank in range(ranks)]
    order = sort_rows(rows)
    ordered = [rows[i] for i in order]
    done = np.cumsum([len(row) for row in ordered] - shared_with_previous(ordered))
    share = np.minimum((done - 1) * ranks // max(int(done[-1]), 1), ranks - 1) if len(rows) else done
    return [[i for i, rank in zip(order, share, strict=True) if rank == wanted] for wanted in range(ranks)]


def collate(traces: Sequence[Trace], views: Sequence[View], device: torch.device | str = "cpu") -> Batch:
    """Pad readings on the right and gather every per-position field of their traces (see `Batch`)."""
    length_B = np.array([len(view) for view in views])
    real_BT = np.arange(length_B.max()) < length_B[:, None]
    # all rows' positions, one after another, and where each finds its own among all traces' positions
    index = np.concatenate([view.index for view in views])
    own = index >= 0
    sizes = np.array([len(trace) for trace in traces])
    starts = np.repeat(np.cumsum(sizes) - sizes, length_B)
    source = np.where(own, index + starts, 0)

    def padded(flat: np.ndarray, fill: Any = 0) -> np.ndarray:
        out = np.full(real_BT.shape, fill, flat.dtype)
        out[real_BT] = flat
        return out

    def gathered(values: Sequence[np.ndarray]) -> np.ndarray:
        return padded(np.where(own, np.concatenate(values)[source], 0).astype(np.float32))

    logprob = np.concatenate([trace.logprob for trace in traces])
    asked = ~np.isnan(logprob) | (np.concatenate([trace.kind for trace in traces]) == Kind.TARGET)
    scored = padded(own & asked[source], False)
    scored[:, 0] = False  # nothing precedes the first token
    # NaN means "nothing was sampled" or "nothing was said" here; in a method's own weights it is a fault and must be seen
    fields = {"logprob": gathered([np.nan_to_num(logprob)]), "reward": gathered([t.reward for t in traces])}
    nothing = [np.zeros(size, np.float32) for size in sizes]
    for role in {role for trace in traces for role, score in trace.scores.items() if score.values.ndim == 1}:
        said = [t.scores[role].values if role in t.scores else n for t, n in zip(traces, nothing, strict=True)]
        fields[f"score/{role}"] = gathered([np.nan_to_num(np.concatenate(said))])
    for name in {name for trace in traces for name in trace.weights}:
        fields[name] = gathered([t.weights.get(name, n) for t, n in zip(traces, nothing, strict=True)])
    return Batch(
        token_BT=torch.from_numpy(padded(np.concatenate([v.token for v in views]).astype(np.int64))).to(device),
        kind_BT=torch.from_numpy(padded(np.concatenate([v.kind for v in views]), Kind.CONTEXT)).to(device),
        length_B=torch.from_numpy(length_B).to(device),
        scored_BT=torch.from_numpy(scored).to(device),
        fields={name: torch.from_numpy(array).to(device) for name, array in fields.items()},
        traces=traces,
        views=views,
    )


def kept(logits_NV: Tensor, distribution: Distribution) -> Tensor:
    """Set to -inf what top-k and then top-p sampling drop.

    The same order and rule as vLLM: top-k keeps the k largest; top-p keeps the smallest set of the largest whose mass reaches p.
    """
    top_k, top_p = distribution.top_k, distribution.top_p
    if 0 < top_k < logits_NV.shape[-1]:
        logits_NV = logits_NV.masked_fill(logits_NV < logits_NV.topk(top_k, -1).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, where = logits_NV.sort(-1)
        below = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        below[:, -1] = False
        logits_NV = logits_NV.masked_fill(torch.zeros_like(below).scatter(-1, where, below), -torch.inf)
    return logits_NV


def truncate(logits_NV: Tensor, token_N: Tensor, distribution: Distribution) -> Tensor:
    """`kept`, but the given token always stays.

    That makes the log-probability finite when the current policy would have dropped it: its support is then the kept set and that one
    token.
    """
    with torch.no_grad():
        dropped = kept(logits_NV, distribution) == -torch.inf
        dropped.scatter_(-1, token_N[:, None], False)
    return logits_NV.masked_fill(dropped, -torch.inf)


def token_logprobs(logits_NV: Tensor, token_N: Tensor, distribution: Distribution) -> tuple[Tensor, Tensor]:
    """(float32[N] log-probability of the tokens, float32[N] entropy in nats) under a sampling distribution; float64 for a model of
    float64."""
    logits = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / distribution.temperature
    if distribution.top_k or distribution.top_p < 1.0:
        logits = truncate(logits, token_N, distribution)
    logp = torch.log_softmax(logits, -1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
    return logp.gather(-1, token_N[:, None])[:, 0], entropy


class ModelForward:
    """One role's forward pass over one batch (see `models.terms.Forward`); latent positions are thought anew.

    latents: [L, D] to read in place of the model's own, in order of row and position.
    """

    def __init__(
        self,
        model: RoleModel,
        batch: Batch,
        distribution: Distribution = Distribution(),
        latents: Tensor | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.distribution = distribution
        self._given = latents

    @cached_property
    def _pass(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(hidden_ND, at_BT, latents_LD)"""
        b, length_B = self.batch, self._read_B
        if not bool((b.kind_BT == Kind.LATENT).any()):
            return *self.model.hidden(b.token_BT, length_B), None
        if self._given is not None:
            return *read_with(self.model.base, b.token_BT, b.kind_BT, length_B, self._given), self._given
        thinker = self.model.thinker
        if thinker is None:
            raise ValueError("this batch has latent positions; a token thinker cannot read them")
        if self.thought is not None:
            return self.thought.hidden_ND, self.thought.at_BT, self.thought.latents_LD
        epsilon = epsilon_of_batch(b, self.model.base) if thinker.config.noise > 0 else None
        turns = turns_of_batch(b) if self.model.grad.turn else None
        return think(self.model.base, thinker, b.token_BT, b.kind_BT, length_B, self.model.grad, epsilon, turns)

    @property
    def _read_B(self) -> Tensor:
        """How many positions of each row to read: nothing follows a last token, so only a value needs its hidden state."""
        length_B = self.batch.length_B
        if self.model.head is not None:
            return length_B
        last_B = self.batch.kind_BT.gather(1, length_B[:, None] - 1)[:, 0]
        return length_B - ((last_B != Kind.LATENT) & (length_B > 1)).to(length_B.dtype)

    @cached_property
    def thought(self) -> Thought | None:
        b, thinker = self.batch, self.model.thinker
        if thinker is None or thinker.config.kind != "flow":
            return None
        epsilon = epsilon_of_batch(b, self.model.base) if thinker.config.noise > 0 else None
        return flow(self.model.base, thinker, b.token_BT, b.kind_BT, b.length_B, self.model.grad, epsilon)

    @property
    def _hidden(self) -> tuple[Tensor, Tensor]:
        return self._pass[:2]

    @cached_property
    def hidden_BTD(self) -> Tensor:
        """Hidden states; meaningless at a row's last token, which only a role with a head reads."""
        hidden_ND, at_BT = self._hidden
        return hidden_ND[at_BT]

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor]:
        scored, latent = self.batch.scored_BT, self.batch.kind_BT == Kind.LATENT
        hidden_ND, at_BT = self._hidden
        spoken = scored & ~latent
        # the hidden state at t-1 predicts the token at t
        hidden = hidden_ND.index_select(0, at_BT[:, :-1][spoken[:, 1:]])
        logprob, entropy = self._chunked(hidden, self.batch.token_BT[spoken])
        zeros = torch.zeros(scored.shape, dtype=logprob.dtype, device=scored.device)
        out = zeros.masked_scatter(spoken, logprob), zeros.masked_scatter(spoken, entropy)
        if not bool((scored & latent).any()):
            return out
        halted = self._halting(scored & latent)
        return tuple(x.masked_scatter(scored & latent, y.to(x.dtype)) for x, y in zip(out, halted, strict=True))  # type: ignore[return-value]

    def _halting(self, decided_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) of the decisions to think on or to stop; the hidden state at t decides whether t + 1 is latent."""
        hidden_ND, at_BT = self._hidden
        assert self.model.thinker is not None
        logit = self.model.thinker.stop_logit(hidden_ND.index_select(0, at_BT[decided_BT]))
        after = torch.nn.functional.pad(self.batch.kind_BT[:, 1:] == Kind.LATENT, (0, 1))
        logprob = torch.nn.functional.logsigmoid(torch.where(after[decided_BT], -logit, logit))
        return logprob, torch.nn.functional.binary_cross_entropy_with_logits(logit, logit.sigmoid(), reduction="none")

    def _chunked(self, hidden_ND: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        vocabulary = self.model.base.config.vocab_size
        size = max(1, CHUNK_LOGITS // vocabulary)

        def part(hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
            return token_logprobs(self.model.logits(hidden), token, self.distribution)

        if len(token_N) <= size:
            return part(hidden_ND, token_N)
        run: Callable[..., tuple[Tensor, Tensor]] = part
        if torch.is_grad_enabled():
            run = lambda h, t: checkpoint(part, h, t, use_reentrant=False)  # noqa: E731
        pieces = [run(h, t) for h, t in zip(hidden_ND.split(size), token_N.split(size), strict=True)]
        return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])

    @property
    def logprobs_BT(self) -> Tensor:
        return self._scores[0]

    @property
    def entropy_BT(self) -> Tensor:
        return self._scores[1]

    @property
    def values_BT(self) -> Tensor:
        return self.outputs_BTE.squeeze(-1)

    @cached_property
    def outputs_BTE(self) -> Tensor:
        return self.model.value(self.hidden_BTD)

    @property
    def latents(self) -> Tensor | None:
        return self._pass[2]

    def __call__(self, latents: Tensor) -> ModelForward:
        return ModelForward(self.model, self.batch, self.distribution, latents)


def epsilon_of_batch(batch: Batch, lm: Any) -> Tensor:
    """float32[L, D] noise of a batch's latent positions, from each trace's seed and position."""
    width = lm.config.get_text_config().hidden_size
    parts = [
        epsilon_of(trace.eps_seed or 0, view.index[view.kind == Kind.LATENT], width)
        for trace, view in zip(batch.traces, batch.views, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts)).to(batch.token_BT.device)


def turns_of_batch(batch: Batch) -> np.ndarray:
    """int16[B, T]: the turn of each position; what a view added belongs to the turn it stands in."""
    out = np.zeros(batch.token_BT.shape, np.int16)
    for row, trace, view in zip(out, batch.traces, batch.views, strict=True):
        known = np.where(view.index >= 0, trace.turn[view.index], 0)
        row[: len(view)] = np.maximum.accumulate(known)
    return out


@torch.no_grad()
def score_traces(
    model: RoleModel,
    traces: Sequence[Trace],
    *,
    template: Template | None = None,
    head: str = "lm",
    distribution: Distribution = Distribution(),
    token_budget: int = 8192,
    device: torch.device | str = "cpu",
) -> list[np.ndarray]:
    """What a role says about each position of each trace: float32[T] per trace, NaN where it says nothing.

    Of a head with several outputs float32[T, outputs]. "lm": log-probabilities of sampled and given-answer tokens. "entropy": that of the
    distributions they came from, in nats.
    "value": a number at every position of the view. "scalar": one number, at the view's last own position.
    """
    views = [make_view(trace, template) for trace in traces]
    out: list[np.ndarray] = [np.zeros(0, np.float32)] * len(traces)
    was_training = model.training
    model.eval()
    for rows in plan_microbatches([v.token for v in views], token_budget, model.packs):
        batch = collate([traces[i] for i in rows], [views[i] for i in rows], device)
        forward = ModelForward(model, batch, distribution)
        said = {"lm": "logprobs_BT", "entropy": "entropy_BT"}.get(head, "values_BT")
        values_BT = getattr(forward, said).cpu().numpy()
        scored_BT = batch.scored_BT.cpu().numpy()
        for b, i in enumerate(rows):
            view = views[i]
            values = values_BT[b, : len(view)].astype(np.float32)
            if head in ("lm", "entropy"):
                values[~scored_BT[b, : len(view)]] = np.nan
            elif head == "scalar":
                values[:-1] = np.nan
            out[i] = view.scatter(values, len(traces[i]))
    model.train(was_training)
    return out


@torch.no_grad()
def score_rows(model: RoleModel, rows: Sequence[np.ndarray], device: torch.device | str = "cpu") -> list[np.ndarray]:
    """float32[T] log-probability at temperature 1 of every token of plain token rows; NaN at the first position."""
    traces = [Trace.from_target(row[:1].tolist(), row[1:].tolist(), str(i)) for i, row in enumerate(rows)]
    return score_traces(model, traces, device=device)
