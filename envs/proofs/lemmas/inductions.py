"""Equations of which each is proven by induction on its first variable, around random expressions that the induction leaves alone."""

from __future__ import annotations

from random import Random

from envs.proofs.lemmas.lemma import Lemma
from envs.proofs.lemmas.rewriting import Term, binders, bound, shown

FAMILIES = ("natind", "listind")
_NAT = ("assoc", "succ", "both")
_LIST = ("assoc", "len", "map")


def lemma(family: str, size: int, rng: Random) -> Lemma | None:
    """size: operations on the left side."""
    left, right = _nat(size, rng) if family == "natind" else _list(size, rng)
    names = binders(left)
    variable = "a" if family == "natind" else "l"
    pattern = "a IH" if family == "natind" else "x l IH"
    tactics = (
        f"intros {' '.join(names)} .",
        f"induction {variable} as [ | {pattern} ] .",
        *("reflexivity .", "simpl .", "rewrite IH .", "reflexivity ."),
    )
    return Lemma(family, size, f"forall {bound(left)} , {shown(left)} = {shown(right)}", tactics)


def _nat(size: int, rng: Random) -> tuple[Term, Term]:
    kind = rng.choice(_NAT) if size >= 2 else "succ"
    lifts = 0 if kind == "assoc" else size - 1 if kind == "succ" else 1 + int(rng.random() * (size - 2))
    rest = size - 1 - lifts
    if kind != "assoc" and rest == 0:
        inner: Term = "b"
        right: Term = ("+", "a", "b")
    else:
        rest = max(rest, 1)
        first = int(rng.random() * rest)
        one, two = _sum("+", first, "bcd", rng), _sum("+", rest - 1 - first, "bcd", rng)
        inner, right = ("+", one, two), ("+", ("+", "a", one), two)
    for _ in range(max(lifts, kind != "assoc")):
        inner, right = ("S", inner), ("S", right)
    return _ordered(("+", "a", inner), right, "abcd")


def _list(size: int, rng: Random) -> tuple[Term, Term]:
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
    left = int(rng.random() * size)
    return operation, _sum(operation, left, names, rng), _sum(operation, size - 1 - left, names, rng)


def _ordered(left: Term, right: Term, names: str) -> tuple[Term, Term]:
    """Variables renamed in the order in which they appear on the left."""
    found = [name for name in binders(left) if name != "f"]
    renamed: dict[str, str] = dict(zip(found, names, strict=False))
    return _renamed(left, renamed), _renamed(right, renamed)


def _renamed(term: Term, names: dict[str, str]) -> Term:
    if isinstance(term, str):
        return names.get(term, term)
    return term[0], *(_renamed(part, names) for part in term[1:])
