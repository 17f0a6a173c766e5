"""The cost of thinking in latents: a training step with K latents against supervised fine-tuning over as many positions.

    python -m benchmarks.bptt --json [--quick] [--sizes 3M 31M] [--latents 2 6 16 32]

Batch 32, prompt 64, answer 16, float32: forward, cross-entropy, backward, no optimiser. rho_K = time with K latents / time of one
teacher-forced pass over 64 + K + 16 tokens. vs_naive_K: the same against the plain loop over a transformers cache with autograd
through it. All in one process, taking turns; medians over rounds.

saved_MODE_K: MiB that are alive after the forward pass beyond those without latents, so what the K latent steps keep for the backward
pass, keys and values included; peak_MODE_K: the most that is alive at any time of the training step. Both counted from every allocation
and release that torch reports, weights and their gradients not included in the first. saved_recompute_vs_exact_64 is their ratio.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Measure, main
from benchmarks.workloads import write_model
from models.chain import Chain, Gradient, run_chain, token_ids
from models.chain_plan import plan_chain
from models.feedback import Thinker, ThinkerConfig
from models.loading import RoleModel, load_role
from models.trace import Kind

BATCH, PROMPT, ANSWER = 32, 64, 16


class Setting:
    """One model and one K: the three ways through a training step."""

    def __init__(self, model: RoleModel, latents: int) -> None:
        rng = np.random.default_rng(0)
        self.model, self.K = model, latents
        self.length = PROMPT + latents + ANSWER
        self.token = rng.integers(3, 1000, (BATCH, self.length))
        self.kind = np.full(self.token.shape, Kind.TARGET, np.uint8)
        self.kind[:, :PROMPT] = Kind.CONTEXT
        self.kind[:, PROMPT : PROMPT + latents] = Kind.LATENT
        self.answer = torch.from_numpy(self.token[:, -ANSWER:])

    def loss(self, before_BTD: Tensor) -> Tensor:
        """before_BTD: hidden states that predict the answer's tokens."""
        logits = self.model.logits(before_BTD)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.answer.flatten())

    def sft(self) -> Tensor:
        hidden_ND, at_BT = self.model.hidden(torch.from_numpy(self.token), torch.full((BATCH,), self.length))
        return self.loss(hidden_ND[at_BT[:, -ANSWER - 1 : -1]])

    def chain(self, grad: str) -> Tensor:
        plan = plan_chain(self.token, self.kind, np.full(BATCH, self.length), "cpu")
        thinker = self.model.thinker
        assert thinker is not None
        chain = Chain(self.model.base, thinker, plan, Gradient.parse(grad))
        hidden, _ = run_chain(chain, self.model.base.get_input_embeddings()(token_ids(plan)))
        return self.loss(hidden[plan.at_BT[:, -ANSWER - 1 : -1]])

    def naive(self) -> Tensor:
        from transformers import DynamicCache

        lm, thinker = self.model.base, self.model.thinker
        assert thinker is not None
        lm.set_attn_implementation("sdpa")
        cache = DynamicCache(config=lm.config)
        ids = torch.from_numpy(self.token)
        h = lm.base_model(input_ids=ids[:, :PROMPT], past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
        for _ in range(self.K):
            h = lm.base_model(inputs_embeds=thinker(h), past_key_values=cache, use_cache=True).last_hidden_state
        embeds = lm.get_input_embeddings()(self.answer[:, :-1])
        rest = lm.base_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
        lm.set_attn_implementation("posterior_packed")
        return self.loss(torch.cat([h, rest], 1))


def memory(step: Callable[[], Tensor], model: RoleModel) -> tuple[float, float]:
    """(MiB alive after the forward pass, MiB at the peak of the training step), both above what was alive before."""
    forward, loss = _allocations(step)
    backward, _ = _allocations(loss.backward)
    model.zero_grad()
    alive = np.cumsum(np.concatenate([forward, backward])) / 2**20
    return float(forward.sum() / 2**20), float(alive.max())


def _allocations(call: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """int64[events] bytes given out (and, negative, taken back) by torch's allocator in the order of time; and what the call returns."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        out = call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return np.array([e.nbytes() for e in events], np.int64), out


def seconds(step: Callable[[], Tensor], model: RoleModel) -> float:
    start = time.perf_counter()
    step().backward()
    took = time.perf_counter() - start
    model.zero_grad()
    return took


def run(args: argparse.Namespace) -> list[Measure]:
    out: list[Measure] = []
    rounds = 2 if args.quick else args.rounds
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        for size in ["3M"] if args.quick else args.sizes:
            folder = write_model(Path(name) / size, "w1", size)
            model = load_role(str(folder)).train()
            model.thinker = Thinker(ThinkerConfig(), model.base)
            for latents in [2, 6] if args.quick else args.latents:
                out += measure(model, size, latents, rounds)
            out += spent(model, size, 6 if args.quick else 64)
    return out


def spent(model: RoleModel, size: str, latents: int) -> list[Measure]:
    """Memory of exact and recompute."""
    without, setting = Setting(model, 0), Setting(model, latents)
    base, base_peak = memory(without.sft, model)
    out = [Measure(f"peak_sft_0_{size}", base_peak, "MiB")]
    saved: dict[str, float] = {}
    for grad in ("exact", "recompute"):
        alive, peak = memory(lambda grad=grad: setting.chain(grad), model)  # type: ignore[misc]
        saved[grad] = alive - base
        out += [
            Measure(f"saved_{grad}_{latents}_{size}", saved[grad], "MiB"),
            Measure(f"peak_{grad}_{latents}_{size}", peak, "MiB"),
        ]
    ratio = saved["recompute"] / saved["exact"]
    return [*out, Measure(f"saved_recompute_vs_exact_{latents}_{size}", ratio, "x", target=0.25, at_most=True)]


def measure(model: RoleModel, size: str, latents: int, rounds: int) -> list[Measure]:
    setting = Setting(model, latents)
    ways: dict[str, Callable[[], Tensor]] = {
        "sft": setting.sft,
        "exact": lambda: setting.chain("exact"),
        "recompute": lambda: setting.chain("recompute"),
        "naive": setting.naive,
    }
    for way in ways.values():
        seconds(way, model)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for at in np.random.default_rng(turn).permutation(len(ways)):
            name = list(ways)[at]
            times[name].append(seconds(ways[name], model))
    middle = {name: float(np.median(t)) for name, t in times.items()}
    # ratios within a round: the machine's speed changes from round to round
    rho = {name: float(np.median(np.array(t) / times["sft"])) for name, t in times.items()}
    print(f"{size} K={latents}: " + ", ".join(f"{n} {m:.3f} s" for n, m in middle.items()), file=sys.stderr, flush=True)
    target = {6: 1.1, 32: 1.25}.get(latents)
    return [
        Measure(f"rho_{latents}_{size}", rho["exact"], "x", target=target, at_most=True),
        Measure(f"rho_recompute_{latents}_{size}", rho["recompute"], "x"),
        Measure(f"rho_naive_{latents}_{size}", rho["naive"], "x"),
        Measure(f"vs_naive_{latents}_{size}", rho["naive"] / rho["exact"], "x"),
        *(Measure(f"seconds_{name}_{latents}_{size}", value, "s") for name, value in middle.items()),
    ]


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--sizes", {"nargs": "+", "default": ["3M", "31M"], "choices": ["3M", "31M"]}),
    ("--latents", {"nargs": "+", "type": int, "default": [2, 6, 16, 32]}),
    ("--rounds", {"type": int, "default": 7}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
