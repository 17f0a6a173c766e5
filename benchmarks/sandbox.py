"""Speed of the sandbox pool, and how far work counts repeat on an idle and a loaded machine.

    python -m benchmarks.sandbox --json [--quick]

programs_per_second: programs of three calls each, every one in a fresh child, all submitted at once.
work_spread_*: (largest - smallest) / smallest count of one program over all runs, idle and with two busy processes per
CPU, for a loop in Python and for one inside C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from benchmarks.common import Measure, main
from envs.coding import work
from envs.coding.sandbox import Call, Limits, SandboxPool

PROGRAM = "def solve(numbers):\n    return sorted(set(numbers))[-1] + 1\n"
CALLS = [Call("solve", ([3, 1, 2],)), Call("solve", ([5],)), Call("solve", ([9, 9],))]
TESTS = "assert solve([3, 1, 2]) == 4\nassert solve([5]) == 6\nassert solve([9, 9]) == 10\n"
MEASURED = {
    "python": ("def solve(n):\n    return sum(i * i % 7 for i in range(n))\n", 20_000),
    "c": ("def solve(n):\n    v = list(range(n))\n    return sum(i in v for i in range(0, n, 9))\n", 3_000),
}


async def rate(job: Callable[[], Awaitable[object]], count: int) -> float:
    """Jobs a second, all submitted at once."""
    await asyncio.gather(*[job() for _ in range(8)])
    began = time.perf_counter()
    await asyncio.gather(*[job() for _ in range(count)])
    return count / (time.perf_counter() - began)


@contextmanager
def load() -> Iterator[None]:
    """Two busy processes per CPU."""
    spin = [sys.executable, "-S", "-c", "while True: pass"]
    burners = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


async def counts(pool: SandboxPool, source: str, size: int, repeats: int) -> list[int]:
    limits = Limits(cpu_seconds=20, wall_seconds=60)
    results = await pool.run(source, [Call("solve", (size,))] * repeats, limits, measure=True)
    return [result.work for result in results if result.work is not None]


async def bench(quick: bool) -> list[Measure]:
    pool = SandboxPool()
    programs = 100 if quick else 2000
    plain = await rate(lambda: pool.run(PROGRAM, CALLS), programs)
    fresh = await rate(lambda: pool.run(PROGRAM, CALLS, fresh=True), programs // 4)
    tests = await rate(lambda: pool.run_tests(PROGRAM, TESTS, "solve"), programs // 2)
    began = time.perf_counter()
    await pool.run(PROGRAM, CALLS)
    latency = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(10):
        subprocess.run([sys.executable, "-I", "-S", "-c", PROGRAM], check=True)
    unsafe = 10 / (time.perf_counter() - began)
    measures = [
        Measure("programs_per_second", plain, "1/s", baseline=unsafe, target=300),
        Measure("programs_per_second_fresh_child_per_call", fresh, "1/s", baseline=unsafe),
        Measure("programs_per_second_untrusted_tests", tests, "1/s", baseline=unsafe),
        Measure("latency", latency * 1e3, "ms"),
        Measure("plain_python_processes_per_second", unsafe, "1/s"),
    ]
    repeats = 3 if quick else 10
    for name, (source, size) in MEASURED.items():
        idle = await counts(pool, source, size, repeats)
        with load():
            loaded = await counts(pool, source, size, repeats)
        both = idle + loaded
        spread = (max(both) - min(both)) / min(both)
        label = f"work_spread_{name}_loop_{work.method()}"
        measures.append(
            Measure(label, 100 * spread, "%", target=1.0, at_most=True, met=len(both) == 2 * repeats and spread <= 0.01)
        )
    began = time.perf_counter()
    await counts(pool, *MEASURED["python"], repeats)
    measures.append(Measure("measured_calls_per_second", repeats / (time.perf_counter() - began), "1/s"))
    await pool.close()
    return measures


def run(args: argparse.Namespace) -> list[Measure]:
    return asyncio.run(bench(args.quick))


if __name__ == "__main__":
    sys.exit(main(__doc__, run))
