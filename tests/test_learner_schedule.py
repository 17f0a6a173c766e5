"""When a run ends, and which of its versions are evaluated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.learner import Learner


@pytest.mark.parametrize(
    ("bounds", "ends"),
    [((5, None, None), 5), ((5, 10.0, None), 3), ((2, 10.0, None), 2), ((5, 10.0, 0.5), 1), ((5, None, 1.0), 2)],
)
def test_training_ends_with_the_first_bound_that_is_spent(
    bounds: tuple[int, float | None, float | None], ends: int
) -> None:
    """4 FLOPs and half a second a step. A learner that starts at the last version's checkpoint knows that it is over."""
    steps, flops, seconds = bounds
    learner: Any = object.__new__(Learner)
    learner.config = SimpleNamespace(steps=steps, flops=flops, seconds=seconds, eval_every=0, monitor=None)
    learner.rank, learner.world, learner.spent, learner.trained, learner.found = 0, 1, 0.0, 0.0, None
    began, made, done = 0, [], []

    def one_step(step: int) -> None:
        made.append(step)
        learner.spent, learner.trained = learner.spent + 4, learner.trained + 0.5
        learner.last = learner._over(step + 1)

    learner._one_step = one_step
    learner._begin = lambda: began
    learner.ask = lambda method: False
    learner._checkpoint = lambda version: done.append(version)
    learner._finish = lambda status, version: done.append((status, version))
    learner.run()
    assert made == list(range(ends))
    assert done == [ends, ("finished", ends)]
    began = ends
    learner.run()
    assert made == list(range(ends))
    assert done[2:] == [ends, ("finished", ends)]


@pytest.mark.parametrize(
    ("every", "flops", "evaluated"),
    [(100, 10.0, [3, 5, 7]), (2, None, [2, 4, 6, 7]), (3, 10.0, [3, 5, 6, 7]), (0, None, [])],
)
def test_versions_are_evaluated_by_steps_and_by_flops(every: int, flops: float | None, evaluated: list[int]) -> None:
    """4 FLOPs a step, seven steps: 10 and 20 are passed by the third and the fifth."""
    learner: Any = object.__new__(Learner)
    learner.config = SimpleNamespace(eval_every=every, eval_flops=flops)
    found = []
    for version in range(1, 8):
        learner.spent_before, learner.spent, learner.last = 4.0 * (version - 1), 4.0 * version, version == 7
        if learner._evaluates(version):
            found.append(version)
    assert found == evaluated


def test_a_stop_before_the_first_evaluation_keeps_nothing() -> None:
    """A checkpoint of version 0 would have the run that continues believe that version 0 was evaluated."""
    learner: Any = object.__new__(Learner)
    learner.config = SimpleNamespace(eval_every=1)
    learner.rank, learner.world, learner.found = 0, 1, None
    done: list[Any] = []
    learner._begin = lambda: 0
    learner.ask = lambda method: method == "stop_requested"
    learner.held_out = SimpleNamespace(evaluate=lambda version: done.append("evaluated"))
    learner._checkpoint = lambda version: done.append("kept")
    learner._finish = lambda status, version: done.append((status, version))
    learner.run()
    assert done == [("interrupted", 0)]
