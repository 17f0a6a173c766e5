"""Deaths of the two processes that nobody else watches: the learner (Ray Train restarts it) and the collector (Ray does)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from actors.checkpoint import latest
from actors.clients import cause, unwrap
from actors.collector import CollectorLost
from actors.diary import Diary


class LearnerDeaths(UserCallback):
    """Called by Ray Train when learner ranks fail: an event with the cause and with where the next attempt starts."""

    def __init__(self, diary: Diary, checkpoints: Path) -> None:
        self._diary, self._checkpoints = diary, checkpoints

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        found = latest(self._checkpoints)
        again = f"version {int(found.name.removeprefix('step_'))}" if found else "the beginning"
        self._diary.event("run", f"{failures(worker_exceptions)}; training goes on from {again}")


class CollectorDeaths:
    """Asks the collector for a sign of life; `look` is called often and never waits."""

    def __init__(self, collector: Any, diary: Diary) -> None:
        self._collector, self._diary = collector, diary
        self._asked: Any = None
        self._down = False

    def look(self) -> None:
        import ray

        if self._asked is None:
            self._asked = self._collector.stop_requested.remote()
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        try:
            ray.get(asked)
        except RayActorError as error:
            if not self._down:
                self._diary.event("run", f"the collector died: {cause(error)}")
            self._down = True
            return
        if self._down:
            self._diary.event("run", "the collector is back", "info")
        self._down = False


def failures(errors: Mapping[int, Exception]) -> str:
    """The learner ranks that failed, with the cause of the first one that says more than the rest."""
    # a rank whose process is gone fails Ray Train's health check, which holds what it met
    told = {rank: unwrap(getattr(error, "health_check_failure", error)) for rank, error in errors.items()}
    for error in told.values():
        if isinstance(error, CollectorLost):
            return str(error)
    ranks = ", ".join(map(str, sorted(told)))
    why = next((error for error in told.values() if not isinstance(error, RayActorError)), None)
    first = why or next(iter(told.values()))
    text = cause(first) if isinstance(first, RayActorError) else f"{type(first).__name__}: {cause(first)}"
    return f"the learner (rank {ranks}) died: {text}"


def learner_failure(error: BaseException, max_restarts: int) -> str:
    """One sentence for the end of a run whose learner may not be restarted again."""
    errors = getattr(error, "worker_failures", None)
    if not errors:
        return cause(error)
    return f"{failures(errors)}; it may not be restarted again (resources.max_restarts is {max_restarts})"
