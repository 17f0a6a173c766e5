"""JEPO: policy gradient on a lower bound of log p(y*|x), no grader (Tang et al. 2025, arXiv 2503.19618).

    bound "single":  E_z log p(y*|x,z)                       Jensen's; advantage L_k - mean of the others' L, weight 1/K
    bound "multi":   E log (1/K) sum_k p(y*|x,z_k)           tighter with K; advantage log mean_j p_j - log mean_{j!=k} p_j (the
                                                             leave-one-out form of VIMCO), weight softmax_k L_k

with L_k = log p(y*|x,z_k). "single" with a KL is LaTRO (arXiv 2411.04282).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from actors.types import Group
from algorithms.base import AlgorithmConfig
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod, on_answer, on_thought
from algorithms.thoughts import likelihoods
from algorithms.token_credit import leave_one_out, log_mean_exp, others_log_mean


class JEPOConfig(PosteriorConfig):
    """Options of JEPO."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "jepo"
    bound: Literal["single", "multi"] = "multi"
    """Which lower bound: Jensen's of one thought, or the one of all K together."""


class JEPO(PosteriorMethod):
    """Raises a lower bound of log p(y*|x)."""

    Config: ClassVar[type[AlgorithmConfig]] = JEPOConfig
    config: JEPOConfig

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        log_K = likelihoods(group.live)
        n = len(log_K)
        if self.config.bound == "single":
            advantage_K, share_K = leave_one_out(log_K) / n, np.full(n, 1 / n)
        else:
            advantage_K = log_mean_exp(log_K) - others_log_mean(log_K)
            share_K = np.exp(log_K - log_mean_exp(log_K)) / n
        share_K = self.config.answer_weight * share_K
        return [
            Credit(on_thought(trace, a), on_answer(trace, s))
            for trace, a, s in zip(group.live, advantage_K, share_K, strict=True)
        ], {}
