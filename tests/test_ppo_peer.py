"""The comparison with RLlib's PPO: what it plays, whether both sides see the same episodes, and the benchmark's own arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.gae import gae
from benchmarks.common import interval
from benchmarks.picture import Line, picture, stacked
from benchmarks.ppo_contest import Curve, Posterior, first_values
from benchmarks.ppo_worlds import CRUMB, DISCOUNT, PRIZE, STATES, World, long_texts, ring, ring_values, texts
from envs.noisy_raters import NoisyRaters
from models.scratch import write_model


def model_for(world: World, folder: Path) -> Path:
    return write_model(folder / "m", world.make().words(), family="gpt2", layers=1, width=32, heads=2, length=128)


def test_the_best_policy_of_the_ring_by_value_iteration() -> None:
    """Every move earns (reward, next state); nothing else is known of the world here."""
    moves = {"A": [(0.0, "B"), (CRUMB, "A")], "B": [(0.0, "C"), (0.0, "A")], "C": [(PRIZE, "A"), (0.0, "C")]}
    value = dict.fromkeys(STATES, 0.0)
    for _ in range(400):
        value = {state: max(r + DISCOUNT * value[s] for r, s in moves[state]) for state in STATES}
    assert value == pytest.approx(ring_values())
    # six moves to the right earn two prizes from everywhere; an end after them would make crumbs worth more
    assert ring().best == 2 * PRIZE
    # the best answer about each topic, asked of the environment's own grader
    world = texts()
    env, best = world.make(), dict[int, float]()
    assert isinstance(env, NoisyRaters)
    for task in world.tasks():
        topic = task.meta["topic"]
        if topic not in best:
            rows = np.stack(np.meshgrid(*[np.arange(env.count)] * 4, indexing="ij"), -1).reshape(-1, 4)
            top = rows[np.argmax(env.gold(rows, topic))]
            best[topic] = env.grade(task, " ".join(f"w{i}" for i in top)).value
    assert world.best == pytest.approx(np.mean([best[task.meta["topic"]] for task in world.tasks()]))


@pytest.mark.parametrize("world", [ring(), long_texts(4, episodes=64)], ids=lambda world: world.name)
def test_both_sides_play_the_same_episodes_with_the_same_policy(world: World, tmp_path: Path) -> None:
    """Traces of Posterior's, replayed token by token through RLlib's environment and network."""
    from benchmarks.rllib_peer import Cast, TokenModule

    model = model_for(world, tmp_path)
    ours = Posterior(world, model, 1e-3, 0)
    groups = ours.run.collect(ours.tasks, 0)
    cast = Cast(world, model)
    first = cast()
    module = TokenModule(
        observation_space=first.observation_space, action_space=first.action_space, model_config={"path": str(model)}
    )
    assert module.critic.head is not None
    torch.nn.init.normal_(module.critic.head.weight)
    cast.made = 0
    for group in groups:
        env, trace = cast(), group.traces[0]
        assert len(trace.token[trace.sampled]) == world.decisions
        rows, rewards = [env.reset()[0]], []
        for token in trace.token[trace.sampled].tolist():
            row, reward, ended, cut, _ = env.step(token)
            rows.append(row)
            rewards.append(reward)
        assert (ended, cut) == (world.turns == 1, world.turns > 1)
        assert rows[-1][: rows[-1][-1]].tolist() == trace.token.tolist()
        assert rewards == pytest.approx(trace.reward[trace.sampled])
        with torch.no_grad():
            batch = {"obs": torch.from_numpy(np.stack(rows))}
            said = module.forward_train(batch)["action_dist_inputs"].log_softmax(-1)
            values = module.compute_values(batch)
        logprobs = said[torch.arange(world.decisions), torch.from_numpy(trace.token[trace.sampled]).long()]
        assert logprobs.numpy() == pytest.approx(trace.logprob[trace.sampled], abs=1e-5)
        alone = first_values(module.critic, [trace.token[: rows[0][-1]].tolist()])[0]
        assert values[0].item() == pytest.approx(alone, abs=1e-4)


def test_advantages_equal_those_of_rllib() -> None:
    """Episodes that ended and episodes that were cut, padded by a step as RLlib pads them."""
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    rng = np.random.default_rng(0)
    for cut in (False, True):
        reward, value, behind = rng.normal(size=7), rng.normal(size=7), float(rng.normal())
        ended = np.zeros(8)
        ended[6] = not cut
        stopped = np.zeros(8)
        stopped[6] = cut
        theirs = compute_value_targets(np.append(value, behind), np.append(reward, 0.0), ended, stopped, 0.9, 0.95)
        _, returns = gae(reward, value, behind if cut else 0.0, 0.9, 0.95)
        assert returns == pytest.approx(theirs[:7], abs=1e-5)


def test_a_curve_tells_when_it_reached_a_bar_and_where_it_ended() -> None:
    curve = Curve(returns=[0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.7, 0.7, 0.7, 0.9])
    assert curve.reached(0.9) == 6
    assert curve.reached(1.1) is None
    assert curve.mean_return(0.1) == 0.9
    assert curve.mean_return() == pytest.approx(0.7)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 4.303 / 3**0.5, 2.0 + 4.303 / 3**0.5))


def test_pictures_are_stacked() -> None:
    one = picture([Line("a", "red", [(1.0, 0.0), (200.0, 1.0)]), Line("", "red", [(1.0, 0.5)])], "x", "y")
    assert one.count("<path") == 2
    assert stacked([one, one]).count("<svg") == 3


def run_benchmark(*options: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ppo_vs_rllib", "--quick", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return {m["name"]: m["value"] for m in json.loads(done.stdout)["measures"]}


@pytest.mark.slow
def test_the_whole_comparison_in_small(tmp_path: Path) -> None:
    found = run_benchmark("--picture", str(tmp_path / "curves.svg"))
    for world in ("ring", "texts"):
        for name in ("posterior", "rllib"):
            assert found[f"{world}_seconds_{name}"] > 0
            stages = [found[f"{world}_{stage}_{name}"] for stage in ("sample", "credit", "learn", "publish", "rest")]
            assert min(stages) >= 0
    # an episode's tokens are read once by us, once for each decision by the peer
    assert found["texts4_flops_rllib"] > 3 * found["texts4_flops_posterior"]
    assert (tmp_path / "curves.svg").read_text().count("<path") == 2 * (2 * 2 + 1)
