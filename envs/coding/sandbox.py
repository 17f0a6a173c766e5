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
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

from envs.base import InfraError
from envs.coding import jail, protocol, work, zygote
from envs.coding.free_names import free_names
from envs.coding.jail import SandboxUnavailable

__all__ = ["Call", "CallResult", "Limits", "SandboxPool", "SandboxUnavailable", "require_sandbox"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_ATTEMPTS = 3


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


class _Broken(Exception):
    """The zygote failed: restart it and try again."""


class _Status(NamedTuple):
    cause: bytes
    code: int
    cpu: float
    work: int

    def verdict(self, cpu_limit: float) -> str:
        """The error of a child that ended before it answered. Raises _Broken where that cannot be its own doing."""
        if self.cause == zygote.TIMED_OUT:
            return "timeout"
        if self.cause == zygote.STOPPED:
            return "result too large"
        if os.WIFSIGNALED(self.code) and os.WTERMSIG(self.code) == signal.SIGKILL:
            if self.cpu >= cpu_limit:
                return "timeout"
            # A child cannot send signals, so somebody outside killed it.
            raise _Broken("the child was killed from outside")
        return "killed"


class _Zygote:
    """One warm interpreter, in the sandbox or (unsafe_local) as a plain subprocess."""

    def __init__(self, slot: int, unsafe_local: bool, counting: bool = False) -> None:
        self.method = work.method() if counting else ""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the zygote)
        self._log, log_end = os.pipe()
        os.set_blocking(self._log, False)
        with theirs, ExitStack() as after_start:
            after_start.callback(os.close, log_end)
            inherited = [theirs.fileno()]
            filter_fd = -1
            tracer = work.tracer_command(self.method, log_end)
            if tracer:
                inherited.append(log_end)
            uid = -1 if unsafe_local else jail.slot_uid(slot)
            if not unsafe_local:
                filter_fd = after_start.enter_context(jail.filter_file(writable_opens=bool(tracer))).fileno()
                inherited.append(filter_fd)
            folder = os.path.dirname(os.path.abspath(__file__)) if unsafe_local else jail.HARNESS
            arguments = [str(theirs.fileno()), str(filter_fd), str(uid), work.counter_argument(self.method)]
            command = [*tracer, jail.interpreter(), *jail.PYTHON_FLAGS, f"{folder}/zygote.py", *arguments]
            if not unsafe_local:
                command = jail.jail_command(command, slot, own_uid=uid >= 0, tracer=bool(tracer))
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                pass_fds=inherited,
                env=jail.environment(),
                cwd="/",
            )
        self.control.settimeout(_START_SECONDS)
        try:
            ready = self.control.recv(1) == zygote.READY
        except OSError:
            ready = False
        if not ready:
            reason = self.last_words()
            self.close()
            raise _Broken(f"zygote did not start: {reason}")

    def start(self, job: bytes, fds: list[int]) -> None:
        try:
            socket.send_fds(self.control, [job], fds)
        except OSError as error:
            raise _Broken(f"zygote is gone: {error}") from None

    def status(self) -> _Status:
        packet = self.control.recv(zygote.STATUS.size)
        if len(packet) < zygote.STATUS.size:
            raise _Broken(f"zygote ended during a job {self.last_words()}".strip())
        status = _Status(*zygote.STATUS.unpack(packet))
        if status.cause == zygote.NO_FORK:
            raise _Broken("zygote could not fork")
        return status

    def last_words(self) -> str:
        self.errors.seek(0)
        return (self.errors.read(4000)[-2000:] + self.read_log()[-2000:]).decode(errors="replace").strip()

    def read_log(self) -> bytes:
        """What valgrind wrote since the last call."""
        parts = []
        while True:
            try:
                part = os.read(self._log, 1 << 16)
            except BlockingIOError:
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()
        os.close(self._log)


def _pump(status_of: _Zygote, channel: socket.socket, outgoing: bytes, room: int, wall: float) -> tuple[bytes, _Status]:
    """Write `outgoing`, read until the child has ended; returns what it wrote and how it ended.

    A child that writes more than `room` bytes is stopped. Raises _Broken if the zygote fails.
    """
    channel.setblocking(False)
    received = bytearray()
    status: _Status | None = None
    stopped = False
    deadline = time.monotonic() + wall + _GRACE_SECONDS
    poller = select.poll()
    poller.register(status_of.control, select.POLLIN)
    view = memoryview(outgoing)
    view = view[_send(channel, view) :]
    patient = not view
    if patient:
        channel.shutdown(socket.SHUT_WR)
    else:
        poller.register(channel, select.POLLIN | select.POLLOUT)
    while status is None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Broken("zygote did not report in time")
        # Most children end within milliseconds; waking for each of their writes would only cost time.
        ready = dict(poller.poll(5 if patient else left * 1000))
        if patient and not ready:
            poller.register(channel, select.POLLIN)
            patient = False
            continue
        events = ready.get(channel.fileno(), 0)
        if events & select.POLLOUT and view:
            view = view[_send(channel, view) :]
            if not view:
                channel.shutdown(socket.SHUT_WR)
                poller.modify(channel, select.POLLIN)
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            if not _receive(channel, received):
                poller.unregister(channel)
            elif len(received) > room and not stopped:
                stopped = True
                poller.unregister(channel)
                status_of.start(b"stop", [])
        if status_of.control.fileno() in ready:
            status = status_of.status()
    while not stopped and len(received) <= room and _receive(channel, received):
        pass
    if len(received) > room:
        status = status._replace(cause=zygote.STOPPED)
    return bytes(received), status


