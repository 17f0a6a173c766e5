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
    """k, v: [B, Hk, S, D]. dk, dv: their gradients, None until the first is added."""

    k: Tensor
    v: Tensor
    dk: Tensor | None = None
    dv: Tensor | None = None


class KVCache:
    """Buffers of all layers. valid_BS: bool, the slots that hold a real position of a row."""

    def __init__(self, valid_BS: Tensor) -> None:
        self.valid_BS = valid_BS
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

    def free(self) -> None:
        self.layers.clear()


class StepAttention:
    """One query a row: attention of the first R rows of a step, at one slot, over all slots up to it.

    q: [R, H, D], k, v: [R, Hk, D] -> [R, H, D]. cut_R: bool or None, rows whose key and value take no gradient from later passes.
    """

    def __init__(self, cache: KVCache, rows: int, slot: int, cut_R: Tensor | None) -> None:
        self.cache, self.rows, self.slot, self.cut_R = cache, rows, slot, cut_R
        self._mask = cache.hidden_mask(rows, slot + 1)

    def forward(self, index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Any]:
        R, H, D = q.shape
        layer = self.cache.layers[index]
        layer.k[:R, :, self.slot] = k
        layer.v[:R, :, self.slot] = v
        keys, values = layer.k[:R, :, : self.slot + 1], layer.v[:R, :, : self.slot + 1]
        scaled = (q * scale).reshape(R, k.shape[1], -1, D)
        score = scaled @ keys.transpose(-1, -2)
        if self._mask is not None:
            score.masked_fill_(self._mask, -torch.inf)
        p = score.softmax(-1)
        return (p @ values).reshape(R, H, D), (scaled, p, scale)

    def backward(self, index: int, saved: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scaled, p, scale = saved
        R, Hk, G, D = scaled.shape
        end = self.slot + 1
        layer = self.cache.layers[index]
        dk, dv = (x[:R, :, :end].flatten(0, 1) for x in self.cache.gradients(index))  # views
        d_out = d_out.reshape(R, Hk, G, D)
        d_p = d_out @ layer.v[:R, :, :end].transpose(-1, -2)
        d_score = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype)
        dk.baddbmm_(d_score.flatten(0, 1).transpose(1, 2), scaled.flatten(0, 1))
        dv.baddbmm_(p.flatten(0, 1).transpose(1, 2), d_out.flatten(0, 1))
        d_q = ((d_score @ layer.k[:R, :, :end]) * scale).reshape(R, Hk * G, D)
        own_k, own_v = (x[:, self.slot].reshape(R, Hk, D).clone() for x in (dk, dv))
        if self.cut_R is not None:
            own_k, own_v = (g.masked_fill_(self.cut_R[:, None, None], 0.0) for g in (own_k, own_v))
        return d_q, own_k, own_v


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
        buffer[row_R, :, :base] += d_out[:, :, :base]  # rows are distinct
        own_MHD = d_out[:, :, base:].transpose(1, 2).flatten(0, 1)
        d_x = own_MHD.new_zeros(shape[2], shape[1], shape[3])
        # a padded place receives zero: no query reads it
        d_x.index_add_(0, own_RQ.flatten(), own_MHD)
        return d_x.transpose(0, 1)[None], None, None, None, None, None, None
