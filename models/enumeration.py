"""All thoughts that a small model can write on one prompt: exact marginals, posteriors and gradients, to prove estimators with.

A distribution with top_k = k has k^T thoughts of T tokens, and fewer where some end early; listing them is a breadth-first search over
prefixes. Everything is float64 if the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.forward import Distribution, ModelForward, collate, kept
from models.loading import RoleModel
from models.trace import Kind, Trace

Make = Callable[[np.ndarray], Trace]
"""Builds the trace of a thought (its sampled ids), with y* behind it."""


@torch.no_grad()
def list_thoughts(
    model: RoleModel, context: np.ndarray, most: int, ends: Sequence[int], distribution: Distribution
) -> list[np.ndarray]:
    """Every thought with positive probability: int32[n] ids each, n at most `most`; one of `ends` ends a thought.

    context: int32[P] ids of the prompt.
    """
    alive: list[list[int]] = [[]]
    done: list[list[int]] = []
    for _ in range(most):
        token_BT = torch.tensor([[*context.tolist(), *prefix] for prefix in alive])
        length_B = torch.full((len(alive),), token_BT.shape[1])
        hidden_ND, at_BT = model.hidden(token_BT, length_B)
        logits = model.logits(hidden_ND[at_BT[:, -1]]) / distribution.temperature
        possible = kept(logits, distribution) > -torch.inf
        longer = [[*prefix, int(t)] for prefix, row in zip(alive, possible, strict=True) for t in row.nonzero()[:, 0]]
        done += [prefix for prefix in longer if prefix[-1] in ends]
        alive = [prefix for prefix in longer if prefix[-1] not in ends]
    return [np.array(prefix, np.int32) for prefix in [*done, *alive]]


@dataclass
class Enumeration:
    """All Z thoughts on one prompt and what the model says about them, differentiable in its parameters.

    token_logp: float[Z, T] log p(z_t|x,z_<t), 0 behind a thought's end. answer_logp: float[Z] log p(y*|x,z). length: int[Z].
    """

    thoughts: list[np.ndarray]
    traces: list[Trace]
    token_logp: Tensor
    answer_logp: Tensor

    @property
    def logp(self) -> Tensor:
        """float[Z]: log p(z|x)."""
        return self.token_logp.sum(1)

    @property
    def marginal(self) -> Tensor:
        """log p(y*|x), a scalar."""
        return torch.logsumexp(self.logp + self.answer_logp, 0)

    def posterior_ratio(self) -> list[np.ndarray]:
        """For each thought, float64[n]: l_t = log p(z_t|x,y*,z_<t) - log p(z_t|x,z_<t), by Bayes' rule over the whole tree."""
        prior = self.logp.detach().exp().double().numpy()
        joint = (self.logp + self.answer_logp).detach().exp().double().numpy()
        mass: dict[bytes, tuple[float, float]] = {}
        for z, p, j in zip(self.thoughts, prior, joint, strict=True):
            for t in range(len(z) + 1):
                known = mass.get(z[:t].tobytes(), (0.0, 0.0))
                mass[z[:t].tobytes()] = (known[0] + p, known[1] + j)
        out = []
        for z in self.thoughts:
            level = np.array([np.log(j) - np.log(p) for p, j in (mass[z[:t].tobytes()] for t in range(len(z) + 1))])
            out.append(np.diff(level))
        return out


def enumerate_thoughts(
    model: RoleModel,
    thoughts: list[np.ndarray],
    make: Make,
    distribution: Distribution,
) -> Enumeration:
    """Every thought with y* behind it, read in one pass."""
    traces = [make(z) for z in thoughts]
    return Enumeration(thoughts, traces, *read_thoughts(model, traces, distribution))


def read_thoughts(model: RoleModel, traces: Sequence[Trace], distribution: Distribution) -> tuple[Tensor, Tensor]:
    """(float[Z, T] log p(z_t|x,z_<t), 0 behind a thought's end; float[Z] log p(y*|x,z)) of traces on one prompt, differentiable."""
    batch = collate(traces, [trace.view() for trace in traces])
    logprobs = ModelForward(model, batch, distribution).logprobs_BT
    thought = batch.kind_BT == Kind.THOUGHT
    first, most = int(thought[0].int().argmax()), int(thought.sum(1).max())
    token_logp = torch.where(thought, logprobs, 0.0)[:, first : first + most]
    return token_logp, torch.where(batch.kind_BT == Kind.TARGET, logprobs, 0.0).sum(1)
