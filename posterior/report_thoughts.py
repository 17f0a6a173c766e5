"""The report's section "What are the thoughts worth?": probes before and after training (`eval.thoughts`), anchoring (`eval.anchoring`)."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from posterior.evidence import Share
from posterior.report_data import label, number
from posterior.report_figures import bar_chart, figure_table

PROBES = {
    "logp_answer": "log p(y*|x), nats",
    "logp_given_thought": "mean log p(y*|x,z), nats",
    "thought_gain": "what a thought adds to none, nats",
    "shuffled_loss": "what another task's thought loses, nats",
    "thought_length": "length, tokens",
    "thought_closed": "share that closed by themselves",
    "thought_distinct": "share that differ",
    "thought_entropy": "surprise a token, nats",
    "helper_bayes_gap": "helper: Bayes gap, nats",
    "helper_slope": "helper: slope (1 is exact)",
    "helper_r2": "helper: R²",
}
"""In the order shown."""
ANCHORING = {
    "lexical": "lexical: share of the answer found in order",
    "entropic": "entropic",
    "probabilistic": "probabilistic: bits a token of the answer",
    "entropic_earlier": "entropic, earlier variant",
    "probabilistic_earlier": "probabilistic, earlier variant",
}
ZONES = {"reason": "var(--c0)", "encode": "var(--c1)", "cloze": "var(--c2)", "copy": "var(--c3)"}
CAUTION = (
    "Probabilistic anchoring times the answer's length is what posterior methods maximise. It says “written backwards” only of "
    "thoughts that saw the answer; of thoughts that did not, a high value is the goal. Read the difference to those that did, not "
    "the level."
)


def thoughts(runs: Sequence[Mapping[str, Any]]) -> str:
    """The section; "" if no run was probed."""
    parts = []
    for run in runs:
        before, after = (run["result"].get(when) or {} for when in ("baseline", "final"))
        splits = [split for split in after if isinstance(after[split], Mapping) and "logp_answer" in after[split]]
        if not splits:
            continue
        if len(runs) > 1:
            parts.append(f"<h3>{html.escape(label(run))}</h3>")
        parts.append(_table(before, after, splits, list(PROBES.items())))
        if any("anchoring_lexical" in after[split] for split in splits):
            parts.append(_anchoring(before, after, splits))
    if not parts:
        return ""
    body = f'<h2 id="thoughts-title">What are the thoughts worth?</h2>{"".join(parts)}'
    return f'<section id="thoughts" aria-labelledby="thoughts-title">{body}</section>'


def _anchoring(before: Mapping[str, Any], after: Mapping[str, Any], splits: Sequence[str]) -> str:
    rows = [
        (f"{who}_{name}", f"{told}; {whose}")
        for name, told in ANCHORING.items()
        for who, whose in (("anchoring", "own thoughts"), ("hindsight", "thoughts that saw the answer"))
    ]
    pictures = []
    for split in splits:
        for suffix, variant in (("", "as in the paper"), ("_earlier", "earlier variant")):
            bars = []
            for who, whose in (("anchoring", "own"), ("hindsight", "saw the answer")):
                for zone, tint in ZONES.items():
                    value = number(after[split].get(f"{who}_zone_{zone}{suffix}"))
                    if value is not None:
                        bars.append((f"{zone}, {whose}", tint, Share(value)))
            pictures.append(
                bar_chart(f"Anchoring zones, {split}", f"share of thoughts after training; {variant}", bars)
            )
    return (
        f'<h3>Anchoring</h3><p class="claim">{CAUTION}</p>'
        + _table(before, after, splits, rows)
        + f'<div class="charts wide">{"".join(pictures)}</div>'
    )


def _table(
    before: Mapping[str, Any], after: Mapping[str, Any], splits: Sequence[str], rows: Sequence[tuple[str, str]]
) -> str:
    """A row for each figure that was measured; a column before and after for each split."""
    columns = [f"{split} {when}" for split in splits for when in ("before", "after")]
    values = [
        (told, [number((ends.get(split) or {}).get(key)) for split in splits for ends in (before, after)])
        for key, told in rows
    ]
    return figure_table(columns, values)
