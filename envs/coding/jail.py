"""What a sandbox may touch: the bubblewrap command line and the seccomp filter.

Three layers, each enough against most attacks: namespaces and a read-only root without /proc, /dev or any host file but
the interpreter (bubblewrap); a uid of its own for every slot when the host process is root, an own user namespace
otherwise; and, in the forked child before it reads the candidate's source, a seccomp allow-list under which a process
can compute, read the interpreter's files and use descriptors it holds, and nothing else: no fork, thread, exec, kill,
ptrace, socket, mount, namespace, timer, or open for writing.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

INSTALL = "apt-get install -y bubblewrap libseccomp2"
HARNESS = "/harness"
"""Where zygote.py and protocol.py lie inside the sandbox."""

SCRATCH = "/scratch"
"""A writable folder in memory, for commands that ask for one."""


class SandboxUnavailable(RuntimeError):
    """Untrusted code cannot be isolated on this machine; the message says what to install."""


def unavailable(reason: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"The sandbox for untrusted code cannot start ({reason}): install it with `{INSTALL}` and allow user "
        "namespaces, or run without isolation by passing --unsafe-local."
    )


_ALLOWED = """
    read readv pread64 write writev lseek close close_range fstat newfstatat stat lstat statx access faccessat faccessat2
    getcwd readlink readlinkat getdents64 dup dup2 dup3 fcntl pipe2 poll ppoll select pselect6 epoll_create1 epoll_ctl
    epoll_wait epoll_pwait eventfd2 recvfrom sendto shutdown
    mmap mprotect munmap mremap madvise brk membarrier
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack futex set_robust_list rseq set_tid_address arch_prctl
    restart_syscall exit exit_group
    getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid getpriority
    getrandom clock_gettime clock_getres gettimeofday time clock_nanosleep nanosleep times getrusage getrlimit sysinfo
    uname sched_yield sched_getaffinity getcpu umask
"""

_O_TMPFILE_BIT = 0o20000000
_CLONE_THREAD = 0x10000
_TCGETS, _FIONREAD, _FIOCLEX, _FIONBIO = 0x5401, 0x541B, 0x5451, 0x5421


@lru_cache(maxsize=4)
def seccomp_filter(writable_opens: bool = False, more: tuple[str, ...] = ()) -> bytes:
    """The allow-list as a BPF program (array of 8-byte `sock_filter`); whatever is not on it fails with EPERM.

    writable_opens: let open() ask for writing, which a read-only root refuses anyway; valgrind's tools need it to open
    their output file. more: further calls to allow; "clone" stands for threads, not
    processes. Raises SandboxUnavailable where libseccomp or pyseccomp is missing.
    """
    try:
        import pyseccomp as sc
    except (ImportError, RuntimeError) as error:
        raise unavailable(f"libseccomp does not load: {error}") from None

    rules = sc.SyscallFilter(defaction=sc.ERRNO(errno.EPERM))

    def allow(name: str, *conditions: object) -> None:
        try:
            rules.add_rule(sc.ALLOW, name, *conditions)
        except OSError:
            # A call this architecture or libseccomp does not know needs no rule: it stays denied.
            pass

    for name in (*_ALLOWED.split(), *more):
        if name != "clone":
            allow(name)
    if "clone" in more:
        allow("clone", sc.Arg(0, sc.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
        rules.add_rule(sc.ERRNO(errno.ENOSYS), "clone3")  # its flags lie in memory; the C library then takes clone
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _O_TMPFILE_BIT
    for name, argument in (("open", 1), ("openat", 2)):
        if writable_opens:
            allow(name)
        else:
            allow(name, sc.Arg(argument, sc.MASKED_EQ, writing, 0))
    for request in (_TCGETS, _FIONREAD, _FIOCLEX, _FIONBIO):
        allow("ioctl", sc.Arg(1, sc.EQ, request))
    # Reading limits is harmless; setting them is not. asyncio needs a socket pair for itself.
    allow("prlimit64", sc.Arg(2, sc.EQ, 0))
    allow("socketpair", sc.Arg(0, sc.EQ, 1))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def filter_file(writable_opens: bool = False, more: tuple[str, ...] = ()) -> IO[bytes]:
    """The filter in an unnamed file, to be inherited by a zygote."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    file.write(seccomp_filter(writable_opens, more))
    file.seek(0)
    return file


