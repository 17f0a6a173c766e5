"""Still pictures for the report: lines and bars with intervals, heat maps. Markup without script; all text is
escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from posterior.evidence import Share

Cell = tuple[float | None, str, str, str]
"""(how dark, 0 to 1, or None for nothing; text; a smaller note after it; what hovering tells)"""


def figure(title: str, unit: str, body: str, key: Sequence[tuple[str, str]] = ()) -> str:
    """key: (name, colour) of what the picture tells apart by colour."""
    legend = "".join(f'<span><i class="swatch" style="--c:{tint}"></i>{html.escape(name)}</span>' for name, tint in key)
    legend = f'<span class="key">{legend}</span>' if len(key) > 1 else ""
    head = f"<span>{html.escape(title)}</span><small>{html.escape(unit)}</small>{legend}"
    return f"<figure><figcaption>{head}</figcaption>{body}</figure>"


def line_chart(
    title: str,
    unit: str,
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[Share | None]]],
    *,
    share: bool = False,
    size: tuple[int, int] = (520, 240),
    bound: float | None = None,
) -> str:
    """A point for each of `names`, joined by lines, with whiskers.

    series: (name, colour, values). share: from 0 to 100 %. bound: a dashed line.
    """
    width, height = size
    left, right, top, bottom = 46, 14, 10, 26
    known = [v for _, _, values in series for v in values if v is not None]
    if not known:
        return figure(title, unit, '<p class="empty">no values yet</p>')
    ends = [end for v in known for end in (v.p, v.low, v.high) if end is not None]
    step = 0.25 if share else _step(max(*ends, bound or 0.0, 0.0) - min(0.0, *ends))
    low, high = (
        (0.0, 1.0)
        if share
        else (_round(min(0.0, *ends), step, math.floor), _round(max(*ends, bound or 0.0, step), step, math.ceil))
    )
    span = (width - left - right) / len(names)

    def x(i: float) -> float:
        return left + span * (i + 0.5)

    def y(value: float) -> float:
        return height - bottom - (min(max(value, low), high) - low) / (high - low) * (height - top - bottom)

    parts = []
    for i in range(round((high - low) / step) + 1):
        value = low + step * i
        label = f"{100 * value:.0f} %" if share else f"{value:.3g}"
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    every = max(1, len(names) // 12)
    for i, name in enumerate(names[::every]):
        at = x(i * every)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{height - 7}" text-anchor="middle">{html.escape(name[:16])}</text>'
        )
    if bound is not None:
        parts.append(f'<line class="bound" x1="{left}" x2="{width - right}" y1="{y(bound):.1f}" y2="{y(bound):.1f}"/>')
    for place, (name, tint, values) in enumerate(series):
        nudge = (place - (len(series) - 1) / 2) * min(5.0, span / 8)  # so that whiskers do not cover each other
        spots = [(x(i) + nudge, v, names[i]) for i, v in enumerate(values) if v is not None]
        path = "L".join(f"{at:.1f} {y(v.p):.1f}" for at, v, _ in spots)
        parts.append(f'<path class="line" d="M{path}" stroke="{tint}" data-series="{html.escape(name)}"/>')
        for at, v, where in spots:
            told = html.escape(f"{where}, {name}: {v if share else format(v.p, '.3g')}")
            if v.low is not None and v.high is not None:
                top_at, low_at = y(v.high), y(v.low)
                ticks = "".join(f"M{at - 3:.1f} {end:.1f}H{at + 3:.1f}" for end in (top_at, low_at))
                parts.append(f'<path class="whisker" d="M{at:.1f} {top_at:.1f}V{low_at:.1f}{ticks}" stroke="{tint}"/>')
            parts.append(
                f'<circle cx="{at:.1f}" cy="{y(v.p):.1f}" r="3.2" fill="{tint}"><title>{told}</title></circle>'
            )
    label = html.escape(f"{title}: " + "; ".join(name for name, _, _ in series))
    picture = (
        f'<svg class="still" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
    return figure(title, unit, picture, [(name, tint) for name, tint, _ in series])


def bar_chart(
    title: str, unit: str, rows: Sequence[tuple[str, str, Share]], marks: Sequence[tuple[str, str, Share]] = ()
) -> str:
    """Shares with whiskers. rows, marks: (name, colour, value); marks are drawn as lines through all bars."""
    lines = "".join(f'<i class="level" style="left:{100 * v.p:.1f}%;--c:{tint}"></i>' for _, tint, v in marks)
    out = []
    for name, tint, value in rows:
        bar = f'<i class="amount" style="width:{100 * value.p:.1f}%;--c:{tint}"></i>'
        if value.low is not None and value.high is not None:
            bar += (
                f'<i class="ends" style="left:{100 * value.low:.1f}%;width:{100 * (value.high - value.low):.1f}%"></i>'
            )
        out.append(
            f'<div class="bar-row" title="{html.escape(f"{name}: {value}")}"><span>{html.escape(name)}</span>'
            f'<span class="track">{bar}{lines}</span><span>{100 * value.p:.1f} %</span></div>'
        )
    told = "; ".join(f"line: {name} {100 * value.p:.1f} %" for name, _, value in marks)
    return figure(title, "; ".join(filter(None, [unit, told])), f'<div class="bars">{"".join(out)}</div>')


def _step(span: float) -> float:
    """A round number that goes into a span three to six times."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-9) / 3))
    return next(m * power for m in (10, 5, 2.5, 2, 1) if m * power * 3 <= max(span, 1e-9) * 1.0001)


def _round(value: float, step: float, to: Callable[[float], int]) -> float:
    return step * to(value / step * (1 - 1e-9))


def heat_map(
    title: str,
    unit: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell]]],
    *,
    corner: str = "",
    tint: str = "var(--accent)",
) -> str:
    return figure(title, unit, heat_table(columns, rows, corner=corner, tint=tint))


def heat_table(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell]]],
    *,
    corner: str = "",
    tint: str = "var(--accent)",
) -> str:
    """A table whose cells are as dark as what they say is large."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in (corner, *columns))
    body = ""
    for name, cells in rows:
        body += f'<tr><th scope="row">{html.escape(name)}</th>'
        for dark, text, note, told in cells:
            share = 0.0 if dark is None else 58 * min(max(dark, 0.0), 1.0)
            small = f"<small>{html.escape(note)}</small>" if note else ""
            body += f'<td style="--w:{share:.0f}%" title="{html.escape(told)}">{html.escape(text)}{small}</td>'
        body += "</tr>"
    table = f'<table class="heat" style="--c:{tint}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def figure_table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Numbers with three digits; a row without any is left out."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = ""
    for name, values in rows:
        if any(value is not None for value in values):
            cells = "".join(f"<td>{'–' if v is None else format(v, '.3g').replace('-', '−')}</td>" for v in values)
            body += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    table = f'<table class="runs"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'
