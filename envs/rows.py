"""Rows of data from wherever they are, each with its place, which opens the sentence about a fault in it.

FILE.jsonl      an object a line
FILE.json       an array of objects
FILE.csv        columns named by the first line
FOLDER          what `datasets` saved with save_to_disk, or .jsonl files (RUN/labels)
hf:NAME         a dataset of the Hugging Face hub, or such a folder; hf:NAME/CONFIG, and :SPLIT behind either
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = "a .jsonl, .json or .csv file, a saved dataset's folder, or hf:NAME"


@dataclass(frozen=True)
class Row:
    """place: "FILE, line 3". value: what JSON can say; of CSV and datasets a dict. split: the dataset's own, where it has several."""

    place: str
    value: Any
    split: str | None = None


def read(source: str) -> Iterator[Row]:
    """Raises ValueError (one sentence: place, fault, mend) for what is missing or cannot be read."""
    if source.startswith("hf:"):
        return _hugging_face(source.removeprefix("hf:"))
    path = Path(source).expanduser()
    if path.is_dir():
        parts = sorted(path.glob("*.jsonl"))
        return (row for part in parts for row in _lines(part, text(part))) if parts else _hugging_face(str(path))
    if path.suffix == ".csv":
        return _columns(path)
    found = text(path)
    return _array(path, found) if found.lstrip().startswith("[") else _lines(path, found)


def text(path: Path) -> str:
    """A file's text. Raises ValueError naming what is wrong with it, and where."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give {KINDS}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def _lines(path: Path, found: str) -> Iterator[Row]:
    for number, line in enumerate(found.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not valid JSON ({_fault(error)}); write one JSON object per line") from error
        yield Row(place, value)


def _fault(error: Exception) -> str:
    """What is wrong within one line; the error's own text would name line 1 of the line."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _array(path: Path, found: str) -> Iterator[Row]:
    """Rows one by one, so that a fault is reported at the line of its row."""
    decoder = json.JSONDecoder()
    at = found.index("[") + 1
    line, counted = 1, 0
    while True:
        while at < len(found) and found[at] in " \t\r\n,":
            at += 1
        line, counted = line + found.count("\n", counted, at), at
        place = f"{path}, line {line}"
        if found[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(found, at)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not valid JSON ({error}); expected an array of objects") from error
        yield Row(place, value)


def _columns(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(text(path).splitlines(keepends=True))
    for value in reader:
        if None in value:
            raise ValueError(f"{path}, line {reader.line_num}: more cells than columns; put text with commas in quotes")
        yield Row(f"{path}, line {reader.line_num}", value)


def _hugging_face(name: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"hf:{name}: the package `datasets` is missing; run `pip install datasets`") from error
    name, _, split = name.partition(":")
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            owner_and_name, config = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
            found = datasets.load_dataset(owner_and_name, config)
    except Exception as error:  # the library raises many types, for a missing name, a bad config or no network
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"hf:{name}: cannot be loaded ({type(error).__name__}: {reason})") from error
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    if split and split not in parts:
        raise ValueError(f"hf:{name}: has no split {split!r}; there are: {', '.join(parts)}")
    for part, values in parts.items():
        if split in ("", part):
            for number, value in enumerate(values):
                own = part if len(parts) > 1 and not split else None
                yield Row(f"hf:{name}, {part} row {number}", value, own)
