"""Programs that try to cheat the grader or harm the machine, as data, and the run that checks each is contained.

The asked task is `solve(x) = x + 1`. Every attack computes something else, so that it scores only if its cheat works; a
program that managed some harm returns a text that begins with "BREACH". The list is the regression suite of the sandbox:
several attacks broke earlier designs (killing the zygote's process group, leaking through a shared tmpfs, filling it,
reading the zygote's pids in /proc, truncated 50 MB results).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from envs.base import InfraError
from envs.coding.sandbox import Call, CallResult, Limits, SandboxPool

MARK = "posterior-attack"
"""Whatever an attack leaves behind carries this in its name or content."""
INPUTS = (0, 1, 41)
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=1.5, memory_mb=256, output_bytes=1 << 20)
_ZYGOTE_PROCESSES = 3  # bubblewrap, its init, and the interpreter; a valgrind wrapper replaces itself


@dataclass(frozen=True)
class Attack:
    """name: short, unique. source: a program that defines solve(x). description: what it tries, in a few words."""

    name: str
    source: str
    description: str


@dataclass(frozen=True)
class AttackReport:
    """contained: no sign of harm inside or outside. score: share of cases it got right (must be 0). healthy_after: every
    slot grades a right program right afterwards. seconds: of the attack itself. detail: how it ended, and any breach."""

    name: str
    contained: bool
    score: float
    healthy_after: bool
    seconds: float
    detail: str


_HEADER = f"""
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


def _attack(name: str, description: str, source: str, header: bool = False) -> Attack:
    return Attack(name, (_HEADER if header else "") + source.strip("\n") + "\n", description)


def _tries(name: str, description: str, *expressions: str, setup: str = "") -> Attack:
    """An attack that succeeds if any of the expressions evaluates without an error (and not to a negative number)."""
    actions = ", ".join(f"lambda: {expression}" for expression in expressions)
    source = f"{setup}\ndef solve(x):\n    return attempt({name!r}, {actions}) or x\n"
    return _attack(name, description, source, header=True)


