"""How far a thought was written backwards from its answer: anchoring metrics (arXiv 2602.14469), pure functions.

    lexical         longest common subsequence of thought and answer, in tokens, over the answer's length
    entropic        sqrt(G L) from the mean next-token entropy of each step, read with the answer in sight
    probabilistic   bits that the thought adds to each token of the answer
    zone            (entropic, probabilistic) cut at 0.5: reason, encode, cloze, copy

Two variants of the last three are published and differ; both are here by name ("paper", and "earlier", of the same authors' older code).
A warning that belongs beside every such figure: probabilistic times the answer's length *is* what the posterior methods maximise. It is
leakage only where the thought was drawn with the answer in sight; for thoughts drawn without, a high value is the goal. Compare differences
against an answer-visible generator, never levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Variant = Literal["paper", "earlier"]
ZONES = {(False, False): "reason", (False, True): "encode", (True, False): "cloze", (True, True): "copy"}
"""By (entropic at least 0.5, probabilistic at least 0.5)."""


def lexical(thought: Sequence[int], answer: Sequence[int]) -> float:
    """Share of the answer's tokens that the thought holds in their order; 0 for an empty thought. Raises ValueError for an empty
    answer."""
    if not len(answer):
        raise ValueError("lexical anchoring needs an answer of at least one token")
    best = [0] * (len(answer) + 1)
    for token in thought:
        diagonal = 0
        for j, wanted in enumerate(answer, 1):
            above = best[j]
            best[j] = diagonal + 1 if token == wanted else max(above, best[j - 1])
            diagonal = above
    return best[-1] / len(answer)


def entropic(step_entropies: Sequence[float] | np.ndarray, variant: Variant = "paper") -> float:
    """Anchoring of a row of steps with these mean entropies (any unit): high where they are level and their changes uneven.

    u: entropies scaled to 0..1. "paper": G = 1 / (1 + Var(u) / 0.1), L = cv / (1 + cv). "earlier": G = 1 - min(Var(u) / 0.25, 1),
    L = 1 - exp(-cv). cv: standard deviation over mean of |u_k - u_{k-1}|. Population variances. Constant entropies have u = 0. Without
    any change (no step, one step, constant) cv is 0, and so is the result.
    """
    h = np.asarray(step_entropies, np.float64)
    if len(h) < 2 or h.max() == h.min():
        return 0.0
    u = (h - h.min()) / (h.max() - h.min())
    change = np.abs(np.diff(u))
    cv = float(change.std() / change.mean())
    spread = float(u.var())
    if variant == "paper":
        level, uneven = 1 / (1 + spread / 0.1), cv / (1 + cv)
    else:
        level, uneven = 1 - min(spread / 0.25, 1.0), 1 - math.exp(-cv)
    return math.sqrt(level * uneven)


def probabilistic(with_thought: float, without: float, tokens: int, variant: Variant = "paper") -> float:
    """What the thought adds to the answer's probability. with_thought, without: log p in nats. tokens: of the answer.

    "paper": bits per token, any sign. "earlier": share of the answer's surprisal without the thought, cut to 0..1; 0 where there
    is none. Raises ValueError for an empty answer.
    """
    if tokens < 1:
        raise ValueError("probabilistic anchoring needs an answer of at least one token")
    if variant == "paper":
        return (with_thought - without) / math.log(2) / tokens
    return float(np.clip((with_thought - without) / -without, 0.0, 1.0)) if without < 0 else 0.0


def zone(entropic_value: float, probabilistic_value: float) -> str:
    """ "reason", "encode", "cloze" or "copy"."""
    return ZONES[entropic_value >= 0.5, probabilistic_value >= 0.5]


def step_means(values: Sequence[float] | np.ndarray, ends: Sequence[bool] | np.ndarray) -> np.ndarray:
    """float64[steps]: mean of the values of each step; `ends` is true at the last token of one. Tokens behind the last end are a step."""
    values, ends = np.asarray(values, np.float64), np.asarray(ends, bool)
    if len(values) == 0:
        return values
    step = np.concatenate([[0], np.cumsum(ends[:-1])])
    return np.bincount(step, values) / np.bincount(step)
