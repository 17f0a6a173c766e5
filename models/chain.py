"""The latent chain: a decoder that thinks in its own hidden vectors, and backpropagation through all of it.

    tokens ─► hidden ─┐                        one pass of the model each
              ┌───────┘
              └► feedback ─► latent ─► hidden ─┐
              ┌────────────────────────────────┘  ... K steps, then tokens again, as often as the rows ask for
              └► feedback ─► latent ─► hidden ─► tokens ─► hidden

`run_chain` is one differentiable function of the token embeddings and all parameters. Inside, each pass (`models.chain_plan`) has a
small graph of its own; the backward pass visits them last to first, hands the gradient of each latent to the hidden state it was made
from, and lets keys and values travel through buffers (`models.kv`). Weight gradients of the steps are gathered into large products
(`models.deferred`).

How far the gradient goes is one switch:

    exact        through the whole chain; every step's activations are kept
    recompute    the same gradient; a step's activations are built again when its turn comes, between the passes only hidden states are kept
    truncated:m  through the last m steps of each block; the steps before are constants
    detached     no gradient from a latent to the hidden state it was made from (a control: keys and values still carry one)
    ...,turn     any of these, and of an episode of many turns no gradient from one turn to those before it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.chain_plan import LatentPass, Plan, TokenPass
from models.deferred import WeightGradients, deferrable, deferred
from models.fast_step import FastModel, fast_model
from models.feedback import Thinker
from models.kv import Context, KVCache, StepAttention, StepAttentionFunction, Store
from models.packing import packed_attention


@dataclass(frozen=True)
class Gradient:
    """A parsed `grad=` switch. last: steps of each block that the gradient passes through, None for all. turn: within a turn only."""

    recompute: bool = False
    detached: bool = False
    last: int | None = None
    turn: bool = False

    @classmethod
    def parse(cls, text: str) -> Gradient:
        way, turn = text.removesuffix(",turn"), text.endswith(",turn")
        if way in ("exact", "recompute", "detached"):
            return cls(recompute=way == "recompute", detached=way == "detached", turn=turn)
        found = re.fullmatch(r"truncated:([1-9]\d*)", way)
        if not found:
            raise ValueError(
                f"grad: {text!r} is not one of exact, recompute, truncated:M (M steps, at least 1), detached, nor one of these and "
                "`,turn`"
            )
        return cls(last=int(found[1]), turn=turn)


EXACT = Gradient()


class Reader:
    """Stands in for the attention function while a pass of the chain runs (see `packing.packed_attention`)."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.now: TokenPass | LatentPass | None = None
        self.step: StepAttention | None = None

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
        """q: [1, H, N, D], k, v: [1, Hk, N, D] -> [1, N, H, D]."""
        index: int = module.layer_idx  # type: ignore[assignment]
        scale = options.get("scaling") or q.shape[-1] ** -0.5
        window = options.get("sliding_window")
        if window is not None and self.cache.slots > window:
            raise NotImplementedError(f"latent chains longer than the model's sliding window ({window}) are not built")
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise NotImplementedError("attention with a soft cap or sinks cannot think in latents")
        if isinstance(self.now, LatentPass):
            self.cache.layer(index, k)
            q_RHD, k_RHD, v_RHD = (x[0].transpose(0, 1) for x in (q, k, v))
            return StepAttentionFunction.apply(q_RHD, k_RHD, v_RHD, self.step, index, scale)[None], None
        assert self.now is not None
        k, v = Store.apply(k, v, self.cache, index, self.now.fill)
        if self.now.packing is not None:
            return packed_attention(module, q, k, v, None, **{**options, "packing": self.now.packing})
        return self._later_tokens(q, k, v, index, scale), None

    def _later_tokens(self, q: Tensor, k: Tensor, v: Tensor, index: int, scale: float) -> Tensor:
        now: Any = self.now
        keys, values = (
            Context.apply(x, self.cache, index, what, now.base, now.row_R, now.own_RQ)
            for x, what in ((k, "k"), (v, "v"))
        )
        q_RHQD = q[0][:, now.own_RQ.flatten()].view(q.shape[1], *now.own_RQ.shape, q.shape[3]).transpose(0, 1)
        grouped = {"enable_gqa": q.shape[1] != k.shape[1]}
        out_RHQD = nn.functional.scaled_dot_product_attention(
            q_RHQD, keys, values, now.mask_R1QS, scale=scale, **grouped
        )
        return out_RHQD.transpose(1, 2).flatten(0, 1).index_select(0, now.from_M)[None]


