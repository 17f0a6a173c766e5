"""The report's section "Does it think?": what replacing the latents costs, beside the controls, and how latents look.

It says that latents help only in the words of `evidence.verdict`, which needs the controls; without them it says that
they are missing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from posterior.evidence import (
    CONTROLS,
    NAMES,
    Share,
    battery_of,
    controls_of,
    in_order,
    interventions,
    own_accuracy,
    share,
    spoken,
    verdict,
)
from posterior.report_figures import Cell, bar_chart, figure, heat_map, heat_table, line_chart

SHOWN = 4
"""Problems whose lens is shown."""
MOST_STEPS = 24
"""Latent steps shown of a lens or a matrix; the page says so where there are more."""
OWN = "with latents"
TINTS = {OWN: "var(--c0)", "no_thought": "var(--c1)", "pause": "var(--c2)", "detached": "var(--c3)"}


def thinking(runs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> str:
    """The section; "" if no run has a thinker and nothing was measured."""
    parts = []
    for group in groups:
        own = [runs[i] for i in group["runs"] if _thinks(runs[i])]
        if not own:
            continue
        heading = f"<h3>{html.escape(group['name'])}</h3>" if len(groups) > 1 else ""
        parts.append(heading + _said(own) + _measured(own) + "".join(_inside(run, len(own) > 1) for run in own))
    if not parts:
        return ""
    body = f'<h2 id="thinking-title">Does it think?</h2>{"".join(parts)}'
    return f'<section id="thinking" aria-labelledby="thinking-title">{body}</section>'


def _thinks(run: Mapping[str, Any]) -> bool:
    model = run["config"].get("model")
    return bool(battery_of(run["result"])) or (isinstance(model, Mapping) and bool(model.get("thinker")))


def _said(runs: Sequence[Mapping[str, Any]]) -> str:
    several = len(runs) > 1
    lines = []
    for run in runs:
        of = run["result"].get("causal_of")
        at = ""
        if isinstance(of, Mapping):
            told = f"{of.get('checkpoint')}, {of.get('tasks')} problems of each split"
            at = f" <small>{html.escape(told)}</small>"
        who = f"<b>seed {run['seed']}</b>: " if several and run["seed"] is not None else ""
        lines.append(f'<p class="claim">{who}{html.escape(verdict(run["result"]))}{at}</p>')
    return "".join(lines)


# ---- figures over the runs of one configuration: one run with its own intervals, or mean and range over seeds


def _measured(runs: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy beside the controls, the battery's bars, the battery by split."""
    results = [run["result"] for run in runs]
    unit = "95 % intervals" if len(runs) == 1 else f"mean and range over {len(runs)} seeds"
    pictures = []
    accuracies = [{OWN: own_accuracy(r), **controls_of(r)} for r in results]
    splits = in_order(dict.fromkeys(split for found in accuracies for split in found[OWN]))
    if splits:
        names = [n for n in (OWN, *CONTROLS) if any(n in found for found in accuracies)]
        series = [
            (
                NAMES.get(name, name),
                TINTS[name],
                [over([found.get(name, {}).get(split) for found in accuracies]) for split in splits],
            )
            for name in names
        ]
        missing = (
            ""
            if len(names) > len(CONTROLS)
            else "; controls missing: " + ", ".join(NAMES[n] for n in CONTROLS if n not in names)
        )
        pictures.append(line_chart("Held-out accuracy", unit + missing, splits, series, share=True))
    batteries = [battery_of(r) for r in results]
    asked = in_order(dict.fromkeys(split for battery in batteries for split in battery))
    if asked:
        last = asked[-1]
        rows, marks = [], []
        for name in interventions({last: {k: v for b in batteries for k, v in b.get(last, {}).items()}}):
            value = over([share(b.get(last, {}).get(name)) for b in batteries])
            if value is not None:
                rows.append((spoken(name), "var(--c0)" if name == "clean" else "var(--c7)", value))
        bare = over([found.get("no_thought", {}).get(last) for found in accuracies])
        if bare is not None:
            marks.append(("control without thought", TINTS["no_thought"], bare))
        pictures.append(
            bar_chart(f"Good answers read as likeliest, {last}", f"latents replaced by; {unit}", rows, marks)
        )
    grid = f'<div class="charts wide">{"".join(pictures)}</div>' if pictures else ""
    if len(asked) > 1:
        grid += _by_split(batteries, asked)
    return grid


