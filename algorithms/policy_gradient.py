"""Policy-gradient arithmetic as pure functions: credit over a batch of episodes (numpy), losses by position (torch).

Axis suffixes: E episodes, K turns, B rows, T positions. Losses are returned by position and unweighted; how they are
averaged is decided by `position_weights` together with the denominator of a `models.terms.Term`.

Sources: GRPO arXiv 2402.03300; Dr.GRPO 2503.20783; RLOO 2402.14740; REINFORCE++ 2501.03262; DAPO 2503.14476;
GSPO 2507.18071; CISPO 2506.13585; KL estimators: Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.terms import Denominator

Estimator = Literal["grpo", "dr_grpo", "rloo", "reinforce", "reinforce++", "reinforce++_baseline"]
Aggregation = Literal["token", "sequence", "constant"]
KL = Literal["k1", "k2", "k3"]

STD_EPS = 1e-4
"""Added to a standard deviation before dividing, so that a group of nearly equal rewards is not blown up."""
MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before `exp`: an overflow times a zero gradient would be NaN."""


def advantages(estimator: Estimator, returns: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Advantage of every return against the others of its group or of the batch.

    returns: float[N]. group: int[N], equal for returns that are compared with each other. Gives float64[N].

    "grpo": (R - group mean) / (group std + eps). "dr_grpo": R - group mean. "rloo": R - mean of the *other* members,
    which is "dr_grpo" times n / (n - 1) and leaves the gradient unbiased. "reinforce": R - batch mean. "reinforce++":
    (R - batch mean) / (batch std + eps). "reinforce++_baseline": R - group mean, over the batch's std of that.

    Standard deviations are sample ones (n - 1). Where all compared returns are equal, the advantage is exactly 0.
    """
    returns = np.asarray(returns, np.float64)
    if len(returns) == 0:
        return returns
    by_batch = estimator in ("reinforce", "reinforce++")
    _, member, size = np.unique(np.zeros(len(returns)) if by_batch else group, return_inverse=True, return_counts=True)
    centred = returns - (np.bincount(member, returns) / size)[member]
    lowest, highest = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    np.minimum.at(lowest, member, returns)
    np.maximum.at(highest, member, returns)
    # The mean of equal numbers need not equal them in floating point, and a residue over eps would look like a signal.
    centred[(lowest == highest)[member]] = 0.0

    others = np.maximum(size - 1, 1)
    if estimator in ("dr_grpo", "reinforce"):
        return centred
    if estimator == "rloo":
        return centred * (size / others)[member]
    if estimator in ("grpo", "reinforce++"):
        return centred / (np.sqrt(np.bincount(member, centred**2) / others) + STD_EPS)[member]
    if estimator == "reinforce++_baseline":
        return centred / (np.sqrt((centred**2).sum() / max(len(centred) - 1, 1)) + STD_EPS)
    raise ValueError(f"unknown advantage estimator {estimator!r}")


def returns_to_go(rewards_EK: np.ndarray, discount: float) -> np.ndarray:
    """float64[E, K] of G_k = r_k + discount * G_{k+1}; an episode that has ended earns 0 from then on."""
    out = np.array(rewards_EK, np.float64)
    for k in range(out.shape[1] - 2, -1, -1):
        out[:, k] += discount * out[:, k + 1]
    return out


def overlong_penalty(length: np.ndarray, limit: int, zone: int) -> np.ndarray:
    """Soft length penalty in [-1, 0], float64 like `length` (tokens): DAPO equation 13.

    0 up to limit - zone tokens, then falling linearly to -1 at `limit`. zone: tokens, at least 1.
    """
    return np.clip((limit - zone - np.asarray(length, np.float64)) / zone, -1.0, 0.0)


def shuffled(rewards_E: np.ndarray, seed: int, indices: Sequence[int]) -> np.ndarray:
    """The rewards in another order over the whole batch, fixed by the run's seed and the groups' admission indices."""
    return np.random.default_rng([seed, *indices]).permutation(rewards_E)


def position_weights(aggregation: Aggregation, sampled: np.ndarray, constant: float) -> np.ndarray:
    """Weight of every position in the loss, float32[T], 0 outside `sampled` (bool[T]); pairs with `DENOMINATOR`.

    "token": 1, over positions: every token of the batch counts alike (DAPO). "sequence": 1 / length, over traces: every
    trace counts alike (GRPO). "constant": 1 / constant, over traces: no length bias (Dr.GRPO).
    """
    scale = {"token": 1.0, "sequence": 1.0 / max(int(sampled.sum()), 1), "constant": 1.0 / constant}[aggregation]
    return sampled.astype(np.float32) * np.float32(scale)


DENOMINATOR: dict[Aggregation, Denominator] = {"token": "positions", "sequence": "traces", "constant": "traces"}


def log_ratio(logprobs_BT: Tensor, old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log(pi / pi_old) at the masked positions, [B, T]; 0 elsewhere, whatever stands there (NaN included)."""
    difference = torch.where(mask_BT, logprobs_BT, 0.0) - torch.where(mask_BT, old_BT, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_log_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """GSPO equation 7: the mean log-ratio of each row's masked positions, at every one of them, [B, T].

    The gradient flows through all positions of the row: with weights 1 / length the row's losses sum to the sequence's.
    """
    count = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask_BT, log_ratio_BT.sum(-1, keepdim=True) / count, 0.0)


def ppo_loss(log_ratio_BT: Tensor, advantage_BT: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), [B, T]. With `sequence_log_ratio` this is GSPO's loss."""
    ratio = log_ratio_BT.exp()
    return -torch.minimum(ratio * advantage_BT, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage_BT)


def cispo_loss(
    logprobs_BT: Tensor, log_ratio_BT: Tensor, advantage_BT: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi, [B, T]: clipped tokens keep their gradient."""
    weight = log_ratio_BT.detach().exp().clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantage_BT * logprobs_BT


def clipped(log_ratio_BT: Tensor, advantage_BT: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """float[B, T], 1 where the ratio lies beyond the bound on the side towards which the advantage pushes."""
    ratio = log_ratio_BT.detach().exp()
    over = (ratio > 1 + clip_high) & (advantage_BT > 0)
    under = (ratio < 1 - clip_low) & (advantage_BT < 0)
    return (over | under).to(ratio.dtype)


def truncated_importance(old_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, cap: float) -> Tensor:
    """min(cap, pi_old / pi_behaviour), no gradient, [B, T]: corrects for a sampler that is not quite the learner."""
    return log_ratio(old_BT, behaviour_BT, mask_BT).detach().exp().clamp(max=cap)


def kl_estimate(kind: KL, log_ratio_to_reference: Tensor) -> Tensor:
    """Pointwise estimates of KL(pi || reference) from d = log(pi / reference) at tokens drawn from pi.

    "k1": d, unbiased, may be negative. "k2": d^2 / 2, biased. "k3": exp(-d) - 1 + d, unbiased, never negative. As a
    loss on policy, the expected gradient of k2 is that of the token's KL(pi || reference), of k3 that of
    KL(reference || pi), and of k1 it is 0: k1 belongs in the reward.
    """
    d = log_ratio_to_reference
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    return torch.expm1(-d) + d
