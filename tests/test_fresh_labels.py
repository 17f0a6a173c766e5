"""Fresh labels: a reward model that learns what people say of the newest policy, and knows it again after a restart."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

import actors.reward as learned
from actors.collector import Collector, CollectorConfig, Neighbours
from actors.judge import Judge
from actors.reward import FRESH_BATCH, PROXY, Forgotten, Labels, LearnedReward, NoRater, NoScore, RewardScorer
from actors.types import Group, SamplingParams
from algorithms.base import Algorithm, AlgorithmConfig, Context
from envs.base import Task
from envs.noisy_raters import NoisyRaters
from models.flops import FlopModel
from models.loading import load_config, load_role, load_tokenizer, save_role
from models.roles import REWARD_NOTES
from models.scratch import write_model
from models.trace import Kind, Trace

RNG = np.random.default_rng(0)
ROUND = 96


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> LearnedReward:
    """An untrained reward model of two members."""
    path = tmp_path_factory.mktemp("fresh") / "base"
    base = write_model(path, NoisyRaters().words(), family="llama", layers=1, width=32, heads=1, length=16, seed=0)
    model = load_role(str(base), head="scalar", outputs=2)
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("reward")
    save_role(model, folder, load_tokenizer(str(base)))
    (folder / REWARD_NOTES).write_text(json.dumps({"mean": 0.5, "std": 0.4, "outputs": 2, "members": []}))
    found = LearnedReward.read(str(folder), 1.0, 0.0, "answer")
    return replace(found, fresh=ROUND, every=10, rater="rater")


def answers(n: int, liked: int) -> list[Trace]:
    """Four words each, behind a thought that does not matter; the rater gives a point where one of them is `liked`."""
    out = []
    for i in range(n):
        token = np.concatenate([[1, 2, 9], RNG.integers(4, 16, 4)])
        kind = np.array([Kind.CONTEXT] * 2 + [Kind.THOUGHT] + [Kind.ACTION] * 4, np.uint8)
        logprob = np.where(kind == Kind.CONTEXT, np.nan, -0.5)
        trace = Trace(token, kind, logprob, np.zeros(7), np.zeros(7), "t", "g", f"e{i}")
        trace.components["rater"] = float(liked in token[3:])
        out.append(trace)
    return out


def labels(reward: LearnedReward, version: int, liked: int) -> Labels:
    found = reward.graded(answers(ROUND + 9, liked), version)
    assert found is not None
    assert len(found.traces) == len(found.grades) == ROUND
    return found


def test_which_versions_ask_for_labels(reward: LearnedReward) -> None:
    traces = answers(12, 5)
    asked = [v for v in range(31) if reward.graded(traces, v) is not None]
    assert asked == [10, 20, 30]
    assert replace(reward, fresh=0).graded(traces, 10) is None
    few = replace(reward, fresh=4).graded(traces, 10)
    assert few is not None
    assert few.grades == [t.components["rater"] for t in traces[:4]]
    for trace in traces:
        trace.components.clear()
    assert reward.graded(traces, 10) is None


def test_the_model_learns_what_people_say(reward: LearnedReward) -> None:
    scorer = RewardScorer(reward, "float32", 1)
    rounds = [labels(reward, 10 * (i + 1), liked=5) for i in range(8)]
    errors = [scorer.learn(rounds[: i + 1]).error for i in range(8)]
    constant = float(np.var(rounds[-1].grades))
    # each error is that of answers it has not seen yet
    assert errors[0] > constant
    assert errors[-1] < 0.5 * constant
    assert scorer.score(rounds[0].traces, rounds=8).shape == (ROUND, 2)


def test_a_restart_comes_to_the_same(reward: LearnedReward) -> None:
    rounds = [labels(reward, 10, liked=5), labels(reward, 20, liked=6)]
    once, twice, back = (RewardScorer(reward, "float32", 1) for _ in range(3))
    fresh = answers(20, 5)
    start = once.score(fresh)
    once.learn(rounds[:1])
    first = once.score(fresh)
    once.learn(rounds)
    twice.learn(rounds)
    back.learn(rounds)
    back.learn(rounds[:1])  # a checkpoint from before the second round
    assert np.array_equal(once.score(fresh), twice.score(fresh))
    assert np.array_equal(back.score(fresh), first)
    assert np.abs(first - start).max() > 0.01
    assert np.abs(once.score(fresh) - first).max() > 0.01
    with pytest.raises(Forgotten, match="1 of 2 rounds"):
        back.score(fresh, rounds=2)
    back.learn([])
    assert np.array_equal(back.score(fresh), start)


def test_dropout_takes_no_part(reward: LearnedReward, tmp_path: Path) -> None:
    """A model that has dropout learns the same in one go, round by round, and after it has judged."""
    path = write_model(tmp_path / "m", NoisyRaters().words(), family="gpt2", layers=1, width=32, heads=1, length=16)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "resid_pdrop": 0.5, "embd_pdrop": 0.5}))
    (path / REWARD_NOTES).write_text(json.dumps({"mean": 0.5, "std": 0.4, "outputs": 2, "members": []}))
    own = replace(reward, folders=(str(path),), steps=3)
    rounds = [labels(own, 10, liked=5), labels(own, 20, liked=6)]
    fresh = answers(20, 5)
    once, twice = RewardScorer(own, "float32", 1), RewardScorer(own, "float32", 1)
    for i in range(2):
        once.score(fresh)
        once.learn(rounds[: i + 1])
    twice.learn(rounds)
    assert np.array_equal(once.score(fresh), twice.score(fresh))


def test_micro_batches_change_nothing(reward: LearnedReward, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, fresh = [labels(reward, 10, liked=5)], answers(20, 5)
    whole, parts = RewardScorer(reward, "float32", 1), RewardScorer(reward, "float32", 1)
    whole.learn(rounds)
    monkeypatch.setattr(learned, "token_budget_of", lambda model, device: 50)
    parts.learn(rounds)
    assert parts.score(fresh) == pytest.approx(whole.score(fresh), abs=1e-3)


def test_a_broken_model_is_named(reward: LearnedReward) -> None:
    scorer = RewardScorer(reward, "float32", 1)
    assert scorer.models[0].head is not None
    with torch.no_grad():
        scorer.models[0].head.bias[1] = torch.nan
    with pytest.raises(
        NoScore, match=f"{reward.folders[0]} says nothing finite of an answer to task t; train it again"
    ):
        scorer.score(answers(2, 5))
    scorer = RewardScorer(replace(reward, lr=1e30), "float32", 1)
    scorer.learn([labels(reward, 10, liked=5)])
    with pytest.raises(NoScore, match=r"since it learnt fresh labels; lower reward_model.fresh_lr"):
        scorer.score(answers(2, 5))


class Given(Algorithm):
    """Every group is a round of answers that are there already."""

    async def collect(self, task: Task, actors: Any) -> Group:
        return Group(task, answers(ROUND, 5))


@pytest.mark.usefixtures("ray_session")
def test_the_model_is_charged_for_what_it_reads_and_learns(reward: LearnedReward) -> None:
    """By the collector, as scoring: two models that read six of seven positions, and three forward passes for one of learning."""
    own = replace(reward, folders=reward.folders * 2, every=1, steps=4)
    method = Given(AlgorithmConfig(name="given"), Context(reward.folders[0], SamplingParams(), 0))
    config = CollectorConfig(reward.folders[0], 0, 1, 0, SamplingParams(), 16, "train", learned=own)
    actor: Any = ray.remote(RewardScorer).options(num_cpus=0)

    async def two_batches() -> list[dict[str, float]]:
        collector = Collector(config, lambda: method)
        await collector.connect(Neighbours([], [], {}, actor.remote(own, "float32", 1)))
        collector._started = True
        collector._tasks = {i: Task(str(i), "x") for i in range(2)}
        out = []
        for version in range(2):
            collector.buffer.advance(version)
            # a text says what the batch still waits for
            while isinstance(reply := await collector.get_batch(), str):
                pass
            out.append(reply.totals)
        collector._watch.close()  # type: ignore[union-attr]
        return out

    first, second = asyncio.run(two_batches())
    flops = Collector(config, lambda: method).judge._flops  # type: ignore[union-attr]
    batch = 2 * ROUND * flops.sequence(6)
    assert first["flops/scoring"] == pytest.approx(batch)
    # the second batch, the newest answers before they are learnt, and four updates
    assert second["flops/scoring"] == pytest.approx(3 * batch + 3 * 2 * 4 * FRESH_BATCH * flops.sequence(6))
    assert first["flops/sampling"] == second["flops/sampling"] == 0


def test_a_misspelt_rater_is_named_at_the_first_round(reward: LearnedReward) -> None:
    judge = Judge(replace(reward, rater="ratter"), FlopModel(1, 1, 1))
    traces = answers(4, 5)
    traces[0].components.update({PROXY: 1.0, "gold": 0.5})
    assert asyncio.run(judge.listen(traces, 9)) == 0.0
    with pytest.raises(NoRater, match=r"has a component 'ratter'; did you mean 'rater'[?] there are: gold, rater$"):
        asyncio.run(judge.listen(traces, 10))
    # later a batch may well hold nothing that anybody graded
    judge.labels = [Labels(10, traces, [1.0] * 4)]
    assert asyncio.run(judge.listen(traces, 20)) == 0.0


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_died_learns_its_labels_again(reward: LearnedReward) -> None:
    async def drill() -> tuple[list[float], list[float]]:
        actor = ray.remote(RewardScorer).options(num_cpus=0, max_restarts=1, max_task_retries=-1)
        handle: Any = actor.remote(reward, "float32", 1)
        folder = Path(reward.folders[0])
        judge = Judge(reward, FlopModel.of(load_config(str(folder)), 1000))
        judge.connect(handle)
        await judge.load([])
        await judge.listen(answers(ROUND, 5), 10)
        await judge.listen(answers(ROUND, 5), 11)  # nothing is asked for
        assert [one.version for one in judge.labels] == [10]
        traces = answers(8, 5)
        await judge.give(traces)
        before = [trace.components[PROXY] for trace in traces]
        ray.kill(handle, no_restart=False)
        await judge.give(traces)
        return before, [trace.components[PROXY] for trace in traces]

    before, after = asyncio.run(drill())
    assert after == before
