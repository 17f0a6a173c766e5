"""Programs that try to cheat the grader or harm the machine, and the run that checks each is contained.

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
from envs.coding.attack_cheats import CHEATS, RESULTS
from envs.coding.attack_harms import HOST, MARK, PROCESSES, RESOURCES, Attack
from envs.coding.sandbox import Call, CallResult, Limits, SandboxPool

__all__ = ["ATTACKS", "Attack", "AttackReport", "run_attack", "run_attacks"]

ATTACKS: list[Attack] = [*RESOURCES, *PROCESSES, *HOST, *CHEATS, *RESULTS]

INPUTS = (0, 1, 41)
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=1.5, memory_mb=256, output_bytes=1 << 20)
_ZYGOTE_PROCESSES = 3  # bubblewrap, its init, and the interpreter


@dataclass(frozen=True)
class AttackReport:
    """contained: no sign of harm inside or outside. score: share of cases it got right, or of proofs accepted (must be 0). healthy_after:
    what is right is graded right afterwards, and what is wrong wrong. seconds: of the attack itself. detail: how it ended, and any
    breach."""

    name: str
    contained: bool
    score: float
    healthy_after: bool
    seconds: float
    detail: str


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
    try:
        results = await pool.run(attack.source, calls, LIMITS)
    except InfraError as error:
        return AttackReport(attack.name, False, 0.0, False, time.perf_counter() - began, f"broke the grader: {error}")
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
    with subprocess.Popen(["sleep", "3600"]) as bystander:
        try:
            return [await run_attack(pool, attack, bystander.pid) for attack in ATTACKS]
        finally:
            bystander.kill()
