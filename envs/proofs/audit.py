"""What `posterior envs check proofs` asks beyond the general suite: known proofs, speed, the attack list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from envs.proofs import attacks
from envs.proofs.backend import Theorem
from envs.proofs.coq import CoqBackend

if TYPE_CHECKING:
    from envs.proofs.env import Proving

KNOWN = 100
"""Known proofs tried, at most, over all splits."""
TIMED, ALONE = 32, 8
"""Proofs whose check is timed: in all, and by themselves."""


async def audit(env: Proving, samples: int) -> dict[str, Any]:
    """Check known proofs, then make every attack.

    Returns
        known_passed, known_total   known proofs that are accepted, of those tried
        known_failed                [{id, note}] of the others
        seconds                     "refused" (a wrong proof), "alone" (a right one by itself), "together" (a right one, 32 at once)
        attacks                     one report per attack
        checks                      the findings
    """
    return await asyncio.to_thread(_audit, env, samples)


def _audit(env: Proving, samples: int) -> dict[str, Any]:
    backend, header = env.backend, env.source.header
    share = max(1, min(samples, KNOWN // len(env.splits())))
    problems = [p for split in env.splits() for p in islice(env.problems(split), share) if p.proof]
    known = [(Theorem(p.statement, header), p.proof) for p in problems]
    failed, seconds = [], {}
    with ThreadPoolExecutor(TIMED) as many:  # those that wait are checked together
        for problem, verdict in zip(problems, many.map(lambda k: backend.check(*k), known), strict=True):
            if not verdict.proved:
                failed.append({"id": problem.id, "note": verdict.note})
    checks = [
        {
            "name": "known proofs: every one is accepted",
            "ok": not failed,
            "detail": f"{len(known) - len(failed)} of {len(known)}"
            + (f"; first failure: {failed[0]}" if failed else ""),
        }
    ]
    reports = []
    if isinstance(backend, CoqBackend):
        hurried = CoqBackend(attacks.LIMITS)
        reports = attacks.run_attacks(hurried)
        hurried.close()
        seconds = times(backend, known[:TIMED]) if known else {}
    elif backend.name == "agda":
        reports = [attacks.run_agda_attack(backend, header, name, text) for name, text in attacks.AGDA.items()]
    bad = [r.name for r in reports if r.score or not r.contained or not r.healthy_after]
    checks.append(
        {
            "name": "attacks: every attack is contained, scores 0 and leaves the checker healthy",
            "ok": not bad,
            "detail": f"{len(reports) - len(bad)} of {len(reports)}" + (f"; not: {', '.join(bad)}" if bad else ""),
        }
    )
    return {
        "known_passed": len(known) - len(failed),
        "known_total": len(known),
        "known_failed": failed,
        "seconds": seconds,
        "attacks": [asdict(report) for report in reports],
        "checks": checks,
    }


def times(backend: CoqBackend, known: Sequence[tuple[Theorem, str]]) -> dict[str, float]:
    """Seconds of a wrong proof, of a right one by itself, and of one of these together, with a warm session."""
    backend.forget()
    clocks = [time.perf_counter()]
    for theorem, proof in known:
        backend.check(theorem, f"{proof} idtac .")
    clocks.append(time.perf_counter())
    for theorem, proof in known[:ALONE]:
        backend.check(theorem, proof)
    clocks.append(time.perf_counter())
    backend.certify([(theorem, tuple(backend.read(proof))) for theorem, proof in known])
    clocks.append(time.perf_counter())
    refused, alone, together = (later - earlier for earlier, later in pairwise(clocks))
    refused /= len(known)
    return {"refused": refused, "alone": alone / len(known[:ALONE]), "together": refused + together / len(known)}
