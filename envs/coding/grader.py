"""Grade a program text against a task's tests, with the candidate in the sandbox and the expected values out of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from envs.base import Grade, InfraError, Task
from envs.coding.compare import EXACT, Rule, matches, show
from envs.coding.sandbox import Call, CallResult, Limits
from envs.coding.work_score import measure_work

if TYPE_CHECKING:
    from envs.coding.sandbox import SandboxPool

MAX_CHARACTERS = 100_000
"""Longer answers are not looked at: a grade of 0."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*$", re.MULTILINE)
_CODE_START = re.compile(r"(?:async\s+def|def|class|import|from)\b|[@#]|\"\"\"|'''|[A-Za-z_]\w*\s*=")


def extract_code(text: str) -> str:
    """The program in an answer: its last ```python fence, else its last fence, else the text if it opens as code.

    A fence that is never closed runs to the end of the text. Returns "" where there is no program.
    """
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif not fence[1]:
            blocks.append((opening[1].lower(), text[opening.end() : fence.start()]))
            opening = None
    if opening is not None:
        blocks.append((opening[1].lower(), text[opening.end() :]))
    python = [body for language, body in blocks if language in ("python", "python3", "py")]
    if python or blocks:
        return (python[-1] if python else blocks[-1][1]).strip("\n")
    stripped = text.strip()
    return stripped if _CODE_START.match(stripped) else ""


async def grade_program(
    task: Task,
    text: str,
    pool: SandboxPool,
    *,
    limits: Limits | None = None,
    partial: bool = False,
    performance: bool = True,
) -> Grade:
    """Grade the answer `text` to `task` (meta as in envs/coding/datasets.py).

    value: 1 if every test passes, else 0; with `partial`, the share of tests passed. Where the task asks for
        performance (and `performance` is on), a right program gets 0.5 + 0.5 work, a wrong one half of its value.
    components: "tests" share of tests passed; "format" 1 if the answer holds a program; "compiles" 1 if that program
        loads; "work" in [0, 1] for performance tasks, 0 for a program that is not right.
    note: the first failing case, in words.

    Raises InfraError for faults of the sandbox; never for anything the text does.
    """
    limits = limits or Limits()
    code = extract_code(text) if len(text) <= MAX_CHARACTERS else ""
    if not code or not _is_unicode(code):
        note = "the answer holds no program" if len(text) <= MAX_CHARACTERS else "the answer is too long"
        return _grade(task, 0.0, {"tests": 0.0, "format": 0.0, "compiles": 0.0}, note, performance)
    if task.meta.get("prelude") and "from __future__" not in code:  # a future import must stay the first statement
        code = f"{task.meta['prelude']}\n\n{code}"
    verdicts: list[str] = []
    loads = True
    if task.meta.get("cases"):
        verdicts, loads = await _grade_cases(task, code, pool, limits)
    if loads and task.meta.get("test_source"):
        result = await pool.run_tests(code, task.meta["test_source"], task.meta["entry_point"], limits)
        loads = not result.error.startswith("import failed")
        verdicts.append("" if result.ok else f"the tests stopped with {result.error}")
    if not verdicts:
        raise ValueError(f"task {task.id} has no tests: its meta needs cases or test_source")
    failures = [verdict for verdict in verdicts if verdict]
    share = 1.0 - len(failures) / len(verdicts) if loads else 0.0
    components = {"tests": share, "format": 1.0, "compiles": float(loads)}
    note = failures[0] if failures else ""
    value = (share if partial else 0.0) if failures else 1.0
    if performance and task.meta.get("performance"):
        components["work"] = 0.0
        value *= 0.5
        if not failures:
            work = await measure_work(task, code, pool, limits)
            components["work"] = work.score
            note = work.note
            value = 0.5 + 0.5 * work.score if work.right else 0.0
            components["tests"] = 1.0 if work.right else 0.0
    return _grade(task, value, components, note, performance)


def _grade(task: Task, value: float, components: dict[str, float], note: str, performance: bool) -> Grade:
    if performance and task.meta.get("performance"):
        components.setdefault("work", 0.0)
        # Solved means right and nearer to the fast reference than to the slow one (on a log scale).
        return Grade(value, components, note=note, passed=value >= 0.75)
    return Grade(value, components, note=note)


async def _grade_cases(task: Task, code: str, pool: SandboxPool, limits: Limits) -> tuple[list[str], bool]:
    """One verdict per case ("" if it passed, else what went wrong), and whether the program loads."""
    cases: Sequence[Sequence[Any]] = task.meta["cases"]
    name = task.meta["entry_point"]
    rules: list[Rule] = [case[3] if len(case) > 3 else EXACT for case in cases]
    calls = [
        Call(_wrapper(rule.wrap) if rule.wrap else name, tuple(case[0]), dict(case[1]))
        for case, rule in zip(cases, rules, strict=True)
    ]
    results = await pool.run(with_wrappers(code, name, {rule.wrap for rule in rules}), calls, limits)
    if len(results) != len(cases):
        raise InfraError(f"the sandbox returned {len(results)} results for {len(cases)} calls")
    loads = not any(result.error.startswith("import failed") for result in results)
    return [_verdict(name, case, rule, result) for case, rule, result in zip(cases, rules, results, strict=True)], loads


def with_wrappers(code: str, name: str, wraps: set[str]) -> str:
    """The program with one function per wrap that applies a builtin to the result of `name`, inside its sandbox."""
    functions = [
        f"def {_wrapper(wrap)}(*args, **kwargs):\n    return {wrap}({name}(*args, **kwargs))\n"
        for wrap in sorted(wraps - {""})
    ]
    return "\n\n".join([code, *functions])


def _wrapper(wrap: str) -> str:
    return f"_call_{wrap}"


def _verdict(name: str, case: Sequence[Any], rule: Rule, result: CallResult) -> str:
    if result.ok and matches(result.value, case[2], rule):
        return ""
    if result.error.startswith("import failed"):
        return result.error
    words = [show(arg) for arg in case[0]] + [f"{key}={show(value)}" for key, value in case[1].items()]
    call = f"{name}({', '.join(words)})"
    call = f"{rule.wrap}({call})" if rule.wrap else call
    if not result.ok:
        return f"{call} failed: {result.error}"
    op = "" if rule.op in ("exact", "==") else f"{rule.op} "
    return f"{call} returned {show(result.value)}, expected {op}{show(case[2])}"


def _is_unicode(code: str) -> bool:
    """Whether the code can be written as UTF-8 (a lone surrogate cannot) and holds no NUL."""
    try:
        code.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in code
