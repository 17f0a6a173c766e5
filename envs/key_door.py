"""Find the key, then the locked door: a small text world of many turns, exactly graded, in which every move wants a look ahead.

    hall ─┬─ c ─┬─ e                   hall a hall b c c key f door d at hall
          │     └─ f (key)             > c        at c
          └─ a ─── b ─── d (door)      > f        key at hall       a slide leads back to the hall
                                       > a        at a
                                       > b        at b
                                       > d        (open: the goal)

The map is shown once, at the start: the i-th word names the room from which the i-th room is entered. Corridors lead one way, away from
the hall, and the world tells no more than where one stands. Which corridor leads to the key is found by going back from the key, room by
room, until one stands here: as many steps as rooms lie between, written (`Move.steps`) or thought. A wrong turn ends below a room that
the wanted one does not lie below, and there is no way back.
"""

from __future__ import annotations

import pickle
import string
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from envs.base import Env, Grade, Move, Observation, Step, Task

HALL = "hall"
SPLITS = ("train", "test")
MARKS = ("<think>", "</think>")


class KeyDoor(Env):
    """rooms: beside the hall, at most 26. depth: [least, most] corridors from the hall to the key, and to the door.

    slack: moves more than the shortest way, before the episode is cut. key_reward: part of the reward that finding the key earns; the
    rest is for the door. No map of a held-out task is ever trained on.
    """

    description: ClassVar[str] = "find the key, then the locked door, on a map of one-way corridors (multi-turn, exact)"

    def __init__(self, rooms: int = 8, depth: Sequence[int] = (3, 3), slack: int = 0, key_reward: float = 0.0) -> None:
        least, most = (int(d) for d in depth)
        if not 3 <= rooms <= 26 or not 1 <= least <= most or most + 1 > rooms or slack < 0:
            raise ValueError(
                "key_door needs 3 to 26 rooms, depth: [least, most] with 1 <= least <= most < rooms and slack of at least 0, not "
                f"rooms {rooms}, depth {[least, most]} and slack {slack}"
            )
        if not 0.0 <= key_reward < 1.0:
            raise ValueError(f"key_door: key_reward is {key_reward}, it must lie in [0, 1)")
        self.rooms, self.least, self.most, self.slack, self.key_reward = rooms, least, most, slack, key_reward
        self.max_turns = 2 * most + slack
        self._names = list(string.ascii_lowercase[:rooms])
        self._task: Task | None = None
        self._at, self._has_key, self._moves = HALL, False, 0

    def splits(self) -> Sequence[str]:
        return SPLITS

    def words(self) -> Sequence[str]:
        return (HALL, *self._names, "key", "door", "at", "no", "locked", "open", *MARKS)

    def tasks(self, split: str) -> Iterator[Task]:
        if split not in SPLITS:
            raise ValueError(f"key_door has no split {split!r}; there are: {', '.join(SPLITS)}")
        held_out = split != "train"
        rng = np.random.default_rng([self.rooms, self.least, self.most, held_out, 0x6B])
        serial = 0
        while True:
            parents, depths = grow(self.rooms, self.most, rng)
            if (_hash(parents) % 16 == 0) != held_out:
                continue
            fit = [i for i, d in enumerate(depths) if self.least <= d <= self.most]
            if len(fit) < 2:
                continue
            key, door = (int(i) for i in rng.choice(fit, 2, replace=False))
            if key in _way(door, parents) or door in _way(key, parents):
                continue  # one would be found on the way to the other
            yield self._make(f"{split}-{serial}", parents, key, door)
            serial += 1

    def solution(self, task: Task) -> list[str]:
        """For the conformance suite: the moves of the walkthrough."""
        return [move.action for move in task.walkthrough or ()]

    async def reset(self, task: Task, seed: int) -> Observation:
        self._task, self._at, self._has_key, self._moves = task, HALL, False, 0
        return Observation()

    async def step(self, action: str) -> Step:
        """An action is the name of the room to go to, one corridor away; anything else stays and costs the move."""
        if self._task is None:
            raise RuntimeError("step() before reset()")
        world = self._task.meta
        room = action.strip()
        self._moves += 1
        cut = self._moves >= world["limit"]
        if world["parents"].get(room) != self._at:
            return self._told(f"no at {self._at}", cut)
        self._at = room
        if room == world["key"] and not self._has_key:
            self._has_key, self._at = True, HALL
            return self._told(f"key at {HALL}", cut, self.key_reward)
        if room == world["door"] and self._has_key:
            grade = Grade(1.0, components={"key": 1.0, "moves": float(self._moves)})
            return Step("open", 1.0 - self.key_reward, terminated=True, grade=grade)
        return self._told(f"{'locked' if room == world['door'] else 'at'} {room}", cut)

    def snapshot(self) -> bytes:
        if self._task is None:
            raise RuntimeError("snapshot() before reset()")
        return pickle.dumps((self._task, self._at, self._has_key, self._moves))

    def restore(self, state: bytes) -> None:
        self._task, self._at, self._has_key, self._moves = pickle.loads(state)

    def _told(self, observation: str, cut: bool, reward: float = 0.0) -> Step:
        if not cut:
            return Step(observation, reward, terminated=False)
        grade = Grade(0.0, components={"key": float(self._has_key), "moves": float(self._moves)})
        return Step(observation, reward, terminated=False, truncated=True, grade=grade)

    def _make(self, name: str, parents: Sequence[int], key: int, door: int) -> Task:
        names = [*self._names, HALL]  # the hall is number -1
        moves: list[Move] = []
        for target in (key, door):
            way = _way(target, parents)
            for i, room in enumerate(way):
                back = tuple(names[r] for r in reversed(way[i:]))
                last = room == target
                observation = ("" if target == door else f"key at {HALL}") if last else f"at {names[room]}"
                moves.append(Move(names[room], observation, back))
        prompt = " ".join([*(names[p] for p in parents), "key", names[key], "door", names[door], "at", HALL])
        meta = {
            "parents": {names[i]: names[p] for i, p in enumerate(parents)},
            "key": names[key],
            "door": names[door],
            "limit": len(moves) + self.slack,
        }
        answer = " ".join(move.action for move in moves)
        return Task(name, prompt, answer, walkthrough=tuple(moves), meta=meta)


def grow(rooms: int, most: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """(room from which each room is entered, corridors from the hall) of a random tree; the hall is -1. most: largest depth."""
    order = rng.permutation(rooms).tolist()
    parents, depths = [-1] * rooms, [1] * rooms
    for i, room in enumerate(order):
        above = [-1, *(r for r in order[:i] if depths[r] < most)]
        parents[room] = above[int(rng.integers(len(above)))]
        depths[room] = 1 if parents[room] < 0 else depths[parents[room]] + 1
    return parents, depths


def _way(room: int, parents: Sequence[int]) -> list[int]:
    """The rooms from the hall to this one, the hall left out."""
    way = []
    while room >= 0:
        way.append(room)
        room = parents[room]
    return way[::-1]


def _hash(parents: Sequence[int]) -> int:
    value = 7
    for p in parents:
        value = (value * 1_000_003 + p + 2) % 2_147_483_647
    return value
