"""What the runs of a comparison came to, read from their folders, and the figures that follow: estimates, differences, strata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from posterior.compare_config import CompareConfig
from posterior.compare_run import Job
from posterior.compare_stats import Bootstrap, Estimate, holm, strata
from posterior.rundir import RunDir

CHARGED = ("flops/sampling", "flops/scoring", "flops/learning")
"""What a run's compute is made of; evaluation is not charged."""
LIKELIHOOD = "logp_answer"
"""The probes' log p(y*|x), which before training tells how easy a task was."""

ByTask = dict[str, dict[str, float]]
"""Metric to task id to value."""


@dataclass(frozen=True)
class Facts:
    """One run. before, after: by task, at version 0 and at the last version; {} unless it has finished.

    status: finished, failed, interrupted or waiting. error: of a failed one. seconds: of the whole run; trained: of training alone.
    """

    job: Job
    status: str
    error: str
    steps: int
    seconds: float
    trained: float
    flops: dict[str, float]
    before: ByTask
    after: ByTask

    def mean(self, metric: str, when: str = "after") -> float | None:
        values = list(getattr(self, when).get(metric, {}).values())
        return float(np.mean(values)) if values else None


def read(job: Job, run: RunDir, split: str) -> Facts:
    """The facts of one run on one split. Raises ValueError naming a file that cannot be read."""
    result, rows = run.read_result(), run.read_metrics()
    train = [row for row in rows if row.get("kind") == "train"]
    last = train[-1] if train else {}
    status = str(result.get("status") or ("interrupted" if rows else "waiting"))
    error = str(result.get("error") or "") if status == "failed" else ""
    kept = run.read_held_out(split) if status == "finished" else {}
    return Facts(
        job=job,
        status=status,
        error=error,
        steps=int(last.get("version", 0)),
        seconds=float(rows[-1].get("seconds") or 0.0) if rows else 0.0,
        trained=float(last.get("time/trained") or 0.0),
        flops={name.removeprefix("flops/"): float(last.get(name) or 0.0) for name in CHARGED},
        before=_by_task(kept.get(0, {})),
        after=_by_task(kept[max(kept)]) if kept else {},
    )


def _by_task(kept: Mapping[str, Sequence[Any]]) -> ByTask:
    tasks = kept.get("tasks", [])
    return {
        metric: {task: float(value) for task, value in zip(tasks, values, strict=True) if value is not None}
        for metric, values in kept.items()
        if metric != "tasks"
    }


def choose(tried: Sequence[Facts], metric: str) -> Facts | None:
    """The best of an arm's sweep, of equals the first; None if nothing was measured."""
    able = [facts for facts in tried if facts.mean(metric) is not None]
    return max(able, key=lambda facts: facts.mean(metric) or 0.0) if able else None


def figures(config: CompareConfig, runs: Mapping[str, Sequence[Facts]]) -> dict[str, Any]:
    """All estimates: {"tasks", "metrics", "means", "differences", "strata"}. runs: of every arm, in the order of the seeds."""
    every = [facts for own in runs.values() for facts in own]
    tasks = list(dict.fromkeys(task for facts in every for task in facts.after.get("pass@1", {})))
    metrics = [name for name in config.metrics if any(facts.after.get(name) for facts in every)]
    bootstrap = Bootstrap(config.bootstrap, len(config.seeds), max(1, len(tasks)))
    out: dict[str, Any] = {"tasks": len(tasks), "metrics": metrics, "means": {}, "differences": {}, "strata": {}}
    ease_N = likelihood_before(config, runs, tasks)
    places = strata(ease_N, config.strata)
    out["strata_tasks"] = [len(place) for place in places]
    for metric in metrics:
        after = {arm: matrix(own, metric, "after", tasks) for arm, own in runs.items()}
        before = {arm: matrix(own, metric, "before", tasks) for arm, own in runs.items()}
        out["means"][metric] = {
            arm: {"before": _plain(bootstrap.estimate(before[arm])), "after": _plain(bootstrap.estimate(after[arm]))}
            for arm in runs
        }
        out["differences"][metric] = _differences(bootstrap, after, str(config.reference))
        gains = {arm: after[arm] - before[arm] for arm in runs}
        out["strata"][metric] = {
            arm: [_plain(bootstrap.estimate(gain[:, place])) if len(place) else None for place in places]
            for arm, gain in gains.items()
        }
    return out


def matrix(own: Sequence[Facts], metric: str, when: str, tasks: Sequence[str]) -> np.ndarray:
    """float64[S, N]: the values of an arm's runs; NaN where there is none."""
    found = [getattr(facts, when).get(metric, {}) for facts in own]
    return np.array([[values.get(task, np.nan) for task in tasks] for values in found]).reshape(len(own), len(tasks))


def likelihood_before(config: CompareConfig, runs: Mapping[str, Sequence[Facts]], tasks: Sequence[str]) -> np.ndarray:
    """float64[N]: p_0(y*|x) of each task, the mean over seeds before training; the same for all arms, so that each stratum holds the same
    tasks. Of the reference, or if that measured none of the first arm that did; NaN where nothing is known."""
    for arm in (str(config.reference), *runs):
        log_SN = matrix(runs[arm], LIKELIHOOD, "before", tasks)
        known_N = ~np.isnan(log_SN).all(0)
        if known_N.any():
            out = np.full(len(tasks), np.nan)
            out[known_N] = np.nanmean(np.exp(log_SN[:, known_N]), axis=0)
            return np.minimum(out, 1.0)  # rounding may lift a certain answer above 1
    return np.full(len(tasks), np.nan)


def _differences(bootstrap: Bootstrap, after: Mapping[str, np.ndarray], reference: str) -> dict[str, Any]:
    """Of each other arm to the reference, paired by seed and task; p_holm: corrected over the arms."""
    found = {
        arm: bootstrap.estimate(values - after[reference], test=True)
        for arm, values in after.items()
        if arm != reference
    }
    known = {arm: estimate for arm, estimate in found.items() if estimate is not None}
    corrected = holm([estimate.p or 0.0 for estimate in known.values()])
    out = {arm: {**asdict(e), "p_holm": p} for (arm, e), p in zip(known.items(), corrected, strict=True)}
    return {arm: out.get(arm) for arm in found}


def _plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