def over(values: Sequence[Share | None]) -> Share | None:
    """Of one run as it is; of several the mean with the least and the most."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return known[0] if known else None
    shares = [v.p for v in known]
    return Share(sum(shares) / len(shares), min(shares), max(shares))


def _by_split(batteries: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> str:
    rows = []
    for name in interventions({s: {k: 0 for b in batteries for k in b.get(s, {})} for s in splits}):
        found = [over([share(b.get(s, {}).get(name)) for b in batteries]) for s in splits]
        rows.append((spoken(name), [_cell(v, f"{s}, {spoken(name)}") for s, v in zip(splits, found, strict=True)]))
    return heat_map("The same on every split", "accuracy, by what replaces the latents", splits, rows)


def _cell(value: Share | None, where: str) -> Cell:
    return (None, "", "", "") if value is None else (value.p, f"{100 * value.p:.0f} %", "", f"{where}: {value}")


# ---- what one run's latents look like


def _inside(run: Mapping[str, Any], folded: bool) -> str:
    """Lens, probes and small plots of the split with the most latent steps."""
    causal = run["result"].get("causal")
    found = (
        {s: causal[s] for s in in_order(causal) if isinstance(causal[s], Mapping)}
        if isinstance(causal, Mapping)
        else {}
    )
    pictures = ""
    for split in reversed(found):
        try:
            pictures = _pictures(split, found[split])
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            pictures = '<p class="empty">The figures of the latents in result.json cannot be read.</p>'
        if pictures:
            break
    if not pictures or not folded:
        return pictures
    name = run["name"] if run["seed"] is None else f"{run['name']}, seed {run['seed']}"
    return f"<details><summary>Inside the latents of {html.escape(name)}</summary>{pictures}</details>"


def _pictures(split: str, entry: Mapping[str, Any]) -> str:
    out = ""
    lens, probes = entry.get("lens"), entry.get("probes")
    if isinstance(lens, Mapping):
        out += f"<h3>Inside the latents <small>{html.escape(split)}</small></h3>{_lens(lens)}{_plots(lens)}"
    if isinstance(probes, Mapping):
        out += f'<div class="charts wide">{_probes(probes)}</div>'
    return out


def _lens(lens: Mapping[str, Any]) -> str:
    """Of each problem a grid: latent steps across, the likeliest words down."""
    shown = []
    for problem in lens["problems"][:SHOWN]:
        steps = problem["steps"][:MOST_STEPS]
        ranks = range(max((len(words) for words in steps), default=0))
        rows = [
            (
                str(r + 1),
                [_word(words[r], k) if r < len(words) else (None, "", "", "") for k, words in enumerate(steps, 1)],
            )
            for r in ranks
        ]
        head = f"{problem['prompt']}  →  {problem['answer']}"
        columns = [f"z{k}" for k in range(1, len(steps) + 1)]
        cut = f", first {MOST_STEPS} of {len(problem['steps'])} steps" if len(problem["steps"]) > MOST_STEPS else ""
        shown.append(
            figure(head, f"likeliest words after each latent step{cut}", heat_table(columns, rows, corner="rank"))
        )
    return f'<div class="charts wide lens">{"".join(shown)}</div>'


def _word(found: Sequence[Any], step: int) -> Cell:
    word, p = str(found[0]), float(found[1])
    visible = word.replace("\n", "⏎") if word.strip() else word.replace(" ", "␣").replace("\n", "⏎")
    return p, visible, f"{100 * p:.0f} %", f"after latent {step}: {word!r} {100 * p:.1f} %"


def _plots(lens: Mapping[str, Any]) -> str:
    """Norm, effective rank and gain by step; cosines between steps."""
    names = [f"z{k}" for k in range(1, len(lens["norm"]) + 1)]
    out = ""
    for key, title, unit, bound in (
        ("norm", "Norm", "mean, in norms of an embedding", 1.0),
        ("rank", "Effective rank", "of a step's latents over problems", None),
        ("gain", "Jacobian gain", "change of the next latent / change of this one", 1.0),
    ):
        values = [Share(float(v)) for v in lens[key]]
        if values:
            line = [(title.lower(), "var(--c0)", values)]
            out += line_chart(title, unit, names[: len(values)], line, size=(340, 190), bound=bound)
    cosine = [row[:MOST_STEPS] for row in lens["cosine"][:MOST_STEPS]]
    if len(cosine) > 1:
        few = len(cosine) <= 10
        rows = [
            (
                name,
                [
                    (abs(v), f"{v:.2f}" if few else "", "", f"{name}, {other}: {v:.3f}")
                    for other, v in zip(names, row, strict=False)
                ],
            )
            for name, row in zip(names, cosine, strict=False)
        ]
        out += heat_map("Cosine between steps", "mean over problems", names[: len(cosine)], rows)
    return f'<div class="charts">{out}</div>'


def _probes(probes: Mapping[str, Any]) -> str:
    """Two matrices latent x written step: accuracy, as dark as it is above the same probe on shuffled labels."""
    out = ""
    columns = [str(name) for name in probes["steps"]]
    for key, title in (("latent", "Linear probes of the latents"), ("state", "Linear probes of the states after them")):
        part = probes[key]
        rows = []
        for k, accuracy in enumerate(part["accuracy"][:MOST_STEPS]):
            cells: list[Cell] = []
            for j, value in enumerate(accuracy):
                control, low, high = (float(part[name][k][j]) for name in ("control", "low", "high"))
                told = f"{columns[j]} from z{k + 1}: {Share(float(value), low, high)}, shuffled {100 * control:.1f} %, "
                told += f"commonest value {100 * float(probes['common'][j]):.1f} %"
                cells.append((float(value) - control, f"{100 * float(value):.0f} %", "", told))
            rows.append((f"z{k + 1}", cells))
        unit = f"held-out accuracy on {probes['problems']} problems; as dark as it is above shuffled labels"
        out += heat_map(title, unit, columns, rows)
    return out
