"""`posterior train` and `posterior resume`: start the actors, run the learner under Ray Train, show progress, write the report."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors import checkpoint
from actors.collector import Neighbours
from actors.diary import Diary
from actors.learner import LearnerConfig, learner_loop
from actors.types import ProbePlan
from actors.update import OptimiserConfig
from models.loading import load_config
from posterior import launch
from posterior.afterwards import complete, pending
from posterior.cluster import ClusterError, StopSignals, cluster
from posterior.config import Optimiser, RunConfig
from posterior.config_load import ConfigError, Resolved, dump, load
from posterior.deaths import CollectorDeaths, LearnerDeaths, learner_failure
from posterior.progress import Progress
from posterior.recorder import Recorder
from posterior.rundir import RunDir, write_atomic
from posterior.watchdog import Watchdog

log = logging.getLogger("posterior")

FAREWELL_SECONDS = 15.0
"""How long Ray Train may take to give up after its workers were killed."""


class RunFailed(RuntimeError):
    """The run ended without its result; one sentence."""


def train(resolved: Resolved, out: Path | None = None, as_json: bool = False) -> dict[str, Any]:
    """Train as configured; returns result.json's content with the run directory and the report's path."""
    plan = launch.make_plan(resolved.config)
    launch.check_heads(plan)
    run = RunDir.create(resolved.config.name, out)
    write_atomic(run.config, dump(resolved.config))
    try:
        return _run(plan, run)
    except ClusterError:
        run.discard()
        raise


def resume(run_dir: Path) -> dict[str, Any]:
    """Continue a stopped run from its newest checkpoint (from the start if it has none)."""
    run = RunDir.open(run_dir)
    config = load(run.config, []).config
    if pending(run, config):
        complete(run, config)
        return {**run.read_result(), "run": str(run.path), "report": _report(run)}
    if run.read_result().get("status") == "finished":
        raise ConfigError(
            f"the run {run.path} is finished; raise train.steps (or flops, seconds) in its config.yaml to train it further"
        )
    plan = launch.make_plan(config)
    found = checkpoint.latest(run.checkpoints)
    if found is not None:
        checkpoint.check_model(found, load_config(plan.model, plan.config.model.trust_remote_code))
    for newer in sorted(run.checkpoints.glob("step_*"), reverse=True):
        if newer == found:
            break
        say(f"passing over a damaged checkpoint: {checkpoint.damage(newer)}; continuing from {found}")
    return _run(plan, run)


def learner_config(plan: launch.Plan, run: RunDir, collector: Any, neighbours: Neighbours) -> LearnerConfig:
    """The learner's part of the configuration."""
    c: RunConfig = plan.config
    recorder = Recorder(run.path, c.name, plan.model, c.log.wandb, c.log.mlflow)
    lora = None if c.model.lora is None else c.model.lora.model_dump()
    return LearnerConfig(
        seed=c.seed,
        roles=plan.roles,
        optimisers={
            role: _optimiser(c.train.optimiser, spec.optimiser) for role, spec in plan.roles.items() if spec.trainable
        },
        model_dtype=c.model.dtype,
        lora=lora,
        grad=c.model.grad,
        trust_remote_code=c.model.trust_remote_code,
        distribution=plan.distribution,
        steps=c.train.steps,
        flops=c.train.flops,
        seconds=c.train.seconds,
        epochs=c.train.epochs,
        minibatches=c.train.minibatches,
        token_budget=c.train.token_budget,
        max_bad_steps=c.train.max_bad_steps,
        checkpoint_every=c.train.checkpoint_every,
        keep_checkpoints=c.train.keep_checkpoints,
        eval_every=c.eval.every,
        eval_flops=c.eval.flops,
        eval_splits=c.eval.splits,
        eval_tasks=c.eval.tasks,
        eval_samples=c.eval.samples,
        eval_temperature=c.eval.temperature,
        monitor=launch.hacking_monitor(c) if plan.learned is not None else None,
        probe=ProbePlan(c.eval.thoughts, c.eval.anchoring, c.eval.step_mark),
        traces_every=c.log.traces_every,
        trace_groups=c.log.trace_groups,
        threads=c.resources.learner_threads,
        sharding=c.resources.sharding,
        checkpoints=run.checkpoints,
        make_algorithm=plan.make_algorithm,
        recorder=recorder,
        collector=collector,
        neighbours=neighbours,
        diary=Diary(run.path),
    )


