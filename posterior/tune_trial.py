"""One trial of a search: `posterior resume` in a process of its own, watched by a small Ray Tune actor.

    Tune's controller ──► Trial actor (reserves nothing) ──► posterior resume RUN ──joins the same Ray──► samplers, learner, ...
           ◄── step, metric ── reads RUN/metrics.jsonl ◄──────── writes ────────────┘

The run is a job of its own in the cluster: when its process ends, for whatever reason, Ray takes away everything it
started there. It starts by `resume` because that also starts a run that has nothing but its configuration.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from posterior import child
from posterior.child import end, failure
from posterior.rundir import RunDir

HEARTBEAT = 1.0
"""Seconds between results while there is no news: as long as Ctrl-C may go unheard."""
POLL = 0.2
LOG = "trial.log"
STOPPED = "stopped"
"""Status of a run that the search's scheduler ended early."""


@dataclass(frozen=True)
class TrialTask:
    """What a trial's actor has to do. over: the run has ended in an earlier part of the search, tell its figures only."""

    name: str
    run: str
    steps: int
    metric: str
    over: bool
    cwd: str


class Trial(tune.Trainable):
    """config: {"trial": place in tasks}.

    Reports {"step", "metric"} of every evaluation, {"at": step} in between, and {"done", "failed"} at the end.
    """

    def setup(self, config: dict[str, Any], tasks: Sequence[TrialTask] = ()) -> None:
        self.task = tasks[config["trial"]]
        self.run = RunDir(self.task.run)
        self.reported = -1
        self.process = None if self.task.over else start(self.task)

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + HEARTBEAT
        while True:
            ended = self.process is None or self.process.poll() is not None  # looked at before the rows are read
            rows = self.run.read_metrics()
            for row in rows:
                # the last evaluation is held back until the run has ended, so that no scheduler cuts off its last checkpoint
                new = row.get("kind") == "eval" and row["version"] > self.reported
                if new and (ended or row["version"] < self.task.steps):
                    return self._evaluation(row)
            if ended:
                return {"done": True, "failed": "" if self.process is None else self._failure(self.process)}
            if time.monotonic() > until:
                return {"at": max((int(row["version"]) for row in rows), default=0)}
            time.sleep(POLL)

    def _failure(self, process: subprocess.Popen[bytes]) -> str:
        return failure(self.run, process.communicate()[0], process.returncode, LOG)

    def _evaluation(self, row: dict[str, Any]) -> dict[str, Any]:
        self.reported = int(row["version"])
        value = row.get(self.task.metric)  # null where it was not a number
        return {"at": self.reported} | ({} if value is None else {"step": self.reported, "metric": float(value)})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `setup` continues the run from its own."""

    def cleanup(self) -> None:
        if self.process is not None:
            end(self.process)


def start(task: TrialTask) -> subprocess.Popen[bytes]:
    """The run as a process that joins the Ray this one belongs to. Its output goes to the run's trial.log."""
    with open(RunDir(task.run).path / LOG, "ab") as log:
        address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        return child.start(["resume", task.run], task.cwd, address, log)
