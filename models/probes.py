"""What latents know: linear probes from each latent step to each written step, beside the same on shuffled labels.

A probe is ridge regression onto one-hot labels, in closed form; the largest output is its guess (Alain and Bengio
2016). Every guess is about a problem the probe was not fitted on. A probe that does as well on shuffled labels says
nothing (control task, Hewitt and Liang 2019): what counts is the difference, its selectivity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FOLDS = 4
RIDGE = 0.1
"""Penalty, in units of the mean variance of a value."""


@dataclass
class Probes:
    """correct_KJ, control_KJ: int64, how many of `problems` were guessed from latent k for label j, true and shuffled.

    classes_J: different values of each label. common_J: how many problems have the commonest, which needs no probe.
    """

    problems: int
    correct_KJ: np.ndarray
    control_KJ: np.ndarray
    classes_J: np.ndarray
    common_J: np.ndarray


@torch.no_grad()
def probe(x_NKD: Tensor, labels: Sequence[Sequence[str]], seed: int = 0) -> Probes:
    """x_NKD: K vectors of each of N problems. labels: J words of each problem.

    Raises ValueError for fewer than two problems a fold.
    """
    n, steps, _ = x_NKD.shape
    if n < 2 * FOLDS or len(labels) != n:
        raise ValueError(f"probes need at least {2 * FOLDS} problems with their labels, not {n} and {len(labels)}")
    rng = np.random.default_rng(seed)
    coded = [np.unique(column, return_inverse=True)[1] for column in zip(*labels, strict=True)]
    shuffled = [rng.permutation(column) for column in coded]
    sizes = [int(column.max()) + 1 for column in coded] * 2
    truth_NM = np.stack([*coded, *shuffled], 1)
    one_hot = torch.cat(
        [torch.nn.functional.one_hot(torch.from_numpy(c), s) for c, s in zip(truth_NM.T, sizes, strict=True)], 1
    ).to(x_NKD.device, torch.float64)
    x_KND = x_NKD.double().transpose(0, 1)
    fold_N = rng.permutation(n) % FOLDS
    hit_NKM = np.zeros((n, steps, len(sizes)), bool)
    for fold in range(FOLDS):
        own = torch.from_numpy(fold_N == fold).to(x_NKD.device)
        guess = fit_and_guess(x_KND[:, ~own], one_hot[~own], x_KND[:, own])
        for m, part in enumerate(guess.split(sizes, -1)):
            hit_NKM[fold_N == fold, :, m] = truth_NM[fold_N == fold, m, None] == part.argmax(-1).cpu().numpy().T
    hits_KM, j = hit_NKM.sum(0), len(coded)
    return Probes(
        problems=n,
        correct_KJ=hits_KM[:, :j],
        control_KJ=hits_KM[:, j:],
        classes_J=np.array(sizes[:j]),
        common_J=np.array([np.bincount(column).max() for column in coded]),
    )


def fit_and_guess(x_KND: Tensor, y_NC: Tensor, new_KMD: Tensor) -> Tensor:
    """[K, M, C]: ridge regression of y on each of K sets of vectors, with a constant, at new vectors."""
    mean_K1D, mean_C = x_KND.mean(1, keepdim=True), y_NC.mean(0)
    x, y, new = x_KND - mean_K1D, y_NC - mean_C, new_KMD - mean_K1D
    n, width = x.shape[1:]
    penalty_K11 = RIDGE * x.square().mean((1, 2), keepdim=True).clamp_min(1e-12) * n
    if width <= n:
        gram = x.transpose(1, 2) @ x + penalty_K11 * torch.eye(width).to(x)
        return new @ torch.linalg.solve(gram, x.transpose(1, 2) @ y) + mean_C
    # the same solution by way of the smaller matrix
    gram = x @ x.transpose(1, 2) + penalty_K11 * torch.eye(n).to(x)
    return new @ x.transpose(1, 2) @ torch.linalg.solve(gram, y.expand(len(x), -1, -1)) + mean_C
