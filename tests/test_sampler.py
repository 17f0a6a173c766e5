"""TokenSampler on the real vLLM engine, against the learner's own forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.sampler import TokenSampler, sampler_environment
from actors.serving import NotArmed
from actors.types import Prefix, Sample, SamplingParams
from models.forward import Distribution, score_traces
from models.loading import load_role, load_tokenizer, merged_weights, stop_ids
from posterior.doctor import as_trace

pytestmark = pytest.mark.usefixtures("ray_session")


def prefixes(n: int, length: int = 12, seed: int = 0) -> list[Prefix]:
    rng = np.random.default_rng(seed)
    return [
        Prefix(rng.integers(10, 260, length + i % 5).astype(np.int32), np.zeros(length + i % 5, np.uint8), seed=100 + i)
        for i in range(n)
    ]


def start(folder: Path, **more: Any) -> Any:
    options = {"num_cpus": 1, "max_concurrency": 100, "runtime_env": {"env_vars": sampler_environment(1)}}
    tokenizer = load_tokenizer(str(folder))
    more.setdefault("armed", True)
    return (
        ray.remote(TokenSampler)
        .options(**options)
        .remote(str(folder), max_length=256, stop_ids=stop_ids(str(folder), tokenizer), **more)
    )


@dataclass
class Served:
    """One sampler for several tests. refused: what it said to work that came before its weights."""

    folder: Path
    sampler: Any
    refused: Exception | None


@pytest.fixture(scope="module")
def served(ray_session: None, tiny_model: Callable[..., Path]) -> Iterator[Served]:
    folder, refused = tiny_model(), None
    sampler = start(folder, armed=False)
    try:
        ray.get(sampler.sample.remote(prefixes(1), SamplingParams()))
    except NotArmed as error:
        refused = error
    ray.get(sampler.update_weights.remote(merged_weights(load_role(str(folder))), 3))
    yield Served(folder, sampler, refused)
    ray.kill(sampler)


def gap(model: Any, pairs: list[tuple[Prefix, Sample]], distribution: Distribution = Distribution()) -> float:
    """max |log-prob of the learner - log-prob of the sampler| over sampled tokens."""
    traces = [as_trace(p, s) for p, s in pairs]
    scores = score_traces(model, traces, distribution=distribution)
    return max(float(np.nanmax(np.abs(s - t.logprob))) for s, t in zip(scores, traces, strict=True))


def disturbed(folder: Path, seed: int) -> Any:
    model = load_role(str(folder))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_logprobs_agree_before_after_and_across_a_weight_update(tiny_model: Callable[..., Path], tied: bool) -> None:
    folder = tiny_model(tied=tied)
    sampler = start(folder)
    params = SamplingParams(max_tokens=24)
    asked = prefixes(16)
    old = load_role(str(folder))
    before = ray.get(sampler.sample.remote(asked, params))
    assert gap(old, list(zip(asked, before, strict=True))) < 1e-4

    new = disturbed(folder, 1)
    # requests in flight while the weights change
    long = SamplingParams(max_tokens=200)
    steps = ray.get(sampler.stats.remote())["steps"]
    flying = sampler.sample.remote(prefixes(8, seed=5), long)
    while ray.get(sampler.stats.remote())["steps"] < steps + 3:
        pass
    ray.get(sampler.pause.remote())
    ray.get(sampler.update_weights.remote(merged_weights(new), 1))
    ray.get(sampler.resume.remote())
    straddling = list(zip(prefixes(8, seed=5), ray.get(flying), strict=True))

    after = ray.get(sampler.sample.remote(asked, params))
    assert all((s.version == 1).all() for s in after)
    assert gap(new, list(zip(asked, after, strict=True))) < 1e-4
    assert gap(old, list(zip(asked, after, strict=True))) > 1e-2  # the update changed something

    for prefix, sample in straddling:
        trace = as_trace(prefix, sample)
        for version, model in ((0, old), (1, new)):
            score = score_traces(model, [trace])[0]
            mine = trace.version == version
            if mine.any():
                assert float(np.abs(score - trace.logprob)[mine].max()) < 1e-4
    assert any(set(s.version.tolist()) == {0, 1} for _, s in straddling)
    ray.kill(sampler)


def test_truncated_sampling_scoring_seeds_and_errors(served: Served) -> None:
    sampler, model = served.sampler, load_role(str(served.folder))
    asked = prefixes(12)
    for params in (
        SamplingParams(temperature=0.7, max_tokens=16),
        SamplingParams(temperature=1.3, top_p=0.8, max_tokens=16),
        SamplingParams(top_k=7, max_tokens=16),
        SamplingParams(temperature=0.8, top_p=0.9, top_k=20, max_tokens=16),
    ):
        got = ray.get(sampler.sample.remote(asked, params))
        distribution = Distribution(params.temperature, params.top_p, params.top_k)
        assert gap(model, list(zip(asked, got, strict=True)), distribution) < 1e-4

    params = SamplingParams(max_tokens=16)
    together = ray.get(sampler.sample.remote(asked, params))
    alone = [ray.get(sampler.sample.remote([a], params))[0] for a in asked[:4]]
    for a, b in zip(together, alone, strict=False):
        assert a.token.tolist() == b.token.tolist()

    rows = [a.token for a in asked]
    scored = ray.get(sampler.score.remote(rows))
    with torch.no_grad():
        for row, score in zip(rows, scored, strict=True):
            ids = torch.tensor(row[None].astype(np.int64))
            logp = model.lm(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            assert np.isnan(score[0])
            assert np.abs(score[1:] - logp.numpy()).max() < 1e-4

    too_long = Prefix(np.full(256, 20, np.int32), np.zeros(256, np.uint8), seed=0, group="task-7")
    with pytest.raises(ValueError, match=r"task-7 has 256 tokens but model.max_length is 256"):
        ray.get(sampler.sample.remote([too_long], params))
    # the engine goes on after a refused request
    assert len(ray.get(sampler.sample.remote(asked[:1], params))) == 1

    ray.get(sampler.pause.remote())
    waiting = sampler.sample.remote(asked[:1], params)
    assert asyncio.run(_still_waiting(waiting))
    ray.get(sampler.resume.remote())
    assert len(ray.get(waiting)) == 1


async def _still_waiting(ref: Any) -> bool:
    done, _ = ray.wait([ref], timeout=0.5)
    return not done


def test_an_unarmed_sampler_refuses_work(served: Served) -> None:
    assert isinstance(served.refused, NotArmed)
    sample = ray.get(served.sampler.sample.remote(prefixes(1), SamplingParams(max_tokens=4)))[0]
    assert (sample.version == 3).all()


def test_draws_follow_the_policy_at_every_position_and_repeat_by_seed(served: Served) -> None:
    """Chi-square of 2,000 seeded draws against the model's own probabilities, for the first and the second token."""
    sampler, model = served.sampler, load_role(str(served.folder))
    first = prefixes(1)[0]
    asked = [Prefix(first.token, first.kind, seed=1000 + i) for i in range(2000)]
    # hot, so that many tokens are likely
    params = SamplingParams(max_tokens=2, temperature=2.0)
    samples = ray.get(sampler.sample.remote(asked, params))
    pairs = [s.token.tolist() for s in samples if len(s.token) == 2]
    rows = torch.tensor([[*first.token.tolist(), token] for token in range(model.base.config.vocab_size)])
    with torch.no_grad():
        logits = model.lm(rows).logits[:, -2:].div(2.0).softmax(-1).double().numpy()
    expected_first = len(samples) * logits[0, 0]
    expected_second = logits[[token for token, _ in pairs], 1].sum(0)
    drawn = [s.token[0] for s in samples], [token for _, token in pairs]
    for expected, seen in zip((expected_first, expected_second), drawn, strict=True):
        counts = np.bincount(seen, minlength=len(expected))
        large = expected >= 5
        expected = np.append(expected[large], expected[~large].sum())
        counts = np.append(counts[large], counts[~large].sum())
        freedom = len(expected) - 1
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert freedom >= 8
        assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
    again = ray.get(sampler.sample.remote(asked[:50][::-1], params))[::-1]
    assert [s.token.tolist() for s in again] == [s.token.tolist() for s in samples[:50]]