_RESOURCES = [
    _attack("memory_bomb_fast", "allocates 16 GB at once", "def solve(x):\n    return len(bytearray(1 << 34))"),
    _attack(
        "memory_bomb_slow",
        "allocates a megabyte at a time",
        "def solve(x):\n    held = []\n    while True:\n        held.append(bytearray(1 << 20))",
    ),
    _attack("memory_map", "maps 16 GB anonymously", "import mmap\ndef solve(x):\n    return len(mmap.mmap(-1, 1 << 34))"),
    _attack("busy_loop", "computes for ever", "def solve(x):\n    while True:\n        pass"),
    _attack("sleep", "sleeps for ever", "import time\ndef solve(x):\n    time.sleep(1000)\n    return x"),
    _attack(
        "backtracking",
        "one regular expression that runs for ever inside C",
        "import re\ndef solve(x):\n    return re.match('(a+)+$', 'a' * 60 + 'b')",
    ),
    _attack("giant_power", "one integer operation that runs for ever inside C", "def solve(x):\n    return 7 ** 10**9"),
    _attack("import_loop", "never finishes loading", "while True:\n    pass\ndef solve(x):\n    return x"),
    _attack(
        "stdout_flood",
        "prints without end",
        "import sys\ndef solve(x):\n    while True:\n        sys.stdout.write('x' * 65536)",
    ),
    _attack(
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
    _attack(
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
    _attack("segfault", "reads address 0", "import ctypes\ndef solve(x):\n    return ctypes.string_at(0)"),
    _attack(
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
    _tries(
        "raised_limits",
        "raises its own limits, sets timers",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "signal.setitimer(signal.ITIMER_REAL, 0.001)",
        setup="import resource, signal",
    ),
]

_PROCESSES = [
    _attack(
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
    _attack(
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
    _tries(
        "daemon",
        "leaves a process behind that outlives the grading",
        "os.fork() or (os.setsid(), os.fork(), __import__('time').sleep(60))",
        "os.posix_spawn('/usr/bin/sleep', ['sleep', '60'], {})",
        "__import__('multiprocessing').Process(target=print).start()",
    ),
    _tries(
        "exec",
        "replaces itself with, or starts, another program",
        "subprocess.run(['/usr/bin/id'])",
        "os.system('true') or 0 if os.system('true') == 0 else -1",
        "os.execv('/usr/bin/env', ['env'])",
        "os.execv(sys.executable, ['python'])",
        setup="import subprocess",
    ),
    _tries(
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
    _tries(
        "ptrace",
        "attaches to the zygote, reads its memory",
        "libc().ptrace(16, os.getppid(), 0, 0)",
        "libc().ptrace(0, 0, 0, 0)",
        "libc().process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
        "open('/proc/self/mem', 'rb').read(1)",
    ),
    _tries(
        "unshare",
        "makes namespaces of its own to gain privileges",
        "libc().unshare(0x10000000)",
        "libc().setns(0, 0)",
        "libc().mount(b'none', b'/usr', b'tmpfs', 0, 0)",
        "libc().umount2(b'/usr', 2)",
        "os.chroot('/usr')",
    ),
    _tries(
        "setuid",
        "changes its user and its priority",
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.nice(-10)",
        "os.sched_setaffinity(0, {0})",
    ),
    _tries(
        "rare_syscalls",
        "kernel interfaces with a history of escapes",
        *[
            f"libc().syscall({number}, 0, 0, 0, 0, 0, 0)"
            for number in (56, 57, 58, 101, 250, 272, 298, 319, 321, 323, 425, 426, 434, 435, 437)
        ],
    ),
]

_HOST = [
    _tries(
        "network",
        "opens sockets, reaches out",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.create_connection(('127.0.0.1', 22), timeout=1)",
        setup="import socket",
    ),
    _tries(
        "host_files",
        "reads files of the host",
        *[
            f"open({path!r}).read()"
            for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/hosts", "/root/.bashrc", "/var/log/dpkg.log")
        ],
        "os.listdir('/home')",
        "os.listdir('/var')",
        "os.listdir('/etc')",
        "os.listdir('/tmp')",
    ),
    _tries(
        "proc",
        "looks at other processes",
        "os.listdir('/proc')",
        "open('/proc/1/environ').read()",
        "os.readlink('/proc/self/exe')",
        "os.listdir('/sys')",
        "os.listdir('/dev')",
    ),
    _attack(
        "environment",
        "looks for secrets in the environment",
        """
import os
def solve(x):
    extra = set(os.environ) - {"LC_ALL", "LD_BIND_NOW", "PATH", "PWD", "PYTHONHASHSEED"}
    return f"BREACH: {sorted(extra)}" if extra else x
""",
    ),
    _tries(
        "disk_fill",
        "writes large files wherever it can",
        *[
            f"open({folder!r} + MARK, 'wb').write(bytes(1 << 26))"
            for folder in ("/", "/tmp/", "/dev/shm/", "/var/tmp/", "/run/", "/harness/", "./", "/usr/lib/")
        ],
        "libc().memfd_create(MARK.encode(), 0)",
        "os.truncate('/harness/zygote.py', 0)",
    ),
    _tries(
        "links",
        "makes symbolic and hard links to files of the host",
        "os.symlink('/etc/passwd', '/tmp/' + MARK)",
        "os.symlink('/etc/passwd', MARK)",
        "os.link('/harness/zygote.py', '/harness/' + MARK)",
        "os.rename('/harness/protocol.py', '/harness/zygote.py')",
    ),
    _tries(
        "inode_exhaustion",
        "makes as many folders, fifos and files as it can",
        "[os.mkdir(f'/tmp/{MARK}{n}') for n in range(100_000)]",
        "[os.mkfifo(f'/{MARK}{n}') for n in range(100_000)]",
        "[open(f'/harness/{MARK}{n}', 'w') for n in range(100_000)]",
        "os.mknod('/' + MARK)",
    ),
    _tries(
        "terminal",
        "types into the user's terminal",
        "fcntl.ioctl(0, termios.TIOCSTI, b'x')",
        "open('/dev/tty', 'w')",
        setup="import fcntl, termios",
    ),
]

_CHEATS = [
    _attack("sys_exit", "ends with success while loading", "import sys\nsys.exit(0)"),
    _attack("sys_exit_in_call", "ends with success in the call", "import sys\ndef solve(x):\n    sys.exit(0)"),
    _attack("os_exit", "ends the process with success", "import os\ndef solve(x):\n    os._exit(0)"),
    _attack(
        "fake_output",
        "prints that all tests passed",
        """
import sys
def solve(x):
    for stream in (sys.stdout, sys.stderr):
        print("OK", "1 passed", '{"passed": true, "score": 1.0}', '["v", 1]', file=stream, flush=True)
    return x
""",
    ),
    _attack(
        "always_equal",
        "returns an object that equals everything",
        """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
def solve(x):
    return Equal()
""",
    ),
    _attack(
        "equal_subclasses",
        "the same behind int, str, list and a false __class__",
        """
def liar(base):
    return type(base.__name__, (base,), {"__eq__": lambda s, o: True, "__ne__": lambda s, o: False,
                                         "__hash__": base.__hash__, "__class__": property(lambda s: base)})
def solve(x):
    return [liar(int)(x), liar(list)(), liar(float)()][x % 3]
""",
    ),
    _attack(
        "frames",
        "searches the callers' frames for the expected value",
        """
import sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for names in (frame.f_locals, frame.f_globals):
            for name, value in list(names.items()):
                if any(word in name.lower() for word in ("expect", "want", "answer_value", "gold", "target")):
                    return value
        frame = frame.f_back
    return x
""",
    ),
    _attack(
        "gc_search",
        "searches every object of the process for the expected value",
        """
import gc
def solve(x):
    for thing in gc.get_objects():
        if type(thing) is dict:
            for key in ("expected", "cases", "tests", "gold"):
                if key in thing:
                    return thing[key]
        if type(thing) in (list, tuple) and len(thing) == 2 and thing[0] == x and type(thing[1]) is int:
            return thing[1]
    return x
""",
    ),
    _attack(
        "forged_result",
        "writes results of its own into every descriptor",
        """
import json, os, struct
def solve(x):
    for body in (["v", True], ["v", None], ["passed", 1.0], {"passed": True, "value": 1}):
        data = json.dumps(body).encode()
        for fd in range(3, 64):
            try:
                os.write(fd, struct.pack(">I", len(data)) + data)
            except OSError:
                pass
    return x
""",
    ),
    _attack(
        "forged_garbage",
        "writes half frames, huge lengths and bad tags",
        """
import os
def solve(x):
    for fd in range(3, 64):
        for data in (b'\\x00\\x00\\x00\\x09{"i": "z"}', b'\\x00\\x00\\x00\\x02[]', b'\\xff\\xff\\xff\\xff'):
            try:
                os.write(fd, data)
            except OSError:
                pass
    os._exit(0)
""",
    ),
    _attack(
        "forged_flood",
        "writes into the result channel without end",
        """
import os
def solve(x):
    while True:
        for fd in range(3, 64):
            try:
                os.write(fd, b"R" * 65536)
            except OSError:
                pass
""",
    ),
    _attack(
        "control_channel",
        "sends commands to the zygote's control channel and reads from it",
        """
import os, socket
def solve(x):
    open_fds = []
    for fd in range(3, 1024):
        try:
            os.fstat(fd)
            open_fds.append(fd)
        except OSError:
            pass
    for fd in open_fds:
        try:
            os.write(fd, b"stop")
            if socket.socket(fileno=fd).type == socket.SOCK_SEQPACKET:
                return "BREACH: control channel"
        except OSError:
            pass
    return f"BREACH: descriptors {open_fds}" if len(open_fds) > 1 else x
""",
    ),
    _attack(
        "builtins_tampering",
        "replaces builtins and parts of the standard library",
        """
import builtins, json, math, os
for name in ("len", "isinstance", "type", "repr", "map", "set", "getattr", "print", "all", "any"):
    setattr(builtins, name, lambda *a, **k: True)
json.dumps = lambda *a, **k: "true"
json.JSONEncoder.encode = lambda *a, **k: "[\\"v\\", true]"
os._exit = lambda status: None
def solve(x):
    return x
""",
    ),
    _attack(
        "harness_tampering",
        "replaces the functions that run and encode the calls",
        """
import sys
for name in ("__main__", "protocol"):
    module = sys.modules.get(name)
    for attribute in ("dumps", "answer", "describe", "frame", "loads"):
        if hasattr(module, attribute):
            setattr(module, attribute, lambda *a, **k: b'["v", true]')
def solve(x):
    return x
""",
    ),
    _attack(
        "late_work",
        "patches its result while it is being encoded",
        """
import gc, sys
result = []
def late(*_):
    result.append("late")
gc.callbacks.append(late)
sys.setprofile(late)
def solve(x):
    return result
""",
    ),
    _attack(
        "state_leak",
        "leaves marks in modules, files and the environment for the next candidate",
        """
import builtins, json, os, sys
builtins.MARK = json.MARK = sys.MARK = os.environ["MARK"] = "posterior-attack"
sys.modules["posterior-attack"] = json
sys.path.insert(0, "posterior-attack")
def solve(x):
    for path in ("/tmp", "/", "/dev/shm", "/harness"):
        try:
            open(path + "/posterior-attack", "w").write("left behind")
        except OSError:
            pass
    return x
""",
    ),
]

_RESULTS = [
    _attack("huge_result", "returns 50 MB", "def solve(x):\n    return 'x' * 50_000_000"),
    _attack("huge_list", "returns a list of two million numbers", "def solve(x):\n    return [1] * 2_000_000"),
    _attack("huge_error", "raises with 50 MB of text", "def solve(x):\n    raise ValueError('x' * 50_000_000)"),
    _attack("giant_int", "returns an integer of 10 million digits", "def solve(x):\n    return 1 << 33_000_000"),
    _attack("large_int", "returns an integer just under the size limit", "def solve(x):\n    return 1 << 4_000_000"),
    _attack(
        "hash_flooding",
        "returns dicts and sets whose keys all collide",
        """
PRIME = (1 << 61) - 1
def solve(x):
    if x:
        return {n * PRIME: n for n in range(3000)}
    return {tuple(-1 - (n >> bit & 1) for bit in range(12)) for n in range(4096)}
""",
    ),
    _attack("nan", "returns nan, which compares unlike anything", "def solve(x):\n    return [float('nan'), float('inf')][x % 2]"),
    _attack(
        "giant_decimal",
        "returns a decimal whose integer value fills the memory",
        "from decimal import Decimal\ndef solve(x):\n    return Decimal('1e999999999')",
    ),
    _attack(
        "unpicklable",
        "returns things that cannot cross: functions, generators, modules, files",
        "import sys\ndef solve(x):\n    return [lambda: x, (n for n in ()), sys][x % 3]",
    ),
    _attack(
        "deep_nesting",
        "returns lists nested 100,000 deep, or containing themselves",
        """
def solve(x):
    value = []
    if x == 1:
        value.append(value)
        return value
    for _ in range(100_000):
        value = [value]
    return value
""",
    ),
    _attack(
        "shared_nesting",
        "returns a small value that is exponentially large when written out",
        "def solve(x):\n    value = [1]\n    for _ in range(60):\n        value = [value, value]\n    return value",
    ),
    _attack("surrogates", "returns text that is no valid Unicode", "def solve(x):\n    return '\\ud800\\x00' * 3"),
    _attack(
        "hostile_error",
        "raises an exception whose text runs code and whose name lies",
        """
class Lie(BaseException):
    def __str__(self):
        raise SystemExit(0)
Lie.__name__ = ""
def solve(x):
    raise Lie
""",
    ),
    _attack("true_for_one", "returns True where 1 is asked", "def solve(x):\n    return True"),
]

ATTACKS: list[Attack] = [*_RESOURCES, *_PROCESSES, *_HOST, *_CHEATS, *_RESULTS]

_HEALTHY = "def solve(x):\n    return x + 1\n"
_PROBE = f"""
import builtins, json, os, sys
def solve(x):
    found = [name for name in ("builtins", "json", "sys") if hasattr(sys.modules[name], "MARK")]
    found += [path for path in sys.path if path == {MARK!r}]
    found += [name for name in sys.modules if name == {MARK!r}]
    found += ["environ"] if "MARK" in os.environ else []
    for folder in ("/", "/tmp", "/harness", "/dev/shm"):
        try:
            found += [name for name in os.listdir(folder) if {MARK!r} in name]
        except OSError:
            pass
    return found
"""


def _score(results: list[CallResult]) -> float:
    right = [r.ok and type(r.value) is int and r.value == x + 1 for r, x in zip(results, INPUTS, strict=True)]
    return sum(right) / len(right)


def _host_marks() -> list[str]:
    """Files on the host that an attack made."""
    folders = [Path(name) for name in ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", os.getcwd()) if Path(name).is_dir()]
    return [str(path) for folder in folders for path in folder.glob(f"{MARK}*")]


def _stray_processes(pool: SandboxPool) -> int:
    """Processes under the pool's zygotes beyond the zygotes' own."""
    stray = 0
    for pid in pool.process_ids():
        try:
            stray += max(0, 1 + len(psutil.Process(pid).children(recursive=True)) - _ZYGOTE_PROCESSES)
        except psutil.NoSuchProcess:
            pass
    return stray


async def run_attack(pool: SandboxPool, attack: Attack, bystander: int) -> AttackReport:
    """Run one attack, then look for harm. bystander: pid of a process of this user that must survive."""
    calls = [Call("solve", (x,)) for x in INPUTS]
    began = time.perf_counter()
    results = await pool.run(attack.source, calls, LIMITS)
    seconds = time.perf_counter() - began
    breaches = [r.value[:200] for r in results if type(r.value) is str and r.value.startswith("BREACH")]
    breaches += [f"left on the host: {path}" for path in _host_marks()]
    if stray := _stray_processes(pool):
        breaches.append(f"{stray} processes left behind")
    if not psutil.pid_exists(bystander) or psutil.Process(bystander).status() == psutil.STATUS_ZOMBIE:
        breaches.append("a process of the host was killed")
    healthy = True
    try:
        # Twice as many programs as slots, all at once, so that every slot has its turn.
        everywhere = range(2 * pool.workers)
        checks = await asyncio.gather(*[pool.run(_HEALTHY, calls, Limits()) for _ in everywhere])
        probes = await asyncio.gather(*[pool.run(_PROBE, calls[:1], Limits()) for _ in everywhere])
        healthy = all(_score(check) == 1 for check in checks)
        breaches += [f"leaked to the next candidate: {p[0].value}" for p in probes if not p[0].ok or p[0].value]
    except InfraError as error:
        healthy = False
        breaches.append(str(error))
    ended = sorted({r.error[:80] or f"returned {type(r.value).__name__}" for r in results})
    detail = "; ".join(breaches or ended)
    return AttackReport(attack.name, not breaches, _score(results), healthy, seconds, detail)


async def run_attacks(pool: SandboxPool) -> list[AttackReport]:
    """Run the whole list, one attack after another. Raises ValueError for a pool without isolation."""
    if pool.unsafe_local:
        raise ValueError("the attack list does real harm without a sandbox: run it on a pool that isolates")
    os.environ.setdefault("POSTERIOR_CANARY", "secret")
    with subprocess.Popen(["sleep", "3600"]) as bystander:
        try:
            return [await run_attack(pool, attack, bystander.pid) for attack in ATTACKS]
        finally:
            bystander.kill()
