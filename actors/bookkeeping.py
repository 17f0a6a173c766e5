"""What a row of metrics.jsonl says of a step beside its figures: its groups, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Sequence


def lineage(indices: Sequence[int], offline: bool) -> list[int] | str:
    """Which groups a batch holds, for its row: a list; of an offline method, whose batches follow in order,
    "FIRST..LAST"."""
    if offline and list(indices) == list(range(indices[0], indices[0] + len(indices))):
        return f"{indices[0]}..{indices[-1]}"
    return list(indices)


class Clock:
    """Seconds by stage of one step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"time/{name}"] = self.laps.get(f"time/{name}", 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._start
