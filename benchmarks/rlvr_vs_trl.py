"""Posterior against TRL's GRPOTrainer: same model, prompts, group size, precision and optimiser steps, taking turns in one run.

    python -m benchmarks.rlvr_vs_trl --json [--quick] [--workloads w1 w2] [--rounds 5]

Two workloads (`benchmarks.workloads`): w1, every answer has 64 tokens; w2, natural lengths with a heavy tail up to 512. 8 prompts
of 16 tokens, 8 answers each, float32, one optimiser step a batch, on-policy (staleness 0), both cores.

First TRL settings (transformers' generate or patched vLLM; micro-batch 8, 16, 64 with 2 threads, the best of them with 1) run alone for
a few steps; the best of each kind of generation goes on. Then, for `--rounds` rounds, the contestants take turns of a few steps while the
others are stopped: both TRLs, Posterior, and the bare generation and the bare forward and backward passes that no trainer can do without.

w*_vs_trl: samples per second, Posterior over the better TRL. w*_efficiency: (bare generation + bare forward and backward, each in
seconds per token) over Posterior's seconds per token. Intervals are 95 % bootstrap intervals over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import Measure, main
from benchmarks.contestant import Contestant
from benchmarks.workloads import GROUP_SIZE, GROUPS, PROMPT_WORDS, TOKENS, write_model

BATCH = GROUPS * GROUP_SIZE
SAMPLER_THREADS = 1
"""Of Posterior's engine and of the bare one: the better of 1 and 2 on both workloads."""
FIRST_STEPS = {"w1": 5, "w2": 2}
"""Steps of every TRL setting before the best goes on."""
BUDGET = {"w1": 5120, "w2": 1024}
"""Padded positions of a micro-batch of the bare forward and backward pass: the best of 1024, 2048, 4096 and 5120."""
Rounds = dict[str, list[list[dict[str, Any]]]]
"""Contestant -> round -> steps."""


def trl(
    folder: Path, model: Path, workload: str, generate: str, micro: int, threads: int, *, allowed: int = 0
) -> Contestant:
    words = ["benchmarks.trl_peer", "--model", str(model), "--workload", workload, "--generate", generate]
    words += ["--micro", str(micro), "--gate", "{gate}", "--rows", "{rows}"]
    return Contestant(f"trl {generate} {micro} {threads}", folder, words, threads, allowed=allowed)


def posterior(folder: Path, model: Path, workload: str) -> Contestant:
    run = folder / "run"
    config = {
        "name": "bench",
        "model": {"path": str(model), "max_length": PROMPT_WORDS + TOKENS[workload]},
        "env": {"name": "benchmarks.workloads:Words", "args": {"gate": str(folder / "posterior")}},
        "algorithm": {"name": "rlvr", "preset": "grpo", "group_size": GROUP_SIZE},
        "sampling": {"temperature": 1.0, "max_tokens": TOKENS[workload]},
        "train": {
            "steps": 1_000_000,
            "batch_groups": GROUPS,
            "checkpoint_every": 1_000_000,
            "optimiser": {"lr": 1e-6},
        },
        "eval": {"every": 0},
        "log": {"traces_every": 0},
        # sampler and learner take turns; an engine step of this model is too short for a second thread
        "resources": {"sampler_threads": SAMPLER_THREADS, "learner_threads": 2},
    }
    path = folder / "posterior.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["posterior", "train", str(path), "--out", str(run)]
    return Contestant("posterior", folder, words, 2, run / "metrics.jsonl")


def bare(
    folder: Path, model: Path, workload: str, what: str, threads: int, budget: int = 0, lengths: Path = Path()
) -> Contestant:
    words = ["benchmarks.bare", what, "--model", str(model), "--workload", workload, "--gate", "{gate}"]
    words += ["--rows", "{rows}", *(["--lengths", str(lengths), "--budget", str(budget)] if budget else [])]
    return Contestant(f"bare {what}", folder, words, threads)


@contextmanager
def running(contestants: Sequence[Contestant]) -> Iterator[None]:
    try:
        yield
    finally:
        for contestant in contestants:
            contestant.close()


def choose(folder: Path, model: Path, workload: str, quick: bool) -> dict[Any, float]:
    """Seconds of the faster of the first steps of TRL settings, each alone on the machine: every micro-batch size with 2 threads, and
    the best of them with 1, for both ways to generate."""
    found: dict[Any, float] = {}

    def measure(*setting: Any) -> float:
        one = trl(folder / "choice", model, workload, *setting, allowed=FIRST_STEPS[workload])
        with running([one]):
            one.ready()
            found[setting] = min(row["seconds"] for row in one.rows())
        _say(f"{workload}: {one.name}: {found[setting]:.2f} s a step")
        return found[setting]

    for generate in ("transformers",) if quick else ("transformers", "vllm"):
        best = min((64,) if quick else (8, 16, 64), key=lambda micro: measure(generate, micro, 2))
        if not quick:
            measure(generate, best, 1)
    return found


