"""Generated lemmas: the prover and the rewriting by hand, splits, words, and that every lemma's own proof is one."""

from __future__ import annotations

from random import Random

import pytest

from envs.proofs import wording
from envs.proofs.backend import Theorem
from envs.proofs.coq import CoqBackend
from envs.proofs.lemmas import generator, propositional, rewriting
from envs.proofs.lemmas.generator import FAMILIES, is_held_out, lemmas
from envs.proofs.lemmas.lemma import Lemma, header


def every(size: tuple[int, ...], most: int) -> list[Lemma]:
    return [lemma for family in FAMILIES for held in (False, True) for lemma in lemmas((family,), size, held, most, 0)]


def prove(formula: propositional.Formula) -> list[str] | None:
    proof = propositional._Prover().prove((), formula, frozenset())
    return None if proof is None else propositional._tactics(proof)


def test_the_prover_by_hand() -> None:
    both: propositional.Formula = ("->", ("/\\", "p", "q"), ("/\\", "q", "p"))
    assert prove(both) == [
        *(
            "intros h1 .",
            "split .",
            "destruct h1 as [ h2 h3 ] .",
            "exact h3 .",
            "destruct h1 as [ h2 h3 ] .",
            "exact h2 .",
        ),
    ]
    assert prove(("->", "p", "q")) is None
    excluded: propositional.Formula = ("\\/", "p", ("~", "p"))
    assert prove(excluded) is None
    assert prove(("~", ("~", excluded))) == [
        *("intros h1 .", "apply h1 .", "right .", "intros h2 .", "apply h1 .", "left .", "exact h2 ."),
    ]
    assert propositional.shown(("->", ("->", "p", "q"), ("~", ("/\\", "p", "q")))) == "( p -> q ) -> ~ ( p /\\ q )"
    assert propositional.shown(("/\\", ("\\/", "p", "q"), ("/\\", "p", "q"))) == "( p \\/ q ) /\\ p /\\ q"
    assert propositional.shown(("<->", ("<->", "p", "q"), ("->", "p", "q"))) == "( p <-> q ) <-> ( p -> q )"


def test_rewriting_by_hand() -> None:
    term: rewriting.Term = ("rev", ("++", ("++", "l", "m"), ("rev", "k")))
    once = rewriting.normal(term, rewriting.RULES["revA"])
    assert rewriting.shown(once) == "rev ( rev k ) ++ rev m ++ rev l"
    assert rewriting.shown(rewriting.normal(once, rewriting.RULES["revR"])) == "k ++ rev m ++ rev l"
    assert rewriting.shown(("+", ("+", "a", "b"), ("*", ("+", "a", "0"), ("S", "b")))) == "a + b + ( a + 0 ) * S b"
    assert rewriting.bound(("map f", ("++", "l", "m"))) == "( f : nat -> nat ) ( l m : list nat )"


def test_lemmas_are_distinct_repeatable_and_split_by_statement() -> None:
    train, test = (lemmas(tuple(FAMILIES), (3, 4), held, 400, 0) for held in (False, True))
    assert len(train) == len(test) == 400
    statements = {lemma.statement for lemma in (*train, *test)}
    assert len(statements) == 800
    assert all(is_held_out(lemma.statement) for lemma in test)
    assert not any(is_held_out(lemma.statement) for lemma in train)
    lemmas.cache_clear()
    assert list(lemmas(tuple(FAMILIES), (3, 4), False, 400, 0)) == list(train)
    assert {lemma.family for lemma in train} == set(FAMILIES)
    for family in FAMILIES:
        made = [generator.FAMILIES[family](family, 4, Random(i)) for i in range(100)]
        assert sum(lemma is not None for lemma in made) > 1, family


def test_no_lemma_is_of_two_families_or_sizes() -> None:
    owner: dict[str, tuple[str, int]] = {}
    for size in (2, 3, 4, 5, 6):
        for lemma in every((size,), 30):
            kind = lemma.family, lemma.size
            assert kind[1] == size
            assert owner.setdefault(lemma.statement, kind) == kind, lemma


def test_every_word_is_in_the_vocabulary() -> None:
    words = set(wording.WORDS)
    for lemma in every((3, 6, 8), 12):
        assert set(lemma.statement.split()) <= words, lemma
        assert set(" ".join(lemma.tactics).split()) <= words, lemma


def _unproven(made: list[Lemma]) -> list[Lemma]:
    """Those whose own proof is none, by the check that counts."""
    backend, facts, wrong = CoqBackend.shared(), header(), []
    for start in range(0, len(made), 32):
        batch = made[start : start + 32]
        verdicts = backend.certify([(Theorem(lemma.statement, facts), lemma.tactics) for lemma in batch])
        wrong += [lemma for lemma, verdict in zip(batch, verdicts, strict=True) if not verdict.proved]
    return wrong


def test_own_proofs_of_some() -> None:
    assert not _unproven(every((3, 5), 2))


@pytest.mark.slow
def test_own_proofs_of_a_thousand() -> None:
    """All 5,000: python -m benchmarks.lemmas --count 5000"""
    made = every((2, 3, 4, 5, 6, 7, 8), 34)
    assert len(made) >= 1000
    assert not _unproven(made)
