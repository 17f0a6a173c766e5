"""Posterior's PPO beside RLlib's: learning curves and seconds a sample on the same worlds, with the same network from the same weights.

    python -m benchmarks.ppo_vs_rllib --json [--quick] [--seeds 3] [--parts ring texts clock] [--picture FILE.svg]

    ring    three states, six moves, cut and not ended: what lies behind the cut must come from the critic
    texts   four words about one of four topics, a grade at the end
    clock   the same with 4, 16 and 64 words, a few batches: seconds and arithmetic a sample by the length of answers

A sample is one decision: a token. Each side chooses its learning rate from the same grid, on a seed of its own and half the batches (the
highest mean return over all of them); then both run every seed, batch by batch in turns, in one process with one thread. Return: mean
over the episodes sampled in the last tenth of the batches; the best policy's is exact. Seconds: of the median batch. Intervals: Student's t
over seeds. Where the time goes: stages by clock, and of one more batch torch's operators and the arithmetic of its
matrix products.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Measure, main, over_seeds
from benchmarks.picture import Line, picture, stacked
from benchmarks.ppo_contest import MAKERS, STAGES, Contestant, Curve, compete, first_values, work
from benchmarks.ppo_worlds import World, long_texts, ring, ring_values, texts
from models.loading import load_tokenizer
from models.scratch import write_model

WORLDS = {"ring": ring, "texts": texts}
PARTS = [*WORLDS, "clock"]
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LENGTHS = (4, 16, 64)
"""Words of an answer, where only the clock is read."""
CHOICE_SEED = 100
"""Learning rates are chosen on it; no curve is drawn from it."""
BAR = 0.9
"""Share of the optimum that counts as having learnt."""


@dataclass
class Outcome:
    """What one contestant did in one world. curves, value_errors: by seed."""

    rates: dict[float, float] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    value_errors: list[float] = field(default_factory=list)
    work: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return max(self.rates, key=self.rates.__getitem__)


@contextmanager
def started(world: World, folder: Path, rates: dict[str, float], seed: int) -> Iterator[list[Contestant]]:
    """Every contestant of `rates`, with the same weights."""
    model = folder / f"{world.name}-{seed}"
    if not model.is_dir():
        write_model(model, world.make().words(), family="gpt2", layers=1, width=32, heads=2, length=128, seed=seed)
    contestants: list[Contestant] = []
    try:
        for name, rate in rates.items():
            contestants.append(MAKERS[name](world, model, rate, seed))
        yield contestants
    finally:
        for contestant in contestants:
            contestant.close()


def play(world: World, folder: Path, rates: Sequence[float], seeds: int) -> dict[str, Outcome]:
    found = {name: Outcome() for name in MAKERS}
    long, short = world.updates
    for rate in rates:
        with started(world, folder, dict.fromkeys(MAKERS, rate), CHOICE_SEED) as contestants:
            for one, curve in zip(contestants, compete(contestants, short), strict=True):
                found[one.name].rates[rate] = curve.mean_return()
        _say(f"{world.name}, rate {rate:g}: " + ", ".join(f"{n} {o.rates[rate]:.3f}" for n, o in found.items()))
    for seed in range(seeds):
        with started(world, folder, {name: o.rate for name, o in found.items()}, seed) as contestants:
            for one, curve in zip(contestants, compete(contestants, long), strict=True):
                found[one.name].curves.append(curve)
                if world.name == "ring":
                    found[one.name].value_errors.append(_value_error(one, folder / f"ring-{seed}"))
                if seed == 0:
                    found[one.name].work = work(one)
                _say(f"{world.name}, seed {seed}: {one.name} {curve.mean_return(0.1):.3f}, {sum(curve.seconds):.0f} s")
    return found


def _value_error(contestant: Contestant, folder: Path) -> float:
    """Mean distance of the critic's word on the three states from what they are worth."""
    tokenizer, worth = load_tokenizer(str(folder)), ring_values()
    said = first_values(contestant.critic(), [tokenizer.encode(state, add_special_tokens=False) for state in worth])
    return float(np.abs(said - np.array(list(worth.values()))).mean())


