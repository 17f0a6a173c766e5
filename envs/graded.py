"""Answers that people graded, from files: what reward models learn from, and prompts for the policies that they reward.

Rows of any of `envs.rows`: files, a Hugging Face dataset, or RUN/labels, where `posterior label` keeps grades. Rows of one prompt and
answer are one item, their scores its raters. A row may hold several scores: a list, or a column each. A prompt is text, or a list of chat
messages, which the model's own template renders.

    {"prompt": "...", "answer": "...", "score": 4}            score: score
    {"prompt": "...", "answer": "...", "scores": {"fun": 2}}  score: scores.fun
    prompt,answer,ann,bob                                     score: [ann, bob]
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from envs import rows
from envs.base import Grade, Message, Prompt, SingleTurnEnv, Task

SPLITS = ("train", "valid", "test")


class Graded(SingleTurnEnv):
    """file: or folder, or hf:NAME. prompt, answer, score: names of columns, dotted into nested ones; several prompt columns are joined by
    line breaks, several score columns are raters. written: a file of answers that somebody wrote and nobody graded, with the same prompt
    and answer columns; they are trained on, but for those whose prompt is held out. valid, test: shares of the prompts that are held out,
    drawn by a hash of the prompt.

    Splits: "train", "valid", "test". No prompt of one is in another.
    """

    exact: ClassVar[bool] = False
    description: ClassVar[str] = (
        "answers with scores from people (.jsonl, .json, .csv, a Hugging Face dataset, or RUN/labels)"
    )

    def __init__(
        self,
        file: str,
        prompt: str | Sequence[str] = "prompt",
        answer: str = "answer",
        score: str | Sequence[str] = "score",
        written: str | None = None,
        valid: float = 0.15,
        test: float = 0.15,
    ) -> None:
        if min(valid, test) < 0 or valid + test >= 1:
            raise ValueError(
                f"graded: valid and test are shares that leave something to train on, not {valid} and {test}"
            )
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        scores = (score,) if isinstance(score, str) else tuple(score)
        self.items = _items(file, prompts, answer, scores)
        extra = _items(written, prompts, answer, ()) if written else ()
        self._splits: dict[str, list[Task]] = {split: [] for split in SPLITS}
        held_out: set[str] = set()
        for task in self.items:
            key = _key(task.prompt)
            place = (zlib.crc32(key.encode()) % 10_000) / 10_000
            split = "test" if place < test else "valid" if place < test + valid else "train"
            self._splits[split].append(task)
            if split != "train":
                held_out.add(key)
        self._splits["train"] += [task for task in extra if _key(task.prompt) not in held_out]
        self._known = {(_key(t.prompt), t.answer): t for t in self.items}
        given = [s for t in self.items for s in t.meta["scores"]]
        if not given:
            raise ValueError(
                f"graded: {file} holds not one score in {', '.join(scores)}; name the column with the grades"
            )
        self.scale = (min(given), max(given))

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in SPLITS:
            raise ValueError(f"graded has no split {split!r}; there are: {', '.join(SPLITS)}")
        if not self._splits[split]:
            raise ValueError(f"graded: the split {split} has no items; give more items, or another share")
        return self._splits[split]

    def words(self) -> Sequence[str]:
        """Every word of every item: punctuation is part of its word."""
        tasks = [task for split in self._splits.values() for task in split]
        texts = [text for task in tasks for text in (*_contents(task.prompt), task.answer or "")]
        return sorted({word for text in texts for word in text.split()})

    def grade(self, task: Task, text: str) -> Grade:
        """The mean score of an answer that people graded, 0 to 1 over the scores given; of any other 0, for nobody knows."""
        known = self._known.get((_key(task.prompt), text.strip()))
        if known is None:
            return Grade(0.0, exact=False, note="nobody graded this answer")
        low, high = self.scale
        mean = sum(known.meta["scores"]) / len(known.meta["scores"])
        value = (mean - low) / (high - low) if high > low else 0.0
        return Grade(value, exact=False, note=f"{len(known.meta['scores'])} grades")

    def solution(self, task: Task) -> None:
        """Answers here are what somebody said, good or not."""
        return


@lru_cache(maxsize=8)
def _items(file: str, prompts: tuple[str, ...], answer: str, scores: tuple[str, ...]) -> tuple[Task, ...]:
    """One task for each prompt and answer; without score columns written ones. Raises ValueError naming file and row."""
    found: dict[tuple[str, str], tuple[Prompt, list[float]]] = {}
    for given in rows.read(file):
        place, row = given.place, given.value
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected columns with names, got {row!r:.60}")
        prompt = _prompt([_value(row, name, place) for name in prompts], prompts, place)
        key = _key(prompt), _text(_value(row, answer, place), answer, place).strip()
        _, own = found.setdefault(key, (prompt, []))
        for name in scores:
            own += _numbers(_value(row, name, place), name, place)
    if not found:
        raise ValueError(f"graded: {file} holds no rows")
    return tuple(
        Task(
            id=f"{zlib.crc32(f'{key}|{text}'.encode()):08x}-{'' if scores else 'w'}{i}",
            prompt=prompt,
            answer=text,
            meta={"scores": own} if scores else {"written": True, "scores": []},
        )
        for i, ((key, text), (prompt, own)) in enumerate(found.items())
        if own or not scores
    )


def _value(row: dict[str, Any], name: str, place: str) -> Any:
    """A column, dotted into nested ones."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(map(str, row))
            raise ValueError(f"{place}: there is no column {name!r}; there are: {known}")
        value = value[part]
    return value


def _prompt(values: Sequence[Any], names: Sequence[str], place: str) -> Prompt:
    """One column of chat messages, or columns of text, one below the other."""
    if len(values) != 1 or not isinstance(values[0], list):
        return "\n".join(_text(value, name, place) for value, name in zip(values, names, strict=True))
    messages: list[Message] = []
    for message in values[0]:
        told = message if isinstance(message, dict) else {}
        if not (isinstance(told.get("role"), str) and isinstance(told.get("content"), str)):
            raise ValueError(
                f"{place}: {names[0]} holds {message!r:.60}, which is no chat message with a role and a content"
            )
        messages.append({"role": told["role"], "content": told["content"]})
    if not messages:
        raise ValueError(f"{place}: {names[0]} holds no chat message")
    return messages


def _key(prompt: Prompt) -> str:
    """What a prompt is told apart by: its text, or the JSON of its messages."""
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True)


def _contents(prompt: Prompt) -> list[str]:
    """The texts that a prompt is made of."""
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} must be text, not {type(value).__name__}")
    return value


def _numbers(value: Any, name: str, place: str) -> list[float]:
    """One score or several; an empty cell is a rater who said nothing."""
    if value is None or value == "":
        return []
    values = value if isinstance(value, list) else [value]
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {name} must be a number or a list of them, not {value!r:.60}") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{place}: {name} holds a number that is not finite")
    return numbers
