"""Collector: the asyncio actor that keeps groups in flight, and hands the learner complete batches.

    tasks ──► admit (TraceBuffer) ──► Algorithm.collect: sample, act, grade ──► keep() ──► TraceBuffer ──► get_batch
                    ▲                                                                                      │
                    └──────────────────────────── publish(weights, version + 1) ◄── learner ◄──────────────┘

It also runs held-out evaluation, because it is the one that knows how to play episodes. It owns no model; its state (`state`) is
part of every checkpoint, and `start` puts a restarted learner and collector back in step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.exceptions import RayActorError

from actors.buffer import TraceBuffer
from actors.clients import ActorLost, EnvClient, SamplerClient, cause, unwrap
from actors.diary import Diary, Status
from actors.judge import Judge
from actors.monitor import PROBED, START, HackingMonitor, hacking_figures, swayed
from actors.reward import LearnedReward
from actors.rollout import Roller, grade_of, seed_of
from actors.scorer import write_scores
from actors.stats import summarise
from actors.types import Actors, Group, Prefix, ProbePlan, Sample, SamplingParams
from actors.watch import Watch
from envs.base import Grade, InfraError, Task
from models.chat import ChatFormat
from models.flops import FlopModel
from models.trace import Kind, Score, Trace

log = logging.getLogger("posterior.collector")

PREFETCH = 64
"""Tasks fetched from the environment at once."""
STARVED = 20
"""Batches' worth of groups refused in a row after which the run stops: the filter lets nothing through."""

TOTALS = ("tokens/sampled", "flops/sampling", "flops/scoring", "flops/eval", "traces/infra", "time/grading")
"""Cumulative counts since the start of the run."""


class CollectionStopped(RuntimeError):
    """Collecting further would be pointless: one sentence for the user."""


class CollectorLost(RuntimeError):
    """The collector died and came back empty: the learner starts again from its checkpoint."""


@dataclass(frozen=True)
class CollectorConfig:
    """What the collector needs of the run configuration."""

    model_path: str
    seed: int
    batch_groups: int
    staleness: int
    sampling: SamplingParams
    max_length: int
    train_split: str
    reward_weight: float = 1.0
    learned: LearnedReward | None = None
    monitor: HackingMonitor = field(default_factory=HackingMonitor)
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Neighbours:
    """Handles of the actors a collector works with. scorers: by frozen role. reward: of the reward model, where there is one."""

    samplers: Sequence[Any]
    envs: Sequence[Any]
    scorers: Mapping[str, Any]
    reward: Any = None


@dataclass
class BatchReply:
    """One batch and what it cost. seconds: waiting time of the call. totals: cumulative counts since the start of the run."""

    groups: list[Group]
    seconds: float
    totals: dict[str, float]


@dataclass
class EvalReply:
    """Held-out figures of one split (`summarise`), the groups behind them, seconds. each: by task, see `by_task`."""

    figures: dict[str, float]
    groups: list[Group]
    seconds: float
    each: dict[str, list[Any]]


class GroupActors:
    """What `Algorithm.collect` sees for one group (`actors.types.Actors`); tokens, flops: what it has sampled with it."""

    def __init__(self, collector: Collector, name: str, seed: int) -> None:
        self._collector, self.name, self.seed = collector, name, seed
        self.tokens, self.flops = 0.0, 0.0

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        samples = await self._collector.samplers.sample(prefixes, params)
        for prefix, sample in zip(prefixes, samples, strict=True):
            # what this group sampled before, and goes on from, is still in the sampler's cache
            known = len(prefix.token) if (prefix.kind == Kind.THOUGHT).any() else 0
            self._charge(len(prefix.token) + len(sample.token), known, float((~np.isnan(sample.logprob)).sum()))
        return samples

    async def rollout(self, task: Task, n: int, params: SamplingParams | None = None, branches: int = 1) -> list[Trace]:
        roller, params = await self._collector.roller(), params or self._collector.config.sampling
        traces = await roller.rollout(task, n, params, self.name, self.seed, branches)
        for trace in traces:
            # a copied beginning is in the sampler's cache
            known = trace.parent[1] if trace.parent is not None else 0
            self._charge(len(trace), known, float(trace.sampled.sum()))
        return traces

    def _charge(self, length: int, known: int, tokens: float) -> None:
        self.tokens += tokens
        self.flops += self._collector.flops.sequence(length, known)

    async def score(self, role: str, traces: Sequence[Trace]) -> None:
        await self._collector.score(role, traces)

    async def grade(self, task: Task, actions: Sequence[str]) -> list[Grade]:
        steps = await self._collector.envs.grade(task, actions, self.seed)
        for step in steps:
            if isinstance(step, InfraError):
                raise step
        return [grade_of(step) for step in steps if not isinstance(step, InfraError)]


