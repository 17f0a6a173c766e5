"""Agda: whole proofs, given as a term of the statement's type, under `--safe` on our command line.

The statement is written twice, by us: `proof : STATEMENT ; proof = ( TERM )` in one module, `check : STATEMENT ; check = Sol.proof` in
another that knows nothing of the term. `--safe` makes Agda refuse postulates, and every import and pragma that is not safe itself. The term
stays on our line and inside our parentheses: what could end either is refused. Agda has no second, independent checker.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from envs.base import InfraError
from envs.coding.sandbox import require_sandbox
from envs.proofs import confined
from envs.proofs.backend import ProofBackend, Theorem, Verdict
from envs.proofs.confined import Job, Limits

INSTALL = "bash setup_env/setup.sh"
HEADER = """data False : Set where

absurd : { A : Set } -> False -> A
absurd ()

data _&_ ( A B : Set ) : Set where
  _,_ : A -> B -> A & B

both : { A B C : Set } -> A & B -> ( A -> B -> C ) -> C
both ( a , b ) f = f a b

data _or_ ( A B : Set ) : Set where
  left : A -> A or B
  right : B -> A or B

case : { A B C : Set } -> A or B -> ( A -> C ) -> ( B -> C ) -> C
case ( left a ) f g = f a
case ( right b ) f g = g b
"""
"""Connectives for generated lemmas."""
_REFUSED = ("{-", "--", "{!", "-}", ";", '"', "?", "\n")
_MOST_CHARACTERS = 20_000
_FLAGS = ["--safe", "--no-libraries", "--no-default-libraries"]

_CALLS = ("clone", "timerfd_create", "timerfd_settime", "timerfd_gettime", "epoll_create", "mkdir", "ftruncate")
"""Haskell keeps time in a thread of its own, and Agda writes what it has checked beside it."""
_SIMPLE = Theorem("( p : Set ) -> p -> p")


@lru_cache(maxsize=1)
def installed() -> tuple[str, str] | None:
    """(program, folder of its data), or None. Set-up unpacks Agda into the virtual environment, since its Debian package pulls
    a compiler."""
    root = Path(sys.prefix) / "agda"
    for program, data in (
        (root / "usr/bin/agda", root / "usr/share/libghc-agda-dev"),
        (Path(shutil.which("agda") or "/nonexistent"), Path("/usr/share/libghc-agda-dev")),
    ):
        if os.access(program, os.X_OK) and data.is_dir():
            return str(program), str(data)
    return None


class AgdaBackend(ProofBackend):
    """Agda 2.6.2 of Debian; whole proofs only."""

    name = "agda"

    def __init__(self, limits: Limits = Limits()) -> None:
        # Agda is slower to start than Coq, and GHC's runtime reserves address space that it never uses
        self.limits = Limits(5 * limits.cpu_seconds, max(limits.memory_mb, 2048), limits.output_bytes)

    def ready(self) -> None:
        if installed() is None:
            raise RuntimeError(f"proofs: Agda is not installed; `{INSTALL}` unpacks it into the virtual environment")
        require_sandbox()

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        self.ready()
        term = proof.strip()
        if not term or len(term) > _MOST_CHARACTERS or not term.isprintable():
            return Verdict(False, "refused: not one line of text")
        for mark in _REFUSED:
            if mark in term:
                return Verdict(False, f"refused: {mark!r}")
        if re.search(
            r"(?<![^\s(){}])(postulate|primitive|open|import|module|where|let|do|unquote\w*|quote\w*|macro|abstract)(?![^\s(){}])",
            term,
        ):
            return Verdict(False, "refused: a term only")
        if not _balanced(term):
            return Verdict(False, "refused: parentheses do not match")
        program, data = installed() or ("", "")
        command = ["/agda/bin/agda", *_FLAGS, "-i", "."]
        opening = "open import Header\n"
        files = {
            "Header.agda": f"module Header where\n{theorem.header}",
            "Sol.agda": f"module Sol where\n{opening}proof : {theorem.statement}\nproof = ( {term} )\n",
            "Check.agda": f"module Check where\n{opening}import Sol\ncheck : {theorem.statement}\ncheck = Sol.proof\n",
        }
        shown = [(program, "/agda/bin/agda"), (data, "/agda/data")]
        job = Job("/scratch/agda", [*command, "Check.agda"], files)
        (done,) = confined.run([job], self.limits, shown, {"Agda_datadir": "/agda/data"}, _CALLS)
        if done.ok:
            return Verdict(True)
        note = done.cause if done.cause != "exit" else " ".join(done.out.split())[-200:]
        # what Agda has to say of a term names the place; anything else may be our fault, and then simple terms fail as well
        strange = done.cause == "exit" and "Sol.agda:" not in done.out and theorem != _SIMPLE
        if strange and not self.check(_SIMPLE, "\\ p h -> h").proved:
            raise InfraError(f"agda fails: {note}")
        return Verdict(False, note)


def _balanced(term: str) -> bool:
    """Whether round brackets never close what the term did not open: it stays inside those that we put around it."""
    depth = 0
    for character in term:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0
