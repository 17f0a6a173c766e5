"""LatentSampler: what it reports is what the learner computes, alone or in a crowd, over turns, with noise and sampled stops.

In float64: these models of random weights are chaotic enough for float32's rounding to grow a thousandfold over a chain.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_chain import double_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from actors.latent_sampler import LatentSampler
from actors.serving import NotArmed
from actors.types import Prefix, Sample, SamplingParams
from models.feedback import Thinker, ThinkerConfig
from models.forward import Distribution, score_traces
from models.loading import load_role, merged_weights
from models.scratch import write_model
from posterior.doctor import as_trace


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes RMSNorm in float32 whatever the dtype"""
    monkeypatch.setattr(LlamaRMSNorm, "forward", double_norm)


WORDS = [f"w{i}" for i in range(40)]


def folder(tmp: Path, family: str = "llama", seed: int = 0, **thinker) -> str:
    path = write_model(tmp / f"{family}{seed}", WORDS, family=family, width=32, length=96, seed=seed)
    model = load_role(str(path))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.mul_(2)  # distributions with a shape
    Thinker(ThinkerConfig(**thinker), model.base).save(path)
    model.lm.save_pretrained(path)
    return str(path)


def prefixes(n: int, rng: np.random.Generator) -> list[Prefix]:
    rows = [rng.integers(4, 44, rng.integers(2, 12)).astype(np.int32) for _ in range(n)]
    return [Prefix(row, np.zeros(len(row), np.uint8), seed=1000 + i, eps_seed=i) for i, row in enumerate(rows)]


def gap(path: str, given: list[Prefix], samples: list[Sample], distribution: Distribution = Distribution()) -> float:
    traces = [as_trace(p, s) for p, s in zip(given, samples, strict=True)]
    scores = score_traces(load_role(path, dtype="float64"), traces, distribution=distribution)
    for trace, score in zip(traces, scores, strict=True):
        assert (np.isfinite(score) == trace.sampled).all()
    return max(float(np.abs(s - t.logprob)[t.sampled].max()) for s, t in zip(scores, traces, strict=True))


@pytest.mark.parametrize(
    "thinker", [{}, {"kind": "soft"}, {"noise": 0.5}, {"stop": True, "expected_steps": 3}, {"kind": "pause"}]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_learner_agrees(tmp_path: Path, family: str, thinker) -> None:
    path = folder(tmp_path, family, **thinker)
    given = prefixes(12, np.random.default_rng(0))
    params = SamplingParams(max_tokens=20, latents=5)
    samples = asyncio.run(
        LatentSampler(path, dtype="float64", max_length=64, stop_ids=[1], rows=5, armed=True).sample(given, params)
    )
    assert gap(path, given, samples) < 5e-6
    steps = {int(s.latent.sum()) for s in samples}
    assert len(steps) > 1 if thinker.get("stop") else steps == {5}
    if thinker.get("stop"):
        assert any(np.isfinite(s.logprob[s.latent]).any() for s in samples)


def test_truncated_distributions_and_greed(tmp_path: Path) -> None:
    path = folder(tmp_path)
    given = prefixes(8, np.random.default_rng(1))
    sampler = LatentSampler(path, dtype="float64", max_length=64, armed=True)
    params = SamplingParams(temperature=0.7, top_p=0.8, top_k=9, max_tokens=12, latents=2)
    samples = asyncio.run(sampler.sample(given, params))
    assert gap(path, given, samples, Distribution(0.7, 0.8, 9)) < 5e-6
    greedy = asyncio.run(sampler.sample(given, replace(params, temperature=0.0, top_p=1.0, top_k=0)))
    again = asyncio.run(
        sampler.sample([replace(p, seed=7) for p in given], replace(params, temperature=0.0, top_p=1.0, top_k=0))
    )
    assert all((a.token == b.token).all() for a, b in zip(greedy, again, strict=True))
    assert gap(path, given, greedy) < 5e-6


def test_the_same_sample_alone_and_in_a_crowd(tmp_path: Path) -> None:
    path = folder(tmp_path, noise=0.2)
    given = prefixes(30, np.random.default_rng(2))
    params = SamplingParams(max_tokens=16, latents=3)
    crowd = asyncio.run(
        LatentSampler(path, dtype="float64", max_length=64, rows=7, stop_ids=[1], armed=True).sample(given, params)
    )
    sampler = LatentSampler(path, dtype="float64", max_length=64, stop_ids=[1], armed=True)
    for prefix, sample in list(zip(given, crowd, strict=True))[::6]:
        alone = asyncio.run(sampler.sample([prefix], params))[0]
        assert (alone.token == sample.token).all()


def test_turns_think_anew_on_what_was_thought(tmp_path: Path) -> None:
    path = folder(tmp_path, "gpt2", noise=0.3)
    sampler = LatentSampler(path, dtype="float64", max_length=96, stop_ids=[1], armed=True)
    given = prefixes(6, np.random.default_rng(3))
    params = SamplingParams(max_tokens=6, latents=3)
    first = asyncio.run(sampler.sample(given, params))
    traces = [as_trace(p, s) for p, s in zip(given, first, strict=True)]
    second = [
        Prefix(np.append(t.token, [9, 11]), np.append(t.kind, [0, 0]).astype(np.uint8), 77 + i, t.eps_seed)
        for i, t in enumerate(traces)
    ]
    samples = asyncio.run(sampler.sample(second, params))
    assert gap(path, second, samples) < 5e-6


def test_new_weights_and_arming(tmp_path: Path) -> None:
    path, other = folder(tmp_path, seed=0), folder(tmp_path, seed=1)
    sampler = LatentSampler(path, dtype="float64", max_length=64)
    given = prefixes(4, np.random.default_rng(4))
    params = SamplingParams(max_tokens=8, latents=2)
    with pytest.raises(NotArmed):
        asyncio.run(sampler.sample(given, params))
    asyncio.run(sampler.update_weights(merged_weights(load_role(other)), 3))
    samples = asyncio.run(sampler.sample(given, params))
    assert gap(other, given, samples) < 5e-6
    assert all((s.version == 3).all() for s in samples)


def test_draws_follow_the_distribution(tmp_path: Path) -> None:
    """Chi-square of first tokens after two latents against the model's own probabilities."""
    path = folder(tmp_path)
    row = np.array([5, 6, 7], np.int32)
    given = [Prefix(row, np.zeros(3, np.uint8), seed=i) for i in range(2000)]
    samples = asyncio.run(
        LatentSampler(path, dtype="float64", max_length=16, rows=500, armed=True).sample(
            given, SamplingParams(max_tokens=1, latents=2)
        )
    )
    counts = np.bincount([int(s.token[-1]) for s in samples], minlength=44)
    model = load_role(path)
    traces = []
    for word in range(44):
        trace = as_trace(given[0], samples[0])
        trace.token[-1] = word
        traces.append(trace)
    p = np.exp([s[-1] for s in score_traces(model, traces)])
    assert abs(p.sum() - 1) < 1e-4
    expected = 2000 * p
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    chi = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
    assert chi < len(observed) + 5 * np.sqrt(2 * len(observed))
