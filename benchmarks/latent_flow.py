"""Latent flow against neuralese, no thought and pause tokens on pointer chasing, at equal FLOPs.

    python -m benchmarks.latent_flow --json [--quick] [--seeds 3] [--hops 5] [--symbols 8] [--updates 750] [--batch 256]
                                     [--variants neuralese through ...] [--cache FILE]

The model is that of tune_configs/neuralese_pointer_chase.yaml (GPT-2 family, 2 layers, width 64, about 110k parameters,
from nothing). Every variant may spend the FLOPs (`models.flops`) of `updates` updates of neuralese; forward and
backward passes count three forwards, passes whose gradient stops at the latents two. A cheaper variant takes more
updates. One CPU process, the learner's own update (`actors.update`), the same tasks in the same order.

accuracy: of the whole answer, teacher-forced argmax, held-out problems, mean over numbers of hops; intervals are
Student's over seeds. deepest: at the largest number of hops. Figures of a flow beside it: cosine of its steps with the
gradient of log p(y*|x,z) on held-out problems, and the gain in log p(y*) from z_0 to z_T. `oracle` follows that
gradient itself, with y* known: how far the reader can be steered. `surrogate` is test-time ascent on log p(y'|x,z) of
the answer y' that is likeliest at z_T. transplant: accuracy with another problem's latents; follows: how often the
answer is then the other problem's.

--cache keeps finished runs in a file of JSON lines, so that a long comparison can be made in parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.types import Group, SamplingParams
from actors.update import OptimiserConfig, Updater
from algorithms.base import Context
from algorithms.latent_flow import LatentFlow, LatentFlowConfig
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig
from benchmarks.common import Measure, main, over_seeds
from envs.base import Task
from envs.pointer_chase import PointerChase
from models.causal import intervene
from models.feedback import Thinker, ThinkerConfig
from models.flops import FlopModel
from models.forward import Distribution, ModelForward, collate
from models.loading import RoleModel, load_role
from models.roles import RoleSpec
from models.scratch import write_model
from models.terms import Batch
from models.trace import Kind
from models.velocity import Block, flow

ASCENT = 0.3
"""Length of one step of the oracle's and the surrogate's ascent, in units of rms_E."""


@dataclass(frozen=True)
class Variant:
    what: str
    kind: str = "flow"
    grad: str = "exact"
    latents: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    thinker: dict[str, Any] = field(default_factory=dict)


WIDE = {"endpoint": True, "trust": 2.0}
"""A field that says where to go, with nothing but the ball to bound it: at the start its steps are a chain's Jacobi
iteration."""
VARIANTS = {
    "no_thought": Variant("answers at once", kind="gated", latents=False),
    "pause": Variant("pause tokens", kind="pause"),
    "neuralese": Variant("latents one after another, BPTT", kind="gated"),
    "through": Variant("cross-entropy through the Euler steps, no regression", options={"flow": 0.0}, thinker=WIDE),
    "local": Variant(
        "free field, regression on grad_z log p(y*|x,z) alone",
        grad="detached",
        options={"flow": 0.1, "rate": 100.0},
        thinker={"trust": 0.5},
    ),
    "local_endpoint": Variant(
        "the same for a field that says where to go",
        grad="detached",
        options={"flow": 0.1, "rate": 100.0},
        thinker={"endpoint": True, "trust": 0.5},
    ),
    "adjoint": Variant(
        "the same, on the gradient through the later steps",
        grad="detached",
        options={"flow": 0.1, "rate": 100.0, "target": "adjoint"},
        thinker={"endpoint": True, "trust": 0.5},
    ),
    "both": Variant(
        "cross-entropy through the steps and local regression", options={"flow": 0.1, "rate": 100.0}, thinker=WIDE
    ),
}


@dataclass
class Setting:
    """One scale of the comparison."""

    hops: int
    symbols: int
    updates: int
    batch: int
    lr: float
    euler_steps: int
    held_out: int

    def env(self) -> PointerChase:
        return PointerChase(self.symbols, self.hops)

    def key(self) -> str:
        return json.dumps([self.hops, self.symbols, self.updates, self.batch, self.lr, self.euler_steps])


def flops_of_example(
    cost: FlopModel, prompt: int, latents: int, answer: int, variant: Variant, euler_steps: int
) -> float:
    """Of one training example: forward passes and what is differentiated of them."""
    end = prompt + latents + answer
    if variant.kind != "flow" or not latents:
        return 3 * cost.sequence(end)
    options = LatentFlowConfig(**variant.options)
    step, reading = cost.sequence(prompt + latents, prompt), cost.sequence(end, prompt)
    total = 3 * cost.sequence(prompt) + 3 * reading + (3 if variant.grad == "exact" else 1) * euler_steps * step
    if options.flow:
        total += 3 * step + 2 * reading + (2 * euler_steps * step if options.target == "adjoint" else 0)
    return total


def train(
    variant: Variant, setting: Setting, seed: int, folder: Path
) -> tuple[RoleModel, NeuraleseSFT, dict[str, float]]:
    """The trained model, its method, and what it cost."""
    env = setting.env()
    path = write_model(folder / "model", env.words(), family="gpt2", layers=2, width=64, heads=4, length=32, seed=seed)
    torch.manual_seed(seed)
    mind = ThinkerConfig(kind=variant.kind, euler_steps=setting.euler_steps, **variant.thinker)  # type: ignore[arg-type]
    Thinker(mind, load_role(str(path)).base).save(path)
    model = load_role(str(path), grad=variant.grad)
    sampling = SamplingParams(latents=setting.hops if variant.latents else 0, latents_from="task")
    context = Context(str(path), sampling, seed)
    method = (
        LatentFlow(LatentFlowConfig(**variant.options), context)
        if variant.kind == "flow"
        else NeuraleseSFT(NeuraleseSFTConfig(), context)
    )
    cost = FlopModel.of(model.lm.config, sum(p.numel() for p in model.lm.parameters()))
    mean = (setting.hops + 1) / 2  # latents of a problem
    prompt, thought = setting.symbols + 3, mean if variant.latents else 0
    mine = flops_of_example(cost, prompt, thought, 2, variant, setting.euler_steps)  # type: ignore[arg-type]
    budget = setting.updates * flops_of_example(cost, prompt, mean, 2, VARIANTS["neuralese"], 0)  # type: ignore[arg-type]
    updates = math.ceil(budget / mine)
    optimiser = OptimiserConfig(setting.lr, 20, (0.9, 0.999), 1e-8, 0.01, 1.0)
    update = Updater(
        method, {"policy": model}, {"policy": RoleSpec(str(path), True)}, {"policy": optimiser}, Distribution(), None
    )
    seconds = 0.0
    tasks = itertools.islice(env.tasks("train"), seed << 18, None)  # other problems for each seed
    for step in range(updates):
        groups = groups_of(method, list(itertools.islice(tasks, setting.batch)), step * setting.batch)
        start = time.process_time()
        method.credit(groups)
        update.update(groups, step, measure_gap=False)
        seconds += time.process_time() - start
    spent = {
        "updates": updates,
        "seconds": seconds,
        "teraflops": mine * updates * setting.batch / 1e12,
    }
    return model.eval(), method, spent


def groups_of(method: NeuraleseSFT, tasks: Sequence[Task], first: int) -> list[Group]:
    return [Group(task, [method.example(task, first + i, 0)], first + i) for i, task in enumerate(tasks)]


# ---- what came of it ------------------------------------------------------------------------------------------------------


def judge(model: RoleModel, batch: Batch, latents: Tensor | None) -> tuple[np.ndarray, float]:
    """(int64[B] first token of the likeliest answer, -1 where the rest of it is wrong; mean log p of the good
    answers)"""
    forward = ModelForward(model, batch, latents=latents)
    target_BT = batch.kind_BT == Kind.TARGET
    best = model.logits(forward.hidden_BTD[:, :-1][target_BT[:, 1:]]).argmax(-1)
    said_BM, good_BM = (x.view(len(target_BT), -1) for x in (best, batch.token_BT[target_BT]))
    said = torch.where((said_BM[:, 1:] == good_BM[:, 1:]).all(1), said_BM[:, 0], -1)
    return said.numpy(), float(torch.where(target_BT, forward.logprobs_BT, 0.0).sum(1).mean())


def answers(batch: Batch) -> np.ndarray:
    """int64[B]: first token of every good answer."""
    target_BT = batch.kind_BT == Kind.TARGET
    return batch.token_BT[target_BT].view(len(target_BT), -1)[:, 0].numpy()


@torch.no_grad()
def evaluate(model: RoleModel, method: NeuraleseSFT, setting: Setting) -> dict[str, Any]:
    """Figures over held-out problems, by number of hops."""
    out: dict[str, Any] = {"accuracy": []}
    for hops in range(1, setting.hops + 1):
        tasks = list(itertools.islice(setting.env().tasks(f"hops{hops}"), setting.held_out))
        traces = [group.traces[0] for group in groups_of(method, tasks, 0)]
        batch = collate(traces, [trace.view() for trace in traces])
        good = answers(batch)
        out["accuracy"].append(float((judge(model, batch, None)[0] == good).mean()))
        own = ModelForward(model, batch)
        if own.latents is None:
            continue
        z_NKD = own.latents.view(len(traces), -1, own.latents.shape[-1])
        numbers = torch.arange(len(traces), dtype=torch.float32)[:, None, None].expand(
            z_NKD.shape[0], z_NKD.shape[1], 1
        )
        donor = intervene("transplant", numbers, torch.Generator().manual_seed(0))[:, 0, 0].long()
        said, _ = judge(model, batch, z_NKD[donor].flatten(0, 1))
        differ = good[donor.numpy()] != good
        found = {
            "transplant": float((said == good).mean()),
            "follows": float((said == good[donor.numpy()])[differ].mean()),
        }
        if own.thought is not None:
            found |= along_the_path(model, batch, own.thought.blocks[0], good)
        for name, value in found.items():
            out.setdefault(name, []).append(value)
    return out


def along_the_path(model: RoleModel, batch: Batch, block: Block, good: np.ndarray) -> dict[str, Any]:
    """What the steps do to log p(y*), beside the gradient itself (which knows y*) and a surrogate's."""
    steps = len(block.path) - 1
    cosine = []
    for n, z in enumerate(block.path[:-1]):
        made, gradient = block.field(z, n / steps), block.gradient(z)
        cosine.append(float(torch.nn.functional.cosine_similarity(made, gradient, dim=-1).mean()))
    logp = [judge(model, batch, z)[1] for z in block.path]
    oracle = ascend(model, batch, good, lambda own: own.path[0])
    guessed = np.maximum(judge(model, batch, None)[0], 0)
    surrogate = ascend(model, batch, guessed, lambda own: own.path[-1])
    return {
        "cosine": float(np.mean(cosine)),
        "logp_gain": logp[-1] - logp[0],
        "logp_path": logp,
        "step": float((block.path[-1] - block.path[0]).square().mean().sqrt() / block.field.thinker.rms),
        "oracle": float((oracle == good).mean()),
        "surrogate": float((surrogate == good).mean()),
    }


