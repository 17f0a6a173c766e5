"""Trainers that take turns: each is a process that waits at a gate (`benchmarks.workloads.Gate`) until its block of steps comes.

Between its blocks a contestant and all its children are stopped (SIGSTOP): the idle threads of three trainers and two engines would
otherwise take a tenth of the machine from the one whose turn it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workloads import Gate

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600
"""Seconds that a start or a block may take."""


class Contestant:
    """One process. name: for messages and its files. words: module and arguments; `{gate}` and `{rows}` are filled in.

    rows: where it writes one JSON object a step; the default is a file in `folder`. allowed: steps it may do at once.
    """

    def __init__(
        self, name: str, folder: Path, words: Sequence[str], threads: int, rows: Path | None = None, allowed: int = 0
    ) -> None:
        self.name = name
        self.folder = folder / name.replace(" ", "_")
        self.folder.mkdir(parents=True)
        self.gate = Gate(self.folder)
        self.gate.allow(allowed)
        self.rows_file = rows or self.folder / "rows.jsonl"
        self._log = (self.folder / "log").open("w")
        filled = [word.format(gate=self.folder, rows=self.rows_file) for word in words]
        variables = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", *filled],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables, **quiet},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._allowed = allowed

    def rows(self) -> list[dict[str, Any]]:
        """All steps so far."""
        if not self.rows_file.exists():
            return []
        lines = self.rows_file.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row.get("kind", "train") == "train"]

    def ready(self) -> None:
        """Wait until it stands at its gate, having done all it was allowed to."""
        deadline = time.monotonic() + PATIENCE
        while not (self.gate.waits() and len(self.rows()) >= self._allowed):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} ended or hangs; the end of its output:\n{self.output()[-3000:]}")
            time.sleep(0.02)

    def block(self, steps: int) -> list[dict[str, Any]]:
        """Let it do steps + 1 steps and return the last `steps`: the first holds the wait at the gate."""
        before = len(self.rows())
        self._allowed += steps + 1
        self._signal(signal.SIGCONT)
        self.gate.allow(self._allowed)
        self.ready()
        self._signal(signal.SIGSTOP)
        return self.rows()[before + 1 : before + 1 + steps]

    def output(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End it with everything it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        """To the process and everything it started."""
        try:
            parent = psutil.Process(self._process.pid)
            family = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                pass
