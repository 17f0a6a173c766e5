"""Root-mean-square norms of vLLM's CPU engine by vLLM's own C kernels, instead of six small torch operations each.

vLLM 0.32 has the kernels for CPU but offers them to its GPU platforms only. With a small model and few sequences a norm is all
overhead: this takes a tenth off an engine step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROVIDER = "cpu_c"


def install() -> dict[str, Any]:
    """Register the kernels with vLLM; returns keywords of `vllm.LLM` that choose them (none where they do not exist)."""
    from vllm import ir
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if not current_platform.is_cpu() or not hasattr(torch.ops._C, "fused_add_rms_norm"):
        return {}
    if PROVIDER not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_supports_norm)(_rms_norm)
        ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_supports_add, inplace=True)(
            _fused_add_rms_norm
        )
    priority = [PROVIDER, "native"]
    return {"ir_op_priority": {"rms_norm": priority, "fused_add_rms_norm": priority}}


def _supports_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype


def _supports_add(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _supports_norm(x, weight, epsilon, variance_size) and x.is_contiguous() and x_residual.is_contiguous()


def _rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    x = x.contiguous()  # queries and keys are slices of one projection
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
