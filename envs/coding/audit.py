"""What `posterior envs check coding` asks beyond the general suite: reference solutions, speed, the attack list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from envs.base import Grade, Task
from envs.coding.attacks import run_attacks
from envs.coding.grader import grade_program

if TYPE_CHECKING:
    from envs.coding.env import CodingEnv

GOLD_SHARE = 0.99
"""Least share of reference solutions that must pass: 423 of MBPP's 427 sanitized rows."""
PATIENCE = 10.0
"""How many times the limits a timed-out reference gets, to tell slow from wrong."""
IN_FLIGHT = 64
"""Programs graded at once."""


async def audit(env: CodingEnv, samples: int) -> dict[str, Any]:
    """Grade each task's own reference solution, then run the attack list.

    samples: reference solutions per split of generated tasks; all tasks of a file are graded.
    Returns
        gold_passed, gold_total   reference solutions that pass within the environment's limits, of those there are
        gold_failed               [{id, note}] of the others
        gold_slow                 ids of those among them that pass with PATIENCE times the limits: right, but slow
        programs_per_second       gold_total over the seconds that grading them took, all in flight together, with warm
                                  workers; the second look at the failed ones is not part of it
        attacks                   one report per attack
        checks                    the findings
    """
    tasks = _all_tasks(env, samples)
    gold = [task for task in tasks if task.meta.get("reference")]
    # Start every worker before the clock, for both kinds of tests.
    await asyncio.gather(*(env.pool.run_tests("def f(): pass", "f()", "f") for _ in range(2 * env.pool.workers)))
    began = time.perf_counter()
    grades = await _grade_all(env, gold)
    seconds = time.perf_counter() - began
    failed = [(task, grade) for task, grade in zip(gold, grades, strict=True) if not grade.solved]
    passed = len(gold) - len(failed)
    patient = [task for task, grade in failed if "timeout" in grade.note]
    slow = [
        task.id for task, grade in zip(patient, await _grade_all(env, patient, PATIENCE), strict=True) if grade.solved
    ]
    reports = [] if env.unsafe_local else [asdict(report) for report in await run_attacks(env.pool)]
    bad = [r["name"] for r in reports if not r["contained"] or r["score"] != 0 or not r["healthy_after"]]
    detail = f"{passed} of {len(gold)}"
    if failed:
        detail += f"; first failure: {failed[0][0].id}: {failed[0][1].note}"
    if slow:
        needed = f"cpu_seconds={env.limits.cpu_seconds:g} and wall_seconds={env.limits.wall_seconds:g}"
        detail += f"; right but too slow for {needed}: {', '.join(slow[:5])}"
    checks = [
        {
            "name": "gold: reference solutions pass their own tests",
            "ok": passed >= GOLD_SHARE * len(gold),
            "detail": detail,
        },
        {
            "name": "attacks: every attack is contained, scores 0 and leaves the grader healthy",
            "ok": not bad and not env.unsafe_local,
            "detail": "not run: with unsafe_local nothing contains them"
            if env.unsafe_local
            else f"{len(reports) - len(bad)} of {len(reports)}" + (f"; not: {', '.join(bad)}" if bad else ""),
        },
    ]
    return {
        "gold_passed": passed,
        "gold_total": len(gold),
        "gold_failed": [{"id": task.id, "note": grade.note} for task, grade in failed],
        "gold_slow": slow,
        "programs_per_second": len(gold) / seconds if gold else 0.0,
        "attacks": reports,
        "checks": checks,
    }


def _all_tasks(env: CodingEnv, samples: int) -> list[Task]:
    if not env.is_procedural:
        return list(env.tasks("all"))
    splits: Iterable[Iterable[Task]] = (env.tasks(split) for split in env.splits())
    return [task for split in splits for task in islice(iter(split), samples)]


async def _grade_all(env: CodingEnv, tasks: Sequence[Task], patience: float = 1.0) -> list[Grade]:
    """Grades of the tasks' reference solutions, many in flight, with `patience` times the environment's time limits."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    limits = replace(
        env.limits,
        cpu_seconds=patience * env.limits.cpu_seconds,
        wall_seconds=patience * env.limits.wall_seconds,
    )

    async def grade(task: Task) -> Grade:
        async with slots:
            answer = f"```python\n{task.meta['reference']}\n```"
            return await grade_program(task, answer, env.pool, limits=limits, performance=env.performance)

    return await asyncio.gather(*map(grade, tasks))
