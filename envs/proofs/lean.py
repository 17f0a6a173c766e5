"""Lean 4, with a toolchain that the user supplies. UNTESTED HERE: no toolchain can be had on the machines this project is built on; it is
written against the documented interfaces of `lean`, `lean4checker` and the community's `repl`.

    POSTERIOR_LEAN           the toolchain's folder, which holds bin/lean
    POSTERIOR_LEAN_CHECKER   the program lean4checker, where the toolchain has no bin/leanchecker
    POSTERIOR_LEAN_REPL      the program repl (github.com/leanprover-community/repl), for proofs tactic by tactic
    POSTERIOR_LEAN_PATH      folders of compiled libraries, such as Mathlib's, divided by colons

A whole proof is compiled as `theorem proof : STATEMENT := by TACTICS`; then a module of ours states the same again, proves it by `proof`,
and prints the axioms, of which only Lean's own three may occur; then the checker replays both modules in the kernel. Since an imported
module may change what ours means (macros, notations), every word that begins a command is refused in a proof.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from envs.base import InfraError
from envs.coding.sandbox import require_sandbox
from envs.proofs import confined
from envs.proofs.backend import Goal, ProofBackend, ProofSession, Reply, Theorem, Verdict
from envs.proofs.confined import Job, Limits

OWN_AXIOMS = {"propext", "Classical.choice", "Quot.sound"}
_CALLS = ("clone",)
"""Lean works with threads."""
_MOST_CHARACTERS = 20_000
_REFUSED = re.compile(
    r"#|\"|/-|--|(?<![\w.'])(?:theorem|lemma|def|abbrev|example|instance|axiom|opaque|constant|structure|class|inductive|coinductive|mutual"
    r"|namespace|section|end|variable|universe|open|export|import|attribute|macro\w*|syntax|notation\w*|infix[lr]?|prefix|postfix|elab\w*"
    r"|declare_\w+|set_option|initialize|builtin_\w+|deriving|run_\w+|eval\w*|unsafe|partial|private|protected|public|meta|noncomputable"
    r"|local|scoped|include|omit|register_\w+|implemented_by|extern|sorry|admit|native_decide|decide\s*\+native|stop|by_elab)(?![\w'])"
)


class LeanBackend(ProofBackend):
    """Lean 4 of the user's."""

    name = "lean"

    def __init__(self, limits: Limits = Limits()) -> None:
        # the libraries are mapped into memory, and loading Mathlib alone takes seconds
        self.limits = Limits(10 * limits.cpu_seconds, max(limits.memory_mb, 16_384), limits.output_bytes)

    def ready(self) -> None:
        folder = os.environ.get("POSTERIOR_LEAN", "")
        if not folder:
            raise RuntimeError(
                "proofs: Lean is not here; set POSTERIOR_LEAN to the folder of a Lean 4 toolchain (it holds bin/lean)"
            )
        if not os.access(f"{folder}/bin/lean", os.X_OK):
            raise RuntimeError(
                f"proofs: POSTERIOR_LEAN={folder} has no bin/lean; give the folder of a Lean 4 toolchain"
            )
        if not _checker():
            raise RuntimeError(
                "proofs: Lean proofs are checked twice; set POSTERIOR_LEAN_CHECKER to the program lean4checker"
            )
        require_sandbox()

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        self.ready()
        refused = _refusal(proof)
        if refused:
            return Verdict(False, f"refused: {refused}")
        block = "\n".join(f"  {line}" for line in proof.strip("\n").splitlines())
        stated = f"({theorem.statement})"
        imports, header = _parted(theorem.header)
        sol = f"{imports}\n{header}\ntheorem proof : {stated} := by\n{block}\n"
        ours = f"{imports}\nimport Sol\n{header}\ntheorem check : {stated} := proof\n#print axioms check\n"
        lean = "/lean/bin/lean"
        jobs = [
            Job("/scratch/sol", [lean, "-o", "Sol.olean", "Sol.lean"], {"Sol.lean": sol}),
            Job("/scratch/check", [lean, "-o", "Check.olean", "Check.lean"], {"Check.lean": ours}),
            Job("/scratch/again", [_inside(_checker()), "Sol", "Check"]),
        ]
        shown, environment = _where()
        done = confined.run(jobs, self.limits, shown, environment, _CALLS)
        for step, what in zip(done, ("the proof", "the statement", "the second checker"), strict=False):
            if not step.ok:
                return Verdict(
                    False, f"{what}: {step.cause if step.cause != 'exit' else ' '.join(step.out.split())[-200:]}"
                )
        axioms = re.search(r"depends on axioms: \[(.*?)\]", done[1].out, re.DOTALL)
        if "sorry" in done[0].out or not (axioms or "does not depend on any axioms" in done[1].out):
            return Verdict(False, f"assumptions: {' '.join(done[1].out.split())[:200]}")
        others = {name.strip() for name in axioms[1].split(",")} - OWN_AXIOMS if axioms else set()
        return Verdict(not others, f"assumptions: {', '.join(sorted(others))}" if others else "")

    def open(self, theorem: Theorem, script: tuple[str, ...] = ()) -> ProofSession:
        self.ready()
        if not os.access(os.environ.get("POSTERIOR_LEAN_REPL", ""), os.X_OK):
            raise RuntimeError(
                "proofs: Lean tactic by tactic needs the community's repl; set POSTERIOR_LEAN_REPL to the program"
            )
        repl = Repl(self.limits, theorem)
        session = LeanSession(self, theorem, repl, repl.first, ())
        for tactic in script:
            reply = session.step(tactic)
            if reply.error:
                raise InfraError(f"lean refuses a tactic that it took before: {tactic[:80]}: {reply.error[:200]}")
        return session


