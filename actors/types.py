"""The messages between actors, and the interface that methods see of them. Plain data: importing this starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from envs.base import Task
from models.trace import Trace


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. temperature 0 is greedy. top_p 1 and top_k 0 keep the whole vocabulary. max_tokens: of one turn.

    stop_ids: token ids that end a sequence beside the model's own end-of-sequence ids. latents: latent steps before the first token of
    each turn (the most, where stopping is a sampled decision). latents_from: "task" takes as many as the task has written steps, and one
    for the answer, at most `latents`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop_ids: tuple[int, ...] = ()
    latents: int = 0
    latents_from: Literal["fixed", "task"] = "fixed"

    def latents_for(self, task: Task) -> int:
        """Latent steps before an answer to this task."""
        if self.latents_from == "task":
            return min(self.latents, len(task.steps or ()) + 1)
        return self.latents

    def but(self, **changes: Any) -> SamplingParams:
        return replace(self, **changes)


CUT = "cut"
"""`Trace.meta`: the episode did not end, it was cut: by the number of turns, the environment's step limit or the context's length."""
ENTROPY = "entropy"
"""`Trace.meta`: the policy's entropies are wanted too; `Trace.scores`: they are here, in nats."""


@dataclass(frozen=True)
class ProbePlan:
    """What `Algorithm.probe` draws for each held-out task: so many thoughts, and of how many the anchoring is measured
    (`algorithms.anchoring`). step_mark: the text that ends a step of a thought."""

    thoughts: int
    anchored: int = 0
    step_mark: str = "\n\n"


@dataclass(frozen=True)
class Prefix:
    """What the model reads before it samples: int32[P] tokens and uint8[P] kinds (LATENT positions are recomputed), the
    seed of the sampled decisions, and the noise seed of stochastic latents. group: requests of one group share it."""

    token: np.ndarray
    kind: np.ndarray
    seed: int
    eps_seed: int | None = None
    group: str = ""


@dataclass
class Sample:
    """What the model emitted after a prefix. n positions.

    token: int32[n]. logprob: float32[n] (behaviour; NaN at latent positions without a sampled decision).
    version: int32[n]. latent: bool[n], True at continuous steps. finish: "stop" or "length". seconds: in the sampler.
    """

    token: np.ndarray
    logprob: np.ndarray
    version: np.ndarray
    latent: np.ndarray
    finish: str
    seconds: float = 0.0


@dataclass
class Group:
    """The traces of one task that are compared with each other; the unit of admission, filtering and credit.

    index: position in the run's admission order (unique, never reused). admitted: policy version at admission.
    """

    task: Task
    traces: list[Trace]
    index: int = 0
    admitted: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> list[Trace]:
        """The traces that the machinery did not fail on."""
        return [trace for trace in self.traces if not trace.masked]


class Actors(Protocol):
    """What a method may ask of the running actors, from inside `Algorithm.collect`. All awaitable, all versioned.

    name, seed: of the group that is collected; whatever the method draws must follow from them.
    """

    name: str
    seed: int

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        """Continue every prefix once."""

    async def rollout(self, task: Task, n: int, params: SamplingParams | None = None, branches: int = 1) -> list[Trace]:
        """Play n episodes of a task with the current policy and grade them; params None means the run's own."""

    async def score(self, role: str, traces: Sequence[Trace]) -> None:
        """Have a frozen role read the traces; writes `Trace.scores[role]`."""

    async def grade(self, task: Task, actions: Sequence[str]) -> list[Any]:
        """Grade answers to a single-turn task: one `envs.base.Grade` each."""
