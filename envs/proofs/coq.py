"""Coq: whole proofs and sessions, and the check that decides a grade.

    first     a warm coqtop in the sandbox runs the tactics, one by one, and the kernel types the result (`Qed`); milliseconds
    then      what passed is checked from nothing, in a fresh sandbox, by three processes:
              Sol.v    the candidate's tactics under our statement; coqc
              Check.v  our statement again, typed before Sol is loaded, and `check : goal := Sol.proof`; `Print Assumptions` must say
                       "Closed under the global context"; coqc
              coqchk   types both files again, and must list no axiom and no relaxed rule

Only the second check grants a proof. Sol's process sees nothing of Check's, and the candidate's text reaches nothing but Sol's. Proofs that
wait at the same time share a check, since most of its time goes into starting; if that fails, each is checked alone.
"""

from __future__ import annotations

import atexit
import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from envs.base import InfraError
from envs.coding.sandbox import require_sandbox
from envs.proofs import confined, script
from envs.proofs.backend import ProofBackend, ProofSession, Reply, Theorem, Verdict
from envs.proofs.confined import Job, Limits
from envs.proofs.coqtop import COQTOP, Coqtop, Stuck

INSTALL = "apt-get install -y --no-install-recommends coq"
COQC, COQCHK = "/usr/bin/coqc", "/usr/bin/coqchk"
_CLOSED = "Closed under the global context"
_CLEAN = (
    "* Theory: Set is predicative * Axioms: <none> * Constants/Inductives relying on type-in-type: <none> "
    "* Constants/Inductives relying on unsafe (co)fixpoints: <none> * Inductives whose positivity is assumed: <none>"
)
"""coqchk's summary where there is no header; with one it must be as the header alone leaves it."""
_SIMPLE = Theorem("True"), ("exact I .",)
_IMPORTS = re.compile(
    r"(?:^|(?<=\s))(?:(?:From\s+\S+\s+)?Require\s+(?:Import|Export)|Import|(?:Local\s+|Global\s+)?Open\s+Scope)\s.*?\.(?=\s|$)",
    re.DOTALL,
)
_KEPT_VERDICTS, _KEPT_REPLIES = 20_000, 20_000
_HEADERS = 3
"""Headers of which a warm session is kept."""


