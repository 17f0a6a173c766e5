"""What `posterior envs check proofs` asks beyond the general suite: known proofs, speed, the attack list."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from envs.proofs import attacks
from envs.proofs.backend import Theorem
from envs.proofs.coq import CoqBackend

if TYPE_CHECKING:
    from envs.proofs.env import Proving

KNOWN = 100
"""Known proofs tried, at most, over all splits."""


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
    known = [
        (p.id, Theorem(p.statement, header), p.proof)
        for s in env.splits()
        for p in islice(env.problems(s), share)
        if p.proof
    ]
    failed, seconds = [], []
    for name, theorem, proof in known:
        began = time.perf_counter()
        verdict = backend.check(theorem, proof)
        seconds.append(time.perf_counter() - began)
        if not verdict.proved:
            failed.append({"id": name, "note": verdict.note})
    times = {"alone": statistics.median(seconds)} if seconds else {}
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
        reports = attacks.run_attacks(backend)
        times |= _times(backend, known)
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
        "seconds": times,
        "attacks": [asdict(report) for report in reports],
        "checks": checks,
    }


def _times(backend: CoqBackend, known: list[tuple[str, Theorem, str]]) -> dict[str, float]:
    """Of a wrong proof, and of right ones that are checked together."""
    if not known:
        return {}
    began = time.perf_counter()
    for _, theorem, proof in known:
        backend.check(theorem, f"{proof} idtac .")
    refused = (time.perf_counter() - began) / len(known)
    backend.forget()
    began = time.perf_counter()
    proofs = [(theorem, tuple(backend.read(proof))) for _, theorem, proof in known][:32]
    backend.certify(proofs)
    return {"refused": refused, "together": refused + (time.perf_counter() - began) / len(proofs)}
