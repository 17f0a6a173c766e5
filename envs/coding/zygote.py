"""The program inside the sandbox: a warm Python that forks one child per job, and the child that runs the candidate.

The zygote itself never reads a byte that a candidate wrote or will read: it receives a fixed-size job header with
descriptors, forks, watches the child's clocks, and reports how the child ended. The child talks to the trusted process
over the descriptor of its own job, so nothing can pass from one candidate to the next.

Runs as `python zygote.py CONTROL_FD FILTER_FD UID COUNTER`; FILTER_FD -1 means no seccomp filter (unsafe-local mode),
UID -1 means keep the uid; COUNTER is "-", "cachegrind", or the type and number of a perf event, "0:1". It imports the
standard library and protocol.py only.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable
from typing import Any, ClassVar

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import protocol

del sys.path[0]

JOB = struct.Struct("=cBddQQ")
"""kind (b"C" candidate, b"T" tests), how work is counted, wall s, CPU s, memory bytes, bytes a result may have."""
STATUS = struct.Struct("=cidq")
"""cause, wait status, CPU seconds, work (-1: not counted here)."""
EXITED, TIMED_OUT, STOPPED, NO_FORK = b"X", b"T", b"S", b"N"
COUNT_NOTHING, COUNT_PERF, COUNT_FORK = 0, 1, 2
READY = b"R"
"""The child's first byte: the sandbox is up; whatever happens from here on is the candidate's doing. A child whose work
is counted writes it again when counting has begun, between which two only its source is compiled."""

_PRELOAD = """
    array bisect cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions functools
    heapq itertools json math numbers operator random re string time typing
"""


# ---------------------------------------------------------------------------------------------- the candidate's child


class _Wire:
    """Frames over a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.buffer = b""

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end of the stream."""
        while len(self.buffer) < size:
            # Read what is there, or all that is missing: parts of 64 KiB would be joined in quadratic time.
            try:
                more = os.read(self.fd, max(1 << 16, size - len(self.buffer)))
            except ConnectionResetError:  # the peer ended with something unread
                break
            if not more:
                break
            self.buffer += more
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def read(self) -> bytes | None:
        """The next frame's body; None at the end of the stream."""
        header = self.take(protocol.HEADER.size)
        if len(header) < protocol.HEADER.size:
            return None
        (size,) = protocol.HEADER.unpack(header)
        body = self.take(size)
        return body if len(body) == size else None

    def frames(self) -> list[bytes]:
        return list(iter(self.read, None))


def describe(error: BaseException) -> str:
    """ "ValueError: the message", or "memory" for exhausted memory."""
    if isinstance(error, MemoryError):
        return "memory"
    try:
        message = str(error)
    except BaseException:
        message = ""
    return f"{type(error).__name__}: {message[:400]}".encode("utf-8", "replace").decode()


def compiled(source_frame: bytes) -> types.CodeType:
    return compile(protocol.loads(source_frame), "<candidate>", "exec", dont_inherit=True)


def load(code: types.CodeType, name: str = "candidate") -> types.ModuleType:
    """Execute a module of its own; classes and dataclasses in it need it to be in sys.modules."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module


def answer(module: types.ModuleType, request: bytes, limit: int) -> bytes:
    """Perform one call and encode its outcome: ["v", value] or ["e", error]."""
    try:
        name, args, kwargs = protocol.loads(request)
        function = getattr(module, name, None)
        if function is None:
            raise NameError(f"name '{name}' is not defined")
        value = function(*args, **kwargs)
        try:
            return protocol.dumps(["v", value], limit)
        except protocol.TooLarge:
            return protocol.dumps(["e", "result too large"])
        except protocol.Unsupported as error:
            return protocol.dumps(["e", str(error)[:400]])
    except BaseException as error:
        return protocol.dumps(["e", describe(error)])


def serve_candidate(wire: _Wire, limit: int, begin: Callable[[], None] | None) -> None:
    """Load the source in the first frame, then answer every further frame, which is a call.

    begin: called where counting begins. All input is taken in and the source compiled before that, so that only the
    candidate's own work counts.
    """
    source_frame, requests = wire.read() or b"", iter(wire.read, None)
    if begin is not None:
        requests = iter(list(requests))
    try:
        code = compiled(source_frame)
    except BaseException as error:
        refuse(wire, error)
        return
    if begin is not None:
        begin()
    try:
        module = load(code)
    except BaseException as error:
        refuse(wire, error)
        return
    for request in requests:
        wire.write(protocol.frame(answer(module, request, limit)))


def refuse(wire: _Wire, error: BaseException) -> None:
    """Report that the program does not load."""
    reason = describe(error)
    wire.write(protocol.frame(protocol.dumps(["i", reason if reason == "memory" else f"import failed: {reason}"])))


# ------------------------------------------------------------------------------------------------------ the tests' child


GONE = "the candidate's process ended"


class CandidateGone(BaseException):
    """The candidate's sandbox ended in the middle of the tests."""


