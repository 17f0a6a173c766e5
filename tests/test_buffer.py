"""TraceBuffer: the staleness bound, exactly-once and restarts, under random schedules."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.buffer import TraceBuffer
from actors.types import Group
from envs.base import Task


def group() -> Group:
    return Group(task=Task("t", "p"), traces=[])


def run(
    batch_groups: int, staleness: int, seed: int, refuse: float, batches: int, restart: float = 0.0
) -> tuple[list[list[tuple[int, int]]], set[int]]:
    """Drive a buffer by a random schedule; returns (index, age) of every batch that survived, and refused indices.

    With `restart`, the learner sometimes falls back to its last checkpoint, as after a crash.
    """
    rng = random.Random(seed)
    refused_by_index = {i: rng.random() < refuse for i in range(100_000 // 100)}
    buffer = TraceBuffer(batch_groups, staleness)
    out: list[list[tuple[int, int]]] = []
    refused: set[int] = set()
    running: list[int] = []
    saved = buffer.state()
    saved_batches = 0
    for _ in range(20_000):
        if len(out) == batches:
            break
        choice = rng.random()
        if choice < 0.4 and buffer.may_admit():
            assert buffer.upcoming()
            running.append(buffer.admit())
        elif choice < 0.8 and running:
            index = running.pop(rng.randrange(len(running)))
            no = refused_by_index.get(index, False)
            if no:
                refused.add(index)
            buffer.finish(index, None if no else group())
        elif choice < 0.9 and buffer.may_take():
            batch = buffer.take()
            out.append([(g.index, buffer.version - g.admitted) for g in batch])
            buffer.advance(buffer.version + 1)
            if rng.random() < 0.3:
                saved, saved_batches = buffer.state(), len(out)
        elif rng.random() < restart:
            buffer = TraceBuffer(batch_groups, staleness)
            buffer.load(saved)
            del out[saved_batches:]
            running = []
    return out, refused


@settings(max_examples=60, deadline=None)
@given(
    batch_groups=st.integers(1, 5),
    staleness=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    refuse=st.sampled_from([0.0, 0.4]),
    restart=st.sampled_from([0.0, 0.05]),
)
def test_bound_exactly_once_and_liveness(
    batch_groups: int, staleness: int, seed: int, refuse: float, restart: float
) -> None:
    out, refused = run(batch_groups, staleness, seed, refuse, batches=8, restart=restart)
    assert len(out) == 8, "the schedule starved"
    indices = [index for batch in out for index, _ in batch]
    assert len(indices) == len(set(indices)), "a group was trained on twice"
    assert not set(indices) & refused
    assert all(0 <= age <= staleness for batch in out for _, age in batch), "older than the bound"
    assert all(len(batch) == batch_groups for batch in out)
    # nothing is lost: every index below the oldest still outstanding one was consumed or refused
    if staleness == 0:
        assert set(range(max(indices) + 1)) == set(indices) | {i for i in refused if i <= max(indices)}


def test_synchronous_batches_do_not_depend_on_the_schedule() -> None:
    batches = [[sorted(i for i, _ in b) for b in run(4, 0, seed, 0.0, 6)[0]] for seed in range(20)]
    assert all(b == batches[0] for b in batches)


def test_misuse_is_refused() -> None:
    buffer = TraceBuffer(1, 0)
    buffer.admit()
    with pytest.raises(RuntimeError, match="staleness bound"):
        buffer.admit()
    with pytest.raises(RuntimeError, match="not complete"):
        buffer.take()
    with pytest.raises(ValueError, match="older"):
        buffer.advance(-1)
