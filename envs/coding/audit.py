"""What `posterior envs check coding` asks beyond the general suite: reference solutions, speed, the attack list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from envs.base import Grade, Task
from envs.coding.attacks import run_attacks
from envs.coding.sandbox import Call

if TYPE_CHECKING:
    from envs.coding.env import CodingEnv

GOLD_SHARE = 0.99
"""Least share of reference solutions that must pass: 423 of MBPP's 427 sanitized rows."""
IN_FLIGHT = 64
"""Programs graded at once."""


async def audit(env: CodingEnv, samples: int) -> dict[str, Any]:
    """Grade each task's own reference solution, then run the attack list.

    samples: reference solutions per split of generated tasks; all tasks of a file are graded.
    Returns gold_passed, gold_total, gold_failed [{id, note}], programs_per_second, attacks [per-attack report], checks.
    """
    tasks = _all_tasks(env, samples)
    gold = [task for task in tasks if task.meta.get("reference")]
    await env.pool.run("def f(): pass", [Call("f")])  # start the workers before the clock
    began = time.perf_counter()
    grades = await _grade_all(env, gold)
    seconds = time.perf_counter() - began
    failed = [{"id": t.id, "note": grade.note} for t, grade in zip(gold, grades, strict=True) if not grade.solved]
    passed = len(gold) - len(failed)
    reports = [asdict(report) for report in await run_attacks(env.pool)]
    bad = [r["name"] for r in reports if not r["contained"] or r["score"] != 0 or not r["healthy_after"]]
    checks = [
        {
            "name": "gold: reference solutions pass their own tests",
            "ok": passed >= GOLD_SHARE * len(gold),
            "detail": f"{passed} of {len(gold)}" + (f"; first failure: {failed[0]}" if failed else ""),
        },
        {
            "name": "attacks: every attack is contained, scores 0 and leaves the grader healthy",
            "ok": not bad,
            "detail": f"{len(reports) - len(bad)} of {len(reports)}" + (f"; not: {', '.join(bad)}" if bad else ""),
        },
    ]
    return {
        "gold_passed": passed,
        "gold_total": len(gold),
        "gold_failed": failed,
        "programs_per_second": len(gold) / seconds if gold else 0.0,
        "attacks": reports,
        "checks": checks,
    }


def _all_tasks(env: CodingEnv, samples: int) -> list[Task]:
    if not env.is_procedural:
        return list(env.tasks("all"))
    splits: Iterable[Iterable[Task]] = (env.tasks(split) for split in env.splits())
    return [task for split in splits for task in islice(iter(split), samples)]


async def _grade_all(env: CodingEnv, tasks: Sequence[Task]) -> list[Grade]:
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def grade(task: Task) -> Grade:
        async with slots:
            return await env.grade(task, f"```python\n{task.meta['reference']}\n```")

    return await asyncio.gather(*map(grade, tasks))
