"""Fitting a helper q(z|x,y*) and measuring how far it is from the posterior (numpy, float64).

Every way of fitting is a weighted log-likelihood of thoughts, sum_k c_k log q(z_k|x,y):

    likelihood     c = 1/K on z ~ p(z|x) with the answer y that the model itself gave behind z     (the sleep phase of wake-sleep)
    wake           c = softmax_k log p(y*|x,z_k): the posterior at y*, by self-normalised importance sampling
    log_variance   c = -2 (D_k - mean D) / (K - 1),  D_k = log q(z_k|x,y*) - log p(z_k|x) - log p(y*|x,z_k): the gradient of D's
                   variance, which is 0 where q is exact on what was drawn (Richter et al. 2020)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from algorithms.token_credit import log_mean_exp

Fit = Literal["likelihood", "wake", "log_variance", "mixed"]


def log_variance_weights(difference_K: np.ndarray) -> np.ndarray:
    """float64[K]: minus the gradient of the sample variance of D_k by log q_k."""
    difference = np.asarray(difference_K, np.float64)
    n = len(difference)
    return np.zeros(n) if n < 2 else -2.0 * (difference - difference.mean()) / (n - 1)


def wake_weights(log_K: np.ndarray) -> np.ndarray:
    """float64[K]: softmax of log p(y*|x,z_k)."""
    log_K = np.asarray(log_K, np.float64)
    return np.exp(log_K - log_mean_exp(log_K)) / len(log_K)


def bayes_gap(score_GK: Sequence[np.ndarray], log_GK: Sequence[np.ndarray]) -> dict[str, float]:
    """How far a helper is from the posterior, over groups of thoughts of one x each.

    score_GK: sum_t l_t of each thought. log_GK: log p(y*|x,z). For the exact posterior they differ by log p(y*|x), which is the same
    for all thoughts of a group. "bayes_gap": the standard deviation of the difference within groups, in nats. "slope" and "r2": of the
    regression of log p on the score, both centred in their groups (1 and 1 for the exact posterior). Groups of one say nothing.
    """
    pairs = [(np.asarray(s, float), np.asarray(v, float)) for s, v in zip(score_GK, log_GK, strict=True) if len(s) > 1]
    if not pairs:
        return {}
    variance = [float((s - v).var(ddof=1)) for s, v in pairs]
    score = np.concatenate([s - s.mean() for s, _ in pairs])
    log = np.concatenate([v - v.mean() for _, v in pairs])
    across, own, other = float(score @ log), float(score @ score), float(log @ log)
    out = {"bayes_gap": float(np.mean(variance)) ** 0.5}
    if own > 0:
        out["slope"] = across / own
    if own > 0 and other > 0:
        out["r2"] = across**2 / (own * other)
    return out
