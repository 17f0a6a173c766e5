"""What `posterior envs list` says of each environment, without ever failing: what is wrong with one stands in its own row."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from envs import registry
from envs.base import Env, SingleTurnEnv, Task

ENDLESS = "endless"
MOST_TASKS = 1200
MOST_SECONDS = 0.05
"""A split that is no sequence counts as endless if it still goes on after so many tasks, or so much processor time."""
UNCOUNTED = "uncounted"
COUNT_SECONDS = 8.0
"""For counting all splits of one environment: one that makes all its tasks beforehand does not hold up the list."""
SPEED_SECONDS = 1.0


def rows(speed: bool = False) -> list[dict[str, Any]]:
    """One row for every environment that has a name."""
    return [row(name, speed) for name in registry.paths()]


def row(name: str, speed: bool = False) -> dict[str, Any]:
    """{name, description, kind, grading, turns, splits {name: tasks, "endless" or "uncounted"}, steps_per_second, unusable}.

    It is constructed with its default arguments; what hinders that, or its use, stands in `unusable` ("" where nothing does), and what is
    not known then is None. speed: play it, and count steps per second.
    """
    found: dict[str, Any] = {
        **dict.fromkeys(("name", "description", "kind", "grading", "turns", "splits", "steps_per_second")),
        "unusable": "",
    }
    found["name"] = name
    try:
        cls = registry.find(name)
        found["description"] = cls.description or (inspect.getdoc(cls) or cls.__name__).split("\n")[0]
        found["kind"] = "single-turn" if issubclass(cls, SingleTurnEnv) else "multi-turn"
        found["grading"] = "exact" if cls.exact else "noisy"
        env = registry.make(name)
        found["turns"] = env.max_turns
        env.ready()
        asyncio.run(_measure(env, found, speed))
    except Exception as error:  # another's code may raise anything
        found["unusable"] = " ".join(str(error).split()) or type(error).__name__
    return found


async def _measure(env: Env, found: dict[str, Any], speed: bool) -> None:
    try:
        found["splits"] = dict.fromkeys(env.splits(), UNCOUNTED)
        with suppress(_Late), _deadline(COUNT_SECONDS):
            for split in found["splits"]:
                found["splits"][split] = _size(env, split)
        if speed:
            found["steps_per_second"] = await _speed(env)
    finally:
        await env.close()


class _Late(BaseException):
    """Not an Exception, which an environment might catch."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise _Late in what runs longer; only in the main thread, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _size(env: Env, split: str) -> int | str:
    tasks = env.tasks(split)
    if isinstance(tasks, Sequence):
        return len(tasks)
    began, count = time.process_time(), 0
    for _ in tasks:
        count += 1
        if count >= MOST_TASKS or time.process_time() - began > MOST_SECONDS:
            return ENDLESS
    return count


async def _speed(env: Env) -> float:
    """Steps per second of one instance that plays good actions where they are known; the first episode is not counted."""
    tasks = list(islice(env.tasks(env.splits()[0]), 32))
    await _play(env, tasks[0])
    steps, played, began = 0, 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < SPEED_SECONDS or not steps:
        steps += await _play(env, tasks[played % len(tasks)])
        played += 1
    return steps / spent


async def _play(env: Env, task: Task) -> int:
    """Play one episode; the number of its steps."""
    actions = good_actions(env, task)
    await env.reset(task, 0)
    for turn in range(env.max_turns):
        step = await env.step(actions[min(turn, len(actions) - 1)])
        if step.terminated or step.truncated:
            return turn + 1
    return env.max_turns


def good_actions(env: Env, task: Task) -> list[str]:
    """Actions that solve the task where they are known, otherwise one that means nothing in particular."""
    hook = getattr(env, "solution", None)
    known = hook(task) if hook is not None else None
    if known is None and task.walkthrough:
        known = [move.action for move in task.walkthrough]
    return list(known or [task.answer or "look"])


def shown(found: Sequence[dict[str, Any]], speed: bool = False) -> str:
    """The rows as a table for the terminal; what is unusable says why."""
    head = ["name", "kind", "grading", "turns", *(["steps/s"] if speed else []), "tasks"]
    lines = [head]
    for item in found:
        cells = [item["name"], item["kind"] or "–", item["grading"] or "–", str(item["turns"] or "–")]
        if speed:
            rate = item["steps_per_second"]
            cells.append("–" if rate is None else f"{rate:,.0f}")
        lines.append([*cells, ", ".join(f"{split} {size}" for split, size in (item["splits"] or {}).items())])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)] + [0]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for number, item in reversed(list(enumerate(found, 1))):
        says = [item["description"] or "", f"unusable as it stands: {item['unusable']}" if item["unusable"] else ""]
        out[number + 1 : number + 1] = ["    " + line for line in says if line]
    return "\n".join(
        [
            *out,
            f"({ENDLESS}: still going after {MOST_TASKS} tasks or {MOST_SECONDS:g} s; {UNCOUNTED}: more than {COUNT_SECONDS:g} s)",
        ]
    )
