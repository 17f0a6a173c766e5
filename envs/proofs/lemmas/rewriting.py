"""Equations `e = n`, where n is what rules of a family make of a random expression e: one must see which rules apply, and in which order.

The proof rewrites with one rule after another, each as often as it goes (`rewrite ! rule`), until nothing is left to rewrite. Every rule by
itself comes to the same end in whatever order it is applied, so Coq and the generator agree.
"""

from __future__ import annotations

from random import Random

from envs.proofs.lemmas.lemma import Lemma

Term = str | tuple["Term", ...]
"""A variable, "0", "nil", or (operation, term, ...); variables of rules are upper-case."""

NAT, LIST = "nat", "list"
SORTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "S": (NAT, (NAT,)),
    "+": (NAT, (NAT, NAT)),
    "*": (NAT, (NAT, NAT)),
    "len": (NAT, (LIST,)),
    "++": (LIST, (LIST, LIST)),
    "rev": (LIST, (LIST,)),
    "map f": (LIST, (LIST,)),
}
"""Operation -> (sort, sorts of its arguments)."""
VARIABLES = {NAT: "abcd", LIST: "lmkj"}
EMPTY = {NAT: "0", LIST: "nil"}
_BINDS = {"++": (1, 0), "+": (1, 2), "*": (3, 4)}
"""Infix operation -> how tightly it binds to the left and to the right."""

RULES: dict[str, tuple[Term, Term]] = {
    "addN": (("+", "A", "0"), "A"),
    "addR": (("+", "A", ("S", "B")), ("S", ("+", "A", "B"))),
    "addA": (("+", "A", ("+", "B", "C")), ("+", ("+", "A", "B"), "C")),
    "mulN": (("*", "A", "0"), "0"),
    "mulR": (("*", "A", ("S", "B")), ("+", "A", ("*", "A", "B"))),
    "mulD": (("*", "A", ("+", "B", "C")), ("+", ("*", "A", "B"), ("*", "A", "C"))),
    "appN": (("++", "A", "nil"), "A"),
    "appA": (("++", ("++", "A", "B"), "C"), ("++", "A", ("++", "B", "C"))),
    "revA": (("rev", ("++", "A", "B")), ("++", ("rev", "B"), ("rev", "A"))),
    "revR": (("rev", ("rev", "A")), "A"),
    "mapA": (("map f", ("++", "A", "B")), ("++", ("map f", "A"), ("map f", "B"))),
    "mapR": (("map f", ("rev", "A")), ("rev", ("map f", "A"))),
    "lenA": (("len", ("++", "A", "B")), ("+", ("len", "A"), ("len", "B"))),
    "lenR": (("len", ("rev", "A")), ("len", "A")),
    "lenM": (("len", ("map f", "A")), ("len", "A")),
}

FAMILIES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "add": (NAT, ("+", "+", "S"), ("addN", "addR", "addA")),
    "mul": (NAT, ("*", "+", "S"), ("mulN", "mulR", "mulD", "addN", "addR", "addA")),
    "app": (LIST, ("++",), ("appN", "appA")),
    "rev": (LIST, ("rev", "++"), ("revR", "revA", "appN", "appA")),
    "map": (LIST, ("map f", "++", "rev"), ("mapR", "mapA", "revR", "revA", "appN", "appA")),
    "len": (NAT, ("len", "++", "rev", "map f"), ("lenR", "lenM", "lenA", "addN", "addA")),
}
"""Family -> (sort of both sides, operations, rules in the order in which the proof tries them). Its first operation is in every lemma."""

_COMPUTES: tuple[tuple[Term, Term], ...] = (
    (("+", "0", "A"), "A"),
    (("+", ("S", "A"), "B"), ("S", ("+", "A", "B"))),
    (("*", "0", "A"), "0"),
    (("*", ("S", "A"), "B"), ("+", "B", ("*", "A", "B"))),
    (("++", "nil", "A"), "A"),
    (("rev", "nil"), "nil"),
    (("map f", "nil"), "nil"),
    (("len", "nil"), "0"),
)
"""What holds by computation. Coq may take such a step while it looks for a match, so no expression of ours has room for one."""
_MOST_OPERATIONS = 24
_EMPTY_SHARE = 0.25


