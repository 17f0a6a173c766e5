"""The report's section "How well does it know the scores?": a reward model's error beside what is possible, and its calibration.

It shows the version that is kept as a warm start and as a learned reward, which need not be the last.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posterior.evidence import Share
from posterior.report_data import label, number
from posterior.report_figures import figure_table, line_chart
from posterior.rundir import RunDir
from posterior.targets import best, version

ROWS = {
    "mse": "squared error",
    "mse_mean_predictor": "of the constant mean",
    "noise_floor": "of a perfect judge: the raters' own noise",
    "correlation": "correlation with the mean score",
    "calibration_slope": "calibration: slope (1 is calibrated)",
    "calibration_offset": "calibration: offset",
    "ensemble_spread": "spread of the members",
    "spread_tells_error": "correlation of spread and error",
    "items": "held-out items",
}
BINS = 8


def regression(runs: Sequence[Mapping[str, Any]]) -> str:
    """The section; "" if no run trained a reward model."""
    parts = []
    for run in runs:
        final = run["result"].get("final") or {}
        splits = [split for split, figures in final.items() if isinstance(figures, Mapping) and "mse" in figures]
        if not splits:
            continue
        if len(runs) > 1:
            parts.append(f"<h3>{html.escape(label(run))}</h3>")
        kept = _kept(Path(run["path"]))
        if kept is None:
            of, figures = "the last evaluation", [final[split] for split in splits]
        else:
            of = f"version {kept}, of the kept checkpoints the one with the lowest error on {splits[0]}"
            figures = [_figures(run["evaluations"].get(split, {}), kept) for split in splits]
        parts.append(f'<p class="note">Of {html.escape(of)}.</p>')
        rows = [(told, [number(own.get(key)) for own in figures]) for key, told in ROWS.items()]
        parts.append(figure_table(splits, rows))
        pictures = [_calibration(Path(run["path"]), split, kept) for split in splits]
        parts.append(f'<div class="charts wide">{"".join(pictures)}</div>')
    if not parts:
        return ""
    body = f'<h2 id="regression-title">How well does it know the scores?</h2>{"".join(parts)}'
    return f'<section id="regression" aria-labelledby="regression-title">{body}</section>'


def _kept(path: Path) -> int | None:
    """The version of the best checkpoint; None where no checkpoint that was evaluated is left, or the rows cannot be read."""
    try:
        found = best(RunDir.open(path))
    except (ValueError, KeyError):
        return None
    return None if found is None else version(found)


def _figures(columns: Mapping[str, Sequence[Any]], version: int | None) -> dict[str, Any]:
    """What an evaluation of a version gave, {} if there was none."""
    steps = list(columns.get("step", ()))
    return {name: column[steps.index(version)] for name, column in columns.items()} if version in steps else {}


def _calibration(path: Path, split: str, version: int | None) -> str:
    """Mean score of items by what was predicted, equally many in each bin, beside the prediction itself. version: None for the last."""
    found = RunDir.open(path).read_held_out(split)
    if not found:
        return ""
    shown = found.get(max(found) if version is None else version)
    if shown is None:
        return ""
    known = [(p, s) for p, s in zip(shown["predicted"], shown["score"], strict=True) if number(s) is not None]
    bins = [part for part in np.array_split(np.array(sorted(known)).reshape(-1, 2), BINS) if len(part)]
    names = [f"{part[:, 0].mean():.2f}" for part in bins]
    said = [Share(float(part[:, 0].mean())) for part in bins]
    true = []
    for part in bins:
        error = 1.96 * part[:, 1].std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else 0.0
        mean = float(part[:, 1].mean())
        true.append(Share(mean, mean - error, mean + error))
    series = [("people", "var(--c0)", true), ("predicted", "var(--c1)", said)]
    return line_chart(f"Calibration, {split}", "mean score by prediction; whiskers: 95 %", names, series)
