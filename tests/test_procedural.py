"""Procedural coding tasks: splits that cannot overlap, sound references, and unit tests that catch wrong programs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from envs.base import Task
from envs.coding import efficient
from envs.coding.operations import OPERATIONS
from envs.coding.procedural import FAMILIES, SPLITS, Program, Stream, arguments, differs, mutants, tasks

NAMES = (*FAMILIES, "performance")


def some(split: str, number: int, **options: Any) -> list[Task]:
    return list(islice(tasks(split, **options), number))


def words(task: Task) -> str:
    message = task.prompt[0]
    assert isinstance(message, dict)
    assert message["role"] == "user"
    return message["content"]


def programs(split: str, number: int, difficulties: tuple[int, ...] = (1, 2, 3), seed: int = 0) -> list[Program]:
    stream = Stream(seed, FAMILIES, difficulties, split)
    return [program for program, _ in map(stream.program, range(number)) if isinstance(program, Program)]


def run(source: str, args: list[Any]) -> Any:
    return efficient.load(source)(*args)


def passes(source: str, task: Task) -> bool:
    return all(run(source, args) == expected for args, _, expected in task.meta["cases"])


def test_splits_are_disjoint_in_programs_and_prompts() -> None:
    seen: dict[str, tuple[set[str], set[str]]] = {}
    for split in SPLITS:
        found = some(split, 300, families=NAMES, size=300) + some(split, 100, seed=1, size=100)
        seen[split] = {t.meta["program"] for t in found}, {words(t) for t in found}
    for left, right in (("train", "test"), ("train", "unseen"), ("test", "unseen")):
        for kind in (0, 1):
            assert not seen[left][kind] & seen[right][kind]


def test_unseen_pairs_occur_nowhere_else() -> None:
    def pairs(program: Program) -> set[tuple[str, str, str]]:
        return {(program.family, a.op.key, b.op.key) for a, b in pairwise(program.steps)}

    known = set().union(*(pairs(p) for split in ("train", "test") for p in programs(split, 600, (2, 3))))
    assert all(pairs(p) - known for p in programs("unseen", 200, (2, 3)))


def test_train_is_endless_and_restartable_and_held_out_splits_are_sequences() -> None:
    train = tasks("train", seed=3)
    assert not isinstance(train, Sequence)
    first, again = list(islice(train, 20)), list(islice(train, 20))
    assert first == again
    assert first != list(islice(tasks("train", seed=4), 20))
    for split in ("test", "unseen"):
        held_out = tasks(split, size=30)
        assert isinstance(held_out, Sequence)
        assert len(held_out) == 30
        assert list(held_out) == list(tasks(split, size=30))
        assert len({task.meta["program"] for task in held_out}) == len({task.id for task in held_out}) == 30


def test_tasks_do_not_depend_on_the_process() -> None:
    program = "from envs.coding.procedural import tasks; print([(t.id, t.meta) for t in tasks('test', size=5)])"
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={"PYTHONHASHSEED": "7"},
    )
    assert out.stdout.strip() == str([(t.id, t.meta) for t in tasks("test", size=5)])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", NAMES)
def test_references_and_answers_pass_their_own_cases(split: str, family: str) -> None:
    for task in some(split, 40, families=[family], size=40):
        assert task.answer is not None
        assert passes(task.meta["reference"], task)
        assert passes(task.answer, task)
        assert len(task.meta["cases"]) == 8
        assert task.meta["entry_point"] == "f"
        assert task.meta["family"] == family
        assert task.steps
        assert len(task.steps) == task.meta["difficulty"]


def test_unit_tests_catch_mutants() -> None:
    caught = total = 0
    for index, program in enumerate(programs("train", 120, seed=5)):
        task = Stream(5, FAMILIES, (1, 2, 3)).task(index)
        pool = arguments(program, 80, Random(index))
        # Mutants drawn with other random numbers than those the cases were chosen for.
        for mutant in mutants(program, Random(1000 + index)):
            if differs(program, mutant, pool):
                total += 1
                caught += not all(mutant(args[0]) == expected for args, _, expected in task.meta["cases"])
    assert total > 500
    assert caught / total >= 0.95


def test_constant_answers_fail() -> None:
    for task in some("train", 100):
        results = [expected for *_, expected in task.meta["cases"]]
        assert any(result != results[0] for result in results[1:]), task.meta["program"]


def test_prompts_are_short_and_varied() -> None:
    prompts = [words(task) for task in some("train", 200)]
    assert max(len(prompt.split()) for prompt in prompts) <= 48
    assert len(set(prompts)) > 190


def test_operations_have_unique_names_and_paraphrases() -> None:
    for family in FAMILIES:
        ops = [op for op in OPERATIONS if op.family == family]
        assert len({op.key for op in ops}) == len(ops)
        asks = [ask for op in ops for ask in op.asks]
        assert len(set(asks)) == len(asks)
        assert all(("{k}" in ask) == bool(op.values) for op in ops for ask in op.asks)


def test_performance_references_agree_and_differ_in_work() -> None:
    assert len(efficient.TEMPLATES) >= 10
    for template in efficient.TEMPLATES:
        choice = efficient.Choice(template, 5)
        task = efficient.make_task(choice, "train", 0, Random(0))
        measured = task.meta["performance"]
        assert len(measured["sizes"]) == len(measured["args"]) == 3
        assert passes(measured["slow"], task)
        works = []
        for args, _ in measured["args"]:
            assert run(measured["fast"], args) == run(measured["slow"], args)
            works.append((_lines(measured["fast"], args), _lines(measured["slow"], args)))
        assert works[-1][1] > 8 * works[-1][0]
        assert works[-1][1] > 3 * works[-2][1]


def _lines(source: str, args: list[Any]) -> int:
    """Lines executed: a stand-in for work that is exact and cheap enough for this test."""
    lines = 0

    def local(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return local

    function = efficient.load(source)
    sys.settrace(lambda frame, event, arg: local)
    try:
        function(*args)
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("dev", {}, "unknown split 'dev'"),
        ("train", {"families": ["poetry"]}, "unknown family 'poetry'"),
        ("train", {"difficulties": [4]}, "difficulty 4"),
        ("unseen", {"difficulties": [1]}, "needs a difficulty of 2 or 3"),
        ("test", {"size": 0}, "size must be at least 1"),
    ],
)
def test_bad_choices_are_named(split: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks(split, **options)
