"""What the samplers share: an engine behind an asyncio actor.

The engine steps in a thread of its own. Everything that touches it (new requests, weights, pauses) is a closure put on a queue
that the thread drains between two steps, so requests join and leave a running batch and weights change while others are in flight.

    async method ──► queue of closures ──► engine thread: drain, step, drain, step ... ──► futures on the actor's event loop

A sampler that was restarted after a death holds the weights of its model folder, not the current ones: it refuses work
(`NotArmed`) until `update_weights` has been called once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

log = logging.getLogger("posterior.sampler")


class NotArmed(RuntimeError):
    """The sampler does not hold the current weights yet."""


class EngineDied(RuntimeError):
    """The engine raised; the message holds its traceback. The actor exits and is restarted."""


@dataclass
class Call:
    """One `sample` or `score` call: its requests still running, and where the answers go."""

    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    left: int
    out: list[Any]
    place: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def resolve(self) -> None:
        self.loop.call_soon_threadsafe(self._settle, None)

    def fail(self, error: BaseException) -> None:
        self.loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: BaseException | None) -> None:
        if self.future.done():  # the caller gave up
            return
        if error is None:
            self.future.set_result(self.out)
        else:
            self.future.set_exception(error)


class Serving:
    """Base of the samplers. armed: whether the weights are the current ones (False for a run's samplers, which wait for the learner)."""

    def __init__(self, armed: bool) -> None:
        self.version = 0
        self.armed = armed
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: dict[str, Call] = {}
        self._serial = 0
        self._paused = False
        self._stats = {"tokens": 0, "steps": 0, "busy": 0.0, "updates": 0, "update_seconds": 0.0}
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # ---- what a subclass gives ------------------------------------------------------------------------------------------

    def _working(self) -> bool:
        """Whether the engine has unfinished requests."""
        raise NotImplementedError

    def _step(self) -> Sequence[tuple[str, Any]]:
        """One step of the engine: (name, answer) of the requests that ended."""
        raise NotImplementedError

    def _abort(self, names: list[str]) -> None:
        """Drop requests from the engine."""
        raise NotImplementedError

    def _apply_weights(self, arrays: dict[str, np.ndarray], version: int) -> None:
        raise NotImplementedError

    # ---- the actor's interface ------------------------------------------------------------------------------------------

    async def update_weights(self, arrays: dict[str, np.ndarray], version: int) -> float:
        """Take new weights between two engine steps; returns seconds. Requests in flight go on under the new policy."""

        def apply() -> float:
            start = time.perf_counter()
            self._apply_weights(arrays, version)
            self.version, self.armed = version, True
            seconds = time.perf_counter() - start
            self._stats["updates"] += 1
            self._stats["update_seconds"] += seconds
            return seconds

        return await self._do(apply)

    async def pause(self) -> None:
        """Stop stepping after the current step; requests are kept and new ones queue."""
        await self._do(lambda: setattr(self, "_paused", True))

    async def resume(self) -> None:
        await self._do(lambda: setattr(self, "_paused", False))

    async def abort_all(self) -> int:
        """Drop every running request (their callers get an error); returns how many."""

        def abort() -> int:
            names = list(self._calls)
            if names:
                self._abort(names)
            for call in {id(c): c for c in self._calls.values()}.values():
                call.fail(asyncio.CancelledError("aborted"))
            self._calls.clear()
            return len(names)

        return await self._do(abort)

    async def stats(self) -> dict[str, Any]:
        """Totals since start: tokens, steps, busy seconds, updates; and what holds now."""
        return {
            **self._stats,
            "version": self.version,
            "armed": self.armed,
            "running": len(self._calls),
            "pid": os.getpid(),
        }

    # ---- engine thread --------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while True:
                self._drain(block=self._paused or not self._working())
                if self._paused or not self._working():
                    continue
                start = time.perf_counter()
                for name, answer in self._step():
                    self._finish(name, answer)
                self._stats["busy"] += time.perf_counter() - start
                self._stats["steps"] += 1
        except BaseException:
            # an engine that raised cannot be trusted: tell the callers why, then take the actor down to be restarted
            cause = traceback.format_exc()
            log.error("the engine died:\n%s", cause)
            for call in {id(c): c for c in self._calls.values()}.values():
                call.fail(EngineDied(cause))
            time.sleep(0.5)
            os._exit(17)

    def _drain(self, block: bool) -> None:
        while True:
            try:
                todo = self._queue.get() if block else self._queue.get_nowait()
            except queue.Empty:
                return
            todo()
            block = False

    def _finish(self, name: str, answer: Any) -> None:
        call = self._calls.pop(name, None)
        if call is None:
            return
        at = call.place[name]
        call.out[at] = call.out[at](answer)
        call.left -= 1
        if call.left == 0:
            call.resolve()

    def _enter(self, call: Call, at: int) -> str:
        """A name for one more request of a call, whose answer belongs at `at`."""
        self._serial += 1
        name = str(self._serial)
        call.place[name] = at
        return name

    # ---- crossing from the event loop to the engine thread -----------------------------------------------------------------

    def _check_armed(self) -> None:
        if not self.armed:
            raise NotArmed("this sampler was (re)started and does not hold the current weights yet")

    async def _submit(self, n: int, add: Callable[[Call], None]) -> Any:
        if n == 0:
            return []
        loop = asyncio.get_running_loop()
        call = Call(loop.create_future(), loop, n, [None] * n)

        def todo() -> None:
            try:
                add(call)
            except Exception as error:
                # a request that the engine refuses is the caller's error; the engine goes on
                mine = [name for name in call.place if name in self._calls]
                for name in mine:
                    del self._calls[name]
                if mine:
                    self._abort(mine)
                call.fail(error)

        self._queue.put(todo)
        return await call.future

    async def _do(self, action: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        call = Call(loop.create_future(), loop, 1, [])

        def todo() -> None:
            try:
                call.out = action()
            except Exception as error:
                call.fail(error)
                return
            call.resolve()

        self._queue.put(todo)
        return await call.future
