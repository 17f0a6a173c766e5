"""The runs of a comparison: each a whole run directory, and `posterior resume` on it in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from posterior import child
from posterior.config_load import dump, load
from posterior.rundir import RunDir, write_atomic
from posterior.train import say

LOG = "run.log"
"""What a run says while it goes, in its folder."""
POLL = 0.5
LINE_SECONDS = 20.0
"""Between two lines on one run's progress."""


@dataclass(frozen=True)
class Job:
    """One run. values: of the swept keys. tuning: it belongs to the sweep."""

    arm: str
    seed: int
    values: Mapping[str, Any] = field(default_factory=dict)
    tuning: bool = False

    @property
    def name(self) -> str:
        """ARM-seedS, so that reports know what belongs together; in a sweep ARM-lr=0.001-seedS."""
        told = ",".join(f"{key.split('.')[-1]}={value}" for key, value in self.values.items()) if self.tuning else ""
        short = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", told)[:60]
        return f"{self.arm}-{short}-seed{self.seed}" if told else f"{self.arm}-seed{self.seed}"


def prepare(job: Job, arm: Path, folder: Path) -> RunDir:
    """The job's run directory with its configuration in it, ready to be resumed. arm: the configuration of the arm."""
    run = RunDir(folder)
    if not run.config.exists():  # the last thing written: whatever is there without it was never started
        place = "the comparison"
        settings = {**job.values, "seed": job.seed, "name": job.name}
        text = dump(load(arm, [], {key: (value, place) for key, value in settings.items()}).config)
        for part in (run.path, run.traces, run.checkpoints):
            part.mkdir(parents=True, exist_ok=True)
        write_atomic(run.config, text)
    return run


class Started:
    """A run that goes on in a process of its own."""

    def __init__(self, run: RunDir, steps: int) -> None:
        self.run, self.steps = run, steps
        with open(run.path / LOG, "ab") as log:
            self.process = child.start(["resume", str(run.path)], log=log)
        self._told = time.monotonic()

    def ended(self) -> str | None:
        """Wait for a moment; None while it goes on, else why it failed, "" if it did not.

        Raises KeyboardInterrupt if somebody interrupted the run itself.
        """
        try:
            out = self.process.communicate(timeout=POLL)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() - self._told > LINE_SECONDS:
                self._told = time.monotonic()
                say(f"  {progress(self.run, self.steps)}")
            return None
        failure = child.failure(self.run, out, self.process.returncode, LOG)
        if not failure and self.run.read_result().get("status") != "finished":
            raise KeyboardInterrupt
        return failure


def run_all(queue: Iterator[tuple[RunDir, int]], concurrent: int, done: Callable[[RunDir, str], None]) -> None:
    """Start or continue the runs of a queue, so many at once, until all have ended. Ctrl-C ends each with a checkpoint.

    queue: runs with their number of steps; a run is asked for when there is room for it. done: hears of each that ended, and why it
    failed ("" if it did not).
    """
    going: list[Started] = []
    try:
        while True:
            going += [Started(*asked) for asked in islice(queue, concurrent - len(going))]
            if not going:
                return
            for started in list(going):
                if (failure := started.ended()) is not None:
                    going.remove(started)
                    done(started.run, failure)
    except BaseException:
        child.end(*(started.process for started in going))
        raise


def progress(run: RunDir, steps: int) -> str:
    """How far a run is, in a few words."""
    try:
        rows = [row for row in run.read_metrics() if row.get("kind") == "train"]
    except (OSError, ValueError, json.JSONDecodeError):
        rows = []
    if not rows:
        return f"{run.path.name}: before its first step"
    trained = rows[-1].get("time/trained") or 0.0
    return f"{run.path.name}: step {rows[-1]['version']} of at most {steps}, trained for {trained:.0f} s"
