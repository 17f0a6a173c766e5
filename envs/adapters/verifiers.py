"""Tasksets of verifiers v1 whose rewards read the answer alone.

    posterior envs check verifiers taskset=my_taskset path=my_folder python=.venv-verifiers/bin/python

verifiers 0.4.0 wants older releases of mcp and openai than vLLM does, so the two cannot share an environment. It stays in one of its
own, and a process of that environment lists the tasks and scores the answers (envs/adapters/verifiers_worker.py). The answer is put
behind the prompt as a verifiers Trace and given to the task's own `score`. Tasksets that need tools, a container or a model endpoint of
their own (harbor, nemo_gym, openenv, textarena) are refused in one sentence.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import select
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from envs.base import Grade, InfraError, SingleTurnEnv, Task

SPLITS = ("train", "test")
EVERY = 8
"""One prompt in so many is held out."""
VARIABLE = "POSTERIOR_VERIFIERS_PYTHON"
SECONDS = {"load": 600.0, "tasks": 300.0, "score": 120.0}
"""For one answer of the other process, by request; the first imports verifiers, which is slow."""
INSTALL = "python3 -m venv .venv-verifiers && .venv-verifiers/bin/pip install verifiers==0.4.0"


class Verifiers(SingleTurnEnv):
    """taskset: id of the taskset, as verifiers has it: the name of a module that exports it. config: the taskset's own options.
    path: folders from which it is imported. answer: field of the task's data that holds a good answer y*, where it has one.
    python: a Python that has verifiers (default: POSTERIOR_VERIFIERS_PYTHON, or this one). train, test: most tasks of a split.

    The grade is the weighted sum of the rewards; a task is solved at 1.
    """

    description: ClassVar[str] = "a taskset of verifiers v1, scored by its own rewards (taskset=...)"

    def __init__(
        self,
        taskset: str,
        config: Mapping[str, Any] | None = None,
        path: str | Sequence[str] = (),
        answer: str = "answer",
        python: str | None = None,
        train: int = 10_000,
        test: int = 1000,
    ) -> None:
        folders = [path] if isinstance(path, str) else list(path)
        self.taskset, self.answer = taskset, answer
        self.sizes = {"train": train, "test": test}
        self.load = {"taskset": taskset, "config": dict(config or {}), "path": [os.path.abspath(f) for f in folders]}
        self.python = python or os.environ.get(VARIABLE) or sys.executable

    def ready(self) -> None:
        """Raises ValueError if the other Python or its verifiers is missing, or the taskset does not suit."""
        self._ask({"tasks": [0, 1]}, ValueError)

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Iterator[Task]:
        if split not in SPLITS:
            raise ValueError(f"verifiers {self.taskset} has no split {split!r}; there are: {', '.join(SPLITS)}")
        return self._stream(split)

    def _stream(self, split: str) -> Iterator[Task]:
        start, told = 0, 0
        while True:
            rows = self._ask({"tasks": [start, 64]}, ValueError)["tasks"]
            for index, row in enumerate(rows, start):
                mark = zlib.crc32(json.dumps(row["prompt"]).encode()) % EVERY
                if (mark == 0) != (split == "test"):
                    continue
                if told == self.sizes[split]:
                    return
                told += 1
                good = row["data"].get(self.answer)
                yield Task(
                    f"{split}-{index}", row["prompt"], good if isinstance(good, str) else None, meta={"index": index}
                )
            if len(rows) < 64:
                return
            start += 64

    async def grade(self, task: Task, text: str) -> Grade:
        """0 with a note where the taskset's own code raises; InfraError where its process dies or does not answer."""
        plain = text.encode("utf-8", "replace").decode()  # lone surrogates cannot travel
        found = await asyncio.to_thread(self._ask, {"score": [task.meta["index"], plain]}, None)
        if "error" in found:
            return Grade(0.0, note=found["error"])
        parts = {name: float(score) for name, (score, _) in found["rewards"].items()}
        value = math.fsum(float(score) * float(weight) for score, weight in found["rewards"].values())
        return Grade(value, parts | {name: float(v) for name, v in found["metrics"].items()})

    def _ask(self, request: dict[str, Any], refusal: type[Exception] | None) -> dict[str, Any]:
        """The worker's answer; an {"error"} in it raises `refusal`, where one is given."""
        answer = _Process.of(self.python, json.dumps(self.load, sort_keys=True)).ask(request)
        if "error" in answer and refusal is not None:
            raise refusal(f"verifiers taskset {self.taskset!r} cannot be used: {answer['error']}")
        return answer


class _Process:
    """One worker for all instances of a process that use the same taskset; started again when it dies."""

    _all: ClassVar[dict[tuple[str, str], _Process]] = {}

    @classmethod
    def of(cls, python: str, load: str) -> _Process:
        return cls._all.setdefault((python, load), cls(python, load))

    def __init__(self, python: str, load: str) -> None:
        self.python, self.load = python, load
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self._start()
            return self._exchange(request)

    def _start(self) -> None:
        probe = [self.python, "-P", "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('verifiers') is None)"]
        try:
            missing = subprocess.run(probe, check=False, capture_output=True).returncode != 0
        except OSError as error:
            raise ValueError(f"verifiers: {self.python} does not start: {error.strerror}") from error
        if missing:
            raise ValueError(
                f"verifiers: {self.python} has no package verifiers; it needs an environment of its own: {INSTALL}, "
                "then env.args.python=.venv-verifiers/bin/python"
            )
        worker = Path(__file__).with_name("verifiers_worker.py")
        # -P: the worker's folder must not hide the package verifiers behind the module of the same name
        self.process = subprocess.Popen(
            [self.python, "-P", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        answer = self._exchange({"load": json.loads(self.load)})
        if "error" in answer:
            self.process.kill()
            raise ValueError(f"verifiers: the taskset does not load: {answer['error']}")

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        line, seconds = "", SECONDS[next(iter(request))]
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], seconds)[0]:
                line = process.stdout.readline()
        except OSError:
            pass  # it died; said below
        if not line:
            process.kill()
            raise InfraError(f"verifiers: the worker of {self.load[:80]} died or did not answer in {seconds:g} s")
        found: dict[str, Any] = json.loads(line)
        return found
