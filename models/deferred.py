"""Weight gradients of many small passes as one matrix product.

A latent chain runs the model once per step on a handful of rows. Backpropagation needs dx of every step in turn, but dW of no step
before the
end: adding dy^T x to a weight's gradient step by step reads and writes the whole matrix each time, for a few rows of work. Inside
`deferred`, linear layers keep (x, dy) instead, and make one product of at least `ROWS` rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 1024
"""Rows after which a layer's product is made: enough for a fast product, few enough to bound what is kept."""


class WeightGradients:
    """Sums of weight and bias gradients by parameter. linears: the layers whose inputs and output gradients are kept."""

    def __init__(self) -> None:
        self.sums: dict[Tensor, Tensor] = {}
        self._kept: dict[nn.Module, tuple[list[Tensor], list[Tensor]]] = {}

    def keep(self, module: nn.Module, x: Tensor, dy: Tensor) -> None:
        xs, dys = self._kept.setdefault(module, ([], []))
        xs.append(x.reshape(-1, x.shape[-1]))
        dys.append(dy.reshape(-1, dy.shape[-1]))
        if sum(map(len, xs)) >= ROWS:
            self._multiply(module)

    def finish(self) -> dict[Tensor, Tensor]:
        for module in list(self._kept):
            self._multiply(module)
        return self.sums

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        if parameter in self.sums:
            self.sums[parameter] += gradient
        else:
            self.sums[parameter] = gradient

    def _multiply(self, module: nn.Module) -> None:
        xs, dys = self._kept.pop(module)
        x, dy = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (xs, dys))
        weight, bias = _parameters(module)
        if weight.requires_grad:
            x = x.to(dy.dtype)
            self.add(weight, (x.t() @ dy if _transposed(module) else dy.t() @ x).to(weight.dtype))
        if bias is not None and bias.requires_grad:
            self.add(bias, dy.sum(0).to(bias.dtype))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, run: Any, sums: WeightGradients) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module, ctx.sums = module, sums
        return run(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        ctx.sums.keep(ctx.module, x, dy)
        weight = _parameters(ctx.module)[0].to(dy.dtype)
        dx = dy @ (weight.t() if _transposed(ctx.module) else weight)
        return dx.to(x.dtype), None, None, None


def deferrable(root: nn.Module) -> list[nn.Module]:
    """The plain linear layers below a module (torch's, and GPT-2's transposed ones)."""
    from transformers.pytorch_utils import Conv1D

    return [module for module in root.modules() if type(module) in (nn.Linear, Conv1D)]


@contextmanager
def deferred(linears: list[nn.Module], sums: WeightGradients) -> Iterator[None]:
    """Inside, forward passes of these layers keep their weights out of the graph; `sums` gets the gradients in the backward pass."""
    for module in linears:
        plain = module.forward

        def forward(x: Tensor, module: nn.Module = module, plain: Any = plain) -> Tensor:
            return _Linear.apply(x, module, plain, sums) if x.requires_grad and torch.is_grad_enabled() else plain(x)

        module.forward = forward
    try:
        yield
    finally:
        for module in linears:
            del module.forward  # the class's own comes back


def _parameters(module: Any) -> tuple[nn.Parameter, nn.Parameter | None]:
    return module.weight, getattr(module, "bias", None)


def _transposed(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear)
