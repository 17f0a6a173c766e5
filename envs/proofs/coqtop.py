"""A warm Coq session in the sandbox: sentences in, goals out, and back to any earlier point.

The session stands at a path of sentences. To another path it goes back to where the two part (`BackTo`, about as quick as a tactic), then
forward. So a proof's state is its script, and forking one costs nothing.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence

import psutil

from envs.base import InfraError
from envs.proofs import confined
from envs.proofs.backend import Goal
from envs.proofs.confined import Limits

COQTOP = "/usr/bin/coqtop"
_PROMPT = re.compile(rb"<prompt>[^<>\n]{0,200} < (\d+) \|([^<>|\n]{0,200})\| \d+ < </prompt>")
_MOST_SENTENCES = 4000
"""Until the session is started anew: what it has forgotten keeps some memory."""
_SETUP = ("Set Silent.", "Set Printing Width 1000.", "Set Printing Depth 60.", 'Set Warnings "-all".')


class Stuck(Exception):
    """The sentence passed a limit or ended the session, by its own doing; the message says how."""


class Coqtop:
    """One coqtop process. opening: sentences that every path begins with. shown: folders it may read. flags: on its command line."""

    def __init__(
        self, opening: Sequence[str], limits: Limits, shown: Sequence[tuple[str, str]] = (), flags: Sequence[str] = ()
    ) -> None:
        self.opening, self.limits, self.shown, self.flags = tuple(opening), limits, tuple(shown), tuple(flags)
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = 0
        self._state = self._base = 0
        self._path: list[tuple[str, int]] = []
        self._sent = 0

    @property
    def pid(self) -> int | None:
        """The sandbox's outermost process, while it runs."""
        return self._process.pid if self._process else None

    def send(self, path: Sequence[str], sentences: Sequence[str]) -> tuple[int, str]:
        """Execute sentences behind a path: (how many were accepted before the first error, its message or "").

        path: sentences that were accepted before, or are ours. All goes to Coq at one go, under the limits of one sentence. Raises
        Stuck, ValueError if the path's first sentence, the statement, does not hold water, and InfraError if another of it now fails.
        """
        before, replies = self._run(path, sentences)
        self._path.clear()  # who ends a proof leaves no way back into it
        return _accepted(before, replies)

    def look(self, path: Sequence[str], sentence: str | None = None) -> tuple[str, list[Goal], bool]:
        """Execute a sentence behind a path, if one is given, and look: (its error message or "", the open goals, whether none is left
        anywhere). Raises what `send` raises."""
        before, replies = self._run(path, ["Show."] if sentence is None else [sentence, "Show."])
        shown, after = replies[-1]
        if sentence is not None:
            _, error = _accepted(before, replies[:1])
            if error:
                return error, [], False
            self._path.append((sentence, after))  # behind `Show.`, so that the next sentence follows without a way back
        return "", read_goals(shown), "No more goals" in shown

    def _run(self, path: Sequence[str], sentences: Sequence[str]) -> tuple[int, list[tuple[str, int]]]:
        """Go to a path and on from there in one exchange: (the path's state, what each sentence printed and the state behind it)."""
        if self._process is None or self._process.poll() is not None or self._sent > _MOST_SENTENCES:
            self._start()
        common = 0
        while common < min(len(path), len(self._path)) and self._path[common][0] == path[common]:
            common += 1
        target = self._path[common - 1][1] if common else self._base
        back = [f"BackTo {target}."] if self._state != target else []
        replies = self._exchange([*back, *path[common:], *sentences])
        if back and replies[0][1] != target:  # a sentence was more than one: the session has lost its place
            self._start()
            return self._run(path, sentences)
        del self._path[common:]
        way = replies[len(back) : len(back) + len(path) - common]
        done, error = _accepted(target, way)
        if error:
            self.close()
            sentence = path[common + done]
            if common + done == 0:
                raise ValueError(f"proofs: the statement is refused: {sentence[:200]}: {error[:200]}")
            raise InfraError(f"coqtop refuses a sentence that it took before: {sentence[:80]}: {error[:200]}")
        self._path += [(sentence, state) for sentence, (_, state) in zip(path[common:], way, strict=True)]
        return way[-1][1] if way else target, replies[len(back) + len(way) :]

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        self._path, self._sent, self._clock, self._state, self._base = [], 0, 0, 0, 0

    def _start(self) -> None:
        self.close()
        command = ["exec", COQTOP, "-q", "-emacs", *self.flags]
        self._process = confined.start(command, self.limits, self.shown)
        try:
            self._read(1, 60.0, 600.0)
            inside = psutil.Process(self._process.pid).children(recursive=True)[-1].pid
            self._clock = (~inside << 3) | 2  # the kernel's clock id for another process's CPU time
            opening = (*self.opening, *_SETUP)
            done, error = _accepted(self._state, self._exchange(opening))
            if error:
                raise InfraError(f"coqtop refuses {opening[done]}: {error[:300]}")
        except Stuck as error:
            raise InfraError(f"coqtop does not start: {error}") from None
        self._base, self._path = self._state, []

    def _exchange(self, sentences: Sequence[str]) -> list[tuple[str, int]]:
        """What each sentence printed, and the number of the state behind it."""
        if not sentences:
            return []
        assert self._process
        assert self._process.stdin
        self._sent += len(sentences)
        try:
            self._process.stdin.write("".join(f"{sentence}\n" for sentence in sentences).encode())
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; reading says how
        patient = 0.0 if self._base else 60.0  # it is starting
        return self._read(len(sentences), max(patient, self.limits.cpu_seconds), self.limits.wall_seconds)

    def _read(self, prompts: int, cpu: float, wall: float) -> list[tuple[str, int]]:
        assert self._process
        assert self._process.stdout
        fd, out, printed = self._process.stdout.fileno(), bytearray(), 0
        began, spent = time.monotonic(), self._cpu()
        found: list[tuple[str, int]] = []
        while True:
            if select.select([fd], [], [], min(cpu, 0.5))[0]:
                part = os.read(fd, 1 << 16)
                if not part:
                    raise self._ended(bytes(out))
                out += part
                printed += len(part)
                at = 0
                for match in _PROMPT.finditer(out):
                    found.append((out[at : match.start()].decode("utf-8", "replace"), int(match[1])))
                    at = match.end()
                del out[:at]
                if len(found) >= prompts and not out:
                    self._state = found[-1][1]
                    return found[:prompts]
                if printed > self.limits.output_bytes:
                    self.close()
                    raise Stuck("too much output")
            used = self._cpu() - spent
            if used >= cpu:
                self.close()
                raise Stuck("timeout")
            if time.monotonic() - began > wall:
                self.close()
                raise InfraError(f"coqtop: {used:.1f} s of CPU time in {wall:.0f} s, and no answer")

    def _cpu(self) -> float:
        """CPU seconds of the process in the sandbox; 0 before it runs, and once it has ended, when reading says how."""
        try:
            return time.clock_gettime(self._clock) if self._clock else 0.0
        except OSError:
            return 0.0

    def _ended(self, out: bytes) -> Exception:
        assert self._process
        code, starting = self._process.wait(), not self._base
        self.close()
        words = out.decode("utf-8", "replace").strip()[-200:]
        if code in (-9, 137) or starting:
            return InfraError(f"coqtop ended with status {code}: {words}")
        return Stuck(f"the checker ended: {words or code}")


def _accepted(before: int, replies: Sequence[tuple[str, int]]) -> tuple[int, str]:
    """(how many sentences were accepted before the first error, its message or ""): what is accepted leads to a later state."""
    for number, (out, state) in enumerate(replies):
        if state <= before:
            return number, error_text(out)
        before = state
    return len(replies), ""


def error_text(out: str) -> str:
    """Coq's message without the echo of the sentence."""
    _, _, message = out.rpartition("Error:")
    return " ".join((message or out).split()) or "no progress"


def read_goals(out: str) -> list[Goal]:
    """The goals that `Show` printed."""
    head, *later = re.split(r"\n\s*goal \d+ \(ID \d+\) is:\n", out)
    if "====" not in head:
        return []
    above, _, below = head.partition("=" * 28)
    hypotheses = []
    for line in above.splitlines()[1:]:
        names, colon, kind = line.strip().partition(" : ")
        if colon:
            hypotheses.append((names, kind))
    first = Goal(" ".join(below.split()), tuple(hypotheses))
    return [first, *(Goal(" ".join(goal.split())) for goal in later)]