class CoqBackend(ProofBackend):
    """Coq of the Debian package, one warm session a header; may be called from several threads.

    read: how a candidate's text is taken apart; tests and attacks put another reader in its place.
    """

    name = "coq"
    _shared: ClassVar[dict[Limits, CoqBackend]] = {}

    def __init__(self, limits: Limits = Limits(), read: Callable[[str], list[str]] = script.sentences) -> None:
        self.limits, self.read = limits, read
        self._lock, self._kept = threading.RLock(), threading.Lock()
        self._sessions: OrderedDict[str, Coqtop] = OrderedDict()
        self._headers: dict[str, tuple[Path, str]] = {}
        self._verdicts: OrderedDict[tuple[Theorem, tuple[str, ...]], Future[Verdict]] = OrderedDict()
        self._replies: OrderedDict[tuple[Theorem, tuple[str, ...], str | None], Reply] = OrderedDict()
        self._queue = _Batches(self.certify)

    @classmethod
    def shared(cls, limits: Limits = Limits()) -> CoqBackend:
        """The backend of this process with these limits, closed at exit."""
        if limits not in cls._shared:
            cls._shared[limits] = cls(limits)
            atexit.register(cls._shared[limits].close)
        return cls._shared[limits]

    def ready(self) -> None:
        if not all(shutil.which(program) for program in (COQTOP, COQC, COQCHK)):
            raise RuntimeError(f"proofs: Coq is not installed; install it with `{INSTALL}`")
        require_sandbox()

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        try:
            tactics = tuple(self.read(proof))
        except script.Refused as error:
            return Verdict(False, f"refused: {error}")
        return self.check_script(theorem, tactics)

    def check_script(self, theorem: Theorem, tactics: tuple[str, ...]) -> Verdict:
        """`check` of a proof that is taken apart already. The same proof is judged once, also while it is under way."""
        key = (theorem, tactics)
        with self._kept:
            kept = self._verdicts.get(key)
            mine = kept is None
            if kept is None:
                kept = self._verdicts[key] = Future()
            while len(self._verdicts) > _KEPT_VERDICTS:
                self._verdicts.popitem(last=False)
        if mine:
            try:
                verdict = self.rehearse(theorem, tactics)
                kept.set_result(self._queue.ask(theorem, tactics) if verdict.proved else verdict)
            except BaseException as error:
                with self._kept:
                    self._verdicts.pop(key, None)  # a fault is no verdict
                kept.set_exception(error)
        return kept.result()

    def open(self, theorem: Theorem, script: tuple[str, ...] = ()) -> CoqSession:
        return CoqSession(self, theorem, script)

    def close(self) -> None:
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].close()
            for folder, _ in self._headers.values():
                shutil.rmtree(folder, ignore_errors=True)
            self._headers.clear()

    def session(self, header: str) -> Coqtop:
        """The warm session of a header; hold `lock` while using it."""
        if header not in self._sessions:
            while len(self._sessions) >= _HEADERS:
                self._sessions.popitem(last=False)[1].close()
            self._sessions[header] = Coqtop(_opening(header), self.limits, *self._where(header))
        self._sessions.move_to_end(header)
        return self._sessions[header]

    def look(self, theorem: Theorem, done: tuple[str, ...], sentence: str | None = None) -> Reply:
        """What a tactic leads to behind those that are done, or where these stand; raises what `Coqtop.look` raises. Asked again it is
        read from memory: the episodes of a group begin alike, and play in turns, so that each would have to lead the one session back."""
        key = (theorem, done, sentence)
        reply = self._replies.get(key)
        if reply is not None:
            return reply
        with self._lock:
            reply = self._replies.get(key)  # another may have asked while this one waited for the session
            if reply is None:
                error, goals, closed = self.session(theorem.header).look([_opened(theorem), *done], sentence)
                reply = self._replies[key] = Reply(tuple(goals), error, closed)
                while len(self._replies) > _KEPT_REPLIES:
                    self._replies.popitem(last=False)
        return reply

    def forget(self) -> None:
        """Drop the verdicts and replies that are kept."""
        with self._kept:
            self._verdicts.clear()
        with self._lock:
            self._replies.clear()

    def process_ids(self) -> list[int]:
        """The warm sessions' outermost processes on this machine, for tests."""
        with self._lock:
            return [pid for session in self._sessions.values() if (pid := session.pid)]

    @property
    def lock(self) -> threading.RLock:
        return self._lock

    def _where(self, header: str) -> tuple[list[tuple[str, str]], list[str]]:
        """(folders to show, flags) with which the compiled header is found. Raises ValueError where it does not compile."""
        if not header.strip():
            return [], []
        with self._lock:
            if header not in self._headers:
                files = {"Header.v": header}
                patient = Limits(60.0, self.limits.memory_mb, self.limits.output_bytes)
                where = ["-Q", "/scratch/header", "Trusted"]
                jobs = [
                    Job("/scratch/header", [COQC, "-q", "-noglob", *where, "Header.v"], files, "Header.vo"),
                    Job("/scratch/again", [COQCHK, "-silent", "-o", *where, "-norec", "Trusted.Header"]),
                ]
                done = confined.run(jobs, patient)
                if not done[-1].ok:
                    raise ValueError(f"proofs: the header does not compile: {' '.join(done[-1].out.split())[-300:]}")
                folder = Path(tempfile.mkdtemp(prefix="proofs-"))
                folder.chmod(0o755)
                (folder / "Header.vo").write_bytes(done[0].kept)
                self._headers[header] = folder, _summary(done[1].out)
            return [(str(self._headers[header][0]), "/header")], ["-Q", "/header", "Trusted"]

    def rehearse(self, theorem: Theorem, tactics: Sequence[str]) -> Verdict:
        """Run the proof in the warm session; nothing of it stays."""
        try:
            with self._lock:
                done, error = self.session(theorem.header).send([_opened(theorem)], [*tactics, "Qed."])
        except Stuck as stuck:
            return Verdict(False, str(stuck))
        return Verdict(False, f"sentence {done + 1}: {error[:200]}") if error else Verdict(True)

    def certify(self, proofs: Sequence[tuple[Theorem, tuple[str, ...]]]) -> list[Verdict]:
        """The check that counts, of proofs under one header."""
        header = proofs[0][0].header
        together = [p for p in proofs if p[0].header == header]
        if len(together) < len(proofs):
            return [self.certify([proof])[0] for proof in proofs]
        note = self.certified(header, proofs)
        if not note:
            return [Verdict(True)] * len(proofs)
        if len(proofs) == 1:  # rare, since it passed in the warm session: a fault of ours would look the same
            if self.certified(header, [_SIMPLE]):
                raise InfraError(f"the check of a simple proof fails too: {note}")
            return [Verdict(False, note)]
        half = len(proofs) // 2
        return [*self.certify(proofs[:half]), *self.certify(proofs[half:])]

    def certified(
        self, header: str, proofs: Sequence[tuple[Theorem, tuple[str, ...]]], names: Sequence[str] | None = None
    ) -> str:
        """ "" if every proof holds; otherwise what is wrong with one of them. names: of the theorems, for tests; by default secret, so that
        no proof can use another."""
        names = names or [f"proof_{secrets.token_hex(8)}" for _ in proofs]
        solution, check = _opening(header), _opening(header)
        for name, (theorem, tactics) in zip(names, proofs, strict=True):
            solution += [f"Theorem {name} : {theorem.statement} .", "Proof.", *tactics, "Qed."]
            check += [f"Definition goal_{name} : Prop := {theorem.statement} ."]
        check += ["From Candidate Require Sol."]
        for name in names:
            check += [
                f"Definition check_{name} : goal_{name} := Candidate.Sol.{name}.",
                f"Print Assumptions check_{name}.",
            ]
        shown, flags = self._where(header)
        mine, ours = ["-Q", "/scratch/sol", "Candidate"], ["-Q", "/scratch/check", "Ours"]
        coqc = [COQC, "-q", "-noglob", "-w", "none", *flags]
        files = {"Sol.v": "\n".join(solution) + "\n"}, {"Check.v": "\n".join(check) + "\n"}
        again = [COQCHK, "-silent", "-o", *flags, *mine, *ours, "-norec", "Candidate.Sol", "-norec", "Ours.Check"]
        jobs = [
            Job("/scratch/sol", [*coqc, *mine, "Sol.v"], files[0]),
            Job("/scratch/check", [*coqc, *mine, *ours, "Check.v"], files[1]),
            Job("/scratch/again", again),
        ]
        # room to start, so that a proof that passed in the warm session is not cut here
        limits = replace(self.limits, cpu_seconds=2 * self.limits.cpu_seconds + 2)
        done = confined.run(jobs, limits, shown)
        for step, what in zip(done, ("the proof", "the statement", "the second checker"), strict=False):
            if not step.ok:
                return f"{what}: {step.cause if step.cause != 'exit' else ' '.join(step.out.split())[-200:]}"
        if len(done) < len(jobs):
            raise InfraError("proof checker: a step of the check is missing")
        if done[1].out.split("\n") != [_CLOSED] * len(proofs) + [""]:
            return f"assumptions: {' '.join(done[1].out.split())[:200]}"
        if _summary(done[2].out) != (self._headers[header][1] if shown else _CLEAN):
            return f"the second checker: {' '.join(done[2].out.split())[-300:]}"
        return ""


