"""TokenSampler against bare vLLM in the same process, and how long new weights take.

    python -m benchmarks.sampler --json [--quick]

throughput_vs_bare_N: tokens per second of `TokenSampler.sample` through Ray (with per-request seeds and log-probabilities) over those
of `vllm.LLM.generate` of the same engine (with neither), N requests of 64 tokens at once, taking turns; the medians of all turns.
weight_update_ms_*: milliseconds that the sampler takes to apply new weights between two engine steps, caches voided; the targets are
twice what a prototype needed on faster cores. weight_roundtrip_ms_*: the same from the learner's arrays to the answer, through Ray's
object store.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from actors.sampler import TokenSampler, sampler_environment
from actors.types import Prefix, Sample, SamplingParams
from benchmarks.common import Measure, main
from benchmarks.workloads import SIZES, prompt, write_model
from models.trace import Kind

THREADS = 2
TOKENS = 64
PROTOTYPE_MS = {"3M": 10.6, "31M": 39.5}
"""facts/stack.md, section 2, row (c): two cores of an EPYC Zen 5."""


class Measured(TokenSampler):
    """A sampler that can also run its engine bare; only while no request of its own is under way."""

    async def bare(self, rows: list[list[int]], dressed: bool) -> float:
        """Seconds of one `LLM.generate`. dressed: with seeds and log-probabilities, as `sample` asks for them."""
        from vllm import SamplingParams as EngineParams

        more: list[dict[str, Any]] = [
            {"seed": i, "logprobs": 0, "flat_logprobs": True} if dressed else {} for i in range(len(rows))
        ]
        params = [EngineParams(temperature=1.0, max_tokens=TOKENS, detokenize=False, **m) for m in more]
        prompts: Any = [{"prompt_token_ids": row} for row in rows]
        began = time.perf_counter()
        self.llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - began


def start(folder: Path, size: str) -> Any:
    """A sampler actor over a random model."""
    import ray

    options = ray.remote(Measured).options(num_cpus=1, runtime_env={"env_vars": sampler_environment(THREADS)})
    return options.remote(str(write_model(folder / size, "w1", size)), max_length=128, armed=True)


def throughput(actor: Any, folder: Path, n: int, rounds: int) -> dict[str, float]:
    """Median tokens per second of n requests at once: ours, bare, and bare with what ours asks for."""
    import ray
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(prompt(i // 8)).input_ids for i in range(n)]
    kind = np.full(len(rows[0]), Kind.CONTEXT, np.uint8)
    prefixes = [Prefix(np.array(row, np.int32), kind, i) for i, row in enumerate(rows)]
    params = SamplingParams(max_tokens=TOKENS)
    found: dict[str, list[float]] = {"ours": [], "bare": [], "bare_dressed": []}
    for _ in range(rounds):
        began = time.perf_counter()
        samples: list[Sample] = ray.get(actor.sample.remote(prefixes, params))
        found["ours"].append(time.perf_counter() - began)
        assert all(len(sample.token) == TOKENS for sample in samples)
        found["bare"].append(ray.get(actor.bare.remote(rows, False)))
        found["bare_dressed"].append(ray.get(actor.bare.remote(rows, True)))
    return {name: n * TOKENS / float(np.median(seconds[1:])) for name, seconds in found.items()}


def updates(actor: Any, folder: Path, rounds: int) -> tuple[float, float]:
    """Median milliseconds (applied, all told) of a weight update."""
    import ray

    from models.loading import load_role, merged_weights

    arrays = merged_weights(load_role(str(folder)))
    applied, total = [], []
    for version in range(rounds):
        began = time.perf_counter()
        applied.append(1e3 * ray.get(actor.update_weights.remote(ray.put(arrays), version)))
        total.append(1e3 * (time.perf_counter() - began))
    return float(np.median(applied[1:])), float(np.median(total[1:]))


def run(args: argparse.Namespace) -> list[Measure]:
    import ray

    rounds = 3 if args.quick else 9
    out: list[Measure] = []
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="posterior-bench-") as name:
        for size in SIZES:
            actor = start(Path(name), size)
            folder = Path(name) / size
            if size == "3M":
                for n in (64, 256):
                    speed = throughput(actor, folder, n, rounds)
                    ratio = speed["ours"] / speed["bare"]
                    out.append(Measure(f"throughput_vs_bare_{n}", ratio, "x", target=0.9))
                    out.append(Measure(f"throughput_{n}", speed["ours"], "tokens/s", baseline=speed["bare"]))
                    dressed = speed["bare_dressed"]
                    out.append(
                        Measure(f"throughput_bare_same_request_{n}", dressed, "tokens/s", baseline=speed["bare"])
                    )
            applied, total = updates(actor, folder, 2 * rounds)
            most = 2 * PROTOTYPE_MS[size]
            out.append(Measure(f"weight_update_ms_{size}", applied, "ms", target=most, at_most=True))
            out.append(Measure(f"weight_roundtrip_ms_{size}", total, "ms"))
            ray.kill(actor)
    ray.shutdown()
    return out


if __name__ == "__main__":
    sys.exit(main(__doc__, run))
