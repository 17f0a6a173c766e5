"""What the trials of a search have come to: one row each, as facts, CSV and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posterior.rundir import RunDir, write_atomic
from posterior.tune_config import TrialPlan
from posterior.tune_trial import STOPPED


@dataclass(frozen=True)
class Row:
    """One trial.

    metric: at its last evaluation after step 0, None before that; low, high: its interval where the metric is pass@1. best, best_step:
    the best evaluation; of several noisy ones it flatters, so trials are ranked by the last. steps: done so far. status:
    finished, stopped (by the scheduler), failed, interrupted or waiting. error: of a failed trial, one sentence.
    """

    name: str
    values: dict[str, Any]
    status: str
    metric: float | None
    low: float | None
    high: float | None
    best: float | None
    best_step: int | None
    steps: int
    seconds: float
    error: str = ""

    def facts(self) -> dict[str, Any]:
        """The row as JSON, without what is not known."""
        out = {key: value for key, value in vars(self).items() if value is not None and value != ""}
        return {**out, "values": dict(self.values)}


def row_of(trial: TrialPlan, run: RunDir, metric: str, mode: str, stopped: bool) -> Row:
    """Read a trial's run directory. stopped: the scheduler ended it."""
    result, rows = run.read_result(), run.read_metrics()
    status = str(result.get("status") or ("interrupted" if rows else "waiting"))
    if stopped and status != "finished":
        status = STOPPED
    evals = [row for row in rows if row.get("kind") == "eval" and row["version"] > 0 and row.get(metric) is not None]
    last = evals[-1] if evals else {}
    sign = 1 if mode == "max" else -1
    best = max(evals, key=lambda row: sign * float(row[metric])) if evals else {}
    interval = [
        last.get(f"{metric.removesuffix('pass@1')}{end}") if metric.endswith("/pass@1") else None
        for end in ("low", "high")
    ]
    return Row(
        name=trial.name,
        values=trial.values,
        status=status,
        metric=last.get(metric),
        low=interval[0],
        high=interval[1],
        best=best.get(metric),
        best_step=best.get("version"),
        steps=max((row["version"] for row in rows if row.get("kind") == "train"), default=0),
        seconds=float(rows[-1].get("seconds") or 0.0) if rows else 0.0,
        error=str(result.get("error") or "") if status == "failed" else "",
    )


def ranked(rows: Sequence[Row], mode: str) -> list[Row]:
    """Trials with a metric, best first; of equals the earlier; failed ones are no candidates."""
    able = [row for row in rows if row.metric is not None and row.status != "failed"]
    return sorted(able, key=lambda row: -float(row.metric or 0.0) if mode == "max" else float(row.metric or 0.0))


def best_row(rows: Sequence[Row], mode: str) -> Row | None:
    """The best trial, None if none has been evaluated after a step."""
    return next(iter(ranked(rows, mode)), None)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a trial; a column for each searched key."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    keys = list(rows[0].values)
    fields = ("status", "metric", "low", "high", "best", "best_step", "steps", "seconds", "error")
    table.writerow(["trial", *keys, *fields])
    for row in rows:
        cells = ["" if getattr(row, name) is None else getattr(row, name) for name in fields]
        table.writerow([row.name, *(row.values[key] for key in keys), *cells])
    write_atomic(path, text.getvalue())


def as_text(rows: Sequence[Row], metric: str, mode: str) -> str:
    """The table for people, best first, then those without a metric in the order of the search."""
    order = ranked(rows, mode)
    order += [row for row in rows if row not in order]
    keys = list(rows[0].values)
    lines = [("trial", *(key.split(".")[-1] for key in keys), metric, "95 %", "best (step)", "steps", "status")]
    for row in order:
        interval = "" if row.low is None or row.high is None else f"[{row.low:.3f}, {row.high:.3f}]"
        best = "" if row.best is None else f"{row.best:.4g} ({row.best_step})"
        value = "" if row.metric is None else f"{row.metric:.4g}"
        values = (str(row.values[key]) for key in keys)
        lines.append((row.name.split("_")[0], *values, value, interval, best, str(row.steps), row.status))
    used = [column for column in range(len(lines[0])) if any(line[column] for line in lines[1:])]
    width = {column: max(len(line[column]) for line in lines) for column in used}
    text = ["  ".join(f"{line[column]:<{width[column]}}" for column in used).rstrip() for line in lines]
    for at, row in enumerate(order, 1):
        if row.error:
            text[at] += f": {row.error}"
    return "\n".join(text)
