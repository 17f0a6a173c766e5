"""Are generated adventures solvable? Every one is made anew and played by its own walkthrough to the full score, through Env.step.

    python -m benchmarks.adventures --json [--quick] [--games 5000]

Games are spread over `LEVELS`, seven of eight from the training split, in a cache of their own that is thrown away. shared_openings:
prompts that occur in both splits. ms_per_game: drawing, compiling, proving and playing one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.common import Measure, main
from envs.adventures.inform import Inform
from envs.base import Task

LEVELS: dict[str, dict[str, Any]] = {
    "small": {
        "difficulty": {"rooms": [2, 4], "treasures": [1, 2], "doors": [0, 1], "chests": [0, 1], "scored_rooms": 0}
    },
    "usual": {},
    "dark": {"difficulty": {"rooms": [4, 7], "doors": [0, 2], "chests": [0, 2], "dark": [1, 3], "loops": [0, 2]}},
    "prose": {"style": "prose", "difficulty": {"rooms": [4, 7], "doors": [0, 2], "dark": [0, 2]}},
    "large": {
        "difficulty": {
            "rooms": [10, 16],
            "treasures": [3, 6],
            "doors": [2, 5],
            "chests": [2, 5],
            "dark": [0, 4],
            "scored_rooms": [0, 4],
        },
        "max_steps": 200,
    },
}


@dataclass(frozen=True)
class Figures:
    """steps: of all walkthroughs together. shared_openings: prompts that occur in both splits."""

    games: int
    solved: int
    steps: int
    shared_openings: int
    seconds: float


def prove(level: str, games: int) -> Figures:
    """Play so many games of a level."""
    began = time.perf_counter()
    held_out = max(1, games // 8)
    counts = {"train": games - held_out, "test": held_out}
    env = Inform(games=counts, **LEVELS[level])
    solved = steps = 0
    openings: dict[str, set[str]] = {split: set() for split in counts}
    with _cache():
        for split in counts:
            for task in env.tasks(split):
                openings[split].add(str(task.prompt))
                steps += len(task.walkthrough or ())
                solved += asyncio.run(_solves(env, task))
    shared = len(openings["train"] & openings["test"])
    return Figures(games, solved, steps, shared, time.perf_counter() - began)


async def _solves(env: Inform, task: Task) -> bool:
    """Whether the walkthrough's last command, and no earlier one, ends the episode solved."""
    await env.reset(task, 0)
    moves = task.walkthrough or ()
    for move in moves[:-1]:
        if (await env.step(move.action)).terminated:
            return False
    last = await env.step(moves[-1].action)
    return last.terminated and last.grade is not None and last.grade.solved


@contextmanager
def _cache() -> Iterator[None]:
    """A cache for the time being."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def run(args: argparse.Namespace) -> list[Measure]:
    each = -(-(50 if args.quick else args.games) // len(LEVELS))
    measures = []
    for level in LEVELS:
        figures = prove(level, each)
        print(f"{level}: {figures}", file=sys.stderr, flush=True)
        measures += [
            Measure(f"{level}: games_solved", figures.solved, "games", baseline=figures.games, target=figures.games),
            Measure(f"{level}: shared_openings", figures.shared_openings, "", target=0, at_most=True),
            Measure(f"{level}: steps_per_walkthrough", figures.steps / figures.games),
            Measure(f"{level}: ms_per_game", 1e3 * figures.seconds / figures.games, "ms"),
        ]
    return measures


if __name__ == "__main__":
    sys.exit(main(__doc__, run, ("--games", {"type": int, "default": 5000, "help": "in all (default 5000)"})))
