"""Gradient estimators for log p(y*|x) against the exact gradient, where every thought can be listed.

    python -m benchmarks.posterior_exact --json [--quick] [--prompts 100] [--groups 8] [--fit-steps 150] [--model FOLDER]

The model of tune_configs/walk_pretrain.yaml (trained first if it is not there) in float64, drawing from its top 6 tokens, thoughts of at
most 4 tokens, held-out prompts of the walk. For every rule, with the exact posterior and with a helper fitted to 150 batches:

    bias      |E g - g*| / |g*|, by enumeration (of groups and TRICE: by sampling; "noise" is what an unbiased one would show)
    cosine    between E g and g*
    variance  of the gradient of one thought over |g*|^2, from groups of 8 (times 8)

g* is the gradient of log p(y*|x) through the thought; sums run over prompts before they are divided. Baselines get the exact p(y*|x) as
their baseline, which they do not have in training. TRICE's memories are drawn from the exact posterior.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.local import LocalRun
from actors.types import SamplingParams
from actors.update import OptimiserConfig
from algorithms.base import Context
from algorithms.helper import Helper, HelperConfig
from algorithms.helper_fit import bayes_gap
from benchmarks.common import Measure, main
from benchmarks.posterior_testbed import BASELINES, GROUPED, RULES, Testbed
from envs.base import Task
from envs.walk import GIVEN, Walk
from models.forward import Distribution
from models.loading import RoleModel, load_role, load_tokenizer

CONFIG = "tune_configs/walk_pretrain.yaml"
TOP_K, BUDGET, SIZE = 6, 4, 8
BINS = (0.0, 0.1, 0.3, 1.0)
"""Of p(y*|x), for TRICE's table."""


@dataclass
class Sums:
    """Over prompts, for one estimator. variances: of one thought's gradient, prompt by prompt."""

    error: float = 0.0
    norm: float = 0.0
    cosine: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)

    @property
    def variance(self) -> float:
        return sum(self.variances)

    def add(self, mean: Tensor, exact: Tensor, variance: float) -> None:
        self.error += float((mean - exact).square().sum())
        self.norm += float(exact.square().sum())
        self.cosine.append(float(mean @ exact / (mean.norm() * exact.norm()).clamp(min=1e-300)))
        self.variances.append(variance)

    def measures(self, name: str, sampled: int = 0) -> list[Measure]:
        """sampled: thoughts a prompt from which the mean was estimated, where it was."""
        out = [
            Measure(f"{name}_bias", (self.error / self.norm) ** 0.5),
            Measure(f"{name}_cosine", float(np.mean(self.cosine))),
            Measure(f"{name}_variance", self.variance / self.norm),
        ]
        if sampled:
            out.append(Measure(f"{name}_noise", (self.variance / self.norm / sampled) ** 0.5))
        return out


def variance_ratio(name: str, mine: Sums, other: Sums, target: float) -> list[Measure]:
    """The ratio of two variances, both summed over prompts, with the 95 % interval of drawing the prompts anew."""
    drawn = np.random.default_rng(0).integers(len(mine.variances), size=(4000, len(mine.variances)))
    ratios = np.array(mine.variances)[drawn].sum(1) / np.array(other.variances)[drawn].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return [
        Measure(name, mine.variance / other.variance, target=target, at_most=True),
        Measure(f"{name}_low", float(low)),
        Measure(f"{name}_high", float(high)),
    ]


def fitted(path: str, steps: int, fit: str, seed: int = 0) -> RoleModel:
    """A helper after stage 1 of the method: the policy stands still."""
    sampling = SamplingParams(top_k=TOP_K, max_tokens=BUDGET)
    config = HelperConfig(group_size=SIZE, first_steps=steps, fit=fit, hint=GIVEN)
    tokenizer = load_tokenizer(path)
    run = LocalRun(
        Helper(config, Context(path, sampling, seed)),
        OptimiserConfig(1e-3, 10, (0.9, 0.99), 1e-8, 0.0, 1.0),
        Walk(),
        [tokenizer.eos_token_id],
    )
    tasks = list(Walk().tasks("train"))
    for step in range(steps):
        batch = [tasks[(16 * step + i) % len(tasks)] for i in range(16)]
        row = run.step(batch)
        if step % 25 == 0 or step == steps - 1:
            print(f"helper, {fit}, step {step}: Bayes gap {row['helper/bayes_gap']:.3f}", file=sys.stderr, flush=True)
    return run.models["helper"].double().eval()


