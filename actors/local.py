"""Actors without Ray: the clients of samplers and environment workers on plain objects of this process, for benchmarks and tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from actors.clients import EnvClient
from actors.env_worker import EnvWorker
from actors.learner import resolve_roles
from actors.reward import RewardScorer
from actors.rollout import Roller
from actors.scorer import write_scores
from actors.types import Group, Prefix, Sample, SamplingParams
from actors.update import OptimiserConfig, Updater
from envs.base import Grade, SingleTurnEnv, Task
from models.chat import ChatFormat
from models.decode import Decoder, Request
from models.feedback import Thinker, ThinkerConfig
from models.forward import Distribution, score_traces
from models.loading import RoleModel, load_role
from models.trace import Trace


class Local:
    """Stands where an actor's handle does: `.method.remote(...)` is the coroutine of the object's own method."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._target, name))


class LocalEngine:
    """A model of this process that continues prefixes; calls made at the same time are one batch. ends: ids that end a text."""

    def __init__(self, model: RoleModel, ends: Sequence[int], rows: int = 512) -> None:
        thinker = model.thinker or Thinker(ThinkerConfig(kind="pause"), model.base)  # never asked: no latents here
        self.decoder = Decoder(RoleModel(model.lm, packs=model.packs, thinker=thinker), rows, 0)
        self._ends = frozenset(ends)
        self._count = 0
        self._out: dict[int, Sample] = {}

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        greedy = params.temperature == 0
        distribution = Distribution(1.0 if greedy else params.temperature, params.top_p, params.top_k)
        ends = self._ends | set(params.stop_ids)
        tags = list(range(self._count, self._count + len(prefixes)))
        self._count += len(prefixes)
        for tag, p in zip(tags, prefixes, strict=True):
            self.decoder.add(
                Request(p.token, p.kind, p.seed, 0, params.max_tokens, ends, distribution, greedy, p.eps_seed, tag)
            )
        await asyncio.sleep(0)  # let the others ask first
        while not all(tag in self._out for tag in tags):
            if not self.decoder.busy:
                raise RuntimeError("the engine stopped in the middle: another call on it failed")
            for request in self.decoder.step():
                self._out[request.tag] = Sample(
                    np.array(request.out_token, np.int32),
                    np.array(request.out_logprob, np.float32),
                    np.array(request.out_version, np.int32),
                    np.zeros(len(request.out_token), bool),
                    request.finish,
                )
        return [self._out.pop(tag) for tag in tags]


class LocalActors:
    """`actors.types.Actors` for one group, on an engine and an environment of this process. roller: for methods that play episodes, with
    the sampling parameters `params`; env: for those that grade answers."""

    def __init__(
        self,
        engine: LocalEngine,
        env: SingleTurnEnv | None,
        name: str,
        seed: int,
        roller: Roller | None = None,
        params: SamplingParams | None = None,
    ) -> None:
        self.engine, self.env, self.name, self.seed, self.roller, self.params = engine, env, name, seed, roller, params

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        return await self.engine.sample(prefixes, params)

    async def rollout(self, task: Task, n: int, params: SamplingParams | None = None, branches: int = 1) -> list[Trace]:
        if self.roller is None:
            raise TypeError("these LocalActors play no episodes; give them a roller")
        params = params or self.params or SamplingParams()
        return await self.roller.rollout(task, n, params, self.name, self.seed, branches)

    async def score(self, role: str, traces: Sequence[Trace]) -> None:
        raise TypeError("LocalActors has no scorers; use the collector")

    async def grade(self, task: Task, actions: Sequence[str]) -> list[Grade]:
        if self.env is None:
            raise TypeError("these LocalActors grade no answers; give them an environment")
        grades = [self.env.grade(task, action) for action in actions]
        assert all(isinstance(grade, Grade) for grade in grades)
        return grades  # type: ignore[return-value]


class LocalRun:
    """A method's loop in this process: collect, score, credit, update, as the learner does it. For online methods.

    env: what grades single answers, or a worker that plays whole episodes. passes: (epochs, mini-batches) over a batch. reward: a reward
    model, whose word is then the whole reward of an episode.
    """

    def __init__(
        self,
        algorithm: Any,
        optimiser: OptimiserConfig,
        env: SingleTurnEnv | EnvWorker,
        ends: Sequence[int],
        dtype: str = "float32",
        passes: tuple[int, int] = (1, 1),
        reward: RewardScorer | None = None,
    ) -> None:
        self.algorithm, self.env, self.passes, self.reward = algorithm, env, passes, reward
        self.specs = resolve_roles(algorithm.roles)
        self.models = {
            role: load_role(spec.weights, dtype=dtype, head=spec.head, outputs=spec.outputs)
            for role, spec in self.specs.items()
        }
        trainable = {role: self.models[role] for role, spec in self.specs.items() if spec.trainable}
        sampling = algorithm.context.sampling
        self.distribution = Distribution(sampling.temperature, sampling.top_p, sampling.top_k)
        optimisers = {role: replace(optimiser, **self.specs[role].optimiser) for role in trainable}
        self.updater = Updater(algorithm, trainable, self.specs, optimisers, self.distribution, None)
        self.engine = LocalEngine(self.models["policy"], ends)
        self.version = 0

    def collect(self, tasks: Sequence[Task], first: int) -> list[Group]:
        """One group a task; `first` is the index of the first."""

        context = self.algorithm.context

        async def all_of_them() -> list[Group]:
            roller, grader = None, None
            if isinstance(self.env, EnvWorker):
                client = EnvClient([Local(self.env)])
                info, chat = await client.info(), ChatFormat(context.tokenizer)
                roller = Roller(self.engine, client, info, chat, 1 << 20, float(self.reward is None))  # type: ignore[arg-type]  # it samples alike
            else:
                grader = self.env
            own = [
                LocalActors(self.engine, grader, str(i), hash((context.seed, i)) % 2**61, roller, context.sampling)
                for i in range(first, first + len(tasks))
            ]
            return await asyncio.gather(*(self.algorithm.collect(t, a) for t, a in zip(tasks, own, strict=True)))

        groups = asyncio.run(all_of_them())
        for i, group in enumerate(groups, first):
            group.index, group.admitted = i, self.version
        if self.reward is not None:
            traces = [trace for group in groups for trace in group.live]
            self.reward.reward.give(traces, self.reward.score(traces))
        return groups

    def score(self, groups: Sequence[Group]) -> None:
        """Have every role that scores read the groups."""
        for role, spec in self.specs.items():
            if spec.scores and spec.trainable:
                self.updater.score(role, groups, self.version)
            elif spec.scores:
                traces = self.algorithm.to_read(role, groups)
                values = score_traces(
                    self.models[role],
                    traces,
                    template=spec.template,
                    head=spec.head,
                    distribution=self.distribution,
                )
                write_scores(role, self.version, traces, values)

    def step(self, tasks: Sequence[Task]) -> dict[str, float]:
        """One batch: returns its metrics."""
        groups = self.collect(tasks, self.version * len(tasks))
        self.score(groups)
        metrics = self.algorithm.credit(groups)
        epochs, parts = self.passes
        for turn in range(epochs * parts):
            mini = groups[turn % parts :: parts]
            metrics.update(self.updater.update(mini, self.version, measure_gap=turn == 0))
        self.version += 1
        self.engine.decoder.renew(self.version)
        return metrics
