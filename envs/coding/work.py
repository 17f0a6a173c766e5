"""Work counts: how much a candidate computes, in a unit that neither load nor sleep nor caching changes.

Where the CPU's counters can be read, a count is the number of user-mode instructions (`perf_event_open`, opened by the
zygote on the child, so from outside the candidate). On a machine without them (most virtual machines) the child runs
under valgrind's cachegrind, which counts the instructions of the program it translates: the same unit, about 20 times
slower. A twin forked at the moment the candidate begins ends at once, and its count is subtracted.

A count covers the program's import, the call, and the encoding of its result until the process ends; reading and
decoding the arguments is left out. The hash seed is fixed and every count has a child of its own, without threads,
processes or writable files, so caching and delegating gain nothing.

Under cachegrind the counter lives in the candidate's own address space. Its descriptors are closed to the candidate, but
machine code (ctypes) could reach its memory, so a count far below what the child's CPU time implies is refused.
"""

from __future__ import annotations

import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from envs.coding import zygote

if TYPE_CHECKING:
    from envs.coding.sandbox import Limits

CACHEGRIND = "cachegrind"
EVENTS = {"instructions": "0:1", "page-faults": "1:2"}
"""Perf events by name, as "type:number". Only the first is a measure of work; the second exists on every machine and
lets tests drive the same code."""

_SLOWDOWN = 20.0
_EXTRA_MB = 512
# Cachegrind runs about 1e8 to 1e9 of the program's instructions a second; a forged count would show fewer.
_LEAST_RATE = 2e7
_UNCOUNTED_SECONDS = 1.0


class WorkUnavailableError(RuntimeError):
    """No counter works on this machine; the message says what to install."""


@lru_cache(maxsize=1)
def method() -> str:
    """The counter in use: "instructions" (hardware) or "cachegrind" (valgrind). Raises WorkUnavailableError."""
    if _hardware_counts():
        return "instructions"
    if shutil.which("valgrind"):
        return CACHEGRIND
    raise WorkUnavailableError(
        "Performance tests need a work counter, and this machine shows no hardware instruction counter: install the "
        "fallback with `apt-get install -y valgrind`."
    )


def _hardware_counts() -> bool:
    """Whether an unprivileged process may count its own user-mode instructions, and the count moves."""
    try:
        # The zygote has no capabilities; as root the call below would succeed at levels where the zygote's fails.
        if int(Path("/proc/sys/kernel/perf_event_paranoid").read_text()) > 2:
            return False
        kind, event = map(int, EVENTS["instructions"].split(":"))
        counter = zygote.PerfCounter(0, kind, event)
    except (OSError, ValueError, KeyError):
        return False
    counter.enable()
    sum(range(10_000))
    count = counter.read()
    counter.close()
    return count > 10_000


def counter_argument(name: str) -> str:
    """The zygote's COUNTER argument for a method ("" means no counting)."""
    return EVENTS.get(name, name or "-")


def counting(name: str) -> int:
    """How a job of a zygote with this method counts: the number in its header."""
    return zygote.COUNT_FORK if name == CACHEGRIND else zygote.COUNT_PERF


def tracer_command(name: str) -> list[str]:
    """What to put before a counting zygote's command. Its log, with the counts, goes to standard error, which a child
    closes to its candidate; valgrind keeps a descriptor of its own, which it lets no program touch."""
    if name != CACHEGRIND:
        return []
    options = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", "--vgdb=no"]
    return [shutil.which("valgrind") or "valgrind", *options]


def scaled(limits: Limits, name: str) -> Limits:
    """The same limits for a child that runs under the counter: a slower one gets more time and memory."""
    if name != CACHEGRIND:
        return limits
    return type(limits)(
        cpu_seconds=limits.cpu_seconds * _SLOWDOWN,
        wall_seconds=limits.wall_seconds + limits.cpu_seconds * (_SLOWDOWN - 1),
        memory_mb=limits.memory_mb + _EXTRA_MB,
        output_bytes=limits.output_bytes,
    )


def count_from_log(log: bytes, cpu_seconds: float) -> int | None:
    """The child's instructions in what cachegrind logged for a job: its total less its twin's, which ends first.

    None where a count is missing (a child that was killed) or is too low for the child's CPU time.
    """
    totals = [int(text.replace(b",", b"")) for text in re.findall(rb"I\s+refs:\s+([\d,]+)", log)]
    if len(totals) != 2:
        return None
    count = totals[1] - totals[0]
    if count < (cpu_seconds - _UNCOUNTED_SECONDS) * _LEAST_RATE:
        return None
    return count
