"""What PPO and its peer play in `benchmarks.ppo_vs_rllib`: a three-state decision process and short texts, with known optima.

Every episode has the same number of decisions in both, so that equal numbers of episodes are equal numbers of samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.base import Env, Observation, Step, Task
from envs.noisy_raters import NoisyRaters, on_scale
from envs.registry import make

STATES = ("A", "B", "C")
CRUMB, PRIZE = 0.2, 1.0
MOVES = 6
DISCOUNT = 0.9
TOPICS = 4


class Ring(Env):
    """From A "right" leads to B, from B to C, from C back to A, and that last move earns 1. In A "left" stays and earns 0.2, in B it
    leads back to A, in C it stays. Any other word stays. The world never ends; it is cut after six moves.

    Going right for ever is the best policy at a discount of 0.9: it is worth 2.99 in A, 3.32 in B and 3.69 in C, and earns 2 in six
    moves from everywhere. Who takes the cut for an end learns to collect crumbs before it.
    """

    description = "three states in a ring, a crumb now or a prize three moves away; cut, not ended"
    max_turns = MOVES

    def __init__(self) -> None:
        self.at = 0

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"{split}{i}", STATES[i % 3]) for i in range(96)]

    def words(self) -> Sequence[str]:
        return (*STATES, "left", "right")

    async def reset(self, task: Task, seed: int) -> Observation:
        self.at = STATES.index(str(task.prompt))
        return Observation()

    async def step(self, action: str) -> Step:
        reward = 0.0
        if action == "right":
            reward = PRIZE if self.at == 2 else 0.0
            self.at = (self.at + 1) % 3
        elif action == "left":
            reward = CRUMB if self.at == 0 else 0.0
            self.at = 0 if self.at == 1 else self.at
        return Step(STATES[self.at], reward, terminated=False)


def ring_values() -> dict[str, float]:
    """The best discounted return from each state of `Ring`, by going right for ever."""
    last = PRIZE / (1 - DISCOUNT**3)
    return {"A": DISCOUNT**2 * last, "B": DISCOUNT * last, "C": last}


@dataclass(frozen=True)
class World:
    """One comparison. env, args: as `envs.registry` knows it. turns, tokens: of an episode and of a turn. best: the expected return of the
    best policy. episodes: of a batch. updates: batches of a run, and of a run that only chooses a learning rate."""

    name: str
    env: str
    best: float
    discount: float
    turns: int = 1
    tokens: int = 1
    args: dict[str, Any] = field(default_factory=dict)
    episodes: int = 48
    updates: tuple[int, int] = (30, 15)
    entropy: float = 0.01

    @property
    def decisions(self) -> int:
        """Of an episode."""
        return self.turns * self.tokens

    def make(self) -> Env:
        return make(self.env, self.args)

    def tasks(self) -> list[Task]:
        """One for each episode of a batch; every batch plays the same ones."""
        return list(itertools.islice(self.make().tasks("train"), self.episodes))


def ring() -> World:
    return World("ring", "benchmarks.ppo_worlds:Ring", best=2.0, discount=DISCOUNT, turns=MOVES)


def texts() -> World:
    """Four words about one of four topics, graded by the testbed's gold score. The end token is a word like any other here, so an answer
    always has four tokens; one that is not four words of the vocabulary gets the lowest grade."""
    env = NoisyRaters(topics=TOPICS)
    rows = np.stack(np.meshgrid(*[np.arange(env.count)] * env.length, indexing="ij"), -1).reshape(-1, env.length)
    top = [float(on_scale(env.gold(rows, topic)).max()) for topic in range(TOPICS)]
    world = long_texts(env.length, episodes=64, updates=(50, 25))
    return replace(world, name="texts", best=float(np.mean([top[task.meta["topic"]] for task in world.tasks()])))


def long_texts(length: int, episodes: int, updates: tuple[int, int] = (5, 5)) -> World:
    """The same with more words, for the clock: their best grade is not known."""
    args = {"topics": TOPICS, "length": length}
    return World(
        f"texts{length}", "noisy_raters", float("nan"), 1.0, 1, length, args, episodes=episodes, updates=updates
    )
