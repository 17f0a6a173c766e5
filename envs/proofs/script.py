"""Reading a candidate's Coq proof: tactics only, one sentence at a time.

This keeps a warm session in step and ends most cheats early. It is no part of what makes a grade right: the final check does not
rely on it (see `envs.proofs.coq`), and the attack list is run with and without it.
"""

from __future__ import annotations

import re

MOST_CHARACTERS = 20_000
_END = re.compile(r"\.(?=\s|$)")
_MARK = re.compile(r"\s*([-+*]+|\{|\}|\d+\s*:\s*\{)\s*")
_TACTIC = re.compile(r"(?:(?:\d+(?:\s*-\s*\d+)?(?:\s*,\s*\d+(?:\s*-\s*\d+)?)*|all|!)\s*:\s*)?[a-z_(\[]")


class Refused(ValueError):
    """The text is not a row of tactics; the message says why."""


def sentences(text: str) -> list[str]:
    """The tactics of a proof, bullets and braces as sentences of their own, without "Proof." and "Qed.".

    Raises Refused for whatever else Coq reads: commands, comments, strings, and text in which a sentence's end is open to doubt.
    """
    if len(text) > MOST_CHARACTERS:
        raise Refused(f"longer than {MOST_CHARACTERS} characters")
    text = re.sub(r"[ \t\r\n]+", " ", text).strip()
    if not text.isprintable():
        raise Refused("characters that cannot be printed")
    for what, sign in (("a comment", "(*"), ("a comment", "*)"), ("a string", '"'), ("two dots", "..")):
        if sign in text:
            raise Refused(what)
    found: list[str] = []
    at = 0
    while at < len(text):
        mark = _MARK.match(text, at)
        if mark:
            found.append(mark[1])
            at = mark.end()
            continue
        end = _END.search(text, at)
        if end is None:
            raise Refused("no full stop at the end")
        found.append(text[at : end.start()].strip())
        at = end.end()
    if found[:1] == ["Proof"]:
        del found[0]
    if found and found[-1] in ("Qed", "Defined"):
        del found[-1]
    if not found:
        raise Refused("no tactic")
    for sentence in found:
        if not _MARK.fullmatch(sentence) and not _TACTIC.match(sentence):
            raise Refused(f"not a tactic: {sentence[:40]}")
    return [sentence if _MARK.fullmatch(sentence) else f"{sentence} ." for sentence in found]
