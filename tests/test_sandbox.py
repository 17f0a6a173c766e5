"""The sandbox pool on the real sandbox: results, errors, limits, exact types, concurrency, healing, ordinary users."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.base import InfraError
from envs.coding import jail, protocol, sandbox
from envs.coding.compare import identical
from envs.coding.sandbox import Call, CallResult, Limits, SandboxPool, SandboxUnavailable

SOLVE = "def solve(x):\n    return x + 1\n"
QUICK = Limits(cpu_seconds=0.3, wall_seconds=1.0)


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    pool = SandboxPool(2)
    yield pool
    pool.close_now()


def run(pool: SandboxPool, source: str, *calls: Call, **options: Any) -> list[CallResult]:
    return asyncio.run(pool.run(source, calls, **options))


def one(pool: SandboxPool, source: str, *args: Any, limits: Limits = QUICK) -> CallResult:
    return run(pool, source, Call("solve", args), limits=limits)[0]


# ------------------------------------------------------------------------------------------------- results and errors


def test_calls_are_answered_in_order(pool: SandboxPool) -> None:
    source = "seen = []\ndef f(x, *, k=0):\n    seen.append(x)\n    return len(seen), x, k\n"
    results = run(pool, source, Call("f", (5,)), Call("f", ("a",), {"k": 2}), Call("f", ([1],)))
    assert [r.value for r in results] == [(1, 5, 0), (2, "a", 2), (3, [1], 0)]
    assert all(r.ok and r.error == "" and r.work is None for r in results)


def test_fresh_calls_share_nothing(pool: SandboxPool) -> None:
    source = "seen = []\ndef f():\n    seen.append(0)\n    return len(seen)\n"
    assert [r.value for r in run(pool, source, *[Call("f")] * 3, fresh=True)] == [1, 1, 1]


def test_no_calls_give_no_results(pool: SandboxPool) -> None:
    assert run(pool, SOLVE) == []


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def solve(x):\n    raise ValueError('no')", "ValueError: no"),
        ("def other(x):\n    return x", "NameError: name 'solve' is not defined"),
        ("def solve(x):\n    return x.y", "AttributeError: 'int' object has no attribute 'y'"),
        ("import sys\ndef solve(x):\n    sys.exit(3)", "SystemExit: 3"),
        ("def solve(x:", "import failed: SyntaxError: "),
        ("1 / 0", "import failed: ZeroDivisionError: division by zero"),
        ("import numpy", "import failed: ModuleNotFoundError: No module named 'numpy'"),
        ("x = '\\ud800'\ndef solve(_):\n    raise ValueError(x)", "ValueError: ?"),
        ("def solve(x):\n    return object()", "unsupported type object"),
        ("def solve(x):\n    return [1, (2, {3: solve})]", "unsupported type function"),
        ("class I(int): pass\ndef solve(x):\n    return I(2)", "unsupported type I"),
        ("def solve(x):\n    return 'x' * (1 << 20)", "result too large"),
        ("def solve(x):\n    return bytearray(1 << 33)", "memory"),
        ("data = bytearray(1 << 33)", "memory"),
        ("def solve(x):\n    while True: pass", "timeout"),
        ("import time\ndef solve(x):\n    time.sleep(60)", "timeout"),
        ("while True: pass", "timeout"),
        ("import os\ndef solve(x):\n    os._exit(0)", "killed"),
        ("import ctypes\ndef solve(x):\n    ctypes.string_at(0)", "killed"),
    ],
)
def test_errors_are_classified(pool: SandboxPool, source: str, error: str) -> None:
    result = one(pool, source, 1)
    assert not result.ok
    assert result.error.startswith(error)


def test_a_death_fails_the_call_it_happens_in_and_those_after(pool: SandboxPool) -> None:
    source = "def solve(x):\n    while x == 2: pass\n    return x\n"
    results = run(pool, source, *[Call("solve", (x,)) for x in (0, 1, 2, 3)], limits=QUICK)
    assert [r.error for r in results] == ["", "", "timeout", "timeout"]


def test_cpu_limit_is_of_the_child_and_exact(pool: SandboxPool) -> None:
    began = time.perf_counter()
    assert one(pool, "def solve(x):\n    while True: pass", 1, limits=Limits(cpu_seconds=0.2)).error == "timeout"
    assert time.perf_counter() - began < 2.0


def test_ordinary_programs_have_what_they_need(pool: SandboxPool) -> None:
    source = """
