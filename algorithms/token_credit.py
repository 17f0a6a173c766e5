"""How the reward of a thought is shared among its tokens (numpy, float64), when only a good answer y* is known.

With a posterior q(z|x,y*) and the prior p(z|x), token by token, l_t = log q(z_t|x,y*,z_<t) - log p(z_t|x,z_<t). For the exact q,

    sum_{s<=t} l_s = log p(y*|x,z_<=t) - log p(y*|x),        w_t = exp of that,

so w_t is a martingale under p, and A_t = w_t - w_{t-1} is the exact advantage for the gradient of log p(y*|x). The log forms
(sequence, return_to_go, immediate) aim at other gradients: E_p log p(y*|x,z), and distillation with the prefixes held fixed.
A learned q is wrong; `anchor` puts the exact end value in the place of its own, after which return-to-go, and w with decay 1, are unbiased
for any q (a potential, Ng et al. 1999). Derivations: docs/posterior-methods.md; w without the decay is that of OPPO (arXiv 2605.21851).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Rule = Literal["sequence", "return_to_go", "immediate", "w"]


def log_mean_exp(values: Sequence[float] | np.ndarray) -> float:
    """log of the mean of exp(values); -inf for none."""
    array = np.asarray(values, np.float64)
    if len(array) == 0 or array.max() == -np.inf:
        return -np.inf
    top = array.max()
    return float(top + np.log(np.exp(array - top).mean()))


def others_log_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64[K]: for each member, `log_mean_exp` of all the others; of a single one, its own value (its advantage is then 0)."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return array.copy()
    return np.array([log_mean_exp(np.delete(array, k)) for k in range(len(array))])


def leave_one_out(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64[K]: each value minus the mean of the others; 0 for a single one."""
    array = np.asarray(values, np.float64)
    n = len(array)
    return np.zeros(n) if n < 2 else (array - array.mean()) * n / (n - 1)


def token_advantages(
    rule: Rule,
    ratio_T: np.ndarray,
    end: float | None = None,
    *,
    decay: float = 0.0,
    ceiling: float = np.inf,
    clip: float | None = None,
) -> np.ndarray:
    """float64[T]: the advantage of every token of one thought.

    rule: "sequence": sum of l on all tokens; "return_to_go": the sum of l from t on; "immediate": l_t; "w": generalised advantages of w
    with this decay, sum_{s>=t} decay^(s-t) (w_s - w_{s-1}).
    ratio_T: l_t. end: log p(y*|x,z) - log p(y*|x), to anchor the sum of l to; None trusts q. ceiling: largest w (no probability
    passes 1, so w never passes 1 / p(y*|x)). clip: bound on each |l_t| before anything else.
    """
    ratio = np.asarray(ratio_T, np.float64)
    if clip is not None:
        ratio = ratio.clip(-clip, clip)
    if len(ratio) == 0:
        return ratio
    if rule == "w":
        w = np.exp(np.minimum(np.append(0.0, np.cumsum(ratio)), np.log(ceiling)))
        if end is not None:
            w[-1] = np.exp(end)
        return discounted(np.diff(w), decay)
    if end is not None:
        ratio = ratio.copy()
        ratio[-1] += end - ratio.sum()
    if rule == "sequence":
        return np.full(len(ratio), ratio.sum())
    return discounted(ratio, 1.0) if rule == "return_to_go" else ratio


def discounted(values_T: np.ndarray, decay: float) -> np.ndarray:
    """float64[T]: sum over s >= t of decay^(s-t) values_s."""
    out = np.array(values_T, np.float64)
    for t in range(len(out) - 2, -1, -1):
        out[t] += decay * out[t + 1]
    return out
