"""`posterior label RUN`: a person grades sampled answers in the terminal, one key each.

The rater sees the prompt and the answer (the ACTION tokens), never the thought, the grade, the step or the method; the
order is shuffled by the rater's name, so that two raters meet the same answers in different orders and one rater
meets the same order again after a break. Grades go to RUN/labels/RATER.jsonl, one object a line: task, episode, prompt
(text or chat messages), answer, score, rater, time (UTC, ISO 8601). Starting again goes on where the file ends.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import termios
import textwrap
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envs.base import Prompt
from models.trace import Kind


@dataclass(frozen=True)
class Item:
    """One sampled answer."""

    task: str
    episode: str
    prompt: Prompt
    answer: str

    @property
    def asked(self) -> str:
        """The prompt as text, for people."""
        return self.prompt if isinstance(self.prompt, str) else "\n".join(m["content"] for m in self.prompt)

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.episode


class Labels:
    """One rater's file: every grade is on disk before the next answer is shown."""

    def __init__(self, path: Path, rater: str) -> None:
        self.path = path
        self.rater = rater
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
                if not line:
                    continue
                try:
                    row = json.loads(line)
                    self.rows.append({**row, "task": row["task"], "episode": row["episode"]})
                except (json.JSONDecodeError, KeyError, TypeError):
                    raise ValueError(f"{path}:{number}: not a grade; mend or delete this line") from None

    @property
    def done(self) -> set[tuple[str, str]]:
        return {(row["task"], row["episode"]) for row in self.rows}

    def add(self, item: Item, score: int) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows.append({**asdict(item), "score": score, "rater": self.rater, "time": now})
        self._write()

    def undo(self) -> tuple[str, str] | None:
        """Take the newest grade back; returns the (task, episode) it was about, None if there is none."""
        if not self.rows:
            return None
        row = self.rows.pop()
        self._write()
        return row["task"], row["episode"]

    def _write(self) -> None:
        """Replace the file as a whole, so that no crash leaves half a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def label(run_dir: Path, rater: str, scale: str = "1..5") -> dict[str, Any]:
    """Grade answers at the terminal until none is left or the rater quits; returns counts and the file.

    scale: LOW..HIGH, whole numbers from 0 to 9. Raises ValueError for a run without traces, a bad scale or rater name,
    and where standard input is no terminal.
    """
    low, high = _parse_scale(scale)
    if not re.fullmatch(r"[\w.@-]+", rater) or rater.startswith("."):
        raise ValueError(f"the rater's name {rater!r} must be letters, digits, '-', '_', '.' or '@'")
    items = list(read_items(run_dir / "traces"))
    if not items:
        raise ValueError(
            f"{run_dir} holds no sampled answers (none in traces/*.jsonl); set log.traces_every in its run"
        )
    if not sys.stdin.isatty():
        raise ValueError("label reads single keys and needs a terminal on standard input")
    random.Random(f"label {rater}").shuffle(items)
    labels = Labels(run_dir / "labels" / f"{rater}.jsonl", rater)
    before = len(labels.rows)
    with _single_keys():
        quit_early = _session(items, labels, low, high)
    left = len({item.key for item in items} - labels.done)
    print(f"\n{len(labels.rows)} of {len(items)} graded, {left} left: {labels.path}")
    return {
        "labels": str(labels.path),
        "graded": len(labels.rows) - before,
        "total": len(labels.rows),
        "left": left,
        "quit": quit_early,
    }


def read_items(traces: Path) -> Iterator[Item]:
    """Every answer in the trace files of a run, each once, in file order; without traces whose answer was given or got lost.

    Raises ValueError for a broken line.
    """
    seen: set[tuple[str, str]] = set()
    for path in sorted(traces.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON strings may hold U+2028
        for number, line in enumerate(lines[:-1], 1):  # after the last newline: nothing, or a line being written
            try:
                group = json.loads(line)
                prompt = group["messages"] if "messages" in group else str(group["prompt"])
                for trace in group["traces"]:
                    if Kind.TARGET in trace["kind"] or trace["outcome"] == "infra":
                        continue
                    if "answer" not in trace:
                        raise ValueError("an older version wrote it, without the text of the answers")
                    item = Item(str(group["task"]), str(trace["episode"]), prompt, str(trace["answer"]))
                    if item.key not in seen:
                        seen.add(item.key)
                        yield item
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: not a group of traces ({error}); delete this line") from None


def _parse_scale(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9])\.\.([0-9])", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"the scale {text!r} must be LOW..HIGH with one digit each, for example 1..5")
    return int(match[1]), int(match[2])


def _session(items: list[Item], labels: Labels, low: int, high: int) -> bool:
    """Ask for one key after another; returns whether the rater stopped before the end. Skipped answers come last."""
    by_key = {item.key: item for item in items}
    done = labels.done
    queue = deque(item for item in items if item.key not in done)
    skipped: list[Item] = []
    while queue:
        item = queue.popleft()
        print(_page(item, len(labels.rows), len(items), low, high), flush=True)
        match _wait_for_key([*(str(i) for i in range(low, high + 1)), "s", "u", "q"]):
            case "q":
                return True
            case "s":
                skipped.append(item)
            case "u":
                queue.appendleft(item)
                back = labels.undo()
                if back is not None and back in by_key:
                    queue.appendleft(by_key[back])
            case digit:
                labels.add(item, int(digit))
    return bool(skipped)


def _page(item: Item, graded: int, total: int, low: int, high: int) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    rule = "─" * width
    return "\n".join(
        [
            "",
            rule,
            f"{graded} of {total} graded",
            "",
            *_wrap(item.asked, width),
            "",
            "── answer ".ljust(width, "─"),
            *(_wrap(item.answer, width) if item.answer.strip() else ["(no answer)"]),
            rule,
            f"grade {low}–{high}   s skip   u undo   q quit > ",
        ]
    )


def _wrap(text: str, width: int) -> list[str]:
    """Lines that fit, without control characters: a model's answer must not steer the rater's terminal."""
    plain = "".join(c if c == "\n" or c.isprintable() else "    " if c == "\t" else "�" for c in text)
    return [part for line in plain.split("\n") for part in (textwrap.wrap(line, width, drop_whitespace=False) or [""])]


@contextmanager
def _single_keys() -> Iterator[None]:
    """Hand keys over as they are pressed, also those pressed already (no flush), until the block ends."""
    saved = termios.tcgetattr(sys.stdin.fileno())
    tty.setcbreak(sys.stdin.fileno(), termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, saved)


def _wait_for_key(wanted: list[str]) -> str:
    """The next of the wanted keys; end of input and Ctrl-C count as q."""
    try:
        while True:
            key = os.read(sys.stdin.fileno(), 1).decode("latin-1").lower()
            if key == "":
                return "q"
            if key in wanted:
                print(key, flush=True)
                return key
    except KeyboardInterrupt:
        return "q"
