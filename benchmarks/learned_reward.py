"""PPO against a learned reward through the whole stack (vLLM, Ray): reward model's score beside gold, for several set-ups and seeds.

    python -m benchmarks.learned_reward labels --json [--seeds 0 1 2] [--arms few ample] [--folder DIR] [--picture FILE.svg] [--quick]

    labels      few labels by people who skim, or ample ones with everything in sight (tune_configs/ppo_reward_model.yaml)
    defences    few labels: nothing, a lower bound, a KL budget, an early stop by the alarm, fresh labels for the newest policy
    thoughts    the thought hidden from the reward model, shown to it, or latent (tune_configs/ppo_punchline.yaml)

Every seed has a base model, reward model and landscape of its own. proxy: the reward model's mean score of held-out answers; gold: their
score by the environment, on the people's scale; both as gains over the first evaluation. gap: proxy's gain less gold's, where proxy has
gained as much as the set-up of a seed that gained least did in all. Differences to the first set-up are paired by seed. Intervals over
seeds are Student's, 95 %. --folder keeps the runs; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Measure, main, over_seeds
from benchmarks.picture import Line, picture
from benchmarks.runs import chain, train
from posterior.rundir import RunDir

FEW = "reward_model_few.yaml"
PEAK = 0.015
"""Gold below its peak that counts as a fall: a tenth of a standard deviation over random answers of noisy_raters."""
STUDIES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "labels": (
        "ppo_reward_model.yaml",
        {"few": {"reward_model.path": FEW}, "ample": {"reward_model.path": "reward_model.yaml"}},
    ),
    "defences": (
        "ppo_reward_model.yaml",
        {
            "none": {},
            "lower bound": {"reward_model.bound": 2.0},
            "KL budget": {"monitor.kl_budget": 1.0},
            "early stop": {"monitor.stop": True},
            "fresh labels": {"reward_model.fresh": 128, "reward_model.fresh_every": 5},
        },
    ),
    "thoughts": (
        "ppo_punchline.yaml",
        {
            "hidden": {},
            "shown": {"reward_model.path": "reward_model_punchline_shown.yaml", "reward_model.sees": "trace"},
            "latent": {"model.path": "punchline_latent_pretrain.yaml", "sampling.latents": 4},
        },
    ),
}
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
COMMON: dict[str, dict[str, Any]] = {"thoughts": {"eval.thoughts": 0, "eval.every": 5}}
QUICK = {"train.steps": 4, "train.batch_groups": 8, "eval.every": 2, "eval.tasks": 16, "eval.thoughts": 0}


@dataclass
class Curve:
    """By evaluation. alarm: the step at which it sounded, if it did. stop: the step at which a KL budget ended the run, if it did."""

    step: np.ndarray
    kl: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray
    alarm: int | None
    stop: int | None

    @classmethod
    def read(cls, run: Path, split: str = "test") -> Curve:
        rows = [row for row in RunDir(run).read_metrics() if row["kind"] == "eval"]
        kl, proxy, gold = (
            np.array([row[f"eval/{split}/{name}"] for row in rows]) for name in ("kl", "proxy", "mean_grade")
        )
        step, result = np.array([row["version"] for row in rows]), RunDir(run).read_result()
        return cls(step, kl, proxy, gold, result.get("alarm"), result.get("kl_budget"))

    @property
    def peak(self) -> int:
        return int(self.gold.argmax())

    def gold_gained(self, proxy_gain: float) -> float:
        """Gold's gain where the proxy first has gained so much, between two evaluations by a straight line."""
        gain, gold = self.proxy - self.proxy[0], self.gold - self.gold[0]
        at = int(np.argmax(gain >= proxy_gain))
        if at == 0:
            return 0.0
        share = (proxy_gain - gain[at - 1]) / (gain[at] - gain[at - 1])
        return float(gold[at - 1] + share * (gold[at] - gold[at - 1]))


