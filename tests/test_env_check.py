"""The conformance and red-team suite: it passes good environments and finds the fault of each bad one."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import types
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from envs.base import Env, Grade, Move, Observation, SingleTurnEnv, Step, Task
from envs.check import check_env
from envs.coding import attacks

SPLITS = ("train", "test")


class Sums(SingleTurnEnv):
    """A sound environment: add two numbers."""

    def __init__(self, most: int = 40) -> None:
        self.most = most

    def tasks(self, split: str) -> Iterable[Task]:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are: train, test")
        parity = SPLITS.index(split)
        return [
            Task(f"{a}+{b}", f"What is {a} + {b}?", answer=str(a + b))
            for a, b in itertools.product(range(10, self.most), repeat=2)
            if (a + b) % 2 == parity
        ]

    def grade(self, task: Task, text: str) -> Grade:
        return Grade(float(text.strip() == task.answer))


class Stairs(Env):
    """A sound multi-turn environment: climb `height` steps by saying up; it offers a solution of its own."""

    max_turns = 6

    def tasks(self, split: str) -> Iterable[Task]:
        if split not in SPLITS:
            raise ValueError("unknown split")
        return [Task(f"{split}-{h}", f"Climb {h} steps ({split})", meta={"height": h}) for h in range(2, 6)]

    def solution(self, task: Task) -> list[str]:
        return ["up"] * task.meta["height"]

    async def reset(self, task: Task, seed: int) -> Observation:
        self.left, self.turns = task.meta["height"], 0
        return Observation()

    async def step(self, action: str) -> Step:
        self.turns += 1
        if action.strip() == "up":
            self.left -= 1
        done = self.left == 0
        return Step(f"{self.left} steps to go", float(done), terminated=done, truncated=self.turns == self.max_turns)


class AlwaysRight(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(1.0)


class AlwaysWrong(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(0.0)


class AnyTextPays(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(1.0 if text.strip() == task.answer else 0.01 * bool(text))


class ConstantWins(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(float(text in (task.answer, "yes")))


class Raises(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(float(text.encode().decode("ascii") == task.answer))


class NotANumber(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(1.0) if text == task.answer else Grade(float("nan"))


class TooGenerous(Sums):
    def grade(self, task: Task, text: str) -> Grade:
        return Grade(100.0 * (text == task.answer))


class Remembers(Sums):
    """After a right answer the next one is right too."""

    streak = False

    def grade(self, task: Task, text: str) -> Grade:
        right = text == task.answer
        value, self.streak = float(right or self.streak), right
        return Grade(value)


class Overlaps(Sums):
    def tasks(self, split: str) -> Iterable[Task]:
        return super().tasks("train" if split in SPLITS else split)


class Shuffles(Sums):
    def tasks(self, split: str) -> Iterable[Task]:
        import random

        tasks = list(super().tasks(split))
        random.shuffle(tasks)
        return tasks


class Doubles(Sums):
    def tasks(self, split: str) -> Iterable[Task]:
        return [Task("same", t.prompt, t.answer) for t in super().tasks(split)]


class AnySplit(Sums):
    def tasks(self, split: str) -> Iterable[Task]:
        return super().tasks("test" if split == "test" else "train")


class Unpicklable(Sums):
    def tasks(self, split: str) -> Iterable[Task]:
        return [Task(t.id, t.prompt, t.answer, meta={"f": lambda: 0}) for t in super().tasks(split)]


class Endless(Sums):
    async def step(self, action: str) -> Step:
        return Step("", 0.0, terminated=False)


class Undecided(Stairs):
    """Its reward depends on how many episodes there were before."""

    episodes = itertools.count()

    async def reset(self, task: Task, seed: int) -> Observation:
        await super().reset(task, seed)
        return Observation(prompt=f"episode {next(self.episodes)}")


class Saved(Stairs):
    """A sound environment with snapshots and a walkthrough in place of `solution`."""

    solution = None  # type: ignore[assignment]

    def tasks(self, split: str) -> Iterable[Task]:
        for task in super().tasks(split):
            left = range(task.meta["height"] - 1, -1, -1)
            yield replace(task, walkthrough=tuple(Move("up", f"{n} steps to go" if n else "") for n in left))

    def snapshot(self) -> bytes:
        return json.dumps([self.left, self.turns]).encode()

    def restore(self, state: bytes) -> None:
        self.left, self.turns = json.loads(state)


class SavesHalf(Saved):
    def restore(self, state: bytes) -> None:
        self.turns = json.loads(state)[1]


class SavesOnly(Stairs):
    def snapshot(self) -> bytes:
        return b""


class Misremembers(Saved):
    def tasks(self, split: str) -> Iterable[Task]:
        for task in super().tasks(split):
            moves = task.walkthrough or ()
            yield replace(task, walkthrough=(replace(moves[0], observation="you fly"), *moves[1:]))


class Crowded(Stairs):
    """All instances climb the same stairs."""

    shared: ClassVar[list[int]] = [0]

    async def reset(self, task: Task, seed: int) -> Observation:
        self.shared[0], self.turns = task.meta["height"], 0
        return Observation()

    async def step(self, action: str) -> Step:
        self.turns += 1
        self.shared[0] -= action.strip() == "up"
        done = self.shared[0] <= 0
        return Step(
            f"{self.shared[0]} steps to go", float(done), terminated=done, truncated=self.turns == self.max_turns
        )


class Writes(Stairs):
    """It counts on the task that it was handed."""

    async def step(self, action: str) -> Step:
        self.task.meta.setdefault("said", []).append(action)
        return await super().step(action)

    async def reset(self, task: Task, seed: int) -> Observation:
        self.task = task
        return await super().reset(task, seed)


class Stumbles(Stairs):
    """Only the second action of an episode is looked at closely."""

    async def step(self, action: str) -> Step:
        if self.turns == 1:
            action.encode()
        return await super().step(action)


class Rich(Stairs):
    async def step(self, action: str) -> Step:
        step = await super().step(action)
        return replace(step, reward=step.reward + 0.6 * (action == "up"))


class NotReady(Sums):
    def ready(self) -> None:
        raise RuntimeError("sums needs an abacus; install abacus")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name under which this file's environments can be imported."""
    mine = types.ModuleType("environments_under_test")
    for value in list(globals().values()):
        if isinstance(value, type) and issubclass(value, Env):
            setattr(mine, value.__name__, value)
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    return mine.__name__


