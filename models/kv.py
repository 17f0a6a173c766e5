"""Keys and values of a latent chain in fixed buffers, with their gradients beside them.

A chain (`models.chain`) runs the model in passes: the prompt, one latent step after another, the answer. Concatenating a growing cache
would copy the prompt's keys once per latent step, forwards and backwards. Here every pass writes its keys and values into its own
slots of one buffer a layer and reads the slots before. Autograd does not see the buffers: each pass has a graph of its own, and the
passes are differentiated last to first. A pass adds what it sends to earlier slots to the gradient buffers, and takes what later
passes have sent to its own slots from there. That is exact, because a slot is read only by later passes.

Shapes: B rows, S slots, R rows of a pass, H heads, G query heads per key head (H = Hk * G), D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Layer:
    """k, v: [B, Hk, S, D]. dk, dv: their gradients, None until the first is added. sent: of the block that is being differentiated."""

    k: Tensor
    v: Tensor
    dk: Tensor | None = None
    dv: Tensor | None = None
    sent: Sent | None = None


class KVCache:
    """Buffers of all layers. valid_BS: bool, the slots that hold a real position of a row. open_BS: by the first slot of a pass, which
    of the slots before it take a gradient from it: bool[B, that many]; all, where it is not named."""

    def __init__(self, valid_BS: Tensor, open_BS: dict[int, Tensor] | None = None) -> None:
        self.valid_BS, self.open_BS = valid_BS, open_BS or {}
        self.rows, self.slots = valid_BS.shape
        self.layers: dict[int, Layer] = {}
        # a row without holes up to a slot needs no mask there
        self._full = (valid_BS.long().cumprod(1).sum(1).min()).item() if self.rows else 0
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def layer(self, index: int, key: Tensor) -> Layer:
        """key: [1, Hk, N, D], the first keys of this layer, for shape and dtype."""
        if index not in self.layers:
            shape = (self.rows, key.shape[1], self.slots, key.shape[3])
            # zeros, not empty: a slot without a position is masked, and 0 * NaN would not be
            self.layers[index] = Layer(key.new_zeros(shape), key.new_zeros(shape))
        return self.layers[index]

    def gradients(self, index: int) -> tuple[Tensor, Tensor]:
        layer = self.layers[index]
        if layer.dk is None or layer.dv is None:
            layer.dk, layer.dv = torch.zeros_like(layer.k), torch.zeros_like(layer.v)
        return layer.dk, layer.dv

    def hidden_mask(self, rows: int, slots: int) -> Tensor | None:
        """bool[R, 1, 1, slots], True where there is nothing to read; None if all of it is there."""
        if slots <= self._full:
            return None
        if (rows, slots) not in self._masks:
            hidden = ~self.valid_BS[:rows, :slots]
            self._masks[rows, slots] = hidden[:, None, None] if bool(hidden.any()) else None
        return self._masks[rows, slots]

    def settle(self) -> None:
        """A block is through: what it sent to the slots before it goes to the gradient buffers, in one product a layer."""
        for index, layer in self.layers.items():
            if (sent := layer.sent) is None:
                continue
            pairs = ((sent.score, sent.query), (sent.weight, sent.out))
            for buffer, (seen, what) in zip(self.gradients(index), pairs, strict=True):
                total = torch.bmm(seen[:, :, : sent.base].transpose(1, 2), what)
                total = total.view(*buffer.shape[:2], sent.base, -1)
                if sent.base in self.open_BS:
                    total *= self.open_BS[sent.base][:, None, :, None]
                buffer[:, :, : sent.base] += total
            layer.sent = None

    def free(self) -> None:
        self.layers.clear()


@dataclass
class Sent:
    """What the steps of one block, taken last to first, sent back through attention, in one layer.

    score: [R * Hk, K * G, S] gradients of the scores, weight: likewise the attention weights; query, out: [R * Hk, K * G, D] scaled
    queries and gradients of the outputs. A slot's key gradient is score^T query over the steps after it, its value's weight^T out.
    base: first slot of the block.
    """

    score: Tensor
    query: Tensor
    weight: Tensor
    out: Tensor
    base: int


class StepAttention:
    """One query a row: attention of the first R rows of a step, at one slot, over all slots up to it.

    q: [R, H, D], k, v: [R, Hk, D] -> [R, H, D]. step, steps: number in its block, and how many the block has. cut_R: bool or None,
    rows whose key and value take no gradient from later passes.
    """

    def __init__(self, cache: KVCache, rows: int, slot: int, step: int, steps: int, cut_R: Tensor | None) -> None:
        self.cache, self.rows, self.slot, self.cut_R = cache, rows, slot, cut_R
        self.step, self.steps = step, steps
        self._mask = cache.hidden_mask(rows, slot + 1)

    def forward(self, index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Any]:
        R, H, D = q.shape
        Hk, end = k.shape[1], self.slot + 1
        layer = self.cache.layers[index]
        layer.k[:R, :, self.slot] = k
        layer.v[:R, :, self.slot] = v
        keys, values = layer.k[:R].flatten(0, 1)[:, :end], layer.v[:R].flatten(0, 1)[:, :end]
        scaled = (q * scale).reshape(R * Hk, -1, D)
        score = torch.bmm(scaled, keys.transpose(1, 2))
        if self._mask is not None:
            score.view(R, Hk, -1, end).masked_fill_(self._mask, -torch.inf)
        p = score.softmax(-1)
        return torch.bmm(p, values).view(R, H, D), (scaled, p, scale)

    def backward(self, index: int, saved: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scaled, p, scale = saved
        R, H, D = d_out.shape
        G, slot, end = scaled.shape[1], self.slot, self.slot + 1
        N = len(scaled)
        layer = self.cache.layers[index]
        keys, values = layer.k[:R].flatten(0, 1)[:, :end], layer.v[:R].flatten(0, 1)[:, :end]
        d_out = d_out.reshape(N, G, D)
        d_score = torch.ops.aten._softmax_backward_data(torch.bmm(d_out, values.transpose(1, 2)), p, -1, p.dtype)
        d_q = torch.bmm(d_score, keys).mul_(scale).view(R, H, D)
        sent = self._sent(layer, scaled)
        at = slice(self.step * G, (self.step + 1) * G)
        sent.score[:N, at, :end], sent.query[:N, at] = d_score, scaled
        sent.weight[:N, at, :end], sent.out[:N, at] = p, d_out
        later = slice(self.step * G, None)  # this step and those after it
        d_k = torch.bmm(sent.score[:N, later, slot, None].transpose(1, 2), sent.query[:N, later]).view(R, -1, D)
        d_v = torch.bmm(sent.weight[:N, later, slot, None].transpose(1, 2), sent.out[:N, later]).view(R, -1, D)
        if layer.dk is not None and layer.dv is not None:  # from token passes and blocks after this one
            d_k += layer.dk[:R, :, slot]
            d_v += layer.dv[:R, :, slot]
        if self.cut_R is not None:
            d_k, d_v = (g.masked_fill_(self.cut_R[:, None, None], 0.0) for g in (d_k, d_v))
        return d_q, d_k, d_v

    def _sent(self, layer: Layer, scaled: Tensor) -> Sent:
        if layer.sent is None:
            rows, G, D = layer.k.shape[0] * layer.k.shape[1], scaled.shape[1], scaled.shape[2]
            many, slots = self.steps * G, self.slot + 1  # the block's last step comes first
            layer.sent = Sent(
                scaled.new_zeros(rows, many, slots),
                scaled.new_zeros(rows, many, D),
                scaled.new_zeros(rows, many, slots),
                scaled.new_zeros(rows, many, D),
                base=self.slot - self.step,
            )
        return layer.sent


class StepAttentionFunction(torch.autograd.Function):
    """`StepAttention` inside an autograd graph, for layers that run as transformers' modules."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, step: StepAttention, index: int, scale: float) -> Tensor:
        out, saved = step.forward(index, q, k, v, scale)
        ctx.save_for_backward(*saved[:2])
        ctx.place = (step, index, scale)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:
        step, index, scale = ctx.place
        return *step.backward(index, (*ctx.saved_tensors, scale), d_out), None, None, None