class Collector:
    """Build it with `ray.remote(Collector).options(max_concurrency=...)`.

    make_algorithm: builds the method (the same as in the learner). `connect` must be called first; a restarted collector is
    connected again by the learner's `start`. diary: of the run directory, if there is one.
    """

    samplers: SamplerClient
    envs: EnvClient
    scorers: dict[str, Any]

    def __init__(
        self, config: CollectorConfig, make_algorithm: Callable[[], Any], attempts: int = 4, diary: Diary | None = None
    ) -> None:
        from models.loading import load_tokenizer

        self.status = Status(None) if diary is None else diary.status("collector")
        if diary is not None:
            diary.listen("collector")
        self.config = config
        self._make_algorithm = make_algorithm
        self.algorithm = make_algorithm()
        self._attempts = attempts
        self.buffer = TraceBuffer(config.batch_groups, config.staleness)
        self._chat = ChatFormat(load_tokenizer(config.model_path, config.trust_remote_code))
        self.flops = _flop_model(config.model_path, config.trust_remote_code)
        self.judge: Judge | None = None
        if config.learned is not None:
            self.judge = Judge(config.learned, _flop_model(config.learned.folders[0], config.trust_remote_code))
        self._roller: Roller | None = None
        self._tasks: dict[int, Task] = {}
        self._changed = asyncio.Condition()
        self._admission = asyncio.Lock()
        self._epoch = 0
        self._jobs: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._refused_in_row = 0
        self._stop = False
        self._started = False
        self._watch: Watch | None = None
        self._earlier_restarts = 0
        self._evaluating = ""
        self._totals = dict.fromkeys(TOTALS, 0.0)

    # ---- the learner's side -----------------------------------------------------------------------------------------------

    async def connect(self, neighbours: Neighbours) -> None:
        """Meet the actors this one works with."""
        if self._watch is not None:
            self._watch.close()
            self.samplers.close()
            self._earlier_restarts = self._restarts()
        moved = self.status.move
        self.samplers = SamplerClient(neighbours.samplers, self._attempts, self.config.staleness == 0, moved)
        self.envs = EnvClient(neighbours.envs, self._attempts, moved)
        self.scorers = dict(neighbours.scorers)
        if self.judge is not None:
            self.judge.connect(neighbours.reward)
        self._roller = None
        self._watch = Watch(self.status, [self.samplers, self.envs], self._doing)

    async def start(
        self, neighbours: Neighbours, state: dict[str, Any] | None, arrays: dict[str, np.ndarray], version: int
    ) -> None:
        """(Re)start at a version: forget everything younger, take up the checkpoint's buffer, arm the samplers."""
        await self.connect(neighbours)
        self.status.stage("working")
        self._epoch += 1
        for job in self._jobs:
            job.cancel()
        self._jobs.clear()
        self._failure = None
        self._refused_in_row = 0
        self.buffer = TraceBuffer(self.config.batch_groups, self.config.staleness)
        self.algorithm = self._make_algorithm()
        self._totals = dict.fromkeys(TOTALS, 0.0)
        if state is not None:
            self.buffer.load(state["buffer"])
            self._totals.update(state["totals"])
            self.algorithm.load(state["algorithm"])
        if self.judge is not None:
            await self.judge.load(state["labels"] if state is not None else [])
        self.buffer.advance(version)
        async with self._changed:
            self._changed.notify_all()  # calls of a learner that died must not wait for the new one's batch
        await self.samplers.publish(arrays, version)
        await self.roller()
        self._started = True

    async def publish(self, refs: list[Any], version: int, algorithm: dict[str, Any] | None = None) -> float:
        """New weights of the policy for the samplers, then admission under their version. Returns seconds.

        refs: one Ray reference to the arrays, in a list so that it arrives as a reference.
        """
        start = time.perf_counter()
        epoch = self._check_started()
        # the value is kept as well: the reference dies with its owner, the learner
        await self.samplers.publish(await refs[0], version, refs[0])
        self._check_started(epoch)
        if algorithm is not None:
            self.algorithm.load(algorithm)
        async with self._changed:
            self.buffer.advance(version)
            self._changed.notify_all()
        return time.perf_counter() - start

    async def get_batch(self, patience: float = 30.0) -> BatchReply | str:
        """The batch of the current version; or, after `patience` seconds without one, a sentence on what is waited for.

        Raises what stopped the collection: a fault of the environment, of the method, or a filter that lets nothing through.
        """
        start = time.perf_counter()
        epoch = self._check_started()
        await self._admit()

        def over() -> bool:
            return epoch != self._epoch or self._failure is not None or self.buffer.may_take()

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(over), patience)
            except TimeoutError:
                b = self.buffer
                return f"{b.ready} of {b.batch_groups} groups are ready, {b.running} are running, {b.refused} were refused so far"
            self._check_started(epoch)
            if self._failure is not None:
                raise self._failure
            version, groups = self.buffer.version, self.buffer.take()
        if self.judge is not None:
            cost = await self.judge.listen([trace for group in groups for trace in group.live], version)
            self._check_started(epoch)
            self._totals["flops/scoring"] += cost
        totals = {**self._totals, "groups/refused": float(self.buffer.refused), "restarts": float(self._restarts())}
        # with S > 0 the next groups start while the learner works
        if self.buffer.may_admit():
            self._spawn(self._admit())
        return BatchReply(groups, time.perf_counter() - start, totals)

    async def examples(self, version: int) -> BatchReply:
        """The batch that an offline method's version learns from. It depends on nothing that was learnt: ask ahead."""
        start = time.perf_counter()
        epoch = self._check_started()
        c, n = self.config, self.config.batch_groups
        tasks = await self.envs.tasks(c.train_split, version * n, n, c.seed)
        self._check_started(epoch)
        made = [(i, task, self.algorithm.examples(task, i, version)) for i, task in enumerate(tasks, version * n)]
        groups = [Group(task=task, traces=traces, index=i, admitted=version) for i, task, traces in made]
        return BatchReply(groups, time.perf_counter() - start, dict(self._totals))

    async def evaluate(self, split: str, tasks: int, samples: int, temperature: float) -> EvalReply:
        """Play held-out tasks with the current weights. The seeds are the evaluation's own and the same every time."""
        start = time.perf_counter()
        if self._watch is None:
            self._check_started()
        roller = await self.roller()
        asked = await self.envs.tasks(split, 0, tasks, None)
        params = self.config.sampling.but(temperature=temperature, top_p=1.0, top_k=0)
        self._evaluating = f"playing {len(asked)} held-out tasks of {split!r}"
        try:
            played = await asyncio.gather(
                *(
                    roller.rollout(
                        task, samples, params, f"eval/{split}/{i}", seed_of(self.config.seed, "eval", split, i)
                    )
                    for i, task in enumerate(asked)
                )
            )
        finally:
            self._evaluating = ""
        groups = [
            Group(task=task, traces=traces, index=i) for i, (task, traces) in enumerate(zip(asked, played, strict=True))
        ]
        self._totals["flops/eval"] += sum(self.flops.sequence(len(t)) for g in groups for t in g.traces)
        graded = [group for group in groups if group.live]
        if not graded:
            raise CollectionStopped(
                f"not one answer of the split {split!r} could be graded: {groups[0].traces[0].note}"
            )
        figures = summarise(
            [[t.passed for t in g.live] for g in graded],
            [[t.grade for t in g.live] for g in graded],
        )
        if self.judge is not None:
            traces = [trace for group in graded for trace in group.live]
            await self.judge.give(traces)
            await self.score(START, traces)
            monitor = self.config.monitor
            figures |= hacking_figures(graded, monitor)
            figures |= swayed(await self.judge.gains(traces[:PROBED], monitor.probes))
        return EvalReply(figures, groups, time.perf_counter() - start, by_task(groups))

    async def probe(self, split: str, tasks: int, plan: ProbePlan) -> list[Group]:
        """Held-out tasks with thoughts of the current weights, good answers behind them."""
        self._check_started()
        asked = await self.envs.tasks(split, 0, tasks, None)
        actors: list[Actors] = [
            GroupActors(self, f"probe/{split}/{i}", seed_of(self.config.seed, "probe", split, i))
            for i in range(len(asked))
        ]
        self._evaluating = f"drawing thoughts on {len(asked)} held-out tasks of {split!r}"
        try:
            groups = await self.algorithm.probe(asked, actors, plan)
        finally:
            self._evaluating = ""
        self._totals["flops/eval"] += sum(self.flops.sequence(len(t)) for g in groups for t in g.traces)
        return groups

    async def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the collection."""
        self._check_started()
        return {
            "buffer": self.buffer.state(),
            "totals": dict(self._totals),
            "algorithm": self.algorithm.state(),
            "labels": [] if self.judge is None else self.judge.labels,
        }

    async def request_stop(self) -> None:
        """Ask the learner to write a checkpoint and end (Ctrl-C)."""
        self._stop = True

    async def stop_requested(self) -> bool:
        return self._stop

    async def sampler_stats(self) -> list[dict[str, Any]]:
        return await self.samplers.stats()

    async def scores(self, role: str, traces: list[Trace]) -> list[Score]:
        """What a frozen role says about traces."""
        self._check_started()
        await self.score(role, traces)
        return [trace.scores[role] for trace in traces]

    async def score(self, role: str, traces: Sequence[Trace]) -> None:
        """Have a frozen role read traces; writes `Trace.scores[role]`."""
        if role not in self.scorers:
            raise ValueError(
                f"no scorer serves the role {role!r}; frozen roles of this method: {', '.join(self.scorers) or 'none'}"
            )
        try:
            values = await self.scorers[role].score.remote(list(traces))
        except RayActorError as error:
            raise ActorLost(f"the scorer of the role {role} died and does not come back: {cause(error)}") from error
        write_scores(role, 0, traces, values)

    async def roller(self) -> Roller:
        if self._roller is None:
            info = await self.envs.info()
            self._roller = Roller(
                self.samplers, self.envs, info, self._chat, self.config.max_length, self.config.reward_weight
            )
        return self._roller

    # ---- collecting -------------------------------------------------------------------------------------------------------

    async def _admit(self) -> None:
        """Start as many groups as the bound allows, all in one turn of the event loop."""
        async with self._admission:
            epoch = self._epoch
            while wanted := self.buffer.upcoming():
                missing = [index for index in wanted if index not in self._tasks]
                if missing:
                    await self._fetch(missing[0])
                if epoch != self._epoch or self._failure is not None:
                    return
                if missing:
                    continue  # what may be admitted can have changed meanwhile
                for index in wanted:
                    self.buffer.admit()
                    self._spawn(self._collect(index, self._tasks.pop(index), epoch))

    async def _fetch(self, start: int) -> None:
        try:
            tasks = await self.envs.tasks(self.config.train_split, start, PREFETCH, self.config.seed)
        except Exception as error:
            await self._fail(error)
            return
        self._tasks.update({start + i: task for i, task in enumerate(tasks)})

    async def _collect(self, index: int, task: Task, epoch: int) -> None:
        name = f"{index}"
        actors = GroupActors(self, name, seed_of(self.config.seed, "train", index))
        try:
            group = await self.algorithm.collect(task, actors)
            if self.judge is not None:
                await self.judge.give(group.live)
            kept = bool(group.live) and self.algorithm.keep(group)
        except Exception as error:
            if epoch == self._epoch:
                await self._fail(error)
            return
        if epoch != self._epoch:
            return
        self._totals["tokens/sampled"] += actors.tokens
        self._totals["flops/sampling"] += actors.flops
        self._totals["flops/scoring"] += 0.0 if self.judge is None else self.judge.cost(group.live)
        for trace in group.traces:
            self._totals["traces/infra"] += trace.masked
            self._totals["time/grading"] += trace.timings.get("grade", 0.0) / len(group.traces)
        async with self._changed:
            self.buffer.finish(index, group if kept else None)
            self._refused_in_row = 0 if kept else self._refused_in_row + 1
            if self._refused_in_row >= STARVED * self.config.batch_groups:
                self._failure = CollectionStopped(
                    f"the method refused {self._refused_in_row} groups in a row (dynamic sampling lets none through: every group's "
                    "rewards are equal); make the tasks easier, raise group_size or switch dynamic sampling off"
                )
            self._changed.notify_all()
        if not kept and self.buffer.may_admit():
            self._spawn(self._admit())

    async def _fail(self, error: BaseException) -> None:
        error = unwrap(error)
        log.error("collection stopped: %s", error)
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _spawn(self, work: Any) -> None:
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def _check_started(self, epoch: int | None = None) -> int:
        """The current epoch. A call of the learner is void on a collector that came back empty, or that a newer learner started."""
        if not self._started:
            raise CollectorLost("the collector was restarted and knows of no checkpoint yet")
        if epoch not in (None, self._epoch):
            raise CollectorLost("another learner started the collection again")
        return self._epoch

    def _doing(self) -> str:
        """For the watchdog: what is under way here."""
        b = self.buffer
        groups = f"{b.ready} of {b.batch_groups} groups are ready, {b.running} running" if b.running else ""
        return "; ".join(filter(None, [self._evaluating, groups]))

    def _restarts(self) -> int:
        return self._earlier_restarts + self.samplers.restarts + self.envs.restarts


def by_task(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """{"tasks": ids, "pass@1": [...], "mean_grade": [...]} of played tasks; None where no answer could be graded."""

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "tasks": [group.task.id for group in groups],
        "pass@1": [mean([float(t.passed) for t in group.live]) for group in groups],
        "mean_grade": [mean([t.grade for t in group.live]) for group in groups],
    }


def _flop_model(path: str, trust_remote_code: bool) -> FlopModel:
    """Without loading the weights: parameters are counted on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return FlopModel.of(config, sum(p.numel() for p in model.parameters()))
