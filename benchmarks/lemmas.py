"""Whether generated lemmas are proven by their own proofs, and what a grade costs.

    python -m benchmarks.lemmas [--count 5000] [--json] [--quick]

own_proofs_accepted: of so many distinct lemmas of all families and sizes 2 to 8, those whose known proof passes the whole check.
seconds_refused, seconds_alone, seconds_together: of a wrong proof; of a right one that is checked by itself; and of one of 32 at once.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.common import Measure, main
from envs.proofs.audit import times
from envs.proofs.backend import Theorem
from envs.proofs.coq import CoqBackend
from envs.proofs.lemmas.generator import FAMILIES, lemmas
from envs.proofs.lemmas.lemma import header

SIZES = tuple(range(2, 9))
BATCH = 32


def bench(args: argparse.Namespace) -> list[Measure]:
    count = 150 if args.quick else args.count
    began = time.perf_counter()
    half = [lemmas(tuple(FAMILIES), SIZES, held_out, -(-count // 2), 0) for held_out in (False, True)]
    made = [lemma for part in half for lemma in part][:count]
    generated = time.perf_counter() - began
    backend, facts = CoqBackend.shared(), header()
    backend.ready()
    accepted, began = 0, time.perf_counter()
    for start in range(0, len(made), BATCH):
        batch = [(Theorem(lemma.statement, facts), lemma.tactics) for lemma in made[start : start + BATCH]]
        verdicts = backend.certify(batch)
        accepted += sum(verdict.proved for verdict in verdicts)
        for (theorem, _), verdict in zip(batch, verdicts, strict=True):
            if not verdict.proved:
                print(f"not accepted: {theorem.statement}: {verdict.note}", file=sys.stderr)
    seconds = time.perf_counter() - began
    some = [(Theorem(lemma.statement, facts), " ".join(lemma.tactics)) for lemma in made[:BATCH]]
    return [
        Measure("own_proofs_accepted", accepted, "lemmas", baseline=len(made), target=count),
        Measure("distinct", len({lemma.statement for lemma in made}), "lemmas"),
        Measure("lemmas_generated_per_second", len(made) / generated, "1/s"),
        Measure("own_proofs_checked_per_second", len(made) / seconds, "1/s"),
        *(Measure(f"seconds_{name}", value, "s") for name, value in times(backend, some).items()),
    ]


if __name__ == "__main__":
    options = {"type": int, "default": 5000, "help": "lemmas (default 5000)"}
    raise SystemExit(main(__doc__, bench, ("--count", options)))
