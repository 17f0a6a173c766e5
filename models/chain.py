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
from models.feedback import Thinker
from models.kv import Context, KVCache, StepAttention, Store
from models.packing import packed_attention


@dataclass(frozen=True)
class Gradient:
    """A parsed `grad=` switch. last: steps of each block that the gradient passes through, None for all."""

    recompute: bool = False
    detached: bool = False
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> Gradient:
        if text in ("exact", "recompute", "detached"):
            return cls(recompute=text == "recompute", detached=text == "detached")
        found = re.fullmatch(r"truncated:([1-9]\d*)", text)
        if not found:
            raise ValueError(
                f"grad: {text!r} is not one of exact, recompute, truncated:M (M steps, at least 1), detached"
            )
        return cls(last=int(found[1]))


EXACT = Gradient()


class Reader:
    """Stands in for the attention function while a pass of the chain runs (see `packing.packed_attention`)."""

    def __init__(self, cache: KVCache, keep: bool) -> None:
        self.cache = cache
        self.keep = keep  # whether later passes read what the first writes
        self.now: TokenPass | LatentPass | None = None
        self.cut_R: Tensor | None = None

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
            out = StepAttention.apply(
                q_RHD.contiguous(), k_RHD, v_RHD, self.cache, index, self.now.slot, scale, self.cut_R
            )
            return out[None], None
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
class Chain:
    """One batch on its way through the model.

    lm: the transformers model (packing enabled). epsilon: float[positions, D] or None, noise by place in the concatenated hidden states.
    """

    lm: Any
    thinker: Thinker
    plan: Plan
    grad: Gradient = EXACT
    epsilon: Tensor | None = None
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(KVCache(self.plan.valid_BS), True)

    def step(self, now: LatentPass, source_RD: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden [R, D], latent [R, D]) of one latent step."""
        latent = self.thinker(source_RD)
        if self.epsilon is not None:
            latent = self.thinker.noisy(latent, self.epsilon[now.start : now.start + now.rows])
        return self._model(now, latent, now.position_R), latent

    def tokens(self, now: TokenPass, embeds_ND: Tensor) -> Tensor:
        return self._model(now, embeds_ND, now.position_N)

    def cut(self, now: LatentPass) -> Tensor | None:
        """bool[R]: rows whose step at this pass is a constant (truncated), None if none is."""
        if self.grad.last is None:
            return None
        cut = now.left_R > self.grad.last
        return cut if bool(cut.any()) else None

    def _model(self, now: TokenPass | LatentPass, x_ND: Tensor, position_N: Tensor) -> Tensor:
        self.reader.now = now
        self.reader.cut_R = self.cut(now) if isinstance(now, LatentPass) else None
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
    """ctx.graphs: by pass (leaf, output) of the passes whose graph is kept."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, embeds_ND: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        plan, record = chain.plan, ctx is not None
        hidden = embeds_ND.new_empty(plan.positions, embeds_ND.shape[1])
        latents = torch.zeros_like(hidden)
        graphs: list[Any] = []
        sums = WeightGradients()
        linears = [*deferrable(chain.lm.base_model), *deferrable(chain.thinker)]
        at = 0
        recording: AbstractContextManager[Any] = deferred(linears, sums) if record else nullcontext()
        with recording:
            for now in plan.passes:
                if isinstance(now, TokenPass):
                    leaf = embeds_ND[at : at + now.size].detach()
                    at += now.size
                    keep = record
                else:
                    leaf = hidden[now.source_R]
                    cut = chain.cut(now)
                    keep = record and not chain.grad.recompute and not (cut is not None and bool(cut.all()))
                with torch.set_grad_enabled(keep):
                    leaf = leaf.requires_grad_(keep)
                    if isinstance(now, TokenPass):
                        out = chain.tokens(now, leaf)
                    else:
                        out, latent = chain.step(now, leaf)
                        latents[now.start : now.start + now.rows] = latent.detach()
                hidden[now.start : now.start + now.size] = out.detach()
                graphs.append((leaf, out) if keep else None)
        if record:
            ctx.chain, ctx.graphs, ctx.sums, ctx.linears = chain, graphs, sums, linears
            ctx.parameters, ctx.embeds = parameters, embeds_ND.shape
            ctx.autocast = _autocast(embeds_ND.device.type)
            ctx.kept_hidden = hidden if chain.grad.recompute else None
            ctx.mark_non_differentiable(latents_out := latents[plan.place_L])
            return hidden, latents_out
        return hidden, latents[plan.place_L]

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, _: Tensor) -> Any:
        chain, sums = ctx.chain, ctx.sums
        plan = chain.plan
        d_hidden = d_hidden.clone()
        d_embeds = d_hidden.new_zeros(ctx.embeds)
        direct = {
            id(weight) for m in ctx.linears for weight in (m.weight, getattr(m, "bias", None)) if weight is not None
        }
        others = [p for p in ctx.parameters if id(p) not in direct]
        end = len(d_embeds)
        with ctx.autocast(), deferred(ctx.linears, sums):
            for now, graph in zip(reversed(plan.passes), reversed(ctx.graphs), strict=True):
                d_out = d_hidden[now.start : now.start + now.size]
                if isinstance(now, TokenPass):
                    end -= now.size
                    d_embeds[end : end + now.size] = _through(graph, d_out, others, sums)
                    continue
                cut = chain.cut(now)
                if cut is not None:
                    if bool(cut.all()):
                        continue
                    d_out = d_out.masked_fill(cut[:, None], 0.0)
                if graph is None:
                    with torch.enable_grad():
                        leaf = ctx.kept_hidden[now.source_R].detach().requires_grad_()
                        graph = (leaf, chain.step(now, leaf)[0])
                d_source = _through(graph, d_out, others, sums)
                if not chain.grad.detached:
                    # several rows may think on from one shared place
                    d_hidden.index_add_(0, now.source_R, d_source)
        chain.reader.cache.free()
        ctx.graphs = None
        found = sums.finish()
        return None, d_embeds, *(found.get(p) for p in ctx.parameters)


def _through(
    graph: tuple[Tensor, Tensor], d_out: Tensor, parameters: Sequence[Tensor], sums: WeightGradients
) -> Tensor:
    leaf, out = graph
    d_leaf, *gradients = torch.autograd.grad(out, [leaf, *parameters], d_out, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            sums.add(parameter, gradient)
    return d_leaf


def _autocast(device: str) -> Any:
    """A function that makes the precision context of now again."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled)
