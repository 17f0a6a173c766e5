"""Walks on a ring: moves by hand, every prompt in one split, the mixture that a base model is made of."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest

from envs.base import Task
from envs.check import check_env
from envs.walk import GIVEN, MIXTURE, Walk


def take(env: Walk, split: str, n: int | None = None) -> list[Task]:
    return list(itertools.islice(env.tasks(split), n))


def follow(prompt: str, moves: tuple[str, ...]) -> int:
    """The rules, move by move."""
    state, _, *allowed = prompt.split(" given ")[0].split()
    at = int(state)
    for move in moves:
        at = (at + int(move)) % 5 if move in allowed else at
    return at


def test_moves_worked_by_hand() -> None:
    env = Walk()
    assert env.outcome("1 4 2 3 3", ["3"]) == "4"
    assert env.outcome("1 4 2 3 3", ["2", "2", "2", "2"]) == "4"
    assert env.outcome("1 4 2 3 3", ["0", "2", "1"]) == "3"  # neither 0 nor 1 is allowed
    assert env.outcome("1 4 2 3 3", ["given", "<think>"]) == "1"
    assert env.outcome("4 0 0 1 1", []) == "4"
    assert env.outcome("4 2 3 1 1 given 2", ["3"]) == "2"
    with_seven = Walk(states=7)
    assert with_seven.outcome("6 2 3 1 1", ["3"]) == "2"


def test_a_good_path_leads_to_the_goal_by_allowed_moves() -> None:
    for split in ("train", "test"):
        for task in take(Walk(), split):
            _, goal, *allowed = str(task.prompt).split()
            assert task.steps is not None
            assert len(task.steps) <= 4
            assert set(task.steps) <= set(allowed)
            assert str(follow(str(task.prompt), task.steps)) == goal == task.answer
            assert set(str(task.prompt).split()) <= set(Walk().words())
    lengths = Counter(len(task.steps or ()) for task in take(Walk(), "train"))
    assert set(lengths) == {0, 1, 2, 3, 4}


def test_every_prompt_belongs_to_one_split_and_the_docstring_counts_them() -> None:
    env = Walk()
    seen = {split: {str(task.prompt) for task in take(env, split)} for split in ("train", "test")}
    made = {" ".join(str(task.prompt).split()[:5]) for task in take(env, "pretrain", 20_000)}
    assert not seen["train"] & seen["test"]
    assert not made & (seen["train"] | seen["test"])
    assert len(made) == 1554
    said = " ".join((Walk.__doc__ or "").split())
    assert f"{len(seen['train'])} are train's, {len(seen['test'])} test's and {len(made)} pretrain's" in said
    assert 1554 + len(seen["train"]) + len(seen["test"]) == 5**5 - 25  # all but those that allow nothing but 0
    assert take(env, "train") == take(Walk(), "train")
    assert take(env, "pretrain", 50) == take(env, "pretrain", 50)


def test_the_mixture_of_pretraining_thoughts() -> None:
    n = 6000
    tasks = take(Walk(), "pretrain", n)
    for task in tasks:
        assert task.steps is not None
        assert str(follow(str(task.prompt), task.steps)) == task.answer
    kinds = Counter(task.meta["kind"] for task in tasks)
    assert kinds["given"] / n == pytest.approx(0.1, abs=0.02)
    for kind, share in MIXTURE.items():
        assert kinds[kind] / n == pytest.approx(0.9 * share, abs=0.02), kind
    plain = [task for task in tasks if task.meta["kind"] != "given"]
    assert not any("given" in str(task.prompt) for task in plain)
    assert 0.2 < sum(task.answer == task.meta["goal"] for task in plain) / len(plain) < 0.32
    assert all(task.answer == task.meta["goal"] for task in plain if task.meta["kind"] == "right")
    assert all(task.steps == () for task in plain if task.meta["kind"] == "empty")
    # what a truncated path lacks brings it to the goal, so it is shorter than four moves
    assert max(len(task.steps or ()) for task in plain if task.meta["kind"] == "truncated") == 3


def test_the_prompt_that_shows_the_answer() -> None:
    given = [task for task in take(Walk(), "pretrain", 6000) if task.meta["kind"] == "given"]
    for task in given:
        prompt = " ".join(str(task.prompt).split()[:5])
        assert task.prompt == GIVEN.format(prompt=prompt, answer=task.answer)
        assert set(task.steps or ()) <= set(prompt.split()[2:])
    assert 0.5 < sum(task.answer == task.meta["goal"] for task in given) / len(given) < 0.72


def test_the_grade_asks_for_the_goal() -> None:
    env = Walk()
    task = next(task for task in take(env, "pretrain", 100) if task.answer != task.meta["goal"])
    assert env.grade(task, f" {task.meta['goal']}\n").value == 1.0
    assert env.grade(task, str(task.answer)).value == 0.0
    assert env.grade(task, f"{task.answer} {task.meta['goal']}").value == 0.0


def test_few_moves_leave_out_what_is_out_of_reach() -> None:
    tasks = take(Walk(moves=1), "test")
    assert tasks
    assert all(len(task.steps or ()) <= 1 for task in tasks)
    for task in take(Walk(states=7, moves=1), "pretrain", 2000):
        assert task.meta["kind"] != "given" or str(task.prompt).endswith(f"given {task.answer}")
        assert len(task.steps or ()) <= 1


def test_conformance_and_bad_arguments() -> None:
    assert asyncio.run(check_env("walk"))["ok"]
    for states, moves in ((2, 4), (8, 4), (5, 0), (5, 7)):
        with pytest.raises(ValueError, match=f"walk needs 3 to 7 states .* not {states} states and {moves} moves"):
            Walk(states, moves)
    with pytest.raises(ValueError, match="walk has no split 'trian'; there are: train, test, pretrain"):
        Walk().tasks("trian")