class CoqSession(ProofSession):
    """A proof as its script; the backend's warm session goes wherever it is asked."""

    def __init__(self, backend: CoqBackend, theorem: Theorem, script: tuple[str, ...] = ()) -> None:
        self._backend, self._theorem, self._script = backend, theorem, script

    def goals(self) -> Reply:
        try:
            return self._backend.look(self._theorem, self._script)
        except Stuck as error:  # it passed its limits before
            raise InfraError(f"a proof that ran before does not now: {error}") from None

    def step(self, tactic: str) -> Reply:
        try:
            sentences = self._backend.read(tactic)
        except script.Refused as refused:
            return Reply(error=f"refused: {refused}")
        if len(sentences) > 1:
            return Reply(error="refused: more than one tactic")
        try:
            reply = self._backend.look(self._theorem, self._script, sentences[0])
        except Stuck as stuck:
            return Reply(error=str(stuck))
        if not reply.error:
            self._script += (sentences[0],)
        return reply

    def fork(self) -> CoqSession:
        return CoqSession(self._backend, self._theorem, self._script)

    def script(self) -> tuple[str, ...]:
        return self._script

    def verdict(self) -> Verdict:
        return self._backend.check_script(self._theorem, self._script)


def _opened(theorem: Theorem) -> str:
    return f"Theorem proof : {theorem.statement} ."


def _opening(header: str) -> list[str]:
    """The sentences that put the header into force: what it imports and opens, which ends with its file, and the file itself."""
    again = _IMPORTS.findall(re.sub(r"\(\*.*?\*\)", " ", header, flags=re.DOTALL))
    imports = [" ".join(sentence.split()) for sentence in again]
    return [*imports, "From Trusted Require Import Header."] if header.strip() else []


def _summary(out: str) -> str:
    """coqchk's report on what the checked files rest on."""
    return " ".join(out.rpartition("===\n")[2].split())


class _Batches:
    """Calls that wait while another runs are answered together by the next."""

    MOST = 32

    def __init__(self, work: Callable[[Sequence[tuple[Theorem, tuple[str, ...]]]], list[Verdict]]) -> None:
        self._work = work
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._waiting: list[_Call] = []

    def ask(self, theorem: Theorem, tactics: tuple[str, ...]) -> Verdict:
        call = _Call(theorem, tactics)
        with self._guard:
            self._waiting.append(call)
        with self._turn:
            while call.verdict is None and call.error is None:  # more may wait than one batch takes
                self._serve()
        if call.error is not None:
            raise call.error
        assert call.verdict is not None
        return call.verdict

    def _serve(self) -> None:
        with self._guard:
            batch, self._waiting = self._waiting[: self.MOST], self._waiting[self.MOST :]
        try:
            for call, verdict in zip(batch, self._work([(c.theorem, c.tactics) for c in batch]), strict=True):
                call.verdict = verdict
        except Exception as error:
            for call in batch:
                call.error = error


class _Call:
    def __init__(self, theorem: Theorem, tactics: tuple[str, ...]) -> None:
        self.theorem, self.tactics = theorem, tactics
        self.verdict: Verdict | None = None
        self.error: Exception | None = None
