"""A walk on a ring, small enough that every thought can be listed: which moves lead from here to there?

    1 4 2 3 3 ->  <think> 3 </think> 4          1 + 3 = 4
                  <think> 2 2 2 2 </think> 4    1 + 2 + 2 + 2 + 2 = 9, which is 4 modulo 5
                  <think> 0 2 1 </think> 3      0 and 1 are not allowed here, and leave the state as it is

The prompt names the source, the goal and three allowed step sizes, all as digits whose place tells their role. A thought is a row of
moves; an allowed move is added to the state modulo the number of states, any other word leaves the state as it is. The answer is the
state after the moves, and the good answer y* is the goal. Many thoughts lead to each goal, so p(thought | prompt, y*) has many modes;
and with a dozen words and four moves it can be added up exactly.

"pretrain" is for a model that is to read moves but not to plan them: its thoughts are a mixture (see `MIXTURE`), and its answers are the
states that the thoughts really lead to. In one of ten tasks the prompt shows the answer, in the format `GIVEN`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from random import Random
from typing import ClassVar

from envs.base import Grade, SingleTurnEnv, Task

GIVEN = "{prompt} given {answer}"
"""The prompt that shows the answer: what a prompted posterior q(z | x, y) reads."""
MARKS = ("<think>", "</think>")
SPLITS = ("train", "test", "pretrain")
ALLOWED = 3
"""Step sizes a prompt allows; two of them may be the same."""
MIXTURE = {"right": 0.12, "random": 0.46, "truncated": 0.16, "irrelevant": 0.16, "empty": 0.10}
"""Thoughts of "pretrain": a path to the goal, random digits, a beginning of a path to the goal, a path of another prompt, nothing."""
GIVEN_SHARE = 0.1
"""Share of "pretrain" whose prompt shows the answer, with a path that leads to it."""


class Walk(SingleTurnEnv):
    """states: on the ring (3 to 7). moves: the longest thought, in moves (1 to 6).

    Splits: "train" and "test" (every prompt once, in an order that looks random, a good path in `steps`) and "pretrain" (endless). A
    prompt belongs to one of them only: with 5 states and 4 moves 1174 are train's, 372 test's and 1554 pretrain's. Left out are prompts
    that allow nothing but 0, and those whose goal is out of reach.
    """

    description: ClassVar[str] = "find moves on a ring that lead to the goal; every thought can be listed (exact)"

    def __init__(self, states: int = 5, moves: int = 4) -> None:
        if not 3 <= states <= 7 or not 1 <= moves <= 6:
            raise ValueError(f"walk needs 3 to 7 states and 1 to 6 moves, not {states} states and {moves} moves")
        self.states, self.moves = states, moves

    def splits(self) -> Sequence[str]:
        return SPLITS

    def words(self) -> Sequence[str]:
        return (*map(str, range(self.states)), "given", *MARKS)

    def tasks(self, split: str) -> Iterable[Task]:
        if split not in SPLITS:
            raise ValueError(f"walk has no split {split!r}; there are: {', '.join(SPLITS)}")
        prompts = _prompts(self.states, self.moves)[split]
        if split == "pretrain":
            return (self._pretraining(serial, prompts) for serial in itertools.count())
        return [self._task(f"{split}-{i}", prompt) for i, prompt in enumerate(prompts)]

    def solution(self, task: Task) -> list[str]:
        """For the conformance suite: the goal, which the answer of a pretraining task need not be."""
        return [task.meta["goal"]]

    def grade(self, task: Task, text: str) -> Grade:
        """1 if the answer is the goal."""
        return Grade(float(text.strip() == task.meta["goal"]))

    def outcome(self, prompt: str, thought: Sequence[str]) -> str:
        """The state to which a thought leads, whatever its words are."""
        source, _, *allowed = prompt.split()[: 2 + ALLOWED]
        return str(sum([int(word) for word in thought if word in allowed], int(source)) % self.states)

    def _task(self, name: str, prompt: tuple[int, ...]) -> Task:
        rng = Random(f"walk {self.states} {self.moves} {prompt}")
        source, goal, *allowed = prompt
        path = rng.choice(_paths(self.states, self.moves, tuple(sorted(set(allowed))), (goal - source) % self.states))
        spoken = " ".join(map(str, prompt))
        return Task(
            name, spoken, answer=str(goal), steps=tuple(map(str, path)), meta={"goal": str(goal), "kind": "right"}
        )

    def _pretraining(self, serial: int, prompts: Sequence[tuple[int, ...]]) -> Task:
        """One task of "pretrain". An answer that is shown is the goal in half of the tasks, and any other state in the rest."""
        rng = Random(f"walk {self.states} {self.moves} pretrain {serial}")
        prompt = prompts[int(rng.random() * len(prompts))]
        source, goal, *allowed = prompt
        spoken = " ".join(map(str, prompt))
        given = rng.random() < GIVEN_SHARE
        kind = "right" if given else rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        if kind == "irrelevant":
            source, goal, *allowed = prompts[int(rng.random() * len(prompts))]
        if given and rng.random() < 0.5:
            goal = int(rng.random() * self.states)
        paths = _paths(self.states, self.moves, tuple(sorted(set(allowed))), (goal - source) % self.states)
        if given and not paths:  # few moves, and a state out of their reach
            goal = prompt[1]
            paths = _paths(self.states, self.moves, tuple(sorted(set(allowed))), (goal - source) % self.states)
        path = list(rng.choice(paths))
        if kind == "random":
            path = [int(rng.random() * self.states) for _ in range(1 + int(rng.random() * self.moves))]
        elif kind == "truncated":
            path = path[: int(rng.random() * len(path))]
        elif kind == "empty":
            path = []
        steps = tuple(map(str, path))
        answer = self.outcome(spoken, steps)
        shown = GIVEN.format(prompt=spoken, answer=answer) if given else spoken
        meta = {"goal": str(prompt[1]), "kind": "given" if given else kind}
        return Task(f"pretrain-{serial}", shown, answer=answer, steps=steps, meta=meta)


@lru_cache(maxsize=64)
def _prompts(states: int, moves: int) -> dict[str, list[tuple[int, ...]]]:
    """Every prompt that can be solved, by split: one in eight is test's, three in eight are train's, the rest is pretrain's."""
    found: dict[str, list[tuple[int, ...]]] = {split: [] for split in SPLITS}
    every = list(itertools.product(range(states), repeat=2 + ALLOWED))
    for prompt in sorted(every, key=_hash):
        source, goal, *allowed = prompt
        if any(allowed) and _paths(states, moves, tuple(sorted(set(allowed))), (goal - source) % states):
            place = _hash(prompt) % 8
            found["test" if place == 0 else "train" if place < 4 else "pretrain"].append(prompt)
    return found


@lru_cache(maxsize=4096)
def _paths(states: int, moves: int, allowed: tuple[int, ...], distance: int) -> list[tuple[int, ...]]:
    """Every row of one to `moves` allowed moves, or of none at all, that goes so far on the ring."""
    rows = (row for n in range(moves + 1) for row in itertools.product(allowed, repeat=n))
    return [row for row in rows if sum(row) % states == distance]


def _hash(prompt: Sequence[int]) -> int:
    """A hash that does not change."""
    value = 7
    for i in prompt:
        value = (value * 1_000_003 + i + 1) % 2_147_483_647
    return value * 2_654_435_761 % 4_294_967_296 >> 8
