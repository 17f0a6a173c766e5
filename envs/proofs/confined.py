"""Proof checkers in the sandbox: the jail of the coding environment, with what a checker needs besides.

A checker runs as a uid of its own, sees /usr and the folders it is shown, writes to nothing but a small folder in memory, has no
network, and can neither start processes nor signal any. Time and memory are limited, and what it prints is capped.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from envs.base import InfraError
from envs.coding import jail
from envs.coding.sandbox import require_sandbox

_SLOTS = itertools.count()
_FIRST_SLOT = 300
"""The coding sandbox counts its slots, and with them its uids, from 0."""
LAUNCHER = "/checker/launcher.py"
GRACE_SECONDS = 20.0
_CALLS = ("execve", "chdir")
"""What a checker calls and a candidate's Python may not: the launcher becomes the checker, and Coq finds paths by going there."""

_STARTER = ThreadPoolExecutor(1, "proof-checkers")
"""Starts the sandboxes: bubblewrap dies with the thread that started it, and the threads of an event loop end with the loop."""


@dataclass(frozen=True)
class Limits:
    """Of one checker. cpu_seconds: of one tactic in a session, of one process of a whole check. memory_mb: of address space.
    output_bytes: that it may print."""

    cpu_seconds: float = 2.0
    memory_mb: int = 1024
    output_bytes: int = 1 << 18

    @property
    def wall_seconds(self) -> float:
        """Until a checker that gets no CPU counts as starved, which is no fault of the proof's."""
        return 10 * self.cpu_seconds + 20


@dataclass(frozen=True)
class Job:
    """One process. folder: inside the sandbox, made for it. command: absolute path first. files: name -> text, put into the folder.
    keep: the file in it that is handed back when the process ends well."""

    folder: str
    command: list[str]
    files: dict[str, str] = field(default_factory=dict)
    keep: str = ""


@dataclass(frozen=True)
class Done:
    """How a process ended. ok: by itself and with status 0. cause: "exit", "cpu", "wall" or "output" (a limit). out: what it printed.
    kept: the file asked for."""

    ok: bool
    cause: str
    out: str
    cpu: float
    kept: bytes = b""


def start(
    arguments: Sequence[str],
    limits: Limits,
    shown: Sequence[tuple[str, str]] = (),
    *,
    writes: bool = False,
    errors: int = subprocess.STDOUT,
    calls: tuple[str, ...] = (),
) -> subprocess.Popen[bytes]:
    """The launcher in a fresh sandbox, talking over pipes. arguments: of the launcher, from its mode on. writes: give it a scratch folder.
    errors: where its standard error goes (see subprocess). calls: system calls to allow besides."""
    require_sandbox()
    slot = _FIRST_SLOT + next(_SLOTS) % 300
    uid = jail.slot_uid(slot)
    with ExitStack() as after_start:
        filter_fd = after_start.enter_context(jail.filter_file(writes, _CALLS + calls)).fileno()
        python = [jail.interpreter(), *jail.PYTHON_FLAGS, LAUNCHER]
        command = [*python, str(filter_fd), str(uid), str(limits.memory_mb), *arguments]
        mine = (str(Path(__file__).with_name("launcher.py")), LAUNCHER)
        jailed = jail.jail_command(
            command, slot, own_uid=uid >= 0, shown=[mine, *shown, *_configured()], scratch_mb=64 if writes else 0
        )
        return _STARTER.submit(
            subprocess.Popen,
            jailed,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=[filter_fd],
            env=jail.environment(),
            cwd="/",
        ).result()


def run(
    jobs: Sequence[Job],
    limits: Limits,
    shown: Sequence[tuple[str, str]] = (),
    environment: Mapping[str, str] | None = None,
    calls: tuple[str, ...] = (),
) -> list[Done]:
    """Run processes one after another in one fresh sandbox, until one of them fails; how each ended. environment: variables to set.
    calls: system calls to allow besides.

    Raises InfraError where that was not its own doing.
    """
    wall = limits.wall_seconds
    cpu, output = limits.cpu_seconds, limits.output_bytes
    steps = [
        asdict(job) | {"cpu": cpu, "wall": wall, "output": output, "environment": dict(environment or {})}
        for job in jobs
    ]
    process = start(["job"], limits, shown, writes=True, errors=subprocess.PIPE, calls=calls)
    try:
        out, errors = process.communicate(json.dumps(steps).encode(), timeout=wall * len(jobs) + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        raise InfraError("proof checker: the sandbox did not report in time") from None
    finally:
        process.kill()
        process.communicate()
    try:
        results = json.loads(out)
    except ValueError:
        words = errors.decode(errors="replace").strip()[-400:]
        raise InfraError(f"proof checker: the sandbox ended with status {process.returncode}: {words}") from None
    return [_done(result, cpu) for result in results]


def _done(result: dict[str, object], limit: float) -> Done:
    cause, code, cpu, out = (result[key] for key in ("cause", "code", "cpu", "out"))
    assert isinstance(code, int)
    assert isinstance(out, str)
    assert isinstance(cpu, float)
    if cause == "exit" and os.WIFSIGNALED(code) and os.WTERMSIG(code) == 9:
        raise InfraError("proof checker: killed from outside")
    if cause == "wall" and cpu < limit:  # it cannot sleep
        raise InfraError(f"proof checker: starved, {cpu:.2f} s of CPU time and no end")
    if os.WIFEXITED(code) and os.WEXITSTATUS(code) == 127:
        raise InfraError(f"proof checker: {out.strip()[-200:]}")
    return Done(cause == "exit" and code == 0, str(cause), out, cpu, base64.b64decode(str(result["kept"])))


def _configured() -> list[tuple[str, str]]:
    """Coq finds its plug-ins by a file of OCaml's."""
    path = "/etc/ocamlfind.conf"
    return [(path, path)] if Path(path).exists() else []
