"""Thinking in latents against thinking in tokens, for agents: success, actions and FLOPs on key-and-door worlds.

    python -m benchmarks.hybrid --json [--quick] [--seeds 0 1 2] [--keep DIR]

    hybrid      K latent steps before every move           neuralese-SFT, written steps replaced by latents stage by stage; hybrid_agent
    token_cot   the way back to here written out, sampled   neuralese-SFT with the reasoning written and no latents; rlvr
    no_thought  nothing before a move (control)             neuralese-SFT with neither; rlvr
    pause       K times one learned embedding (control)     as hybrid, nothing fed back
    detached    as hybrid, but no gradient from a latent to the state it was made from (control)

All start from the same random weights of a seed, learn from walkthroughs of easier worlds for --warm FLOPs and then from reward for --flops
FLOPs (sampling, forward and backward, thinker included), with the same estimator, learning rate and batches; then play held-out worlds,
greedily and sampled. Intervals over seeds are Student's, 95 %. --keep: a folder for finished parts (method, seed), which are not run again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.clients import EnvClient, SamplerClient
from actors.env_worker import EnvWorker
from actors.latent_sampler import LatentSampler
from actors.local import Local
from actors.rollout import Roller, seed_of
from actors.types import Group, SamplingParams
from actors.update import OptimiserConfig, Updater
from algorithms.episodes import live_episodes
from algorithms.hybrid_agent import action_metrics
from benchmarks.common import Measure, interval, main, over_seeds
from envs.base import Env, Task
from envs.registry import make
from models.causal import battery
from models.chat import ChatFormat
from models.feedback import Thinker, ThinkerConfig
from models.flops import FlopModel
from models.forward import Distribution
from models.loading import RoleModel, load_role, load_tokenizer, merged_weights, save_role
from models.roles import RoleSpec
from models.scratch import write_model
from models.trace import Kind, Trace
from posterior.launch import build_algorithm

ROOMS, LENGTH = 8, 128
METHODS = ("hybrid", "token_cot", "no_thought", "pause", "detached")
THINKING = ("hybrid", "pause", "detached")


class Learner:
    """One method of one seed: model, updates and what they cost."""

    def __init__(self, method: str, seed: int, folder: Path, args: argparse.Namespace) -> None:
        self.method, self.seed, self.args = method, seed, args
        self.latents = args.latents if method in THINKING else 0
        words = make("key_door", {"rooms": ROOMS}).words()
        write_model(folder, words, family="gpt2", width=args.width, length=LENGTH, seed=seed)
        base = load_role(str(folder)).base
        torch.manual_seed(seed)
        Thinker(ThinkerConfig(kind="pause" if method == "pause" else "gated"), base).save(folder)
        self.folder = folder
        self.model: RoleModel = load_role(str(folder), grad="detached" if method == "detached" else "exact")
        assert self.model.thinker is not None
        self.tokenizer = load_tokenizer(str(folder))
        self.params = SamplingParams(max_tokens=12, latents=self.latents)
        self.flop_model = FlopModel.of(base.config, sum(p.numel() for p in base.parameters()))
        self.thinker_size = sum(p.numel() for p in self.model.thinker.parameters())
        self.flops = {"warm": 0.0, "rl": 0.0}
        self.curve: list[dict[str, float]] = []

    def cost(self, traces: Sequence[Trace]) -> float:
        """FLOPs of reading these traces once."""
        latents = sum(len(t.where(Kind.LATENT)) for t in traces)
        return self.flop_model.forward(len(t) for t in traces) + 2.0 * self.thinker_size * latents

    def updater(self, options: dict[str, Any], lr: float) -> Updater:
        algorithm = build_algorithm(options, str(self.folder), self.params, self.seed, 1)
        optimiser = OptimiserConfig(lr, 5, (0.9, 0.999), 1e-8, 0.0, 1.0)
        spec = RoleSpec(weights=str(self.folder), trainable=True)
        return Updater(algorithm, {"policy": self.model}, {"policy": spec}, {"policy": optimiser}, Distribution(), None)

    def warm_start(self, budget: float) -> None:
        options: dict[str, Any] = {"name": "neuralese_sft", "written": self.method == "token_cot"}
        if self.latents:
            options["curriculum"] = {"updates_per_stage": self.args.stage, "mix": self.args.mix}
        updater, size = self.updater(options, self.args.warm_lr), self.args.warm_batch
        tasks = iter(world(self.args.easy).tasks("train"))
        for step in itertools.count():
            asked = list(itertools.islice(tasks, size))
            made = [updater.algorithm.example(t, size * step + i, step) for i, t in enumerate(asked)]
            groups = [Group(task, [trace], i) for i, (task, trace) in enumerate(zip(asked, made, strict=True))]
            updater.algorithm.credit(groups)
            anneal(updater, self.args.warm_lr, self.flops["warm"] / budget)
            updater.update(groups, step, measure_gap=False)
            self.flops["warm"] += 3 * self.cost(made)
            if self.flops["warm"] >= budget:
                return

    async def learn(self, budget: float) -> None:
        name = "hybrid_agent" if self.latents else "rlvr"
        options = {"name": name, "preset": "grpo", "group_size": 8, "clip_high": 0.28}
        updater = self.updater(options, self.args.lr)
        roller, sampler = await self.roller(self.args.hard)
        tasks = iter(world(self.args.hard).tasks("train"))
        step = 0
        while self.flops["rl"] < budget:
            await sampler.publish(merged_weights(self.model), step)
            groups = await self.play(
                roller, list(itertools.islice(tasks, self.args.groups)), 8, self.params, f"t{step}"
            )
            anneal(updater, self.args.lr, self.flops["rl"] / budget)
            metrics = updater.algorithm.credit(groups)
            metrics |= updater.update(groups, step, measure_gap=step == 0)
            self.flops["rl"] += 4 * self.cost([t for g in groups for t in g.traces])
            step += 1
            self.curve.append({"flops": self.flops["rl"], "success": metrics["pass_rate"]})
            if step == 1:
                self.curve[0]["gap"] = metrics["gap/max"]
            if step % 5 == 0:
                recent = np.mean([row["success"] for row in self.curve[-5:]])
                say(
                    f"{self.method} seed {self.seed}: update {step}, success {recent:.3f}, {self.flops['rl']:.2e} FLOPs"
                )

    async def roller(self, depth: Sequence[int]) -> tuple[Roller, SamplerClient]:
        end = self.tokenizer.eos_token_id
        sampler = SamplerClient(
            [Local(LatentSampler(str(self.folder), max_length=LENGTH, stop_ids=[end]))], coalesce=True
        )
        await sampler.publish(merged_weights(self.model), 0)
        envs = EnvClient([Local(EnvWorker("key_door", arguments(depth)))])
        return Roller(sampler, envs, await envs.info(), ChatFormat(self.tokenizer), LENGTH), sampler

    async def play(
        self, roller: Roller, tasks: Sequence[Task], n: int, params: SamplingParams, name: str
    ) -> list[Group]:
        seeds = [seed_of(self.seed, name, i) for i in range(len(tasks))]
        played = await asyncio.gather(
            *(roller.rollout(t, n, params, f"{name}/{i}", s) for i, (t, s) in enumerate(zip(tasks, seeds, strict=True)))
        )
        return [Group(task, traces, i) for i, (task, traces) in enumerate(zip(tasks, played, strict=True))]

    async def examine(self, depth: Sequence[int]) -> dict[str, float]:
        """Held-out success, greedy and sampled, and the length of an episode in actions."""
        roller, _ = await self.roller(depth)
        tasks = list(itertools.islice(world(depth).tasks("test"), self.args.tasks))
        out: dict[str, float] = {}
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            groups = await self.play(roller, tasks, 1, self.params.but(temperature=temperature), "eval")
            episodes = [e for g in groups for e in live_episodes(g)]
            solved = np.mean([any(t.passed for t in e.traces) for e in episodes])
            counted = {key.removeprefix("actions/"): value for key, value in action_metrics(episodes).items()}
            turns = float(np.mean([e.turns for e in episodes]))
            out |= {f"{name}/{k}": v for k, v in {**counted, "success": float(solved), "turns": turns}.items()}
        return out

    def causal(self) -> dict[str, float]:
        """Share of held-out walkthroughs of which every move stays the likeliest under each intervention on the latents."""
        algorithm = self.updater({"name": "hybrid_agent"}, 1.0).algorithm
        tasks = list(itertools.islice(world(self.args.hard).tasks("test"), self.args.tasks))
        by_latents: dict[int, list[Trace]] = {}
        for i, task in enumerate(tasks):
            trace = algorithm.example(task, i, 0)
            by_latents.setdefault(len(trace.where(Kind.LATENT)), []).append(trace)
        found = [battery(self.model.eval(), same, k, self.seed) for k, same in by_latents.items() if len(same) > 1]
        names = [name for name in found[0] if not name.startswith("truncate")]
        return {name: float(np.concatenate([one[name].correct for one in found]).mean()) for name in names}


def anneal(updater: Updater, lr: float, spent: float) -> None:
    """The learning rate falls linearly to a tenth: what is left at the end is not the noise of large steps. spent: share of the FLOPs."""
    updater.settings["policy"] = replace(updater.settings["policy"], lr=lr * (1 - 0.9 * spent))


def arguments(depth: Sequence[int]) -> dict[str, Any]:
    return {"rooms": ROOMS, "depth": list(depth)}


def world(depth: Sequence[int]) -> Env:
    return make("key_door", arguments(depth))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def part(method: str, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one method and seed."""
    start = time.perf_counter()
    learner = Learner(method, seed, folder, args)
    learner.warm_start(args.warm)
    out: dict[str, Any] = {"method": method, "seed": seed, "warm": await learner.examine(args.hard)}
    say(f"{method} seed {seed}: warm start {out['warm']['greedy/success']:.3f}, {time.perf_counter() - start:.0f} s")
    await learner.learn(args.flops)
    out["final"] = await learner.examine(args.hard)
    if learner.latents:
        out["causal"] = learner.causal()
    save_role(learner.model, folder, learner.tokenizer)
    out |= {"flops": learner.flops, "curve": learner.curve, "seconds": time.perf_counter() - start}
    say(
        f"{method} seed {seed}: {out['final']['greedy/success']:.3f} after {out['seconds']:.0f} s; {out.get('causal', '')}"
    )
    return out


