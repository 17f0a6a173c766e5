"""Grading programs with the real sandbox: tests, partial credit, hostile text, untrusted test code, performance."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pytest

from envs.base import Grade, Task
from envs.coding import attacks, procedural
from envs.coding.compare import Rule
from envs.coding.env import CodingEnv
from envs.coding.grader import extract_code

T = TypeVar("T")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def task(*cases: list[Any], test_source: str | None = None, **meta: Any) -> Task:
    meta = {"entry_point": "f", "cases": list(cases) or None, "test_source": test_source, **meta}
    return Task("t", "write f", meta=meta)


INCREMENT = task([[1], {}, 2], [[5], {}, 6], [[], {"x": -1}, 0])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x):\n    return x", "def f(x):\n    return x"),
        ("  \nimport math\ndef f(): pass\n", "import math\ndef f(): pass"),
        ("f = lambda x: x", "f = lambda x: x"),
        ("Sure!\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```python\na\n```\ntext\n```python\nb\n```", "b"),
        ("```python\na\n```\nprints\n```\n3\n```", "a"),
        ("```\na\n```", "a"),
        ("```py\na", "a"),
        ("The answer is 3.", ""),
        ("", ""),
        ("```python\n```", ""),
    ],
)
def test_extract_code(text: str, code: str) -> None:
    assert extract_code(text) == code


def grade(a_task: Task, text: str, **options: Any) -> Grade:
    return run(CodingEnv(**options).grade(a_task, text))


def test_all_or_nothing_and_partial_grades() -> None:
    right = grade(INCREMENT, "def f(x): return x + 1")
    assert (right.value, right.solved, right.note) == (1.0, True, "")
    assert right.components == {"tests": 1.0, "format": 1.0, "compiles": 1.0}
    most = "def f(x): return abs(x + 1) if x < 5 else 7"
    wrong = grade(INCREMENT, most)
    assert wrong.value == 0.0
    assert wrong.components["tests"] == pytest.approx(2 / 3)
    assert wrong.note == "f(5) returned 7, expected 6"
    assert grade(INCREMENT, most, partial=True).value == pytest.approx(2 / 3)
    assert not grade(INCREMENT, most, partial=True).solved


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("def f(x): return float(x + 1)", "returned 2.0, expected 2"),
        ("def f(x): return x + (None if x == 5 else 1)", "f(5) failed: TypeError"),
        ("def f(x: return", "import failed: SyntaxError"),
        ("1 / 0\ndef f(x): return x + 1", "no program"),
        ("x = 1 / 0\ndef f(x): return x + 1", "import failed: ZeroDivisionError"),
        ("def g(x): return x + 1", "f"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("I cannot do that.", "no program"),
        ("\ud800def f(x): return x + 1", "no program"),
        ("def f(x): return x + 1 \0", "no program"),
        ("# " + "x" * 200_000 + "\ndef f(x): return x + 1", "too long"),
        ("def f(x): return " + "(" * 3000 + "x + 1" + ")" * 3000, "import failed"),
        ("def f(x): return " + "-" * 50_000 + "x", "failed"),
        ("import sys; sys.exit(0)\ndef f(x): return x + 1", ""),
        ("class A:\n    def __eq__(self, o): return True\ndef f(x): return A()", "unsupported type"),
        ("class I(int):\n    def __eq__(self, o): return True\ndef f(x): return I(0)", "unsupported type"),
    ],
)
def test_wrong_and_hostile_programs_score_nothing_and_raise_nothing(text: str, note: str) -> None:
    result = grade(INCREMENT, text, cpu_seconds=0.5)
    assert result.value == 0.0
    assert note in result.note


def test_wraps_are_applied_in_the_candidates_sandbox() -> None:
    cases = [["ab"], {}, True, Rule("==", "bool")], [["b"], {}, False, Rule("==", "bool")]
    assert grade(task(*cases), "import re\ndef f(s): return re.match('a', s)").value == 1.0
    generator = "def f(n):\n    yield from range(n)"
    assert grade(task([[3], {}, [0, 1, 2], Rule("==", "list")]), generator).value == 1.0
    assert grade(task([[3], {}, {0, 1}, Rule("==", "set")]), generator).value == 0.0


def test_untrusted_test_code_runs_in_a_sandbox_of_its_own(tmp_path: Path) -> None:
    tests = "for i in range(4):\n    assert f(i) == i + 1\n"
    assert grade(task(test_source=tests), "def f(x): return x + 1").value == 1.0
    wrong = grade(task(test_source=tests), "def f(x): return 1")
    assert wrong.value == 0.0
    assert "AssertionError" in wrong.note
    mark = tmp_path / "mark"
    hostile = f"import os\ntry:\n    open({str(mark)!r}, 'w')\nexcept OSError:\n    pass\nassert f(1) == 2\n"
    assert grade(task(test_source=hostile), "def f(x): return x + 1").value == 1.0
    assert not mark.exists()


@pytest.mark.parametrize(
    "candidate",
    [
        "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return 0",
        "import sys\ndef f(x): sys.exit(0)",
        "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()",
        "import os\ndef f(x): os._exit(0)",
        "def check(c): pass\ndef f(x): return 0",
    ],
)
def test_a_candidate_cannot_reach_the_test_code(candidate: str) -> None:
    tests = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(7) == 8\n\ncheck(f)\n"
    assert grade(task(test_source=tests), candidate).value == 0.0


def test_humaneval_candidates_may_lean_on_the_prompts_imports_and_helpers() -> None:
    prelude = (
        "from typing import List\n\ndef helper(x):\n    return x + 1\n\ndef f(xs: List[int]) -> int:\n    '''Sum.'''\n"
    )
    a_task = task([[[1, 2]], {}, 4], prelude=prelude)
    assert grade(a_task, "def f(xs: List[int]) -> int:\n    return helper(sum(xs))").value == 1.0


def test_attacks_graded_side_by_side_score_nothing_and_disturb_nobody() -> None:
    env = CodingEnv(cpu_seconds=0.3, wall_seconds=1.0, memory_mb=128)
    asked = task([[1], {}, 2], [[41], {}, 42], entry_point="solve")

    async def play() -> tuple[list[Grade], list[Grade]]:
        chosen = attacks.ATTACKS[1::3]
        hostile = [env.grade(asked, f"```python\n{attack.source}\n```") for attack in chosen]
        honest = [env.grade(INCREMENT, "def f(x): return x + 1") for _ in chosen]
        grades = await asyncio.gather(*hostile, *honest)
        return grades[: len(chosen)], grades[len(chosen) :]

    hostile, honest = run(play())
    assert [grade.value for grade in hostile] == [0.0] * len(hostile)
    assert all(grade.solved for grade in honest)


def test_many_at_once_from_several_event_loops() -> None:
    env = CodingEnv()

    async def many() -> list[float]:
        texts = [f"def f(x): return x + {i % 2}" for i in range(40)]
        return [grade.value for grade in await asyncio.gather(*(env.grade(INCREMENT, text) for text in texts))]

    assert run(many()) == [0.0, 1.0] * 20
    assert run(many()) == [0.0, 1.0] * 20


def test_an_episode_through_the_environment_interface() -> None:
    async def play() -> None:
        env = CodingEnv(seed=3)
        a_task = next(iter(env.tasks("train")))
        for text, reward in ((a_task.answer or "", 1.0), ("", 0.0), ("def f(x): return object()", 0.0)):
            await env.reset(a_task, 0)
            step = await env.step(text)
            assert (step.reward, step.terminated) == (reward, True)
            assert step.grade is not None
            assert step.grade.value == reward
        await env.close()

    run(play())


def test_tasks_are_picklable_and_hide_the_tests() -> None:
    env = CodingEnv(size=10)
    for split in env.splits():
        for a_task in islice(iter(env.tasks(split)), 5):
            assert pickle.loads(pickle.dumps(a_task)) == a_task


def test_unknown_and_empty_splits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"id": "a", "prompt": "?", "entry_point": "f", "tests": "assert f(1) == 2"}\n')
    env = CodingEnv(str(path), train_share=0.0)
    assert env.splits() == ("test",)
    assert list(env.tasks("all")) == list(env.tasks("test"))
    with pytest.raises(ValueError, match=r"no tasks in split 'train'; there are: test \(1\)"):
        env.tasks("train")
    with pytest.raises(ValueError, match="unknown split"):
        CodingEnv().tasks("train-2")


def test_construction_reads_nothing() -> None:
    CodingEnv("no-such-file.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        CodingEnv("no-such-file.jsonl").tasks("train")


# Performance

FAST = """def f(a):
    seen = set()
    for x in a:
        if x in seen: return True
        seen.add(x)
    return False"""
SLOW = """def f(a):
    for i in range(len(a)):
        for j in range(i):
            if a[i] == a[j]: return True
    return False"""
SORT = """def f(a):
    a = sorted(a)
    for i in range(len(a) - 1):
        if a[i] == a[i + 1]: return True
    return False"""
SIZES = [100, 200, 400]
EFFICIENT = task(
    [[[1, 2, 1]], {}, True],
    [[[1, 2]], {}, False],
    performance={"sizes": SIZES, "args": [[[list(range(n))], {}] for n in SIZES], "fast": FAST, "slow": SLOW},
)


def test_performance_ranks_programs_by_their_work() -> None:
    fast, slow = grade(EFFICIENT, FAST), grade(EFFICIENT, SLOW)
    middle = grade(EFFICIENT, SORT)
    assert fast.value == 1.0
    assert fast.solved
    assert "n^" in fast.note
    assert slow.value == pytest.approx(0.5, abs=0.02)
    assert not slow.solved
    assert 0.75 < middle.value <= 1.0
    assert grade(EFFICIENT, SLOW, performance=False).value == 1.0
    assert grade(EFFICIENT, "def f(a): return True").value == 0.0
    small_only = FAST.replace("    seen", "    if len(a) > 150: return True\n    seen", 1)
    wrong = grade(EFFICIENT, small_only)
    assert wrong.value == 0.0
    assert "at size 200 it returned True, expected False" in wrong.note


@pytest.mark.parametrize(
    "trick",
    [
        "import time\n" + SLOW.replace("    for i", "    time.sleep(0.05)\n    for i", 1),
        "import functools\n"
        + SLOW.replace("def f", "@functools.lru_cache(None)\ndef g").replace("(a):", "(a):", 1)
        + "\ndef f(a): return g(tuple(a))",
        "import sys\nsys.settrace(None)\nsys.setprofile(None)\n" + SLOW,
        "import threading\n"
        + SLOW.replace("def f", "def g")
        + "\ndef f(a):\n    try:\n        out = []\n        t = threading.Thread(target=lambda: out.append(g(a)))\n"
        + "        t.start(); t.join()\n        return out[0]\n    except RuntimeError:\n        return g(a)",
    ],
    ids=["sleep", "cache", "trace", "thread"],
)
def test_tricks_gain_nothing(trick: str) -> None:
    assert grade(EFFICIENT, trick).value <= 0.53


def test_work_done_while_loading_is_counted() -> None:
    loaded = "TABLE = [i * i for i in range(60_000)]\n" + FAST
    assert grade(EFFICIENT, loaded).value < 0.8


def test_a_program_too_slow_to_finish_is_right_but_earns_no_work() -> None:
    sleepy = FAST.replace("    seen", "    while len(a) > 150: pass\n    seen", 1)
    result = grade(EFFICIENT, sleepy, cpu_seconds=0.5)
    assert 0.5 <= result.value < 0.75
    assert "out of time" in result.note


def test_references_that_disagree_are_an_error_of_the_task() -> None:
    performance = EFFICIENT.meta["performance"] | {"slow": "def f(a): return 3"}
    broken = replace(EFFICIENT, meta=EFFICIENT.meta | {"performance": performance})
    with pytest.raises(ValueError, match="disagree at size 100"):
        grade(broken, FAST)


def test_generated_performance_tasks_rank_fast_above_slow() -> None:
    env = CodingEnv(families=["performance"])

    async def play() -> list[tuple[str, float, float]]:
        found = []
        for a_task in islice(iter(env.tasks("train")), 3):
            slow = a_task.meta["performance"]["slow"]
            fast = await env.grade(a_task, a_task.answer or "")
            found.append((a_task.id, fast.value, (await env.grade(a_task, slow)).value))
        return found

    for name, fast, slow in run(play()):
        assert fast == 1.0, name
        assert slow <= 0.53, name


def test_generated_answers_pass() -> None:
    env = CodingEnv(size=15)

    async def play() -> list[Grade]:
        tasks = [t for split in procedural.SPLITS for t in islice(iter(env.tasks(split)), 15)]
        return list(await asyncio.gather(*(env.grade(t, t.answer or "") for t in tasks)))

    assert all(grade.solved for grade in run(play()))


@pytest.mark.skipif(not (DATA / "mbpp").is_dir(), reason="the MBPP files are not beside this checkout")
def test_mbpp_reference_solutions_pass() -> None:
    env = CodingEnv(str(DATA / "mbpp" / "sanitized-mbpp.json"))

    async def play() -> list[str]:
        tasks = list(env.tasks("test"))[:60]
        grades = await asyncio.gather(*(env.grade(t, t.answer or "") for t in tasks))
        return [t.id for t, grade in zip(tasks, grades, strict=True) if not grade.solved]

    assert run(play()) in ([], ["mbpp/123"])
