"""Questions with good answers from files: prompt, answer and, where given, written steps; for methods that learn from answers.

Rows of any of `envs.rows` with a question (or prompt), an answer, and optionally steps: the layout of ProsQA, ProntoQA and Coconut's
GSM8K. Lines of a .txt file in iCoT's layout, `question||step step #### answer` (GSM8K-Aug).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from envs import rows
from envs.base import Grade, SingleTurnEnv, Task

LAYOUTS = "rows need a question (or prompt) and an answer, both text, and may have steps, a list of texts"


class Answers(SingleTurnEnv):
    """train, test: files, or hf:NAME:SPLIT. share: without a test file, the part of the training file that is held out (its last rows)."""

    description: ClassVar[str] = (
        "questions with good answers from files or a Hugging Face dataset (ProsQA, ProntoQA, GSM8K-Aug)"
    )

    def __init__(self, train: str, test: str | None = None, share: float = 0.1) -> None:
        if not 0 < share < 1:
            raise ValueError(f"answers: share is {share}, it must lie between 0 and 1")
        given = read(train)
        if test is None:
            kept = len(given) - max(1, round(share * len(given)))
            self._splits = {"train": given[:kept], "test": given[kept:]}
        else:
            self._splits = {"train": given, "test": read(test)}
        for split, tasks in self._splits.items():
            if not tasks:
                raise ValueError(
                    f"answers: the split {split} of {test or train} has no rows; give more, or another share"
                )

    def splits(self) -> Sequence[str]:
        return tuple(self._splits)

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in self._splits:
            raise ValueError(f"answers has no split {split!r}; there are: {', '.join(self._splits)}")
        return self._splits[split]

    def words(self) -> Sequence[str]:
        """Every word of every row: punctuation is part of its word."""
        texts = (
            text
            for tasks in self._splits.values()
            for t in tasks
            for text in (str(t.prompt), t.answer or "", *(t.steps or ()))
        )
        return sorted({word for text in texts for word in text.split()})

    def grade(self, task: Task, text: str) -> Grade:
        """1 for the answer's own words in order, blanks and letter case aside; what stands before "####" or the last line is thought."""
        given = text.rsplit("####", 1)[-1].strip()
        return Grade(float(_normal(given) == _normal(task.answer or "")))


@lru_cache(maxsize=8)
def read(path: str) -> tuple[Task, ...]:
    """Tasks of a file or dataset. Raises ValueError, one sentence with the place, for a missing file or a broken row."""
    found = _icot(Path(path).expanduser()) if path.endswith(".txt") else rows.read(path)
    return tuple(_task(row.value, row.place, i) for i, row in enumerate(found))


def _icot(file: Path) -> Iterator[rows.Row]:
    for number, line in enumerate(rows.text(file).splitlines(), 1):
        place = f"{file}, line {number}"
        if not line.strip():
            continue
        question, bars, rest = line.partition("||")
        steps, sign, answer = rest.partition("####")
        if not bars or not sign:
            raise ValueError(f"{place}: expected `question||step step #### answer`")
        yield rows.Row(place, {"question": question.strip(), "steps": steps.split(), "answer": answer.strip()})


def _task(row: Any, place: str, number: int) -> Task:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is not an object; {LAYOUTS}")
    prompt, answer, steps = row.get("question", row.get("prompt")), row.get("answer"), row.get("steps")
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise ValueError(f"{place} lacks a text; {LAYOUTS}")
    if steps is not None and not (isinstance(steps, list) and all(isinstance(step, str) for step in steps)):
        raise ValueError(f"{place}: steps must be a list of texts")
    return Task(str(row.get("id", number)), prompt, answer, None if steps is None else tuple(steps))


def _normal(text: str) -> list[str]:
    return text.casefold().rstrip(".").split()
