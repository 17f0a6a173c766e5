"""The sandbox pool: run untrusted Python and get back plain values.

    trusted process                                      sandbox (bubblewrap, one per slot)
    run(source, calls) ─► queue ─► slot's thread ──job──► zygote ──fork──► child: seccomp, load source, calls
                                        ▲    ◄─status────    ▲                │
                                        └──────── results (exact-type frames) ┘

Each slot is a thread with a warm zygote. A program gets a fresh child; all its calls and all their results travel in
one message each way. Expected values stay with the caller. How a candidate ends is part of the results; what our own
machinery does wrong is retried on a fresh zygote and then raised as `InfraError`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import queue
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from envs.base import InfraError
from envs.coding import jail, protocol, work, zygote
from envs.coding.free_names import free_names
from envs.coding.jail import SandboxUnavailable
from envs.coding.slot import GRACE_SECONDS, Broken, Slot, Zygote, pump

__all__ = ["Call", "CallResult", "Limits", "SandboxPool", "SandboxUnavailable", "require_sandbox"]

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one child may use. cpu_seconds: user plus system time. wall_seconds: from fork to end. memory_mb: address
    space, with the interpreter's own 60 MB or so. output_bytes: the encoded size of one result."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 5.0
    memory_mb: int = 256
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Call:
    """One call of a function that the program defines. Arguments are values of the types in `protocol`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CallResult:
    """What a call led to.

    ok: it returned, and its value could cross. value: what it returned.
    error: "" | "ValueError: ..." (the candidate raised) | "timeout" | "memory" | "killed" (it crashed or ended its
    process) | "result too large" | "unsupported type ..." | "import failed: ..." | "malformed value: ...".
    work: the work count of the call with the program's import, where asked for (see `work.method`).
    """

    ok: bool
    value: Any = None
    error: str = ""
    work: int | None = None


def _outcomes(data: bytes, at: int = len(zygote.READY)) -> list[tuple[str, Any]]:
    """The complete frames from `at` in what a child wrote, each decoded to (kind, content)."""
    found: list[tuple[str, Any]] = []
    while at + protocol.HEADER.size <= len(data):
        (size,) = protocol.HEADER.unpack_from(data, at)
        at += protocol.HEADER.size
        if at + size > len(data):
            break
        try:
            kind, content = protocol.loads(data[at : at + size])
            if kind not in ("v", "e", "i", "g") or (kind != "v" and type(content) is not str):
                raise protocol.Malformed("malformed value: not an outcome")
        except protocol.Malformed as error:
            kind, content = "e", str(error)
        except (TypeError, ValueError):
            kind, content = "e", "malformed value: not an outcome"
        found.append((kind, content))
        at += size
    return found


def _job(kind: bytes, counting: int, limits: Limits) -> bytes:
    return zygote.JOB.pack(
        kind, counting, limits.wall_seconds, limits.cpu_seconds, limits.memory_mb << 20, limits.output_bytes
    )


def _run_calls(slot: Slot, payload: bytes, count: int, limits: Limits, measure: bool) -> list[CallResult]:
    runner = slot.zygote("work" if measure else "candidate")
    counting = zygote.COUNT_NOTHING
    if measure:
        counting, limits = work.counting(runner.method), work.scaled(limits, runner.method)
        runner.read_log()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            runner.start(_job(b"C", counting, limits), [theirs.fileno()])
        room = count * (limits.output_bytes + 64) + 4096
        data, status = pump(runner, ours, payload, room, limits.wall_seconds)
    if data[:1] != zygote.READY:
        raise Broken(f"child ended before it was ready (wait status {status.code})")
    begun = measure and data[1:2] == zygote.READY
    outcomes = _outcomes(data, 2 if begun else 1)[:count]
    if measure and not begun and not outcomes and os.WIFEXITED(status.code):
        raise Broken("counting did not begin")
    if outcomes and outcomes[0][0] == "i":
        return [CallResult(False, error=outcomes[0][1])] * count
    results = [
        CallResult(True, content) if kind == "v" else CallResult(False, error=content) for kind, content in outcomes
    ]
    if len(results) < count:
        results += [CallResult(False, error=status.verdict(limits.cpu_seconds))] * (count - len(results))
    if measure and results[0].ok:
        counted: int | None = status.work
        if runner.method == work.CACHEGRIND:
            counted = work.count_from_log(runner.read_log(), status.cpu)
        results = [CallResult(False, error="killed") if counted is None else replace(results[0], work=counted)]
    return results


def _run_tests(slot: Slot, source: bytes, tests: bytes, limits: Limits) -> CallResult:
    candidate, tester = slot.zygote("candidate"), slot.zygote("tests")
    ours, theirs = socket.socketpair()
    # The candidate answers calls on a link whose other end the tests' child inherits; only the source comes from us.
    candidate_end, tests_end = socket.socketpair()
    with ours:
        with theirs, tests_end:
            with candidate_end:
                candidate.start(_job(b"C", zygote.COUNT_NOTHING, limits), [candidate_end.fileno()])
            tests_end.settimeout(limits.wall_seconds)
            try:
                tests_end.sendall(source)
            except OSError:
                pass  # the candidate's child has ended; its status says how
            tests_end.setblocking(True)
            tester.start(_job(b"T", zygote.COUNT_NOTHING, limits), [theirs.fileno(), tests_end.fileno()])
        data, status = pump(tester, ours, tests, 1 << 16, limits.wall_seconds)
    outcomes = _outcomes(data)
    gone = outcomes[:1] == [("g", zygote.GONE)]
    if not gone:
        candidate.start(b"stop", [])  # nobody will read what it may still be computing
    if not select.select([candidate.control], [], [], limits.wall_seconds + GRACE_SECONDS)[0]:
        raise Broken("zygote did not report in time")
    candidate_status = candidate.status()
    if data[:1] != zygote.READY:
        raise Broken(f"child ended before it was ready (wait status {status.code})")
    if not outcomes:
        return CallResult(False, error=status.verdict(limits.cpu_seconds))
    kind, content = outcomes[0]
    if kind == "v":
        return CallResult(True)
    if kind == "g" and content == "not ready":
        raise Broken("the candidate's child ended before it was ready")
    if gone:
        return CallResult(False, error=candidate_status.verdict(limits.cpu_seconds))
    return CallResult(False, error=content)


