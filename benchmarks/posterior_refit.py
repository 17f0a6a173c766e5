"""A frozen helper is one step of EM: the policy stops at log E_q p(y*|x,z). One that is fitted further goes on.

    python -m benchmarks.posterior_refit --json [--quick] [--prompts 16] [--steps 300] [--seeds 3] [--model FOLDER]

The model of tune_configs/walk_pretrain.yaml on a few prompts of the walk, whose thoughts (at most 3 tokens) are all listed. The helper is
fitted while the policy stands still; then the policy is distilled onto it token by token (return-to-go, moving denominator, no anchor,
no answer term), with the helper frozen or fitted on. Figures are means over prompts in nats, all by enumeration: log p(y*|x)
before and after, and the plateau log E_q p(y*|x,z) of the first helper under the last reader, which the frozen run should reach and not
pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.local import LocalRun
from actors.types import SamplingParams
from actors.update import OptimiserConfig
from algorithms.base import Context
from algorithms.helper import Helper, HelperConfig
from benchmarks.common import Measure, main
from benchmarks.posterior_exact import base_model
from benchmarks.posterior_testbed import Testbed
from envs.base import Task
from envs.walk import GIVEN, Walk
from models.forward import Distribution
from models.loading import RoleModel, load_role, load_tokenizer

BUDGET, SIZE = 3, 16


@dataclass
class Outcome:
    """start, end: mean log p(y*|x). plateau: log E_q0 p(y*|x,z) with the reader of the end. curve: (step, log p(y*|x))."""

    start: float
    end: float
    plateau: float
    curve: list[tuple[int, float]]


def follow(
    path: str, tasks: Sequence[Task], refit: str, first: int, steps: int, seed: int, lr: float = 3e-4, every: int = 25
) -> Outcome:
    """Stage 1 for `first` batches, then `steps` batches with the helper frozen ("never") or fitted on ("always")."""
    config = HelperConfig(
        group_size=SIZE,
        credit="return_to_go",
        anchor=False,
        clip=None,
        answer_weight=0.0,  # with it the few prompts' answers are learnt by heart, and no thought is needed
        first_steps=first,
        fit="wake",
        refit=refit,
        helper_lr=2 * lr,
        hint=GIVEN,
    )
    tokenizer = load_tokenizer(path)
    run = LocalRun(
        Helper(config, Context(path, SamplingParams(max_tokens=BUDGET), seed)),
        OptimiserConfig(lr, 0, (0.9, 0.98), 1e-8, 0.0, 1.0),
        Walk(),
        [tokenizer.eos_token_id],
    )
    frozen = load_role(path)
    bed = Testbed(run.models["policy"], tokenizer, Distribution(), BUDGET, GIVEN)
    start = level(bed, tasks)[0]
    for _ in range(first):
        run.step(tasks)
    frozen.load_state_dict(run.models["helper"].state_dict())
    curve = []
    for step in range(steps):
        run.step(tasks)
        if (step + 1) % every == 0:
            curve.append((step + 1, level(bed, tasks)[0]))
            print(f"{refit}, step {step + 1}: log p(y*|x) {curve[-1][1]:.3f}", file=sys.stderr, flush=True)
    end, plateau = level(bed, tasks, frozen.eval())
    return Outcome(start, end, plateau, curve)


@torch.no_grad()
def level(bed: Testbed, tasks: Sequence[Task], helper: RoleModel | None = None) -> tuple[float, float]:
    """Means over tasks: log p(y*|x), and log E_q p(y*|x,z) of a helper (of the policy itself without one)."""
    bed.model.eval()
    own, by_helper = [], []
    for task in tasks:
        case = bed.case(task, helper)
        log_q = np.log(np.maximum(case.probability, 1e-300)) + np.array([ratio.sum() for ratio in case.ratio])
        if helper is None:
            log_q = np.log(np.maximum(case.probability, 1e-300))
        own.append(case.marginal)
        by_helper.append(float(np.logaddexp.reduce(log_q + case.answer_logp)))
    return float(np.mean(own)), float(np.mean(by_helper))


def run(args: argparse.Namespace) -> list[Measure]:
    torch.set_num_threads(args.threads)
    prompts, steps, seeds = (2, 2, 1) if args.quick else (args.prompts, args.steps, args.seeds)
    path = base_model(args.model, args.quick)
    tasks = list(Walk().tasks("train"))[:prompts]
    out = []
    for refit in ("never", "always"):
        found = [follow(path, tasks, refit, 2 if args.quick else args.first, steps, seed) for seed in range(seeds)]
        for name in ("start", "end", "plateau"):
            values = [getattr(outcome, name) for outcome in found]
            out.append(Measure(f"{refit}_{name}", float(np.mean(values)), "nats"))
            out.append(Measure(f"{refit}_{name}_spread", float(np.ptp(values)), "nats"))
        passed = float(np.mean([outcome.end - outcome.plateau for outcome in found]))
        out.append(Measure(f"{refit}_end_minus_plateau", passed, "nats"))
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--prompts", {"type": int, "default": 16}),
    ("--first", {"type": int, "default": 100}),
    ("--steps", {"type": int, "default": 300}),
    ("--seeds", {"type": int, "default": 3}),
    ("--threads", {"type": int, "default": 1}),
    ("--model", {"default": None}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