def compete(folder: Path, model: Path, workload: str, best: Sequence[Any], rounds: int, steps: int) -> Rounds:
    """Blocks of steps in turns, in an order that changes from round to round."""
    contestants: list[Contestant] = []
    done: Rounds = {}

    def enter(contestant: Contestant) -> Contestant:
        contestants.append(contestant)
        contestant.ready()
        contestant.block(1)
        return contestant

    with running(contestants):
        for setting in best:
            enter(trl(folder, model, workload, *setting))
        enter(posterior(folder, model, workload))
        lengths = enter(bare(folder, model, workload, "generate", SAMPLER_THREADS)).rows_file
        enter(bare(folder, model, workload, "learn", 2, BUDGET[workload], lengths))
        for turn in range(rounds):
            order = np.random.default_rng(turn).permutation(len(contestants))
            for contestant in (contestants[i] for i in order):
                block = contestant.block(steps)
                done.setdefault(contestant.name, []).append(block)
                key = "time/total" if "time/total" in block[0] else "seconds"
                _say(f"{workload} round {turn + 1}/{rounds}: {contestant.name}: {_mean(block, key):.2f} s a step")
    return done


def _mean(block: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in block]))


def _normal(rounds: Rounds) -> None:
    """Give Posterior's metrics rows the names that the others use."""
    for row in itertools.chain(*rounds["posterior"]):
        row["seconds"], row["tokens"] = row["time/total"], row["tokens/batch"]
        row.update({k.removeprefix("time/"): v for k, v in row.items() if k.startswith("time/")})


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over rounds."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (4000, len(values))).mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


STAGES = {
    "trl": ("generate", "weights", "prepare", "forward_backward", "rest"),
    "posterior": ("wait", "score", "credit", "forward_backward", "publish", "log"),
}


def measures(workload: str, rounds: Rounds) -> list[Measure]:
    out: list[Measure] = []

    def add(name: str, values: np.ndarray, unit: str, target: float | None = None) -> None:
        out.append(Measure(f"{workload}_{name}", float(values.mean()), unit, target=target))
        low, high = _interval(values)
        out.append(Measure(f"{workload}_{name}_low", low, unit))
        out.append(Measure(f"{workload}_{name}_high", high, unit))

    step = {name: np.array([_mean(block, "seconds") for block in blocks]) for name, blocks in rounds.items()}
    token = {name: step[name] / [_mean(block, "tokens") for block in blocks] for name, blocks in rounds.items()}
    peers = [name for name in rounds if name.startswith("trl")]
    peer = min(peers, key=lambda name: step[name].mean())
    floor = token["bare generate"] + token["bare learn"]
    add("vs_trl", step[peer] / step["posterior"], "x", target=1.0 if workload == "w1" else 3.0)
    add("vs_trl_per_token", token[peer] / token["posterior"], "x")
    add("efficiency", floor / token["posterior"], "x", target=0.9)
    for name, blocks in rounds.items():
        label = name.replace(" ", "_")
        out.append(Measure(f"{workload}_{label}_step", float(step[name].mean()), "s"))
        out.append(Measure(f"{workload}_{label}_samples_per_second", BATCH / float(step[name].mean()), "1/s"))
        out.append(Measure(f"{workload}_{label}_tokens_per_second", 1 / float(token[name].mean()), "1/s"))
        for stage in STAGES.get(name.split()[0], ()):
            seconds = float(np.mean([_mean(block, stage) for block in blocks]))
            out.append(Measure(f"{workload}_{label}_{stage}", seconds, "s"))
    return out


def run(args: argparse.Namespace) -> list[Measure]:
    out: list[Measure] = []
    rounds, steps = (2, 1) if args.quick else (args.rounds, args.steps)
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        for workload in args.workloads:
            folder = Path(name) / workload
            folder.mkdir()
            model = write_model(folder / "model", workload)
            chosen = choose(folder, model, workload, args.quick)
            best = [
                min((s for s in chosen if s[0] == generate), key=chosen.__getitem__)
                for generate in sorted({s[0] for s in chosen})
            ]
            done = compete(folder, model, workload, best, rounds, steps)
            _normal(done)
            out += measures(workload, done)
            out += [
                Measure(f"{workload}_choice_trl_{generate}_{micro}_{threads}_step", seconds, "s")
                for (generate, micro, threads), seconds in chosen.items()
            ]
    return out


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(
        main(
            __doc__,
            run,
            ("--workloads", {"nargs": "+", "choices": ["w1", "w2"], "default": ["w1", "w2"]}),
            ("--rounds", {"type": int, "default": 5, "help": "alternations (default 5)"}),
            ("--steps", {"type": int, "default": 4, "help": "steps of each turn (default 4)"}),
        )
    )
