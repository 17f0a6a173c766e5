"""The learner: a Ray Train loop that turns batches into new versions of the policy, and does not know the method.

    get_batch ─► score roles ─► credit (whole batch) ─► epochs x mini-batches of update ─► publish version + 1
        └────────────── evaluate, log, checkpoint on their schedules ──────────────┘

Every rank runs the same loop over the same batch; rank 0 talks to the collector and writes. The newest whole checkpoint in the run
directory is where the loop starts, whether this is the first start, a restart by Ray Train or `posterior resume`. A batch's row and
evaluation are written before the checkpoint that follows it: a death in between repeats them, and never leaves one out.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors import checkpoint
from actors.bookkeeping import Clock, lineage
from actors.clients import ActorLost, cause, unwrap
from actors.collector import BatchReply, CollectionStopped, CollectorLost, Neighbours
from actors.diary import Diary, DiskFull, Status, disk_full
from actors.env_worker import EnvFault
from actors.held_out import HeldOut
from actors.monitor import HackingMonitor
from actors.sharding import shard
from actors.types import Group, ProbePlan
from actors.update import OptimiserConfig, Updater
from models.flops import FlopModel
from models.forward import Distribution, make_view
from models.loading import load_role, load_tokenizer, merged_weights
from models.roles import RoleSpec
from models.trace import Trace

log = logging.getLogger("posterior.learner")

GAP_BOUND = {"float32": ("gap/max", 1e-4), "bfloat16": ("gap/mean", 2e-2)}
"""Largest |log-prob of sampler - log-prob of learner| a run may start with (design, promise 1)."""


RETURN_SECONDS = 300.0
"""How long a dead collector may take to come back."""


class RunStopped(RuntimeError):
    """The run cannot go on and a restart would not help: one sentence for the user."""


FINAL = (RunStopped, CollectionStopped, EnvFault, ActorLost, DiskFull, ValueError)
"""Errors that a restart cannot mend."""


class Recorder(Protocol):
    """Writes what a run leaves behind; the front door supplies it."""

    def metrics(self, row: dict[str, Any]) -> None: ...
    def truncate(self, step: int) -> None: ...
    def traces(self, name: str, step: int, groups: Sequence[Group]) -> None: ...
    def held_out(self, version: int, split: str, each: Mapping[str, Sequence[Any]]) -> None: ...
    def finish(self, status: str, step: int, error: str = "") -> None: ...


@dataclass
class LearnerConfig:
    """What the loop needs of the run configuration, and its neighbours.

    roles: resolved (weights are paths); frozen roles with `scores` are asked through the collector. lora: keywords of
    `load_role`, or None. flops, seconds: of training, after which the run ends before `steps`.
    """

    seed: int
    roles: Mapping[str, RoleSpec]
    optimisers: Mapping[str, OptimiserConfig]
    model_dtype: str
    lora: dict[str, Any] | None
    grad: str
    trust_remote_code: bool
    distribution: Distribution
    steps: int
    flops: float | None
    seconds: float | None
    epochs: int
    minibatches: int
    token_budget: int | None
    max_bad_steps: int
    checkpoint_every: int
    keep_checkpoints: int
    eval_every: int
    eval_flops: float | None
    eval_splits: Sequence[str]
    eval_tasks: int
    eval_samples: int
    eval_temperature: float
    probe: ProbePlan
    monitor: HackingMonitor | None
    traces_every: int
    trace_groups: int
    threads: int
    sharding: str
    checkpoints: Path
    make_algorithm: Callable[[], Any]
    recorder: Recorder
    collector: Any
    neighbours: Neighbours
    diary: Diary


def learner_loop(loop_config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank. loop_config: {"learner": LearnerConfig}."""
    config: LearnerConfig = loop_config["learner"]
    rank = dist.get_rank() if dist.is_initialized() else 0
    config.diary.listen("learner" if rank == 0 else f"learner rank {rank}")
    status = config.diary.status("learner") if rank == 0 else Status(None)
    status.beat_alone()
    try:
        Learner(config, status).run()
    except Exception as error:
        found = unwrap(error)
        sentence = disk_full(found, config.diary.folder, status.doing) if isinstance(found, OSError) else None
        if sentence is None and not isinstance(found, FINAL):
            raise
        # what a restart cannot mend must not be restarted: record it and end in order
        log.error("the run stopped: %s", sentence or found)
        status.failed(str(sentence or found))
        if rank == 0:
            try:
                config.recorder.finish("failed", -1, str(sentence or found))
            except OSError as error:
                log.error("result.json could not be written: %s", error.strerror)


