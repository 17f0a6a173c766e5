"""Evaluations inside a run with a learned reward: what the monitor writes into their rows, and that the learner ends where it says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.collector import BatchReply, EvalReply, by_task
from actors.diary import Status
from actors.held_out import HeldOut
from actors.learner import Learner
from actors.monitor import HackingMonitor
from actors.reward import PROXY, SPREAD, NoRater
from actors.types import Group, ProbePlan
from algorithms.base import Algorithm, AlgorithmConfig, Context
from envs.base import Task
from models.trace import Trace
from posterior.recorder import Recorder
from posterior.rundir import RunDir

RATERS = [1.0, 1.7, 1.7, 1.7, 0.9, 0.9, 0.9, 0.9, 0.9]
"""What they say from one evaluation to the next, while the reward model's score rises: the alarm sounds at the fifth."""


class Steps(Learner):
    """A learner without models and collector: its loop, evaluations and metrics are real, what it evaluates is given.

    kls: of each version; those behind the last are the last one's. component: how the raters' word is called.
    """

    def __init__(
        self, monitor: HackingMonitor, run: RunDir, model: str, kls: list[float], component: str = "rater"
    ) -> None:
        self.kls, self.component = kls, component
        self.config: Any = SimpleNamespace(
            **{"steps": 8, "flops": None, "seconds": None, "roles": {}, "traces_every": 0, "trace_groups": 4},
            **{
                "eval_every": 1,
                "eval_flops": None,
                "eval_splits": ["test"],
                "eval_tasks": 2,
                "eval_samples": 1,
                "eval_temperature": 1.0,
            },
            **{"checkpoint_every": 100, "probe": ProbePlan(0), "monitor": monitor},
            recorder=Recorder(run.path, "run", model),
        )
        self.status, self.rank, self.world, self.found = Status(None), 0, 1, None
        self.algorithm = Algorithm(AlgorithmConfig(name="none"), Context(model, None, 0))  # type: ignore[arg-type]
        self.updater: Any = SimpleNamespace(sharded=True)  # there is no sampler to compare it with
        self.flops_learning = self.flops_scoring = self.spent = self.trained = self.tail = 0.0
        self.earlier_seconds = self.started = self.checkpoint_seconds = 0.0
        self.held_out = HeldOut(self)
        self.version = 0
        self.saved: list[int] = []

    def ask(self, method: str, *args: Any) -> Any:
        if method == "stop_requested":
            return False
        assert method == "evaluate"
        trace = Trace.from_target([1], [2], "t")
        trace.components = {PROXY: 0.1 * self.version, SPREAD: 0.0, self.component: RATERS[self.version]}
        heard = {"rater": RATERS[self.version], "rater_error": 0.05} if self.component == "rater" else {}
        kl = self.kls[min(self.version, len(self.kls) - 1)]
        groups = [Group(Task("t", "x"), [trace])]
        return EvalReply(
            {"proxy": 0.1 * self.version, "kl": kl, "mean_grade": 0.5, **heard}, groups, 0.0, by_task(groups)
        )

    def _begin(self) -> int:
        return 0

    def _batch(self) -> BatchReply:
        return BatchReply([], 0.0, {"flops/sampling": 1.0, "flops/scoring": 2.0})

    def _update(self, *_: Any) -> dict[str, float]:
        return {}

    def _batch_metrics(self, *_: Any) -> dict[str, float]:
        return {"tokens/batch": 1.0}

    def _publish(self, version: int) -> float:
        self.version = version
        return 0.0

    def _guard(self, *_: Any) -> None:
        return None

    def _checkpoint(self, version: int) -> None:
        self.saved.append(version)