def check(module: str, name: str, **args: Any) -> dict[str, Any]:
    report = asyncio.run(check_env(f"{module}:{name}", args, samples=100))
    assert json.loads(json.dumps(report)) == report
    return report


def failed(report: dict[str, Any]) -> list[str]:
    assert report["ok"] == all(c["ok"] for c in report["checks"])
    return [c["name"] for c in report["checks"] if not c["ok"]]


@pytest.mark.parametrize("name", ["Sums", "Stairs", "Saved"])
def test_sound_environments_pass(module: str, name: str) -> None:
    report = check(module, name)
    assert failed(report) == [], report["checks"]
    assert report["ok"]
    assert set(report["tasks"]) == {"train", "test"}
    assert report["seconds_per_grade"]["max"] >= report["seconds_per_grade"]["median"] >= 0.0


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("AlwaysRight", "junk scores nothing"),
        ("AlwaysWrong", "a good answer scores full marks"),
        ("AnyTextPays", "junk scores nothing"),
        ("ConstantWins", "no constant guess"),
        ("Raises", "junk scores nothing"),
        ("NotANumber", "reset and step keep their contracts"),
        ("TooGenerous", "a good answer scores full marks"),
        ("Remembers", "nothing leaks"),
        ("Overlaps", "no prompt of one split occurs in another"),
        ("Shuffles", "the same at every enumeration"),
        ("Doubles", "ids are unique"),
        ("AnySplit", "an unknown split raises"),
        ("Unpicklable", "well-formed tasks"),
        ("Endless", "reset and step keep their contracts"),
        ("Undecided", "the same seed and actions"),
        ("SavesHalf", "a snapshot leads back"),
        ("SavesOnly", "a snapshot leads back"),
        ("Misremembers", "walkthroughs show what the environment answers"),
        ("Crowded", "played in turns do not disturb"),
        ("Writes", "played in turns do not disturb"),
        ("Stumbles", "no action raises, however hostile"),
        ("Rich", "a good answer scores full marks"),
    ],
)
def test_the_fault_of_each_bad_environment_is_found(module: str, name: str, fault: str) -> None:
    report = check(module, name)
    assert not report["ok"]
    assert any(fault in found for found in failed(report)), report["checks"]


def test_always_right_and_always_wrong_fail_on_different_grounds(module: str) -> None:
    assert not any("good answer" in name for name in failed(check(module, "AlwaysRight")))
    assert not any("junk" in name for name in failed(check(module, "AlwaysWrong")))


def test_arguments_reach_the_environment_and_wrong_ones_are_refused(module: str) -> None:
    assert check(module, "Sums", most=14)["tasks"] == {"train": 8, "test": 8}
    with pytest.raises(ValueError, match="did you mean 'most'"):
        check(module, "Sums", mots=3)


def test_what_is_missing_is_said_before_anything_is_played(module: str) -> None:
    with pytest.raises(RuntimeError, match="needs an abacus"):
        check(module, "NotReady")


def test_the_coding_environment_is_audited_with_gold_solutions_and_attacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {
        "right": "def f(x):\n    return x + 1",
        "wrong": "def f(x):\n    return x",
        "slow": "import time\ndef f(x):\n    end = time.process_time() + 0.6\n    while time.process_time() < end: pass\n"
        "    return x + 1",
    }
    rows = [
        {"id": name, "prompt": f"Add one, {name}.", "entry_point": "f", "cases": [[[1], {}, 2]], "solution": source}
        for name, source in sources.items()
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(attacks, "ATTACKS", attacks.ATTACKS[::12])  # a sample; tests/test_sandbox_attacks.py runs all
    report = asyncio.run(check_env("coding", {"tasks": str(tmp_path / "own.jsonl"), "cpu_seconds": 0.3}))
    assert (report["gold_passed"], report["gold_total"], report["gold_slow"]) == (1, 3, ["slow"])
    assert [failure["id"] for failure in report["gold_failed"]] == ["wrong", "slow"]
    assert "returned 1, expected 2" in report["gold_failed"][0]["note"]
    assert report["programs_per_second"] > 0
    assert len(report["attacks"]) == len(attacks.ATTACKS)
    assert all(a["contained"] and a["score"] == 0 and a["healthy_after"] for a in report["attacks"])
    assert "gold: reference solutions pass their own tests" in failed(report)
    assert not any("attacks" in name or "junk" in name for name in failed(report))


def test_the_generated_coding_tasks_pass_the_whole_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "ATTACKS", attacks.ATTACKS[:2])
    report = asyncio.run(check_env("coding", {"size": 20}, samples=20))
    assert failed(report) == []
    assert report["gold_passed"] == report["gold_total"] == 60
