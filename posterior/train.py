"""`posterior train` and `posterior resume`: start the actors, run the learner under Ray Train, show progress, write the report."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.collector import Neighbours
from actors.learner import LearnerConfig, learner_loop
from actors.update import OptimiserConfig
from posterior import launch
from posterior.config import Optimiser, RunConfig
from posterior.config_load import ConfigError, Resolved, dump, load
from posterior.progress import Progress
from posterior.recorder import Recorder
from posterior.rundir import RunDir, write_atomic

log = logging.getLogger("posterior")


class RunFailed(RuntimeError):
    """The run ended without its result; one sentence."""


def train(resolved: Resolved, out: Path | None = None, as_json: bool = False) -> dict[str, Any]:
    """Train as configured; returns result.json's content with the run directory and the report's path."""
    plan = launch.make_plan(resolved.config)
    run = RunDir.create(resolved.config.name, out)
    write_atomic(run.config, dump(resolved.config))
    return _run(plan, run)


def resume(run_dir: Path) -> dict[str, Any]:
    """Continue a stopped run from its newest checkpoint (from the start if it has none)."""
    run = RunDir.open(run_dir)
    if run.read_result().get("status") == "finished":
        raise ConfigError(f"the run {run.path} is finished; raise train.steps in its config.yaml to train it further")
    return _run(launch.make_plan(load(run.config, []).config), run)


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
        trust_remote_code=c.model.trust_remote_code,
        distribution=plan.distribution,
        steps=c.train.steps,
        epochs=c.train.epochs,
        minibatches=c.train.minibatches,
        token_budget=c.train.token_budget,
        max_bad_steps=c.train.max_bad_steps,
        checkpoint_every=c.train.checkpoint_every,
        keep_checkpoints=c.train.keep_checkpoints,
        eval_every=c.eval.every,
        eval_splits=c.eval.splits,
        eval_tasks=c.eval.tasks,
        eval_samples=c.eval.samples,
        eval_temperature=c.eval.temperature,
        traces_every=c.log.traces_every,
        trace_groups=c.log.trace_groups,
        threads=c.resources.learner_threads,
        sharding=c.resources.sharding,
        checkpoints=run.checkpoints,
        make_algorithm=plan.make_algorithm,
        recorder=recorder,
        collector=collector,
        neighbours=neighbours,
    )


def _optimiser(defaults: Optimiser, overrides: dict[str, Any]) -> OptimiserConfig:
    return replace(OptimiserConfig(**defaults.model_dump()), **overrides)


def _run(plan: launch.Plan, run: RunDir) -> dict[str, Any]:
    config = plan.config
    say(f"run directory: {run.path}")
    with launch.cluster(config, launch.needed_resources(plan, learners=True)):
        neighbours = launch.start_neighbours(plan, armed=False)
        collector = launch.start_collector(plan)
        failure = _fit(run, collector, learner_config(plan, run, collector, neighbours), plan.config)
    result = run.read_result()
    if failure is not None and result.get("status") != "failed":
        raise RunFailed(f"training stopped: {failure}; continue with `posterior resume {run.path}`") from failure
    from posterior.report import write_report

    report = write_report([run.path])
    if result.get("status") == "failed":
        raise RunFailed(f"training stopped: {result.get('error')}")
    if result.get("status") == "interrupted":
        say(f"interrupted; continue with `posterior resume {run.path}`")
    return {**result, "run": str(run.path), "report": str(report)}


def _fit(run: RunDir, collector: Any, learner: LearnerConfig, config: RunConfig) -> BaseException | None:
    """Run the learner under Ray Train while this thread shows progress and listens for Ctrl-C; returns what went wrong."""
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchTrainer

    _quiet_ray_train()
    r = config.resources
    trainer = TorchTrainer(
        learner_loop,
        train_loop_config={"learner": learner},
        scaling_config=ScalingConfig(
            num_workers=r.learners,
            use_gpu=r.learner_gpus > 0,
            resources_per_worker={"CPU": r.learner_cpus, **({"GPU": r.learner_gpus} if r.learner_gpus else {})},
        ),
        run_config=TrainRunConfig(
            name="train", storage_path=str(run.path / ".ray"), failure_config=FailureConfig(max_failures=r.max_restarts)
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
    with Progress(run, config.train.steps) as progress:
        while thread.is_alive():
            try:
                progress.update()
                time.sleep(0.2)
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                progress.say("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")
                ray.get(collector.request_stop.remote())
        progress.update()
    return failure[0] if failure else None


def _quiet_ray_train() -> None:
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)
