"""Speed and memory of every built-in environment, beside the engine that it wraps.

    python -m benchmarks.environments --json [--quick] [--only NAME ...] [--story FILE]

Of each environment, alone in a process of its own, playing good episodes over and over:

steps_per_second, reset_ms: of `Env.step` and `Env.reset`. memory_mb: what making it and playing adds, child processes (a Java machine, a
sandbox) included.
steps_per_second_vs_engine: ours over the engine's, in turns on the same actions. The engine is Jericho's FrotzEnv.step, TextWorld-Express's
own step, a bare coqtop that is sent each tactic and `Show.` (proof_steps; the check after the last tactic is made once and left out of
both), or for a single-turn environment its bare `grade`; of one that is all our own (key_door) there is none. Met at 0.8, or where
ours adds at most 100 microseconds a step (overhead_us).

story plays --story, by default a generated game as if it were anybody's file. What cannot be made here is named, with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import inspect
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import Measure, main
from envs import registry
from envs.base import Env, SingleTurnEnv, Task

ROUNDS = 6
"""Turns that ours and the engine take, at least; every figure is the median of the turns."""
MULTI_TURN_TASKS = 5


@dataclass(frozen=True)
class Figures:
    """seconds: of one step of ours and of the engine's; None where there is no engine."""

    step: float
    engine: float | None
    reset: float
    memory_mb: float

    @property
    def overhead(self) -> float:
        return self.step - (self.engine or 0.0)


Play = Callable[[Task, Sequence[str]], Awaitable[tuple[int, float, float]]]
"""Plays an episode: (steps, seconds of them, seconds of the reset)."""


def measure(name: str, args: dict[str, Any], seconds: float) -> Figures:
    """Figures of one environment, in this process; call it in a fresh one."""
    return asyncio.run(_measure(name, args, seconds))


async def _measure(name: str, args: dict[str, Any], seconds: float) -> Figures:
    env = registry.make(name, args)
    env.ready()
    tasks = list(islice(env.tasks(env.splits()[0]), MULTI_TURN_TASKS))
    episodes = [(task, _actions(env, task)) for task in tasks]
    engine = _engine(name, env)
    players = [_ours(env)] + ([engine] if engine else [])
    for player in players:
        for task, actions in episodes:
            await player(task, actions)
    rounds: list[list[float]] = [[] for _ in players]
    resets: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(resets) < ROUNDS:
        for player, times in zip(players, rounds, strict=True):
            played = [await player(task, actions) for task, actions in episodes]
            times.append(sum(stepping for _, stepping, _ in played) / sum(steps for steps, _, _ in played))
            if player is players[0]:
                resets.append(statistics.fmean(resetting for _, _, resetting in played))
    each = [statistics.median(times) for times in rounds]
    await env.close()
    return Figures(each[0], each[1] if engine else None, statistics.median(resets), 0.0)


def memory_of(name: str, args: dict[str, Any]) -> float:
    """MiB that an environment adds to a process when it is made and plays, no engine beside it."""

    async def play() -> float:
        before = _memory()
        env = registry.make(name, args)
        player = _ours(env)
        for task in islice(env.tasks(env.splits()[0]), MULTI_TURN_TASKS):
            await player(task, _actions(env, task))
        added = _memory() - before
        await env.close()
        return added

    return asyncio.run(play())


def _ours(env: Env) -> Play:
    async def play(task: Task, actions: Sequence[str]) -> tuple[int, float, float]:
        began = time.perf_counter()
        await env.reset(task, 0)
        ready = time.perf_counter()
        steps = 0
        for action in actions:
            step = await env.step(action)
            steps += 1
            if step.terminated or step.truncated:
                break
        return steps, time.perf_counter() - ready, ready - began

    return play


def _engine(name: str, env: Env) -> Play | None:
    """The bare engine behind an environment."""
    if isinstance(env, SingleTurnEnv):
        return _grader(env)
    if name in ("inform", "story", "textworld"):
        return _frotz(env)
    if name == "textworld_express":
        return _express(env)
    if name == "proof_steps":
        return _coqtop(env)
    return None


def _grader(env: SingleTurnEnv) -> Play:
    async def play(task: Task, actions: Sequence[str]) -> tuple[int, float, float]:
        began = time.perf_counter()
        grade = env.grade(task, actions[0])
        if inspect.isawaitable(grade):
            await grade
        return 1, time.perf_counter() - began, 0.0

    return play


def _frotz(env: Env) -> Play:
    from jericho import FrotzEnv

    from envs.adventures import store

    engines: dict[str, Any] = {}

    async def play(task: Task, actions: Sequence[str]) -> tuple[int, float, float]:
        kind = type(env).__name__.lower()
        ending = "z8" if kind == "textworld" else "z5"
        story = task.meta.get("path") or str(store.folder(kind) / f"{task.meta['key']}.{ending}")
        if story not in engines:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                engines[story] = FrotzEnv(story, seed=1000)
        engine = engines[story]
        began = time.perf_counter()
        engine.reset()
        ready = time.perf_counter()
        for action in actions:
            engine.step(action)
        return len(actions), time.perf_counter() - ready, ready - began

    return play


