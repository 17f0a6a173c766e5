"""`posterior tune`: Ray Tune over a run configuration; every trial is a whole run in a folder of its own.

    OUT/search.json   the search, its trials, and which of them the scheduler stopped
    OUT/trials/NAME/  a run directory each: report, eval and resume work on it
    OUT/best.yaml     the best trial's configuration, for `posterior train`
    OUT/trials.csv    one line a trial           OUT/search.html   table, metric against every searched key, curves

What happened is read from the run directories, never from Tune's own files: a search that was stopped or killed goes on
from them (`posterior resume OUT`). Trials that ended are told to the scheduler again from their metrics, not run again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posterior import launch
from posterior.child import mark
from posterior.cluster import cluster
from posterior.config_load import ConfigError, Resolved, dump, load
from posterior.progress import SearchProgress
from posterior.rundir import RunDir, make_folder, plain, write_atomic
from posterior.train import RunFailed, say
from posterior.tune_config import RECORD, SearchPlan, TrialPlan, TuneConfig
from posterior.tune_page import write_page
from posterior.tune_table import Row, as_text, best_row, row_of, write_csv
from posterior.tune_trial import STOPPED, Trial, TrialTask

TRIALS = "trials"
OVER = ("finished", STOPPED)
"""Statuses of trials that a resumed search does not take up again."""


class SearchDir:
    """The folder of a search. Its state is the search as planned, plus {"stopped": {trial: step}}."""

    def __init__(self, path: Path, config: TuneConfig, trials: Sequence[TrialPlan], stopped: dict[str, int]) -> None:
        self.path, self.config, self.trials, self.stopped = path, config, list(trials), stopped

    @classmethod
    def create(cls, plan: SearchPlan, out: Path | None) -> SearchDir:
        """The folder with every trial's run directory in it, ready to be resumed."""
        search = cls(make_folder(plan.config.name, out), plan.config, plan.trials, {})
        for trial in search.trials:
            write_atomic(RunDir.create(trial.name, search.run(trial.name).path).config, dump(trial.config))
        search.save()
        return search

    @classmethod
    def open(cls, path: Path) -> SearchDir:
        """A search that was started before. Raises ConfigError if a file of it cannot be read."""
        path = path.absolute()
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            config = TuneConfig.model_validate(record["config"])
            listed, stopped = record["trials"], dict(record["stopped"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path / RECORD} cannot be read ({error}); start the search again in a new folder"
            ) from None
        trials = [
            TrialPlan(entry["name"], entry["values"], load(path / TRIALS / entry["name"] / "config.yaml"))
            for entry in listed
        ]
        return cls(path, config, trials, stopped)

    def save(self) -> None:
        trials = [{"name": trial.name, "values": trial.values} for trial in self.trials]
        record = {"config": self.config.model_dump(mode="json"), "trials": trials, "stopped": self.stopped}
        write_atomic(self.path / RECORD, json.dumps(plain(record), indent=2) + "\n")

    def run(self, name: str) -> RunDir:
        return RunDir(self.path / TRIALS / name)

    def rows(self) -> list[Row]:
        """What every trial has come to, in the order of the search."""
        metric, mode = str(self.config.search.metric), self.config.search.mode
        return [row_of(trial, self.run(trial.name), metric, mode, trial.name in self.stopped) for trial in self.trials]


def search(plan: SearchPlan, out: Path | None = None) -> dict[str, Any]:
    """Run a search; returns its outcome as `posterior tune --json` prints it, with the table for people as "text"."""
    needed = _check(plan.trials)
    if plan.repeated:
        say(f"{plan.repeated} draws repeat an earlier one and are left out: the same seed would give the same run")
    return _run(SearchDir.create(plan, out), needed)


def resume(path: Path) -> dict[str, Any]:
    """Continue a search: trials that ended stay as they are, stopped and failed runs go on from their checkpoints."""
    found = SearchDir.open(path)
    if all(row.status in OVER for row in found.rows()):
        raise ConfigError(f"every trial of the search {found.path} has ended; see search.html and best.yaml there")
    return _run(found, _check(found.trials))


