"""Talking to actors that may die: samplers and environment workers behind plain awaitable calls.

A call that an actor's death interrupts is repeated on the restarted actor, after it has been given the current weights; every
request counts its own failures and gives up with the cause, so that a bug cannot crash-loop in silence. Each death and each return
is logged once, whoever notices it first: a call, or the probe that `actors.watch` sends now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from actors.env_worker import EnvInfo
from actors.serving import EngineDied, NotArmed
from actors.types import Prefix, Sample, SamplingParams
from envs.base import InfraError, Observation, Step, Task

log = logging.getLogger("posterior.clients")
T = TypeVar("T")
SILENT_SECONDS = 3.0
"""How long an actor may leave a probe unanswered before it is called silent."""
RETURN_SECONDS = 300.0
"""How long a dead actor may take to come back."""


class ActorLost(RuntimeError):
    """An actor kept failing; the message names it and the last cause."""


class Client:
    """What samplers and environment workers have in common: who is dead, who is back, who does not answer.

    moved: called whenever an actor brought the run forward. attempts: how often one request is tried; Ray restarts an actor one
    time less.
    """

    kind = "actor"
    unit = "requests"

    def __init__(self, handles: Sequence[Any], attempts: int, moved: Callable[[], None] | None = None) -> None:
        self._handles = list(handles)
        self._load = [0] * len(self._handles)
        self._attempts = attempts
        self._moved = moved or (lambda: None)
        self._down: dict[int, tuple[float, str]] = {}
        self._back: dict[int, float] = {}
        self._reviving: dict[int, asyncio.Task[None]] = {}
        self._asked: dict[int, float] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self.restarts = 0

    def __len__(self) -> int:
        return len(self._handles)

    async def probe(self, i: int) -> None:
        """Ask for a sign of life, unless one is outstanding; notices a death while nobody calls."""
        if i in self._asked:
            return
        asked = self._asked[i] = time.monotonic()
        try:
            facts = await self._alive(i)
        except RayActorError as error:
            with contextlib.suppress(ActorLost):  # the next request meets it too
                self._lost(i, error, asked)
            return
        finally:
            del self._asked[i]
        if facts.get("steps", 0) > self._facts.get(i, {}).get("steps", 0):
            self._moved()
        self._facts[i] = facts

    def describe(self, i: int) -> tuple[bool, str]:
        """(is something wrong, what this actor is doing); ("") for an idle one that answers."""
        now, name = time.monotonic(), f"{self.kind} {i}"
        does = f"{self._load[i]} {self.unit}" if self._load[i] else "idle"
        if i in self._down:
            return True, f"{name} ({does}) died {now - self._down[i][0]:.0f} s ago and is being restarted"
        if i not in self._facts:
            return True, f"{name} is starting"
        if now - self._asked.get(i, now) >= SILENT_SECONDS:
            return True, f"{name} ({does}) has not answered for {now - self._asked[i]:.0f} s"
        return False, f"{name} works on {does}" if self._load[i] else ""

    async def _alive(self, i: int) -> dict[str, Any]:
        """Facts from the actor: "pid", and "steps" if it counts any."""
        raise NotImplementedError

    async def _revive(self, i: int) -> None:
        """Until the actor can be used again."""
        raise NotImplementedError

    def _lost(self, i: int, error: BaseException, asked: float) -> None:
        """A call of the time `asked` failed because the actor died; the first to notice logs it and sees to its return.

        Raises ActorLost for good.
        """
        if i not in self._down and asked < self._back.get(i, 0.0) and not isinstance(error, ActorDiedError):
            return  # late news of a death that is over
        if i not in self._down:
            self._down[i] = time.monotonic(), cause(error)
            self.restarts += 1
            process = f" (process {self._facts[i]['pid']})" if i in self._facts else ""
            log.warning("%s %d%s died with %d %s: %s", self.kind, i, process, self._load[i], self.unit, cause(error))
            self._facts.pop(i, None)
        since, why = self._down[i]
        if isinstance(error, ActorDiedError):
            raise ActorLost(
                f"{self.kind} {i} died and may not be restarted again (resources.max_restarts is {self._attempts - 1}): {why}"
            ) from error
        if time.monotonic() - since > RETURN_SECONDS:
            raise ActorLost(f"{self.kind} {i} died and is not back after {RETURN_SECONDS:.0f} s: {why}") from error
        self._see_to(i)

    def _returned(self, i: int) -> None:
        if i in self._down:
            self._back[i] = time.monotonic()
            seconds = self._back[i] - self._down.pop(i)[0]
            log.info("%s %d is back after %.1f s%s", self.kind, i, seconds, self._holding())

    def _holding(self) -> str:
        return ""

    def _see_to(self, i: int) -> asyncio.Task[None]:
        """One revival of an actor for all the requests that wait for it."""
        if i not in self._reviving:
            task = asyncio.get_running_loop().create_task(self._revive(i))
            self._reviving[i] = task

            def done(task: asyncio.Task[None]) -> None:
                self._reviving.pop(i, None)
                if not task.cancelled():
                    task.exception()  # whoever waits gets it; nobody may

            task.add_done_callback(done)
        return self._reviving[i]

    async def _repeat(self, i: int, call: Callable[[Any], Awaitable[T]]) -> T:
        for attempt in range(1, self._attempts + 1):
            if i in self._reviving:
                await asyncio.shield(self._reviving[i])
            asked = time.monotonic()
            try:
                answer = await call(self._handles[i])
            except (RayActorError, NotArmed, EngineDied) as error:
                if not isinstance(error, NotArmed):
                    self._lost(i, error, asked)
                if attempt == self._attempts:
                    raise ActorLost(
                        f"{self.kind} {i} failed {attempt} times on one request; last cause: {cause(error)}"
                    ) from error
                await asyncio.shield(self._see_to(i))
            else:
                self._moved()
                return answer
        raise AssertionError("unreachable")


class SamplerClient(Client):
    """All samplers as one. handles: actor handles. attempts: how often one request is tried.

    coalesce: requests made in the same turn of the event loop travel as one call, so that a synchronous run feeds its sampler
    the same batches every time.
    """

    kind = "sampler"

    def __init__(
        self,
        handles: Sequence[Any],
        attempts: int = 4,
        coalesce: bool = False,
        moved: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(handles, attempts, moved)
        self._coalesce = coalesce
        self._closed = False
        self._waiting: list[tuple[Sequence[Prefix], SamplingParams, asyncio.Future[list[Sample]]]] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._weights: tuple[dict[str, np.ndarray], int] | None = None

    def close(self) -> None:
        """Stop what still runs: a client that was replaced must not give a sampler its old weights."""
        self._closed = True
        for task in [*self._flushes, *self._reviving.values()]:
            task.cancel()

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
        except asyncio.CancelledError:
            for _, future in calls:
                future.cancel()
            raise
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
            return await self._repeat(i, lambda handle: handle.sample.remote(list(prefixes), params))
        finally:
            self._load[i] -= len(prefixes)

    async def _alive(self, i: int) -> dict[str, Any]:
        return await self._handles[i].stats.remote()

    async def _revive(self, i: int) -> None:
        await self._arm(i)

    def _holding(self) -> str:
        return f" with weights v{self._weights[1]}" if self._weights is not None else ""

    async def _arm(self, i: int, ref: Any = None) -> None:
        """Until the sampler holds the current weights; one that died is waited for."""
        while True:
            if self._weights is None:
                raise ActorLost(f"sampler {i} died before it was given any weights")
            if self._closed:
                raise ActorLost("the collection started again")
            arrays, version = self._weights
            asked = time.monotonic()
            try:
                await self._handles[i].update_weights.remote(arrays if ref is None else ref, version)
            except (RayActorError, EngineDied) as error:
                ref = None
                self._lost(i, error, asked)
                await asyncio.sleep(0.2)
                continue
            if self._weights[1] == version:
                self._returned(i)
                return self._moved()


class EnvClient(Client):
    """All environment workers as one."""

    kind, unit = "environment worker", "answers"

    def __init__(self, handles: Sequence[Any], attempts: int = 4, moved: Callable[[], None] | None = None) -> None:
        super().__init__(handles, attempts, moved)

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

    async def ready(self, i: int) -> None:
        """Until a worker that died can be used again."""
        if i in self._reviving:
            await asyncio.shield(self._reviving[i])

    async def _alive(self, i: int) -> dict[str, Any]:
        return await self._handles[i].alive.remote()

    async def _revive(self, i: int) -> None:
        while True:
            asked = time.monotonic()
            try:
                await self._alive(i)
            except RayActorError as error:
                self._lost(i, error, asked)
                await asyncio.sleep(0.2)
            else:
                return self._returned(i)


class EnvSession:
    """One running episode. A worker's death surfaces as `InfraError`: the episode is lost and may be played again."""

    def __init__(self, client: EnvClient, handle: Any, worker: int, episode: str) -> None:
        self._client, self._handle, self._worker, self._episode = client, handle, worker, episode
        self._opened = time.monotonic()

    async def open(self, task: Task, seed: int) -> Observation:
        await self._client.ready(self._worker)
        self._opened = time.monotonic()
        return await self._ask(self._handle.open.remote(self._episode, task, seed))

    async def snapshot(self) -> bytes:
        return await self._ask(self._handle.snapshot.remote(self._episode))

    async def restore(self, state: bytes) -> None:
        """In place of `open`: go on from a snapshot."""
        await self._client.ready(self._worker)
        self._opened = time.monotonic()
        await self._ask(self._handle.restore.remote(self._episode, state))

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
            answer = await ref
        except RayActorError as error:
            self._client._lost(self._worker, error, self._opened)
            raise InfraError(f"environment worker {self._worker} died: {cause(error)}") from error
        self._client._moved()
        return answer


def unwrap(error: BaseException) -> BaseException:
    """What was raised in an actor, without Ray's wrapping (whose text is a stack of tracebacks)."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def cause(error: BaseException) -> str:
    """Why an actor died, in a few words: Ray's own are a page, and name every reason there could be."""
    lines = [line.strip() for line in str(unwrap(error)).splitlines()]
    lines = [line for line in lines if line and not line.startswith("For further information visit")]  # pydantic's last
    if isinstance(error, EngineDied):
        return lines[-1] if lines else "the engine died"
    if isinstance(error, RayActorError) and not getattr(error, "actor_init_failed", False):
        return f"its process ended without a word, so it was killed (SIGKILL) or crashed{_out_of_memory()}"
    return lines[-1] if isinstance(error, RayActorError) and lines else (lines[0] if lines else type(error).__name__)


def _out_of_memory() -> str:
    """What the kernel of this machine knows about it: how often it killed for memory since it started."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except (OSError, ValueError):
        return ""
    kills = int(counts.get("oom_kill", 0))
    return f"; the kernel killed {kills} processes for want of memory since it started" if kills else ""