@dataclass
class Kept:
    """One pass, ready to be differentiated: autograd leads from `out` to `leaf`; a fast step leads from the hidden states to `out`,
    its latents."""

    leaf: Tensor
    out: Tensor
    fast: FastModel | None = None
    saved: Any = None
    attend: StepAttention | None = None

    def back(self, d_hidden: Tensor, parameters: Sequence[Tensor], sums: WeightGradients) -> Tensor:
        """Gradient of the leaf; those of the parameters go to `sums`."""
        d_out = d_hidden
        if self.fast is not None and self.attend is not None:
            d_out = self.fast.backward(self.saved, d_hidden, self.attend, sums)
        found = torch.autograd.grad(self.out, [self.leaf, *parameters], d_out, allow_unused=True)
        for parameter, gradient in zip(parameters, found[1:], strict=True):
            if gradient is not None:
                sums.add(parameter, gradient)
        return torch.zeros_like(self.leaf) if found[0] is None else found[0]


@dataclass
class Chain:
    """One batch on its way through the model.

    lm: the transformers model (packing enabled). epsilon: float[positions, D] or None, noise by place in the concatenated hidden states.
    general: take latent steps through transformers' modules even where `models.fast_step` knows them.
    """

    lm: Any
    thinker: Thinker
    plan: Plan
    grad: Gradient = EXACT
    epsilon: Tensor | None = None
    general: bool = False
    reader: Reader = field(init=False)
    fast: FastModel | None = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(KVCache(self.plan.valid_BS, self.plan.open_BS))
        longest = int(max(int(now.position_R.max()) for now in self._latent_passes) + 1) if self._latent_passes else 1
        self.fast = fast_model(self.lm, longest) if self._latent_passes and not self.general else None

    @property
    def _latent_passes(self) -> list[LatentPass]:
        return [now for now in self.plan.passes if isinstance(now, LatentPass)]

    def step(self, now: LatentPass, source_RD: Tensor, record: bool) -> tuple[Tensor, Tensor, Kept | None]:
        """(hidden [R, D], latent [R, D], what the backward pass needs) of one latent step. source: hidden states to think on from."""
        leaf = source_RD.detach().requires_grad_(record)
        attend = StepAttention(self.reader.cache, now.rows, now.slot, now.step, now.steps, self.cut(now))
        with torch.set_grad_enabled(record):
            latent = self.thinker(leaf)
            if self.epsilon is not None:
                latent = self.thinker.noisy(latent, self.epsilon[now.start : now.start + now.rows])
            if self.fast is None:
                hidden = self._model(now, latent, now.position_R, attend)
                return hidden, latent, Kept(leaf, hidden) if record else None
        with torch.no_grad():
            hidden, saved = self.fast.forward(latent.detach(), now.position_R, attend)
        return hidden, latent, Kept(leaf, latent, self.fast, saved, attend) if record else None

    def tokens(self, now: TokenPass, embeds_ND: Tensor, record: bool) -> tuple[Tensor, Kept | None]:
        leaf = embeds_ND.detach().requires_grad_(record)
        with torch.set_grad_enabled(record):
            hidden = self._model(now, leaf, now.position_N, None)
        return hidden, Kept(leaf, hidden) if record else None

    def cut(self, now: LatentPass) -> Tensor | None:
        """bool[R]: rows whose step at this pass is a constant (truncated), None if none is."""
        if self.grad.last is None:
            return None
        cut = now.left_R > self.grad.last
        return cut if bool(cut.any()) else None

    def _model(
        self, now: TokenPass | LatentPass, x_ND: Tensor, position_N: Tensor, attend: StepAttention | None
    ) -> Tensor:
        self.reader.now, self.reader.step = now, attend
        return self.lm.base_model(
            inputs_embeds=x_ND[None], position_ids=position_N[None], use_cache=False, reader=self.reader
        ).last_hidden_state[0]


