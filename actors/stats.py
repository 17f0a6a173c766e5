"""Intervals and rates for held-out evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % normal interval of a mean of independent values (tasks, seeds)."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return float("-inf"), float("inf")
    half = Z95 * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half), float(array.mean() + half)


def pass_at_k(passes: int, n: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k answers passes) from `passes` of n (Chen et al. 2021, arXiv 2107.03374)."""
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} answers a task, there are {n}")
    if n - passes < k:
        return 1.0
    return 1.0 - math.prod((n - passes - i) / (n - i) for i in range(k))


def summarise(passed: Sequence[Sequence[bool]], values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Held-out figures from per-task lists: pass@1 with its 95 % interval over tasks, pass@k, mean grade, counts.

    One answer a task: Wilson's interval. Several: the normal interval over task means (answers of a task are not
    independent), clipped to [0, 1].
    """
    n = len(passed)
    if n == 0:
        raise ValueError("nothing was evaluated")
    rates = [float(np.mean(p)) for p in passed]
    each = min(len(p) for p in passed)
    if each == 1:
        low, high = wilson(sum(rates), n)
    else:
        low, high = mean_interval(rates)
        low, high = max(0.0, low), min(1.0, high)
    out = {
        "pass@1": float(np.mean(rates)),
        "low": low,
        "high": high,
        "mean_grade": float(np.mean([np.mean(v) for v in values])),
        "n": float(n),
        "samples": float(each),
    }
    k = 2
    while k <= each:
        out[f"pass@{k}"] = float(np.mean([pass_at_k(sum(map(bool, p[:each])), each, k) for p in passed]))
        k *= 2
    return out


def difference_interval(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Gain in pass@1 with a 95 % interval from the two intervals (Newcombe 1998, method 10: unpaired, square-and-add)."""
    gain = after["pass@1"] - before["pass@1"]
    low = gain - math.hypot(after["pass@1"] - after["low"], before["high"] - before["pass@1"])
    high = gain + math.hypot(after["high"] - after["pass@1"], before["pass@1"] - before["low"])
    return {"pass@1": gain, "low": low, "high": high}
