"""The environment interface: tasks, episodes and grades, text in and text out.

An environment is one class. `tasks(split)` yields the questions; one *instance* plays one episode at a time, inside an
environment worker process (never in the collector), and is reset between episodes. A single-turn environment subclasses
`SingleTurnEnv` and writes only `tasks` and `grade`; a multi-turn one subclasses `Env` and writes `reset` and `step`.

The environment sees the *action* text only, never the thought that led to it. An answer that never came (the token budget
ended inside the thought) arrives as an empty string.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

Message = dict[str, str]
"""One chat message: {"role": "system" | "user" | "assistant", "content": text}."""

Prompt = str | Sequence[Message]
"""Raw text (given to the model as it stands) or chat messages (rendered with the model's chat template)."""


class InfraError(Exception):
    """The machinery failed, not the candidate: retried, then the trace is masked and counted. Never a grade of 0."""


@dataclass(frozen=True)
class Move:
    """One turn of a good episode. steps: the written reasoning before `action`, where known. observation: what the environment answers,
    "" at the episode's end."""

    action: str
    observation: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One question.

    id: unique within an environment's split and stable between runs.
    prompt: chat messages, or a string for raw text.
    answer: a good answer y*, where one is known.
    steps: the written reasoning that leads to `answer`, one string a step, where known.
    meta: whatever the environment needs to grade it (picklable; never shown to the model).
    walkthrough: of a multi-turn task, the turns of a good episode, where known.
    """

    id: str
    prompt: Prompt
    answer: str | None = None
    steps: tuple[str, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    walkthrough: tuple[Move, ...] | None = None


@dataclass(frozen=True)
class Grade:
    """How good an answer is.

    value: the scalar that training maximises; finite, by convention in [0, 1].
    components: named parts of the grade, shown in reports (share of tests passed, format, work ratio, ...).
    exact: True if the grader makes no error (unit tests, proofs, games); False for learned or noisy graders.
    note: a short text for people (which test failed, which exception), never shown to the model.
    passed: whether the task counts as solved, for pass@k; by default `value` at 1.
    """

    value: float
    components: dict[str, float] = field(default_factory=dict)
    exact: bool = True
    note: str = ""
    passed: bool | None = None

    @property
    def solved(self) -> bool:
        return self.value >= 1.0 if self.passed is None else self.passed


@dataclass(frozen=True)
class Observation:
    """What an episode opens with. prompt: shown to the model first; None means the task's own prompt."""

    prompt: Prompt | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What one action led to.

    observation: text shown to the model before its next action (ignored when the episode is over).
    reward: reward of this step; an episode's return is their sum.
    terminated: the episode reached its own end. truncated: it was cut (step limit).
    grade: set by the environment when it wants components, a note or its own pass criterion recorded.
    """

    observation: str
    reward: float
    terminated: bool
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    grade: Grade | None = None


class Env(ABC):
    """One environment; an instance is one episode at a time."""

    description: ClassVar[str] = ""
    """One line for `posterior envs list`."""
    exact: ClassVar[bool] = True
    """Whether its grades make no error; False for learned or noisy graders, as in `Grade.exact`."""
    max_turns: int = 1
    """Actions after which the rollout stops asking; multi-turn environments raise it."""

    @abstractmethod
    def tasks(self, split: str) -> Iterable[Task]:
        """The tasks of a split ("train", "test", or others the environment names in `splits`).

        A `Sequence` is finite and reshuffled every epoch from the run's seed. Any other iterable is streamed in its own
        order and may be endless; it must yield the same tasks every time it is started. Raises ValueError for an unknown split.
        """

    def splits(self) -> Sequence[str]:
        """Names that `tasks` accepts; the first one is trained on, the others are held out."""
        return ("train", "test")

    def words(self) -> Sequence[str]:
        """All words of prompts and answers, where an environment is made of few: a model from nothing (model.path: scratch) speaks
        these."""
        return ()

    def references(self, split: str, tasks: int) -> dict[str, float]:
        """Figures that need no model and that results are read beside, over the first so many tasks of a split: what a shortcut reaches,
        the entropy of good answers. Optional; {} says there are none."""
        return {}

    @abstractmethod
    async def reset(self, task: Task, seed: int) -> Observation:
        """Start an episode of `task`; nothing of an earlier episode may remain visible."""

    @abstractmethod
    async def step(self, action: str) -> Step:
        """Apply the model's action text. Hostile input must not raise: it gets a low reward. `InfraError` is for our faults."""

    def ready(self) -> None:  # noqa: B027 (optional hook)
        """Raise, in one sentence that says what to install or give, when something the environment needs is missing.

        Asked once before a run starts anything.
        """

    async def close(self) -> None:  # noqa: B027 (optional hook)
        """Release what the instance holds; called once when its worker stops."""

    def snapshot(self) -> bytes:
        """The state of the running episode, for branching. Optional."""
        raise TypeError(f"{type(self).__name__} does not support snapshots")

    def restore(self, state: bytes) -> None:
        """Return to a state given by `snapshot`. Optional."""
        raise TypeError(f"{type(self).__name__} does not support snapshots")


class GradeExpected(TypeError):
    """`grade` returned something else."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"grade() must return envs.base.Grade, not {type(value).__name__} ({value!r:.60})")


class SingleTurnEnv(Env):
    """An environment whose episodes are one question and one answer: write `tasks` and `grade`."""

    __task: Task | None = None  # two underscores: a subclass may well have a `_task` of its own

    @abstractmethod
    def grade(self, task: Task, text: str) -> Grade | Awaitable[Grade]:
        """Grade the answer `text` to `task`; may be a coroutine. Must not raise on hostile text."""

    async def reset(self, task: Task, seed: int) -> Observation:
        self.__task = task
        return Observation()

    async def step(self, action: str) -> Step:
        if self.__task is None:
            raise RuntimeError("step() before reset()")
        grade = self.grade(self.__task, action)
        if inspect.isawaitable(grade):
            grade = await grade
        if not isinstance(grade, Grade):  # a Step could not hold it
            raise GradeExpected(grade)
        return Step(observation="", reward=grade.value, terminated=True, grade=grade)
