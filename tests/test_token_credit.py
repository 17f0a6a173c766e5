"""Credit for tokens, ways of fitting a helper and TRICE's weights, by hand and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from algorithms.helper_fit import bayes_gap, log_variance_weights, wake_weights
from algorithms.token_credit import discounted, leave_one_out, log_mean_exp, others_log_mean, token_advantages
from algorithms.trice import chain_weights, resampled

RATIO = np.array([0.5, -1.0, 0.25])


def test_log_rules_by_hand() -> None:
    assert token_advantages("sequence", RATIO) == pytest.approx([-0.25] * 3)
    assert token_advantages("return_to_go", RATIO) == pytest.approx([-0.25, -0.75, 0.25])
    assert token_advantages("immediate", RATIO) == pytest.approx(RATIO)
    # anchored to 1: the last token takes the difference, 1.25
    assert token_advantages("return_to_go", RATIO, 1.0) == pytest.approx([1.0, 0.5, 1.5])
    assert token_advantages("immediate", RATIO, 1.0) == pytest.approx([0.5, -1.0, 1.5])
    assert token_advantages("sequence", RATIO, clip=0.3) == pytest.approx([0.3 - 0.3 + 0.25] * 3)


def test_w_by_hand() -> None:
    w = np.exp([0.0, 0.5, -0.5, -0.25])
    assert token_advantages("w", RATIO) == pytest.approx(np.diff(w))
    w[-1] = math.e
    steps = np.diff(w)
    decayed = [steps[0] + 0.5 * steps[1] + 0.25 * steps[2], steps[1] + 0.5 * steps[2], steps[2]]
    assert token_advantages("w", RATIO, 1.0, decay=0.5) == pytest.approx(decayed)
    # with decay 1 every token gets the end minus what was known before it
    assert token_advantages("w", RATIO, 1.0, decay=1.0) == pytest.approx(w[-1] - w[:-1])
    assert token_advantages("w", np.array([3.0, 3.0]), ceiling=2.0) == pytest.approx([1.0, 0.0])


def test_an_empty_thought_has_no_credit() -> None:
    for rule in ("sequence", "return_to_go", "immediate", "w"):
        assert len(token_advantages(rule, np.zeros(0), 1.0)) == 0


def test_means_of_the_others() -> None:
    logs = np.log([0.2, 0.4, 0.6])
    assert np.exp(others_log_mean(logs)) == pytest.approx([0.5, 0.4, 0.3])
    assert leave_one_out([0.2, 0.4, 0.6]) == pytest.approx([-0.3, 0.0, 0.3])
    assert others_log_mean([-2.0]) == pytest.approx([-2.0])  # an advantage of 0
    assert leave_one_out([3.0]) == pytest.approx([0.0])
    assert log_mean_exp([-1000.0, -1000.0]) == pytest.approx(-1000.0)
    assert log_mean_exp([]) == log_mean_exp([-math.inf]) == -math.inf
    assert discounted(np.array([1.0, 2.0, 4.0]), 0.5) == pytest.approx([3.0, 4.0, 4.0])


def test_log_variance_weights_are_the_gradient_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    log_q = torch.tensor(rng.normal(size=6), requires_grad=True)
    rest = torch.tensor(rng.normal(size=6))
    (log_q - rest).var().backward()
    assert log_q.grad is not None
    weights = log_variance_weights((log_q - rest).detach().numpy())
    assert weights == pytest.approx(-log_q.grad.numpy())
    assert log_variance_weights(np.array([1.0])) == pytest.approx([0.0])


def test_wake_weights_are_a_softmax() -> None:
    logs = np.array([-700.0, -701.0, -750.0])
    assert wake_weights(logs) == pytest.approx(torch.tensor(logs).softmax(0).numpy())


def test_bayes_gap_of_an_exact_and_of_a_wrong_helper() -> None:
    rng = np.random.default_rng(1)
    logs = [rng.normal(size=8) for _ in range(5)]
    exact = [values - rng.normal() for values in logs]  # off by log p(y*|x), one number a group
    assert bayes_gap(exact, logs) == pytest.approx({"bayes_gap": 0.0, "slope": 1.0, "r2": 1.0}, abs=1e-12)
    half = bayes_gap([2 * values for values in exact], logs)
    assert half["slope"] == pytest.approx(0.5)
    assert half["r2"] == pytest.approx(1.0)
    assert half["bayes_gap"] == pytest.approx(np.mean([v.var(ddof=1) for v in logs]) ** 0.5)
    assert bayes_gap([np.zeros(1)], [np.zeros(1)]) == {}


def test_trice_weights_by_hand() -> None:
    """Four chains: accepted, refused, accepted, and one that was never right and does not count."""
    accepted, counts = np.array([True, False, True, False]), np.array([True, True, True, False])
    got = chain_weights(accepted, counts)
    # beta of the first: of the two others that count one was accepted
    expected = [[0.0, 1 - 0.5], [1.0, -1.0], [0.0, 1 - 0.5], [0.0, 0.0]]
    assert got == pytest.approx(np.array(expected))
    assert chain_weights(accepted, counts, False) == pytest.approx(np.array([[0, 1], [1, 0], [0, 1], [0, 0]], float))


def test_systematic_resampling_is_unbiased() -> None:
    weights = np.array([0.5, -1.5, 0.0, 1.0, 0.25])
    draws = np.array([resampled(weights, 2, [seed]) for seed in range(4000)])
    assert draws.mean(0) == pytest.approx(weights, abs=0.05)
    assert (np.count_nonzero(draws, axis=1) <= 2).all()
    assert resampled(np.zeros(3), 2, [0]) == pytest.approx(np.zeros(3))
