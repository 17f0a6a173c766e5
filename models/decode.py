"""Sampling from a latent thinker: thoughts then tokens for many requests at once, with keys and values in fixed buffers.

    admit    the prefixes of new requests are read together (`models.chain`), their keys and values copied into free rows
    step     one position of every row in one pass: a latent for rows that think, a token for rows that speak
    finish   a row that ended hands its place to the last one, so that the rows at work are always the first ones

Every decision is drawn from (the request's seed, the position): a request gives the same sample whatever runs beside it, up to the rounding
of batched products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.chain import Chain, run_chain, token_ids
from models.chain_plan import plan_chain
from models.fast_step import FastModel, fast_model
from models.feedback import epsilon_of
from models.forward import Distribution, kept
from models.loading import RoleModel
from models.seeds import uniform
from models.trace import Kind
from models.velocity import Past, flow, think_after

GROW = 64
"""Slots by which the buffers are extended when a longer row comes."""


@dataclass
class Request:
    """One prefix and what to make of it. token, kind: of the prefix. steps: latent steps before the first token (the most, where
    stopping is sampled).

    greedy: take the likeliest token, and report its log-probability at temperature 1.
    """

    token: np.ndarray
    kind: np.ndarray
    seed: int
    steps: int
    max_tokens: int
    stop_ids: frozenset[int]
    distribution: Distribution = Distribution()
    greedy: bool = False
    eps_seed: int | None = None
    tag: Any = None
    out_token: list[int] = field(default_factory=list)
    out_logprob: list[float] = field(default_factory=list)
    out_version: list[int] = field(default_factory=list)
    latents: int = 0
    thinking: bool = True
    block_KD: Tensor | None = None  # the latents to come, where a flow makes them all at once
    finish: str = ""

    @property
    def spoken(self) -> int:
        return len(self.out_token) - self.latents


class Decoder:
    """model: with a thinker (`RoleModel.thinker`). rows: requests at work at once. latent_id: written at latent positions."""

    def __init__(self, model: RoleModel, rows: int, latent_id: int) -> None:
        self.model, self.rows, self.latent_id = model, rows, latent_id
        self.version = 0  # of the weights, written beside every position
        self.active: list[Request] = []
        self.waiting: list[Request] = []
        self._length = np.zeros(rows, np.int64)
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        self._slots = 0
        embedding = model.base.get_input_embeddings().weight
        self._input = embedding.new_zeros(rows, embedding.shape[1])
        self._device = embedding.device
        self._now: tuple[Tensor, Tensor, int] | None = None
        self._layers: tuple[FastModel | None] | None = None

    def renew(self, version: int) -> None:
        """The model's weights have changed."""
        self.version, self._layers = version, None

    @property
    def busy(self) -> bool:
        return bool(self.active or self.waiting)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def drop(self, tags: set[Any]) -> None:
        """Forget requests by tag."""
        self.waiting = [r for r in self.waiting if r.tag not in tags]
        for row in reversed(range(len(self.active))):
            if self.active[row].tag in tags:
                self._leave(row)

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Advance every row by one position, taking in waiting requests first; returns those that ended."""
        ended = self._admit() if self.waiting and len(self.active) < self.rows else []
        if self.active:
            ended += self._decide(self._forward())
        return ended

    # ---- passes -----------------------------------------------------------------------------------------------------------

    def _admit(self) -> list[Request]:
        room = self.rows - len(self.active)
        new, self.waiting = self.waiting[:room], self.waiting[room:]
        length = np.array([len(r.token) for r in new])
        token = np.zeros((len(new), length.max()), np.int64)
        kind = np.full(token.shape, Kind.CONTEXT, np.uint8)
        for i, request in enumerate(new):
            token[i, : length[i]], kind[i, : length[i]] = request.token, request.kind
        hidden, at_BT, past, row_B = self._read(new, token, kind, length)
        first = len(self.active)
        self._reserve(int((length + [r.steps + r.max_tokens for r in new]).max()))
        for index, (all_keys, all_values) in past.layers.items():
            keys, values = self._buffers(index, all_keys)
            for i, n in enumerate(length.tolist()):
                row = row_B[i]
                slots = past.valid_RS[row].nonzero()[:n, 0]
                keys[first + i, :, :n] = all_keys[row].index_select(1, slots)
                values[first + i, :, :n] = all_values[row].index_select(1, slots)
        self.active += new
        self._length[first : len(self.active)] = length
        last = at_BT[torch.arange(len(new), device=self._device), torch.from_numpy(length - 1).to(self._device)]
        return self._decide(hidden[last], first)

    def _read(
        self, new: Sequence[Request], token: np.ndarray, kind: np.ndarray, length: np.ndarray
    ) -> tuple[Tensor, Tensor, Past, list[int]]:
        """Prefixes: ([N, D] hidden states, int64[B, T] places among them, keys and values, the row there of each)."""
        thinker, lm = self.model.thinker, self.model.base
        assert thinker is not None
        if thinker.config.kind == "flow":
            token_BT, kind_BT, length_B = (torch.from_numpy(array).to(self._device) for array in (token, kind, length))
            latent = [np.flatnonzero(row[:n] == Kind.LATENT) for row, n in zip(kind, length, strict=True)]
            noise = self._noise(new, latent)
            thought = flow(lm, thinker, token_BT, kind_BT, length_B, epsilon_LD=noise)
            return thought.hidden_ND, thought.at_BT, thought.past, list(range(len(new)))
        plan = plan_chain(token, kind, length, self._device)
        chain = Chain(lm, thinker, plan, epsilon=None)
        if thinker.config.noise > 0:
            chain.epsilon = self._epsilon(new, kind, plan)
        hidden, _ = run_chain(chain, lm.get_input_embeddings()(token_ids(plan)))
        layers = {index: (layer.k, layer.v) for index, layer in chain.reader.cache.layers.items()}
        back = plan.order_B.argsort()
        length_B = torch.from_numpy(length).to(self._device)
        return hidden, plan.at_BT, Past(layers, plan.valid_BS, length_B, hidden[:0]), back.tolist()

    def _forward(self) -> Tensor:
        """[A, D] hidden states of all rows' next position, whose input is ready."""
        n = len(self.active)
        length = torch.from_numpy(self._length[:n]).to(self._device)
        longest = int(self._length[:n].max()) + 1
        hidden = torch.arange(longest, device=self._device) > length[:, None]
        self._now = (length, hidden[:, None, None], longest)
        if self._layers is None:
            self._layers = (fast_model(self.model.base, self._slots),)
        if (fast := self._layers[0]) is not None:
            out = fast.forward(self._input[:n], length, self)[0]
        else:
            out = self.model.base.base_model(
                inputs_embeds=self._input[None, :n], position_ids=length[None], use_cache=False, reader=self._attend
            ).last_hidden_state[0]
        self._length[:n] += 1
        return out

    def _attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
        q_RHD, k_RHD, v_RHD = (x[0].transpose(0, 1) for x in (q, k, v))
        index: int = module.layer_idx  # type: ignore[assignment]
        return self.forward(index, q_RHD, k_RHD, v_RHD, options.get("scaling") or q.shape[-1] ** -0.5)[0][None], None

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, None]:
        """Attention of one position a row over all before it. q: [A, H, D], k, v: [A, Hk, D] -> [A, H, D]."""
        assert self._now is not None
        length, hidden, longest = self._now
        keys, values = self._buffers(layer, k)
        n, every = len(length), torch.arange(len(length), device=self._device)
        keys[every, :, length] = k
        values[every, :, length] = v
        q_RKGD = q.reshape(n, k.shape[1], -1, q.shape[2]) * scale
        score = q_RKGD @ keys[:n, :, :longest].transpose(-1, -2)
        p = score.masked_fill_(hidden, -torch.inf).softmax(-1)
        return (p @ values[:n, :, :longest]).reshape(q.shape), None

    # ---- decisions ----------------------------------------------------------------------------------------------------------

    def _decide(self, hidden_AD: Tensor, first: int = 0) -> list[Request]:
        """What follows the position just read, for rows first ..: another latent, or a token; sets their next inputs."""
        rows = self.active[first:]
        length = self._length[first : len(self.active)]
        self._halt(hidden_AD, rows, length)
        think = [i for i, r in enumerate(rows) if r.thinking]
        speak = [i for i, r in enumerate(rows) if not r.thinking]
        if think:
            self._plan_blocks([first + i for i in think], hidden_AD[think])
            self._input[[first + i for i in think]] = self._latents(
                hidden_AD[think], [rows[i] for i in think], length[think]
            )
        ended: list[int] = []
        if speak:
            token, logprob = self._draw(hidden_AD[speak], [rows[i] for i in speak], length[speak])
            self._input[[first + i for i in speak]] = self.model.base.get_input_embeddings()(token)
            for i, t, p in zip(speak, token.tolist(), logprob.tolist(), strict=True):
                request = rows[i]
                request.out_token.append(t)
                request.out_logprob.append(p)
                request.out_version.append(self.version)
                if t in request.stop_ids or request.spoken >= request.max_tokens:
                    request.finish = "stop" if t in request.stop_ids else "length"
                    ended.append(first + i)
        out = [self.active[row] for row in ended]
        for row in sorted(ended, reverse=True):
            self._leave(row)
        return out

    def _halt(self, hidden_AD: Tensor, rows: Sequence[Request], length: np.ndarray) -> None:
        """Who has thought enough; where that is a sampled decision, its log-probability goes to the latent position just read."""
        thinker = self.model.thinker
        assert thinker is not None
        if thinker.config.stop and any(r.thinking and 0 < r.latents < r.steps for r in rows):
            logit = thinker.stop_logit(hidden_AD).double().cpu().numpy()
            chance = 1 / (1 + np.exp(-logit))
            draw = uniform(np.array([r.seed for r in rows], np.uint64), length, stream=1)
            for i, request in enumerate(rows):
                if request.thinking and 0 < request.latents < request.steps:
                    stops = bool(chance[i] > 0.5) if request.greedy else bool(draw[i] < chance[i])
                    request.out_logprob[-1] = float(-np.logaddexp(0.0, -logit[i] if stops else logit[i]))
                    request.thinking = not stops
        for request in rows:
            if request.latents >= request.steps:
                request.thinking = False

    def _latents(self, hidden_ND: Tensor, rows: Sequence[Request], length: np.ndarray) -> Tensor:
        thinker = self.model.thinker
        assert thinker is not None
        if thinker.config.kind == "flow":
            latent = torch.stack([r.block_KD[r.latents] for r in rows if r.block_KD is not None])
        else:
            latent = thinker(hidden_ND)
            if (noise := self._noise(rows, [np.array([at]) for at in length])) is not None:
                latent = thinker.noisy(latent, noise)
        for request in rows:
            request.latents += 1
            request.out_token.append(self.latent_id)
            request.out_logprob.append(float("nan"))
            request.out_version.append(self.version)
        return latent

    def _plan_blocks(self, rows: Sequence[int], hidden_ND: Tensor) -> None:
        """A flow makes all latents of a block when its row begins to think. rows: those that think; hidden_ND: theirs."""
        thinker = self.model.thinker
        assert thinker is not None
        new = [i for i, row in enumerate(rows) if self.active[row].block_KD is None]
        if thinker.config.kind != "flow" or not new:
            return
        at, last_RD = [rows[i] for i in new], hidden_ND[new]
        length, steps = self._length[at], np.array([self.active[row].steps for row in at])
        longest = int(length.max())
        layers = {i: (keys[at, :, :longest], values[at, :, :longest]) for i, (keys, values) in self._keys.items()}
        length_R = torch.from_numpy(length).to(self._device)
        past = Past(layers, torch.arange(longest, device=self._device) < length_R[:, None], length_R, last_RD)
        asked = [self.active[row] for row in at]
        noise = self._noise(asked, [np.arange(n, n + k) for n, k in zip(length, steps, strict=True)])
        made = think_after(self.model.base, thinker, past, steps, noise)
        for request, block in zip(asked, made.split(steps.tolist()), strict=True):
            request.block_KD = block

    def _draw(self, hidden_ND: Tensor, rows: Sequence[Request], length: np.ndarray) -> tuple[Tensor, Tensor]:
        """(int64[N] tokens, float32[N] log-probabilities): the inverse of the cumulative distribution at one seeded number a row."""
        logits_NV = self.model.logits(hidden_ND).float()
        for distribution in {r.distribution for r in rows}:
            mine = [i for i, r in enumerate(rows) if r.distribution == distribution]
            if len(mine) == len(rows):
                logits_NV = kept(logits_NV / distribution.temperature, distribution)
            else:
                logits_NV[mine] = kept(logits_NV[mine] / distribution.temperature, distribution)
        logp_NV = logits_NV.log_softmax(-1)
        draw = torch.from_numpy(uniform(np.array([r.seed for r in rows], np.uint64), length, stream=0)).to(
            logp_NV.device
        )
        # double: in single precision the last of a large vocabulary would never be drawn
        mass_NV = logp_NV.double().exp().cumsum(-1)
        token = torch.searchsorted(mass_NV, draw[:, None] * mass_NV[:, -1:], right=True)[:, 0].clamp_(
            max=logp_NV.shape[1] - 1
        )
        greedy = torch.tensor([r.greedy for r in rows], device=token.device)
        token = torch.where(greedy, logp_NV.argmax(-1), token)
        return token, logp_NV.gather(-1, token[:, None])[:, 0]

    # ---- buffers ------------------------------------------------------------------------------------------------------------

    def _leave(self, row: int) -> None:
        last = len(self.active) - 1
        if row != last:
            self.active[row] = self.active[last]
            n = self._length[row] = self._length[last]
            self._input[row] = self._input[last]
            for keys, values in self._keys.values():
                keys[row, :, :n] = keys[last, :, :n]
                values[row, :, :n] = values[last, :, :n]
        self.active.pop()

    def _reserve(self, slots: int) -> None:
        if slots <= self._slots:
            return
        self._slots = -(-slots // GROW) * GROW
        self._layers = None  # they know the positions of as many slots
        for index, (keys, values) in list(self._keys.items()):
            more = self._slots - keys.shape[2]
            self._keys[index] = nn.functional.pad(keys, (0, 0, 0, more)), nn.functional.pad(values, (0, 0, 0, more))

    def _buffers(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """like: any [.., Hk, .., D] of this layer."""
        if index not in self._keys:
            shape = (self.rows, like.shape[1], self._slots, like.shape[-1])
            self._keys[index] = like.new_zeros(shape), like.new_zeros(shape)
        return self._keys[index]

    def _epsilon(self, new: Sequence[Request], kind_BT: np.ndarray, plan: Any) -> Tensor:
        out = self._input.new_zeros(plan.positions, self._input.shape[1])
        latent = [np.flatnonzero(row[: len(r.token)] == Kind.LATENT) for r, row in zip(new, kind_BT, strict=True)]
        if (noise := self._noise(new, latent)) is not None:
            out[plan.place_L] = noise.to(out)
        return out

    def _noise(self, rows: Sequence[Request], at: Sequence[np.ndarray]) -> Tensor | None:
        """[L, D] standard normal noise of the latents at these positions of each row, None for a thinker without."""
        if self.model.thinker is None or self.model.thinker.config.noise == 0:
            return None
        parts = [epsilon_of(r.eps_seed or 0, a, self._input.shape[1]) for r, a in zip(rows, at, strict=True)]
        return torch.from_numpy(np.concatenate(parts)).to(self._device)
