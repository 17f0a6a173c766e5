"""EnvWorker: task orders and faults, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.env_worker import EnvFault, EnvWorker
from envs.base import InfraError

ENVS = """
from envs.base import Grade, InfraError, SingleTurnEnv, Task

class Listed(SingleTurnEnv):
    def tasks(self, split):
        return [Task(id=f"{split}{i}", prompt="p") for i in range(5)]
    def grade(self, task, text):
        if text == "lost":
            raise InfraError("worker died")
        if text == "bug":
            raise KeyError("oops")
        return Grade(value=float(text == "good"))

class Streamed(Listed):
    def tasks(self, split):
        return (Task(id=f"{split}{i}", prompt="p") for i in range(7))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "worker_envs.py").write_text(ENVS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(tmp_path)


def ids(worker: EnvWorker, split: str, start: int, count: int, seed: int | None) -> list[str]:
    return [task.id for task in asyncio.run(worker.tasks(split, start, count, seed))]


def test_a_finite_split_is_reshuffled_every_epoch_and_can_be_entered_anywhere(folder: str) -> None:
    worker = EnvWorker("worker_envs:Listed", {}, [folder])
    order = ids(worker, "train", 0, 15, 1)
    epochs = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == [f"train{i}" for i in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert ids(worker, "train", 7, 6, 1) == order[7:13]
    assert ids(worker, "train", 0, 15, 2) != order
    assert ids(worker, "test", 0, 99, None) == [f"test{i}" for i in range(5)]


def test_a_stream_keeps_its_order_starts_again_and_can_be_rewound(folder: str) -> None:
    worker = EnvWorker("worker_envs:Streamed", {}, [folder])
    endless = [f"train{i % 7}" for i in range(30)]
    assert ids(worker, "train", 0, 10, 1) == endless[:10]
    assert ids(worker, "train", 12, 5, 1) == endless[12:17]
    assert ids(worker, "train", 3, 4, 1) == endless[3:7]
    assert ids(worker, "test", 0, 99, None) == [f"test{i}" for i in range(7)]
    assert ids(worker, "test", 0, 99, None) == [f"test{i}" for i in range(7)]


def test_lost_grades_are_kept_apart_from_bad_ones_and_from_bugs(folder: str) -> None:
    worker = EnvWorker("worker_envs:Listed", {}, [folder])
    task = asyncio.run(worker.tasks("train", 0, 1, 1))[0]
    good, bad, lost = asyncio.run(worker.grade(task, ["good", "bad", "lost"], 0))
    assert not isinstance(good, InfraError)
    assert not isinstance(bad, InfraError)
    assert (good.reward, bad.reward) == (1.0, 0.0)
    assert isinstance(lost, InfraError)
    with pytest.raises(EnvFault, match="worker_envs:Listed raised KeyError in grading an answer to task train"):
        asyncio.run(worker.grade(task, ["bug"], 0))


def test_an_episode_of_a_worker_that_died_is_lost_and_not_a_fault(folder: str) -> None:
    worker = EnvWorker("worker_envs:Listed", {}, [folder])
    with pytest.raises(InfraError, match="7/0 was lost when its worker died"):
        asyncio.run(worker.step("7/0", "good"))
