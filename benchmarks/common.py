"""What every benchmark prints: one JSON object of measures with the conditions they were taken under."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np


@dataclass
class Measure:
    """One figure. baseline: what it is compared with; ratio: value / baseline; target: the bound it should meet.

    met: filled from `target` (at least it, or at most it where `at_most`) unless given; None without a target.
    """

    name: str
    value: float
    unit: str = ""
    baseline: float | None = None
    target: float | None = None
    at_most: bool = False
    met: bool | None = None

    def as_json(self) -> dict[str, Any]:
        out = asdict(self)
        out["ratio"] = self.value / self.baseline if self.baseline else None
        del out["at_most"]
        if self.met is None and self.target is not None:
            out["met"] = self.value <= self.target if self.at_most else self.value >= self.target
        return out


T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % by degrees of freedom, from 1."""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval over seeds by Student's t; without end for one seed."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = T975[min(n - 2, 8)] * float(np.std(values, ddof=1)) / n**0.5
    return mean, mean - half, mean + half


def over_seeds(name: str, values: Sequence[float], unit: str = "", **more: Any) -> list[Measure]:
    """`interval` as NAME, NAME_low and NAME_high. more: of the first, its target for example."""
    mean, low, high = interval(values)
    return [Measure(name, mean, unit, **more), Measure(f"{name}_low", low, unit), Measure(f"{name}_high", high, unit)]


def main(
    description: str | None, run: Callable[[argparse.Namespace], list[Measure]], *options: tuple[str, dict[str, Any]]
) -> int:
    """Parse --json and --quick (and `options`: argparse name and keywords), run, print. Exit code 0 also where a target is missed."""
    from posterior.recorder import hardware, versions

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="a small version, to see that it works")
    for name, keywords in options:
        parser.add_argument(name, **keywords)
    args = parser.parse_args()
    measures = [measure.as_json() for measure in run(args)]
    report = {
        "measures": measures,
        "hardware": hardware(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "versions": versions(),
        "date": date.today().isoformat(),
        "command": " ".join([f"python -m {sys.modules['__main__'].__spec__.name}", *sys.argv[1:]]),  # type: ignore[union-attr]
    }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for m in measures:
            target = "" if m["target"] is None else f"   target {m['target']:g}: {'met' if m['met'] else 'MISSED'}"
            print(f"{m['name']:<44} {m['value']:>12.4g} {m['unit']}{target}")
        print(f"{report['hardware']}; {report['date']}; {report['command']}")
    return 0
