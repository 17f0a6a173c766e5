"""Where statements come from: the lemma generator, or a file. One interface to both: splits, and the problems of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """id: unique in its split. statement: closed, in the backend's language. proof: a known one; "" if none. tactics: of the proof, where
    they are known one by one. family, size: of generated lemmas."""

    id: str
    statement: str
    proof: str = ""
    tactics: tuple[str, ...] = ()
    family: str = ""
    size: int = 0


class Source(ABC):
    """header: definitions and imports before every statement. facts: what to tell a chat model of it."""

    header: str = ""
    facts: Sequence[str] = ()

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Their names, the one to train on first."""

    @abstractmethod
    def problems(self, split: str) -> Sequence[Problem]:
        """All of a split."""
