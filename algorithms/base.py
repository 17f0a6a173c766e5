"""The method interface. A method is a handful of hooks; samplers, buffer and learner do not know which one runs.

A batch lives as follows. Online methods: the collector calls `collect` for one task after another, drops what `keep` refuses,
and the learner consumes a fixed number of groups a step. Offline methods: `example` makes one trace of each task. Then, for both, roles
that declare `scores` read the batch, `credit` writes per-position weights over the *global* batch, and for every trainable
role the learner runs a forward pass over micro-batches and asks `terms` for the loss.

The same object is built in the collector (which calls `collect` and `keep`) and in every learner rank (the rest); they share
no memory, so what `collect` needs to know of `credit`'s state must travel in `state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from actors.types import Actors, Group, ProbePlan, SamplingParams
from algorithms.probing import draw_probes, probe_values
from algorithms.thoughts import HINT, Thoughts
from envs.base import Task
from models.roles import RoleSpec
from models.terms import Batch, Forward, Term
from models.trace import Trace


class AlgorithmConfig(BaseModel):
    """Options every method has; a method subclasses this with its own. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    """Which method: a built-in name, or my_pkg.my_method:MyMethod."""
    group_size: int = 8
    """Traces sampled for each task (K)."""


class Context:
    """What a method may know of the run: sampling parameters, seed, and the tokenizer (built on first use)."""

    def __init__(self, model_path: str, sampling: SamplingParams, seed: int, updates_per_batch: int = 1) -> None:
        self.model_path = model_path
        self.sampling = sampling
        self.seed = seed
        self.updates_per_batch = updates_per_batch
        """Optimiser steps taken on one batch (epochs times mini-batches); 1 means every ratio starts at 1."""
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            from models.loading import load_tokenizer

            self._tokenizer = load_tokenizer(self.model_path)
        return self._tokenizer


class Algorithm:
    """Base of every method. `Config` is its pydantic options class."""

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    offline: ClassVar[bool] = False
    """True for methods that learn from given answers (`example`) and sample only to be evaluated."""

    plays: ClassVar[bool] = True
    """Whether the policy answers tasks; False for what only reads (a reward model): no sampler starts, and held-out tasks are probed."""

    together: bool = False
    """Whether a term compares the traces of a group: the learner then reads a group's traces in one micro-batch."""

    def __init__(self, config: AlgorithmConfig, context: Context) -> None:
        self.config = config
        self.context = context

    @classmethod
    def settle(cls, options: Mapping[str, Any], tasks: Callable[[], Iterable[Task]]) -> dict[str, Any]:
        """The method's options with those filled in that the training tasks decide; asked once, before anything starts. tasks: gives
        them, for methods that look."""
        return dict(options)

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        """The models that take part. "policy" is the one that samplers serve."""
        return {"policy": RoleSpec(weights=self.context.model_path, trainable=True)}

    async def collect(self, task: Task, actors: Actors) -> Group:
        """Produce the traces of one task: by default `group_size` graded rollouts."""
        return Group(task=task, traces=await actors.rollout(task, self.config.group_size))

    def example(self, task: Task, index: int, version: int) -> Trace:
        """Offline methods: the trace to learn from. index: of the task in the run's order; version: of the policy that will learn from it.

        Must be a pure function of its arguments and the run's seed: it is asked again after a restart. Raises ValueError for a task
        that has nothing to teach.
        """
        raise TypeError(f"{type(self).__name__} is an online method and makes no examples")

    def examples(self, task: Task, index: int, version: int) -> list[Trace]:
        """Offline methods that learn from several traces of a task; by default the one of `example`. The same rules
        hold."""
        return [self.example(task, index, version)]

    async def probe(self, tasks: Sequence[Task], actors: Sequence[Actors], plan: ProbePlan) -> list[Group]:
        """Held-out tasks: thoughts with the good answer behind them, to be read by all roles (`algorithms.probing`)."""
        hint = getattr(self.config, "hint", HINT)
        return await draw_probes(Thoughts(self.context.tokenizer), tasks, actors, plan, self.context.sampling, hint)

    def by_task(self, groups: Sequence[Group]) -> dict[str, list[float]]:
        """What each group of `probe` measured, once the roles that score have read it: one value a group."""
        return probe_values(groups)

    def diagnose(self, groups: Sequence[Group], each: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Figures of what `probe` drew: the means over tasks. each: what `by_task` says of these groups."""
        return {name: float(np.mean(values)) for name, values in each.items()}

    def keep(self, group: Group) -> bool:
        """Whether a group enters the buffer. Must be a pure function of the group."""
        return True

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Write per-position credit into `Trace.weights` over the global batch; return metrics.

        Runs on every rank over the same batch and must be deterministic. A masked trace gets no weights.
        """
        return {}

    def to_read(self, role: str, groups: Sequence[Group]) -> list[Trace]:
        """What a role that scores reads of a batch, before `credit`: by default every live trace."""
        return [trace for group in groups for trace in group.live]

    def trains(self, role: str, trace: Trace) -> bool:
        """Whether a trainable role learns from a trace, after `credit`: by default from every one that carries weights."""
        return bool(trace.weights)

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        """The loss of one trainable role on one micro-batch, as named terms. Pure tensor functions."""
        raise TypeError(f"{type(self).__name__} does not train the role {role!r}")

    def notes(self, role: str) -> dict[str, Any]:
        """File name -> JSON to keep beside a role's weights, for whoever uses them later."""
        return {}

    def state(self) -> dict[str, Any]:
        """Memories, controllers and averages; part of every checkpoint."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
