"""A `posterior` process that belongs to another one: it hears Ctrl-C through its parent only, and ends with it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

from posterior.rundir import RunDir

PATIENCE = 120.0
"""Seconds that a run may take to end its step and write its checkpoint before it is killed."""

_LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """In the child: hear SIGINT, which Ray's processes block, and end with the parent even if that is killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    words: Sequence[str], cwd: str | None = None, env: Mapping[str, str] | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """`posterior WORDS --json`. env: over this process's own. log: takes what it says for people (None: our standard error does)."""
    return subprocess.Popen(
        [sys.executable, "-m", "posterior", *words, "--json"],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C at the terminal is the parent's to pass on
        preexec_fn=prepare,
    )


def end(*processes: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """Ask runs to end with a checkpoint, as Ctrl-C does; kill those that do not within `patience` seconds."""
    going = [process for process in processes if process.poll() is None]
    for process in going:
        process.send_signal(signal.SIGINT)
    until = time.monotonic() + patience
    for process in going:
        try:
            process.communicate(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def failure(run: RunDir, out: bytes, code: int, log: str) -> str:
    """Why a run whose process ended failed, "" if it did not; also written to its result.json if it did not come to that itself.

    out: the one JSON object of its --json. log: the name of the file in its folder that took what else it said.
    """
    try:
        result = json.loads(out)
    except ValueError:
        result = {"ok": False, "error": f"the run ended with code {code} and no word; see {log} in its folder"}
    if result.get("ok") or result.get("status") == "interrupted" or result.get("error") == "interrupted":
        return ""
    sentence = str(result.get("error"))
    mark(run, "failed", sentence)
    return sentence


def mark(run: RunDir, status: str, error: str = "") -> None:
    """Set the status in a run's result.json, keeping what else it says. error: one sentence, replaces an earlier one."""
    result = {key: value for key, value in run.read_result().items() if key != "error"}
    steps = [row["version"] for row in run.read_metrics() if row.get("kind") == "train"]
    base = {"name": run.path.name, "status": status, "steps": max(steps, default=0)}
    run.write_result({**base, **result, "status": status, **({"error": error} if error else {})})