def run_chain(chain: Chain, embeds_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden states [positions, D] after the last norm, latents [L, D] without gradient, in the order of `Plan.place_L`).

    embeds_ND: embeddings of all passes' tokens, one after another (`token_ids`).
    """
    # all of the language model's: the soft mixture reads both embeddings inside the chain
    modules = (chain.lm, chain.thinker)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not torch.is_grad_enabled():
        return _Run.forward(None, chain, embeds_ND, *parameters)
    return _Run.apply(chain, embeds_ND, *parameters)


def token_ids(plan: Plan) -> Tensor:
    """int64[N]: the ids to embed for `run_chain`."""
    return torch.cat([now.token_N for now in plan.passes if isinstance(now, TokenPass)])


class _Run(torch.autograd.Function):
    """ctx.kept: by pass, what is needed to differentiate it, None where that is made again or not needed."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, embeds_ND: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        plan, record = chain.plan, ctx is not None
        hidden = embeds_ND.new_empty(plan.positions, embeds_ND.shape[1])
        latents = torch.zeros_like(hidden)
        kept: list[Kept | None] = []
        sums = WeightGradients()
        linears = [*deferrable(chain.lm.base_model), *deferrable(chain.thinker)]
        at = 0
        recording: AbstractContextManager[Any] = deferred(linears, sums) if record else nullcontext()
        with recording:
            for now in plan.passes:
                if isinstance(now, TokenPass):
                    out, one = chain.tokens(now, embeds_ND[at : at + now.size], record)
                    at += now.size
                else:
                    cut = chain.cut(now)
                    keep = record and not chain.grad.recompute and not (cut is not None and bool(cut.all()))
                    out, latent, one = chain.step(now, hidden[now.source_R], keep)
                    latents[now.start : now.start + now.rows] = latent.detach()
                hidden[now.start : now.start + now.size] = out.detach()
                kept.append(one)
        made = latents[plan.place_L]
        if record:
            ctx.chain, ctx.kept, ctx.sums, ctx.linears = chain, kept, sums, linears
            ctx.parameters, ctx.embeds = parameters, embeds_ND.shape
            ctx.autocast = _autocast(embeds_ND.device.type)
            ctx.hidden = hidden.detach() if chain.grad.recompute else None
            ctx.mark_non_differentiable(made)
        return hidden, made

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, _: Tensor) -> Any:
        chain, sums, kept = ctx.chain, ctx.sums, ctx.kept
        d_hidden = d_hidden.clone()
        d_embeds = d_hidden.new_zeros(ctx.embeds)
        apart = {id(w) for m in ctx.linears for w in (m.weight, getattr(m, "bias", None)) if w is not None}
        others = [p for p in ctx.parameters if id(p) not in apart]
        # what a fast step differentiates through autograd is its latent alone
        mine = {id(p) for p in chain.thinker.parameters()}
        reads_lm = chain.fast is None or chain.thinker.config.kind == "soft"
        of_steps = others if reads_lm else [p for p in others if id(p) in mine]
        end = len(d_embeds)
        with ctx.autocast(), deferred(ctx.linears, sums):
            for now in reversed(chain.plan.passes):
                one = kept.pop()
                d_out = d_hidden[now.start : now.start + now.size]
                if isinstance(now, TokenPass) or now.step == now.steps - 1:
                    chain.reader.cache.settle()
                if isinstance(now, TokenPass):
                    end -= now.size
                    d_embeds[end : end + now.size] = one.back(d_out, others, sums)
                    continue
                cut = chain.cut(now)
                if cut is not None:
                    if bool(cut.all()):
                        continue
                    d_out = d_out.masked_fill(cut[:, None], 0.0)
                if one is None:
                    one = chain.step(now, ctx.hidden[now.source_R], True)[2]
                d_source = one.back(d_out, of_steps, sums)
                if now.fresh_R is not None:
                    d_source = d_source.masked_fill(now.fresh_R[:, None], 0.0)
                if not chain.grad.detached:
                    # several rows may think on from one shared place
                    d_hidden.index_add_(0, now.source_R, d_source)
        if chain.fast is not None:
            chain.fast.finish(sums)
        chain.reader.cache.free()
        found = sums.finish()
        return None, d_embeds, *(found.get(p) for p in ctx.parameters)


def _autocast(device: str) -> Any:
    """A function that makes the precision context of now again."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled)
