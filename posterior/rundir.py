"""The run directory: where a run keeps everything it writes, written so that a kill cannot spoil it.

    config.yaml      the resolved configuration            traces/      sampled traces, one JSON line a group
    metrics.jsonl    one JSON object a line                checkpoints/ weights, optimiser, buffer and RNG state
    result.json      the final figures                     report.html  written by `posterior report`
    events.jsonl     deaths, returns, standstills          .status/     where each process stands (`actors.diary`)
    held_out/        every evaluation task by task, VERSION_SPLIT.json

Metrics are appended, one whole line a write; small files are written aside, flushed to disk and renamed.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from actors.diary import append_line


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`: after a crash at any moment the file holds the old or the new text, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself reaches the disk only with the folder
    finally:
        os.close(folder)


def plain(value: Any) -> Any:
    """`value` as standard JSON can hold it: numpy and torch scalars as numbers, NaN and infinities as null."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return plain(value.tolist())
    return str(value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a `.jsonl` file, [] if there is none. A last line cut by a kill is left out.

    Raises ValueError, naming file and line, if another line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was stopped in the middle
                break
            raise ValueError(f"{path}, line {number}, is not a JSON object ({error}).") from None
        rows.append(row)
    return rows


def make_folder(name: str, out: str | Path | None = None) -> Path:
    """Make a new folder: `out`, or runs/NAME-TIME under the working directory. Returns its absolute path.

    Raises FileExistsError if `out` is a file or a folder with something in it, OSError if it cannot be made.
    """
    if out is None:
        stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
        first = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        path, attempt = first, 1
        while True:  # two runs of one second get different folders: whoever makes it owns it
            try:
                path.mkdir(parents=True)
                return path.absolute()
            except FileExistsError:
                attempt += 1
                path = first.with_name(f"{first.name}-{attempt}")
            except OSError as error:
                raise _not_made(path.absolute(), error) from error
    path = Path(out).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: choose another --out.")
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(
            f"{path} already holds something: choose another --out, or continue it with `posterior resume`."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(path, error) from error
    return path


class RunDir:
    """The paths of one run and the safe ways to write them. `path` is made absolute at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.traces = self.path / "traces"
        self.checkpoints = self.path / "checkpoints"
        self.held_out = self.path / "held_out"
        self.result = self.path / "result.json"
        self.report = self.path / "report.html"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, name: str, out: str | Path | None = None) -> RunDir:
        """Make the folder of a new run (see `make_folder`) with what lies in it."""
        run = cls(make_folder(name, out))
        try:
            run.traces.mkdir()
            run.checkpoints.mkdir()
        except OSError as error:
            raise _not_made(run.path, error) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run. Raises FileNotFoundError if the folder holds neither a config nor metrics."""
        run = cls(path)
        if not run.path.is_dir():
            raise FileNotFoundError(f"There is no run directory at {run.path}.")
        if not (run.config.exists() or run.metrics.exists()):
            raise FileNotFoundError(
                f"{run.path} is not a run directory: it holds neither config.yaml nor metrics.jsonl."
            )
        return run

    def discard(self) -> None:
        """Take away a run that never started: its config.yaml, and its folders where they are empty."""
        self.config.unlink(missing_ok=True)
        for folder in (self.traces, self.checkpoints, self.path):
            try:
                folder.rmdir()
            except OSError:
                continue  # something is in it, which stays

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.jsonl in one write, newline included, handed to the system before this returns."""
        append_line(self.metrics, plain(row))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl in order; a last line cut by a kill is left out."""
        return read_lines(self.metrics)

    def truncate_metrics(self, step: int) -> None:
        """Forget what happened after the checkpoint of version `step`, which a resumed run will do again.

        Drops training rows of batches `step` and later and evaluations of versions above `step`.
        """
        kept = []
        for row in self.read_metrics():
            evaluated, batch = row.get("version", row.get("step", 0)), row.get("step", -1)
            if (evaluated <= step) if row.get("kind") == "eval" else (batch < step):
                kept.append(json.dumps(plain(row), allow_nan=False) + "\n")
        write_atomic(self.metrics, "".join(kept))

    def write_held_out(self, version: int, split: str, each: Mapping[str, Any]) -> None:
        """Keep what each task of an evaluation came to: {"tasks": ids, METRIC: [one value a task, null where unknown]}."""
        self.held_out.mkdir(exist_ok=True)
        write_atomic(self.held_out / f"{version:06d}_{split}.json", json.dumps(plain(each), allow_nan=False) + "\n")

    def read_held_out(self, split: str) -> dict[int, dict[str, list[Any]]]:
        """Version to what `write_held_out` kept of a split, oldest first. Raises ValueError naming a file that cannot be read."""
        found = {}
        for path in sorted(self.held_out.glob("*.json")):
            version, _, of = path.stem.partition("_")
            if of == split and version.isdecimal():
                try:
                    found[int(version)] = dict(json.loads(path.read_text(encoding="utf-8")))
                except ValueError as error:
                    raise ValueError(f"{path} is not valid JSON ({error}).") from None
        return found

    def truncate_held_out(self, version: int) -> None:
        """Forget evaluations of later versions, as `truncate_metrics` does."""
        for path in self.held_out.glob("*.json"):
            number = path.stem.partition("_")[0]
            if number.isdecimal() and int(number) > version:
                path.unlink()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration as YAML, keys in the order given."""
        write_atomic(self.config, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, {} if none is there yet. Raises ValueError if it is not a YAML mapping."""
        if not self.config.exists():
            return {}
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{self.config} is not valid YAML ({error}).") from None
        if not isinstance(config, dict):
            raise ValueError(f"{self.config} does not hold a mapping.")
        return config

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json: write aside, flush to disk, rename."""
        write_atomic(self.result, json.dumps(plain(result), allow_nan=False, indent=2) + "\n")

    def read_result(self) -> dict[str, Any]:
        """The final figures, {} while the run has none. Raises ValueError if the file is not a JSON object."""
        if not self.result.exists():
            return {}
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.result} is not valid JSON ({error}).") from None
        if not isinstance(result, dict):
            raise ValueError(f"{self.result} does not hold an object.")
        return result


def _not_made(path: Path, error: OSError) -> OSError:
    return OSError(f"the run directory {path} cannot be made ({error.strerror}): choose another --out.")
