"""One latent step of the common decoder layers by hand: the same arithmetic as transformers' modules in a third of the calls.

A step works on a handful of rows, so that the time goes into calls, not into arithmetic: transformers' modules and autograd make about
250 small calls per layer, forwards and backwards. Here are the layers of the Llama family (Llama, Mistral, Qwen2, Qwen3) and of GPT-2
with their derivatives written out, joined projections, and weight gradients kept for later. `fast_model` returns None for anything
else, which then takes the general way through transformers; tests hold the two ways together.

R rows, D width of the model, H query heads, Hk key heads, Dh width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.deferred import ROWS

LLAMA_LIKE = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


class Sums(Protocol):
    """Where gradients of parameters are added up (`models.deferred.WeightGradients`)."""

    def add(self, parameter: Tensor, gradient: Tensor) -> None: ...


class Matrix:
    """Linear layers that read the same input, as one product. modules: torch's, or GPT-2's transposed ones."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = modules
        self.transposed = not isinstance(modules[0], nn.Linear)
        weights = [m.weight.detach().t() if self.transposed else m.weight.detach() for m in modules]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)  # [out, in]
        biases = [m.bias.detach() for m in modules if getattr(m, "bias", None) is not None]
        self.bias = torch.cat(biases) if biases else None
        self.sizes = [len(w) for w in weights]
        self._x: list[Tensor] = []
        self._dy: list[Tensor] = []
        self._rows = 0

    def __call__(self, x: Tensor) -> Tensor:
        return x.mm(self.weight.t()) if self.bias is None else torch.addmm(self.bias, x, self.weight.t())

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        out = torch.addmm(residual, x, self.weight.t())
        return out if self.bias is None else out.add_(self.bias)

    def back(self, x: Tensor, dy: Tensor, sums: Sums) -> Tensor:
        """dx; the weights' gradient waits until it is worth a product."""
        self._x.append(x)
        self._dy.append(dy)
        self._rows += len(x)
        if self._rows >= ROWS:
            self.finish(sums)
        return dy.mm(self.weight)

    def finish(self, sums: Sums) -> None:
        if not self._x:
            return
        x, dy = torch.cat(self._x), torch.cat(self._dy)
        self._x, self._dy, self._rows = [], [], 0
        if self.modules[0].weight.requires_grad:
            for module, part in zip(self.modules, dy.t().mm(x).split(self.sizes), strict=True):
                sums.add(module.weight, part.t() if self.transposed else part)
        if self.bias is not None and self.modules[0].bias.requires_grad:
            for module, part in zip(self.modules, dy.sum(0).split(self.sizes), strict=True):
                sums.add(module.bias, part)


class RMSNorm:
    """x / rms(x) * weight over the last axis. weights: one for each group of heads, or one."""

    def __init__(self, modules: Sequence[Any], heads: Sequence[int] = ()) -> None:
        self.modules, self.heads = modules, heads
        self.eps = modules[0].variance_epsilon
        weights = [m.weight.detach() for m in modules]
        self.weight = torch.cat([w.expand(n, -1) for w, n in zip(weights, heads, strict=True)]) if heads else weights[0]

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        r = _mean(x.square()).add_(self.eps).rsqrt_()
        unit = x * r
        return unit * self.weight, (unit, r)

    def back(self, saved: tuple[Tensor, ...], dy: Tensor, sums: Sums) -> Tensor:
        unit, r = saved
        along = dy * unit
        if self.modules[0].weight.requires_grad:
            total = along.sum(0)
            parts = total.split(list(self.heads)) if self.heads else (total,)
            for module, part in zip(self.modules, parts, strict=True):
                sums.add(module.weight, part.sum(0) if self.heads else part)
        inner = _mean(along * self.weight)
        return torch.addcmul(dy * self.weight, unit, inner, value=-1).mul_(r)


class LayerNorm:
    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        m = self.module
        y, mean, r = torch.native_layer_norm(x, m.normalized_shape, m.weight, m.bias, m.eps)
        return y, (x, mean, r)

    def back(self, saved: tuple[Tensor, ...], dy: Tensor, sums: Sums) -> Tensor:
        m = self.module
        x, mean, r = saved
        dx, dw, db = torch.ops.aten.native_layer_norm_backward(
            dy, x, m.normalized_shape, mean, r, m.weight, m.bias, [True, m.weight.requires_grad, m.bias.requires_grad]
        )
        for parameter, gradient in ((m.weight, dw), (m.bias, db)):
            if parameter.requires_grad:
                sums.add(parameter, gradient)
        return dx


