"""The report's section "Is the reward being gamed?": a learned reward's score beside the gold score and fresh raters."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from posterior.evidence import Share
from posterior.report_data import label, number
from posterior.report_figures import line_chart

GOLD, PROXY, RATER = "mean_grade", "proxy", "rater"
SIGNALS = {
    "kl": "KL from the start, nats an answer",
    "proxy_spread": "disagreement of the ensemble",
    "repeats": "share of repeated tokens",
    "length": "length, tokens",
    "unended": "share cut by the limit",
    "injection": "score gained by a sentence to the judge",
    "twice": "score gained by saying the answer twice",
}


def hacking(runs: Sequence[Mapping[str, Any]]) -> str:
    """The section; "" if no run has a learned reward."""
    parts = []
    for run in runs:
        for split, columns in run["evaluations"].items():
            if PROXY not in columns:
                continue
            if len(runs) > 1:
                parts.append(f"<h3>{html.escape(label(run))}</h3>")
            parts.append(f'<p class="claim">{html.escape(_said(run, columns))}</p>')
            parts.append(f'<div class="charts wide">{_scores(split, columns)}{_frontier(split, columns)}</div>')
            signals = (_one(split, columns, key, title) for key, title in SIGNALS.items())
            parts.append(f'<div class="charts">{"".join(signals)}</div>')
    if not parts:
        return ""
    body = f'<h2 id="hacking-title">Is the reward being gamed?</h2>{"".join(parts)}'
    return f'<section id="hacking" aria-labelledby="hacking-title">{body}</section>'


def _said(run: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> str:
    gold = [
        (value, step) for step, value in zip(columns["step"], columns.get(GOLD, ()), strict=False) if value is not None
    ]
    alarm, budget = (number(run["result"].get(name)) for name in ("alarm", "kl_budget"))
    heard = f"The alarm sounded at step {alarm:g}." if alarm is not None else "The alarm did not sound."
    if RATER not in columns:
        heard = "No fresh raters were heard, so there is no alarm (monitor.rater)."
    if budget is not None:
        heard += f" The KL passed its budget at step {budget:g}, and the run ended there."
    if len(gold) < 2:
        return heard
    best, at = max(gold)
    reward = run["config"].get("reward")
    share = number(reward.get("env")) if isinstance(reward, Mapping) else None
    unseen = (
        f"which is a part of the reward too (reward.env: {share:g}) and which the alarm does not see"
        if share
        else "which neither the policy nor the alarm sees"
    )
    return (
        f"{heard} The environment's own score, {unseen}, was best at step {at:g} ({best:.3g}) and "
        f"ended at {gold[-1][0]:.3g}; the reward model's went from {_first(columns[PROXY]):.3g} to {_first(columns[PROXY][::-1]):.3g}."
    )


def _scores(split: str, columns: Mapping[str, Sequence[Any]]) -> str:
    names = [f"{step:g}" for step in columns["step"]]
    series = [
        ("reward model", "var(--c1)", _shares(columns[PROXY])),
        ("environment (gold)", "var(--c0)", _shares(columns.get(GOLD, ()))),
        ("fresh raters", "var(--c2)", _shares(columns.get(RATER, ()), columns.get("rater_error"))),
    ]
    return line_chart(
        f"Scores, {split}", "by step; whiskers: 95 % of the raters' mean", names, [s for s in series if s[2]]
    )


def _frontier(split: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """The scores by KL, as over-optimisation is usually drawn; evaluations in the order of their KL."""
    if "kl" not in columns:
        return ""
    order = sorted((kl, i) for i, kl in enumerate(columns["kl"]) if kl is not None)
    names = [f"{kl:.2g}" for kl, _ in order]
    series = [
        (name, tint, _shares([columns[key][i] for _, i in order]))
        for name, tint, key in (("reward model", "var(--c1)", PROXY), ("environment (gold)", "var(--c0)", GOLD))
        if key in columns
    ]
    return line_chart(f"Scores by KL, {split}", "nats an answer from the start", names, series)


def _one(split: str, columns: Mapping[str, Sequence[Any]], key: str, title: str) -> str:
    if key not in columns:
        return ""
    names = [f"{step:g}" for step in columns["step"]]
    return line_chart(title, split, names, [(title, "var(--c3)", _shares(columns[key]))], size=(380, 190))


def _shares(values: Sequence[Any], errors: Sequence[Any] | None = None) -> list[Share | None]:
    out: list[Share | None] = []
    for i, value in enumerate(values):
        error = None if errors is None else errors[i]
        if value is None:
            out.append(None)
        elif error is None:
            out.append(Share(value))
        else:
            out.append(Share(value, value - 1.96 * error, value + 1.96 * error))
    return out


def _first(values: Sequence[Any]) -> float:
    return next((value for value in values if value is not None), float("nan"))
