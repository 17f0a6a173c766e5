"""What the processes of a run say about themselves: events for people, and where each one stands for the watchdog.

    RUN/events.jsonl    a line for everything a person should know: deaths, returns, long waits, a full disk
    RUN/.status/NAME    a kilobyte a process, overwritten in place: its stage, what it waits for, two counters

Files, because they outlive the process that wrote them and can be read while it hangs. `moves` counts what brings the run forward,
`beats` says that the process is alive; readers compare counters with their own clock, so no two clocks need agree.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

OURS = ("posterior", "envs")
"""Loggers whose records are events, from INFO up."""
BEAT_SECONDS = 1.0
STATUS_BYTES = 1024


class DiskFull(RuntimeError):
    """Nothing more can be written; one sentence that names the place and the mend."""


@dataclass(frozen=True)
class Diary:
    """The event log and the status files of one run directory. Picklable; never raises: trouble goes to standard error."""

    folder: Path

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    def event(self, who: str, text: str, level: str = "warning") -> bool:
        """Write one event; False where it could only be said on standard error."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        try:
            append_line(self.events, {"time": now, "level": level, "who": who, "text": text})
        except OSError as error:
            print(f"{who}: {text} (not in {self.events.name}: {error.strerror})", file=sys.stderr, flush=True)
            return False
        return True

    def listen(self, who: str) -> None:
        """From now on what this process logs about the run is an event."""
        handler = _Listener(self, who)
        for name in OURS:
            logger = logging.getLogger(name)
            for old in [h for h in logger.handlers if isinstance(h, _Listener)]:
                logger.removeHandler(old)
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)

    def status(self, who: str) -> Status:
        return Status(self.folder / ".status" / who)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """What every process last said, by name; unreadable ones are left out."""
        found = {}
        for path in sorted((self.folder / ".status").glob("*")):
            try:
                found[path.name] = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue  # it is being written for the first time
        return found

    def clear_statuses(self) -> None:
        """A new attempt begins: what earlier processes said no longer holds."""
        for path in (self.folder / ".status").glob("*"):
            path.unlink(missing_ok=True)


class Status:
    """Where one process stands. The file is overwritten in place, which needs no disk space after the first time.

    Without a path nothing is written (an evaluation, a test).
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {"pid": os.getpid(), "stage": "starting", "moves": 0, "beats": 0, "error": ""}
        self._file: int | None = None
        try:
            if path is not None:
                path.parent.mkdir(exist_ok=True)
                self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            pass  # a full disk must not stop what it only watches
        self._write()

    @property
    def doing(self) -> str:
        """The present stage."""
        return str(self._state["stage"])

    def stage(self, text: str) -> None:
        """Something else begins, which is a move."""
        self._state["stage"] = text
        self.move()
        self._write()

    def move(self) -> None:
        """The run came forward; the next beat tells."""
        self._state["moves"] += 1

    def beat(self, note: str = "") -> None:
        """Still alive. note: what is waited for."""
        self._state["beats"] += 1
        self._state["note"] = note
        self._write()

    def beat_alone(self) -> None:
        """Beat from a thread of its own, until the process ends."""

        def beat() -> None:
            pause = threading.Event()
            while not pause.wait(BEAT_SECONDS):
                self.beat()

        threading.Thread(target=beat, name="beat", daemon=True).start()

    def failed(self, sentence: str) -> None:
        """Why the run stops, for the case that no other file can take it."""
        self._state["error"] = sentence
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        with self._lock:
            state = {key: value[:400] if isinstance(value, str) else value for key, value in self._state.items()}
            text = json.dumps(state).encode()
            if len(text) > STATUS_BYTES:
                text = json.dumps({**state, "note": ""}).encode()
            try:
                os.pwrite(self._file, text.ljust(STATUS_BYTES)[:STATUS_BYTES], 0)
            except OSError:
                pass


class _Listener(logging.Handler):
    """Turns log records into events."""

    def __init__(self, diary: Diary, who: str) -> None:
        super().__init__(logging.INFO)
        self._diary, self._who = diary, who

    def emit(self, record: logging.LogRecord) -> None:
        self._diary.event(self._who, record.getMessage(), record.levelname.lower())


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object and a newline to a file that several processes append to; whole, or not at all on a full disk."""
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # another writer's line may be half there; closing unlocks
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # the rest of a killed writer's line
            size = path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(file, size)
        try:
            written = os.write(file, line)
            while written < len(line):
                written += os.write(file, line[written:])
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def disk_full(error: BaseException, run: Path, doing: str) -> DiskFull | None:
    """The sentence for a user if a full disk (or quota) under the run directory is what made `doing` fail, else None.

    Libraries hide the error number: torch and safetensors raise errors of their own, so the disk is asked as well.
    """
    texts = any(
        getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(e)
        for e in _chain(error)
    )
    try:
        disk = os.statvfs(run)
        empty = disk.f_bavail * disk.f_frsize < 1 << 16
    except OSError:
        empty = False
    if not (texts or empty):
        return None
    return DiskFull(
        f"disk full while {doing}; every earlier checkpoint is whole: free space and continue with `posterior resume {run}`"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
