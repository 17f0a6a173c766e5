"""An environment for tests of searches: how good an answer is depends on nothing but the environment's own argument."""

from __future__ import annotations

from envs.base import Grade, SingleTurnEnv, Task


class Scored(SingleTurnEnv):
    """score: the grade of every answer, plus a little for its length so that groups differ; below 0: a bug when grading."""

    def __init__(self, score: float = 0.0) -> None:
        self.score = score

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=f"{split}{i}", prompt=f"{split} {i}") for i in range(20)]

    def grade(self, task: Task, text: str) -> Grade:
        if self.score < 0:
            raise KeyError("a bug in the environment")
        return Grade(value=self.score + len(text) / 1000)
