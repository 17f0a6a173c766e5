"""`posterior envs list`: every environment has a row, and what is wrong with one stands there."""

from __future__ import annotations

import itertools
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from envs import listing, registry
from envs.base import Grade, SingleTurnEnv, Task


class Base(SingleTurnEnv):
    """An environment for these tests."""

    def tasks(self, split: str) -> Any:
        return [Task(str(i), f"{split} {i}", "yes") for i in range(3)]

    def grade(self, task: Task, text: str) -> Grade:
        return Grade(float(text == task.answer))


class Streams(Base):
    exact = False

    def tasks(self, split: str) -> Iterator[Task]:
        numbers = range(7) if split == "test" else itertools.count()
        return (Task(str(i), f"{split} {i}", "yes") for i in numbers)


class Slow(Base):
    def tasks(self, split: str) -> Any:
        if split == "test":
            time.sleep(60)
        return super().tasks(split)


class Unready(Base):
    def ready(self) -> None:
        raise RuntimeError("unready needs an abacus; run: apt-get install abacus")


class Breaks(Base):
    def tasks(self, split: str) -> Any:
        raise KeyError("a bug")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("listed")
    for cls in (Base, Streams, Slow, Unready, Breaks):
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(registry.BUILTIN, cls.__name__.lower(), f"listed:{cls.__name__}")
    monkeypatch.setitem(registry.BUILTIN, "absent", "no_such_package.env:Env")
    monkeypatch.setitem(sys.modules, "listed", module)


def test_rows_say_what_there_is(named: None) -> None:
    row = listing.row("base", speed=True)
    assert row.pop("steps_per_second") > 10
    assert row == {
        "name": "base",
        "description": "An environment for these tests.",
        "kind": "single-turn",
        "grading": "exact",
        "turns": 1,
        "splits": {"train": 3, "test": 3},
        "unusable": "",
    }
    row = listing.row("streams")
    assert (row["grading"], row["splits"]) == ("noisy", {"train": "endless", "test": 7})
    row = listing.row("key_door", speed=True)
    assert (row["kind"], row["turns"], row["splits"]) == ("multi-turn", 6, {"train": "endless", "test": "endless"})
    assert row["steps_per_second"] > 10


def test_a_slow_one_does_not_hold_up_the_list(named: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "COUNT_SECONDS", 0.3)
    row = listing.row("slow")
    assert (row["splits"], row["unusable"]) == ({"train": 3, "test": "uncounted"}, "")


def test_what_cannot_be_used_says_why(named: None) -> None:
    assert listing.row("unready")["unusable"] == "unready needs an abacus; run: apt-get install abacus"
    assert listing.row("breaks")["unusable"] == "'a bug'"
    assert "no module 'no_such_package'" in listing.row("absent")["unusable"]
    assert "needs the argument 'train'" in listing.row("answers")["unusable"]
    table = listing.shown([listing.row(name) for name in ("base", "unready", "walk", "absent")]).splitlines()
    assert table[0].split() == ["name", "kind", "grading", "turns", "tasks"]
    assert table[1].split() == ["base", "single-turn", "exact", "1", "train", "3,", "test", "3"]
    assert "    unusable as it stands: unready needs an abacus; run: apt-get install abacus" in table
    assert any(line.startswith("walk ") and "train 1174, test 372, pretrain endless" in line for line in table)