_UIDS_PER_PROCESS = 600
_own_uids = True


def without_own_uids() -> None:
    """From now on use a user namespace even as root: in a container, root may lack the rights to do without."""
    global _own_uids
    _own_uids = False


def slot_uid(slot: int) -> int:
    """A host uid that no other sandbox of this machine uses: from the host process's id and the slot's number.

    Only root can give one away, and only from the range its user namespace maps; returns -1 where there is none.
    """
    if os.geteuid() != 0 or not _own_uids:
        return -1
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, length = max(ranges, key=lambda r: r[2])
    if length < 1 << 16:
        return -1
    # Above the ids that people, services and subuid ranges use, where the map reaches that far.
    low = 0x60000000 if first + length > 0x70000000 else first + length // 2
    room = first + length - 1 - low
    return low + (os.getpid() * _UIDS_PER_PROCESS + slot % _UIDS_PER_PROCESS) % room


def interpreter() -> str:
    """The Python that runs candidates: the one under this virtual environment, without its packages."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


PYTHON_FLAGS = ("-S", "-s", "-P", "-B")
"""No site-packages, no user site, no script folder on the path, no bytecode files. `-I` would also drop PYTHONHASHSEED,
which must be fixed for work counts to repeat."""


def jail_command(
    command: list[str],
    slot: int,
    own_uid: bool,
    tracer: bool = False,
    shown: Sequence[tuple[str, str]] = (),
    scratch_mb: int = 0,
) -> list[str]:
    """The bubblewrap command line that runs `command` inside the sandbox.

    own_uid: the command drops to `slot_uid(slot)` itself (host process is root); otherwise bubblewrap makes a user
    namespace. tracer: the command runs under valgrind, which wants /proc and /tmp when it starts, and /dev/null always.
    shown: further (host path, path inside) to see, read only. scratch_mb: room in SCRATCH, which is writable; 0: none.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise unavailable("bubblewrap is not installed")
    argv = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if own_uid:
        argv += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        argv += ["--unshare-user", "--uid", str(10_000 + slot), "--gid", str(10_000 + slot)]
    here = Path(__file__).parent
    binds = [("/usr", "/usr"), *[(str(here / name), f"{HARNESS}/{name}") for name in ("zygote.py", "protocol.py")]]
    binds += shown
    if not sys.base_prefix.startswith("/usr"):
        binds.append((sys.base_prefix, sys.base_prefix))
    for name in ("bin", "lib", "lib64"):
        path = Path("/") / name
        if path.is_symlink():
            argv += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            binds.append((str(path), str(path)))
    # Left to itself, bubblewrap makes the folders above a mount point for its own user only.
    above = {str(folder) for _, target in binds for folder in Path(target).parents if folder != Path("/")}
    for folder in sorted(above | ({"/dev"} if tracer else set())):
        argv += ["--perms", "0755", "--dir", folder]
    for source, target in binds:
        argv += ["--ro-bind", source, target]
    if tracer:
        # The zygote unmounts /proc and /tmp before its first job, and drops the capability that lets it.
        argv += ["--cap-add", "CAP_SYS_ADMIN", "--proc", "/proc", "--tmpfs", "/tmp"]
        argv += ["--dev-bind", "/dev/null", "/dev/null"]
    if scratch_mb:
        argv += ["--perms", "0777", "--size", str(scratch_mb << 20), "--tmpfs", SCRATCH]
    argv += ["--remount-ro", "/", "--chdir", "/", "--clearenv"]
    for name, value in environment().items():
        argv += ["--setenv", name, value]
    return [*argv, "--", *command]


def environment() -> dict[str, str]:
    """The whole environment of a sandboxed process. LD_BIND_NOW: symbols are resolved once, not in every child."""
    return {
        "LC_ALL": "C.UTF-8",
        "LD_BIND_NOW": "1",
        "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",  # the sandbox has no /etc/ld.so.cache
        "PATH": "/usr/bin",
        "PYTHONHASHSEED": "0",
    }
