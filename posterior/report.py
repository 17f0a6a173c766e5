"""`posterior report`: one HTML file of one or several runs that works offline, with nothing to fetch.

`report_data` reads the run directories; this file, its sections (`report_latents`, `report_thoughts` and others) and
`report_figures` write the words and figures that need no script; `report_charts.js`, `report_traces.js` and `report.js`
draw the rest from a JSON block.
Everything a model or a config wrote is escaped, and the page's content policy allows only its own script (by hash)
and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from posterior.report_data import collect, label, number
from posterior.report_hacking import hacking
from posterior.report_latents import thinking
from posterior.report_regression import regression
from posterior.report_thoughts import thoughts
from posterior.rundir import RunDir, write_atomic

SCRIPTS = ("report_charts.js", "report_traces.js", "report.js")
MINUS = "−"


def write_report(runs: Sequence[Path], out: Path | None = None, title: str = "", lead: str = "") -> Path:
    """Write the report of `runs` (run directories, also of runs in progress) and return its path.

    out: the file to write; by default report.html in the first run's directory. Several runs are drawn over each other,
    runs that differ only in their seed as mean and range. title: instead of the runs' own; lead: markup shown before
    everything else. Raises FileNotFoundError if a folder is not a run directory,
    ValueError if there is none.
    """
    if not runs:
        raise ValueError("Name at least one run directory to report on.")
    opened = [RunDir.open(path) for path in runs]
    path = Path(out).expanduser().absolute() if out is not None else opened[0].report
    path.parent.mkdir(parents=True, exist_ok=True)
    page = (
        render(collect(opened), title, lead).encode("utf-8", "replace").decode()
    )  # a lone surrogate in a trace is no reason to fail
    write_atomic(path, page)
    return path


def render(data: Mapping[str, Any], title: str = "", lead: str = "") -> str:
    """The page of what `report_data.collect` returned; title and lead: see `write_report`."""
    runs, groups = data["runs"], data["groups"]
    script = "\n".join(_asset(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    shown = {
        "groups": groups,
        "runs": [
            {**{key: run[key] for key in ("name", "seed", "train", "evaluations", "stages", "dumps")}, **_bound(run)}
            for run in runs
        ],
    }
    parts = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'",
        "title": html.escape(f"{groups[0]['name'] if len(groups) == 1 else 'Comparison'} · Posterior"),
        "style": _asset("report.css"),
        "header": _header(runs, groups, title),
        "headline": lead + (_single(runs[0]) if len(runs) == 1 else _several(runs, groups)),
        "notes": _notes(runs),
        "thinking": thinking(runs, groups),
        "thoughts": thoughts(runs),
        "hacking": hacking(runs),
        "regression": regression(runs),
        "configs": _configs(runs),
        "footer": f"Written by Posterior on {time.strftime('%d %B %Y, %H:%M')}.",
        "data": _embed(shown),
        "script": script,
    }
    # One pass, so that nothing inserted is read as a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))


def _asset(name: str) -> str:
    return (resources.files("posterior") / name).read_text(encoding="utf-8")


def _embed(value: Any) -> str:
    """JSON that cannot end the script element around it, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _bound(run: Mapping[str, Any]) -> dict[str, Any]:
    """The launch gate's bound on the sampler/learner gap for this run's arithmetic (docs: doctor)."""
    half = _get(run["config"], "model", "dtype") == "bfloat16"
    return {"bound": {"key": "gap/mean", "value": 2e-2} if half else {"key": "gap/max", "value": 1e-4}}


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def points(value: float) -> str:
    """A difference of proportions in percentage points, always with its sign."""
    return f"{'+' if value >= 0 else MINUS}{abs(100 * value):.1f}"


def duration(seconds: Any) -> str:
    """Seconds as people say them: 42 s, 4 min 12 s, 3 h 05 min."""
    value = number(seconds)
    if value is None:
        return "–"
    whole = round(value)
    if whole < 60:
        return f"{value:.3g} s" if value < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def amount(value: float | None) -> str:
    """A large count with an SI prefix and three digits: 12.3 k, 4.56 T."""
    if value is None:
        return "–"
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g}"