def measures(world: World, found: dict[str, Outcome]) -> list[Measure]:
    samples = world.episodes * world.decisions
    out = [Measure(f"{world.name}_optimum", world.best, "return"), Measure(f"{world.name}_batch", samples, "samples")]

    def add(name: str, values: Sequence[float], unit: str, **more: Any) -> None:
        out.extend(over_seeds(f"{world.name}_{name}", values, unit, **more))

    def seconds(curve: Curve) -> float:
        return float(np.median(curve.seconds)) / samples

    ours, theirs = found["posterior"], found["rllib"]
    for name, one in found.items():
        target = {"target": BAR * world.best} if name == "posterior" else {}
        add(f"return_{name}", [c.mean_return(0.1) for c in one.curves], "", baseline=world.best, **target)
        reached = [c.reached(BAR * world.best) for c in one.curves]
        learnt = [seed for seed, batches in enumerate(reached) if batches is not None]
        out.append(Measure(f"{world.name}_learnt_{name}", len(learnt), f"of {len(reached)} seeds"))
        if learnt:  # what follows is of those seeds alone
            add(f"samples_to_90_{name}", [samples * batches for batches in reached if batches is not None], "samples")
        if learnt and one.value_errors:
            add(f"value_error_{name}", [one.value_errors[seed] for seed in learnt], "return")
        add(f"seconds_{name}", [seconds(c) for c in one.curves], "s/sample")
    pairs = list(zip(ours.curves, theirs.curves, strict=True))
    add("return_difference", [a.mean_return(0.1) - b.mean_return(0.1) for a, b in pairs], "")
    add("speed_vs_rllib", [seconds(b) / seconds(a) for a, b in pairs], "x", target=1.0)
    for name, one in found.items():
        out.append(Measure(f"{world.name}_rate_{name}", one.rate))
        out += [Measure(f"{world.name}_choice_{name}_{rate:g}", value) for rate, value in one.rates.items()]
        spent = {stage: float(np.median(np.concatenate([c.stages[stage] for c in one.curves]))) for stage in STAGES}
        out += [Measure(f"{world.name}_{stage}_{name}", value, "s/batch") for stage, value in spent.items()]
        out += [Measure(f"{world.name}_{what}_{name}", value, "a batch") for what, value in one.work.items()]
    return out


def clock(world: World, folder: Path) -> list[Measure]:
    """Seconds a sample by the length of answers, and the arithmetic; the first batch is not counted."""
    samples, out = world.episodes * world.decisions, []
    with started(world, folder, dict.fromkeys(MAKERS, RATES[0]), CHOICE_SEED) as contestants:
        seconds = {}
        for one, curve in zip(contestants, compete(contestants, world.updates[0]), strict=True):
            seconds[one.name] = float(np.median(curve.seconds[1:])) / samples
            out.append(Measure(f"{world.name}_seconds_{one.name}", seconds[one.name], "s/sample"))
            out.append(Measure(f"{world.name}_flops_{one.name}", work(one)["flops"] / samples, "a sample"))
    out.append(Measure(f"{world.name}_speed_vs_rllib", seconds["rllib"] / seconds["posterior"], "x"))
    return out


COLOURS = {"posterior": "#00798c", "rllib": "#d1495b"}


def draw(world: World, found: dict[str, Outcome]) -> str:
    samples = world.episodes * world.decisions
    lines = []
    for name, one in found.items():
        for seed, curve in enumerate(one.curves):
            points = [(samples * (i + 1.0), value) for i, value in enumerate(curve.returns)]
            lines.append(Line(name if seed == 0 else "", COLOURS[name], points))
    end = max(x for line in lines for x, _ in line.points)
    lines.append(Line("best policy", "#6c757d", [(0.0, world.best), (end, world.best)], dashed=True))
    return picture(lines, f"{world.name}: samples (tokens)", "mean return of a batch")


def run(args: argparse.Namespace) -> list[Measure]:
    import ray

    torch.set_num_threads(1)
    worlds = [make() for name, make in WORLDS.items() if name in args.parts]
    rates: Sequence[float] = RATES[1:2] if args.quick else RATES
    lengths: Sequence[int] = (LENGTHS[:1] if args.quick else LENGTHS) if "clock" in args.parts else ()
    seeds = 2 if args.quick else args.seeds
    if args.quick:
        worlds = [replace(world, updates=(3, 1)) for world in worlds]
    out: list[Measure] = []
    pictures = []
    # RLlib keeps weights in Ray's object store even where everything runs in one process
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="posterior-bench-") as folder:
            for world in worlds:
                found = play(world, Path(folder), rates, seeds)
                out += measures(world, found)
                pictures.append(draw(world, found))
            for length in lengths:
                out += clock(long_texts(length, episodes=16), Path(folder))
    finally:
        ray.shutdown()
    if args.picture and pictures:
        Path(args.picture).write_text(stacked(pictures))
    return out


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--seeds", {"type": int, "default": 3}),
    ("--parts", {"nargs": "+", "default": PARTS, "choices": PARTS}),
    ("--picture", {"default": None, "help": "where to draw the learning curves (SVG)"}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
