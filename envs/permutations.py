"""Composition of permutations, the word problem of S5: which permutation is a row of them, one applied after another?

    21345 23451 from 3 ->            the image of symbol 3: 21345 keeps it, 23451 makes it 4
    21345 23451 product ->           the whole permutation: 32451 (1 goes to 2 and on to 3, ...)

A permutation is written as one word, the images of 1, 2, ... in order; they are applied from left to right. For five
symbols and more the problem is complete for NC1 (Barrington 1989): no circuit of constant depth solves all lengths,
so a model of fixed depth that answers at once must fail from some length on, while one running product a step,
written (`Task.steps`) or latent, suffices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from envs.base import Grade, SingleTurnEnv, Task

TRAIN, TEST, LENGTHS = "train", "test", "lengths"
FEW = 600
"""Rows of one length that the constructor still counts, to be sure that both splits have some."""


class Permutations(SingleTurnEnv):
    """symbols: 2 to 6. lengths: fewest and most permutations in a row. generators: "all" permutations, or "two" that
    make them all (the swap of the first two symbols and the cycle). asked: "product" or "image" of one symbol. ramp:
    training begins with the shortest rows, and with every so many tasks one more permutation may come; 0 asks all
    lengths from the start.

    Splits: "train" (endless, all lengths alike), "test" (the same), and "length2" .. for one length each. Of all rows
    (with their symbol) one in sixteen is test's, another one the lengths'; neither is ever trained on.
    """

    description: ClassVar[str] = "compose a row of permutations (word problem of S5; serial, exact)"

    def __init__(
        self,
        symbols: int = 5,
        lengths: Sequence[int] = (2, 6),
        generators: str = "all",
        asked: str = "product",
        ramp: int = 0,
    ) -> None:
        if not 2 <= symbols <= 6 or ramp < 0:
            raise ValueError(
                f"permutations needs symbols of 2 to 6 and ramp of at least 0, not symbols {symbols} and ramp {ramp}"
            )
        if len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(
                f"permutations needs lengths: [fewest, most], at least 1 and in order, not {list(lengths)}"
            )
        if generators not in ("all", "two") or asked not in ("product", "image"):
            raise ValueError(
                "permutations knows generators all and two, asked product and image, "
                f"not generators {generators!r} and asked {asked!r}"
            )
        self.symbols, self.asked, self.ramp = symbols, asked, ramp
        self.shortest, self.longest = lengths
        every = list(itertools.permutations(range(symbols)))
        swap, cycle = (1, 0, *range(2, symbols)), (*range(1, symbols), 0)
        self._every = every
        self._generators = every if generators == "all" else list(dict.fromkeys([swap, cycle]))
        for length in range(self.shortest, self.longest + 1):
            self._refuse_too_few(length)

    def splits(self) -> Sequence[str]:
        return ("train", "test", *(f"length{n}" for n in range(self.shortest, self.longest + 1)))

    def words(self) -> Sequence[str]:
        ends = ("product",) if self.asked == "product" else ("from", *map(str, range(1, self.symbols + 1)))
        return (*map(word, self._every), *ends)

    def tasks(self, split: str) -> Iterator[Task]:
        if split not in self.splits():
            raise ValueError(f"permutations has no split {split!r}; there are: {', '.join(self.splits())}")
        only = int(split.removeprefix("length")) if split.startswith("length") else 0
        kind = LENGTHS if only else split
        seed = (TRAIN, TEST, LENGTHS).index(kind)
        rng = np.random.default_rng([self.symbols, self.longest, len(self._generators), seed, only])
        serial = 0
        while True:
            rows = rng.integers(len(self._generators), size=(256, self.longest)).tolist()
            starts = rng.integers(self.symbols, size=256).tolist()
            luck = rng.random(256).tolist()
            for row, start, u in zip(rows, starts, luck, strict=True):
                most = self.longest if kind != TRAIN or not self.ramp else self.shortest + serial // self.ramp
                choices = min(most, self.longest) + 1 - self.shortest
                row = row[: only or self.shortest + int(u * choices)]
                start = start if self.asked == "image" else 0
                if _owner(row, start) == kind:
                    yield self._task(f"{split}-{serial}", row, start)
                    serial += 1

    def grade(self, task: Task, text: str) -> Grade:
        """1 if the last word is the answer."""
        words = text.split()
        return Grade(float(bool(words) and words[-1] == task.answer))

    def _task(self, name: str, row: Sequence[int], start: int) -> Task:
        chosen = [self._generators[i] for i in row]
        running = tuple(range(self.symbols))
        so_far: list[tuple[int, ...]] = []
        for permutation in chosen:
            running = tuple(permutation[i] for i in running)
            so_far.append(running)
        spoken = " ".join(map(word, chosen))
        if self.asked == "product":
            prompt, said = f"{spoken} product", [word(p) for p in so_far]
        else:
            prompt, said = f"{spoken} from {start + 1}", [str(p[start] + 1) for p in so_far]
        return Task(name, prompt, answer=said[-1], steps=tuple(said[:-1]), meta={"length": len(row)})

    def _refuse_too_few(self, length: int) -> None:
        starts = self.symbols if self.asked == "image" else 1
        if len(self._generators) ** length * starts > FEW:
            return
        rows = itertools.product(range(len(self._generators)), repeat=length)
        if len({_owner(row, start) for row in rows for start in range(starts)}) < 3:
            raise ValueError(
                f"permutations: there are too few rows of length {length} to hold some out; raise the first of lengths"
            )


def word(permutation: Sequence[int]) -> str:
    """The images of 1, 2, ... as digits."""
    return "".join(str(i + 1) for i in permutation)


def _owner(row: Sequence[int], start: int) -> str:
    """Which splits a row may appear in, by a hash that does not change: one in sixteen each for test and for the
    lengths."""
    value = start + 1
    for i in row:
        value = (value * 1_000_003 + i + 1) % 2_147_483_647
    return {0: TEST, 1: LENGTHS}.get(value * 2_654_435_761 % 4_294_967_296 >> 28, TRAIN)
