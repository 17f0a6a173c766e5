"""Our environments for TRL's GRPOTrainer. Needs nothing of TRL: it calls what it is given.

One question, one answer:

    rewards = Rewards("punchline")
    GRPOTrainer(model=..., reward_funcs=rewards, train_dataset=Dataset.from_list(rewards.rows()), ...)

Many turns, through TRL's environment interface, in which the model acts by calling the tool `act`:

    episodes = Episodes("key_door")
    GRPOTrainer(model=..., environment_factory=episodes, train_dataset=Dataset.from_list(episodes.rows()), ...)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from envs import registry
from envs.adapters.loop import wait
from envs.base import Env, InfraError, Message, Prompt, SingleTurnEnv, Task

OPENING, CLOSING = "<think>", "</think>"
OVER = "The episode is over."


class _Tasks:
    """The first `tasks` tasks of a split, by id. name, args: of the environment, as for `posterior train`."""

    def __init__(self, name: str, args: Mapping[str, Any] | None, split: str, tasks: int) -> None:
        self.name, self.args = name, dict(args or {})
        env = self.make()
        env.ready()
        self.single_turn = isinstance(env, SingleTurnEnv)
        self.tasks: dict[str, Task] = {task.id: task for task in islice(env.tasks(split), tasks)}
        if not self.tasks:
            raise ValueError(f"environment {name}: the split {split!r} has no tasks")

    def make(self) -> Env:
        return registry.make(self.name, self.args)

    def find(self, task: str) -> Task:
        if task not in self.tasks:
            raise ValueError(f"environment {self.name} was given no task {task!r}; use its rows() as the train_dataset")
        return self.tasks[task]


class Rewards(_Tasks):
    """A reward function: the environment's grade of each completion.

    What stands behind the last `</think>` is graded; a thought that never closes is an empty answer, as it is in Posterior. An answer
    that our machinery could not grade (InfraError) is None, which TRL leaves out.
    """

    def __init__(
        self, name: str, args: Mapping[str, Any] | None = None, split: str = "train", tasks: int = 1000
    ) -> None:
        super().__init__(name, args, split, tasks)
        if not self.single_turn:
            raise ValueError(f"environment {name} is played over several turns; use envs.adapters.trl.Episodes")
        self.__name__ = name  # under which TRL logs it
        self._idle: list[Env] = []

    def rows(self) -> list[dict[str, Any]]:
        """For `datasets.Dataset.from_list`: {"prompt", "task"}."""
        return [{"prompt": _plain(task.prompt), "task": task.id} for task in self.tasks.values()]

    def __call__(self, completions: Sequence[Any], task: Sequence[str], **_: Any) -> list[float | None]:
        """completions: texts, or lists of messages. task: the rows' column of that name."""
        pairs = list(zip(map(self.find, task), map(answer_of, completions), strict=True))
        return wait(self._grade(pairs))

    async def _grade(self, pairs: Sequence[tuple[Task, str]]) -> list[float | None]:
        return list(await asyncio.gather(*(self._one(task, answer) for task, answer in pairs)))

    async def _one(self, task: Task, answer: str) -> float | None:
        env = self._idle.pop() if self._idle else self.make()
        try:
            await env.reset(task, 0)
            return float((await env.step(answer)).reward)
        except InfraError:
            return None
        finally:
            self._idle.append(env)


class Episodes(_Tasks):
    """An `environment_factory`: called, it makes an environment as TRL wants one."""

    def __init__(
        self, name: str, args: Mapping[str, Any] | None = None, split: str = "train", tasks: int = 1000
    ) -> None:
        super().__init__(name, args, split, tasks)

    def rows(self) -> list[dict[str, Any]]:
        """{"prompt", "task"}; the last message is empty, since TRL puts there what `reset` returns."""
        rows = []
        for task in self.tasks.values():
            *before, last = _chat(task.prompt)
            rows.append({"prompt": [*before, {**last, "content": ""}], "task": task.id})
        return rows

    def __call__(self) -> Episode:
        return Episode(self)


class Episode:
    """One episode at a time. TRL takes every public method but `reset` and `get_reward` for a tool."""

    def __init__(self, tasks: _Tasks) -> None:
        self._tasks = tasks
        self._env = tasks.make()
        self._turns, self._return, self._over, self._lost = 0, 0.0, True, False

    def reset(self, task: str, **_: Any) -> str:
        """Start the episode of a row; returns what is shown first."""
        found = self._tasks.find(task)
        self._turns, self._return, self._over, self._lost = 0, 0.0, False, False
        try:
            opening = wait(self._env.reset(found, 0))
        except InfraError:
            self._over = self._lost = True
            return OVER
        return _chat(found.prompt if opening.prompt is None else opening.prompt)[-1]["content"]

    def act(self, action: str) -> str:
        """Take one action in the world and see what it leads to.

        Args:
            action: What to do, in the words that the task asks for.

        Returns:
            What is seen afterwards.
        """
        if self._over:
            return OVER
        try:
            step = wait(self._env.step(str(action)))
        except InfraError:
            self._over = self._lost = True
            return OVER
        self._turns += 1
        self._return += float(step.reward)
        self._over = step.terminated or step.truncated or self._turns >= self._env.max_turns
        return f"{step.observation}\n{OVER}".strip() if self._over else step.observation

    def get_reward(self) -> float | None:
        """The episode's return so far; None where our machinery failed."""
        return None if self._lost else self._return


def answer_of(completion: Any) -> str:
    """What a completion (text, or messages) answers."""
    text = completion if isinstance(completion, str) else str(completion[-1]["content"] or "")
    _, closed, answer = text.rpartition(CLOSING)
    if not closed and OPENING in text:
        return ""
    return answer.strip()


def _chat(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]


def _plain(prompt: Prompt) -> str | list[Message]:
    return prompt if isinstance(prompt, str) else [dict(m) for m in prompt]