def lemma(family: str, size: int, rng: Random) -> Lemma | None:
    """One attempt at a lemma with so many operations on its left side."""
    sort, operations, rules = FAMILIES[family]
    term = _random(sort, size, operations, rng)
    if term is None or any(_redex(term, step) for step in _COMPUTES):
        return None
    term = _renamed(term)
    result, used = term, []
    while True:
        rule = next((name for name in rules if _redex(result, RULES[name])), None)
        if rule is None:
            break
        result = normal(result, RULES[rule])
        used.append(rule)
        if len(_heads(result)) > _MOST_OPERATIONS or any(_redex(result, step) for step in _COMPUTES):
            return None
    if not used or operations[0] not in _heads(term) or not binders(term):
        return None
    tactics = [f"intros {' '.join(binders(term))} .", *(f"rewrite ! {rule} ." for rule in used), "reflexivity ."]
    return Lemma(family, size, f"forall {bound(term)} , {shown(term)} = {shown(result)}", tuple(tactics))


def normal(term: Term, rule: tuple[Term, Term]) -> Term:
    """What is left when the rule has been applied as often as it goes."""
    if isinstance(term, tuple):
        term = term[0], *(normal(part, rule) for part in term[1:])
    bound_to = _match(rule[0], term)
    return term if bound_to is None else normal(_filled(rule[1], bound_to), rule)


def binders(*terms: Term) -> list[str]:
    """The variables, f first, in order of appearance."""
    found = dict.fromkeys(v for term in terms for v in _variables(term))
    f = any(head == "map f" for term in terms for head in _heads(term))
    return ["f"] * f + list(found)


def bound(*terms: Term) -> str:
    """What follows "forall": each variable with its type, neighbours of a type together."""
    groups: list[tuple[str, list[str]]] = []
    for name in binders(*terms):
        kind = "nat -> nat" if name == "f" else "nat" if name in VARIABLES[NAT] else "list nat"
        if not groups or groups[-1][0] != kind:
            groups.append((kind, []))
        groups[-1][1].append(name)
    if len(groups) == 1:
        return f"{' '.join(groups[0][1])} : {groups[0][0]}"
    return " ".join(f"( {' '.join(names)} : {kind} )" for kind, names in groups)


def shown(term: Term, outer: int = -1) -> str:
    """As Coq prints it, words apart. outer: how tightly what stands around it binds."""
    if isinstance(term, str):
        return term
    head, *parts = term
    assert isinstance(head, str)
    if head in _BINDS:
        left, right = _BINDS[head]
        text = f"{shown(parts[0], left - (head != '++'))} {head} {shown(parts[1], right - 1)}"
        return f"( {text} )" if min(left, right) <= outer else text
    text = f"{head} {shown(parts[0], 9)}"
    return f"( {text} )" if outer >= 9 else text


def _random(sort: str, size: int, operations: tuple[str, ...], rng: Random) -> Term | None:
    fitting = [op for op in operations if SORTS[op][0] == sort]
    if size <= 0 or not fitting:
        if size > 0:
            return None
        return EMPTY[sort] if rng.random() < _EMPTY_SHARE else rng.choice(VARIABLES[sort])
    head = rng.choice(fitting)
    sorts = SORTS[head][1]
    first = size - 1 if len(sorts) == 1 else int(rng.random() * size)
    parts = [_random(s, n, operations, rng) for s, n in zip(sorts, (first, size - 1 - first), strict=False)]
    return None if any(part is None for part in parts) else (head, *(p for p in parts if p is not None))


def _renamed(term: Term) -> Term:
    """Variables in the order in which they appear."""
    names: dict[str, str] = {}
    for name in dict.fromkeys(_variables(term)):
        kind = NAT if name in VARIABLES[NAT] else LIST
        names[name] = VARIABLES[kind][sum(other in VARIABLES[kind] for other in names)]
    return _filled(term, dict(names))


def _variables(term: Term) -> list[str]:
    if isinstance(term, str):
        return [] if term in ("0", "nil") else [term]
    return [v for part in term[1:] for v in _variables(part)]


def _heads(term: Term) -> list[str]:
    return [] if isinstance(term, str) else [str(term[0]), *(h for part in term[1:] for h in _heads(part))]


def _redex(term: Term, rule: tuple[Term, Term]) -> bool:
    if _match(rule[0], term) is not None:
        return True
    return isinstance(term, tuple) and any(_redex(part, rule) for part in term[1:])


def _match(pattern: Term, term: Term) -> dict[str, Term] | None:
    """Rules are linear: no variable stands twice on the left."""
    if isinstance(pattern, str):
        return {pattern: term} if pattern.isupper() else {} if pattern == term else None
    if isinstance(term, str) or pattern[0] != term[0]:
        return None
    found: dict[str, Term] = {}
    for p, t in zip(pattern[1:], term[1:], strict=True):
        part = _match(p, t)
        if part is None:
            return None
        found |= part
    return found


def _filled(term: Term, values: dict[str, Term]) -> Term:
    if isinstance(term, str):
        return values.get(term, term)
    return term[0], *(_filled(part, values) for part in term[1:])