def ascend(model: RoleModel, batch: Batch, answer_B: np.ndarray, start: Any) -> np.ndarray:
    """Answers after as many steps as the flow takes, each ASCENT long along grad_z log p(answer | x, z)."""
    asked = batch.token_BT.clone()
    target_BT = batch.kind_BT == Kind.TARGET
    first_BT = target_BT & (target_BT.cumsum(1) == 1)
    asked[first_BT] = torch.from_numpy(answer_B)
    thinker = model.thinker
    assert thinker is not None

    def climb(block: Block) -> Tensor:
        z = start(block)
        for _ in range(len(block.path) - 1):
            gradient = block.gradient(z)
            step = ASCENT * thinker.rms * gradient / (gradient.square().mean(-1, keepdim=True).sqrt() + 1e-12)
            z = thinker.ball(z + step)
        return z

    thought = flow(model.base, thinker, asked, batch.kind_BT, batch.length_B, replace=climb)
    return judge(model, batch, thought.latents_LD)[0]


def one(name: str, setting: Setting, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model, method, spent = train(VARIANTS[name], setting, seed, Path(folder))
        return {**evaluate(model, method, setting), **spent}


def measure(args: argparse.Namespace) -> list[Measure]:
    torch.set_num_threads(1)
    setting = Setting(args.hops, args.symbols, args.updates, args.batch, args.lr, args.euler_steps or args.hops, 200)
    if args.quick:
        setting = Setting(2, 4, 3, 16, 1e-3, 2, 12)
    cache = Path(args.cache) if args.cache else None
    known: dict[str, Any] = {}
    if cache is not None and cache.exists():
        known = dict(json.loads(line) for line in cache.read_text().splitlines())
    out, baseline = [], None
    for name in args.variants:
        runs = []
        for seed in range(args.seeds):
            key = f"{setting.key()} {name} {seed}"
            if key not in known:
                known[key] = one(name, setting, seed)
                print(name, seed, json.dumps(known[key]), file=sys.stderr, flush=True)
                if cache is not None:
                    with cache.open("a") as file:
                        file.write(json.dumps([key, known[key]]) + "\n")
            runs.append(known[key])
        for figure in ("accuracy", "transplant", "follows", "cosine", "logp_gain", "step", "oracle", "surrogate"):
            if figure not in runs[0]:
                continue
            values = [float(np.mean(run[figure])) for run in runs]
            if name == "no_thought" and figure == "accuracy":
                baseline = float(np.mean(values))
            spread = over_seeds(f"{name}_{figure}", values, baseline=baseline if figure == "accuracy" else None)
            out += spread if figure == "accuracy" else spread[:1]
            if figure == "accuracy":
                out += over_seeds(f"{name}_deepest", [run[figure][-1] for run in runs])
                out += [
                    Measure(f"{name}_accuracy_hops{h + 1}", float(np.mean([run[figure][h] for run in runs])))
                    for h in range(setting.hops)
                ]
        for figure, unit in (("updates", ""), ("seconds", "s"), ("teraflops", "TFLOP")):
            out.append(Measure(f"{name}_{figure}", float(np.mean([run[figure] for run in runs])), unit))
    return out


if __name__ == "__main__":
    number = {"type": int}
    sys.exit(
        main(
            __doc__,
            measure,
            ("--seeds", {**number, "default": 3}),
            ("--hops", {**number, "default": 5}),
            ("--symbols", {**number, "default": 8}),
            ("--updates", {**number, "default": 750}),
            ("--batch", {**number, "default": 256}),
            ("--lr", {"type": float, "default": 1e-3}),
            ("--euler-steps", {"type": int, "default": None}),
            ("--variants", {"nargs": "+", "default": list(VARIANTS), "choices": list(VARIANTS)}),
            ("--cache", {"default": None}),
        )
    )
