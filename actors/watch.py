"""Watch: the collector's sign of life, and its look at every neighbour, once a second.

Probes notice a death while nobody calls the dead one, and tell a busy neighbour from one that does not answer. What they find goes to
the collector's status file, from which the driver's watchdog reads what a run waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from actors.clients import Client
from actors.diary import BEAT_SECONDS, Status

SHOWN = 4
"""Neighbours named at once."""


class Watch:
    """status: the collector's. clients: whom to ask. doing: what the collector itself says it is at."""

    def __init__(self, status: Status, clients: Sequence[Client], doing: Callable[[], str]) -> None:
        self._status, self._clients, self._doing = status, clients, doing
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._beat())

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def note(self) -> str:
        """What is waited for; trouble comes first."""
        found = [client.describe(i) for client in self._clients for i in range(len(client))]
        words = [text for _, text in sorted(found, key=lambda item: not item[0]) if text]
        more = [f"and {len(words) - SHOWN} more"] if len(words) > SHOWN else []
        return "; ".join([*filter(None, [self._doing()]), *words[:SHOWN], *more])

    async def _beat(self) -> None:
        while True:
            for client in self._clients:
                for i in range(len(client)):
                    self._start(client.probe(i))
            self._status.beat(self.note())
            await asyncio.sleep(BEAT_SECONDS)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
