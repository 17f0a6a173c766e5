"""Whole runs as a user starts them: what the tests of runs and of crash drills share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
STEPS = 14


def config(folder: Path, **more: Any) -> dict[str, Any]:
    """A small configuration; keywords are sections to change."""
    base: dict[str, Any] = {
        "name": "test",
        "model": {"path": str(folder), "max_length": 320},
        "sampling": {"max_tokens": 24},
        "train": {"steps": STEPS, "batch_groups": 3, "checkpoint_every": 2},
        "eval": {"every": STEPS // 2, "tasks": 4},
        "algorithm": {"name": "rlvr", "group_size": 3},
        "log": {"traces_every": 2},
    }
    for key, value in more.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return base


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(*words: str, cwd: Path = ROOT, stderr: Path | None = None) -> subprocess.Popen[str]:
    """A `posterior` process. stderr: a file for what it says while it goes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "posterior", *words, "--json"],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stderr is None else stderr.open("w"),
        text=True,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """Kill what a failed test left running."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            whole = psutil.Process(process.pid)
            for p in [*whole.children(recursive=True), whole]:
                try:
                    p.kill()
                except psutil.Error:
                    continue  # it has just ended


def result(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """Wait for the end; the JSON object it printed."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, (err or out)[-4000:]
    return json.loads(out)


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock wrote."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith("time/") and k not in ("seconds", "tokens/per_second")}
        for line in lines
    ]


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(what: str, reached: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if reached():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} was not reached; {process.communicate() if process.poll() is not None else ''}")


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    def reached() -> bool:
        there = (run / "metrics.jsonl").exists()
        return there and any(row.get("step", -1) >= step for row in rows(run) if row["kind"] == "train")

    wait_until(f"step {step}", reached, process)


def find(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """The descendants of a run whose title begins with `name`."""
    found = []
    for p in psutil.Process(process.pid).children(recursive=True):
        try:
            if "".join(p.cmdline()).startswith(name):
                found.append(p)
        except psutil.Error:
            continue  # it has just ended
    return found


def processes(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """`find`, where there must be one."""
    found = find(process, name)
    assert found, f"no process {name}"
    return found
