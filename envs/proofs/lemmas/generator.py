"""The stream of distinct lemmas of some families and sizes, and which split each belongs to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random

from envs.proofs.lemmas import inductions, propositional, rewriting, trees
from envs.proofs.lemmas.lemma import Lemma

FAMILIES: dict[str, Callable[[str, int, Random], Lemma | None]] = {
    **dict.fromkeys(propositional.CONNECTIVES, propositional.lemma),
    **dict.fromkeys(rewriting.FAMILIES, rewriting.lemma),
    **dict.fromkeys(trees.FAMILIES, trees.lemma),
    **dict.fromkeys(inductions.FAMILIES, inductions.lemma),
}
"""Family -> what makes one attempt at a lemma."""
_PATIENCE = 400
"""Attempts without a new lemma after which a family and size counts as used up."""
TEST_SHARE = 4
"""One lemma in so many is held out."""


@lru_cache(maxsize=64)
def lemmas(families: tuple[str, ...], sizes: tuple[int, ...], held_out: bool, most: int, seed: int) -> Sequence[Lemma]:
    """At most so many distinct lemmas, families and sizes taking turns; fewer where there are no more.

    held_out: those of the test split; a lemma is in it or not by a hash of its statement, whatever the other arguments are.
    """
    found: list[Lemma] = []
    seen: set[str] = set()
    turns = [(family, size, Random(f"{seed} {family} {size}")) for size in sizes for family in families]
    while turns and len(found) < most:
        for turn in list(turns):
            lemma = _new(*turn, held_out, seen)
            if lemma is None:
                turns.remove(turn)
            elif len(found) < most:
                found.append(lemma)
    return found


def is_held_out(statement: str) -> bool:
    return zlib.crc32(statement.encode()) % TEST_SHARE == 0


def _new(family: str, size: int, rng: Random, held_out: bool, seen: set[str]) -> Lemma | None:
    for _ in range(_PATIENCE):
        lemma = FAMILIES[family](family, size, rng)
        if lemma and lemma.statement not in seen and is_held_out(lemma.statement) == held_out:
            seen.add(lemma.statement)
            return lemma
    return None
