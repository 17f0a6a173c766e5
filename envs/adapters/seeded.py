"""Splits for environments that know only seeds: which split a seed belongs to is decided by how its episode opens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

from envs.base import Task

SPLITS = ("train", "test")
EVERY = 8
"""One in so many openings is held out."""


def seeded_tasks(
    name: str, split: str, opening: Callable[[int], str], instructions: str, sizes: Sequence[int]
) -> Iterator[Task]:
    """Tasks of a split, one for each opening that no smaller seed has, as long as new ones are found.

    opening: the first observation under a seed, at best the whole of what is shown. instructions: put before it. sizes: tasks of
    train and test. Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"{name} has no split {split!r}; there are: {', '.join(SPLITS)}")
    held_out = split == "test"
    return _stream(split, opening, instructions, held_out, sizes[held_out])


def _stream(split: str, opening: Callable[[int], str], instructions: str, held_out: bool, size: int) -> Iterator[Task]:
    seen: set[str] = set()
    seed = told = 0
    last = -1
    while told < size and seed - last <= 100 * EVERY:  # so many seeds in vain: there are no more openings
        text = opening(seed)
        if (zlib.crc32(text.encode("utf-8", "replace")) % EVERY == 0) == held_out and text not in seen:
            seen.add(text)
            told, last = told + 1, seed
            prompt = f"{instructions}\n\n{text}" if instructions else text
            yield Task(f"{split}-{seed}", [{"role": "user", "content": prompt}], meta={"seed": seed})
        seed += 1
