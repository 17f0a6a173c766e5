"""A small multi-turn environment for tests: guess a number from hints. Fails on purpose when asked to."""

from __future__ import annotations

from envs.base import Env, InfraError, Observation, Step, Task


class Guess(Env):
    """Each turn's action is a guess; any text is answered, so that a random model plays all turns."""

    max_turns = 3

    def __init__(self, lose: int = 0, crash: bool = False) -> None:
        self.lose, self.crash = lose, crash
        self.turn = 0

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=f"{split}{i}", prompt=[{"role": "user", "content": f"guess {i}"}]) for i in range(20)]

    async def reset(self, task: Task, seed: int) -> Observation:
        self.turn = 0
        return Observation()

    async def step(self, action: str) -> Step:
        self.turn += 1
        if self.crash:
            raise KeyError("a bug in the environment")
        if self.lose and self.turn == 2:
            raise InfraError("the machinery lost this episode")
        return Step(observation="higher", reward=len(action) / 100, terminated=self.turn == 3)
