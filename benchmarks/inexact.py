"""Inexactly graded answers: neuralese-SFT against answer-only SFT on punchlines, pause tokens and latent flow.

    python -m benchmarks.inexact --json [--quick] [--seeds 5] [--steps 2500] [--ways neuralese sft pause flow] [--folder DIR]

The model of tune_configs/neuralese_inexact.yaml (GPT-2, 2 layers, width 64), trained on the same stream of prompts
and good answers. SFT takes more steps, and the latent flow (cross-entropy through its Euler steps) fewer, by the
ratio of positions, so that all have the FLOPs of neuralese; of the data SFT then sees a little more. Held out, over
the same 512 prompts: log p(y*|x) per answer, without its end, beside minus the entropy of y* (no model can do better
on average), and the hidden gold score of one sampled answer per prompt. Means and 95 % intervals (Student's t) over
seeds; differences are paired by seed. --folder keeps the figures of every training, and a second call does only those
that are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.types import Group, SamplingParams
from algorithms.base import Context
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig
from benchmarks.common import Measure, main, over_seeds
from envs.base import Task
from envs.punchline import Punchline
from models.causal import battery
from models.feedback import Thinker, ThinkerConfig
from models.forward import ModelForward, collate
from models.loading import RoleModel, load_role
from models.scratch import write_model
from models.trace import Kind, Trace

LATENTS, WIDTH, LAYERS, HEADS, LR, WARMUP = 4, 64, 2, 4, 2e-3, 50
POSITIONS = 12 + 4 + 3
"""Of a prompt, an answer and its end."""
EULER = 3
"""Steps of the latent flow."""
WAYS: dict[str, tuple[str, int]] = {
    "neuralese": ("gated", LATENTS),
    "sft": ("gated", 0),
    "pause": ("pause", LATENTS),
    "flow": ("flow", LATENTS),
}
READ = {"neuralese": LATENTS, "sft": 0, "pause": LATENTS, "flow": LATENTS * (EULER + 1)}
"""Positions read beside prompt and answer; the flow reads its latents once a step, and once more before it answers."""


@dataclass
class Learner:
    """One way to learn, one seed."""

    way: str
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        kind, self.latents = WAYS[self.way]
        size: dict[str, Any] = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "length": 48}
        path = write_model(self.folder / "model", Punchline().words(), family="gpt2", seed=self.seed, **size)
        torch.manual_seed(self.seed)
        Thinker(ThinkerConfig(kind=kind, euler_steps=EULER), load_role(str(path)).base).save(path)  # type: ignore[arg-type]
        self.model: RoleModel = load_role(str(path))
        context = Context(str(path), SamplingParams(latents=self.latents), self.seed)
        self.method = NeuraleseSFT(NeuraleseSFTConfig(), context)

    def train(self, steps: int, batch: int) -> float:
        """Seconds. Every seed begins elsewhere in the stream of tasks."""
        began = time.process_time()
        stream = itertools.islice(Punchline().tasks("train"), self.seed * 1000, None)
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.01, betas=(0.9, 0.99))
        self.model.train()
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = LR * min(1.0, (step + 1) / WARMUP)
            tasks = list(itertools.islice(stream, batch))
            groups = [Group(t, [self.method.example(t, step * batch + i, step)], i) for i, t in enumerate(tasks)]
            self.method.credit(groups)
            read = _batch([group.traces[0] for group in groups])
            term = self.method.terms("policy", ModelForward(self.model, read), read)["ce"]
            optimiser.zero_grad()
            ((term.loss_BT * read["ce"]).sum() / (read["ce"] != 0).sum()).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimiser.step()
        return time.process_time() - began

    @torch.no_grad()
    def judge(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Held-out figures: log-probability of y*, gold score of sampled answers, shares of their parts."""
        self.model.eval()
        traces = [self.method.example(task, i, 0) for i, task in enumerate(tasks)]
        read = _batch(traces)
        logprobs = ModelForward(self.model, read).logprobs_BT
        words = (read.kind_BT == Kind.TARGET) & (read.token_BT != self.method.context.tokenizer.eos_token_id)
        grades = [Punchline().grade(t, text) for t, text in zip(tasks, self._sampled(traces), strict=True)]
        out = {
            "logprob": float(torch.where(words, logprobs, 0.0).double().sum(1).mean()),
            "gold": float(np.mean([grade.value for grade in grades])),
            "good": float(np.mean([grade.solved for grade in grades])),
            "meets": float(np.mean([grade.components["link"] == 1.0 for grade in grades])),
        }
        if self.latents:
            found = battery(self.model, traces, self.latents, self.seed)
            out |= {
                f"lost_{k}": float((found["clean"].logprob - v.logprob).mean())
                for k, v in found.items()
                if k != "clean"
            }
        return out

    def _sampled(self, traces: Sequence[Trace]) -> list[str]:
        """A noun and a closer for each prompt, drawn one token after another at temperature 1."""
        rng = torch.Generator().manual_seed(self.seed)
        token = [trace.token.copy() for trace in traces]
        for place in (0, 1):
            read = _batch([_with(trace, ids) for trace, ids in zip(traces, token, strict=True)])
            hidden = ModelForward(self.model, read).hidden_BTD
            at = [int(trace.where(Kind.TARGET)[place]) for trace in traces]
            share = self.model.logits(hidden[range(len(at)), [t - 1 for t in at]]).float().softmax(-1)
            drawn = torch.multinomial(share, 1, generator=rng)[:, 0].tolist()
            for ids, t, one in zip(token, at, drawn, strict=True):
                ids[t] = one
        tokenizer = self.method.context.tokenizer
        ends = [int(trace.where(Kind.TARGET)[0]) for trace in traces]
        return [str(tokenizer.decode(ids[t : t + 2].tolist())) for ids, t in zip(token, ends, strict=True)]


