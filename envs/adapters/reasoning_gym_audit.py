"""Which tasks of reasoning-gym may be trained on: every one is generated, answered, attacked and timed.

    python -m envs.adapters.reasoning_gym_audit [--json] [--items N] [NAME ...]

A task passes if it reseeds (the same seed gives the same items, another seed others, in a new instance too); its own answer
scores exactly 1; no junk, and no other item's answer at large, is paid; no text raises or takes longer than a second; what it
hands out can be pickled; and it evaluates no text as a program. The last is watched through Python's audit hooks: a grader that
calls `eval` may run what a model writes, with all rights of the process that grades.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from envs.check import GIBBERISH

MOST_FOR_JUNK = 0.05
MOST_SECONDS = 1.0
GUESS_SHARE = 0.75
"""Share of items that one short text may solve: a yes-or-no question is worth half by guessing."""
DEADLINE = 120.0
"""Seconds for the audit of one task."""
MEMORY = 4 * 2**30

GUESSES = (
    "0",
    "1",
    "-1",
    "2",
    "True",
    "False",
    "None",
    "yes",
    "no",
    "Yes",
    "No",
    "A",
    "B",
    "[]",
    "x",
    "nan",
    "inf",
    "heads",
)
PROBES = ("1+1", "[1, 2]", '["a"]', "list()", "max(1, 2)", "x**2", "1\n2", "[[0, 1], [1, 0]]")
"""Texts that look as if they wanted to be evaluated."""


@dataclass
class Finding:
    """What the audit saw of one task. fault: why it may not be trained on, "" where it may.

    own: least score of an item's own answer. junk: largest score of a text that answers nothing. guess: largest share of
    items that one short text solves. other: share of other items' answers that score 1. seconds_make, seconds_grade: most
    processor time for an item and for a grade.
    """

    name: str
    fault: str
    own: float | None = None
    junk: float | None = None
    guess: float | None = None
    other: float | None = None
    evaluates: bool = False
    seconds_make: float | None = None
    seconds_grade: float | None = None


_evaluated: list[str] | None = None


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if _evaluated is not None and event == "exec":
        where = str(getattr(args[0], "co_filename", ""))
        if where.startswith("<") and not where.startswith("<frozen"):  # not a file, such as an import runs
            _evaluated.append(where)


class _FaultError(Exception):
    pass


def audit(name: str, items: int = 20) -> Finding:
    """Audit one task in a process of its own, which a grader that hangs or eats memory cannot outlive."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_audit_in_child, args=(theirs, name, items))
    process.start()
    theirs.close()
    try:
        finding = ours.recv() if ours.poll(DEADLINE) else Finding(name, f"was not done after {DEADLINE:g} s")
    except EOFError:
        finding = Finding(name, "ended the process that audited it")
    process.kill()
    process.join()
    return finding


def _audit_in_child(pipe: Connection, name: str, items: int) -> None:
    global _evaluated
    os.dup2(2, 1)  # some tasks print
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, most))
    sys.addaudithook(_listen)
    finding = Finding(name, "")
    try:
        _look(finding, items)
    except _FaultError as fault:
        finding.fault = str(fault)
    except Exception as error:  # generators raise what they like
        finding.fault = f"generating raised {type(error).__name__}: {error}"[:200]
    finding.evaluates = bool(_evaluated)
    pipe.send(finding)


def _look(finding: Finding, items: int) -> None:
    global _evaluated
    from reasoning_gym.factory import create_dataset

    made: list[float] = []

    def make(seed: int) -> tuple[Any, list[dict[str, Any]]]:
        data, entries = create_dataset(finding.name, seed=seed, size=items), []
        for i in range(items):
            began = time.process_time()
            entries.append(data[i])
            made.append(time.process_time() - began)
        return data, entries

    data, entries = make(1)
    random.seed(5)
    again, other = make(1)[1], make(2)[1]
    finding.seconds_make = max(made)
    questions = [str(entry["question"]) for entry in entries]
    if questions != [str(entry["question"]) for entry in again]:
        raise _FaultError("the same seed gives other items")
    if questions == [str(entry["question"]) for entry in other]:
        raise _FaultError("another seed gives the same items")
    answers = [entry["answer"] for entry in entries]
    if not all(isinstance(answer, str) for answer in answers):
        raise _FaultError("an item has no answer that is text")
    pickle.dumps(entries)
    _evaluated = []
    graded: list[float] = []

    def score(text: str, entry: dict[str, Any]) -> float:
        began = time.process_time()
        try:
            value = data.score_answer(answer=text, entry=entry)
        except Exception as error:
            raise _FaultError(f"grading {text[:20]!r} raised {type(error).__name__}") from error
        finally:
            if _evaluated:
                raise _FaultError("evaluates text as a program while it grades")
        graded.append(time.process_time() - began)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise _FaultError(f"grading {text[:20]!r} gave {value!r}")
        return float(value)

    _grades(finding, entries, answers, score)
    finding.seconds_grade = max(graded)
    if finding.seconds_grade > MOST_SECONDS or finding.seconds_make > MOST_SECONDS:
        raise _FaultError(f"took {max(finding.seconds_grade, finding.seconds_make):.1f} s for one item or grade")
    if pickle.dumps(entries) != pickle.dumps(again):
        raise _FaultError("grading changes the item")


def _grades(
    finding: Finding,
    entries: Sequence[dict[str, Any]],
    answers: Sequence[str],
    score: Callable[[str, dict[str, Any]], float],
) -> None:
    finding.own = min(score(answer, entry) for answer, entry in zip(answers, entries, strict=True))
    for text in PROBES:
        score(text, entries[0])
    junk = {text: max(score(text, entry) for entry in entries[:5] if entry["answer"] != text) for text in GIBBERISH}
    finding.junk = max(junk.values())
    finding.guess = max(sum(score(text, entry) == 1.0 for entry in entries) / len(entries) for text in GUESSES)
    pairs = [(a, e) for a in answers[:6] for e in entries if a != e["answer"]]
    finding.other = sum(score(a, e) == 1.0 for a, e in pairs) / len(pairs) if pairs else 0.0
    if finding.own != 1.0:
        raise _FaultError(f"its own answer scores {finding.own:g}")
    if finding.junk > MOST_FOR_JUNK:
        worst = max(junk, key=lambda text: junk[text])
        raise _FaultError(f"the text {worst[:20]!r} scores {finding.junk:g}")
    if finding.guess > GUESS_SHARE:
        raise _FaultError(f"one short text solves {finding.guess:.0%} of the items")


def names() -> list[str]:
    """All names of the installed reasoning-gym."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.adapters.reasoning_gym_audit", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks (default: all)")
    parser.add_argument("--items", type=int, default=20, help="items of each task (default 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    args = parser.parse_args()
    findings = []
    for name in args.names or names():
        findings.append(audit(name, args.items))
        print(f"{name}: {findings[-1].fault or 'passes'}", file=sys.stderr, flush=True)
    good = [finding.name for finding in findings if not finding.fault]
    if args.json:
        print(json.dumps({"passed": good, "findings": [asdict(finding) for finding in findings]}))
    else:
        print("\n".join(table(findings)))


def table(findings: Sequence[Finding]) -> list[str]:
    """The findings as a table in Markdown."""
    lines = ["| task | own answer | junk | best guess | finding |", "|---|---|---|---|---|"]
    for f in findings:
        shown = ["–" if value is None else f"{value:.2f}" for value in (f.own, f.junk, f.guess)]
        fault = (f.fault or "passes").replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {f.name} | {' | '.join(shown)} | {fault} |")
    return lines


if __name__ == "__main__":
    main()
