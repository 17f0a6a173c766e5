"""reasoning-gym: its whitelist, its refusals, and the audit, whose attacks find what they look for."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from envs import registry
from envs.adapters.reasoning_gym import EVALUATES, WHITELIST, ReasoningGym
from envs.adapters.reasoning_gym_audit import audit, names
from envs.check import check_env

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed; run make setup")


def test_the_suite_passes_on_a_mixture() -> None:
    args = {"names": ["word_sorting", "chain_sum", "maze"], "options": {"chain_sum": {"max_terms": 3}}}
    report = asyncio.run(check_env("reasoning_gym", args, samples=40))
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert report["tasks"] == {"train": 40, "test": 40}


def test_tasks_are_asked_in_turns_and_graded_by_the_library() -> None:
    env = ReasoningGym(["leg_counting", "simple_equations"])
    tasks = list(itertools.islice(env.tasks("train"), 6))
    assert [task.meta["name"] for task in tasks] == ["leg_counting", "simple_equations"] * 3
    for task in tasks:
        assert env.grade(task, f" {task.answer}\n").solved
        assert env.grade(task, f"{task.answer}0").value == 0.0
    assert env.grade(tasks[0], "").components == {"leg_counting": 0.0}


def test_partial_scores_are_kept_only_on_request() -> None:
    task = next(iter(ReasoningGym("sentence_reordering").tasks("train")))
    words = str(task.answer).split()
    nearly = " ".join([*words[:-2], words[-1], words[-2]])
    strict, partial = ReasoningGym("sentence_reordering"), ReasoningGym("sentence_reordering", partial=True)
    assert 0.0 < partial.grade(task, nearly).value < 1.0
    assert (strict.grade(task, nearly).value, strict.grade(task, nearly).solved) == (0.0, False)


def test_a_task_that_runs_out_of_questions_ends() -> None:
    few = ReasoningGym("coin_flip", {"coin_flip": {"min_trials": 1, "max_trials": 1}}, unaudited=True)
    assert 0 < len(list(itertools.islice(few.tasks("train"), 10_000))) < 10_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"names": "leg_countin"}, "did you mean 'leg_counting'"),
        ({"names": "quantum_lock"}, r"not among the 72 tasks that passed the audit.*unaudited=true"),
        ({"names": "countdown"}, r"evaluates text as a program.*--unsafe-local"),
        ({"names": "countdown", "unaudited": True}, "--unsafe-local"),
        ({"names": []}, "names is empty"),
        ({"names": "maze", "options": {"chain_sum": {}}}, "options has 'chain_sum', which is not among the names"),
        ({"names": "maze", "options": {"maze": {"colour": 1}}}, "maze with .*colour.* cannot be made: TypeError"),
        ({"names": "nothing", "unaudited": True}, "'nothing' not registered"),
    ],
)
def test_refusals_are_one_sentence(args: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        registry.make("reasoning_gym", args).ready()


def test_what_is_unaudited_may_be_asked_for() -> None:
    assert registry.make("reasoning_gym", {"names": "quantum_lock", "unaudited": True}).splits() == ("train", "test")
    registry.make("reasoning_gym", {"names": "countdown", "unsafe_local": True}).ready()


def test_the_lists_name_what_there_is() -> None:
    known = set(names())
    assert set(WHITELIST) | set(EVALUATES) <= known
    assert not set(WHITELIST) & set(EVALUATES)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("chain_sum", ""),
        ("countdown", "evaluates text as a program"),
        ("game_of_life_halting", "scores 1"),
        ("coin_flip", "one short text solves"),
        ("prime_factorization", "raised ValueError"),
        ("list_functions", "the same seed gives other items"),
        ("rubiks_cube", "has no answer that is text"),
        ("composite", "generating raised AssertionError"),
    ],
)
def test_the_audit_finds_each_kind_of_fault(name: str, fault: str) -> None:
    found = audit(name)
    assert fault in found.fault
    assert bool(found.fault) == bool(fault)
    assert found.evaluates == (name in EVALUATES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_whitelist_passes_the_audit() -> None:
    assert {name: found.fault for name in WHITELIST if (found := audit(name)).fault} == {}
