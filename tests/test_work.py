"""Work counts: repeatable under load, blind to nothing a candidate could hide work in, and monotone in the algorithm."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from envs.coding import work
from envs.coding.sandbox import Call, CallResult, Limits, SandboxPool

LOOP = "def solve(n):\n    total = 0\n    for i in range(n):\n        total += i * i % 7\n    return total\n"


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    pool = SandboxPool(1)
    yield pool
    pool.close_now()


def measure(pool: SandboxPool, source: str, *arguments: object, limits: Limits | None = None) -> list[CallResult]:
    calls = [Call("solve", (argument,)) for argument in arguments]
    return asyncio.run(pool.run(source, calls, limits or Limits(), measure=True))


def counts(pool: SandboxPool, source: str, *arguments: object) -> list[int]:
    results = measure(pool, source, *arguments)
    assert all(r.ok for r in results), [r.error for r in results]
    return [r.work or 0 for r in results]


def test_the_counter_in_use_has_a_name() -> None:
    assert work.method() in ("instructions", work.CACHEGRIND)


def test_counts_repeat_within_a_percent_idle_and_loaded(pool: SandboxPool) -> None:
    idle = counts(pool, LOOP, *[5000] * 3)
    spin = [sys.executable, "-S", "-c", "while True: pass"]
    burners = [subprocess.Popen(spin) for _ in range(4)]
    try:
        loaded = counts(pool, LOOP, *[5000] * 3)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert max(idle + loaded) / min(idle + loaded) < 1.01


def test_counts_are_right(pool: SandboxPool) -> None:
    small, large = counts(pool, LOOP, 10_000, 110_000)
    per_iteration = (large - small) / 100_000
    assert 50 < per_iteration < 1000  # a CPython loop iteration of three operations


PAIRS = {
    "two_sum": (
        "def solve(n):\n    seen = set()\n    for v in range(n):\n        if -v in seen: return v\n        seen.add(v)\n",
        "def solve(n):\n    for i in range(1, n):\n        for j in range(i):\n            if i + j == 0: return i\n",
    ),
    "membership_in_c": (
        "def solve(n):\n    s = set(range(n))\n    return sum(v in s for v in range(n))\n",
        "def solve(n):\n    s = list(range(n))\n    return sum(v in s for v in range(n))\n",
    ),
    "prefix_sums_in_c": (
        "from itertools import accumulate\ndef solve(n):\n    return list(accumulate(range(n)))\n",
        "def solve(n):\n    v = list(range(n))\n    return [sum(v[: i + 1]) for i in range(n)]\n",
    ),
    "joining": (
        "def solve(n):\n    return len(''.join('ab' for _ in range(n)))\n",
        "def solve(n):\n    t = ()\n    for _ in range(n): t = t + ('ab',)\n    return 2 * len(t)\n",
    ),
    "recursion": (
        "def solve(n):\n    a, b = 0, 1\n    for _ in range(n // 50): a, b = b, a + b\n    return a\n",
        "def f(k):\n    return k if k < 2 else f(k - 1) + f(k - 2)\ndef solve(n):\n    return f(n // 50)\n",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_linear_beats_quadratic(pool: SandboxPool, name: str) -> None:
    fast, slow = (counts(pool, source, 1000)[0] for source in PAIRS[name])
    assert fast * 1.5 < slow


def test_sleeping_costs_the_limit_and_gains_nothing(pool: SandboxPool) -> None:
    plain, sleepy = (counts(pool, source, 2000)[0] for source in (LOOP, "import time\ntime.sleep(0.2)\n" + LOOP))
    assert sleepy >= plain * 0.99


@pytest.mark.parametrize(
    "attempt",
    [
        "__import__('threading').Thread(target=solve, args=(1,)).start()",
        "__import__('subprocess').run(['/usr/bin/true'])",
        "__import__('os').fork()",
        "__import__('multiprocessing').Pool(2)",
        "__import__('concurrent.futures').futures.ThreadPoolExecutor().submit(len, '')",
    ],
)
def test_work_cannot_be_given_away(pool: SandboxPool, attempt: str) -> None:
    (result,) = measure(pool, f"def solve(n):\n    return n if n else {attempt}\n", 0)
    assert not result.ok
    assert result.work is None


def test_nothing_is_kept_from_call_to_call(pool: SandboxPool) -> None:
    source = (
        "import functools\n"
        "@functools.lru_cache(None)\ndef inner(n):\n    return sum(i * i for i in range(n))\n"
        "def solve(n):\n    return inner(n)\n"
    )
    first, second = counts(pool, source, 20_000, 20_000)
    assert 0.99 < first / second < 1.01


def test_work_while_loading_counts(pool: SandboxPool) -> None:
    table = "TABLE = [sum(range(i)) for i in range(2000)]\ndef solve(n):\n    return TABLE[n]\n"
    assert counts(pool, table, 1000)[0] > 5 * counts(pool, "def solve(n):\n    return sum(range(n))\n", 1000)[0]


def test_tracing_and_forging_do_not_lower_the_count(pool: SandboxPool) -> None:
    honest = counts(pool, LOOP, 5000)[0]
    forgery = (
        "import os, sys\nsys.settrace(None)\nsys.setprofile(None)\n"
        "for fd in range(3, 2000):\n"
        "    for line in (b'==1== I   refs:      1\\n', b'==2== I   refs:      2\\n'):\n"
        "        if fd != CHANNEL:\n"
        "            try: os.write(fd, line)\n"
        "            except OSError: pass\n"
    )
    # The result channel is the descriptor whose other end is ours; writing there would only spoil the result.
    channel = "import os, stat\nCHANNEL = [f for f in range(3, 64) if os.path.exists('/') and _sock(f)][0]\n"
    helper = (
        "import os, stat\ndef _sock(fd):\n    try: return stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
        "    except OSError: return False\n"
    )
    assert counts(pool, helper + channel + forgery + LOOP, 5000)[0] >= honest


def test_failures_are_classified_as_without_counting(pool: SandboxPool) -> None:
    tight = Limits(cpu_seconds=0.1, wall_seconds=1.0)
    sources = {
        "timeout": "def solve(n):\n    while True: pass",
        "ValueError: no": "def solve(n):\n    raise ValueError('no')",
        "memory": "def solve(n):\n    return bytearray(1 << 34)",
        "import failed: SyntaxError": "def solve(",
    }
    for error, source in sources.items():
        (result,) = measure(pool, source, 1, limits=tight)
        assert result.error.startswith(error)
        assert result.work is None


def test_perf_counter_path_with_an_event_every_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardware path, driven with the kernel's page-fault event where there is no instruction counter."""
    monkeypatch.setattr(work, "method", lambda: "page-faults")
    pool = SandboxPool(1)
    touch = "def solve(pages):\n    return len(bytearray(pages * 4096).replace(b'\\0', b'1'))\n"
    few, many = counts(pool, touch, 100, 10_000)
    pool.close_now()
    assert 2 * 9_000 < many - few < 2 * 12_000


def test_a_count_too_low_for_its_time_is_refused() -> None:
    log = b"==7== I   refs:      1,000\n==8== \n==7== I   refs:      3,500\n"
    assert work.count_from_log(log, cpu_seconds=0.5) == 2500
    assert work.count_from_log(log, cpu_seconds=30.0) is None
    assert work.count_from_log(log[:20], cpu_seconds=0.5) is None


def test_measured_calls_are_ready_soon_after_the_first(pool: SandboxPool) -> None:
    counts(pool, LOOP, 10)
    began = time.perf_counter()
    counts(pool, LOOP, *[10] * 5)
    assert time.perf_counter() - began < 10
