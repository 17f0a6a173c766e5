"""Playing episodes with every contract checked on the way: what the conformance suite (envs/check.py) is made of."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.base import Env, Grade, Observation, Step, Task


class FaultError(Exception):
    """A check found a fault; the text says which."""


@dataclass(frozen=True)
class Episode:
    """What one played episode gave: everything that must be the same when it is played again."""

    opening: str
    observations: tuple[str, ...]
    rewards: tuple[float, ...]
    solved: bool

    @property
    def total(self) -> float:
        return math.fsum(self.rewards)


class Player:
    """env: the instance that plays unless another is named. seconds: how long each step took."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.seconds: list[float] = []

    async def play(
        self, task: Task, actions: Sequence[str], env: Env | None = None, seed: int = 0, turns: int | None = None
    ) -> Episode:
        """Play `actions` (the last one repeated as long as the episode asks, for at most `turns`) and check every contract
        on the way."""
        env = env or self.env
        opening = await self.open(task, env, seed)
        return await self.go_on(task, actions, env, opening, min(env.max_turns, turns or env.max_turns))

    async def open(self, task: Task, env: Env, seed: int) -> Observation:
        opening = await env.reset(task, seed)
        if not isinstance(opening, Observation):
            raise FaultError(f"reset() returned {type(opening).__name__}, not Observation (task {task.id!r})")
        return opening

    async def go_on(
        self, task: Task, actions: Sequence[str], env: Env, opening: Observation | None, turns: int
    ) -> Episode:
        """The rest of an episode, for at most `turns`; its return is checked where the whole of it is seen (`opening`)."""
        observations: list[str] = []
        rewards: list[float] = []
        solved = False
        for turn in range(turns):
            step = await self.step(task, actions[min(turn, len(actions) - 1)], env)
            observations.append(step.observation)
            rewards.append(float(step.reward))
            if step.terminated or step.truncated:
                solved = step.grade.solved if step.grade else math.fsum(rewards) >= 1.0
                break
        else:
            if env.max_turns == 1:
                raise FaultError(f"the one step of task {task.id!r} did not end the episode (terminated or truncated)")
        if opening is not None and abs(math.fsum(rewards)) > 1.0 + 1e-6:
            raise FaultError(
                f"task {task.id!r}: an episode's rewards sum to {math.fsum(rewards):g}; scale them to [-1, 1]"
            )
        return Episode(repr(opening and opening.prompt), tuple(observations), tuple(rewards), solved)

    async def step(self, task: Task, action: str, env: Env) -> Step:
        began = time.perf_counter()
        step = await env.step(action)
        self.seconds.append(time.perf_counter() - began)
        well_formed_step(step, task)
        return step


def well_formed(task: Any, split: str) -> None:
    if not isinstance(task, Task):
        raise FaultError(f"tasks({split!r}) yields {type(task).__name__}, not Task")
    if not isinstance(task.id, str) or not task.id:
        raise FaultError(f"split {split!r}: a task's id is {task.id!r}; it must be a string and not empty")
    if not isinstance(task.prompt, str):
        for message in task.prompt:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise FaultError(f"task {task.id!r}: a chat message needs role and content, found {message!r:.80}")
    if not prompt_text(task).strip():
        raise FaultError(f"task {task.id!r}: the prompt is empty")
    if task.answer is not None and not isinstance(task.answer, str):
        raise FaultError(f"task {task.id!r}: the answer is {type(task.answer).__name__}; it must be a string or None")
    try:
        pickle.dumps(task)
    except Exception as error:  # pickle raises many types
        raise FaultError(f"task {task.id!r} cannot be pickled ({error}); keep its meta to plain data") from error


def well_formed_step(step: Any, task: Task) -> None:
    if not isinstance(step, Step):
        raise FaultError(f"step() returned {type(step).__name__}, not Step (task {task.id!r})")
    if not isinstance(step.observation, str):
        raise FaultError(f"task {task.id!r}: an observation is {type(step.observation).__name__}, not text")
    _finite(step.reward, f"task {task.id!r}: the reward")
    grade = step.grade
    if grade is None:
        return
    if not isinstance(grade, Grade):
        raise FaultError(f"task {task.id!r}: the grade is {type(grade).__name__}, not Grade")
    if not -1.0 <= _finite(grade.value, f"task {task.id!r}: the grade") <= 1.0:
        raise FaultError(f"task {task.id!r}: the grade {grade.value:g} lies outside [-1, 1]; scale it")
    for name, value in grade.components.items():
        _finite(value, f"task {task.id!r}: the grade's component {name!r}")


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FaultError(f"{what} is {value!r}; it must be a finite number")
    return float(value)


def alike(a: Episode, b: Episode) -> bool:
    """Equal up to 1 % in the rewards, since work counts may vary by that much."""
    if (a.opening, a.observations, a.solved) != (b.opening, b.observations, b.solved):
        return False
    return len(a.rewards) == len(b.rewards) and all(map(near, a.rewards, b.rewards))


def near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0.01, abs_tol=0.01)


def prompt_text(task: Task) -> str:
    return task.prompt if isinstance(task.prompt, str) else "\n".join(str(m["content"]) for m in task.prompt)


def short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:30]!r}... ({len(text)} characters)"