def curve(study: str, arm: str, seed: int, folder: Path, quick: bool) -> Curve:
    name, arms = STUDIES[study]
    values = {**COMMON.get(study, {}), **arms[arm], **(QUICK if quick else {})}
    env = {} if study == "thoughts" else {"landscape": seed}
    place = folder / study / f"{arm.replace(' ', '_')}-seed{seed}"
    train(chain(name, place, seed, values, env), place / "run")
    found = Curve.read(place / "run")
    gold = f"gold {found.gold[0]:.3f} -> {found.gold[found.peak]:.3f} (step {found.step[found.peak]}) -> {found.gold[-1]:.3f}"
    said = f"{arm}, seed {seed}: proxy {found.proxy[0]:.3f} -> {found.proxy[-1]:.3f}, {gold}, KL {found.kl[-1]:.2f}, alarm {found.alarm}"
    print(said, file=sys.stderr, flush=True)
    return found


def run(args: argparse.Namespace) -> list[Measure]:
    arms = args.arms or list(STUDIES[args.study][1])
    seeds = args.seeds[:1] if args.quick else args.seeds
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        folder = Path(args.folder or name)
        found = {arm: [curve(args.study, arm, seed, folder, args.quick) for seed in seeds] for arm in arms}
    if args.picture:
        lines = [
            Line(f"{arm}, {what}", colour, list(zip(c.kl, values, strict=True)), dashed=what == "proxy")
            for colour, (arm, curves) in zip(COLOURS, found.items(), strict=False)
            for c in curves[:1]
            for what, values in (("proxy", c.proxy), ("gold", c.gold))
        ]
        Path(args.picture).write_text(picture(lines, "KL from the start, nats an answer", "score", digits=2))
    return measures(found)


def measures(found: Mapping[str, list[Curve]]) -> list[Measure]:
    out: list[Measure] = []
    first = next(iter(found))
    seeds = range(len(found[first]))
    least = [max(0.0, min(float((c[s].proxy - c[s].proxy[0]).max()) for c in found.values())) for s in seeds]
    gaps = {
        arm: [level - c.gold_gained(level) for c, level in zip(curves, least, strict=True)]
        for arm, curves in found.items()
    }

    for arm, curves in found.items():
        out += over_seeds(f"{arm}_proxy_gain", [float(c.proxy[-1] - c.proxy[0]) for c in curves])
        out += over_seeds(f"{arm}_gold_start", [float(c.gold[0]) for c in curves])
        out += over_seeds(f"{arm}_gold_peak", [float(c.gold[c.peak]) for c in curves])
        out += over_seeds(f"{arm}_gold_end", [float(c.gold[-1]) for c in curves])
        out += over_seeds(f"{arm}_kl_end", [float(c.kl[-1]) for c in curves])
        if arm != first:
            before = [float(c.gold[-1]) for c in found[first]]
            out += over_seeds(
                f"{arm}_minus_{first}_gold_end", [float(c.gold[-1]) - b for c, b in zip(curves, before, strict=True)]
            )
        out += over_seeds(f"{arm}_gap", gaps[arm])
        if arm != first:
            paired = zip(gaps[arm], gaps[first], strict=True)
            out += over_seeds(f"{arm}_minus_{first}_gap", [a - b for a, b in paired])
        fell = [c for c in curves if c.gold[c.peak] - c.gold[-1] > PEAK]
        out.append(Measure(f"{arm}_gold_falls", len(fell), f"of {len(curves)} seeds"))
        out.append(Measure(f"{arm}_alarms", sum(c.alarm is not None for c in curves), f"of {len(curves)} seeds"))
        out.append(Measure(f"{arm}_kl_stops", sum(c.stop is not None for c in curves), f"of {len(curves)} seeds"))
        near = sum(c.alarm is not None and abs(int(np.searchsorted(c.step, c.alarm)) - c.peak) <= 5 for c in fell)
        out.append(Measure(f"{arm}_alarms_within_5_of_peak", near, f"of {len(fell)} falls"))
    out.append(Measure("proxy_gain_compared_at", float(np.mean(least))))
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("study", {"choices": list(STUDIES)}),
    ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2]}),
    ("--arms", {"nargs": "+", "default": None}),
    ("--folder", {"default": None, "metavar": "DIR"}),
    ("--picture", {"default": None, "metavar": "FILE", "help": "proxy and gold by KL, of the first seed"}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
