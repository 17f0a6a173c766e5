"""Actors without Ray: the clients of samplers and environment workers on plain objects of this process, for benchmarks and tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Local:
    """Stands where an actor's handle does: `.method.remote(...)` is the coroutine of the object's own method."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._target, name))
