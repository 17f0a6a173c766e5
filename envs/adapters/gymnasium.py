"""gymnasium, both ways: a gymnasium environment as one of ours, and any of ours as a `gymnasium.Env`.

posterior envs check gymnasium id=FrozenLake-v1 actions='[left,down,right,up]' kwargs='{is_slippery: false}'

env = AsGymnasium("key_door")
said, info = env.reset(seed=3)
said, reward, terminated, truncated, info = env.step("a")
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from envs import registry
from envs.adapters.loop import wait
from envs.adapters.seeded import SPLITS, seeded_tasks
from envs.base import Env, Grade, Observation, Prompt, Step, Task

LARGEST = 256
"""Numbers of a Box that are written out; a picture is not text."""


class Gymnasium(Env):
    """id: as `gymnasium.make` takes it ("FrozenLake-v1", "my_pkg.my_envs:Quest-v0"). kwargs: for its constructor.

    instructions: shown before the first observation. actions: names of the actions of a Discrete space, in their order (default:
    their numbers). scale: what rewards are multiplied by, so that an episode's sum lies in [-1, 1]. solved_at: the (scaled) return
    at which a task counts as solved. max_turns: default the environment's own limit, or 100. train, test: most tasks of a split.

    Observations are text (spaces.Text), whole numbers, or dicts, tuples and small boxes of them, written as JSON. An action that
    the space does not hold costs the turn and changes nothing.
    """

    description: ClassVar[str] = "a gymnasium environment with text or numbered actions (multi-turn; id=...)"

    def __init__(
        self,
        id: str,
        kwargs: Mapping[str, Any] | None = None,
        instructions: str = "",
        actions: Sequence[str] | None = None,
        scale: float = 1.0,
        solved_at: float = 1.0,
        max_turns: int | None = None,
        train: int = 1000,
        test: int = 200,
    ) -> None:
        try:
            spec = gymnasium.spec(id)
        except (gymnasium.error.Error, ImportError) as error:
            raise ValueError(f"gymnasium has no environment {id!r}: {' '.join(str(error).split())}") from error
        self.id, self.kwargs, self.instructions = id, dict(kwargs or {}), instructions
        self.names = None if actions is None else [str(name) for name in actions]
        self.scale, self.solved_at, self.sizes = float(scale), float(solved_at), (train, test)
        self.max_turns = int(max_turns or spec.max_episode_steps or 100)
        self._env: gymnasium.Env[Any, Any] | None = None
        self._total, self._turns = 0.0, 0

    def ready(self) -> None:
        """Raises ValueError if it cannot be made, or sees or takes what is not text."""
        self._render(self._open(0))
        self._hint()

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Iterable[Task]:
        """One task for each way in which an episode opens; one opening in eight is held out."""
        return seeded_tasks(
            f"gymnasium {self.id}", split, lambda seed: self._render(self._open(seed)), self._hint(), self.sizes
        )

    async def reset(self, task: Task, seed: int) -> Observation:
        """The task's own seed decides everything, so that answers to one task meet one world."""
        self._open(int(task.meta["seed"]))
        self._total, self._turns = 0.0, 0
        return Observation()

    async def step(self, action: str) -> Step:
        env = self._made()
        chosen = self._read(action, env.action_space)
        self._turns += 1
        if chosen is None:
            return self._told("That is no action here.", 0.0, False, False)
        seen, reward, terminated, truncated, _ = env.step(chosen)
        return self._told(self._render(seen), float(reward) * self.scale, terminated, truncated)

    async def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _told(self, text: str, reward: float, terminated: bool, truncated: bool) -> Step:
        self._total += reward
        truncated = truncated or (self._turns >= self.max_turns and not terminated)
        grade = None
        if terminated or truncated:
            grade = Grade(
                self._total, components={"turns": float(self._turns)}, passed=self._total >= self.solved_at - 1e-9
            )
        return Step(text, reward, bool(terminated), bool(truncated), grade=grade)

    def _made(self) -> gymnasium.Env[Any, Any]:
        if self._env is None:
            try:
                self._env = gymnasium.make(self.id, disable_env_checker=True, **self.kwargs)
            except Exception as error:  # another library's constructor may raise anything
                raise ValueError(
                    f"gymnasium environment {self.id} cannot be made: {type(error).__name__}: {error}"
                ) from error
        return self._env

    def _open(self, seed: int) -> Any:
        return self._made().reset(seed=seed)[0]

    def _render(self, seen: Any) -> str:
        if isinstance(seen, str):
            return seen
        space = self._made().observation_space
        if isinstance(space, spaces.Discrete):
            return str(int(seen))
        numbers = _plain(seen)
        if numbers is None:
            raise ValueError(
                f"gymnasium environment {self.id}: observations of {space} are not text; wrap it in a "
                "gymnasium.ObservationWrapper that writes them out"
            )
        return json.dumps(numbers)

    def _hint(self) -> str:
        """The instructions, and how to act where that is not text."""
        space = self._made().action_space
        if isinstance(space, spaces.Text):
            return self.instructions
        if not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"gymnasium environment {self.id}: actions of {space} are not text; wrap it in a gymnasium.ActionWrapper that reads them"
            )
        if self.names is not None and len(self.names) != int(space.n):
            raise ValueError(
                f"gymnasium environment {self.id} has {space.n} actions, but actions names {len(self.names)}"
            )
        told = f"Actions: {', '.join(self._names(space))}. Answer with one of them."
        return f"{self.instructions}\n{told}" if self.instructions else told

    def _names(self, space: spaces.Discrete) -> list[str]:
        return self.names or [str(int(space.start) + i) for i in range(int(space.n))]

    def _read(self, text: str, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Text):
            return text if space.contains(text) else None
        assert isinstance(space, spaces.Discrete)
        names = self._names(space)
        said = text.strip()
        return int(space.start) + names.index(said) if said in names else None