class Read(Protocol):
    """Attention over what was read before: [R, H, Dh] and what its derivative needs."""

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Any]: ...


class Attend(Read, Protocol):
    """The same with its derivative."""

    def backward(self, layer: int, saved: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass
class Layer:
    norm1: Any
    qkv: Matrix
    heads: RMSNorm | None
    out: Matrix
    norm2: Any
    up: Matrix
    down: Matrix
    act: str
    shape: tuple[int, int, int]
    scale: float

    def forward(self, index: int, x: Tensor, rope: tuple[Tensor, Tensor] | None, attend: Read) -> tuple[Tensor, Any]:
        H, Hk, Dh = self.shape
        a, saved1 = self.norm1(x)
        qkv = self.qkv(a).view(len(x), H + 2 * Hk, Dh)
        qk, saved_heads = qkv[:, : H + Hk], None
        if self.heads is not None:
            qk, saved_heads = self.heads(qk)
        if rope is not None:
            qk = _rotate(qk, *rope)
        mixed, saved_attention = attend.forward(index, qk[:, :H], qk[:, H:], qkv[:, H + Hk :], self.scale)
        mixed = mixed.reshape(len(x), H * Dh)
        x2 = self.out.added_to(x, mixed)
        b, saved2 = self.norm2(x2)
        u = self.up(b)
        if self.act == "silu":
            gate, straight = u.chunk(2, -1)
            lit = F.silu(gate)
            inner = lit * straight
        else:
            lit, inner = None, F.gelu(u, approximate=self.act)
        x3 = self.down.added_to(x2, inner)
        return x3, (a, saved1, saved_heads, rope, saved_attention, mixed, b, saved2, u, lit, inner)

    def backward(self, index: int, saved: Any, dx: Tensor, attend: Attend, sums: Sums) -> Tensor:
        H, _, Dh = self.shape
        a, saved1, saved_heads, rope, saved_attention, mixed, b, saved2, u, lit, inner = saved
        d_inner = self.down.back(inner, dx, sums)
        if self.act == "silu":
            gate, straight = u.chunk(2, -1)
            d_gate = torch.ops.aten.silu_backward(d_inner * straight, gate)
            d_u = torch.cat([d_gate, d_inner.mul_(lit)], -1)
        else:
            d_u = torch.ops.aten.gelu_backward(d_inner, u, approximate=self.act)
        dx2 = dx + self.norm2.back(saved2, self.up.back(b, d_u, sums), sums)
        d_mixed = self.out.back(mixed, dx2, sums).view(len(dx), H, Dh)
        d_q, d_k, d_v = attend.backward(index, saved_attention, d_mixed)
        d_qk = torch.cat([d_q, d_k], 1)
        if rope is not None:
            d_qk = _unrotate(d_qk, *rope)
        if self.heads is not None:
            d_qk = self.heads.back(saved_heads, d_qk, sums)
        d_qkv = torch.cat([d_qk, d_v], 1).flatten(1)
        return dx2 + self.norm1.back(saved1, self.qkv.back(a, d_qkv, sums), sums)


class FastModel:
    """The decoder's layers with this moment's weights. positions: as many as any row will have."""

    def __init__(self, lm: Any, layers: Sequence[Layer], norm: Any, positions: int) -> None:
        self.layers, self.norm = layers, norm
        base = lm.base_model
        self._wpe: nn.Embedding | None = getattr(base, "wpe", None)
        self._cos: Tensor | None = None
        if self._wpe is None:
            like = next(base.parameters()).detach()[None, :1]
            places = torch.arange(positions, device=like.device)[None]
            cos, sin = (x[0] for x in base.rotary_emb(like, places))
            half = cos.shape[-1] // 2
            self._cos = cos[:, None]
            self._sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)[:, None]

    def forward(self, x: Tensor, position_R: Tensor, attend: Read) -> tuple[Tensor, Any]:
        """x: [R, D] inputs -> ([R, D] hidden states after the last norm, saved)."""
        rope = None
        if self._wpe is not None:
            x = x + self._wpe.weight.detach()[position_R]
        elif self._cos is not None:
            rope = (self._cos[position_R], self._sin[position_R])
        saved = []
        for index, layer in enumerate(self.layers):
            x, kept = layer.forward(index, x, rope, attend)
            saved.append(kept)
        hidden, last = self.norm(x)
        return hidden, (saved, last, position_R)

    def backward(self, kept: Any, d_hidden: Tensor, attend: Attend, sums: Sums) -> Tensor:
        """[R, D] gradient of the inputs; parameters' gradients go to `sums`, after `finish`."""
        saved, last, position_R = kept
        dx = self.norm.back(last, d_hidden, sums)
        for index in reversed(range(len(self.layers))):
            dx = self.layers[index].backward(index, saved[index], dx, attend, sums)
        if self._wpe is not None and self._wpe.weight.requires_grad:
            sums.add(self._wpe.weight, torch.zeros_like(self._wpe.weight).index_add_(0, position_R, dx))
        return dx

    def finish(self, sums: Sums) -> None:
        for layer in self.layers:
            for matrix in (layer.qkv, layer.out, layer.up, layer.down):
                matrix.finish(sums)


