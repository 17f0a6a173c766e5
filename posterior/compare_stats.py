"""What a comparison may claim: paired bootstrap over seeds and tasks, Holm's correction, gains by how easy a task was.

    x[s, n]     one number of one arm for training seed s and held-out task n; NaN where a run or a value is missing
    a draw      as many seeds, drawn with replacement, and as many tasks, the same for all arms: pairs stay pairs

Training seeds are the clusters: tasks answered by one trained model share its luck. A percentile interval over few seeds is too narrow
(see `FEW_SEEDS`); with one seed it is over tasks alone and says nothing about training again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""
FEW_SEEDS = 5
"""Below so many seeds the table warns: S seeds understate the spread between seeds by a factor sqrt((S - 1) / S), and more in the tails.
Where seeds are all that varies, intervals of 5 hold the truth in 84 % of cases, of 10 in 90 % (`tests/test_compare_stats.py`)."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval. p: two-sided, of a difference from 0, as if it were the only one."""

    mean: float
    low: float
    high: float
    p: float | None = None


class Bootstrap:
    """The draws that all figures of a comparison share. draws: how many; seeds, tasks: the most there are of each."""

    def __init__(self, draws: int, seeds: int, tasks: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._seeds_BS = rng.random((draws, seeds))
        self._tasks_BN = rng.random((draws, tasks))

    def means(self, x_SN: np.ndarray) -> np.ndarray:
        """float64[B]: the mean of each draw. Seeds without any value take no part; a draw without any value is NaN."""
        x_SN = x_SN[~np.isnan(x_SN).all(1)]
        known_SN = ~np.isnan(x_SN)
        of_seed_BS = _counts(self._seeds_BS[:, : x_SN.shape[0]])
        of_task_BN = _counts(self._tasks_BN[:, : x_SN.shape[1]])
        total_B = ((of_seed_BS @ np.where(known_SN, x_SN, 0.0)) * of_task_BN).sum(1)
        weight_B = ((of_seed_BS @ known_SN.astype(float)) * of_task_BN).sum(1)
        return np.divide(total_B, weight_B, out=np.full(len(total_B), np.nan), where=weight_B > 0)

    def estimate(self, x_SN: np.ndarray, *, test: bool = False) -> Estimate | None:
        """The mean of what is known and its interval; None if nothing is. test: with a p-value for a mean of 0."""
        if np.isnan(x_SN).all():
            return None
        means_B = self.means(x_SN)
        means_B = means_B[~np.isnan(means_B)]
        low, high = (float(v) for v in np.percentile(means_B, LEVEL))
        return Estimate(float(np.nanmean(x_SN)), low, high, p_value(means_B) if test else None)


def _counts(uniform_BK: np.ndarray) -> np.ndarray:
    """float64[B, K]: how often each of K is drawn in K draws with replacement."""
    draws, n = uniform_BK.shape
    places = (uniform_BK * n).astype(int) + n * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


def p_value(means_B: np.ndarray) -> float:
    """Twice the share of draws on the far side of 0, at least 2 / (B + 1) and at most 1."""
    far = min(int((means_B <= 0).sum()), int((means_B >= 0).sum()))
    return min(1.0, 2.0 * (1 + far) / (1 + len(means_B)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of even one false alarm among these tests is at most what is read off."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        out[i] = least
    return out


def strata(p_N: np.ndarray, edges: Sequence[float]) -> list[np.ndarray]:
    """Places of the tasks whose p lies in [edge, next edge), of the last stratum the upper edge included; NaN is in none."""
    place_N = np.searchsorted(np.asarray(edges), p_N, side="right") - 1
    place_N = np.where(p_N == edges[-1], len(edges) - 2, place_N)
    place_N = np.where(np.isnan(p_N), -1, place_N)
    return [np.flatnonzero(place_N == k) for k in range(len(edges) - 1)]