@dataclass
class Fill:
    """Where a token pass's N packed positions go: packed place_F -> (row_F, slot_F); one place may go to several rows."""

    place_F: Tensor
    row_F: Tensor
    slot_F: Tensor


class Store(torch.autograd.Function):
    """Identity on k, v [1, Hk, N, D] that writes them into the buffers; its gradient adds what later passes sent back."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, cache: KVCache, index: int, fill: Fill) -> tuple[Tensor, Tensor]:
        layer = cache.layer(index, k)
        for buffer, new in ((layer.k, k), (layer.v, v)):
            buffer[fill.row_F, :, fill.slot_F] = new[0].transpose(0, 1).index_select(0, fill.place_F)
        ctx.place = (cache, index, fill)
        return k.view_as(k), v.view_as(v)

    @staticmethod
    def backward(ctx: Any, d_k: Tensor, d_v: Tensor) -> Any:
        cache, index, fill = ctx.place
        layer = cache.layers[index]
        if layer.dk is None or layer.dv is None:
            return d_k, d_v, None, None, None
        out = []
        for given, sent in ((d_k, layer.dk), (d_v, layer.dv)):
            total_NHD = given[0].transpose(0, 1).contiguous()
            total_NHD.index_add_(0, fill.place_F, sent[fill.row_F, :, fill.slot_F].to(given.dtype))
            out.append(total_NHD.transpose(0, 1)[None])
        return out[0], out[1], None, None, None


class Context(torch.autograd.Function):
    """Keys (or values) that a later token pass reads: buffer slots [0, base) of its rows, then its own Q positions.

    x: [1, Hk, N, D] packed. row_R: int64 rows; own_RQ: int64 packed places (0 where padded) -> [R, Hk, base + Q, D].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cache: KVCache, index: int, what: str, base: int, row_R: Tensor, own_RQ: Tensor
    ) -> Tensor:
        layer = cache.layers[index]
        earlier = (layer.k if what == "k" else layer.v)[row_R, :, :base]
        own = x[0][:, own_RQ.flatten()].view(x.shape[1], *own_RQ.shape, x.shape[3]).transpose(0, 1)
        ctx.place = (cache, index, what, base, row_R, own_RQ, x.shape)
        return torch.cat([earlier, own], 2)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:
        cache, index, what, base, row_R, own_RQ, shape = ctx.place
        dk, dv = cache.gradients(index)
        buffer = dk if what == "k" else dv
        d_earlier = d_out[:, :, :base]
        if base in cache.open_BS:
            d_earlier = d_earlier * cache.open_BS[base][row_R, None, :, None]
        buffer[row_R, :, :base] += d_earlier  # rows are distinct
        own_MHD = d_out[:, :, base:].transpose(1, 2).flatten(0, 1)
        d_x = own_MHD.new_zeros(shape[2], shape[1], shape[3])
        # a padded place receives zero: no query reads it
        d_x.index_add_(0, own_RQ.flatten(), own_MHD)
        return d_x.transpose(0, 1)[None], None, None, None, None, None, None