def _express(env: Env) -> Play:
    from textworld_express import TextWorldExpressEnv

    engine = TextWorldExpressEnv(envStepLimit=10_000)
    engine.load(env.kind, env.settings)  # type: ignore[attr-defined]

    async def play(task: Task, actions: Sequence[str]) -> tuple[int, float, float]:
        began = time.perf_counter()
        engine.reset(seed=task.meta["seed"], gameFold=task.meta["fold"])
        ready = time.perf_counter()
        for action in actions:
            engine.step(action)
        return len(actions), time.perf_counter() - ready, ready - began

    return play


def _coqtop(env: Env) -> Play:
    """Coq's own read-eval-print loop on a pipe, without a sandbox, limits or a reading of the goals."""
    from envs.proofs.coqtop import COQTOP

    header = env.source.header  # type: ignore[attr-defined]
    engine = subprocess.Popen(
        [COQTOP, "-q", "-emacs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert engine.stdin
    assert engine.stdout
    atexit.register(engine.kill)

    def send(sentences: str, prompts: int) -> int:
        """Wait for so many prompts; the number of the state that the last one names."""
        engine.stdin.write(f"{sentences}\n".encode())  # type: ignore[union-attr]
        engine.stdin.flush()  # type: ignore[union-attr]
        out = b""
        while out.count(b"</prompt>") < prompts or not out.endswith(b"</prompt>"):
            out += os.read(engine.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
        return int(out.rpartition(b"<prompt>")[2].split(b"|")[0].split(b"<")[1])

    send("", 1)
    opening = [*re.split(r"(?<=\.)\s+", header.strip()), "Set Silent.", "Set Printing Width 1000."]
    base = send("\n".join(opening), len(opening))

    async def play(task: Task, actions: Sequence[str]) -> tuple[int, float, float]:
        began = time.perf_counter()  # ours puts the statement to Coq at the first step, too
        send(f"BackTo {base}.\nTheorem proof : {task.meta['statement']} .", 2)
        for action in actions:
            send(f"{action}\nShow.", 2)
        return len(actions), time.perf_counter() - began, 0.0

    return play


def _actions(env: Env, task: Task) -> list[str]:
    """A good episode of a task, or one word where none is known."""
    hook = getattr(env, "solution", None)
    if hook is not None and (known := hook(task)):
        return list(known)
    return [move.action for move in task.walkthrough or ()] or [task.answer or "hello"]


def _memory() -> float:
    """MiB of this process and its children."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def arguments(name: str, folder: Path, story: str | None) -> dict[str, Any]:
    """What an environment is measured with, where its defaults do not do."""
    if name == "answers":
        file = folder / "answers.jsonl"
        file.write_text("".join(json.dumps({"question": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(50)))
        return {"train": str(file)}
    if name == "graded":
        file = folder / "graded.jsonl"
        rows = ({"prompt": f"question {i}", "answer": f"answer {i}", "score": i % 5} for i in range(50))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"file": str(file)}
    if name == "story":
        if story is not None:
            return {"path": story, "walkthrough": ["look", "inventory", "wait", "north", "south"] * 4}
        return _generated(folder)
    if name == "textworld":
        return {"games": {"train": 5, "test": 5}}
    return {}


def _generated(folder: Path) -> dict[str, Any]:
    """A game of our own as a story file."""
    from envs.adventures import store

    env = registry.make("inform", {"style": "prose"})
    env.ready()
    task = next(iter(env.tasks("train")))
    path = folder / "generated.z5"
    path.write_bytes((store.folder("inform") / f"{task.meta['key']}.z5").read_bytes())
    return {
        "path": str(path),
        "goal": task.meta["top"],
        "walkthrough": [move.action for move in task.walkthrough or ()],
    }


def run(args: argparse.Namespace) -> list[Measure]:
    seconds = 1.0 if args.quick else 6.0
    names = args.only or list(registry.BUILTIN)
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                given = arguments(name, Path(folder), args.story)
                figures = replace(_apart(measure, name, given, seconds), memory_mb=_apart(memory_of, name, given))
            except Exception as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
                continue
            measures += _listed(name, figures)
    return measures


def _apart(job: Callable[..., Any], *args: Any) -> Any:
    """The job's result, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, *args).result()


def _listed(name: str, figures: Figures) -> list[Measure]:
    ours = 1.0 / figures.step
    out = [
        Measure(f"{name}: steps_per_second", ours, "1/s"),
        Measure(f"{name}: reset_ms", 1e3 * figures.reset, "ms"),
        Measure(f"{name}: memory_mb", figures.memory_mb, "MiB"),
        Measure(f"{name}: overhead_us", 1e6 * figures.overhead, "us"),
    ]
    cheap = figures.overhead <= 100e-6
    if figures.engine is None:
        return [*out[:3], replace(out[3], target=100.0, at_most=True)]
    ratio = figures.engine / figures.step
    met = ratio >= 0.8 or cheap
    out.append(Measure(f"{name}: steps_per_second_vs_engine", ratio, "", 1.0 / figures.engine, target=0.8, met=met))
    return out


if __name__ == "__main__":
    sys.exit(
        main(
            __doc__,
            run,
            ("--only", {"nargs": "+", "metavar": "NAME", "help": "environments to measure (default: all)"}),
            ("--story", {"metavar": "FILE", "help": "a story file for the environment story"}),
        )
    )