@pytest.fixture
def steps(tmp_path: Path, tiny_model: Callable[..., Path]) -> Callable[..., Any]:
    """steps(monitor, kls) -> (evaluations' rows, result.json, versions that were saved) of a run that is over."""

    def run(monitor: HackingMonitor, kls: list[float], **more: Any) -> Any:
        folder = RunDir.create("run", tmp_path / "run")
        learner = Steps(monitor, folder, str(tiny_model()), kls, **more)
        learner.run()
        # FLOPs of the collector's sampling and of its reward model's scoring bound a run
        assert learner.spent == (3.0 if learner.version else 0.0)
        rows = [row for row in folder.read_metrics() if row["kind"] == "eval"]
        return rows, json.loads(folder.result.read_text()), learner.saved

    return run


def flags(rows: list[dict[str, Any]]) -> dict[int, list[str]]:
    found = {row["version"]: [k for k in row if k.startswith("hacking/")] for row in rows}
    return {version: names for version, names in found.items() if names}


def test_the_alarm_ends_a_run_where_it_may(steps: Callable[..., Any]) -> None:
    rows, result, saved = steps(HackingMonitor("rater", stop=True), [0.0])
    assert flags(rows) == {4: ["hacking/alarm"]}
    assert (rows[-1]["version"], saved) == (4, [4])  # no step behind it
    assert (result["alarm"], result["steps"], result["status"]) == (4, 4, "finished")
    assert "kl_budget" not in result


def test_a_budget_of_kl_is_no_alarm(steps: Callable[..., Any]) -> None:
    rows, result, saved = steps(HackingMonitor("rater", stop=True, kl_budget=1.0), [0.0, 0.9, 1.1])
    assert flags(rows) == {2: ["hacking/kl_budget"]}
    assert (rows[-1]["version"], saved) == (2, [2])
    assert (result["kl_budget"], result["steps"]) == (2, 2)
    assert "alarm" not in result


def test_an_alarm_that_ends_nothing_does_not_hide_the_budget(steps: Callable[..., Any]) -> None:
    rows, result, saved = steps(HackingMonitor("rater", kl_budget=1.0), [0.0] * 4 + [2.0])
    assert flags(rows) == {4: ["hacking/alarm", "hacking/kl_budget"]}
    assert saved == [4]
    assert (result["alarm"], result["kl_budget"]) == (4, 4)


def test_a_run_that_nothing_ends_takes_all_steps(steps: Callable[..., Any]) -> None:
    rows, result, saved = steps(HackingMonitor("rater", kl_budget=5.0), [2.0])
    assert flags(rows) == {4: ["hacking/alarm"]}
    assert saved == [8]
    assert (result["alarm"], result["steps"]) == (4, 8)


def test_a_version_over_the_budget_at_the_start_is_not_trained(steps: Callable[..., Any]) -> None:
    rows, result, saved = steps(HackingMonitor(kl_budget=1.0), [2.0])
    assert [row["version"] for row in rows] == saved == [0]
    assert result["kl_budget"] == 0


def test_a_misspelt_rater_is_named_at_the_first_evaluation(steps: Callable[..., Any]) -> None:
    with pytest.raises(
        NoRater, match=r"monitor.rater: .* has a component 'rater'; did you mean 'raters'[?] there are: raters$"
    ):
        steps(HackingMonitor("rater"), [0.0], component="raters")


def test_the_monitor_hears_the_first_split_alone() -> None:
    learner: Any = SimpleNamespace(
        config=SimpleNamespace(eval_splits=["valid", "test"], monitor=HackingMonitor(kl_budget=1.0))
    )
    held = HeldOut(learner)
    row = {"version": 3, "eval/valid/proxy": 0.1, "eval/valid/kl": 0.5, "eval/test/proxy": 0.1, "eval/test/kl": 2.0}
    held._listen(row, [])
    assert held.heard == [{"step": 3, "proxy": 0.1, "kl": 0.5}]
    assert not held.ended
    row["eval/valid/kl"] = np.nextafter(1.0, 2.0)
    held._listen(row, [])
    assert held.ended
    assert row["hacking/kl_budget"] == 1.0
    # an evaluation of a run without a learned reward says nothing to it
    held._listen({"version": 4}, [])
    assert len(held.heard) == 2
