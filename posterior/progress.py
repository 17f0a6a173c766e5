"""Live progress of a run, read from its files: a bar on a terminal, a line now and then elsewhere, never silent for long.

What a person should know (deaths, returns, a standstill) is in the event log and is shown as it comes, whoever wrote it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Self

from posterior.rundir import RunDir
from posterior.watchdog import Watchdog

QUIET_SECONDS = 10.0
"""Between lines where standard error is not a terminal: at most so often, and at least so often."""
SHOW_SECONDS = 5.0
"""Standstill after which the bar shows the stage in place of the last figures."""


class Bar:
    """Drawn on standard error if that is a terminal; lines go above it. A context manager, or `start` and `stop`."""

    def __init__(self, unit: str, total: int, figures: str, *, remaining: bool = False) -> None:
        self._unit, self._total, self._first, self._remaining = unit, total, figures, remaining
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def start(self) -> None:
        if sys.stderr.isatty():
            from rich import progress as rich
            from rich.console import Console

            self._bar = rich.Progress(
                rich.TextColumn(self._unit),
                rich.MofNCompleteColumn(),
                rich.BarColumn(bar_width=24),
                rich.TimeElapsedColumn(),
                *([rich.TimeRemainingColumn()] if self._remaining else []),
                rich.TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, figures=self._first)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def draw(self, completed: int, figures: str) -> bool:
        """Whether there is a bar to draw."""
        if self._bar is None:
            return False
        self._bar.update(self._task, completed=completed, figures=figures)
        return True

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)


class Progress(Bar):
    """Progress of a run; call `update` often. watchdog: is made to look, and knows the stage."""

    def __init__(self, run: RunDir, steps: int, watchdog: Watchdog) -> None:
        self._fields = "starting samplers and learner"
        super().__init__("step", steps, self._fields, remaining=True)
        self.run, self.steps, self.watchdog = run, steps, watchdog
        self._events = run.events.stat().st_size if run.events.exists() else 0
        self._at = 0
        self._read = (0, 0)  # of metrics.jsonl: which file, and how many bytes
        self._fresh = False
        self._last_line = time.monotonic()
        self._eval = ""

    def update(self) -> None:
        """Read what was written since the last call."""
        self.watchdog.look()
        for event in self._new_events():
            self.say(event)
        rows = self._new_rows()
        for row in rows:
            self._take(row)
        self._fresh = self._fresh or bool(rows)
        now = time.monotonic()
        waits = self.watchdog.still > SHOW_SECONDS
        if self.draw(self._at, self.watchdog.stage() if waits else f"{self._fields}{self._eval}"):
            return
        if now - self._last_line > QUIET_SECONDS or (rows and self._at == self.steps):
            self._last_line = now
            said = f"{self._fields}{self._eval}" if self._fresh else self.watchdog.stage()
            self._fresh = False
            self.say(f"step {self._at}/{self.steps}  {said}")

    def _new_rows(self) -> list[dict[str, Any]]:
        """The rows added since the last call; all of them after a restart, which writes the file anew."""
        try:
            with self.run.metrics.open("rb") as file:
                now = os.fstat(file.fileno())
                which, done = self._read
                if which != now.st_ino or done > now.st_size:
                    done = 0
                file.seek(done)
                whole = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._read = (now.st_ino, done + len(whole[0]) + len(whole[1]))
        return [json.loads(line) for line in whole[0].splitlines() if line.strip()]

    def _new_events(self) -> list[str]:
        """What was added to the event log, for people; a line that is only half there waits for its rest."""
        try:
            with self.run.events.open("rb") as file:
                file.seek(self._events)
                whole = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._events += len(whole[0]) + len(whole[1])
        out = []
        for line in whole[0].splitlines():
            event = json.loads(line)
            out.append(f"[{event['time'][11:19]}] {event['who']}: {event['text']}")
        return out

    def _take(self, row: dict[str, Any]) -> None:
        if row.get("kind") == "eval":
            figures = [f"{k.split('/')[1]} {100 * v:.0f} %" for k, v in row.items() if k.endswith("/pass@1")]
            figures += [f"{k.split('/')[1]} mse {v:.3f}" for k, v in row.items() if k.endswith("/mse")]
            self._eval = "  held out: " + ", ".join(figures)
            if row["version"] == 0 and self._at == 0:
                self._fields = "first batch"
            return
        self._at = int(row["version"])
        waiting = "sample" if "reward/mean" in row else "wait"
        shares = [(waiting, "time/wait"), ("learn", "time/forward_backward"), ("publish", "time/publish")]
        parts = [
            *self._success(row),
            f"{row.get('tokens/per_second') or 0.0:,.0f} tok/s",
            *(f"{name} {row.get(key) or 0.0:.1f}s" for name, key in shares),
        ]
        if row.get("staleness/max"):
            parts.append(f"age {row['staleness/max']:.0f}")
        self._fields = "  ".join(parts)

    def _success(self, row: dict[str, Any]) -> list[str]:
        """How well it goes: reward and pass rate, or the losses of a method that earns no reward."""
        if "reward/mean" in row:
            return [f"reward {row['reward/mean'] or 0.0:.2f}", f"pass {100 * (row.get('pass_rate') or 0.0):.0f} %"]
        losses = {key.split("/")[-1]: value for key, value in row.items() if key.startswith("loss/")}
        said = {name: "not finite" if value is None else f"{value:.3f}" for name, value in losses.items()}
        return [f"loss {text}" if len(said) == 1 else f"{name} {text}" for name, text in said.items()]


class SearchProgress(Bar):
    """Progress of a search: a bar over its trials on a terminal, a line at every change of a trial elsewhere."""

    def __init__(self, trials: int) -> None:
        super().__init__("trials", trials, "starting")
        self._status: dict[str, str] = {}
        self._at: dict[str, str] = {}
        self.best = ""
        """Said of the best trial so far."""
        self._last_line = 0.0

    def take(self, name: str, status: str, at: int | None, steps: int, note: str = "") -> None:
        """News of one trial. at: its step, None if that is no news; steps: its last one."""
        changed = self._status.get(name) != status
        self._status[name] = status
        if at is not None:
            self._at[name] = f"{at}/{steps}"
        if changed and self._bar is None:
            self.say(f"{name}: {status}{f', {note}' if note else ''}")
        elif changed and note:
            self.say(f"{name}: {status}, {note}")

    def update(self) -> None:
        """Draw, or print a line if the last is a while ago."""
        figures = self._figures()
        over = sum(status != "running" for status in self._status.values())
        if self.draw(over, figures):
            return
        if self._at and time.monotonic() - self._last_line > 2 * QUIET_SECONDS:
            self._last_line = time.monotonic()
            self.say(figures)

    def _figures(self) -> str:
        running = [name for name, status in self._status.items() if status == "running"]
        counts = [f"{len(running)} running"] if running else []
        for status in ("finished", "stopped", "failed"):
            count = sum(own == status for own in self._status.values())
            counts += [f"{count} {status}"] if count else []
        steps = [f"{name.split('_')[0]} at {self._at[name]}" for name in running if name in self._at]
        return "  ".join([", ".join(counts), *steps, self.best]).strip()
