"""Many turns, with snapshots: take the lift to a floor; it stops where it is told to, and not everywhere."""

import json

from envs.base import Env, Grade, Move, Observation, Step, Task

FLOORS = 12


class Lift(Env):
    description = "take a lift that goes up or down by a few floors at a time (multi-turn, exact)"
    max_turns = 6

    def tasks(self, split):
        if split not in self.splits():
            raise ValueError(f"lift has no split {split!r}; there are: train, test")
        pairs = [
            (a, b) for a in range(FLOORS) for b in range(FLOORS) if a != b and ((a * b) % 4 == 1) == (split == "test")
        ]
        return [self._task(a, b) for a, b in pairs]

    def _task(self, at, goal):
        moves, here = [], at
        while here != goal:
            stride = 3 if abs(goal - here) >= 3 else 1
            sign = 1 if goal > here else -1
            here += sign * stride
            moves.append(Move(f"{'up' if sign > 0 else 'down'} {stride}", f"floor {here}" if here != goal else ""))
        prompt = f"You are on floor {at}. Go to floor {goal}. Say up or down, and 1 or 3."
        return Task(f"{at}-{goal}", prompt, meta={"at": at, "goal": goal}, walkthrough=tuple(moves))

    async def reset(self, task, seed):
        self.floor, self.goal, self.turns = task.meta["at"], task.meta["goal"], 0
        return Observation()

    async def step(self, action):
        self.turns += 1
        way, _, stride = action.strip().partition(" ")
        to = self.floor + {"up": 1, "down": -1}.get(way, 0) * {"1": 1, "3": 3}.get(stride, 0)
        if 0 <= to < FLOORS:
            self.floor = to
        there = self.floor == self.goal
        if there or self.turns == self.max_turns:
            grade = Grade(float(there), {"turns": float(self.turns)})
            return Step("", float(there), terminated=there, truncated=not there, grade=grade)
        return Step(f"floor {self.floor}", 0.0, terminated=False)

    def snapshot(self):
        return json.dumps([self.floor, self.goal, self.turns]).encode()

    def restore(self, state):
        self.floor, self.goal, self.turns = json.loads(state)
