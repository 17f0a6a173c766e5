"""Attacks on the machine: programs that use up its resources, reach its processes, or touch the host."""

from __future__ import annotations

from dataclasses import dataclass

MARK = "posterior-attack"
"""Whatever an attack leaves behind carries this in its name or content."""


@dataclass(frozen=True)
class Attack:
    """name: short, unique. source: a program that defines solve(x). description: what it tries, in a few words."""

    name: str
    source: str
    description: str


HEADER = f"""
import os, sys
MARK = {MARK!r}
def attempt(what, *tries):
    # The first try that raises nothing is a breach.
    for number, action in enumerate(tries):
        try:
            result = action()
        except BaseException:
            continue
        if result is None or not isinstance(result, int) or result >= 0:
            return f"BREACH: {{what}} ({{number}}): {{str(result)[:80]}}"
    return None
def libc():
    import ctypes
    return ctypes.CDLL(None, use_errno=True)
"""


def attack(name: str, description: str, source: str, header: bool = False) -> Attack:
    return Attack(name, (HEADER if header else "") + source.strip("\n") + "\n", description)


def tries(name: str, description: str, *expressions: str, setup: str = "") -> Attack:
    """An attack that succeeds if any of the expressions evaluates without an error (and not to a negative number)."""
    actions = ", ".join(f"lambda: {expression}" for expression in expressions)
    source = f"{setup}\ndef solve(x):\n    return attempt({name!r}, {actions}) or x\n"
    return attack(name, description, source, header=True)


RESOURCES = [
    attack("memory_bomb_fast", "allocates 16 GB at once", "def solve(x):\n    return len(bytearray(1 << 34))"),
    attack(
        "memory_bomb_slow",
        "allocates a megabyte at a time",
        "def solve(x):\n    held = []\n    while True:\n        held.append(bytearray(1 << 20))",
    ),
    attack(
        "memory_map", "maps 16 GB anonymously", "import mmap\ndef solve(x):\n    return len(mmap.mmap(-1, 1 << 34))"
    ),
    attack("busy_loop", "computes for ever", "def solve(x):\n    while True:\n        pass"),
    attack("sleep", "sleeps for ever", "import time\ndef solve(x):\n    time.sleep(1000)\n    return x"),
    attack(
        "backtracking",
        "one regular expression that runs for ever inside C",
        "import re\ndef solve(x):\n    return re.match('(a+)+$', 'a' * 60 + 'b')",
    ),
    attack("giant_power", "one integer operation that runs for ever inside C", "def solve(x):\n    return 7 ** 10**9"),
    attack("import_loop", "never finishes loading", "while True:\n    pass\ndef solve(x):\n    return x"),
    attack(
        "stdout_flood",
        "prints without end",
        "import sys\ndef solve(x):\n    while True:\n        sys.stdout.write('x' * 65536)",
    ),
    attack(
        "descriptor_exhaustion",
        "opens files and pipes until none is left",
        """
import os
held = []
def solve(x):
    for action in (lambda: os.open("/usr", os.O_RDONLY), os.pipe, lambda: os.dup(0)):
        for _ in range(10_000):
            try:
                held.append(action())
            except OSError:
                break
    return "BREACH: 10000 descriptors" if len(held) >= 10_000 else x
""",
    ),
    attack(
        "recursion",
        "recurses without end, in Python and in C",
        """
import sys
sys.setrecursionlimit(2**31 - 1)
class Deep:
    def __getattr__(self, name):
        return getattr(self, name + "_")
    def __repr__(self):
        return repr(self)
def solve(x):
    return repr(Deep())
""",
    ),
    attack("segfault", "reads address 0", "import ctypes\ndef solve(x):\n    return ctypes.string_at(0)"),
    attack(
        "ignored_signals",
        "ignores every signal, then computes for ever",
        """
import signal
def solve(x):
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass
""",
    ),
    tries(
        "raised_limits",
        "raises its own limits, sets timers",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "signal.setitimer(signal.ITIMER_REAL, 0.001)",
        setup="import resource, signal",
    ),
]