def _optimiser(defaults: Optimiser, overrides: dict[str, Any]) -> OptimiserConfig:
    return replace(OptimiserConfig(**defaults.model_dump()), **overrides)


def _run(plan: launch.Plan, run: RunDir) -> dict[str, Any]:
    config = plan.config
    say(f"run directory: {run.path}")
    diary = Diary(run.path)
    diary.clear_statuses()
    run.result.unlink(missing_ok=True)  # of an attempt that stopped
    with cluster(config.resources, launch.needed_resources(plan, learners=True)):
        neighbours = launch.start_neighbours(plan, armed=False, diary=diary)
        collector = launch.start_collector(plan, diary)
        learner = learner_config(plan, run, collector, neighbours)
        failure = _fit(run, diary, collector, learner, config)
        untold = bool(failure) and run.read_result().get("status") != "failed"
        if untold:
            with suppress(OSError):  # the sentence is told below, whatever the disk takes
                learner.recorder.finish("failed", -1, failure)
    if untold:
        raise RunFailed(f"training stopped: {failure}")
    result = run.read_result()
    if pending(run, config):
        complete(run, config)
        result = run.read_result()
    report = _report(run)
    if result.get("status") == "failed":
        raise RunFailed(f"training stopped: {result.get('error')}")
    if result.get("status") == "interrupted":
        say(f"interrupted; continue with `posterior resume {run.path}`")
    return {**result, "run": str(run.path), "report": report}


def _report(run: RunDir) -> str:
    """The report's path; "" where a full disk does not take it, which must not cost the run its end."""
    from posterior.report import write_report

    try:
        return str(write_report([run.path]))
    except OSError as error:
        say(f"the report could not be written ({error.strerror}); write it later with `posterior report {run.path}`")
        return ""


def _fit(run: RunDir, diary: Diary, collector: Any, learner: LearnerConfig, config: RunConfig) -> str:
    """Run the learner under Ray Train while this thread shows progress and listens for Ctrl-C; returns what went wrong."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchTrainer

    _quiet_ray_train()
    r = config.resources
    callbacks: list[Any] = [LearnerDeaths(diary, learner.checkpoints)]
    trainer = TorchTrainer(
        learner_loop,
        train_loop_config={"learner": learner},
        scaling_config=ScalingConfig(
            num_workers=r.learners,
            use_gpu=r.learner_gpus > 0,
            resources_per_worker={"CPU": r.learner_cpus, **({"GPU": r.learner_gpus} if r.learner_gpus else {})},
        ),
        run_config=TrainRunConfig(
            name="train",
            storage_path=str(run.path / ".ray"),
            failure_config=FailureConfig(max_failures=r.max_restarts),
            callbacks=callbacks,
        ),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    # in a thread: Ray Train would otherwise take Ctrl-C for itself and abort without a checkpoint
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    asked = False
    alive = CollectorDeaths(collector, diary)
    watchdog = Watchdog(diary, config.log.watchdog_seconds, config.log.watchdog_stop_seconds)
    with Progress(run, config.train.steps, watchdog) as progress, StopSignals() as stop:
        while thread.is_alive() and not watchdog.stop:
            progress.update()
            alive.look()
            if asked:
                collector.request_stop.remote()  # again and again: a collector that came back has forgotten it
            time.sleep(0.2)
            if stop.count > 1:
                raise KeyboardInterrupt
            if stop.count and not asked:
                asked = True
                progress.say("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")
        progress.update()
    onwards = f"continue with `posterior resume {run.path}`"
    if watchdog.stop:
        diary.event("watchdog", f"{watchdog.stop}; the run is stopped", "error")
        launch.kill_workers()
        # Ray Train notices that its workers are gone; a shutdown of Ray under a call in flight can take this process with it
        thread.join(FAREWELL_SECONDS)
        return f"{watchdog.stop}; {onwards}"
    watchdog.read()
    if failure and not watchdog.error:
        return f"{learner_failure(failure[0], r.max_restarts)}; {onwards}"
    return watchdog.error


def _quiet_ray_train() -> None:
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)
