"""Talking to actors that may die: samplers and environment workers behind plain awaitable calls.

A call that an actor's death interrupts is repeated on the restarted actor, after it has been given the current weights; every
request counts its own failures and gives up with the cause, so that a bug cannot crash-loop in silence.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayActorError, RayTaskError

from actors.env_worker import EnvInfo
from actors.sampler import EngineDied, NotArmed
from actors.types import Prefix, Sample, SamplingParams
from envs.base import InfraError, Observation, Step, Task

log = logging.getLogger("posterior.clients")
T = TypeVar("T")


class ActorLost(RuntimeError):
    """An actor kept failing; the message names it and the last cause."""


class SamplerClient:
    """All samplers as one. handles: actor handles. attempts: how often one request is tried.

    coalesce: requests made in the same turn of the event loop travel as one call, so that a synchronous run feeds its sampler
    the same batches every time.
    """

    def __init__(self, handles: Sequence[Any], attempts: int = 4, coalesce: bool = False) -> None:
        self._handles = list(handles)
        self._load = [0] * len(self._handles)
        self._attempts = attempts
        self._coalesce = coalesce
        self._waiting: list[tuple[Sequence[Prefix], SamplingParams, asyncio.Future[list[Sample]]]] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._weights: tuple[dict[str, np.ndarray], int] | None = None
        self._arming: dict[int, asyncio.Task[None]] = {}
        self.restarts = 0

    async def publish(self, arrays: dict[str, np.ndarray], version: int, ref: Any = None) -> None:
        """Give every sampler the weights of a version; they are kept here to re-arm a restarted one.

        ref: a Ray reference to the same arrays, if there is one, spares copying them again.
        """
        self._weights = (arrays, version)
        await asyncio.gather(*(self._arm(i, ref) for i in range(len(self._handles))))

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        if not self._coalesce:
            return await self._spread(prefixes, params)
        future: asyncio.Future[list[Sample]] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append((prefixes, params, future))
        return await future

    async def stats(self) -> list[dict[str, Any]]:
        return await asyncio.gather(*(handle.stats.remote() for handle in self._handles))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        by_params: dict[SamplingParams, list[tuple[Sequence[Prefix], asyncio.Future[list[Sample]]]]] = {}
        for prefixes, params, future in waiting:
            by_params.setdefault(params, []).append((prefixes, future))
        for params, calls in by_params.items():
            task = asyncio.get_running_loop().create_task(self._send(params, calls))
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)

    async def _send(
        self, params: SamplingParams, calls: list[tuple[Sequence[Prefix], asyncio.Future[list[Sample]]]]
    ) -> None:
        try:
            samples = await self._spread([p for prefixes, _ in calls for p in prefixes], params)
        except Exception as error:
            for _, future in calls:
                if not future.done():
                    future.set_exception(error)
            return
        at = 0
        for prefixes, future in calls:
            if not future.done():
                future.set_result(samples[at : at + len(prefixes)])
            at += len(prefixes)

    async def _spread(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        """Split one call over the samplers in contiguous, equal shares (a small call goes to the least busy one)."""
        if len(self._handles) == 1 or len(prefixes) < 2 * len(self._handles):
            return await self._one(min(range(len(self._handles)), key=self._load.__getitem__), prefixes, params)
        cuts = np.linspace(0, len(prefixes), len(self._handles) + 1).astype(int)
        shares = [prefixes[a:b] for a, b in itertools.pairwise(cuts)]
        got = await asyncio.gather(*(self._one(i, share, params) for i, share in enumerate(shares)))
        return [sample for share in got for sample in share]

    async def _one(self, i: int, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        self._load[i] += len(prefixes)
        try:
            return await self._repeat(i, lambda: self._handles[i].sample.remote(list(prefixes), params))
        finally:
            self._load[i] -= len(prefixes)

    async def _repeat(self, i: int, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return await call()
            except (RayActorError, NotArmed, EngineDied) as error:
                if not isinstance(error, NotArmed):
                    self.restarts += 1
                    log.warning("sampler %d failed (attempt %d of %d): %s", i, attempt, self._attempts, _cause(error))
                if attempt == self._attempts:
                    raise ActorLost(
                        f"sampler {i} failed {attempt} times on one request; last cause: {_cause(error)}"
                    ) from error
                await self._arm_once(i)
        raise AssertionError("unreachable")

    async def _arm_once(self, i: int) -> None:
        """One re-arming of a sampler for all the requests that wait for it."""
        if i not in self._arming:
            self._arming[i] = asyncio.get_running_loop().create_task(self._arm(i))
            self._arming[i].add_done_callback(lambda _: self._arming.pop(i, None))
        await asyncio.shield(self._arming[i])

    async def _arm(self, i: int, ref: Any = None) -> None:
        if self._weights is None:
            raise ActorLost(f"sampler {i} died before it was given any weights")
        tries = 0
        while True:
            arrays, version = self._weights
            try:
                await self._handles[i].update_weights.remote(arrays if ref is None else ref, version)
            except (RayActorError, EngineDied) as error:
                ref = None
                tries += 1
                if tries > 100:  # a restart takes seconds and each failed call about as long
                    raise ActorLost(f"sampler {i} does not come back: {_cause(error)}") from error
                await asyncio.sleep(0.2)
                continue
            if self._weights[1] == version:
                return


class EnvClient:
    """All environment workers as one."""

    def __init__(self, handles: Sequence[Any], attempts: int = 3) -> None:
        self._handles = list(handles)
        self._load = [0] * len(self._handles)
        self._attempts = attempts
        self.restarts = 0

    async def info(self) -> EnvInfo:
        return await self._repeat(0, lambda h: h.info.remote())

    async def tasks(self, split: str, start: int, count: int, seed: int | None) -> list[Task]:
        # one worker for all, so that a stream is generated once
        return await self._repeat(0, lambda h: h.tasks.remote(split, start, count, seed))

    async def grade(self, task: Task, actions: Sequence[str], seed: int) -> list[Step | InfraError]:
        i = min(range(len(self._handles)), key=self._load.__getitem__)
        self._load[i] += len(actions)
        try:
            return await self._repeat(i, lambda h: h.grade.remote(task, list(actions), seed))
        finally:
            self._load[i] -= len(actions)

    def session(self, episode: str) -> EnvSession:
        """One episode of a multi-turn environment, on the least busy worker."""
        i = min(range(len(self._handles)), key=self._load.__getitem__)
        self._load[i] += 1
        return EnvSession(self, self._handles[i], i, episode)

    async def _repeat(self, i: int, call: Callable[[Any], Awaitable[T]]) -> T:
        """Stateless calls only: a worker's death loses its open episodes."""
        for attempt in range(1, self._attempts + 1):
            try:
                return await call(self._handles[i])
            except RayActorError as error:
                self.restarts += 1
                log.warning(
                    "environment worker %d died (attempt %d of %d): %s", i, attempt, self._attempts, _cause(error)
                )
                if attempt == self._attempts:
                    raise ActorLost(
                        f"environment worker {i} died {attempt} times on one request: {_cause(error)}"
                    ) from error
                await asyncio.sleep(0.5)
        raise AssertionError("unreachable")


class EnvSession:
    """One running episode. A worker's death surfaces as `InfraError`: the episode is lost and may be played again."""

    def __init__(self, client: EnvClient, handle: Any, worker: int, episode: str) -> None:
        self._client, self._handle, self._worker, self._episode = client, handle, worker, episode

    async def open(self, task: Task, seed: int) -> Observation:
        return await self._ask(self._handle.open.remote(self._episode, task, seed))

    async def step(self, action: str) -> Step:
        return await self._ask(self._handle.step.remote(self._episode, action))

    async def close(self) -> None:
        self._client._load[self._worker] -= 1
        try:
            await self._handle.close.remote(self._episode)
        except RayActorError:
            pass  # its episodes died with it

    async def _ask(self, ref: Awaitable[T]) -> T:
        try:
            return await ref
        except RayActorError as error:
            self._client.restarts += 1
            raise InfraError(f"environment worker {self._worker} died: {_cause(error)}") from error


def unwrap(error: BaseException) -> BaseException:
    """What was raised in an actor, without Ray's wrapping (whose text is a stack of tracebacks)."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if isinstance(error, EngineDied) and lines else (lines[0] if lines else type(error).__name__)
