"""Permutation composition: answers and steps against brute force, splits, refusals, conformance."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from envs.base import Task
from envs.check import check_env
from envs.permutations import Permutations


def take(env: Permutations, split: str, n: int) -> list[Task]:
    return list(itertools.islice(env.tasks(split), n))


def follow(spoken: list[str], symbol: int) -> list[int]:
    """Where a symbol is after each permutation."""
    places = []
    for permutation in spoken:
        symbol = int(permutation[symbol - 1])
        places.append(symbol)
    return places


@pytest.mark.parametrize("generators", ["all", "two"])
def test_products_are_what_following_every_symbol_gives(generators: str) -> None:
    env = Permutations(lengths=(7, 9), generators=generators)
    for task in take(env, "train", 300):
        *spoken, asked = str(task.prompt).split()
        assert asked == "product"
        assert len(spoken) == task.meta["length"]
        paths = [follow(spoken, symbol) for symbol in range(1, 6)]
        running = ["".join(str(path[i]) for path in paths) for i in range(len(spoken))]
        assert task.steps is not None
        assert [*task.steps, task.answer] == running
        assert set(spoken) | {str(task.answer)} <= set(env.words())
        assert env.grade(task, f"so {task.answer}").value == 1.0
        assert env.grade(task, running[0] if running[0] != task.answer else "12").value == 0.0
    if generators == "two":
        assert {w for t in take(env, "train", 50) for w in str(t.prompt).split()} == {"21345", "23451", "product"}


def test_the_image_of_one_symbol() -> None:
    env = Permutations(symbols=4, lengths=(2, 5), asked="image")
    for task in take(env, "test", 200):
        *spoken, said, symbol = str(task.prompt).split()
        assert said == "from"
        path = follow(spoken, int(symbol))
        assert task.steps is not None
        assert [*task.steps, task.answer] == [str(i) for i in path]
        assert set(str(task.prompt).split()) <= set(env.words())


def test_rows_of_one_split_are_in_no_other() -> None:
    env = Permutations(lengths=(2, 3))
    seen = {split: {str(t.prompt) for t in take(env, split, 1500)} for split in env.splits()}
    for one, other in itertools.combinations(("train", "test", "length2"), 2):
        assert seen[one]
        assert not seen[one] & seen[other]
    assert not seen["train"] & seen["length3"]
    assert {len(p.split()) - 1 for p in seen["length3"]} == {3}


def test_a_ramp_begins_with_the_shortest() -> None:
    lengths = [t.meta["length"] for t in take(Permutations(lengths=(2, 6), ramp=20), "train", 120)]
    assert set(lengths[:20]) == {2}
    assert max(lengths[:40]) == 3
    assert max(lengths) == 6


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"symbols": 9}, "symbols of 2 to 6"),
        ({"lengths": (3, 2)}, "at least 1 and in order"),
        ({"asked": "colour"}, "asked 'colour'"),
        ({"generators": "two", "lengths": (1, 4)}, "too few rows of length 1"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Permutations(**args)


@pytest.mark.parametrize("args", [{}, {"asked": "image"}, {"generators": "two", "lengths": [9, 12]}])
def test_it_conforms(args: dict[str, Any]) -> None:
    report = asyncio.run(check_env("permutations", args, samples=100))
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
