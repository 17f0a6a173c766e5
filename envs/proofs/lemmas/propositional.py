"""Random formulas that a small prover of intuitionistic logic can prove, with its proof in Coq's tactics and as an Agda term.

The prover goes from the goal backwards: it introduces and splits where nothing is lost by it, takes hypotheses apart, and tries what is
left (`left`, `right`, `apply`) in turn. It is sound and not complete: a formula on which it gives up is not a lemma of ours.
"""

from __future__ import annotations

from random import Random

from envs.proofs.lemmas.lemma import Lemma

Formula = str | tuple["Formula", ...]
"""An atom, or (connective, formula, ...)."""
Context = tuple[tuple[str, Formula], ...]
Proof = tuple[object, ...]

CONNECTIVES = {"imp": ("->",), "and": ("->", "/\\"), "or": ("->", "\\/"), "neg": ("->", "~"), "iff": ("->", "<->")}
"""Family -> connectives; every lemma of a family has its last one."""
ATOMS = "pqrstu"
FALSE: Formula = "False"
_MOST_STEPS = 400
_BINDS = {"->": 0, "<->": 1, "\\/": 2, "/\\": 3, "~": 4}
_AGDA = {"->": "->", "\\/": "or", "/\\": "&"}


def lemma(family: str, size: int, rng: Random) -> Lemma | None:
    """One attempt at a lemma with so many connectives; None where the formula is not proven."""
    connectives = CONNECTIVES[family]
    formula: Formula = ("->", _formula(size // 2, connectives, rng), _formula(size - 1 - size // 2, connectives, rng))
    if rng.random() < 0.5:
        formula = _formula(size, connectives, rng)
    if connectives[-1] not in _connectives(formula):
        return None
    names = {atom: ATOMS[i] for i, atom in enumerate(dict.fromkeys(_atoms(formula)))}
    formula = _renamed(formula, names)
    proof = _Prover().prove((), formula, frozenset())
    if proof is None:
        return None
    atoms = list(names.values())
    tactics = _tactics(proof, ["intros", *atoms])
    agda = f"( {' '.join(atoms)} : Set ) -> {_agda(formula)}", f"\\ {' '.join(atoms)} -> {_term(proof)}"
    return Lemma(family, size, f"forall {' '.join(atoms)} : Prop , {shown(formula)}", tuple(tactics), agda)


def shown(formula: Formula, outer: int = -1) -> str:
    """As Coq prints it, words apart. outer: how tightly what stands around it binds."""
    if isinstance(formula, str):
        return formula
    head, *parts = formula
    assert isinstance(head, str)
    binds = _BINDS[head]
    first, last = shown(parts[0], binds - (head == "~")), shown(parts[-1], binds - (head in ("->", "/\\", "\\/")))
    text = f"~ {first}" if head == "~" else f"{first} {head} {last}"
    return f"( {text} )" if binds <= outer else text


def _formula(size: int, connectives: tuple[str, ...], rng: Random) -> Formula:
    if size <= 0:
        return rng.choice(ATOMS[:4])
    head = rng.choice(connectives)
    if head == "~":
        return head, _formula(size - 1, connectives, rng)
    left = int(rng.random() * size)
    return head, _formula(left, connectives, rng), _formula(size - 1 - left, connectives, rng)


def _atoms(formula: Formula) -> list[str]:
    return [formula] if isinstance(formula, str) else [atom for part in formula[1:] for atom in _atoms(part)]


def _connectives(formula: Formula) -> list[object]:
    return [] if isinstance(formula, str) else [formula[0], *(c for part in formula[1:] for c in _connectives(part))]


def _renamed(formula: Formula, names: dict[str, str]) -> Formula:
    if isinstance(formula, str):
        return names[formula]
    return formula[0], *(_renamed(part, names) for part in formula[1:])


class _Prover:
    def __init__(self) -> None:
        self.left = _MOST_STEPS

    def prove(self, context: Context, goal: Formula, tried: frozenset[object]) -> Proof | None:
        """A proof, or None. tried: goals on the way here, each with the formulas it had at hand."""
        self.left -= 1
        state = (goal, frozenset(formula for _, formula in context))
        if self.left < 0 or state in tried:
            return None
        tried |= {state}
        for name, formula in context:
            if formula == goal:
                return "exact", name
        fresh = f"h{1 + max([int(name[1:]) for name, _ in context], default=0)}"
        if goal[0] == "->" or goal[0] == "~":
            body = goal[2] if goal[0] == "->" else FALSE
            return self._all("intro", fresh, subs=[((*context, (fresh, goal[1])), body)], tried=tried)
        if goal[0] == "/\\":
            return self._all("split", subs=[(context, goal[1]), (context, goal[2])], tried=tried)
        if goal[0] == "<->":
            ways = ("->", goal[1], goal[2]), ("->", goal[2], goal[1])
            return self._all("split", subs=[(context, way) for way in ways], tried=tried)
        for i, (name, formula) in enumerate(context):
            rest = context[:i] + context[i + 1 :]
            if formula == FALSE:
                return "absurd", name
            if formula[0] in ("/\\", "<->"):
                a, b = formula[1], formula[2]
                if formula[0] == "<->":
                    a, b = ("->", a, b), ("->", b, a)
                second = f"h{int(fresh[1:]) + 1}"
                return self._all(
                    "both", name, fresh, second, subs=[((*rest, (fresh, a), (second, b)), goal)], tried=tried
                )
            if formula[0] == "\\/":
                subs = [((*rest, (fresh, formula[k])), goal) for k in (1, 2)]
                return self._all("case", name, fresh, subs=subs, tried=tried)
        return self._choose(context, goal, tried)

    def _choose(self, context: Context, goal: Formula, tried: frozenset[object]) -> Proof | None:
        if goal[0] == "\\/":
            for k, side in ((1, "left"), (2, "right")):
                found = self._all(side, subs=[(context, goal[k])], tried=tried)
                if found:
                    return found
        for kind, target in (("apply", goal), ("exfalso", FALSE)):
            for name, formula in context:
                needed: list[Formula] = []
                while formula != target and formula[0] in ("->", "~"):
                    needed.append(formula[1])
                    formula = formula[2] if formula[0] == "->" else FALSE
                if formula == target and needed:
                    found = self._all(kind, name, subs=[(context, n) for n in needed], tried=tried)
                    if found:
                        return found
            if goal == FALSE:
                break
        return None

    def _all(self, *head: str, subs: list[tuple[Context, Formula]], tried: frozenset[object]) -> Proof | None:
        proofs = []
        for context, goal in subs:
            proof = self.prove(context, goal, tried)
            if proof is None:
                return None
            proofs.append(proof)
        return *head, *proofs


def _tactics(proof: Proof, names: list[str] | None = None) -> list[str]:
    """names: "intros" and the names that the next sentence introduces."""
    kind = proof[0]
    if kind == "intro":
        assert isinstance(proof[1], str)
        assert isinstance(proof[2], tuple)
        return _tactics(proof[2], [*(names or ["intros"]), proof[1]])
    words = {
        "exact": lambda: [f"exact {proof[1]} ."],
        "absurd": lambda: [f"destruct {proof[1]} ."],
        "both": lambda: [f"destruct {proof[1]} as [ {proof[2]} {proof[3]} ] ."],
        "case": lambda: [f"destruct {proof[1]} as [ {proof[2]} | {proof[2]} ] ."],
        "apply": lambda: [f"apply {proof[1]} ."],
        "exfalso": lambda: ["exfalso .", f"apply {proof[1]} ."],
    }.get(str(kind), lambda: [f"{kind} ."])()
    subs = [part for part in proof[1:] if isinstance(part, tuple)]
    return [*([f"{' '.join(names)} ."] if names else []), *words, *(t for sub in subs for t in _tactics(sub))]


def _agda(formula: Formula, outer: int = -1) -> str:
    """In Agda, with the connectives of `envs.proofs.agda.HEADER`; every inner part in parentheses."""
    if isinstance(formula, str):
        return formula
    head, *parts = formula
    if head == "~":
        text = f"{_agda(parts[0], 0)} -> False"
    elif head == "<->":
        a, b = (_agda(part, 0) for part in parts)
        text = f"( {a} -> {b} ) & ( {b} -> {a} )"
    else:
        text = f"{_agda(parts[0], 0)} {_AGDA[str(head)]} {_agda(parts[1], 0)}"
    return text if outer < 0 else f"( {text} )"


def _term(proof: Proof) -> str:
    """The proof as an Agda term in parentheses."""
    kind = proof[0]
    subs = [_term(part) for part in proof[1:] if isinstance(part, tuple)]
    if kind == "exact":
        return str(proof[1])
    if kind == "intro":
        return f"( \\ {proof[1]} -> {subs[0]} )"
    if kind == "split":
        return f"( {subs[0]} , {subs[1]} )"
    if kind in ("left", "right"):
        return f"( {kind} {subs[0]} )"
    if kind == "both":
        return f"( both {proof[1]} ( \\ {proof[2]} {proof[3]} -> {subs[0]} ) )"
    if kind == "case":
        return f"( case {proof[1]} ( \\ {proof[2]} -> {subs[0]} ) ( \\ {proof[2]} -> {subs[1]} ) )"
    if kind == "absurd":
        return f"( absurd {proof[1]} )"
    used = f"( {proof[1]} {' '.join(subs)} )"
    return used if kind == "apply" else f"( absurd {used} )"
