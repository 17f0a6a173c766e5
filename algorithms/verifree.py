"""VeriFree: the probability of the good answer is the reward (Zhou et al. 2025, arXiv 2505.21493).

    gradient of E_z p(y*|x,z):   (R_k - mean of the others' R) on the thought,  R_k on y*,      R_k = p(y*|x,z_k)

As published the objective is a probability, so that prompts with long answers hardly count; `normalise` divides R by p(y*|x), as
the other thoughts estimate it, which makes it the gradient of log p(y*|x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from actors.types import Group
from algorithms.base import AlgorithmConfig
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod, on_answer, on_thought
from algorithms.thoughts import likelihoods
from algorithms.token_credit import leave_one_out, others_log_mean


class VeriFreeConfig(PosteriorConfig):
    """Options of VeriFree."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "verifree"
    normalise: bool = False
    """Divide each reward by the mean of the others: the gradient of log p(y*|x) instead of p(y*|x)."""


class VeriFree(PosteriorMethod):
    """Raises p(y*|x), or with `normalise` its logarithm."""

    Config: ClassVar[type[AlgorithmConfig]] = VeriFreeConfig
    config: VeriFreeConfig

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        log_K = likelihoods(group.live)
        n = len(log_K)
        if self.config.normalise:
            reward_K = np.exp(log_K - others_log_mean(log_K))
            advantage_K = reward_K - 1.0
        else:
            reward_K = np.exp(log_K)
            advantage_K = leave_one_out(reward_K)
        return [
            Credit(on_thought(trace, a / n), on_answer(trace, self.config.answer_weight * r / n))
            for trace, a, r in zip(group.live, advantage_K, reward_K, strict=True)
        ], {"reward/mean": float(reward_K.mean())}
