"""One slot of the sandbox pool: a thread that owns warm zygotes, and the exchange of bytes with their children."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from envs.base import InfraError
from envs.coding import jail, work, zygote

log = logging.getLogger(__name__)
T = TypeVar("T")

START_SECONDS = 60.0
GRACE_SECONDS = 10.0
"""How long past a child's own limits its zygote may take to report."""
ATTEMPTS = 3
ROLES = ("candidate", "tests", "work")
"""A slot's zygotes: for candidates, for test code that runs against one, for candidates whose work is counted."""


class Broken(Exception):
    """The zygote failed: restart it and try again."""


class Status(NamedTuple):
    cause: bytes
    code: int
    cpu: float
    work: int

    def verdict(self, cpu_limit: float) -> str:
        """The error of a child that ended before it answered. Raises Broken where that cannot be its own doing."""
        if self.cause == zygote.TIMED_OUT:
            return "timeout"
        if self.cause == zygote.STOPPED:
            return "result too large"
        if os.WIFSIGNALED(self.code) and os.WTERMSIG(self.code) == signal.SIGKILL:
            if self.cpu >= cpu_limit:
                return "timeout"
            # A child cannot send signals, so somebody outside killed it.
            raise Broken("the child was killed from outside")
        return "killed"


class Zygote:
    """One warm interpreter, in the sandbox or (unsafe_local) as a plain subprocess."""

    def __init__(self, slot: int, unsafe_local: bool, counting: bool = False) -> None:
        self.method = work.method() if counting else ""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log, log_end = os.pipe()
        os.set_blocking(self._log, False)
        with theirs, ExitStack() as after_start:
            after_start.callback(os.close, log_end)
            inherited = [theirs.fileno()]
            filter_fd = -1
            tracer = work.tracer_command(self.method)
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
                stderr=log_end,
                pass_fds=inherited,
                env=jail.environment(),
                cwd="/",
            )
        self.control.settimeout(START_SECONDS)
        try:
            ready = self.control.recv(1) == zygote.READY
        except OSError:
            ready = False
        if not ready:
            reason = self.last_words()
            self.close()
            raise Broken(f"zygote did not start: {reason}")

    def start(self, job: bytes, fds: list[int]) -> None:
        try:
            socket.send_fds(self.control, [job], fds)
        except OSError as error:
            raise Broken(f"zygote is gone: {error}") from None

    def status(self) -> Status:
        packet = self.control.recv(zygote.STATUS.size)
        if len(packet) < zygote.STATUS.size:
            raise Broken(f"zygote ended during a job {self.last_words()}".strip())
        status = Status(*zygote.STATUS.unpack(packet))
        if status.cause == zygote.NO_FORK:
            raise Broken("zygote could not fork")
        return status

    def last_words(self) -> str:
        """The end of what the zygote wrote to its standard error."""
        return self.read_log()[-2000:].decode(errors="replace").strip()

    def read_log(self) -> bytes:
        """What the zygote, or the valgrind it runs under, wrote to standard error since the last call."""
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

    def ending(self) -> str:
        """How the process ended, in words; "" if it runs."""
        try:
            code = self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            return ""
        number = -code if code < 0 else code - 128  # the jail hands on what killed its child as a shell does
        known = number in set(signal.Signals)
        return f"; process {self.process.pid} " + (
            f"was killed by {signal.Signals(number).name}" if known else f"exited with status {code}"
        )

    def close(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()
        os.close(self._log)


def pump(status_of: Zygote, channel: socket.socket, outgoing: bytes, room: int, wall: float) -> tuple[bytes, Status]:
    """Write `outgoing`, read until the child has ended; returns what it wrote and how it ended.

    A child that writes more than `room` bytes is stopped. Raises Broken if the zygote fails.
    """
    channel.setblocking(False)
    received = bytearray()
    status: Status | None = None
    stopped = False
    deadline = time.monotonic() + wall + GRACE_SECONDS
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
            raise Broken("zygote did not report in time")
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


class Slot(threading.Thread):
    """A thread with its own zygotes; takes one job after another from the pool's queue."""

    _numbers = itertools.count()  # over all pools of this process, so that no two slots share a uid

    def __init__(self, number: int, jobs: queue.SimpleQueue[Any], unsafe_local: bool) -> None:
        super().__init__(name=f"sandbox-{number}", daemon=True)
        self.first_uid = len(ROLES) * next(self._numbers)
        self.number, self.jobs, self.unsafe_local = number, jobs, unsafe_local
        self.zygotes: dict[str, Zygote] = {}

    def run(self) -> None:
        try:
            self.zygote("candidate")
        except (Broken, OSError, jail.SandboxUnavailable):
            pass  # the first job meets the same fault, retries, and reports it
        while (item := self.jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._retry(job))
            except BaseException as error:
                future.set_exception(error)
        self.discard()

    def _retry(self, job: Callable[[Slot], T]) -> T:
        reasons = []
        for _ in range(ATTEMPTS):
            try:
                return job(self)
            except (Broken, OSError) as error:
                ended = "".join(zygote.ending() for zygote in self.zygotes.values())
                log.warning("sandbox slot %d restarts: %s%s", self.number, error, ended)
                reasons.append(f"{error}{ended}")
                self.discard()
        raise InfraError(f"sandbox slot {self.number} failed {ATTEMPTS} times: {reasons[-1]}")

    def zygote(self, role: str) -> Zygote:
        if role not in self.zygotes:
            slot = self.first_uid + ROLES.index(role)
            self.zygotes[role] = Zygote(slot, self.unsafe_local, counting=role == "work")
        return self.zygotes[role]

    def discard(self) -> None:
        while self.zygotes:
            self.zygotes.popitem()[1].close()
