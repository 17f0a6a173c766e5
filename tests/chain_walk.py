"""A three-state decision process for tests, with a known optimum: a reward now or a larger one three moves away."""

from __future__ import annotations

from envs.base import Env, Observation, Step, Task

STATES = ("A", "B", "C")
TEMPTATION, PRIZE = 0.3, 1.0


class ChainWalk(Env):
    """From A "left" ends with 0.3 and "right" leads to B; from B "left" leads back and "right" to C; from C "left" ends with nothing and
    "right" with 1. Any other word loses a move. Episodes begin in each state alike; the best policy goes right from all of them."""

    max_turns = 6

    def __init__(self) -> None:
        self.at = 0

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=f"{split}{i}", prompt=STATES[i % 3]) for i in range(96)]

    def words(self) -> tuple[str, ...]:
        return (*STATES, "left", "right")

    async def reset(self, task: Task, seed: int) -> Observation:
        self.at = STATES.index(str(task.prompt))
        return Observation()

    async def step(self, action: str) -> Step:
        if action == "left" and self.at != 1:
            return Step("", TEMPTATION if self.at == 0 else 0.0, terminated=True)
        if action == "right" and self.at == 2:
            return Step("", PRIZE, terminated=True)
        self.at += {"right": 1, "left": -1}.get(action, 0)
        return Step(STATES[self.at], 0.0, terminated=False)