def fast_model(lm: Any, positions: int) -> FastModel | None:
    """None where a layer, an option or a precision is not built here."""
    base = lm.base_model
    dtypes = {p.dtype for p in base.parameters()}
    device = next(base.parameters()).device.type
    if not dtypes <= {torch.float32, torch.float64} or len(dtypes) > 1 or torch.is_autocast_enabled(device):
        return None
    if any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in base.modules()):
        return None
    blocks: list[Any] = list(getattr(base, "layers", getattr(base, "h", [])))
    kinds = {type(block).__name__ for block in blocks}
    if len(kinds) != 1 or any(type(m).__module__.startswith("peft") for m in base.modules()):
        return None
    kind = kinds.pop()
    if kind == "GPT2Block":
        made = [_gpt2(block) for block in blocks]
        layers = [layer for layer in made if layer is not None]
        return FastModel(lm, layers, LayerNorm(base.ln_f), positions) if len(layers) == len(made) else None
    config = lm.config
    dynamic = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")
    window = getattr(config, "sliding_window", None)
    if kind not in LLAMA_LIKE or dynamic or config.hidden_act != "silu" or (window is not None and window < positions):
        return None
    if config.attention_dropout and lm.training:
        return None
    return FastModel(lm, [_llama(block) for block in blocks], RMSNorm([base.norm]), positions)


def _llama(block: Any) -> Layer:
    attn, mlp = block.self_attn, block.mlp
    Dh = attn.head_dim
    H, Hk = attn.q_proj.out_features // Dh, attn.k_proj.out_features // Dh
    heads = RMSNorm([attn.q_norm, attn.k_norm], [H, Hk]) if hasattr(attn, "q_norm") else None
    return Layer(
        norm1=RMSNorm([block.input_layernorm]),
        qkv=Matrix([attn.q_proj, attn.k_proj, attn.v_proj]),
        heads=heads,
        out=Matrix([attn.o_proj]),
        norm2=RMSNorm([block.post_attention_layernorm]),
        up=Matrix([mlp.gate_proj, mlp.up_proj]),
        down=Matrix([mlp.down_proj]),
        act="silu",
        shape=(H, Hk, Dh),
        scale=attn.scaling,
    )


GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}


def _gpt2(block: Any) -> Layer | None:
    attn, mlp = block.attn, block.mlp
    act = GELUS.get(attn.config.activation_function)
    plain = attn.config.scale_attn_weights and not attn.config.scale_attn_by_inverse_layer_idx
    if act is None or not plain or attn.reorder_and_upcast_attn or hasattr(block, "crossattention"):
        return None
    return Layer(
        norm1=LayerNorm(block.ln_1),
        qkv=Matrix([attn.c_attn]),
        heads=None,
        out=Matrix([attn.c_proj]),
        norm2=LayerNorm(block.ln_2),
        up=Matrix([mlp.c_fc]),
        down=Matrix([mlp.c_proj]),
        act=act,
        shape=(attn.num_heads, attn.num_heads, attn.head_dim),
        scale=attn.scaling,
    )


def _rotate(x_RHD: Tensor, cos_R1D: Tensor, sin_R1D: Tensor) -> Tensor:
    """sin: with the sign of transformers' rotate_half, so that a roll is enough."""
    return torch.addcmul(x_RHD * cos_R1D, x_RHD.roll(x_RHD.shape[-1] // 2, -1), sin_R1D)


def _unrotate(dy_RHD: Tensor, cos_R1D: Tensor, sin_R1D: Tensor) -> Tensor:
    return torch.add(dy_RHD * cos_R1D, (dy_RHD * sin_R1D).roll(dy_RHD.shape[-1] // 2, -1))


def _mean(x: Tensor) -> Tensor:
    """Over the last axis, which stays: as a product, which is faster than a reduction of few rows."""
    width = x.shape[-1]
    return (x.reshape(-1, width) @ x.new_full((width, 1), 1 / width)).view(*x.shape[:-1], 1)