def _words(value: Any) -> str:
    """A free-form field (text, list or mapping) as one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)


def _status(run: Mapping[str, Any]) -> str:
    status = html.escape(run["status"])
    return f'<span class="status {re.sub(r"[^a-z]+", "-", run["status"].lower())}">{status}</span>'


def _what(run: Mapping[str, Any]) -> str:
    """Method, model and environment in a line."""
    config = run["config"]
    advantage = _get(config, "algorithm", "advantage")
    method = _get(config, "algorithm", "name")
    parts = [
        f"{method} ({advantage})" if isinstance(advantage, str) else method,
        _get(config, "model", "path") and f"model {_get(config, 'model', 'path')}",
        _get(config, "env", "name") and f"environment {_get(config, 'env', 'name')}",
        None if run["seed"] is None else f"seed {run['seed']}",
    ]
    return " · ".join(html.escape(str(part)) for part in parts if part)


def _header(runs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], title: str) -> str:
    first = runs[0]
    mark = '<p class="eyebrow">Posterior<span>report</span></p>'
    if len(runs) == 1 and not title:
        machine = [_words(first["result"][key]) for key in ("hardware", "versions") if first["result"].get(key)]
        return (
            f"{mark}<h1>{html.escape(first['name'])} {_status(first)}</h1>"
            f'<p class="what">{_what(first)}</p>'
            + "".join(f'<p class="machine">{html.escape(line)}</p>' for line in machine)
        )
    one = groups[0]["name"] if len(groups) == 1 else f"{len(groups)} configurations compared"
    title = html.escape(title or one)
    machines = dict.fromkeys(_words(run["result"]["hardware"]) for run in runs if run["result"].get("hardware"))
    return (
        f"{mark}<h1>{title}</h1>"
        f'<p class="what">{len(runs)} runs{", averaged over seeds" if len(groups) < len(runs) else ""}</p>'
        + "".join(f'<p class="machine">{html.escape(line)}</p>' for line in machines)
    )


def _span(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Both proportions with their intervals on a line from 0 to 100 %."""
    marks = []
    for name, entry in (("before", before), ("after", after)):
        if entry is None:
            continue
        if entry["low"] is not None and entry["high"] is not None:
            low, high = 100 * entry["low"], 100 * entry["high"]
            marks.append(f'<i class="range {name}" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>')
        marks.append(f'<i class="dot {name}" style="left:{100 * entry["p"]:.2f}%"></i>')
    return f'<div class="span" aria-hidden="true">{"".join(marks)}</div>'


def _interval(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["low"] is None or entry["high"] is None:
        return ""
    return f"{percent(entry['low'])} to {percent(entry['high'])}"


def _gain(entry: Mapping[str, Any]) -> str:
    gain = entry["gain"]
    if gain is None:
        return ""
    text = f"{points(gain['p'])} points"
    return text if gain["low"] is None else f"{text} [{points(gain['low'])}, {points(gain['high'])}]"


def _card(entry: Mapping[str, Any], status: str) -> str:
    before, after, gain = entry["before"], entry["after"], entry["gain"]
    lines, delta = "", ""
    for name, value in (("before", before), ("after" if status == "finished" else "now", after)):
        if value is not None:
            tasks = "" if value["n"] is None else f"{value['n']:g} tasks"
            lines += f"<dt>{name}</dt>" + _cells(percent(value["p"]), _interval(value), tasks, tag="dd")
    if gain is not None:
        low, high = (gain["p"] if gain[end] is None else gain[end] for end in ("low", "high"))
        direction = "up" if low > 0 else "down" if high < 0 else "unclear"  # the interval holds 0
        delta = f'<span class="gain {direction}">{points(gain["p"])} points</span>'
        if gain["low"] is not None:
            interval = f"{points(gain['low'])} to {points(gain['high'])}"
            lines += "<dt>gain</dt>" + _cells(points(gain["p"]), interval, "points", tag="dd")
    arrow = f'{percent(before["p"])} <b aria-label="to">→</b> ' if before and after else ""
    now = percent((after or before)["p"])
    return (
        f'<div class="card"><h2>Held-out pass@1 <em>{html.escape(entry["split"])}</em><small>95 % intervals</small></h2>'
        f'<p class="number"><span>{arrow}<strong>{now}</strong></span>{delta}</p>'
        f"{_span(before, after)}<dl>{lines}</dl></div>"
    )


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    train, result = run["train"], run["result"]
    metrics = train["metrics"]

    def column(key: str) -> list[float]:
        return [value for value in metrics.get(key, []) if value is not None]

    done = result.get("steps") or (train["step"][-1] + 1 if train["step"] else 0)
    planned = _get(run["config"], "train", "steps")
    seconds = result.get("seconds") or next((s for s in reversed(train["seconds"]) if s is not None), None)
    speed, gap, stale = column("tokens/per_second"), column("gap/max"), column("staleness/max")
    flops = next((value for value in reversed(train["flops"]) if value is not None), None)
    facts = [
        ("steps", f"{done:,}" if not planned or planned == done else f"{done:,} of {planned:,}"),
        ("wall time", duration(seconds)),
    ]
    if speed:
        facts.append(("tokens a second", amount(sum(speed) / len(speed))))
    if flops is not None:
        facts.append(("FLOPs", amount(flops)))
    if gap:
        facts.append(("largest sampler/learner gap", f"{max(gap):.1e}"))
    if stale:
        facts.append(("largest staleness", f"{max(stale):g}"))
    return facts


def _single(run: Mapping[str, Any]) -> str:
    cards = "".join(_card(entry, run["status"]) for entry in run["headline"])
    # a reward model answers nothing, and has a section of its own
    if not cards and not any("mse" in figures for figures in (run["result"].get("final") or {}).values()):
        cards = '<div class="card"><h2>Held-out pass@1</h2><p class="number none">not evaluated yet</p></div>'
    facts = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in _facts(run))
    error = run["result"].get("error")
    failure = f'<p class="failure">{html.escape(_words(error))}</p>' if error else ""
    body = f'{failure}<div class="cards">{cards}</div><dl class="facts">{facts}</dl>'
    return f'<section id="headline" aria-label="Result">{body}</section>'