def run(args: argparse.Namespace) -> list[Measure]:
    if args.quick:
        args.seeds, args.methods, args.tasks, args.groups = [0, 1], ["hybrid", "token_cot"], 20, 4
        args.warm, args.flops = args.warm / 50, args.flops / 50
    parts: dict[tuple[str, int], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        for seed, method in itertools.product(args.seeds, args.methods):
            kept = Path(args.keep or name) / f"{method}-{seed}.json"
            if not kept.is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(asyncio.run(part(method, seed, Path(name) / kept.stem, args))))
            parts[method, seed] = json.loads(kept.read_text())
    return measures(parts, args)


def measures(parts: dict[tuple[str, int], dict[str, Any]], args: argparse.Namespace) -> list[Measure]:
    out: list[Measure] = []
    say(
        f"{'method':<11} {'warm start':>10}  {'success, greedy':<22} {'sampled':<22} {'actions':>8} {'a turn':>7} {'FLOPs':>9}"
    )
    for method in args.methods:
        mine = [parts[method, seed] for seed in args.seeds]
        final = {key: [p["final"][key] for p in mine] for key in mine[0]["final"]}
        greedy, sampled = interval(final["greedy/success"]), interval(final["sampled/success"])
        actions, turns = np.mean(final["sampled/mean"]), np.mean(final["sampled/turns"])
        flops = np.mean([sum(p["flops"].values()) for p in mine])
        before = np.mean([p["warm"]["greedy/success"] for p in mine])
        say(
            f"{method:<11} {before:>10.3f}  {'{:.3f} [{:.3f}, {:.3f}]'.format(*greedy):<22} "
            f"{'{:.3f} [{:.3f}, {:.3f}]'.format(*sampled):<22} {actions:>8.1f} {actions / turns:>7.2f} {flops:>9.2e}"
        )
        for kind in ("greedy", "sampled"):
            out += over_seeds(f"success_{kind}_{method}", final[f"{kind}/success"])
        out.append(Measure(f"success_warm_{method}", float(before)))
        out.append(Measure(f"actions_{method}", float(actions), "a episode"))
        out.append(Measure(f"flops_{method}", float(flops)))
        for name in mine[0].get("causal", {}):
            out.append(Measure(f"walkthrough_{name}_{method}", float(np.mean([p["causal"][name] for p in mine]))))
    if {"hybrid", "token_cot"} <= set(args.methods):
        pairs = [(parts["hybrid", s]["final"], parts["token_cot", s]["final"]) for s in args.seeds]
        for kind in ("greedy", "sampled"):
            gains = [a[f"{kind}/success"] - b[f"{kind}/success"] for a, b in pairs]
            out += over_seeds(f"gain_{kind}", gains, target=0.0)
        share = float(np.mean([a["sampled/mean"] / b["sampled/mean"] for a, b in pairs]))
        out.append(Measure("actions_share", share, target=0.5, at_most=True))
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--seeds", {"nargs": "+", "type": int, "default": [0, 1, 2]}),
    ("--methods", {"nargs": "+", "default": list(METHODS), "choices": METHODS}),
    ("--keep", {"default": None, "metavar": "DIR"}),
    ("--latents", {"type": int, "default": 3, "help": "latent steps before a move"}),
    (
        "--stage",
        {"type": int, "default": 40, "help": "updates of the warm start before the next written step becomes a latent"},
    ),
    ("--mix", {"type": float, "default": 0.5, "help": "share of the warm start's examples at a random stage"}),
    ("--width", {"type": int, "default": 64}),
    ("--easy", {"nargs": 2, "type": int, "default": [1, 3], "help": "corridors to key and door in the walkthroughs"}),
    ("--hard", {"nargs": 2, "type": int, "default": [3, 3], "help": "corridors in the worlds played"}),
    ("--warm", {"type": float, "default": 5e11, "help": "FLOPs of the warm start"}),
    ("--warm-lr", {"type": float, "default": 3e-3}),
    ("--warm-batch", {"type": int, "default": 64, "help": "walkthroughs an update of the warm start"}),
    ("--flops", {"type": float, "default": 2.5e11, "help": "FLOPs of learning from reward"}),
    ("--lr", {"type": float, "default": 3e-4}),
    ("--groups", {"type": int, "default": 16, "help": "worlds an update, of 8 episodes each"}),
    ("--tasks", {"type": int, "default": 300, "help": "held-out worlds"}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