class LeanSession(ProofSession):
    """The repl keeps every state it was in, so that a fork is another session at the same number."""

    def __init__(self, backend: LeanBackend, theorem: Theorem, repl: Repl, state: int, script: tuple[str, ...]) -> None:
        self._backend, self._theorem, self._repl, self._state, self._script = backend, theorem, repl, state, script
        self._goals = Reply((Goal(theorem.statement),))

    def goals(self) -> Reply:
        return self._goals

    def step(self, tactic: str) -> Reply:
        refused = _refusal(tactic)
        if refused:
            return Reply(error=f"refused: {refused}")
        answer = self._repl.ask({"tactic": tactic, "proofState": self._state})
        errors = [m.get("data", "") for m in answer.get("messages", []) if m.get("severity") == "error"]
        if "proofState" not in answer or errors or answer.get("sorries"):
            return Reply(error=str(answer.get("message") or "; ".join(errors) or "sorry")[:400])
        self._state, self._script = int(answer["proofState"]), (*self._script, tactic)
        goals = tuple(_goal(text) for text in answer.get("goals", []))
        self._goals = Reply(goals, closed=not goals)
        return self._goals

    def fork(self) -> LeanSession:
        fork = LeanSession(self._backend, self._theorem, self._repl, self._state, self._script)
        fork._goals = self._goals
        return fork

    def script(self) -> tuple[str, ...]:
        return self._script

    def verdict(self) -> Verdict:
        return self._backend.check(self._theorem, "\n".join(self._script))


class Repl:
    """One repl process in the sandbox, at work on one theorem. Raises InfraError where it fails."""

    def __init__(self, limits: Limits, theorem: Theorem) -> None:
        self.limits = limits
        shown, environment = _where()
        command = [
            "exec",
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in environment.items()),
            "/lean_repl/repl",
        ]
        self._process = confined.start(command, limits, shown, errors=subprocess.DEVNULL, calls=_CALLS)
        imports, header = _parted(theorem.header)
        answer = self.ask({"cmd": imports})
        stated = {"cmd": f"{header}\ntheorem proof : ({theorem.statement}) := by sorry", "env": answer.get("env", 0)}
        sorries = self.ask(stated).get("sorries") or [{}]
        if "proofState" not in sorries[0]:
            raise InfraError(f"lean's repl does not take the statement {theorem.statement[:100]!r}")
        self.first = int(sorries[0]["proofState"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one command; {} where the limit passed before it came."""
        assert self._process.stdin
        assert self._process.stdout
        if self._process.poll() is not None:
            return {"message": "the checker ended"}
        self._process.stdin.write(json.dumps(question).encode() + b"\n\n")
        self._process.stdin.flush()
        fd, out, deadline = self._process.stdout.fileno(), bytearray(), time.monotonic() + self.limits.wall_seconds
        while len(out) <= self.limits.output_bytes:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.kill()
                return {"message": "timeout"}
            part = os.read(fd, 1 << 16)
            if not part:
                return {"message": "the checker ended"}
            out += part
            if out.endswith(b"\n\n"):
                answer = json.loads(out)
                if not isinstance(answer, dict):
                    raise InfraError("lean's repl answers with something else than an object")
                return answer
        self._process.kill()
        return {"message": "too much output"}

    def __del__(self) -> None:
        self._process.kill()
        self._process.wait()


def _refusal(proof: str) -> str:
    if not proof.strip() or len(proof) > _MOST_CHARACTERS:
        return "no tactic" if not proof.strip() else "too long"
    found = _REFUSED.search(proof)
    return repr(found[0]) if found else ""


def _goal(text: str) -> Goal:
    """ "p q : Prop\nh : p\n⊢ q" """
    above, _, conclusion = text.partition("⊢")
    lines = [line.partition(" : ") for line in above.splitlines() if " : " in line]
    return Goal(" ".join(conclusion.split()), tuple((names.strip(), kind.strip()) for names, _, kind in lines))


def _parted(header: str) -> tuple[str, str]:
    """(its imports, the rest): imports come first in a Lean file."""
    lines = header.splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    return "\n".join(imports), "\n".join(line for line in lines if not line.startswith("import "))


def _checker() -> str:
    bundled = f"{os.environ.get('POSTERIOR_LEAN', '')}/bin/leanchecker"
    given = os.environ.get("POSTERIOR_LEAN_CHECKER", "")
    return next((path for path in (given, bundled) if path and os.access(path, os.X_OK)), "")


def _inside(checker: str) -> str:
    return "/lean/bin/leanchecker" if checker.endswith("/bin/leanchecker") else "/lean_checker/lean4checker"


def _where() -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(folders to show, variables to set)."""
    shown = [(os.environ["POSTERIOR_LEAN"], "/lean")]
    if _inside(_checker()) != "/lean/bin/leanchecker":
        shown.append((_checker(), "/lean_checker/lean4checker"))
    if os.environ.get("POSTERIOR_LEAN_REPL"):
        shown.append((os.environ["POSTERIOR_LEAN_REPL"], "/lean_repl/repl"))
    folders = [folder for folder in os.environ.get("POSTERIOR_LEAN_PATH", "").split(":") if folder]
    shown += [(str(Path(folder).resolve()), f"/lean_path/{i}") for i, folder in enumerate(folders)]
    path = ["/scratch/sol", "/scratch/check", *(f"/lean_path/{i}" for i in range(len(folders)))]
    return shown, {"LEAN_PATH": ":".join(path)}
