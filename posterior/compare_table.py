"""The tables of a comparison: built once from its result, written as Markdown for people and as HTML for the report; and compare.csv."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posterior.compare_read import Facts
from posterior.compare_stats import FEW_SEEDS
from posterior.report import amount, duration
from posterior.rundir import write_atomic

DASH = "–"
GRADER = "‡"
"""Behind the name of an arm that uses a grader."""
BOUNDS = {
    "flops": "the same FLOPs of sampling, scoring and learning",
    "seconds": "the same seconds of training on this machine",
    "steps": "the same number of steps, whatever each costs (train.flops or train.seconds would match compute)",
}


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.head, *self.rows)]
        width = [max(len(row[i]) for row in cells) for i in range(len(self.head))]
        lines = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, width, strict=True)) + " |" for row in cells]
        rule = "|" + "|".join("-" * (w + 2) for w in width) + "|"
        return "\n".join([f"**{self.title}**", "", lines[0], rule, *lines[1:]])

    def html(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.head)
        body = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return f'<h2>{html.escape(self.title)}</h2><div class="scroll">{table}</div>'


def tables(result: Mapping[str, Any]) -> list[Table]:
    """All tables of a result: one a metric, the compute, the gains by stratum."""
    return [*(_metric(result, name) for name in result["metrics"]), _compute(result), *_strata(result)]


def markdown(result: Mapping[str, Any]) -> str:
    """table.md."""
    parts = [f"# {result['name']}", *(table.markdown() for table in tables(result)), _listed(notes(result))]
    return "\n\n".join(parts) + "\n"


def lead(result: Mapping[str, Any]) -> str:
    """The same as markup for the head of report.html."""
    told = "".join(f"<li>{html.escape(note)}</li>" for note in notes(result))
    return f'<section id="comparison">{"".join(table.html() for table in tables(result))}<div class="notes"><ul>{told}</ul></div></section>'


def notes(result: Mapping[str, Any]) -> list[str]:
    """What must be known to read the tables, and what is missing from them."""
    seeds, arms = len(result["seeds"]), result["arms"]
    bound = BOUNDS.get(str(result["bound"]), "compute that differs between arms: train.flops, seconds and steps do")
    out = [
        f"Every arm trains with {bound}; {result['tasks']} held-out tasks of split {result['split']}, "
        f"{seeds} training seed{'s' * (seeds > 1)}."
    ]
    if seeds == 1:
        out.append(
            "One training seed: intervals and p-values are over held-out tasks only and say nothing about training again."
        )
    else:
        out.append(
            "[95 %]: percentile bootstrap that draws seeds and tasks with replacement, the same tasks for all arms; differences are "
            "paired by seed and task. p: two-sided, Holm-corrected over the arms of a table."
        )
    if 1 < seeds < FEW_SEEDS:
        out.append(
            f"Intervals over {seeds} seeds are too narrow where seeds differ much; {FEW_SEEDS} or more are better."
        )
    every = [found["after"] for metric in result["means"].values() for found in metric.values() if found["after"]]
    if any(found["high"] - found["low"] < 1e-9 for found in every):
        out.append("An interval of width 0: all that was measured came out the same, which is not certainty.")
    if any(arm["grader"] for arm in arms.values()):
        out.append(f"{GRADER} sees grades while it trains; the others see good answers only.")
    if result["strata_tasks"] and sum(result["strata_tasks"]):
        out.append(
            "Gains by stratum: after minus before training, of tasks by p_0(y*|x), the likelihood of the good answer before training (the "
            "same tasks for all arms). p_0 is itself measured: a metric that rests on the same measurement falls back to its mean."
        )
    for name, arm in arms.items():
        for seed, why in arm["missing"].items():
            out.append(f"Missing: {name}, seed {seed}: {why}")
    return out


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _called(result: Mapping[str, Any], arm: str) -> str:
    told = result["arms"][arm]
    return f"{told['label']}{' ' + GRADER if told['grader'] else ''}"


def _metric(result: Mapping[str, Any], metric: str) -> Table:
    scale, unit = (100.0, " (%)") if metric == "pass@1" else (1.0, "")
    reference = result["reference"]
    rows = []
    for arm, told in result["arms"].items():
        means, difference = result["means"][metric][arm], result["differences"][metric].get(arm)
        p = DASH if difference is None else _p(difference["p_holm"])
        apart = "reference" if arm == reference else _interval(difference, scale, signed=True)
        seeds = f"{told['seeds']} of {len(result['seeds'])}"
        before = DASH if means["before"] is None else _number(means["before"]["mean"], scale)
        rows.append([_called(result, arm), seeds, before, _interval(means["after"], scale), apart, p])
    against = f"difference to {result['arms'][reference]['label']} [95 %]"
    head = ["method", "seeds", "before", "after [95 %]", against, "p (Holm)"]
    return Table(f"{metric}{unit} on {result['split']}", head, rows)


def _compute(result: Mapping[str, Any]) -> Table:
    rows = []
    for arm, told in result["arms"].items():
        spent = told["compute"]
        tuned = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in (told["tuned"] or {}).items()) or DASH
        if spent is None:
            rows.append([_called(result, arm), tuned, *[DASH] * 5])
            continue
        flops = spent["flops"]
        shares = [amount(flops[part]) for part in ("sampling", "scoring", "learning")]
        rows.append([_called(result, arm), tuned, f"{spent['steps']:.0f}", duration(spent["trained"]), *shares])
    head = ["method", "tuned", "steps", "training time", "FLOPs sampling", "scoring", "learning"]
    return Table("Compute, mean of the runs", head, rows)


def _strata(result: Mapping[str, Any]) -> list[Table]:
    """One table a metric; none where nothing is known of p_0."""
    edges, sizes = result["strata_edges"], result["strata_tasks"]
    used = [k for k, size in enumerate(sizes) if size]
    if not used:
        return []
    head = ["method", *(f"p_0 {edges[k]:g} to {edges[k + 1]:g} ({sizes[k]} tasks)" for k in used)]
    out = []
    for metric in result["metrics"]:
        scale, unit = (100.0, " (points)") if metric == "pass@1" else (1.0, "")
        rows = [
            [_called(result, arm), *(_interval(found[k], scale, signed=True) for k in used)]
            for arm, found in result["strata"][metric].items()
        ]
        out.append(Table(f"Gain in {metric}{unit} by p_0(y*|x) [95 %]", head, rows))
    return out


def _number(value: float, scale: float, signed: bool = False) -> str:
    return f"{scale * value:{'+' if signed else ''}.{1 if scale > 1 else 3}f}"


def _interval(found: Mapping[str, float] | None, scale: float, signed: bool = False) -> str:
    if found is None:
        return DASH
    mean, low, high = (_number(found[key], scale, signed) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def write_csv(path: Path, runs: Sequence[Facts], keys: Sequence[str], metrics: Sequence[str]) -> None:
    """One line a run, those of the sweep first. keys: of the sweep."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    measured = [f"{metric} {when}" for metric in metrics for when in ("before", "after")]
    flops = [f"flops/{part}" for part in ("sampling", "scoring", "learning")]
    table.writerow(
        ["run", "part", "arm", "seed", *keys, "status", "steps", "seconds", "trained", *flops, *measured, "error"]
    )
    for facts in runs:
        job = facts.job
        values = [facts.mean(metric, when) for metric in metrics for when in ("before", "after")]
        table.writerow(
            [
                *(job.name, "tuning" if job.tuning else "comparison", job.arm, job.seed),
                *(job.values.get(key, "") for key in keys),
                *(facts.status, facts.steps, facts.seconds, facts.trained, *facts.flops.values()),
                *("" if value is None else value for value in values),
                facts.error,
            ]
        )
    write_atomic(path, text.getvalue())
