"""Trace execution: programs run by hand, four ways to say a state, the mixture of scratchpads, wrong answers."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from random import Random

import pytest

from envs import stack_programs as stack
from envs.base import Task
from envs.check import check_env
from envs.trace_execution import GIVEN, MIXTURE, SKELETON, TraceExecution


def take(env: TraceExecution, split: str, n: int) -> list[Task]:
    return list(itertools.islice(env.tasks(split), n))


def test_programs_run_by_hand() -> None:
    assert stack.run(("push 3", "push 4", "add", "dup")) == [(3,), (3, 4), (7,), (7, 7)]
    assert stack.run(("push 8", "push 9", "add", "push 9", "sub")) == [(8,), (8, 9), (7,), (7, 9), (8,)]
    assert stack.run(("push 1", "push 2", "swap", "drop", "drop")) == [(1,), (1, 2), (2, 1), (2,), ()]
    program = ("push 3", "push 4", "swap", "sub", "drop")
    assert stack.scratchpad(program, stack.run(program)) == (
        "push 3 .",
        "push 4 3 .",
        "swap 3 4 .",
        "sub 1 .",
        "drop .",
    )
    assert stack.scratchpad(program, [(5,), (5, 4)]) == ("push 5 .", "push 4 5 .")
    assert stack.skeleton(("push 1", "dup", "add", "swap", "sub", "drop")) == "PUSH MOVE ARITH MOVE ARITH MOVE"
    with pytest.raises(ValueError, match="'pop' is not an instruction"):
        stack.apply("pop", (1, 2))


def test_a_slip_changes_one_digit_and_is_carried_on() -> None:
    program = ("push 3", "push 4", "add", "push 1", "add")
    for seed in range(200):
        states = stack.run_with_a_slip(program, Random(seed))
        true = stack.run(program)
        first = next(i for i, (a, b) in enumerate(zip(states, true, strict=True)) if a != b)
        assert sum(a != b for a, b in zip(states[first], true[first], strict=True)) == 1
        for i in range(first + 1, len(program)):
            assert states[i] == stack.apply(program[i], states[i - 1])
        assert states[-1] != true[-1]  # nothing here loses a digit, so the slip arrives


def test_four_grammars_say_the_same_and_are_read_back() -> None:
    said = [stack.write((3, 7, 0), grammar) for grammar in range(stack.GRAMMARS)]
    assert said == ["0 7 3", "bottom 3 7 0", "holds 0 then 7 then 3", "zero seven three"]
    for state in ((3, 7, 0), (5,), tuple(range(10)) + (1,) * 6):
        for grammar in range(stack.GRAMMARS):
            assert stack.read(stack.write(state, grammar)) == state
    for text in (
        "",
        "bottom",
        "holds",
        "holds 3 7",
        "holds 3 then",
        "3 then 7",
        "3 seven",
        "bottom three",
        "3 . 7",
        "12",
        "x",
    ):
        assert stack.read(text) is None, text


@pytest.mark.parametrize("answer", [0, 1, 3])
def test_tasks_say_what_their_programs_do(answer: int) -> None:
    env = TraceExecution(lengths=[5, 7], answer=answer)
    for split, lengths in (("train", range(5, 8)), ("test", range(5, 8)), ("longer", range(8, 10))):
        tasks = take(env, split, 300)
        assert {len(task.meta["program"]) for task in tasks} == set(lengths)
        for task in tasks:
            states = stack.run(task.meta["program"])
            assert task.prompt == " ".join(task.meta["program"])
            assert task.steps == stack.scratchpad(task.meta["program"], states)
            assert task.meta["program"][-1] in ("add", "sub")
            wanted = states[-1][-answer:] if answer else states[-1]
            assert task.answer == " ".join(map(str, reversed(wanted)))
            assert len(wanted) == answer or (answer == 0 and wanted)
            assert max(map(len, states)) <= 4
            assert set(f"{task.prompt} {' '.join(task.steps or ())} {task.answer}".split()) <= set(env.words())


def test_long_answers() -> None:
    for task in take(TraceExecution(lengths=[18, 20], answer=16), "test", 50):
        assert len(str(task.answer).split()) == 16


def test_the_mixture_of_pretraining_scratchpads() -> None:
    n = 5000
    env = TraceExecution()
    tasks = take(env, "pretrain", n)
    kinds = Counter(task.meta["kind"] for task in tasks)
    assert kinds["skeleton"] / n == pytest.approx(0.04, abs=0.012)
    assert kinds["given"] / n == pytest.approx(0.1, abs=0.02)
    for kind, share in MIXTURE.items():
        assert kinds[kind] / n == pytest.approx(0.86 * share, abs=0.02), kind
    for task in tasks:
        program, kind, steps = task.meta["program"], task.meta["kind"], task.steps or ()
        right, plain = stack.scratchpad(program, stack.run(program)), " ".join(program)
        assert task.answer == stack.write(task.meta["state"]) == stack.write(stack.run(program)[-1][-2:])
        if kind == "skeleton":
            assert task.prompt == SKELETON.format(prompt=plain, answer=task.answer)
            assert steps == (stack.skeleton(program), "reason", *right)
            continue
        assert task.prompt == (GIVEN.format(prompt=plain, answer=task.answer) if kind == "given" else plain)
        assert (steps == right) == (kind in ("right", "given")) or kind == "irrelevant"
        if kind == "truncated":
            assert 0 < len(steps) < len(right)
            assert steps == right[: len(steps)]
        assert kind != "empty" or steps == ()
        assert kind != "noisy" or len(steps) == len(right)
    assert set(" ".join(f"{t.prompt} {' '.join(t.steps or ())}" for t in tasks).split()) <= set(env.words())


def test_no_program_is_in_two_splits_and_options_do_not_change_programs() -> None:
    splits = TraceExecution().splits()
    owners: dict[tuple[str, ...], str] = {}
    for split in splits:
        for task in take(TraceExecution(), split, 2500):
            assert owners.setdefault(task.meta["program"], split) == split
    for split in splits:
        plain = take(TraceExecution(), split, 40)
        assert plain == take(TraceExecution(), split, 40)
        other = take(TraceExecution(paraphrases=True, corrupt=0.5), split, 40)
        assert [t.meta["program"] for t in plain] == [t.meta["program"] for t in other]
    env = TraceExecution()
    assert env.task("test", 17) == take(env, "test", 18)[17]


def test_corrupt_answers_are_wrong_in_their_share_of_training_tasks() -> None:
    env = TraceExecution(corrupt=0.3, paraphrases=True)
    tasks = take(env, "train", 2000)
    wrong = [task for task in tasks if stack.read(str(task.answer)) != task.meta["state"]]
    assert len(wrong) / 2000 == pytest.approx(0.3, abs=0.04)
    assert all(task.meta["corrupt"] == (task in wrong) for task in tasks[:200])
    for task in wrong[:50]:
        assert env.grade(task, str(task.answer)).components == {"exact": 1.0, "canonical": 0.0}
        assert env.grade(task, stack.write(task.meta["state"], 3)).value == 1.0
    for split in ("test", "longer", "pretrain"):
        assert not any(task.meta["corrupt"] for task in take(env, split, 300))
    assert all(task.meta["corrupt"] for task in take(TraceExecution(corrupt=1.0), "train", 50))


def test_the_grade_reads_every_paraphrase_unless_it_is_literal() -> None:
    grammars = Counter(task.meta["grammar"] for task in take(TraceExecution(paraphrases=True), "train", 1000))
    assert set(grammars) == {0, 1, 2, 3}
    assert min(grammars.values()) > 200
    literal = TraceExecution(paraphrases=True, literal=True)
    for split in ("train", "test"):
        for task in take(literal, split, 20):
            other = stack.write(task.meta["state"], (task.meta["grammar"] + 1) % 4)
            assert literal.grade(task, str(task.answer)).value == 1.0
            assert literal.grade(task, other).value == (0.0 if split == "train" else 1.0)
            assert literal.grade(task, other).components == {"exact": 0.0, "canonical": 1.0}
            wrong = stack.wrong_digit(task.meta["state"], Random(1))
            assert literal.grade(task, stack.write(wrong)).value == 0.0


@pytest.mark.parametrize("args", [{}, {"answer": 0, "paraphrases": True, "corrupt": 0.3, "literal": True}])
def test_conformance(args: dict[str, object]) -> None:
    assert asyncio.run(check_env("trace_execution", args))["ok"]


def test_bad_arguments() -> None:
    for bad in ({"answer": 17}, {"answer": -1}, {"corrupt": 1.5}):
        with pytest.raises(
            ValueError, match=r"trace_execution needs an answer of 0 .* to 16 digits and corrupt of 0 to 1"
        ):
            TraceExecution(**bad)
    for lengths, answer in (([1, 6], 1), ([6, 3], 2), ([3], 2), ([3, 6], 2), ([4, 99], 2)):
        with pytest.raises(ValueError, match=r"trace_execution needs lengths: \[fewest, most\] in order"):
            TraceExecution(lengths=lengths, answer=answer)
    with pytest.raises(
        ValueError, match="trace_execution has no split 'tset'; there are: train, test, longer, pretrain"
    ):
        TraceExecution().tasks("tset")


def test_a_finite_train_split_is_the_beginning_of_the_endless_one() -> None:
    few = TraceExecution(train_tasks=5).tasks("train")
    assert isinstance(few, list)
    assert few == list(itertools.islice(TraceExecution().tasks("train"), 5))
    assert not isinstance(TraceExecution(train_tasks=5).tasks("test"), list)
    with pytest.raises(ValueError, match="train_tasks"):
        TraceExecution(train_tasks=-1)
