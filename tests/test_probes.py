"""Linear probes: closed forms against library solutions, and that they find what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.probes import RIDGE, fit_and_guess, probe


@pytest.mark.parametrize("width", [5, 90])
def test_ridge_is_the_regularised_least_squares_solution(width: int) -> None:
    """Through either matrix, against `lstsq` on rows that stand for the penalty."""
    rng = torch.Generator().manual_seed(width)
    x, y, new = (torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, 40, width), (40, 3), (2, 7, width)))
    guess = fit_and_guess(x + 3, y, new + 3)
    for k in range(2):
        mean = x[k].mean(0)
        penalty = RIDGE * (x[k] - mean).square().mean() * 40
        rows = torch.cat([x[k] - mean, penalty.sqrt() * torch.eye(width, dtype=torch.float64)])
        wanted = torch.cat([y - y.mean(0), torch.zeros(width, 3, dtype=torch.float64)])
        weight = torch.linalg.lstsq(rows, wanted).solution
        assert torch.allclose(guess[k], (new[k] - mean) @ weight + y.mean(0), atol=1e-9)


def test_probes_find_what_each_latent_holds_and_nothing_else() -> None:
    """Latent k holds label k; label 2 is in no latent. Shuffled labels are guessed as often as chance allows."""
    n, classes = 600, 6
    rng = np.random.default_rng(0)
    label_NJ = rng.integers(classes, size=(n, 3))
    axes = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    x = np.stack([3 * axes[label_NJ[:, k] + classes * k] for k in range(2)], 1) + 0.3 * rng.normal(size=(n, 2, 40))
    found = probe(torch.from_numpy(x), [[f"w{v}" for v in row] for row in label_NJ], seed=1)
    right, control = found.correct_KJ / found.problems, found.control_KJ / found.problems
    assert right[0, 0] > 0.97
    assert right[1, 1] > 0.97
    # a share of 1/6 of 600 has a standard error of 0.015
    for other in (right[0, 1], right[0, 2], right[1, 0], right[1, 2], *control.flat):
        assert abs(other - 1 / classes) < 0.07
    assert found.classes_J.tolist() == [classes] * 3
    assert found.common_J.tolist() == [int(np.bincount(label_NJ[:, j]).max()) for j in range(3)]


def test_a_probe_is_never_judged_on_what_it_was_fitted_on() -> None:
    """More values than problems: fitted ones would be recalled without error."""
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(80, 1, 500)))
    found = probe(x, [[str(v)] for v in rng.integers(2, size=80)])
    assert abs(found.correct_KJ[0, 0] / 80 - 0.5) < 0.25
    with pytest.raises(ValueError, match="at least 8 problems"):
        probe(x[:7], [["a"]] * 7)