class CandidateError(Exception):
    """The candidate raised an exception that is no builtin."""


def stub(name: str, link: _Wire, limit: int) -> Callable[..., Any]:
    """A function that performs the call in the candidate's sandbox."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            link.write(protocol.frame(protocol.dumps([name, args, kwargs], limit)))
        except BrokenPipeError:
            pass  # the candidate has ended; what it wrote before can still be read
        header = link.take(protocol.HEADER.size)
        if len(header) < protocol.HEADER.size:
            raise CandidateGone(GONE)
        (size,) = protocol.HEADER.unpack(header)
        if size > limit + 64:
            raise CandidateGone("result too large")
        try:
            kind, value = protocol.loads(link.take(size))
        except (protocol.Malformed, ValueError, TypeError) as error:
            raise CandidateGone(str(error)) from None
        if kind == "v":
            return value
        if kind == "i" or type(value) is not str:
            raise CandidateGone(str(value))
        type_name, _, message = value.partition(": ")
        builtin = getattr(__builtins__, type_name, None)
        if isinstance(builtin, type) and issubclass(builtin, Exception):
            raise builtin(message)
        raise CandidateError(value)

    call.__name__ = call.__qualname__ = name
    return call


def serve_tests(wire: _Wire, link: _Wire, limit: int) -> None:
    """Run test code whose names of the candidate are stubs; report ["v", None] if it runs to its end."""
    source, names = protocol.loads(wire.read() or b"[]")
    outcome: list[Any] = ["v", None]
    try:
        if link.take(1) != READY:
            raise CandidateGone("not ready")
        module = types.ModuleType("tests")
        sys.modules["tests"] = module
        for name in names:
            setattr(module, name, stub(name, link, limit))
        exec(compile(source, "<tests>", "exec", dont_inherit=True), module.__dict__)
    except CandidateGone as error:
        outcome = ["g", str(error)]
    except BaseException as error:
        outcome = ["e", describe(error)]
    wire.write(protocol.frame(protocol.dumps(outcome)))


# ------------------------------------------------------------------------------------------------------------ the child


def child(fds: list[int], job: tuple[Any, ...], enter: Callable[[], None], gate: int) -> None:
    """Everything the forked process does; never returns."""
    status = 1
    try:
        kind, counting, _, cpu, memory, limit = job
        os.setsid()
        os.dup2(0, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, int(cpu) + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        wire = _Wire(fds[0])
        if counting != COUNT_FORK:
            enter()
        wire.write(READY)
        if kind == b"T":
            serve_tests(wire, _Wire(fds[1]), limit)
        elif counting == COUNT_NOTHING:
            serve_candidate(wire, limit, None)
        else:

            def begin() -> None:
                if counting == COUNT_PERF:
                    os.write(gate, b"?")
                    os.read(gate, 1)
                    os.close(gate)
                elif os.fork() == 0:
                    # This twin ends where the candidate begins: its instruction count is the one to subtract.
                    os._exit(0)
                else:
                    os.wait()
                    enter()
                wire.write(READY)

            serve_candidate(wire, limit, begin)
        status = 0
    finally:
        os._exit(status)


# ----------------------------------------------------------------------------------------------------------- the zygote


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        import ctypes

        raise OSError(ctypes.get_errno(), what)
    return result


def filter_installer(filter_fd: int) -> Callable[[], None]:
    """A function that puts the calling process under the seccomp filter read from `filter_fd`, for good."""
    if filter_fd < 0:
        return lambda: None
    import ctypes

    program = os.read(filter_fd, 1 << 20)
    os.close(filter_fd)
    libc = _libc()
    code = ctypes.create_string_buffer(program, len(program))

    class FilterProgram(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    handle = FilterProgram(len(program) // 8, ctypes.addressof(code))
    set_seccomp, filter_mode, set_no_new_privs = 22, 2, 38
    _checked(libc.prctl(set_no_new_privs, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")

    def enter(keep: object = code) -> None:
        _checked(libc.prctl(set_seccomp, filter_mode, ctypes.byref(handle), 0, 0), "prctl(PR_SET_SECCOMP)")

    return enter


def drop_mounts() -> None:
    """Unmount the /proc and /tmp that valgrind needed to start, then give up every capability."""
    import ctypes

    libc = _libc()
    detach, version_3 = 2, 0x20080522
    for path in (b"/proc", b"/tmp"):
        _checked(libc.umount2(path, detach), "umount")
    if os.geteuid() != 0:
        header = (ctypes.c_uint32 * 2)(version_3, 0)
        _checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


class PerfCounter:
    """Counts a perf event of another process in user mode, and of its children; starts disabled (perf_event_open(2))."""

    _SYSCALL: ClassVar[dict[str, int]] = {"x86_64": 298, "aarch64": 241}
    _ENABLE = 0x2400
    _ATTRIBUTES = struct.Struct("=IIQQQQQ16x")  # type, size, config, period, sample type, read format, flags
    _DISABLED_INHERIT_USER_ONLY = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6

    def __init__(self, pid: int, kind: int, event: int) -> None:
        import ctypes

        size = self._ATTRIBUTES.size
        attributes = self._ATTRIBUTES.pack(kind, size, event, 0, 0, 0, self._DISABLED_INHERIT_USER_ONLY)
        buffer = ctypes.create_string_buffer(attributes, size)
        number = self._SYSCALL[os.uname().machine]
        self.fd = _checked(_libc().syscall(number, buffer, pid, -1, -1, 0), "perf_event_open")

    def enable(self) -> None:
        fcntl.ioctl(self.fd, self._ENABLE, 0)

    def read(self) -> int:
        (count,) = struct.unpack("=q", os.read(self.fd, 8))
        return int(count)

    def close(self) -> None:
        os.close(self.fd)


def watch(
    pid: int, control: socket.socket, wall: float, cpu: float, gate: socket.socket | None, counter: PerfCounter | None
) -> bytes:
    """Wait for the child to end or a limit to pass; returns the cause. The child is dead, not yet reaped, on return.

    gate: the child says here that its candidate is about to begin, and waits until `counter` counts.
    """
    poller = select.poll()
    try:
        pidfd, longest = os.pidfd_open(pid), wall
        poller.register(pidfd, select.POLLIN)
    except OSError:
        pidfd, longest = -1, 0.005  # valgrind does not know the call: look at the child every 5 ms instead
    poller.register(control, select.POLLIN)
    if gate is not None:
        poller.register(gate, select.POLLIN)
    clock = (~pid << 3) | 2  # the kernel's clock id for another process's CPU time
    deadline = time.monotonic() + wall
    cause = EXITED
    wait = min(wall, cpu)
    while True:
        ready = {fd for fd, _ in poller.poll(int(min(wait, longest) * 1000) + 1)}
        if pidfd in ready or (pidfd < 0 and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            break
        if gate is not None and gate.fileno() in ready:
            poller.unregister(gate)
            if counter is not None and gate.recv(1):
                counter.enable()
                gate.send(b"!")
            continue
        if control.fileno() in ready:
            # A packet without descriptors means stop; a closed channel means the trusted process is gone.
            if not control.recv(64):
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            cause = STOPPED
        else:
            # One thread cannot use more CPU than time passes, so this sleep is never shorter than it must be.
            used = time.clock_gettime(clock)
            left = deadline - time.monotonic()
            if used < cpu and left > 0:
                wait = min(left, cpu - used)
                continue
            cause = TIMED_OUT
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        break
    if pidfd >= 0:
        os.close(pidfd)
    return cause


def serve(control: socket.socket, enter: Callable[[], None], event: tuple[int, ...]) -> None:
    """Fork a child for every job that arrives, one at a time, until the trusted process closes the channel.

    event: type and number of the perf event that measured jobs count; empty where something else counts.
    """
    while True:
        packet, fds, _, _ = socket.recv_fds(control, 64, 2)
        if not packet:
            return
        if not fds:
            continue  # a stop that arrived after its child had ended
        job = JOB.unpack(packet)
        gate, child_gate = socket.socketpair() if job[1] == COUNT_PERF else (None, None)
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            control.close()
            if gate:
                gate.close()
            child(fds, job, enter, child_gate.detach() if child_gate else -1)
        for fd in fds:
            os.close(fd)
        if child_gate:
            child_gate.close()
        if pid < 0:
            control.send(STATUS.pack(NO_FORK, 0, 0.0, -1))
            continue
        counter = PerfCounter(pid, *event) if gate else None
        cause = watch(pid, control, job[2], job[3], gate, counter)
        _, status, usage = os.wait4(pid, 0)
        work = -1
        if counter and gate:
            work = counter.read()
            counter.close()
            gate.close()
        control.send(STATUS.pack(cause, status, usage.ru_utime + usage.ru_stime, work))


def preload() -> None:
    """Import what candidates usually need, without the hooks that some modules run in every forked child.

    (threading's would walk its tables, random's would reseed: together they touch as much memory as a short candidate.)
    """
    register, os.register_at_fork = os.register_at_fork, lambda **_: None
    for name in _PRELOAD.split():
        importlib.import_module(name)
    os.register_at_fork = register


def rehearse() -> None:
    """Run the child's code on a dummy candidate, so that it is specialised once here and not in every child."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = [protocol.dumps("def solve(x):\n    return x\n"), *[protocol.dumps(["solve", [1], {}])] * 3]
        for _ in range(16):
            ours.sendall(b"".join(map(protocol.frame, frames)))
            wire = _Wire(theirs.fileno())
            module = load(compiled(wire.read() or b""))
            for _ in range(3):
                wire.write(protocol.frame(answer(module, wire.read() or b"", 1 << 20)))
            ours.recv(1 << 16)
    sys.modules.pop("candidate")


def main() -> None:
    control_fd, filter_fd, uid = map(int, sys.argv[1:4])
    counter = sys.argv[4]
    # Nothing else that was inherited may reach a candidate; valgrind's log would let it forge its own count.
    for fd in set(range(3, 256)) - {control_fd, filter_fd}:
        try:
            os.close(fd)
        except OSError:
            pass
    preload()
    enter = filter_installer(filter_fd)
    if counter == "cachegrind" and filter_fd >= 0:
        drop_mounts()
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # Changing the uid made this process untouchable even for itself; opening a counter on a child needs access.
        set_dumpable = 4
        _checked(_libc().prctl(set_dumpable, int(":" in counter), 0, 0, 0), "prctl(PR_SET_DUMPABLE)")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if counter != "cachegrind":  # valgrind keeps descriptors for itself and lets nobody lower the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    rehearse()
    control = socket.socket(fileno=control_fd)
    control.send(READY)
    sys.argv[1:] = []
    gc.collect()
    gc.freeze()
    serve(control, enter, tuple(map(int, counter.split(":"))) if ":" in counter else ())


if __name__ == "__main__":
    main()
