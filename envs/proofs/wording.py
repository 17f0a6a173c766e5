"""How statements and goals are put to a model: short, words apart by blanks, from a small vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.base import Message, Prompt
from envs.proofs.backend import Reply
from envs.proofs.lemmas.lemma import FACTS

_TOKEN = re.compile(r"<->|->|/\\|\\/|<=|>=|<>|\+\+|::|:=|\|-|[\w'.]+|\S")
_TYPES = ("Prop", "nat", "list nat", "nat -> nat", "Set", "Type")
"""Hypotheses of these types are variables; what there is to know of them stands in the statement."""

_ERRORS = {
    "refused": "refused",
    "timeout": "slow",
    "too much output": "slow",
    "not found in the current environment": "unknown",
    "No such hypothesis": "unknown",
    "Found no subterm": "match",
    "Unable to unify": "match",
    "has type": "match",
    "Syntax error": "syntax",
    "already used": "used",
    "No product": "shape",
    "not an inductive": "shape",
    "Not an inductive": "shape",
    "disjunctive": "shape",
    "No such goal": "shape",
    "No focused proof": "shape",
}
"""Part of Coq's message -> the word for it, where observations are short."""
OTHER_ERROR = "failed"

WORDS = (
    *("forall", ":", ",", "(", ")", "->", "/\\", "\\/", "~", "<->", "=", "<=", "+", "*", "S", "++", "::"),
    *("nil", "len", "rev", "map", "mem", "f", "False", "Prop", "nat", "list", "IH"),
    *map(str, range(10)),
    *"pqrstuabcdlmkjxyzwv",
    *(f"h{i}" for i in range(1, 13)),
    *("intros", "exact", "apply", "with", "split", "left", "right", "exfalso", "destruct", "as", "[", "|", "]"),
    *("rewrite", "!", "reflexivity", "simpl", "induction", "."),
    *FACTS,
    *("|-", ";", "error", *dict.fromkeys(_ERRORS.values()), OTHER_ERROR),
    *("<think>", "</think>"),
)
"""Every word of generated lemmas, their proofs, goals on the way, and short errors."""

_TASK = {
    "whole": "Prove this in Coq 8.16. Answer with the tactics only, each ended by a full stop; no commands, no comments.",
    "steps": "Prove this in Coq 8.16, one tactic at a time. Answer with one tactic, ended by a full stop; you will be shown the goals.",
    "term": "Prove this in Agda 2.6.2 with --safe. Answer with a term of this type, and nothing else.",
    "lean": "Prove this in Lean 4. Answer with the tactics only, one a line; no commands, no comments.",
}


def apart(text: str) -> str:
    """The same text with its words apart by single blanks."""
    return " ".join(_TOKEN.findall(text))


def put(statement: str, kind: str, chat: bool, facts: Sequence[str] = ()) -> Prompt:
    """The question. kind: a key of the texts for chat models. facts: what may be used, told to chat models."""
    if not chat:
        return statement
    told = [
        _TASK[kind],
        *(["You may use: " + "; ".join(facts) + "."] if facts else []),
        f"Theorem proof : {statement} .",
    ]
    message: Message = {"role": "user", "content": "\n\n".join(told)}
    return [message]


def goals(reply: Reply) -> str:
    """The goal in focus with its hypotheses, then the other conclusions: "h1 : p , h2 : q |- q ; r"."""
    if not reply.goals:
        return "|-"
    first, *others = reply.goals
    given = [f"{names} : {kind}" for names, kind in first.hypotheses if kind not in _TYPES]
    return apart(
        " ; ".join([" ".join([" , ".join(given), "|-", first.conclusion]), *(goal.conclusion for goal in others)])
    )


def error(message: str, short: bool) -> str:
    """What a model is told of a tactic that failed."""
    if not short:
        return f"error: {message[:200]}"
    return "error " + next((word for part, word in _ERRORS.items() if part in message), OTHER_ERROR)


def unfenced(text: str) -> str:
    """The content of the last code block, where the answer has one."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    return blocks[-1] if blocks else text
