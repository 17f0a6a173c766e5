"""Equations of which each is proven by induction on one variable, around random expressions that the induction leaves alone.

Their right sides are what rewriting would change, so that none of them is a lemma of `envs.proofs.lemmas.rewriting` too.
"""

from __future__ import annotations

from random import Random

from envs.proofs.lemmas.lemma import Lemma
from envs.proofs.lemmas.rewriting import Term, binders, bound, shown

FAMILIES = ("natind", "listind")
_NAT = ("assoc", "succ", "both")
_LIST = ("assoc", "len", "map")


def lemma(family: str, size: int, rng: Random) -> Lemma | None:
    """size: operations on the right side."""
    right, left = _nat(size, rng) if family == "natind" else _list(size, rng)
    names = binders(right)
    variable = "a" if family == "natind" else "l"
    pattern = "a IH" if family == "natind" else "x l IH"
    tactics = (
        f"intros {' '.join(names)} .",
        f"induction {variable} as [ | {pattern} ] .",
        *("reflexivity .", "simpl .", "rewrite IH .", "reflexivity ."),
    )
    return Lemma(family, size, f"forall {bound(right)} , {shown(left)} = {shown(right)}", tactics)


def _nat(size: int, rng: Random) -> tuple[Term, Term]:
    """(right, left) of an equation."""
    kind = rng.choice(_NAT) if size >= 2 else "succ"
    lifts = 0 if kind == "assoc" else size - 1 if kind == "succ" else 1 + int(rng.random() * (size - 2))
    rest = size - 1 - lifts
    if kind != "assoc" and rest == 0:
        inner: Term = "b"
        raised: Term = ("+", "a", "b")
    else:
        rest = max(rest, 1)
        first = int(rng.random() * rest)
        one, two = _sum("+", first, "bcd", rng), _sum("+", rest - 1 - first, "bcd", rng)
        inner, raised = ("+", one, two), ("+", ("+", "a", one), two)
    for _ in range(max(lifts, kind != "assoc")):
        inner, raised = ("S", inner), ("S", raised)
    return _ordered(("+", "a", inner), raised, "abcd")


def _list(size: int, rng: Random) -> tuple[Term, Term]:
    """(right, left) of an equation."""
    kind = rng.choice(_LIST)
    if kind == "assoc":
        rest = max(size - 1, 1)
        first = int(rng.random() * rest)
        one, two = _sum("++", first, "mkj", rng), _sum("++", rest - 1 - first, "mkj", rng)
        return _ordered(("++", ("++", "l", one), two), ("++", "l", ("++", one, two)), "lmkj")
    inner = _sum("++", max(size - 2, 0), "mkj", rng)
    if kind == "len":
        return _ordered(("len", ("++", "l", inner)), ("+", ("len", "l"), ("len", inner)), "lmkj")
    return _ordered(("map f", ("++", "l", inner)), ("++", ("map f", "l"), ("map f", inner)), "lmkj")


def _sum(operation: str, size: int, names: str, rng: Random) -> Term:
    if size <= 0:
        return rng.choice(names)
    first = int(rng.random() * size)
    return operation, _sum(operation, first, names, rng), _sum(operation, size - 1 - first, names, rng)


def _ordered(one: Term, other: Term, names: str) -> tuple[Term, Term]:
    """Variables renamed in the order in which they appear in the first."""
    found = [name for name in binders(one) if name != "f"]
    renamed: dict[str, str] = dict(zip(found, names, strict=False))
    return _renamed(one, renamed), _renamed(other, renamed)


def _renamed(term: Term, names: dict[str, str]) -> Term:
    if isinstance(term, str):
        return names.get(term, term)
    return term[0], *(_renamed(part, names) for part in term[1:])