def _check(trials: Sequence[TrialPlan]) -> dict[str, float]:
    """What `posterior train` checks before it starts anything, for every trial; returns the CPUs and GPUs one may need."""
    needed = {"CPU": 0.0, "GPU": 0.0}
    for trial in trials:
        try:
            plan = launch.make_plan(trial.config)
        except ValueError as error:
            raise ConfigError(f"trial {trial.name}: {error}") from error
        needed = {k: max(v, needed[k]) for k, v in launch.needed_resources(plan, learners=True).items()}
    return needed


def _run(found: SearchDir, needed: Mapping[str, float]) -> dict[str, Any]:
    say(f"search directory: {found.path}")
    began = time.perf_counter()
    with cluster(found.trials[0].config.resources, needed):
        concurrent = concurrency(found, needed)
        interrupted, crashed = _fit(found, concurrent)
    for name in found.stopped:
        if found.run(name).read_result().get("status") != "finished":
            mark(found.run(name), STOPPED)
    for name, sentence in crashed.items():
        mark(found.run(name), "failed", sentence)
    return _outcome(found, interrupted, concurrent, time.perf_counter() - began)


def concurrency(found: SearchDir, needed: Mapping[str, float]) -> int:
    """How many trials run at once: all that fit, or as many as asked for. Raises ConfigError if those do not fit."""
    import ray

    there = ray.cluster_resources()
    fits = {kind: int(there.get(kind, 0.0) / need + 1e-6) for kind, need in needed.items() if need > 0}
    most = min([*fits.values(), len(found.trials)])
    wanted = found.config.search.concurrent
    if wanted is None:
        return most
    for kind, count in fits.items():
        if count < wanted:
            raise ConfigError(
                f"search.concurrent is {wanted} but {count} trials fit at once: each needs {needed[kind]:g} {kind}s of "
                f"{there.get(kind, 0.0):g}; lower resources.sampler_{kind.lower()}s and resources.learner_{kind.lower()}s "
                "(fractions are allowed), or search.concurrent"
            )
    return min(wanted, len(found.trials))