PROCESSES = [
    attack(
        "fork_bomb",
        "forks without end",
        """
import os
def solve(x):
    forked = 0
    for _ in range(1000):
        try:
            if os.fork() == 0:
                continue
            forked += 1
        except OSError:
            break
    return "BREACH: forked" if forked else x
""",
    ),
    attack(
        "thread_bomb",
        "starts a thousand threads",
        """
import threading, time
def solve(x):
    started = 0
    for _ in range(1000):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            started += 1
        except RuntimeError:
            break
    return "BREACH: threads" if started else x
""",
    ),
    tries(
        "daemon",
        "leaves a process behind that outlives the grading",
        "os.fork() or (os.setsid(), os.fork(), __import__('time').sleep(60))",
        "os.posix_spawn('/usr/bin/sleep', ['sleep', '60'], {})",
        "__import__('multiprocessing').Process(target=print).start()",
    ),
    tries(
        "exec",
        "replaces itself with, or starts, another program",
        "subprocess.run(['/usr/bin/id'])",
        "os.system('true') or 0 if os.system('true') == 0 else -1",
        "os.execv('/usr/bin/env', ['env'])",
        "os.execv(sys.executable, ['python'])",
        setup="import subprocess",
    ),
    tries(
        "kill",
        "kills its parent, its process group, everything",
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "os.killpg(0, 9)",
        "os.kill(1, 9)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        "libc().tgkill(os.getppid(), os.getppid(), 9)",
        setup="import signal",
    ),
    tries(
        "ptrace",
        "attaches to the zygote, reads its memory",
        "libc().ptrace(16, os.getppid(), 0, 0)",
        "libc().ptrace(0, 0, 0, 0)",
        "libc().process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
        "open('/proc/self/mem', 'rb').read(1)",
    ),
    tries(
        "unshare",
        "makes namespaces of its own to gain privileges",
        "libc().unshare(0x10000000)",
        "libc().setns(0, 0)",
        "libc().mount(b'none', b'/usr', b'tmpfs', 0, 0)",
        "libc().umount2(b'/usr', 2)",
        "os.chroot('/usr')",
    ),
    tries(
        "setuid",
        "changes its user and its priority",
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.nice(-10)",
        "os.sched_setaffinity(0, {0})",
    ),
    tries(
        "rare_syscalls",
        "kernel interfaces with a history of escapes",
        *[
            f"libc().syscall({number}, 0, 0, 0, 0, 0, 0)"
            for number in (56, 57, 58, 101, 250, 272, 298, 319, 321, 323, 425, 426, 434, 435, 437)
        ],
    ),
]

HOST = [
    tries(
        "network",
        "opens sockets, reaches out",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.create_connection(('127.0.0.1', 22), timeout=1)",
        setup="import socket",
    ),
    tries(
        "host_files",
        "reads files of the host",
        *[
            f"open({path!r}).read()"
            for path in (
                "/etc/passwd",
                "/etc/shadow",
                "/etc/hostname",
                "/etc/hosts",
                "/var/log/dpkg.log",
            )
        ],
        "os.listdir('/home')",
        "os.listdir('/var')",
        "os.listdir('/etc')",
        "os.listdir('/tmp')",
    ),
    tries(
        "proc",
        "looks at other processes",
        "os.listdir('/proc')",
        "open('/proc/1/environ').read()",
        "os.readlink('/proc/self/exe')",
        "os.listdir('/sys')",
        "os.listdir('/dev')",
    ),
    attack(
        "environment",
        "looks for secrets in the environment",
        """
import os
def solve(x):
    extra = set(os.environ) - {"LC_ALL", "LD_BIND_NOW", "LD_LIBRARY_PATH", "PATH", "PWD", "PYTHONHASHSEED"}
    return f"BREACH: {sorted(extra)}" if extra else x
""",
    ),
    tries(
        "disk_fill",
        "writes large files wherever it can",
        *[
            f"open({folder!r} + MARK, 'wb').write(bytes(1 << 26))"
            for folder in ("/", "/tmp/", "/dev/shm/", "/var/tmp/", "/run/", "/harness/", "./", "/usr/lib/")
        ],
        "libc().memfd_create(MARK.encode(), 0)",
        "os.truncate('/harness/zygote.py', 0)",
    ),
    tries(
        "links",
        "makes symbolic and hard links to files of the host",
        "os.symlink('/etc/passwd', '/tmp/' + MARK)",
        "os.symlink('/etc/passwd', MARK)",
        "os.link('/harness/zygote.py', '/harness/' + MARK)",
        "os.rename('/harness/protocol.py', '/harness/zygote.py')",
    ),
    tries(
        "inode_exhaustion",
        "makes as many folders, fifos and files as it can",
        "[os.mkdir(f'/tmp/{MARK}{n}') for n in range(100_000)]",
        "[os.mkfifo(f'/{MARK}{n}') for n in range(100_000)]",
        "[open(f'/harness/{MARK}{n}', 'w') for n in range(100_000)]",
        "os.mknod('/' + MARK)",
    ),
    tries(
        "terminal",
        "types into the user's terminal",
        "fcntl.ioctl(0, termios.TIOCSTI, b'x')",
        "open('/dev/tty', 'w')",
        setup="import fcntl, termios",
    ),
]
