"""The main job over seeds, with its control: does held-out pass@1 rise, and only where the rewards mean something?

    python -m benchmarks.main_job --json

Runs tune_configs/demo.yaml for each seed, and once more with the rewards shuffled over each batch. --out keeps the run
directories (and their reports).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import Measure, main
from benchmarks.runs import CONFIGS, train
from posterior.rundir import RunDir

DEMO = CONFIGS / "demo.yaml"
QUICK = ["train.steps=4", "train.batch_groups=2", "eval.tasks=8", "eval.every=4"]


def figures(name: str, result: dict[str, Any], control: bool) -> list[Measure]:
    """Gain in points per split with its interval, and the time of the run."""
    out = []
    for split, gain in result["gain"].items():
        before, after = result["baseline"][split], result["final"][split]
        target = None if split != "test" else 5.0 if control else 20.0
        points = 100 * gain["pass@1"]
        out.append(Measure(f"{name}_{split}_gain", points, "points", target=target, at_most=control))
        out += [Measure(f"{name}_{split}_gain_{end}", 100 * gain[end], "points") for end in ("low", "high")]
        out.append(Measure(f"{name}_{split}_before", 100 * before["pass@1"], "%"))
        out.append(Measure(f"{name}_{split}_after", 100 * after["pass@1"], "%"))
    out.append(Measure(f"{name}_seconds", result["seconds"], "s", target=480.0, at_most=True))
    out.append(Measure(f"{name}_gap_max", result["gap"]["max"], "nats", target=1e-4, at_most=True))
    return out


def stages(run: Path) -> list[Measure]:
    """Median seconds a step spends in each stage of the learner's loop, and tokens a second."""
    rows = [row for row in RunDir(run).read_metrics() if row["kind"] == "train"]
    names = ("wait", "forward_backward", "publish", "log", "checkpoint", "total")
    out = [Measure(f"step_{name}", median(row[f"time/{name}"] for row in rows), "s") for name in names]
    return [*out, Measure("tokens_per_second", median(row["tokens/per_second"] for row in rows), "tokens/s")]


def run(args: argparse.Namespace) -> list[Measure]:
    words = QUICK if args.quick else []
    seeds = [0] if args.quick else args.seeds
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        measures: list[Measure] = []
        gains = []
        for seed in seeds:
            result = train(DEMO, folder / f"seed{seed}", [*words, f"seed={seed}"])
            gains.append(100 * result["gain"]["test"]["pass@1"])
            measures += figures(f"seed{seed}", result, control=False)
            if seed == seeds[0]:
                measures += stages(folder / f"seed{seed}")
        control = train(DEMO, folder / "shuffled", [*words, "train.shuffle_rewards=true", "name=demo-shuffled"])
        measures += figures("shuffled", control, control=True)
        return [Measure("smallest_test_gain", min(gains), "points", target=20.0), *measures]


if __name__ == "__main__":
    seeds = ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2], "help": "seeds of the runs (default 0 1 2)"})
    out = ("--out", {"type": Path, "help": "keep the run directories here"})
    raise SystemExit(main(__doc__, run, seeds, out))
