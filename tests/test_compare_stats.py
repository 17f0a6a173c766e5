"""The statistics of comparisons against closed forms, hand calculations and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from posterior.compare_stats import Bootstrap, _counts, holm, p_value, strata

SEEDS, TASKS, WORLDS = 5, 40, 300


def world(rng: np.random.Generator, seeds: int, of_seed: float, of_task: float, rest: float) -> np.ndarray:
    """float64[S, N] with mean 0: luck of the seed, ease of the task, and what is left."""
    luck, ease = rng.normal(0, of_seed, (seeds, 1)), rng.normal(0, of_task, (1, TASKS))
    return np.asarray(luck + ease + rng.normal(0, rest, (seeds, TASKS)))


def coverage(seeds: int, of_seed: float, of_task: float, rest: float) -> float:
    """How often the interval holds the truth."""
    rng, bootstrap, held = np.random.default_rng(1), Bootstrap(400, seeds, TASKS), 0
    for _ in range(WORLDS):
        found = bootstrap.estimate(world(rng, seeds, of_seed, of_task, rest))
        assert found is not None
        held += found.low <= 0 <= found.high
    return held / WORLDS


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """A share of 0.95 of 300 has a standard error of 0.013."""
    assert coverage(SEEDS, 0.05, 0.3, 0.3) == pytest.approx(0.95, abs=0.04)
    assert coverage(10, 0.05, 0.3, 0.3) == pytest.approx(0.95, abs=0.04)


def test_intervals_of_few_seeds_are_too_narrow_and_tasks_alone_far_too_narrow() -> None:
    """Where only seeds vary: the shares that `FEW_SEEDS` tells of. An interval that took 5 x 40 values as independent holds nothing."""
    assert coverage(5, 1, 0, 0) == pytest.approx(0.84, abs=0.05)
    assert coverage(10, 1, 0, 0) == pytest.approx(0.90, abs=0.05)
    rng = np.random.default_rng(2)
    naive = 0
    for _ in range(WORLDS):
        x = world(rng, 5, 1, 0, 0.1).ravel()
        naive += abs(x.mean()) <= 1.96 * x.std(ddof=1) / np.sqrt(len(x))
    assert naive / WORLDS < 0.3


def test_one_seed_gives_the_bootstrap_over_tasks_alone() -> None:
    """Its standard error has a closed form: sd / sqrt(N)."""
    x = np.random.default_rng(0).normal(0.3, 1.0, (1, 200))
    bootstrap = Bootstrap(4000, 1, 200)
    assert bootstrap.means(x).std() == pytest.approx(x.std() / np.sqrt(200), rel=0.04)
    found = bootstrap.estimate(x)
    assert found is not None
    assert found.mean == pytest.approx(x.mean())
    half = 1.96 * x.std() / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.015)


def test_the_spread_of_two_way_draws_has_its_closed_form() -> None:
    """Of seed and task effects without a rest: var = (S-1)/S s^2/S + (N-1)/N t^2/N, each with the sample's own variance."""
    rng = np.random.default_rng(3)
    luck, ease = rng.normal(0, 1, (6, 1)), rng.normal(0, 2, (1, 50))
    means_B = Bootstrap(20_000, 6, 50).means(luck + ease)
    assert means_B.var() == pytest.approx(luck.var() / 6 + ease.var() / 50, rel=0.05)


def test_equal_arms_differ_by_nothing_and_a_shift_is_found() -> None:
    rng = np.random.default_rng(4)
    a = world(rng, SEEDS, 0.3, 0.3, 0.3)
    bootstrap = Bootstrap(2000, SEEDS, TASKS)
    same = bootstrap.estimate(a - a, test=True)
    assert same is not None
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    shifted = bootstrap.estimate(a + 0.1 - a, test=True)
    assert shifted is not None
    assert (shifted.mean, shifted.low, shifted.high) == pytest.approx((0.1, 0.1, 0.1))
    assert shifted.p == pytest.approx(2 / 2001)
    # paired: the luck of a seed and the ease of a task, which both arms share, drop out of the difference
    b = a + 0.2 + rng.normal(0, 0.1, a.shape)
    paired, alone = bootstrap.estimate(b - a, test=True), bootstrap.estimate(b)
    assert paired is not None
    assert alone is not None
    assert paired.low > 0.1
    assert paired.high - paired.low < 0.25 * (alone.high - alone.low)


def test_a_missing_run_is_left_out_and_missing_values_too() -> None:
    x = np.random.default_rng(5).normal(size=(3, 30))
    holes = np.vstack([x, np.full((1, 30), np.nan)])
    more, less = Bootstrap(500, 4, 30), Bootstrap(500, 4, 30)
    assert np.array_equal(more.means(holes), less.means(x))
    assert more.estimate(np.full((4, 30), np.nan)) is None
    x[0, :29] = np.nan
    found = more.estimate(x)
    assert found is not None
    assert found.mean == pytest.approx(np.nanmean(x))
    lonely = np.full((2, 30), np.nan)
    lonely[0, 3], lonely[1, 4] = 1.0, 3.0  # many draws hold neither
    found = more.estimate(lonely)
    assert found is not None
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)


def test_draws_are_with_replacement_and_uniform() -> None:
    counts = _counts(np.random.default_rng(6).random((5000, 4)))
    assert (counts.sum(1) == 4).all()
    assert counts.mean(0) == pytest.approx(np.ones(4), abs=0.05)
    assert counts.var(0) == pytest.approx(np.full(4, 0.75), abs=0.05)


def test_p_values_by_hand() -> None:
    assert p_value(np.array([1.0, 2.0, 3.0, -1.0])) == pytest.approx(2 * 2 / 5)
    assert p_value(np.ones(999)) == pytest.approx(0.002)
    assert p_value(np.array([-1.0, 1.0])) == 1.0


def test_holm_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.6: times 4, 3, 2, 1, never falling, at most 1
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []


def test_strata_hold_each_task_once() -> None:
    p = np.array([0.0, 0.019, 0.02, 0.1, 0.3, 0.99, 1.0, np.nan])
    places = strata(p, [0.0, 0.02, 0.1, 0.3, 1.0])
    assert [place.tolist() for place in places] == [[0, 1], [2], [3], [4, 5, 6]]
    assert [place.tolist() for place in strata(p, [0.1, 0.3])] == [[3, 4]]
