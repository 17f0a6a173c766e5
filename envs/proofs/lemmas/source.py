"""The generated lemmas as a source of problems, in Coq or in Agda."""

from __future__ import annotations

from collections.abc import Sequence

from envs.proofs.agda import HEADER as AGDA_HEADER
from envs.proofs.lemmas import generator, propositional
from envs.proofs.lemmas.generator import FAMILIES
from envs.proofs.lemmas.lemma import FACTS, header
from envs.proofs.sources import Problem, Source

SPLITS = ("train", "test", "unseen", "larger")
HELD_OUT = ("iff", "mul", "len")


class Generated(Source):
    """families: trained on; null: all but `held_out`, which are the split "unseen". sizes: [least, most]. larger: sizes beyond these in the
    split "larger". count: lemmas a split at most. Raises ValueError, in one sentence."""

    def __init__(
        self,
        families: Sequence[str] | None,
        held_out: Sequence[str],
        sizes: Sequence[int],
        larger: int,
        count: int,
        seed: int,
        agda: bool,
    ) -> None:
        known = tuple(propositional.CONNECTIVES) if agda else tuple(FAMILIES)
        unseen = [f for f in held_out if f in known] if agda and tuple(held_out) == HELD_OUT else list(held_out)
        trained = [f for f in known if f not in unseen] if families is None else list(families)
        for family in (*trained, *unseen):
            if family not in known:
                raise ValueError(f"proofs: there is no family {family!r}; there are: {', '.join(known)}")
        if not trained or set(trained) & set(unseen):
            raise ValueError("proofs: families and held_out must not share a family, and families must not be empty")
        bounds = list(sizes) if isinstance(sizes, list | tuple) else []
        whole = len(bounds) == 2 and all(isinstance(size, int) for size in (*bounds, larger))
        if not whole or not 2 <= bounds[0] <= bounds[1] <= 12 or not 0 <= larger <= 4:
            raise ValueError(
                f"proofs: sizes: [least, most] must lie in 2 to 12 and larger in 0 to 4, not {sizes} and {larger}"
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"proofs: count must be a whole number of at least 1, not {count!r}")
        self.trained, self.unseen, self.agda = tuple(trained), tuple(unseen), agda
        self.sizes = tuple(range(bounds[0], bounds[1] + 1))
        self.beyond = tuple(range(bounds[1] + 1, bounds[1] + 1 + larger))
        self.count, self.seed = count, seed
        self.header = AGDA_HEADER if agda else header()
        self.facts = () if agda else [f"{name} : {fact}" for name, fact in FACTS.items()]

    def splits(self) -> tuple[str, ...]:
        there = {"train": True, "test": True, "unseen": bool(self.unseen), "larger": bool(self.beyond)}
        return tuple(split for split in SPLITS if there[split])

    def problems(self, split: str) -> Sequence[Problem]:
        families = self.unseen if split == "unseen" else self.trained
        sizes = self.beyond if split == "larger" else self.sizes
        found = generator.lemmas(families, sizes, split != "train", self.count, self.seed)
        return [self._problem(f"{split}-{i}", lemma) for i, lemma in enumerate(found)]

    def _problem(self, name: str, lemma: generator.Lemma) -> Problem:
        if self.agda:
            assert lemma.agda is not None
            statement, term = lemma.agda
            return Problem(name, statement, term, family=lemma.family, size=lemma.size)
        return Problem(name, lemma.statement, " ".join(lemma.tactics), lemma.tactics, lemma.family, lemma.size)
