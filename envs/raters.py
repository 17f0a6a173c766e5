"""People who grade answers in thirds of a point, with noise: what the testbeds of learned rewards have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POINTS = 3


def rated(expected: float, noise: float, rng: np.random.Generator, raters: int) -> list[float]:
    """What so many people say of an answer: 0, 1/3, 2/3 or 1. noise: standard deviation of one around what is expected, before rounding."""
    told = expected + noise * rng.normal(size=raters)
    return (np.clip(np.round(told * POINTS), 0, POINTS) / POINTS).tolist()


def floors(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of graded answers, equally many raters each: the squared error of the constant mean, and (of several raters) of those who know the
    expected grade."""
    rows = np.array(scores)
    found = {"mean predictor": float(rows.mean(1).var())}
    if rows.shape[1] > 1:
        found["noise floor"] = float(rows.var(1, ddof=1).mean()) / rows.shape[1]
    return found
