"""Lemmas whose proof is a tree of facts: inequalities put together from hypotheses, and elements found in a list."""

from __future__ import annotations

from random import Random

from envs.proofs.lemmas.lemma import Lemma
from envs.proofs.lemmas.rewriting import Term, binders, shown

FAMILIES = ("le", "mem")
_NAMES = "abcd"


def lemma(family: str, size: int, rng: Random) -> Lemma | None:
    """One attempt at a lemma whose hypotheses, and operations on the right side of its conclusion, are so many together."""
    made = _inequality(size, rng) if family == "le" else _member(size, rng)
    hypotheses, _, conclusion = made.statement.rpartition("-> ")
    right = conclusion.partition(" <= ")[2] if family == "le" else conclusion
    operations = sum(word in ("S", "+", "::", "++") for word in right.split())
    given = hypotheses.count("<=") + hypotheses.count("mem")
    return made if given + operations == size else None


def _inequality(size: int, rng: Random) -> Lemma:
    facts = size + int(rng.random() * size)
    hypotheses: list[tuple[str, str]] = []
    left, right, tactics = _compared(facts, hypotheses, rng)
    names = {old: _NAMES[i] for i, old in enumerate(binders(*(x for h in hypotheses for x in h), left, right))}
    given = [f"{names[a]} <= {names[b]}" for a, b in hypotheses]
    labels = [f"h{i + 1}" for i in range(len(hypotheses))]
    statement = " -> ".join([*given, f"{shown(_named(left, names))} <= {shown(_named(right, names))}"])
    steps = [f"apply leT with {names[step[9:]]} ." if step.startswith("leT with ") else step for step in tactics]
    variables = " ".join(names.values())
    return Lemma(
        "le",
        size,
        f"forall {variables} : nat , {statement}",
        (f"intros {' '.join([*names.values(), *labels])} .", *steps),
    )


def _compared(size: int, hypotheses: list[tuple[str, str]], rng: Random) -> tuple[Term, Term, list[str]]:
    """Two terms and how to prove that the first is at most the second; adds to `hypotheses` what that needs."""
    kind = rng.choice(("leS", "leW", "leA", "leT")) if size > 1 else rng.choice(("exact", "exact", "leR"))
    if kind == "exact":
        x, y = rng.sample(_NAMES, 2)
        if (x, y) not in hypotheses:
            hypotheses.append((x, y))
        return x, y, [f"exact h{hypotheses.index((x, y)) + 1} ."]
    if kind == "leR":
        x = rng.choice(_NAMES)
        return x, x, ["apply leR ."]
    if kind == "leT" and size >= 3:
        x, y, z = rng.sample(_NAMES, 3)
        for pair in ((x, y), (y, z)):
            if pair not in hypotheses:
                hypotheses.append(pair)
        numbers = [hypotheses.index(pair) + 1 for pair in ((x, y), (y, z))]
        return x, z, [f"leT with {y}", *(f"exact h{n} ." for n in numbers)]
    if kind == "leA" and size >= 3:
        first = 1 + int(rng.random() * (size - 2))
        a, b, left = _compared(first, hypotheses, rng)
        c, d, right = _compared(size - 1 - first, hypotheses, rng)
        return ("+", a, c), ("+", b, d), ["apply leA .", *left, *right]
    a, b, steps = _compared(size - 1, hypotheses, rng)
    if kind == "leW":
        return a, ("S", b), ["apply leW .", *steps]
    return ("S", a), ("S", b), ["apply leS .", *steps]


def _member(size: int, rng: Random) -> Lemma:
    """One of several lists holds the element, or it stands there itself."""
    names = iter("lmkj")
    given = rng.random() < 0.7
    held = next(names) if given else ""
    text, tactics = (held, ["exact h1 ."]) if given else ("", ["apply memH ."])
    spare = iter("yzwv")
    for _ in range(size - 1):
        kind = rng.choice(("memT", "memL", "memR"))
        inner = text
        if not inner:  # the element itself, at the head of a list
            text = f"x :: {next(names)}"
            continue
        bracketed = f"( {inner} )" if " " in inner else inner
        if kind == "memT" and (other := next(spare, "")):
            text = f"{other} :: {bracketed}"
        elif other := next(names, ""):
            text = f"{bracketed} ++ {other}" if kind == "memL" else f"{other} ++ {bracketed}"
            kind = kind if kind != "memT" else "memR"
        else:
            text, kind = f"x :: {bracketed}", "memT"
        tactics = [f"apply {kind} .", *tactics]
    text = text or "x :: l"
    lists = [name for name in "lmkj" if name in text.split()]
    elements = [name for name in "xyzwv" if name == "x" or name in text.split()]
    kinds = f"( {' '.join(elements)} : nat ) ( {' '.join(lists)} : list nat )"
    statement = f"forall {kinds} , {f'mem x {held} -> ' if given else ''}mem x ( {text} )"
    if " " not in text:
        statement = statement.replace(f"( {text} )", text)
    opening = f"intros {' '.join([*elements, *lists, *['h1'] * given])} ."
    return Lemma("mem", size, statement, (opening, *tactics))


def _named(term: Term, names: dict[str, str]) -> Term:
    if isinstance(term, str):
        return names.get(term, term)
    return term[0], *(_named(part, names) for part in term[1:])
