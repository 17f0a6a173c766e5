"""Formal proofs as environments: `proofs` asks for a whole proof, `proof_steps` for one tactic after another.

The statement is ours and the candidate's text is only ever a proof of it. A proof counts when the checker accepts it, a second check from
nothing agrees, and it rests on no assumption (`envs.proofs.coq`). Generated lemmas each come with a known proof.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, ClassVar, TypeVar, overload

from envs.base import Env, Grade, Move, Observation, SingleTurnEnv, Step, Task
from envs.proofs import wording
from envs.proofs.agda import AgdaBackend
from envs.proofs.backend import ProofBackend, ProofSession, Theorem
from envs.proofs.confined import Limits
from envs.proofs.coq import CoqBackend
from envs.proofs.lean import LeanBackend
from envs.proofs.lemmas.source import HELD_OUT, Generated
from envs.proofs.loader import FromFile
from envs.proofs.sources import Problem, Source

BACKENDS = ("coq", "agda", "lean")
PROMPTS = ("plain", "chat")
T = TypeVar("T")
_WAITING = ThreadPoolExecutor(64, "proofs")
"""Proofs under way at once: those that wait for the last check share it."""


@lru_cache(maxsize=16)
def backend_of(name: str, limits: Limits) -> ProofBackend:
    """The backend of this process."""
    if name == "coq":
        return CoqBackend.shared(limits)
    return AgdaBackend(limits) if name == "agda" else LeanBackend(limits)


class Proving:
    """What both environments are made of; the arguments are those of `Proofs`."""

    def __init__(
        self,
        tasks: str = "generated",
        *,
        backend: str = "coq",
        families: Sequence[str] | None = None,
        held_out: Sequence[str] = HELD_OUT,
        sizes: Sequence[int] = (2, 5),
        larger: int = 2,
        count: int = 1000,
        seed: int = 0,
        prompt: str = "plain",
        cpu_seconds: float = 2.0,
        memory_mb: int = 1024,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"proofs: there is no backend {backend!r}; there are: {', '.join(BACKENDS)}")
        if prompt not in PROMPTS:
            raise ValueError(f"proofs: there is no prompt {prompt!r}; there are: {', '.join(PROMPTS)}")
        for name, value in (("cpu_seconds", cpu_seconds), ("memory_mb", memory_mb)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"proofs: {name} must be a positive number, not {value!r}")
        if backend == "lean" and tasks == "generated":
            raise ValueError(
                "proofs: lemmas are generated for coq and agda; for lean give a file of statements as tasks"
            )
        self.backend_name, self.prompt = backend, prompt
        self.limits = Limits(float(cpu_seconds), int(memory_mb))
        self.source: Source
        if tasks == "generated":
            self.source = Generated(families, held_out, sizes, larger, count, seed, backend == "agda")
        else:
            self.source = FromFile(tasks, backend)

    @property
    def backend(self) -> ProofBackend:
        return backend_of(self.backend_name, self.limits)

    def ready(self) -> None:
        self.backend.ready()

    def splits(self) -> Sequence[str]:
        return self.source.splits()

    def problems(self, split: str) -> Sequence[Problem]:
        if split not in self.splits():
            raise ValueError(f"proofs has no split {split!r}; there are: {', '.join(self.splits())}")
        return self.source.problems(split)

    def words(self) -> Sequence[str]:
        return wording.WORDS if isinstance(self.source, Generated) and self.backend_name == "coq" else ()

    def theorem(self, task: Task) -> Theorem:
        return Theorem(task.meta["statement"], self.source.header)

    def _task(self, problem: Problem, kind: str) -> Task:
        prompt = wording.put(problem.statement, kind, self.prompt == "chat", self.source.facts)
        meta = {"statement": problem.statement, "family": problem.family, "size": problem.size}
        return Task(problem.id, prompt, problem.proof or None, meta=meta)

    async def extra_checks(self, samples: int) -> dict[str, Any]:
        """What `posterior envs check` adds: known proofs, speed, the attack list (see envs/check.py)."""
        from envs.proofs.audit import audit

        return await audit(self, samples)


class Proofs(Proving, SingleTurnEnv):
    """Prove a statement; the grade is whether the proof is one.

    tasks: "generated", or statements of a .jsonl, .json or .v file or of hf:NAME (`envs.proofs.loader`).
    backend: "coq" (8.16), "agda" (2.6.2, propositional lemmas, a proof is a term) or "lean" (4, your own toolchain, a file of statements).
    families: of generated lemmas to train on; by default all but `held_out`, which are the split "unseen". imp, and, or, neg, iff
        (propositional); add, mul, le, natind (numbers); app, rev, map, len, mem, listind (lists).
    sizes: [least, most] connectives or operations: the difficulty. larger: how many sizes beyond make the split "larger".
    count: lemmas a split at most, all distinct; one in four of all lemmas is never trained on. seed: of the lemmas.
    prompt: "plain" shows the statement alone; "chat" asks in a message, with the facts that may be used.
    cpu_seconds: of one proof, at each of its checks. memory_mb: of a checker.
    """

    description: ClassVar[str] = "prove a statement in Coq, Agda or Lean; generated lemmas or your own file (exact)"

    def tasks(self, split: str) -> Sequence[Task]:
        kind = {"agda": "term", "lean": "lean"}.get(self.backend_name, "whole")
        return [self._task(problem, kind) for problem in self.problems(split)]

    async def grade(self, task: Task, text: str) -> Grade:
        """1 for a proof."""
        proof = wording.unfenced(text)
        verdict = await _aside(self.backend.check, self.theorem(task), proof)
        return Grade(float(verdict.proved), note=verdict.note)


class ProofSteps(Proving, Env):
    """Prove a statement one tactic at a time; after each the goals are shown. One that fails costs its turn: an error is put before the
    goals, which are the same again, so that whoever has only read proofs without a failure stands where it knows its way.

    slack: turns beyond the known proof's length. turns: where no proof is known, and the most in any case. errors: "short" (one word of
    few) or "full" (the checker's own message). The other arguments are those of `proofs`. `snapshot` and `restore` branch an episode.
    """

    description: ClassVar[str] = (
        "prove a statement in Coq one tactic at a time, shown the goals after each (multi-turn, exact)"
    )

    def __init__(
        self, tasks: str = "generated", *, slack: int = 4, turns: int = 24, errors: str = "short", **options: Any
    ) -> None:
        super().__init__(tasks, **options)
        if self.backend_name == "agda":
            raise ValueError("proof_steps: agda checks whole proofs only; use coq, or the environment proofs")
        if slack < 0 or turns < 1:
            raise ValueError(f"proof_steps: slack must be at least 0 and turns at least 1, not {slack} and {turns}")
        if errors not in ("short", "full"):
            raise ValueError(f'proof_steps: errors must be "short" or "full", not {errors!r}')
        self.slack, self.max_turns, self.errors = slack, turns, errors
        self._session: ProofSession | None = None
        self._theorem = Theorem("")
        self._turns = self._limit = 0

    def tasks(self, split: str) -> Sequence[Task]:
        return _Walked(self, self.problems(split))

    def task(self, problem: Problem) -> Task:
        """With the observations of its known proof, which the checker itself gives."""
        task = self._task(problem, "steps")
        limit = self.max_turns if not problem.tactics else min(self.max_turns, len(problem.tactics) + self.slack)
        meta = task.meta | {"limit": limit}
        walkthrough = None
        if problem.tactics and len(problem.tactics) <= self.max_turns:
            walkthrough = _walkthrough(self.backend, Theorem(problem.statement, self.source.header), problem.tactics)
        return Task(task.id, task.prompt, task.answer, meta=meta, walkthrough=walkthrough)

    def solution(self, task: Task) -> list[str] | None:
        """For the conformance suite: the tactics of the known proof."""
        return [move.action for move in task.walkthrough] if task.walkthrough else None

    async def reset(self, task: Task, seed: int) -> Observation:
        self._theorem, self._turns, self._limit = self.theorem(task), 0, task.meta["limit"]
        self._session = self.backend.open(self._theorem)
        return Observation()

    async def step(self, action: str) -> Step:
        """An action is one tactic. Reward 1 for the one that completes the proof."""
        if self._session is None:
            raise RuntimeError("step() before reset()")
        reply = await _aside(self._session.step, wording.unfenced(action))
        self._turns += 1
        if reply.closed:
            verdict = await _aside(self._session.verdict)
            grade = Grade(float(verdict.proved), {"turns": float(self._turns)}, note=verdict.note)
            return Step("", grade.value, terminated=True, grade=grade)
        observation = wording.goals(await _aside(self._session.goals) if reply.error else reply)
        if reply.error:
            observation = f"{wording.error(reply.error, self.errors == 'short')} {observation}"
        if self._turns < self._limit:
            return Step(observation, 0.0, terminated=False)
        grade = Grade(0.0, {"turns": float(self._turns)}, note=reply.error[:200])
        return Step(observation, 0.0, terminated=False, truncated=True, grade=grade)

    def snapshot(self) -> bytes:
        if self._session is None:
            raise RuntimeError("snapshot() before reset()")
        state = [self._theorem.statement, self._session.script(), self._turns, self._limit]
        return json.dumps(state).encode()

    def restore(self, state: bytes) -> None:
        statement, script, self._turns, self._limit = json.loads(state)
        self._theorem = Theorem(statement, self.source.header)
        self._session = self.backend.open(self._theorem, tuple(script))


async def _aside(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work`, computed in another thread."""
    return await asyncio.get_running_loop().run_in_executor(_WAITING, lambda: work(*arguments))


class _Walked(Sequence[Task]):
    """Tasks whose walkthroughs are played when they are asked for."""

    def __init__(self, env: ProofSteps, problems: Sequence[Problem]) -> None:
        self._env, self._problems = env, problems

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return _Walked(self._env, self._problems[index])
        return self._env.task(self._problems[index])


@lru_cache(maxsize=20_000)
def _walkthrough(backend: ProofBackend, theorem: Theorem, tactics: tuple[str, ...]) -> tuple[Move, ...]:
    session, moves = backend.open(theorem), []
    for tactic in tactics:
        reply = session.step(tactic)
        if reply.error:
            raise RuntimeError(f"the known proof of {theorem.statement} fails at {tactic!r}: {reply.error}")
        moves.append(Move(tactic, "" if reply.closed else wording.goals(reply)))
    return tuple(moves)
