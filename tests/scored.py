"""An environment for tests of searches: how good an answer is depends on little but the environment's own argument."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from envs.base import Grade, SingleTurnEnv, Task


class Scored(SingleTurnEnv):
    """score: the grade of every answer, plus a little for its length so that groups differ; below 0: a bug when grading.

    gates: a folder, where a process whose score is below 2 writes SCORE.waiting after `free` answers (with a bug: at
    once) and waits for SCORE.open.
    """

    graded: ClassVar[int] = 0

    def __init__(self, score: float = 0.0, gates: str = "", free: int = 0) -> None:
        self.score, self.gates, self.free = score, gates, free

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=f"{split}{i}", prompt=f"{split} {i}") for i in range(20)]

    def grade(self, task: Task, text: str) -> Grade:
        Scored.graded += 1
        if self.gates and (self.score < 0 or (self.score < 2 and Scored.graded > self.free)):
            (Path(self.gates) / f"{self.score}.waiting").touch()
            while not (Path(self.gates) / f"{self.score}.open").exists():
                time.sleep(0.1)
        if self.score < 0:
            raise KeyError("a bug in the environment")
        return Grade(value=self.score + len(text) / 1000)