def _with(trace: Trace, token: np.ndarray) -> Trace:
    fields = {name: getattr(trace, name) for name in ("kind", "logprob", "version", "turn", "reward")}
    return Trace(
        token=token, **fields, task=trace.task, group=trace.group, episode=trace.episode, eps_seed=trace.eps_seed
    )


def _batch(traces: Sequence[Trace]) -> Any:
    return collate(traces, [trace.view() for trace in traces])


def figures(way: str, seed: int, steps: int, batch: int, tasks: Sequence[Task], folder: str | None) -> dict[str, float]:
    """Train and judge, or read what an earlier call has written."""
    file = folder and Path(folder) / f"{way}-seed{seed}-steps{steps}-batch{batch}.json"
    if file and file.exists():
        return dict(json.loads(file.read_text()))
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        learner = Learner(way, seed, Path(name))
        more = (POSITIONS + LATENTS) / (POSITIONS + READ[way])
        seconds = learner.train(round(more * steps), batch)
        found = {**learner.judge(tasks), "cpu_seconds": seconds}
    print(f"{way}, seed {seed}: {json.dumps(found)}", file=sys.stderr, flush=True)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return found


def run(args: argparse.Namespace) -> list[Measure]:
    seeds, steps, batch = (2, 4, 16) if args.quick else (args.seeds, args.steps, args.batch)
    env = Punchline()
    tasks = list(itertools.islice(env.tasks("test"), 32 if args.quick else 512))
    found = [{way: figures(way, seed, steps, batch, tasks, args.folder) for way in args.ways} for seed in range(seeds)]
    known = env.references("test", len(tasks))
    out = [
        Measure("least_loss", -known["entropy"], "nats an answer"),
        Measure("gold_of_data", known["gold of the data"]),
    ]
    for way, first in found[0].items():
        for name in first:
            out += over_seeds(f"{way}_{name}", [seed[way][name] for seed in found])
    for other in (way for way in args.ways if way != "neuralese" and "neuralese" in args.ways):
        for name in ("logprob", "gold"):
            gains = [seed["neuralese"][name] - seed[other][name] for seed in found]
            mean, low, high = over_seeds(f"neuralese_minus_{other}_{name}", gains)
            out += [mean, replace(low, target=0.0), high]
    return out


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--seeds", {"type": int, "default": 5}),
    ("--steps", {"type": int, "default": 2500}),
    ("--batch", {"type": int, "default": 128}),
    ("--ways", {"nargs": "+", "choices": list(WAYS), "default": ["neuralese", "sft", "pause"]}),
    ("--folder", {"default": None}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
