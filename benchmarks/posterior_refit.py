"""A frozen helper is one step of EM: the policy stops at log E_q p(y*|x,z). One that is fitted further goes on.

    python -m benchmarks.posterior_refit --json [--quick] [--prompts 8] [--first 40] [--steps 150] [--seeds 3] [--model FOLDER]

The model of tune_configs/walk_pretrain.yaml on a few prompts of the walk, whose thoughts (at most 3 tokens) are all listed. The helper is
fitted while the policy stands still; then the policy is distilled onto it token by token (return-to-go, moving denominator, no anchor,
no answer term), with the helper frozen or fitted on. Figures are means over prompts in nats, all by enumeration:

    start, end    log E p(y*|x,z) over the policy's thoughts, read by the model as it was: the theory holds the reader fixed
    plateau       the same over the first helper's thoughts, which the frozen run should reach and not pass
    own_end       as the last policy reads its own: reader and writer share their weights, and without an answer term the reader forgets
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
from benchmarks.posterior_testbed import Case, Testbed
from envs.base import Task
from envs.walk import GIVEN, Walk
from models.forward import Distribution
from models.loading import load_role, load_tokenizer

BUDGET, SIZE = 3, 16


@dataclass
class Outcome:
    """As the figures above. curve: (step, as end)."""

    start: float
    end: float
    own_end: float
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
    cases = [bed.case(task) for task in tasks]
    reader = [case.answer_logp for case in cases]
    start = level(cases, reader)
    for _ in range(first):
        run.step(tasks)
    frozen.load_state_dict(run.models["helper"].state_dict())
    frozen.eval()
    plateau = level([bed.case(task, frozen) for task in tasks], reader, helper=True)
    curve = []
    for step in range(steps):
        run.step(tasks)
        if (step + 1) % every == 0:
            curve.append((step + 1, level([bed.case(task) for task in tasks], reader)))
            print(f"{refit}, step {step + 1}: {curve[-1][1]:.3f}, plateau {plateau:.3f}", file=sys.stderr, flush=True)
    cases = [bed.case(task) for task in tasks]
    return Outcome(start, level(cases, reader), level(cases, [case.answer_logp for case in cases]), plateau, curve)


def level(cases: Sequence[Case], reader: Sequence[np.ndarray], *, helper: bool = False) -> float:
    """Mean over prompts of log E p(y*|x,z), z from the policy or the helper of the cases. reader: float64[Z] each, log p(y*|x,z)."""
    out = []
    for case, answer_logp in zip(cases, reader, strict=True):
        log_z = np.log(np.maximum(case.probability, 1e-300))
        if helper:
            log_z = log_z + np.array([ratio.sum() for ratio in case.ratio])
        out.append(float(np.logaddexp.reduce(log_z + answer_logp)))
    return float(np.mean(out))


def run(args: argparse.Namespace) -> list[Measure]:
    torch.set_num_threads(args.threads)
    prompts, steps, seeds = (2, 2, 1) if args.quick else (args.prompts, args.steps, args.seeds)
    path = base_model(args.model, args.quick)
    tasks = list(Walk().tasks("train"))[:prompts]
    out = []
    for refit in ("never", "always"):
        found = [follow(path, tasks, refit, 2 if args.quick else args.first, steps, seed) for seed in range(seeds)]
        for name in ("start", "end", "own_end", "plateau"):
            values = [getattr(outcome, name) for outcome in found]
            out.append(Measure(f"{refit}_{name}", float(np.mean(values)), "nats"))
            out.append(Measure(f"{refit}_{name}_spread", float(np.ptp(values)), "nats"))
        passed = float(np.mean([outcome.end - outcome.plateau for outcome in found]))
        out.append(Measure(f"{refit}_end_minus_plateau", passed, "nats"))
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--prompts", {"type": int, "default": 8}),
    ("--first", {"type": int, "default": 40}),
    ("--steps", {"type": int, "default": 150}),
    ("--seeds", {"type": int, "default": 3}),
    ("--threads", {"type": int, "default": 1}),
    ("--model", {"default": None}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
