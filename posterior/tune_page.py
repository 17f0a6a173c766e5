"""search.html: the report of all trials, headed by a table and by the metric against every searched key."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posterior.report import duration, write_report
from posterior.tune_config import TuneConfig
from posterior.tune_table import Row, ranked

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 230, 46, 16, 10, 26
WIDE_RANGE = 20.0
"""Positive values that span more than this factor are drawn on a logarithmic axis."""


def write_page(path: Path, config: TuneConfig, rows: Sequence[Row], shown: Sequence[Path]) -> Path:
    """Write the page and return its path. shown: run directories whose curves and traces are drawn, in the rows' order."""
    metric, mode = str(config.search.metric), config.search.mode
    colours = {run.name: f"var(--c{place % 8})" for place, run in enumerate(shown)}
    section = (
        f'<section id="search"><h2>Trials <small>{html.escape(metric)} at the last evaluation, {mode}imal first; hollow: not '
        f'finished</small></h2><div class="charts">{_scatters(config, rows, colours)}</div>'
        f'<div class="scroll">{_table(rows, metric, mode, colours)}</div></section>'
    )
    return write_report(shown, path, title=config.name, lead=section)


def _table(rows: Sequence[Row], metric: str, mode: str, colours: dict[str, str]) -> str:
    keys = list(rows[0].values)
    head = ("trial", *keys, metric.removeprefix("eval/"), "95 %", "best evaluation", "steps", "time", "status")
    order = ranked(rows, mode)
    lines = []
    for row in [*order, *(row for row in rows if row not in order)]:
        interval = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        best = "" if row.best is None else f"{row.best:.4g} at step {row.best_step}"
        value = "–" if row.metric is None else f"{row.metric:.4g}"
        status = row.status + (f": {row.error}" if row.error else "")
        values = (str(row.values[key]) for key in keys)
        cells = (*values, value, interval, best, str(row.steps), duration(row.seconds), status)
        swatch = f'<i class="swatch" style="--c:{colours.get(row.name, "none")}"></i>'
        lines.append(
            f'<tr{_mean(row, order)}><th scope="row">{swatch}{html.escape(row.name.split("_")[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    return f'<table class="runs"><thead><tr>{names}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _mean(row: Row, order: Sequence[Row]) -> str:
    return ' class="mean"' if order and row is order[0] else ""  # the stylesheet's bold row


def _scatters(config: TuneConfig, rows: Sequence[Row], colours: dict[str, str]) -> str:
    able = [row for row in rows if row.metric is not None]
    return "".join(_scatter(key, able, colours) for key in config.space) if able else ""


def _scatter(key: str, rows: Sequence[Row], colours: dict[str, str]) -> str:
    """One chart: a dot a trial, with its interval where there is one."""
    place, ticks = _axis([row.values[key] for row in rows])
    low, high = _range(rows)

    def x(value: Any) -> float:
        return LEFT + 14 + place(value) * (WIDTH - LEFT - RIGHT - 28)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for at in _steps(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(at) + 4:.1f}" text-anchor="end">{at:.3g}</text>')
    for value in ticks:
        label = html.escape(f"{value:.3g}" if isinstance(value, float) else str(value)[:24])
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    for row in rows:
        colour, at, of = colours.get(row.name, "var(--ink)"), x(row.values[key]), y(float(row.metric or 0.0))
        if row.low is not None and row.high is not None:
            ends = f'y1="{y(row.low):.1f}" y2="{y(row.high):.1f}"'
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" {ends} stroke="{colour}" opacity="0.5"/>')
        fill = colour if row.status == "finished" else "var(--raised)"
        told = html.escape(f"{row.name}: {row.metric:.4g}, {row.status} at step {row.steps}")
        dot = f'cx="{at:.1f}" cy="{of:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"'
        parts.append(f"<circle {dot}><title>{told}</title></circle>")
    label = html.escape(f"metric against {key}", quote=True)
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f"<figure><figcaption><span>{html.escape(key)}</span></figcaption>{drawing}</figure>"


def _axis(values: Sequence[Any]) -> tuple[Callable[[Any], float], list[Any]]:
    """(value to a place from 0 to 1, values to write below): a scale for numbers, one place each for anything else."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        least, most = float(min(values)), float(max(values))
        if least == most:
            return (lambda value: 0.5), [least]
        if least > 0 and most / least > WIDE_RANGE:
            inner = [10.0**power for power in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)]
            span = math.log(most / least)
            return (lambda value: math.log(value / least) / span), inner[:6] if len(inner) > 1 else [least, most]
        return (lambda value: (value - least) / (most - least)), [least, (least + most) / 2, most]
    texts = list(dict.fromkeys(map(str, values)))
    return (lambda value: texts.index(str(value)) / max(1, len(texts) - 1) if len(texts) > 1 else 0.5), texts


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    known = [value for row in rows for value in (row.metric, row.low, row.high) if value is not None]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= (high - low) / 5 * 0.999)
    return [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