from dataclasses import dataclass
import asyncio, random, re, statistics, collections, heapq, datetime, logging, uuid, string

@dataclass(order=True)
class Point:
    x: int

async def later():
    await asyncio.sleep(0)
    return 7

def solve(n):
    print("noise")
    random.seed(0)
    return [sorted([Point(2), Point(1)])[0].x, asyncio.run(later()), statistics.mean([1, 3]), len(re.findall("a", "aa"))]
"""
    assert one(pool, source, 1, limits=Limits()).value == [1, 7, 2, 2]


def test_arguments_that_cannot_cross_are_the_callers_error(pool: SandboxPool) -> None:
    with pytest.raises(protocol.Unsupported, match="unsupported type object"):
        one(pool, SOLVE, object())


def test_large_messages_pass_both_ways(pool: SandboxPool) -> None:
    numbers = list(range(400_000))
    result = one(pool, "def solve(x):\n    return x[::-1]", numbers, limits=Limits(output_bytes=1 << 23))
    assert result.value == numbers[::-1]


# -------------------------------------------------------------------------------------------------------- exact types

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(1 << 3000), max_value=1 << 3000),
    st.floats(),
    st.text(st.characters(codec=None)),
    st.binary(),
    st.complex_numbers(),
    st.builds(Fraction, st.integers(), st.integers(min_value=1)),
    st.decimals(),
    st.builds(range, st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 9)),
)
keys = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(deque),
        st.dictionaries(keys, inner),
        st.dictionaries(keys, inner).map(OrderedDict),
        st.dictionaries(keys, inner).map(lambda d: defaultdict(None, d)),
        st.dictionaries(keys, st.integers()).map(Counter),
        st.sets(keys),
        st.frozensets(keys),
        st.binary().map(bytearray),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equality of values and of all types inside; nan equals itself, and -0.0 does not equal 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, set | frozenset):
        return a == b and sorted(map(repr, a)) == sorted(map(repr, b))
    return bool(a == b)


@given(values)
@settings(max_examples=300, deadline=None)
def test_protocol_round_trip_is_exact(value: Any) -> None:
    assert same(protocol.loads(protocol.dumps(value)), value)


@given(values)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_cross_the_sandbox_and_return_exactly(pool: SandboxPool, value: Any) -> None:
    result = one(pool, "def solve(v):\n    return v", value, limits=Limits())
    assert result.ok, result.error
    assert same(result.value, value)


json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*protocol._UNPACK, "x"]), inner, max_size=2),
    ),
    max_leaves=12,
)


@given(st.one_of(st.binary(), json_like.map(lambda data: json.dumps(data).encode())))
@settings(max_examples=400, deadline=None)
def test_hostile_bytes_decode_or_are_malformed(body: bytes) -> None:
    try:
        value = protocol.loads(body)
    except protocol.Malformed:
        return
    assert identical(value, value) or "nan" in repr(value)
    protocol.dumps(value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"r": [0, 1, 0]}',
        b'{"fr": [1, 0]}',
        b'{"dec": "1e99999999"}',
        b'{"i": "1", "t": []}',
        b'{"s": [[1]]}',
        b'{"d": [[1], []]}',
        b'{"c": [1, "x"]}',
        b'{"t": "ab"}',
        b"[" * 5000,
        b"[" * 150 + b"]" * 150,
        b"1" * 5000,
        b"\xff",
        b"",
        json.dumps({"s": [n * (2**61 - 1) for n in range(1, 1000)]}).encode(),
    ],
)
def test_malformed_values_are_refused(body: bytes) -> None:
    with pytest.raises(protocol.Malformed):
        protocol.loads(body)


def test_subclasses_and_depth_are_refused() -> None:
    class Text(str):
        pass

    nested: list[Any] = []
    for _ in range(protocol.MAX_DEPTH + 1):
        nested = [nested]
    for value in (Text("a"), [Text("a")], {"k": Text("a")}, {Text("k"): 1}, nested, type, print):
        with pytest.raises(protocol.Unsupported):
            protocol.dumps(value)
    with pytest.raises(protocol.TooLarge):
        protocol.dumps([0] * 100, limit=50)


# ------------------------------------------------------------------------------------------------------- tests' children


def run_tests(pool: SandboxPool, source: str, tests: str, limits: Limits = QUICK) -> CallResult:
    return asyncio.run(pool.run_tests(source, tests, "solve", limits))


def test_test_code_runs_against_a_stub(pool: SandboxPool) -> None:
    assert run_tests(pool, SOLVE, "for n in range(5):\n    assert solve(n) == n + 1\n") == CallResult(True)
    assert run_tests(pool, SOLVE, "def check(f):\n    assert f(1) == 2\ncheck(solve)").ok
    assert run_tests(pool, SOLVE, "import math\nassert math.isclose(solve(1.5), 2.5)").ok


def test_test_code_reaches_other_names_of_the_candidate(pool: SandboxPool) -> None:
    source = SOLVE + "def helper(a, b=1):\n    return [a, b]\n"
    assert run_tests(pool, source, "assert helper(solve(1), b=3) == [2, 3]").ok


@pytest.mark.parametrize(
    ("source", "tests", "error"),
    [
        (SOLVE, "assert solve(1) == 3, 'wrong'", "AssertionError: wrong"),
        (SOLVE, "assert solve(1) == 2\nimport sys\nsys.exit(0)", "SystemExit: 0"),
        (SOLVE, "import os\nos._exit(0)", "killed"),
        (SOLVE, "while True: pass", "timeout"),
        (SOLVE, "assert solve(", "tests: SyntaxError"),
        (SOLVE, "missing(1)", "NameError: name 'missing' is not defined"),
        ("def solve(x:", "solve(1)", "import failed: SyntaxError"),
        ("def solve(x):\n    while True: pass", "assert solve(1) == 2", "timeout"),
        ("import os\ndef solve(x):\n    os._exit(0)", "try:\n    solve(1)\nexcept Exception: pass", "killed"),
        ("def solve(x):\n    return 'x' * (1 << 21)", "solve(1)", "CandidateError: result too large"),
        (
            "class E:\n    __eq__ = lambda a, b: True\ndef solve(x):\n    return E()",
            "assert solve(1) == 2",
            "CandidateE",
        ),
    ],
)
def test_failed_tests_are_told(pool: SandboxPool, source: str, tests: str, error: str) -> None:
    result = run_tests(pool, source, tests)
    assert not result.ok
    assert result.error.startswith(error), result.error


def test_exceptions_of_the_candidate_keep_their_builtin_type(pool: SandboxPool) -> None:
    tests = "try:\n    solve(1)\nexcept KeyError as e:\n    assert 'k' in str(e)\nelse:\n    assert False"
    assert run_tests(pool, "def solve(x):\n    raise KeyError('k')", tests).ok
    assert not run_tests(pool, "def solve(x):\n    raise SystemExit(0)", "solve(1)").ok


def test_expected_values_are_out_of_the_candidates_reach(pool: SandboxPool) -> None:
    source = """
