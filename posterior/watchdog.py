"""Watchdog: reads from the run directory where learner and collector stand, and says so when nothing has moved for too long.

It runs in the driver and asks nobody, so it can also name the process that hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from actors.diary import Diary

LOOK_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""A process that beats every second and has not for so long is called silent."""


class Watchdog:
    """diary: of the run. seconds: standstill after which it speaks, then after twice as long and so on; 0 never. stop_seconds:
    standstill after which `stop` holds the sentence for stopping the run; 0 never."""

    def __init__(
        self, diary: Diary, seconds: float, stop_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stop = ""
        self._diary, self._seconds, self._stop_seconds, self._clock = diary, seconds, stop_seconds, clock
        self._next = seconds
        self._looked = float("-inf")
        self._moved = clock()
        self._counts: dict[tuple[str, str], Any] = {}
        self._beaten: dict[str, float] = {}
        self._found: dict[str, dict[str, Any]] = {}

    @property
    def error(self) -> str:
        """Why the learner stopped the run, where it could write that nowhere else."""
        return str(self._found.get("learner", {}).get("error", ""))

    @property
    def still(self) -> float:
        """Seconds since something moved."""
        return self._clock() - self._moved

    def look(self) -> None:
        """Call often; looks once a second."""
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self.read()
        before = now - self._moved
        for who, said in self._found.items():
            life = said["pid"], said["beats"]
            if self._counts.get((who, "beats")) != life:
                self._counts[who, "beats"], self._beaten[who] = life, now
            steps = said["pid"], said["moves"]
            if self._counts.get((who, "moves")) != steps:
                self._counts[who, "moves"], self._moved = steps, now
        still = self.still
        if still < before and self._next > self._seconds:
            self._next = self._seconds
            self._say(f"moving again after {before:.0f} s: {self.stage()}", "info")
        if self._seconds and still >= self._next:
            while still >= self._next:
                self._next *= 2
            self._say(f"nothing has moved for {still:.0f} s: {self.stage()}", "warning")
        if self._stop_seconds and still >= self._stop_seconds and not self.stop:
            self.stop = f"nothing has moved for {still:.0f} s (log.watchdog_stop_seconds): {self.stage()}"

    def read(self) -> None:
        """Take in what the processes say now."""
        self._found = self._diary.statuses()

    def stage(self) -> str:
        """What the run is at, in one line."""
        learner = self._one("learner", starts="the learner is starting (Ray Train, models)")
        collector = self._one("collector", starts="the collector is starting")
        return "; ".join(filter(None, [learner, collector]))

    def _one(self, who: str, starts: str) -> str:
        said = self._found.get(who)
        if said is None:
            return starts
        silent = self._clock() - self._beaten.get(who, self._clock())
        if silent >= SILENT_SECONDS and said["beats"]:
            return f"the {who} (process {said['pid']}) has given no sign of life for {silent:.0f} s, last seen {said['stage']}"
        return said["stage"] if who == "learner" else said.get("note", "")

    def _say(self, text: str, level: str) -> None:
        self._diary.event("watchdog", text, level)