class Learner:
    """One rank of the learner."""

    def __init__(self, config: LearnerConfig, status: Status) -> None:
        self.config, self.status = config, status
        status.stage("loading the models")
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)
        self.algorithm = config.make_algorithm()
        self.found = checkpoint.latest(config.checkpoints)
        models = {role: self._load(role, spec) for role, spec in config.roles.items() if spec.trainable}
        self.tokenizer = load_tokenizer(config.roles["policy"].weights, config.trust_remote_code)
        base = models["policy"].base
        self.flops = FlopModel.of(base.config, sum(p.numel() for n, p in base.named_parameters() if "lora_" not in n))
        sharded = config.sharding == "fsdp2"
        if sharded:
            for model in models.values():
                shard(model)
        self.updater = Updater(
            self.algorithm,
            models,
            config.roles,
            config.optimisers,
            config.distribution,
            config.token_budget,
            device=self.device,
            half=config.model_dtype == "bfloat16",
            sharded=sharded,
        )
        self.step = self.first = 0
        self.started = time.perf_counter()
        self.earlier_seconds = 0.0
        self.flops_learning = self.flops_scoring = 0.0
        self.spent = self.trained = self.tail = 0.0
        """FLOPs and seconds of training when the newest version was made, and what it took to publish and log it, which the next step is
        charged for: a checkpoint must say what was known when `last` was decided. Evaluation and checkpoints are free."""
        self.spent_before = 0.0
        """FLOPs when the version before it was made."""
        self.last = False
        """Whether the newest version is the run's last."""
        self.held_out = HeldOut(self)
        self.checkpoint_seconds = 0.0
        self.bad_steps = 0
        self._ahead: Any = None

    # ---- the loop ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        c = self.config
        version = self.first = self._begin()
        if c.eval_every and self.found is None:
            if self._stops():  # before the first evaluation there is nothing to keep
                return self._finish("interrupted", version)
            self.held_out.evaluate(0)
        self.last = self._over(version)
        while not self.last:
            self.step = version
            if self._stops():
                self._checkpoint(version)
                return self._finish("interrupted", version)
            self._one_step(version)
            version += 1
        self._checkpoint(version)
        self._finish("finished", version)

    def _stops(self) -> bool:
        """Whether somebody pressed Ctrl-C; every rank says the same."""
        return self._agree(self.rank == 0 and self.ask("stop_requested"))

    def _over(self, version: int) -> bool:
        """Whether training ends with this version: its steps, FLOPs or seconds are spent, or the monitor of a learned reward has ended it.
        Every rank says the same."""
        c = self.config
        if c.monitor is not None and self._agree(self.held_out.ended):
            return True
        spent = c.flops is not None and self.spent >= c.flops
        return version >= c.steps or spent or (c.seconds is not None and self._agree(self.trained >= c.seconds))

    def _one_step(self, step: int) -> None:
        c, clock = self.config, Clock()
        self.status.stage(f"waiting for the batch of step {step}")
        reply = self._batch()
        clock.lap("wait")
        groups = reply.groups
        for role, spec in c.roles.items():
            if spec.scores:
                self.status.stage(f"scoring the batch of step {step} with the role {role}")
                self.score(role, spec, groups, step)
        clock.lap("score")
        self.status.stage(f"forward and backward of step {step}")
        metrics = self.algorithm.credit(groups)
        clock.lap("credit")
        metrics.update(self._update(groups, step, clock))
        made = clock.total()
        self.spent_before = self.spent
        self.spent = (
            self.flops_learning + self.flops_scoring + reply.totals["flops/sampling"] + reply.totals["flops/scoring"]
        )
        self.trained += self.tail + made
        self.last = self._over(step + 1)
        self.status.stage(f"publishing version {step + 1} to the samplers")
        published = self._publish(step + 1)
        clock.lap("publish")
        metrics.update(self._batch_metrics(groups, step, reply))
        self._guard(metrics, step, groups)
        self.status.stage(f"writing traces and metrics of step {step}")
        if self.rank == 0 and c.traces_every and step % c.traces_every == 0:
            c.recorder.traces(f"step_{step:06d}", step, groups[: c.trace_groups])
        clock.lap("log")
        version = step + 1
        row = {"kind": "train", "step": step, "version": version, "seconds": self.seconds(), **metrics}
        # the lineage: which groups, by their place in the run's order of admission, this version was trained on
        row["groups"] = lineage([group.index for group in groups], self.algorithm.offline)
        row.update(clock.laps)
        row["time/checkpoint"] = self.checkpoint_seconds
        row["time/apply_weights"] = published
        row["time/total"] = clock.total() + self.checkpoint_seconds
        self.tail = clock.total() - made
        row["time/trained"] = self.trained
        row["tokens/per_second"] = metrics["tokens/batch"] / max(clock.total(), 1e-9)
        self.checkpoint_seconds = 0.0
        if self.rank == 0:
            c.recorder.metrics(row)
        if self._evaluates(version):
            self.held_out.evaluate(version)
            self.last = self.last or self.held_out.ended
        if version % c.checkpoint_every == 0 and not self.last:
            start = time.perf_counter()
            self._checkpoint(version)
            self.checkpoint_seconds = time.perf_counter() - start  # in the next row: this one must be there before

    def _update(self, groups: Sequence[Group], step: int, clock: Clock) -> dict[str, float]:
        """All epochs and mini-batches over one batch; metrics are means over them (largest for .../max)."""
        c = self.config
        metrics: dict[str, list[float]] = {}
        first = True
        for epoch in range(c.epochs):
            order = list(range(len(groups)))
            if c.minibatches > 1:
                np.random.default_rng([c.seed, step, epoch]).shuffle(order)
            for part in np.array_split(np.array(order), min(c.minibatches, len(order))):
                mini = [groups[i] for i in sorted(part.tolist())]
                for name, value in self.updater.update(mini, step, measure_gap=first).items():
                    metrics.setdefault(name, []).append(value)
                first = False
                for role, spec in c.roles.items():
                    if spec.trainable:
                        learnt = [t for g in mini for t in g.live if self.algorithm.trains(role, t)]
                        self.flops_learning += self.flops.training(self._lengths(spec, learnt))
        clock.lap("forward_backward")
        return {name: float(max(v) if name.endswith("/max") else np.mean(v)) for name, v in metrics.items()}

    # ---- talking to the collector -------------------------------------------------------------------------------------------

    def _begin(self) -> int:
        """Take up the newest checkpoint, if any, and start collection at its version."""
        c = self.config
        state: dict[str, Any] | None = None
        first = 0
        if self.found is not None:
            first, state, algorithm_state = checkpoint.restore(self.found, self.updater)
            self.algorithm.load(algorithm_state)
            self.flops_learning, self.flops_scoring = state["learner"]["flops"]
            self.earlier_seconds = state["learner"]["seconds"]
            self.spent, self.trained = state["learner"].get("spent", (0.0, 0.0))  # unknown to older checkpoints
            self.held_out.heard, self.held_out.ended = state["learner"].get("heard", ([], False))
        arrays = merged_weights(self.updater.models["policy"])
        if self.rank == 0:
            self.status.stage(f"starting the collection at version {first}")
            # without a checkpoint everything is done again, the evaluation of version 0 too
            c.recorder.truncate(first if self.found is not None else -1)
            self._start_collector(state, arrays, first)
        self.started = time.perf_counter()
        return first

    def _batch(self) -> BatchReply:
        reply: BatchReply | None = None
        if self.rank == 0 and self.algorithm.offline:
            asked = self._ahead or self._call("examples", self.step)
            # the next one is made and sent while this one is learnt from
            self._ahead = self._call("examples", self.step + 1) if self.step + 1 < self.config.steps else None
            reply = self._answer(asked)
        elif self.rank == 0:
            while reply is None:
                answer = self.ask("get_batch")
                if isinstance(answer, str):
                    log.debug("waiting for the batch of step %d: %s", self.step, answer)
                else:
                    reply = answer
        reply = self.broadcast(reply)
        assert reply is not None
        return reply

    def ask(self, method: str, *args: Any) -> Any:
        return self._answer(self._call(method, *args))

    def _call(self, method: str, *args: Any) -> Any:
        """A reference to the collector's answer."""
        return getattr(self.config.collector, method).remote(*args)

    def _answer(self, reference: Any) -> Any:
        """What the collector says. Raises CollectorLost if it died: it comes back empty, and the learner starts again
        with it."""
        try:
            return ray.get(reference)
        except ActorDiedError as error:
            raise ActorLost(
                f"the collector died and may not be restarted again (resources.max_restarts): {cause(error)}"
            ) from error
        except ActorUnavailableError as error:
            raise CollectorLost(
                f"the collector died while the learner was {self.status.doing}: {cause(error)}"
            ) from error

    def _start_collector(self, state: dict[str, Any] | None, arrays: dict[str, np.ndarray], version: int) -> None:
        """`Collector.start`, waiting for one that is being restarted."""
        deadline = time.monotonic() + RETURN_SECONDS
        while True:
            try:
                return self.ask("start", self.config.neighbours, state, arrays, version)
            except CollectorLost:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def score(self, role: str, spec: RoleSpec, groups: Sequence[Group], version: int, *, charge: bool = True) -> None:
        """Have a role read a batch. charge: count its work as training's."""
        traces = self.algorithm.to_read(role, groups)
        if charge:
            self.flops_scoring += self.flops.forward(self._lengths(spec, traces))
        if spec.trainable:
            self.updater.score(role, groups, version)
            return
        scores = self.ask("scores", role, traces) if self.rank == 0 else None
        for trace, score in zip(traces, self.broadcast(scores), strict=True):
            trace.scores[role] = score

    def _publish(self, version: int) -> float:
        """Give the samplers the weights of a version; seconds. An offline method samples only to be evaluated."""
        if self.algorithm.offline and not self._evaluates(version):
            return 0.0
        arrays = merged_weights(self.updater.models["policy"])
        if self.rank != 0:
            return 0.0
        # wrapped in a list: the collector passes the reference on to the samplers without copying the arrays
        return self.ask("publish", [ray.put(arrays)], version, self.algorithm.state())

    def _evaluates(self, version: int) -> bool:
        c = self.config
        due = c.eval_flops is not None and self.spent // c.eval_flops > self.spent_before // c.eval_flops
        return bool(c.eval_every) and (version % c.eval_every == 0 or due or self.last)

    # ---- keeping ------------------------------------------------------------------------------------------------------------

    def _checkpoint(self, version: int) -> None:
        self.status.stage(f"saving the checkpoint of version {version}")
        state = self.ask("state") if self.rank == 0 else {}
        state["learner"] = {
            "flops": (self.flops_learning, self.flops_scoring),
            "seconds": self.seconds(),
            "spent": (self.spent, self.trained),
            "heard": (self.held_out.heard, self.held_out.ended),
        }
        checkpoint.save(
            self.config.checkpoints,
            version,
            self.updater,
            state,
            self.algorithm.state(),
            self.tokenizer,
            self.config.keep_checkpoints,
        )

    def _finish(self, status: str, step: int) -> None:
        self.status.stage("finishing")
        if self.rank == 0:
            self.config.recorder.finish(status, step)

    def _batch_metrics(self, groups: Sequence[Group], step: int, reply: BatchReply) -> dict[str, float]:
        traces = [t for g in groups for t in g.live]
        ages = [step - g.admitted for g in groups]
        # what was sampled; of given answers, whose traces nobody sampled, every position that is read
        lengths = [float(len(t) if self.algorithm.offline else t.sampled.sum()) for t in traces]
        return {
            "staleness/max": float(max(ages)),
            "staleness/mean": float(np.mean(ages)),
            "length/mean": float(np.mean(lengths)) if lengths else 0.0,
            "tokens/batch": float(sum(lengths)),
            **reply.totals,
            "flops/learning": self.flops_learning,
            # of the roles that score here, and of a reward model beside the collector
            "flops/scoring": self.flops_scoring + reply.totals["flops/scoring"],
        }

    def _guard(self, metrics: Mapping[str, float], step: int, groups: Sequence[Group]) -> None:
        """The launch gate's last part, and the stop after repeated non-finite steps."""
        c = self.config
        name, bound = GAP_BOUND[c.model_dtype]
        if step == self.first and metrics.get(name, 0.0) > bound:
            raise RunStopped(
                f"sampler and learner disagree: {name} is {metrics[name]:.2e} on the first batch, the bound for {c.model_dtype} is "
                f"{bound:.0e}; run `posterior doctor` with this configuration to see where they part"
            )
        skipped = any(value for key, value in metrics.items() if key.startswith("skipped/"))
        self.bad_steps = self.bad_steps + 1 if skipped else 0
        if skipped:
            log.warning("step %d: a loss or gradient was not finite; the optimiser step was skipped", step)
        if self.bad_steps >= c.max_bad_steps:
            if self.rank == 0:
                c.recorder.traces(f"bad_{step:06d}", step, groups)
            raise RunStopped(
                f"the loss or gradient was not finite {self.bad_steps} steps in a row (last: step {step}); the batch is saved in "
                f"traces/bad_{step:06d}.jsonl; lower train.optimiser.lr or look at its rewards"
            )

    # ---- small helpers ------------------------------------------------------------------------------------------------------

    def _load(self, role: str, spec: RoleSpec) -> Any:
        c = self.config
        lora = c.lora if role == "policy" else None
        # adapters sit on the original weights; everything else continues from the checkpoint's own
        saved = self.found is not None and lora is None
        path = str(self.found / role) if saved and self.found is not None else spec.weights
        model = load_role(
            path,
            dtype="float32",
            head=spec.head,
            outputs=spec.outputs,
            lora=lora,
            grad=c.grad,
            trust_remote_code=c.trust_remote_code,
        )
        return model.to(self.device)

    def broadcast(self, value: Any) -> Any:
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _agree(self, flag: bool) -> bool:
        return bool(self.broadcast(flag))

    def _lengths(self, spec: RoleSpec, traces: Sequence[Trace]) -> list[int]:
        """Positions that a role reads of each trace."""
        return [len(trace if spec.template is None else make_view(trace, spec.template)) for trace in traces]

    def seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started


def resolve_roles(roles: Mapping[str, RoleSpec]) -> dict[str, RoleSpec]:
    """Replace "@role" by that role's initial weights."""
    out = {}
    for name, spec in roles.items():
        weights = spec.weights
        if weights.startswith("@"):
            if weights[1:] not in roles or roles[weights[1:]].weights.startswith("@"):
                raise ValueError(
                    f"role {name} starts from {weights}, but there is no role {weights[1:]!r} with weights of its own"
                )
            weights = roles[weights[1:]].weights
        out[name] = replace(spec, weights=weights)
    return out