import gc, sys
def solve(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [repr(v) for v in (*frame.f_locals.values(), *frame.f_globals.values())]
        frame = frame.f_back
    seen += [repr(v) for v in gc.get_objects() if type(v) in (list, tuple, dict)]
    return any("120937"[::-1] in text for text in seen)
"""
    assert run_tests(pool, source, "assert solve(1) is False and 739021", Limits()).ok


# ------------------------------------------------------------------------------------------------ concurrency, healing


def test_many_runs_queue_for_few_slots(pool: SandboxPool) -> None:
    async def many() -> list[list[CallResult]]:
        return await asyncio.gather(*[pool.run(SOLVE, [Call("solve", (n,))]) for n in range(60)])

    assert [r[0].value for r in asyncio.run(many())] == list(range(1, 61))


def test_the_shared_pool_serves_several_loops_and_threads() -> None:
    found: list[Any] = []

    def use() -> None:
        found.extend(r.value for r in run(SandboxPool.shared(), SOLVE, Call("solve", (1,))))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    use()
    assert found == [2] * 4
    assert SandboxPool.shared() is SandboxPool.shared()
    SandboxPool.shared().close_now()


def test_a_cancelled_run_leaves_the_pool_usable(pool: SandboxPool) -> None:
    async def cancel() -> None:
        sleep = "import time\ndef solve(x):\n    time.sleep(0.5)"
        tasks = [asyncio.create_task(pool.run(sleep, [Call("solve", (1,))])) for _ in range(6)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(cancel())
    assert one(pool, SOLVE, 1).value == 2


def test_idle_workers_killed_from_outside_are_replaced(pool: SandboxPool) -> None:
    assert one(pool, SOLVE, 1).value == 2
    before = pool.process_ids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for n in range(4):
        assert one(pool, SOLVE, n).value == n + 1
    assert not set(before) & set(pool.process_ids())


def test_a_worker_killed_in_the_middle_of_a_job_is_not_the_candidates_fault(pool: SandboxPool) -> None:
    async def killed_once() -> list[CallResult]:
        source = "import time\ndef solve(x):\n    time.sleep(0.4)\n    return x + 1"
        job = asyncio.create_task(pool.run(source, [Call("solve", (1,))]))
        await asyncio.sleep(0.2)
        for pid in pool.process_ids():
            os.kill(pid, signal.SIGKILL)
        return await job

    assert one(pool, SOLVE, 1).ok
    assert asyncio.run(killed_once())[0].value == 2


def test_repeated_deaths_of_workers_are_an_infra_error() -> None:
    pool = SandboxPool(1)
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            for pid in pool.process_ids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(InfraError, match="sandbox slot 0 failed 3 times"):
            one(pool, "import time\ndef solve(x):\n    time.sleep(0.9)", 1)
    finally:
        stop.set()
        killer.join()
    assert one(pool, SOLVE, 1).value == 2
    pool.close_now()


def test_a_closed_pool_leaves_no_processes_and_says_so() -> None:
    pool = SandboxPool(1)
    assert one(pool, SOLVE, 1).ok
    (pid,) = pool.process_ids()
    asyncio.run(pool.close())
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(InfraError, match="closed"):
        one(pool, SOLVE, 1)


# ------------------------------------------------------------------------------------------------------------ the modes


def test_without_bubblewrap_the_error_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sandbox, "_working", [])
    with pytest.raises(SandboxUnavailable, match="apt-get install -y bubblewrap libseccomp2"):
        SandboxPool(1)


def test_unsafe_local_speaks_the_same_protocol_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    pool = SandboxPool(1, unsafe_local=True)
    assert "WITHOUT a sandbox" in caplog.text
    results = run(pool, SOLVE, Call("solve", (1,)), Call("solve", ("a",)))
    assert results[0].value == 2
    assert results[1].error.startswith("TypeError")
    assert run_tests(pool, SOLVE, "assert solve(1) == 2").ok
    assert one(pool, "def solve(x):\n    while True: pass", 1).error == "timeout"
    pool.close_now()


def test_every_slot_has_a_uid_of_its_own(pool: SandboxPool) -> None:
    source = "import os\ndef solve(x):\n    return os.getuid()"

    async def both() -> list[list[CallResult]]:
        return await asyncio.gather(*[pool.run(source, [Call("solve", (1,))]) for _ in range(20)])

    uids = {r[0].value for r in asyncio.run(both())}
    assert len(uids) == pool.workers
    assert not uids & {0, 65534, os.geteuid()}


ORDINARY = """
import asyncio, os
from envs.coding.sandbox import Call, SandboxPool
from envs.coding import work
async def main():
    pool = SandboxPool(1)
    source = "def solve(x):\\n    return x + 1"
    measured = await pool.run(source, [Call("solve", (1,))], measure=True)
    tested = await pool.run_tests(source, "assert solve(1) == 2", "solve")
    forked = await pool.run("import os\\ndef solve(x):\\n    return os.fork()", [Call("solve", (1,))])
    await pool.close()
    print(os.getuid(), measured[0].value, measured[0].work > 0, tested.ok, forked[0].error[:15])
asyncio.run(main())
"""


def test_it_works_for_an_ordinary_user() -> None:
    """As nobody, from a copy of the package that nobody may read: root's checkout and interpreter may be private."""
    import pyseccomp

    as_nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        here = Path(sandbox.__file__).parents[1]
        shutil.copytree(here, Path(folder) / "envs", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(str(pyseccomp.__file__), folder)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        for python in (jail.interpreter(), "/usr/bin/python3", sys.executable):
            try:
                subprocess.run([python, "-c", "import ctypes"], check=True, cwd="/", **as_nobody)
            except (OSError, subprocess.CalledProcessError):
                continue
            break
        done = subprocess.run(
            [python, "-c", ORDINARY],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            **as_nobody,
        )
    uid = 65534 if as_nobody else os.geteuid()
    assert done.stdout.split(maxsplit=4) == [str(uid), "2", "True", "True", "PermissionError\n"], done.stderr