def compare(
    bed: Testbed, tasks: Sequence[Task], helper: RoleModel | None, groups: int
) -> tuple[dict[str, Sums], dict[str, Any]]:
    """All estimators over the prompts; and what else was found: the Bayes identity, the helper's gap, TRICE by accuracy."""
    sums: dict[str, Sums] = defaultdict(Sums)
    by_accuracy: dict[tuple[int, str], Sums] = defaultdict(Sums)
    identity, scores, logs, marginals = 0.0, [], [], []
    rules = {**RULES, **({} if helper else {**BASELINES, **GROUPED})}
    for number, task in enumerate(tasks):
        case = bed.case(task, helper)
        exact = bed.exact(case)
        marginals.append(case.marginal)
        totals = np.array([ratio.sum() for ratio in case.ratio])
        identity = max(identity, float(np.abs(totals - (case.answer_logp - case.marginal)).max()))
        drawn = np.random.default_rng([11, number]).choice(len(totals), 64, p=case.probability / case.probability.sum())
        scores.append(totals[drawn])
        logs.append(case.answer_logp[drawn])
        sampled = bed.sampled(case, rules, groups, SIZE, [7, number])
        for name, draws in sampled.items():
            if helper is not None and name.startswith("trice"):
                continue
            mean = draws.mean(0)
            variance = float(draws.var(0).sum()) * SIZE
            if name in RULES or name in BASELINES:
                enumerated = name if name != "rlvr" else "verifree"  # RLVR's mean over answers is VeriFree's
                mean = bed.expectation(case, rules[enumerated])
            sums[name].add(mean, exact, variance)
            if name.startswith("trice"):
                place = int(np.searchsorted(BINS, np.exp(case.marginal), side="right")) - 1
                by_accuracy[min(place, len(BINS) - 2), name].add(mean, exact, variance)
        print(f"prompt {number + 1} of {len(tasks)}", end="\r", file=sys.stderr, flush=True)
    found = {
        "identity": identity,
        "gap": bayes_gap(scores, logs),
        "p": np.exp(marginals),
        "trice": {
            place: by_accuracy[place, "trice"].variance / by_accuracy[place, "trice_no_control"].variance
            for place in range(len(BINS) - 1)
            if by_accuracy[place, "trice"].norm
        },
        "prompts_of": {place: len(by_accuracy[place, "trice"].cosine) for place in range(len(BINS) - 1)},
    }
    return dict(sums), found


def base_model(path: str | None, quick: bool) -> str:
    """The folder of the pretrained walker; a random one for a quick look at the program."""
    if path:
        return path
    if quick:
        import tempfile
        from pathlib import Path

        from models.scratch import write_model

        folder = Path(tempfile.mkdtemp(prefix="posterior-bench-")) / "model"
        return str(write_model(folder, Walk().words(), family="gpt2", layers=1, width=16, heads=2, length=24, seed=0))
    from posterior.config import EnvConfig, Model, RunConfig
    from posterior.warm_start import trained

    return str(trained(RunConfig(model=Model(path=CONFIG), env=EnvConfig(name="walk"))))


def run(args: argparse.Namespace) -> list[Measure]:
    torch.set_num_threads(args.threads)
    prompts, groups, steps = (3, 2, 3) if args.quick else (args.prompts, args.groups, args.fit_steps)
    path = base_model(args.model, args.quick)
    distribution = Distribution(1.0, 1.0, 3 if args.quick else TOP_K)
    bed = Testbed(load_role(path, dtype="float64"), load_tokenizer(path), distribution, BUDGET - args.quick, GIVEN)
    tasks = list(itertools.islice(Walk().tasks("test"), prompts))
    exact, found = compare(bed, tasks, None, groups)
    out = [
        Measure("bayes_identity_exact_q", found["identity"], "nats", target=1e-8, at_most=True),
        Measure("p_answer_median", float(np.median(found["p"]))),
        Measure("p_answer_low", float(np.quantile(found["p"], 0.1))),
        Measure("p_answer_high", float(np.quantile(found["p"], 0.9))),
    ]
    for name, sums in exact.items():
        out += sums.measures(name, 0 if name in RULES or name in BASELINES else groups * SIZE)
    for other, target in (("verifree", 0.35), ("rlvr", 0.2)):
        out += variance_ratio(f"variance_w_vs_{other}", exact["w"], exact[other], target)
    for place, ratio in found["trice"].items():
        low, high = BINS[place], BINS[place + 1]
        out.append(Measure(f"trice_control_variance_ratio_p_{low:g}_{high:g}", ratio))
        out.append(Measure(f"trice_prompts_p_{low:g}_{high:g}", float(found["prompts_of"][place])))
    for fit in args.fits:
        learned, known = compare(bed, tasks, fitted(path, steps, fit), groups)
        out += [Measure(f"{fit}_{name}", value) for name, value in known["gap"].items()]
        for name, sums in learned.items():
            out += sums.measures(f"{fit}_{name}")
    _, prompted = compare(bed, tasks[: max(len(tasks) // 4, 2)], load_role(path, dtype="float64"), 2)
    out += [Measure(f"prompted_{name}", value) for name, value in prompted["gap"].items()]
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--prompts", {"type": int, "default": 100}),
    ("--groups", {"type": int, "default": 8}),
    ("--fit-steps", {"type": int, "default": 150}),
    ("--fits", {"nargs": "*", "default": ["likelihood", "log_variance", "mixed"]}),
    ("--threads", {"type": int, "default": 1}),
    ("--model", {"default": None}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