def _send(channel: socket.socket, view: memoryview) -> int:
    try:
        return channel.send(view) if view else 0
    except BlockingIOError:
        return 0
    except OSError:
        return len(view)  # the child has ended; its status says how


def _receive(channel: socket.socket, into: bytearray) -> bool:
    """Read once; False at the end of the stream."""
    try:
        data = channel.recv(1 << 18)
    except BlockingIOError:
        return True
    except OSError:
        return False
    into += data
    return bool(data)


def _outcomes(data: bytes) -> list[tuple[str, Any]]:
    """The complete frames in what a child wrote, each decoded to (kind, content)."""
    found: list[tuple[str, Any]] = []
    at = len(zygote.READY)
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


class _Slot(threading.Thread):
    """A thread with its own zygotes; takes one job after another from the pool's queue."""

    def __init__(self, number: int, jobs: queue.SimpleQueue[Any], unsafe_local: bool) -> None:
        super().__init__(name=f"sandbox-{number}", daemon=True)
        self.number, self.jobs, self.unsafe_local = number, jobs, unsafe_local
        self.zygotes: dict[str, _Zygote] = {}

    def run(self) -> None:
        while (item := self.jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._retry(job))
            except BaseException as error:
                future.set_exception(error)
        self.discard()

    def _retry(self, job: Callable[[_Slot], T]) -> T:
        reasons = []
        for _ in range(_ATTEMPTS):
            try:
                return job(self)
            except (_Broken, OSError) as error:
                log.warning("sandbox slot %d restarts: %s", self.number, error)
                reasons.append(str(error))
                self.discard()
        raise InfraError(f"sandbox slot {self.number} failed {_ATTEMPTS} times: {reasons[-1]}")

    def zygote(self, role: str) -> _Zygote:
        if role not in self.zygotes:
            number = 3 * self.number + ("candidate", "tests", "work").index(role)
            self.zygotes[role] = _Zygote(number, self.unsafe_local, counting=role == "work")
        return self.zygotes[role]

    def discard(self) -> None:
        while self.zygotes:
            self.zygotes.popitem()[1].close()


def _job(kind: bytes, counting: int, limits: Limits) -> bytes:
    return zygote.JOB.pack(
        kind, counting, limits.wall_seconds, limits.cpu_seconds, limits.memory_mb << 20, limits.output_bytes
    )


def _run_calls(slot: _Slot, payload: bytes, count: int, limits: Limits, measure: bool) -> list[CallResult]:
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
        data, status = _pump(runner, ours, payload, room, limits.wall_seconds)
    if data[:1] != zygote.READY:
        raise _Broken(f"child ended before it was ready (wait status {status.code})")
    outcomes = _outcomes(data)[:count]
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


def _run_tests(slot: _Slot, source: bytes, tests: bytes, limits: Limits) -> CallResult:
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
        data, status = _pump(tester, ours, tests, 1 << 16, limits.wall_seconds)
    # With the tests' child gone the candidate's reads the end of its stream and leaves, or its own limits end it.
    if not select.select([candidate.control], [], [], limits.wall_seconds + _GRACE_SECONDS)[0]:
        raise _Broken("zygote did not report in time")
    candidate_status = candidate.status()
    if data[:1] != zygote.READY:
        raise _Broken(f"child ended before it was ready (wait status {status.code})")
    outcomes = _outcomes(data)
    if not outcomes:
        return CallResult(False, error=status.verdict(limits.cpu_seconds))
    kind, content = outcomes[0]
    if kind == "v":
        return CallResult(True)
    if kind == "g" and content == "not ready":
        raise _Broken("the candidate's child ended before it was ready")
    if kind == "g" and content == "the candidate's process ended":
        return CallResult(False, error=candidate_status.verdict(limits.cpu_seconds))
    return CallResult(False, error=content)


class SandboxPool:
    """Slots that run untrusted programs. Usable from any event loop and thread; jobs queue for a free slot.

    workers: slots, by default one per CPU this process may use. unsafe_local: plain subprocesses without isolation,
    for machines without bubblewrap and only when the user asks for it. Zygotes start at a slot's first job. Raises
    SandboxUnavailable if the sandbox cannot work here.
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
        self._slots = [_Slot(n, self._jobs, unsafe_local) for n in range(workers or len(os.sched_getaffinity(0)))]
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

    async def _submit(self, job: Callable[[_Slot], T]) -> T:
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
                slot.join(timeout=_GRACE_SECONDS)


_working: list[bool] = []


def require_sandbox() -> None:
    """Start one sandboxed zygote as a proof. Raises SandboxUnavailable, whose message says what to install."""
    if _working:
        return
    try:
        _Zygote(63, unsafe_local=False).close()
    except (_Broken, OSError) as error:
        raise jail.unavailable(str(error)) from None
    _working.append(True)
