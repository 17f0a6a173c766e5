"""How far reinforcement learning lifts held-out success, over seeds: whole runs of configurations of this project, base model and all.

    python -m benchmarks.gains adventures --json [--seeds 0 1 2] [--arms plain] [--folder DIR] [--quick]

    adventures   generated text adventures: every episode from the start, or three of four branched from a snapshot of another
    proofs       generated lemmas in Coq: a whole proof at once, or tactic by tactic with the goals in sight

Every seed has a base model of its own. Success before and after, and the gain between them, are means over seeds with Student's 95 %
intervals; the difference of two arms' gains is paired by seed. --folder keeps the runs; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Measure, main, over_seeds
from benchmarks.runs import chain, train

STUDIES: dict[str, tuple[float, dict[str, tuple[str, dict[str, Any]]]]] = {
    "adventures": (
        30.0,
        {
            "plain": ("rlvr_text_adventure.yaml", {}),
            "branches": ("rlvr_text_adventure.yaml", {"algorithm.branches": 4}),
        },
    ),
    "proofs": (20.0, {"whole": ("rlvr_proofs.yaml", {}), "steps": ("rlvr_proof_steps.yaml", {})}),
}
"""Study -> the gain on "test" that it should reach, in points, and its arms: configuration and what is changed in it."""
LONGEST = 900.0
"""Seconds a run may train."""
QUICK = {"train.steps": 2, "train.batch_groups": 4, "eval.every": 2, "eval.tasks": 16}


def one(study: str, arm: str, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
    name, values = STUDIES[study][1][arm]
    place = folder / study / f"{arm}-seed{seed}"
    result = train(chain(name, place, seed, {**values, **(QUICK if quick else {})}, {}), place / "run")
    splits = {split: (result["baseline"][split]["pass@1"], after["pass@1"]) for split, after in result["final"].items()}
    said = ", ".join(f"{split} {100 * before:.1f} -> {100 * after:.1f} %" for split, (before, after) in splits.items())
    print(f"{arm}, seed {seed}: {said}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


def run(args: argparse.Namespace) -> list[Measure]:
    target, all_arms = STUDIES[args.study]
    arms = args.arms or list(all_arms)
    seeds = args.seeds[:1] if args.quick else args.seeds
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        folder = Path(args.folder or name)
        found = {arm: [one(args.study, arm, seed, folder, args.quick) for seed in seeds] for arm in arms}
    out: list[Measure] = []

    def success(when: str, results: list[dict[str, Any]], split: str) -> list[float]:
        return [100 * result[when][split]["pass@1"] for result in results]

    def gains(results: list[dict[str, Any]], split: str) -> list[float]:
        pairs = zip(success("baseline", results, split), success("final", results, split), strict=True)
        return [after - before for before, after in pairs]

    for arm, results in found.items():
        for split in results[0]["final"]:
            out += over_seeds(f"{arm}_{split}_before", success("baseline", results, split), "%")
            out += over_seeds(f"{arm}_{split}_after", success("final", results, split), "%")
            goal = target if split == "test" else None
            out += over_seeds(f"{arm}_{split}_gain", gains(results, split), "points", target=goal)
            if arm != arms[0]:
                paired = zip(gains(results, split), gains(found[arms[0]], split), strict=True)
                out += over_seeds(f"{arm}_minus_{arms[0]}_{split}_gain", [a - b for a, b in paired], "points")
        longest = max(result["seconds"] for result in results)
        out.append(Measure(f"{arm}_longest_training", longest, "s", target=LONGEST, at_most=True))
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("study", {"choices": list(STUDIES)}),
    ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2]}),
    ("--arms", {"nargs": "+", "default": None}),
    ("--folder", {"default": None, "metavar": "DIR"}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
