"""Performance as part of a grade: deterministic work counts, compared with a fast and a slow reference solution.

A task that asks for it carries meta["performance"]:

    sizes   three or more input sizes, ascending
    args    [args: list, kwargs: dict] per size, hidden from the candidate
    fast    source of a solution of the wanted complexity; its results are the expected ones
    slow    source of a right but naive solution

Candidate and references are measured by the same counter (envs/coding/work.py), each call in a fresh child, so nothing
cached by an earlier call helps and work done while the program loads is counted. At each size

    score = log(slow / candidate) / log(slow / (TOLERANCE fast)), clipped to [0, 1],

and the work score is the mean over sizes. The mean of log ratios is chosen over a fitted scaling exponent because it is
monotone: less work at every size never scores less. The exponents are told in the note.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from envs.base import InfraError, Task
from envs.coding.compare import identical, show
from envs.coding.sandbox import Call, CallResult, Limits

if TYPE_CHECKING:
    from envs.coding.sandbox import SandboxPool

TOLERANCE = 1.1
"""A candidate within this factor of the fast reference gets the full score; far above the counter's 1 % noise."""


@dataclass(frozen=True)
class Work:
    """right: all results that came were right. score: in [0, 1]. note: work counts and exponents, in words."""

    right: bool
    score: float
    note: str


@dataclass(frozen=True)
class _Reference:
    expected: list[Any]
    fast: list[int]
    slow: list[int]


_references: dict[str, _Reference] = {}


async def measure_work(task: Task, code: str, pool: SandboxPool, limits: Limits | None = None) -> Work:
    """Measure `code` at every size of `task` and score it against the references (measured once per process and task).

    A size that runs out of time or memory scores 0 there; a wrong result or an exception makes the program wrong.
    Raises ValueError if the references disagree, InfraError for faults of the sandbox.
    """
    limits = limits or Limits()
    reference = await _reference(task, pool, limits)
    sizes: Sequence[int] = task.meta["performance"]["sizes"]
    # Counting may be 20 times slower than running, so only what is right and finishes uncounted is counted.
    results = await pool.run(code, _calls(task), limits, fresh=True)
    fault = _fault(sizes, results, reference.expected)
    if not fault:
        finished = [index for index, result in enumerate(results) if result.ok]
        for index, counted in zip(finished, await _measure(task, code, pool, limits, finished), strict=True):
            results[index] = counted
        fault = _fault(sizes, results, reference.expected)
    if fault:
        return Work(False, 0.0, fault)
    scores = [
        _score(_count(result), fast, slow) if result.ok else 0.0
        for result, fast, slow in zip(results, reference.fast, reference.slow, strict=True)
    ]
    return Work(True, sum(scores) / len(scores), _describe(sizes, results, reference))


def _fault(sizes: Sequence[int], results: Sequence[CallResult], expected: Sequence[Any]) -> str:
    """The first wrong result or exception, in words; "" if there is none. Running out of time or memory is no fault."""
    for size, result, wanted in zip(sizes, results, expected, strict=True):
        if result.ok and not identical(result.value, wanted):
            return f"at size {size} it returned {show(result.value)}, expected {show(wanted)}"
        if not result.ok and result.error not in ("timeout", "memory"):
            return f"at size {size} it failed: {result.error}"
    return ""


def _score(candidate: int, fast: int, slow: int) -> float:
    target = TOLERANCE * fast
    if slow <= target:
        raise ValueError(f"the slow reference ({slow}) does no more work than the fast one ({fast}); use larger sizes")
    return min(1.0, max(0.0, math.log(slow / candidate) / math.log(slow / target)))


async def _reference(task: Task, pool: SandboxPool, limits: Limits) -> _Reference:
    performance = task.meta["performance"]
    text = "\0".join([performance["fast"], performance["slow"], task.meta["entry_point"], repr(performance["args"])])
    key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
    if key not in _references:
        # References are trusted to be right, not to be quick: the slow one may need longer than a candidate is given.
        patient = replace(limits, cpu_seconds=4 * limits.cpu_seconds, wall_seconds=4 * limits.wall_seconds)
        fast = await _measure(task, performance["fast"], pool, patient)
        slow = await _measure(task, performance["slow"], pool, patient)
        for name, results in (("fast", fast), ("slow", slow)):
            for size, result, wanted in zip(performance["sizes"], results, fast, strict=True):
                if not result.ok:
                    raise ValueError(f"task {task.id}: the {name} reference failed at size {size}: {result.error}")
                if not identical(result.value, wanted.value):
                    raise ValueError(f"task {task.id}: the fast and slow references disagree at size {size}")
        counts = [[_count(result) for result in results] for results in (fast, slow)]
        _references[key] = _Reference([result.value for result in fast], *counts)
    return _references[key]


def _calls(task: Task) -> list[Call]:
    return [Call(task.meta["entry_point"], tuple(args), dict(kw)) for args, kw in task.meta["performance"]["args"]]


async def _measure(
    task: Task, code: str, pool: SandboxPool, limits: Limits, which: Sequence[int] | None = None
) -> list[CallResult]:
    calls = _calls(task)
    chosen = calls if which is None else [calls[index] for index in which]
    return await pool.run(code, chosen, limits, fresh=True, measure=True) if chosen else []


def _count(result: CallResult) -> int:
    if not result.work:
        raise InfraError("the sandbox counted no work for a call that returned")
    return result.work


def _describe(sizes: Sequence[int], results: Sequence[CallResult], reference: _Reference) -> str:
    parts = []
    for name, counts in (
        ("candidate", [result.work if result.ok else None for result in results]),
        ("fast", reference.fast),
        ("slow", reference.slow),
    ):
        shown = ", ".join("out of time or memory" if count is None else f"{count:,}" for count in counts)
        exponent = _exponent(sizes, [count for count in counts if count])
        parts.append(f"{name} {shown}" + (f" (grows as n^{exponent:.2f})" if exponent is not None else ""))
    return "work: " + "; ".join(parts)


def _exponent(sizes: Sequence[int], counts: Sequence[int]) -> float | None:
    """Least-squares slope of log work over log size."""
    if len(counts) != len(sizes) or len(set(sizes)) < 2:
        return None
    xs, ys = [math.log(size) for size in sizes], [math.log(count) for count in counts]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