def _plain(value: Any) -> Any:
    """Numbers, texts and small arrays as JSON has them; None for anything else."""
    if isinstance(value, Mapping):
        parts = {str(key): _plain(part) for key, part in value.items()}
        return None if None in parts.values() else parts
    if isinstance(value, tuple | list):
        whole = [_plain(part) for part in value]
        return None if None in whole else whole
    if isinstance(value, np.ndarray | np.generic):
        if value.size > LARGEST or value.dtype.kind not in "biuf":
            return None
        return np.asarray(value, dtype=float).round(4).tolist() if value.dtype.kind == "f" else value.tolist()
    return value if isinstance(value, str | int | float) else None


class AnyText(spaces.Text):
    """Text of any characters; samples are printable."""

    def __init__(self, longest: int) -> None:
        super().__init__(longest, min_length=0, charset=string.printable)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class AsGymnasium(gymnasium.Env[str, str]):
    """One of our environments (`name`, `args` as for `posterior train`) with gymnasium's reset and step; text in, text out.

    split: whose tasks are played. tasks: how many of them. `reset(seed=s)` plays task s modulo their number, without a seed the
    next one, with `options={"task": i}` the i-th. The first observation is the prompt, chats written as "role: content". `info`
    holds the task's id, and at an episode's end value, solved, components and note of its grade. longest: characters of a text.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own spelling)

    def __init__(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        split: str = "train",
        tasks: int = 1000,
        longest: int = 1_000_000,
    ) -> None:
        self.env = registry.make(name, args)
        self.env.ready()
        self.tasks: list[Task] = list(islice(self.env.tasks(split), tasks))
        if not self.tasks:
            raise ValueError(f"environment {name}: the split {split!r} has no tasks")
        self.observation_space = AnyText(longest)
        self.action_space = AnyText(longest)
        self._next = self._turns = 0
        self._total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        index = (options or {}).get("task", self._next if seed is None else seed) % len(self.tasks)
        self._next, self._turns, self._total = index + 1, 0, 0.0
        task = self.tasks[index]
        opening = wait(self.env.reset(task, seed or 0))
        return written(task.prompt if opening.prompt is None else opening.prompt), {"task": task.id}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        step = wait(self.env.step(action))
        self._turns, self._total = self._turns + 1, self._total + float(step.reward)
        cut = step.truncated or (self._turns >= self.env.max_turns and not step.terminated)
        info: dict[str, Any] = dict(step.info)
        if step.terminated or cut:
            grade = step.grade or Grade(self._total)
            info |= {
                "value": grade.value,
                "solved": grade.solved,
                "components": dict(grade.components),
                "note": grade.note,
            }
        return step.observation, float(step.reward), step.terminated, cut, info

    def close(self) -> None:
        wait(self.env.close())


def written(prompt: Prompt) -> str:
    """A prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
