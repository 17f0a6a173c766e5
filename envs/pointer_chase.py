"""Pointer chasing: follow a random permutation for h hops. Serial by construction: hop i needs the result of hop i - 1.

    p3 p0 p1 p2 | from s2 hops 3 ->        position i holds where i points to; the answer is the symbol after 3 hops

A model of fixed depth that answers at once can do few hops; one that thinks can do one a step, written (`Task.steps`) or latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from envs.base import Grade, SingleTurnEnv, Task


class PointerChase(SingleTurnEnv):
    """Follow a random permutation of `symbols` symbols for 1 to `hops` hops.

    symbols, hops: size of the task. ramp: training begins with one hop, and with every so many tasks one more may be asked; 0 asks all
    from the start.
    Splits: "train" (endless, all numbers of hops alike), "test" (the same), and "hops1" .. for one
    number each. No permutation of a held-out task with its start and hops is ever trained on.
    """

    description: ClassVar[str] = "follow a random permutation for h hops (serial, exact)"

    def __init__(self, symbols: int = 8, hops: int = 5, ramp: int = 0) -> None:
        if symbols < 2 or hops < 1 or ramp < 0:
            raise ValueError(
                f"pointer_chase needs symbols of at least 2, hops of at least 1 and ramp of at least 0, not {symbols}, {hops} and {ramp}"
            )
        self.symbols, self.hops, self.ramp = symbols, hops, ramp
        self._names = [str(i) for i in range(symbols)]

    def splits(self) -> Sequence[str]:
        return ("train", "test", *(f"hops{h}" for h in range(1, self.hops + 1)))

    def words(self) -> Sequence[str]:
        return (*self._names, "from", *(f"hops{h}" for h in range(1, self.hops + 1)))

    def tasks(self, split: str) -> Iterator[Task]:
        if split not in self.splits():
            raise ValueError(f"pointer_chase has no split {split!r}; there are: {', '.join(self.splits())}")
        held_out = split != "train"
        only = int(split.removeprefix("hops")) if split.startswith("hops") else 0
        rng = np.random.default_rng([self.symbols, self.hops, held_out, only])
        serial = 0
        while True:
            permutations = np.argsort(rng.random((256, self.symbols)), 1).tolist()
            starts = rng.integers(self.symbols, size=256).tolist()
            luck = rng.random(256).tolist()
            for permutation, start, u in zip(permutations, starts, luck, strict=True):
                most = self.hops if held_out or not self.ramp else min(self.hops, 1 + serial // self.ramp)
                h = only or 1 + int(u * most)
                if _held_out(permutation, start) == held_out:
                    yield self._task(f"{split}-{serial}", permutation, start, h)
                    serial += 1

    def grade(self, task: Task, text: str) -> Grade:
        """1 if the last word is the answer."""
        words = text.split()
        return Grade(float(bool(words) and words[-1] == task.answer))

    def _task(self, name: str, permutation: Sequence[int], start: int, hops: int) -> Task:
        path = [start]
        for _ in range(hops):
            path.append(permutation[path[-1]])
        names = self._names
        prompt = " ".join([*(names[i] for i in permutation), "from", names[start], f"hops{hops}"])
        steps = tuple(names[i] for i in path[1:-1])
        return Task(name, prompt, answer=names[path[-1]], steps=steps, meta={"hops": hops})


def _held_out(permutation: Sequence[int], start: int) -> bool:
    """One in sixteen (permutation, start), by a hash that does not change."""
    value = start
    for i in permutation:
        value = (value * 1_000_003 + i + 1) % 2_147_483_647
    return value % 16 == 0