def _several(runs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> str:
    """One row a run and split; of runs that differ only in their seed, first the mean and range of their gains."""
    rows = []
    for place, group in enumerate(groups):
        own = [runs[index] for index in group["runs"]]
        label = f'<i class="swatch" style="--c:var(--c{place % 8})"></i>{html.escape(group["name"])}'
        if len(own) > 1:
            rows += _means(label, own)
        for run in own:
            if len(own) > 1:
                member = run["name"] if run["seed"] is None else f"seed {run['seed']}"
                label = f'<span class="member">{html.escape(member)}</span>'
            facts = dict(_facts(run))
            spent = [facts["wall time"], facts.get("FLOPs", "–"), _status(run)]
            for line, entry in enumerate(run["headline"] or [None]):
                first = line == 0  # the run's own figures stand beside its first split only
                cells = ["–"] * 4
                if entry is not None:
                    before, after = (percent(entry[when]["p"]) if entry[when] else "–" for when in ("before", "after"))
                    cells = [html.escape(entry["split"]), before, after, _gain(entry)]
                head = f'<th scope="row">{label if first else ""}</th>'
                rows.append(f"<tr>{head}{_cells(*cells, *(spent if first else [''] * 3))}</tr>")
    names = ("Run", "Split", "Before", "After", "Gain [95 %]", "Time", "FLOPs", "Status")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<section id="headline"><h2>Held-out pass@1</h2><div class="scroll">{table}</div></section>'


def _means(label: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table row a split: means over the runs, and the least and the most gain."""
    rows = []
    for split in dict.fromkeys(entry["split"] for run in runs for entry in run["headline"]):
        entries = [entry for run in runs for entry in run["headline"] if entry["split"] == split]
        cells = [html.escape(split)]
        for when in ("before", "after"):
            values = [entry[when]["p"] for entry in entries if entry[when]]
            cells.append(percent(sum(values) / len(values)) if values else "–")
        gains = [entry["gain"]["p"] for entry in entries if entry["gain"]]
        mean = points(sum(gains) / len(gains)) if gains else "–"
        cells.append(f"{mean} points, from {points(min(gains))} to {points(max(gains))}" if gains else "–")
        name = f"{label} <small>mean of {len(runs)} seeds</small>"
        rows.append(f'<tr class="mean"><th scope="row">{name}</th>{_cells(*cells, "", "", "")}</tr>')
    return rows


def _cells(*texts: str, tag: str = "td") -> str:
    return "".join(f"<{tag}>{text}</{tag}>" for text in texts)


def _notes(runs: Sequence[Mapping[str, Any]]) -> str:
    several = len(runs) > 1
    lines = [f"{label(run)}: {note}" if several else note for run in runs for note in run["notes"]]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<details class="notes" open><summary>About this data</summary><ul>{items}</ul></details>'


def _configs(runs: Sequence[Mapping[str, Any]]) -> str:
    blocks = "".join(
        f"<details><summary>{html.escape(label(run))} <small>{html.escape(run['path'])}</small></summary>"
        f"<pre>{html.escape(run['config_text'])}</pre></details>"
        for run in runs
        if run["config_text"]
    )
    return f'<section id="config"><h2>Resolved configuration</h2>{blocks}</section>' if blocks else ""
