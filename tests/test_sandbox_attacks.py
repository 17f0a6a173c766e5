"""Every attack of the list against the real sandbox: it scores 0, harms nothing, and the grader is healthy after it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from envs.coding.attack_cheats import CHEATS
from envs.coding.attacks import ATTACKS, INPUTS, Attack, run_attack, run_attacks
from envs.coding.sandbox import Call, Limits, SandboxPool

TESTS = "\n".join(f"assert type(solve({x})) is int and solve({x}) == {x + 1}" for x in INPUTS)


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    pool = SandboxPool(2)
    yield pool
    pool.close_now()


@pytest.fixture(scope="module")
def bystander() -> Iterator[int]:
    with subprocess.Popen(["sleep", "3600"]) as process:
        yield process.pid
        process.kill()


def test_names_are_unique() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 50


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_contained(pool: SandboxPool, bystander: int, attack: Attack) -> None:
    report = asyncio.run(run_attack(pool, attack, bystander))
    assert report.contained, report.detail
    assert report.score == 0
    assert report.healthy_after
    assert report.seconds < 5


@pytest.mark.parametrize("attack", CHEATS, ids=lambda attack: attack.name)
def test_cheat_fails_against_test_code_too(pool: SandboxPool, attack: Attack) -> None:
    limits = Limits(cpu_seconds=0.3, wall_seconds=1.0)
    assert not asyncio.run(pool.run_tests(attack.source, TESTS, "solve", limits)).ok


def test_attacks_would_succeed_without_a_sandbox() -> None:
    """The list is no straw man: harmless members of it do breach a plain subprocess."""
    pool = SandboxPool(1, unsafe_local=True)
    names = {"network", "host_files", "proc", "thread_bomb"}
    breached = set()
    for attack in ATTACKS:
        if attack.name in names:
            (result,) = asyncio.run(pool.run(attack.source, [Call("solve", (1,))]))
            if str(result.value).startswith("BREACH"):
                breached.add(attack.name)
    pool.close_now()
    assert breached == names


def test_the_list_refuses_a_pool_without_isolation() -> None:
    pool = SandboxPool(1, unsafe_local=True)
    with pytest.raises(ValueError, match="without a sandbox"):
        asyncio.run(run_attacks(pool))
    pool.close_now()
