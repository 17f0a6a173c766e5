"""The interface to a proof checker: whole proofs, and sessions that take one tactic after another and can be forked.

The statement is always ours; the candidate gives a proof of it and nothing else. Whatever a proof does, `check` and `step` answer; they
raise `InfraError` only where our own machinery fails.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Theorem:
    """What is to be proven. statement: in the checker's language, closed. header: definitions and imports before it, ours as well."""

    statement: str
    header: str = ""


@dataclass(frozen=True)
class Verdict:
    """proved: the checker, and a second one independent of the first, accept the proof, and it rests on no assumption. note: why not."""

    proved: bool
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """hypotheses: (names, type) in order. conclusion: what is left to prove. Later goals come without hypotheses."""

    conclusion: str
    hypotheses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a tactic led to. goals: open now, the first one in focus. error: "" or the checker's words; then nothing has changed.
    closed: no goal is open; whether that is a proof, `ProofSession.verdict` says."""

    goals: tuple[Goal, ...] = ()
    error: str = ""
    closed: bool = False


class ProofSession(ABC):
    """A proof under construction."""

    @abstractmethod
    def goals(self) -> Reply:
        """Where the proof stands."""

    @abstractmethod
    def step(self, tactic: str) -> Reply:
        """Apply one tactic."""

    @abstractmethod
    def fork(self) -> ProofSession:
        """A session of its own that stands where this one does."""

    @abstractmethod
    def script(self) -> tuple[str, ...]:
        """The tactics so far; `ProofBackend.open` with them leads back here."""

    @abstractmethod
    def verdict(self) -> Verdict:
        """Check the proof so far as a whole proof, independently of this session."""


class ProofBackend(ABC):
    """One proof checker."""

    name: str

    @abstractmethod
    def ready(self) -> None:
        """Raise RuntimeError, in one sentence that says what to install or give, where the checker cannot run."""

    @abstractmethod
    def check(self, theorem: Theorem, proof: str) -> Verdict:
        """Judge a whole proof."""

    def open(self, theorem: Theorem, script: tuple[str, ...] = ()) -> ProofSession:
        """Begin a proof, with the tactics `script` done already. Raises RuntimeError where the checker has no sessions."""
        raise RuntimeError(f"{self.name} checks whole proofs only; for proofs tactic by tactic use another backend")

    def close(self) -> None:  # noqa: B027 (optional hook)
        """End what the backend keeps running."""
