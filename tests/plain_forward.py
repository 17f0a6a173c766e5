"""Traces and forward passes made of plain tensors, for tests of credit and losses without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.types import Group, SamplingParams
from algorithms.base import Context
from algorithms.rlvr import RLVR, RLVRConfig
from envs.base import Task
from models.forward import collate
from models.terms import Batch, Term
from models.trace import Kind, Score, Trace


@dataclass
class PlainForward:
    """`models.terms.Forward` with given log-probabilities (and entropies)."""

    logprobs_BT: Tensor
    entropy_BT: Tensor

    @property
    def hidden_BTD(self) -> Tensor:
        raise AssertionError("RLVR reads no hidden states")

    @property
    def values_BT(self) -> Tensor:
        raise AssertionError("RLVR reads no values")

    @property
    def outputs_BTE(self) -> Tensor:
        raise AssertionError("RLVR reads no values")

    @property
    def latents(self) -> Tensor | None:
        return None

    @property
    def thought(self) -> None:
        return None

    def __call__(self, latents: Tensor) -> PlainForward:
        raise AssertionError("RLVR replaces no latents")


def method(max_tokens: int = 10, seed: int = 0, updates_per_batch: int = 1, **options: Any) -> RLVR:
    context = Context("model", SamplingParams(max_tokens=max_tokens), seed, updates_per_batch)
    return RLVR(RLVRConfig(**options), context)


def make_trace(
    logprob: Sequence[float] | np.ndarray,
    reward: float | Sequence[float] = 0.0,
    *,
    episode: str = "e",
    turns: Sequence[int] | None = None,
    thoughts: int = 0,
    **more: Any,
) -> Trace:
    """One CONTEXT token, then one sampled token per entry of `logprob`; a float reward comes at the end."""
    n = len(logprob)
    rewards = [0.0] * (n - 1) + [reward] if isinstance(reward, float | int) else list(reward)
    kind = [Kind.CONTEXT] + [Kind.THOUGHT] * thoughts + [Kind.ACTION] * (n - thoughts)
    return Trace(
        token=np.arange(n + 1),
        kind=np.array(kind, np.uint8),
        logprob=np.array([np.nan, *logprob], np.float32),
        version=np.array([-1] + [0] * n),
        turn=np.array([0, *(turns or [0] * n)]),
        task="t",
        group="g",
        episode=episode,
        reward=np.array([0.0, *rewards], np.float32),
        **more,
    )


def make_group(rewards: Sequence[float], index: int = 0, length: int = 3) -> Group:
    """A group of single-turn traces with these rewards."""
    traces = [make_trace([-1.0] * length, float(r), episode=f"{index}.{i}") for i, r in enumerate(rewards)]
    return Group(Task("t", "p"), traces, index=index)


def scored(trace: Trace, role: str, values: Sequence[float] | np.ndarray) -> None:
    """Write what `role` says about the sampled positions."""
    trace.scores[role] = Score(np.array([np.nan, *values], np.float32), 0)


def batch_of(traces: Sequence[Trace], dtype: torch.dtype = torch.float64) -> Batch:
    batch = collate(traces, [trace.view() for trace in traces])
    batch.fields = {name: value.to(dtype) for name, value in batch.fields.items()}
    return batch


def by_row(terms: Mapping[str, Term], batch: Batch) -> Tensor:
    """[B]: every row's weighted loss, before the denominator."""
    return sum(((term.loss_BT * batch[term.weight]).sum(-1) for term in terms.values()), torch.zeros(1))


def total(terms: Mapping[str, Term], batch: Batch) -> Tensor:
    """The loss that the learner would minimise on a mini-batch of this one micro-batch."""
    loss = torch.zeros((), dtype=torch.float64)
    for term in terms.values():
        weight = batch[term.weight]
        count = (weight != 0).sum() if term.denominator == "positions" else (weight != 0).any(-1).sum()
        loss = loss + (term.loss_BT * weight).sum() / count
    return loss


def forward_of(logprobs_BT: Tensor) -> PlainForward:
    return PlainForward(logprobs_BT, torch.zeros_like(logprobs_BT))
