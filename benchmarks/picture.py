"""Curves as an SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 50, 30, 36, 40


@dataclass(frozen=True)
class Line:
    """One curve. name: as the key tells it; "" for another curve of the same kind, which the key leaves out."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def picture(lines: Sequence[Line], x_label: str, y_label: str, digits: int = 1) -> str:
    """All lines in one plane; x begins at 0. digits: of the numbers along the axes."""
    points = [p for line in lines for p in line.points]
    right, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    high = high if high > low else low + 1.0
    key = [line for line in lines if line.name]
    bottom = BOTTOM + 16 * len(key)

    def at(x: float, y: float) -> str:
        across = LEFT + x / right * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f} {HEIGHT - bottom - (y - low) / (high - low) * (HEIGHT - bottom - TOP):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for i in range(6):
        x, y = right * i / 5, low + (high - low) * i / 5
        told = f"{x:.{digits}f}" if right < 100 else f"{x:,.0f}"
        parts.append(f'<text x="{at(x, low).split()[0]}" y="{HEIGHT - bottom + 18}" text-anchor="middle">{told}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{at(0, y).split()[1]}" text-anchor="end">{y:.{digits}f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - bottom + 34}" text-anchor="middle">{x_label}</text>')
    parts.append(f'<text x="6" y="14">{y_label}</text>')
    for line in lines:
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        path = "L".join(at(x, y) for x, y in line.points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
    for place, line in enumerate(key):
        parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8 - 16 * place}" fill="{line.colour}">{line.name}</text>')
    return "".join([*parts, "</svg>"])


def stacked(pictures: Sequence[str]) -> str:
    """Pictures below each other in one."""
    whole = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(pictures)}">'
    placed = [
        one.replace("<svg ", f'<svg y="{HEIGHT * i}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for i, one in enumerate(pictures)
    ]
    return "".join([whole, *placed, "</svg>"])