def _fit(found: SearchDir, concurrent: int) -> tuple[bool, dict[str, str]]:
    """Run the trials under Ray Tune. Returns whether Ctrl-C ended it, and trials whose own actor died, with a sentence."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    config = found.config.search
    rows = {row.name: row for row in found.rows()}
    again = [trial for trial in found.trials if rows[trial.name].status in OVER]
    others = [trial for trial in found.trials if rows[trial.name].status not in OVER]
    # those that ended come first, so that the scheduler knows of them; without a scheduler nobody needs to
    queue = ([*again] if config.scheduler == "asha" else []) + others
    tasks = [
        TrialTask(
            name=trial.name,
            run=str(found.run(trial.name).path),
            steps=trial.config.train.steps,
            metric=str(config.metric),
            over=trial in again,
            cwd=os.getcwd(),
        )
        for trial in queue
    ]
    scheduler: Any = FIFOScheduler()
    if config.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(
            time_attr="step",
            metric="metric",
            mode=config.mode,
            grace_period=config.grace_period or 1,  # filled in when the search was planned
            reduction_factor=config.reduction_factor,
            max_t=max(trial.config.train.steps for trial in found.trials) + 1,  # a run ends by itself at its last step
        )
    watch = _watch(found, tasks, SearchProgress(len(others)))
    with _quiet_tune(), _interruptible(watch):
        tune.Tuner(
            # a trial's actor only waits, and its run reserves for itself; Tune wants something to be reserved: one byte
            tune.with_resources(tune.with_parameters(Trial, tasks=tasks), {"memory": 1}),
            param_space={"trial": tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                max_concurrent_trials=concurrent,
                reuse_actors=False,
                trial_dirname_creator=lambda trial: tasks[trial.config["trial"]].name,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),  # Tune's own files of each part of the search, which nothing reads
                storage_path=str(found.path / ".ray"),
                stop=watch.stopper,
                callbacks=[watch],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    return watch.asked, watch.crashed


def _watch(found: SearchDir, tasks: Sequence[TrialTask], progress: SearchProgress) -> Any:
    """Tune's callback: keeps the record of stopped trials, and shows what happens."""
    from ray import tune

    sign = 1 if found.config.search.mode == "max" else -1

    class StopAll(tune.Stopper):
        asked = False

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return self.asked

    class Watch(tune.Callback):
        def __init__(self) -> None:
            self.stopper = StopAll()
            self.crashed: dict[str, str] = {}
            self.metrics: dict[str, float] = {}

        @property
        def asked(self) -> bool:
            return self.stopper.asked

        def interrupt(self, *_: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.stopper.asked = True
            progress.say("stopping every trial after its step, with a checkpoint; press Ctrl-C again to stop at once")

        def setup(self, *_: Any, **__: Any) -> None:
            progress.start()

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            progress.update()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.show(trial, "running")

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            if "metric" in result:
                self.metrics[tasks[trial.config["trial"]].name] = result["metric"]
                best = max(self.metrics, key=lambda name: sign * self.metrics[name])
                progress.best = f"best so far {self.metrics[best]:.3f} ({best})"
            self.show(trial, "running", at=result.get("at"))

        def show(self, trial: Any, status: str, at: int | None = None, note: str = "") -> None:
            task = tasks[trial.config["trial"]]
            if not task.over:
                progress.take(task.name, status, at, task.steps, note)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            task, last = tasks[trial.config["trial"]], trial.last_result
            if "failed" in last:  # the run ended by itself; Tune sets "done" also where the scheduler stops a trial
                self.show(trial, "failed" if last["failed"] else "finished", note=last["failed"])
            elif not self.asked and not task.over:
                found.stopped[task.name] = int(last.get("at", 0))
                found.save()
                self.show(trial, STOPPED, note=f"at step {last.get('at', 0)}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error = trial.get_pickled_error() or trial.get_error()
            reason = (str(error or "").strip().splitlines() or [type(error).__name__])[-1]
            sentence = f"the process that watched this trial ended: {reason}"
            self.crashed[tasks[trial.config["trial"]].name] = sentence
            self.show(trial, "failed", note=sentence)

        def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
            progress.stop()

    return Watch()


@contextmanager
def _interruptible(watch: Any) -> Iterator[None]:
    """Ctrl-C asks the trials to stop in order; a second one ends everything."""
    before = signal.signal(signal.SIGINT, watch.interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune without its own table, log files and signal handler."""
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer output prints although verbose is 0
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # not every result is an evaluation
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    yield


def _outcome(found: SearchDir, interrupted: bool, concurrent: int, seconds: float) -> dict[str, Any]:
    """Write best.yaml, trials.csv and search.html; returns the same facts."""
    rows = found.rows()
    best = best_row(rows, found.config.search.mode)
    write_csv(found.path / "trials.csv", rows)
    failed = [row for row in rows if row.status == "failed"]
    if len(failed) == len(rows):
        raise RunFailed(
            f"all {len(rows)} trials failed (see {found.path / 'trials.csv'}); the first: {failed[0].error}"
        )
    result: dict[str, Any] = {
        "search": str(found.path),
        "status": "interrupted" if interrupted else "finished",
        "metric": found.config.search.metric,
        "mode": found.config.search.mode,
        "concurrent": concurrent,
        "seconds": seconds,
        "trials": [row.facts() for row in rows],
        "best": None,
        "table": str(found.path / "trials.csv"),
        "text": as_text(rows, str(found.config.search.metric), found.config.search.mode),
    }
    if best is not None:
        resolved: Resolved = next(trial.resolved for trial in found.trials if trial.name == best.name)
        write_atomic(found.path / "best.yaml", dump(resolved.config))
        result["best"] = {**best.facts(), "config": str(found.path / "best.yaml")}
    shown = [found.run(row.name).path for row in rows if found.run(row.name).metrics.exists()]
    if shown:
        result["report"] = str(write_page(found.path / "search.html", found.config, rows, shown))
    if interrupted:
        say(f"interrupted; continue with `posterior resume {found.path}`")
    return result
