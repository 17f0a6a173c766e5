"""Statements from a file, with or without proofs.

    rows     (`envs.rows`: .jsonl, .json, hf:NAME) {"statement": "forall n : nat, n + 0 = n"}; optional: "id" or "name", "proof", "split",
             "header" (the same on every row that has one). In place of "statement" also "formal_statement": "theorem name (x : T) : P :=
             by sorry" (the layout of miniF2F's Lean files), whose binders become part of the statement.
    .v       Coq: what stands before the first Theorem, Lemma, Example, Fact, Remark, Corollary or Proposition is the header; each of these
             gives a statement, and what follows up to "Qed." its proof ("Admitted." and "Abort." give none). A statement may not use
             earlier ones, and sections are not supported.

Without "split" one statement in five, by a hash of its id, is in "test" and the others in "train".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs import rows
from envs.proofs.sources import Problem, Source

TEST_SHARE = 5
_KINDS = r"Theorem|Lemma|Example|Fact|Remark|Corollary|Proposition"
_STATED = re.compile(rf"(?:^|(?<=\s))(?:{_KINDS})\s+([\w']+)\s*(.*?)\.(?=\s)", re.DOTALL)
_PROVEN = re.compile(r"\s*(?:Proof\s*\.)?(.*?)(?:^|(?<=\s))(Qed|Defined|Admitted|Abort)\s*\.", re.DOTALL)
_LEAN = re.compile(
    r"\s*(?:theorem|lemma|example)\s+([\w'.]+)?\s*(.*?)\s*(?::=\s*(?:by\b)?\s*(?:sorry)?\s*)?$", re.DOTALL
)


class FromFile(Source):
    """Read at first use. Raises ValueError naming file and line."""

    def __init__(self, path: str, backend: str) -> None:
        if Path(path).suffix not in (".jsonl", ".json", ".v") and not path.startswith("hf:"):
            raise ValueError(f'proofs: tasks must be "generated", a .jsonl, .json or .v file, or hf:NAME, not {path!r}')
        self.path, self.backend = path, backend

    @property
    def header(self) -> str:  # type: ignore[override]
        return _load(self.path, self.backend)[0]

    def splits(self) -> tuple[str, ...]:
        return tuple(_load(self.path, self.backend)[1])

    def problems(self, split: str) -> Sequence[Problem]:
        return _load(self.path, self.backend)[1][split]


@lru_cache(maxsize=8)
def _load(path: str, backend: str) -> tuple[str, dict[str, list[Problem]]]:
    """(header, split -> problems, train first)."""
    header, found = _from_coq(rows.text(Path(path)), path) if path.endswith(".v") else _from_rows(path)
    splits: dict[str, list[Problem]] = {}
    seen: set[str] = set()
    for split, problem in found:
        if problem.id in seen:
            raise ValueError(f"proofs: {path} has the id {problem.id!r} twice")
        seen.add(problem.id)
        splits.setdefault(split, []).append(problem)
    if not splits:
        raise ValueError(f"proofs: {path} holds no statement")
    return header, dict(sorted(splits.items(), key=lambda item: item[0] != "train"))


def _from_rows(path: str) -> tuple[str, list[tuple[str, Problem]]]:
    headers: dict[str, None] = {}
    found = []
    for number, row in enumerate(rows.read(path), 1):
        where = f"proofs: {row.place}"
        if not isinstance(row.value, dict):
            raise ValueError(f"{where}: one object is needed, not {row.value!r:.40}")
        found.append(_row(row, number, where))
        if row.value.get("header"):
            headers[str(row.value["header"])] = None
    if len(headers) > 1:
        raise ValueError(f"proofs: {path} has {len(headers)} different headers; give each a file of its own")
    return next(iter(headers), ""), found


def _row(given: rows.Row, number: int, where: str) -> tuple[str, Problem]:
    row: dict[str, Any] = {name: value for name, value in given.value.items() if value is not None}
    for key in ("statement", "formal_statement", "proof", "split", "header"):
        if key in row and not isinstance(row[key], str):
            raise ValueError(f"{where}: {key} must be text, not {row[key]!r:.40}")
    statement = row.get("statement", "").strip().rstrip(".").strip()
    name = str(row.get("id") or row.get("name") or f"line-{number}")
    if not statement and row.get("formal_statement"):
        found = _LEAN.match(row["formal_statement"])
        if not found:
            raise ValueError(f"{where}: formal_statement must be a theorem, not {row['formal_statement'][:60]!r}")
        statement = _closed(found[2], "∀", where)
    if not statement:
        raise ValueError(f"{where}: a statement is needed")
    return row.get("split") or given.split or _split(name), Problem(name, statement, row.get("proof", ""))


def _from_coq(text: str, path: str) -> tuple[str, list[tuple[str, Problem]]]:
    text = re.sub(r"\(\*.*?\*\)", " ", text, flags=re.DOTALL) + "\n"
    first = _STATED.search(text)
    header, stated, at = text[: first.start()] if first else text, [], first.start() if first else len(text)
    while found := _STATED.search(text, at):
        ended = _PROVEN.match(text, found.end())
        proof = ended[1].strip() if ended and ended[2] in ("Qed", "Defined") else ""
        statement = _closed(found[2], "forall", f"proofs: {path}, {found[1]}")
        stated.append((_split(found[1]), Problem(found[1], " ".join(statement.split()), proof)))
        at = ended.end() if ended else found.end()
    return header.strip(), stated


def _closed(signature: str, forall: str, where: str) -> str:
    """ "(n m : nat) : n + m = m + n" with its binders in the statement."""
    depth = 0
    for i, character in enumerate(signature):
        depth += (character in "([{⦃") - (character in ")]}⦄")
        if character == ":" and depth == 0 and signature[i + 1 : i + 2] != "=":
            binders, conclusion = signature[:i].strip(), signature[i + 1 :].strip()
            return f"{forall} {binders}, {conclusion}" if binders else conclusion
    raise ValueError(f"{where}: no statement after a colon in {signature[:60]!r}")


def _split(name: str) -> str:
    return "test" if zlib.crc32(name.encode()) % TEST_SHARE == 0 else "train"
