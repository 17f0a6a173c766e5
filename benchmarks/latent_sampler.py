"""LatentSampler against transformers' `generate` of the same model, positions for positions.

    python -m benchmarks.latent_sampler --json [--quick] [--batches 8 64 256] [--rounds 5]

3M parameters, prompts of 32 tokens. Equal: every request makes 16 latents and 48 tokens, with log-probabilities; `generate` samples 64
tokens, without. Ragged: the tokens of a request are geometric (mean 48, cut at 192; the same draws for both) and 4 batches' worth of
requests come at once: the sampler refills its rows, `generate` runs batch after batch, each to its longest row, and only positions
that were asked for count. tokens_per_second_*: positions made per second; *_vs_generate_*: median of the ratios of neighbouring turns.
The sampler runs in this process, as its actor would; weights are random.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.latent_sampler import LatentSampler
from actors.types import Prefix, SamplingParams
from benchmarks.common import Measure, main
from benchmarks.workloads import write_model
from models.feedback import Thinker, ThinkerConfig
from models.loading import load_role

THREADS = 2
PROMPT, LATENTS, TOKENS = 32, 16, 48
CUT = 4
TARGETS = {"equal": 1.0, "ragged": 2.0}


class Contest:
    """One model served both ways."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.batch = batch
        self.sampler = LatentSampler(
            str(folder), max_length=PROMPT + LATENTS + CUT * TOKENS, rows=batch, threads=THREADS, armed=True
        )
        self.model = load_role(str(folder)).lm.eval()
        self.model.set_attn_implementation("sdpa")

    def ours(self, prompts: np.ndarray, tokens: np.ndarray) -> float:
        """Positions per second of the sampler."""

        async def serve() -> int:
            prefixes = [
                Prefix(row, np.zeros(len(row), np.uint8), seed=i, eps_seed=i)
                for i, row in enumerate(prompts.astype(np.int32))
            ]
            samples = await asyncio.gather(
                *(
                    self.sampler.sample([prefix], SamplingParams(max_tokens=int(n), latents=LATENTS))
                    for prefix, n in zip(prefixes, tokens, strict=True)
                )
            )
            for [sample] in samples:
                if not np.isfinite(sample.logprob[~sample.latent]).all():
                    raise RuntimeError("a token came without its log-probability")
            return sum(len(sample.token) for [sample] in samples)

        start = time.perf_counter()
        made = asyncio.run(serve())
        return self._rate(made, tokens, start)

    def generate(self, prompts: np.ndarray, tokens: np.ndarray) -> float:
        """Positions per second of transformers."""
        start = time.perf_counter()
        made = 0
        for at in range(0, len(prompts), self.batch):
            wanted = tokens[at : at + self.batch] + LATENTS
            ids = torch.from_numpy(prompts[at : at + self.batch].astype(np.int64))
            options: dict[str, Any] = {
                "do_sample": True,
                "top_k": 0,
                "min_new_tokens": int(wanted.max()),
                "max_new_tokens": int(wanted.max()),
            }
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
            if out.shape[1] != PROMPT + int(wanted.max()):
                raise RuntimeError(f"generate made {out.shape[1] - PROMPT} positions, not {int(wanted.max())}")
            made += int(wanted.sum())
        return self._rate(made, tokens, start)

    @staticmethod
    def _rate(made: int, tokens: np.ndarray, start: float) -> float:
        took = time.perf_counter() - start
        asked = int(tokens.sum()) + LATENTS * len(tokens)
        if made != asked:
            raise RuntimeError(f"{made} positions were made, {asked} were asked for")
        return made / took


def run(args: argparse.Namespace) -> list[Measure]:
    torch.set_num_threads(THREADS)
    out: list[Measure] = []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        folder = write_model(Path(name), "w1", "3M")
        Thinker(ThinkerConfig(), load_role(str(folder)).base).save(folder)
        for batch in [8] if args.quick else args.batches:
            contest = Contest(folder, batch)
            for case, count in (("equal", batch), ("ragged", 4 * batch)):
                tokens = np.full(count, TOKENS)
                if case == "ragged":
                    tokens = np.minimum(rng.geometric(1 / TOKENS, count), CUT * TOKENS)
                prompts = rng.integers(3, 1000, (count, PROMPT))
                out += compare(contest, case, prompts, tokens, 1 if args.quick else args.rounds)
    return out


def compare(contest: Contest, case: str, prompts: np.ndarray, tokens: np.ndarray, rounds: int) -> list[Measure]:
    contest.ours(prompts[:4], np.minimum(tokens[:4], 4))
    contest.generate(prompts[:4], np.minimum(tokens[:4], 4))
    rates: dict[str, list[float]] = {"ours": [], "generate": []}
    for turn in range(rounds):
        for name in ("ours", "generate") if turn % 2 else ("generate", "ours"):
            rates[name].append(getattr(contest, name)(prompts, tokens))
    ratios = np.array(rates["ours"]) / rates["generate"]
    middle = {name: float(np.median(values)) for name, values in rates.items()}
    print(f"{case} {contest.batch}: {middle}, ratios {ratios.round(2).tolist()}", file=sys.stderr, flush=True)
    tag = f"{case}_{contest.batch}"
    return [
        Measure(f"tokens_per_second_{tag}", middle["ours"], "1/s", baseline=middle["generate"]),
        Measure(f"latent_vs_generate_{tag}", float(np.median(ratios)), "x", target=TARGETS[case]),
    ]


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--batches", {"nargs": "+", "type": int, "default": [8, 64, 256]}),
    ("--rounds", {"type": int, "default": 5}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, run, *OPTIONS))