class SandboxPool:
    """Slots that run untrusted programs. Usable from any event loop and thread; jobs queue for a free slot.

    workers: slots, by default one per CPU this process may use. unsafe_local: plain subprocesses without isolation,
    for machines without bubblewrap and only when the user asks for it. A slot's first zygote starts at once, the others
    when first needed. Raises SandboxUnavailable if the sandbox cannot work here.
    """

    _shared: ClassVar[dict[tuple[int, bool], SandboxPool]] = {}
    _shared_lock = threading.Lock()

    def __init__(self, workers: int | None = None, unsafe_local: bool = False) -> None:
        if unsafe_local:
            log.warning("UNSAFE: untrusted programs run on this machine WITHOUT a sandbox (--unsafe-local)")
        else:
            require_sandbox()
        self.unsafe_local = unsafe_local
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._slots = [Slot(n, self._jobs, unsafe_local) for n in range(workers or len(os.sched_getaffinity(0)))]
        for slot in self._slots:
            slot.start()
        self._closed = False

    @property
    def workers(self) -> int:
        return len(self._slots)

    def process_ids(self) -> list[int]:
        """The sandboxes' outermost processes on this machine, for supervision and tests."""
        return [z.process.pid for slot in self._slots for z in list(slot.zygotes.values())]

    @classmethod
    def shared(cls, unsafe_local: bool = False) -> SandboxPool:
        """The pool of this process (one per mode), created at first use and closed at exit."""
        key = (os.getpid(), unsafe_local)
        with cls._shared_lock:
            pool = cls._shared.get(key)
            if pool is None or pool._closed:
                pool = cls._shared[key] = cls(unsafe_local=unsafe_local)
                atexit.register(pool.close_now)
            return pool

    async def _submit(self, job: Callable[[Slot], T]) -> T:
        if self._closed:
            raise InfraError("the sandbox pool is closed")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.put((job, future))
        return await asyncio.wrap_future(future)

    async def run(
        self,
        source: str,
        calls: Sequence[Call],
        limits: Limits = Limits(),
        *,
        fresh: bool = False,
        measure: bool = False,
    ) -> list[CallResult]:
        """Load `source` in a fresh child and perform `calls` in order; one result per call.

        A child that dies in one call fails that call and all later ones. fresh: every call gets its own child, so that
        nothing kept from an earlier call can help. measure: `CallResult.work` is set; implies fresh. Raises InfraError
        if the machinery fails repeatedly, `protocol.Unsupported` for arguments that cannot cross.
        """
        head = protocol.frame(protocol.dumps(source))
        requests = [protocol.frame(protocol.dumps([call.name, call.args, call.kwargs])) for call in calls]
        if not fresh and not measure:
            payload = head + b"".join(requests)
            return await self._submit(
                partial(_run_calls, payload=payload, count=len(calls), limits=limits, measure=False)
            )
        jobs = [partial(_run_calls, payload=head + r, count=1, limits=limits, measure=measure) for r in requests]
        return [results[0] for results in await asyncio.gather(*map(self._submit, jobs))]

    async def run_tests(
        self,
        source: str,
        test_source: str,
        entry_point: str,
        limits: Limits = Limits(),
    ) -> CallResult:
        """Run untrusted test code against a candidate, each in a child of its own.

        In the tests' child `entry_point`, and any other free name of `test_source` that is no builtin, is a stub that
        calls the candidate's child over the exact-type protocol. ok is True if and only if the test code ran to its end
        without an exception.
        """
        try:
            names = free_names(test_source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return CallResult(False, error=f"tests: {type(error).__name__}: {error}")
        tests = protocol.frame(protocol.dumps([test_source, sorted(names | {entry_point})]))
        head = protocol.frame(protocol.dumps(source))
        return await self._submit(partial(_run_tests, source=head, tests=tests, limits=limits))

    async def close(self) -> None:
        """End all zygotes; jobs already queued are finished first."""
        await asyncio.get_running_loop().run_in_executor(None, self.close_now)

    def close_now(self) -> None:
        """`close` for callers without an event loop."""
        if not self._closed:
            self._closed = True
            for _ in self._slots:
                self._jobs.put(None)
            for slot in self._slots:
                slot.join(timeout=GRACE_SECONDS)


_working: list[bool] = []


def require_sandbox() -> None:
    """Start one sandboxed zygote as a proof. Raises SandboxUnavailable, whose message says what to install."""
    if _working:
        return
    try:
        Zygote(-1, unsafe_local=False).close()
    except (Broken, OSError) as error:
        if jail.slot_uid(0) < 0:
            raise jail.unavailable(str(error)) from None
        log.warning("sandbox: root cannot give slots uids of their own here (%s); using a user namespace", error)
        jail.without_own_uids()
        require_sandbox()
        return
    _working.append(True)
