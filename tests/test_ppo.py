"""PPO: its arithmetic against brute force and closed forms, what it writes on traces, and a decision process with a known optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain_walk import PRIZE, ChainWalk

from actors.env_worker import EnvWorker
from actors.local import LocalRun
from actors.types import CUT, Group, SamplingParams
from actors.update import OptimiserConfig
from algorithms.base import Context
from algorithms.gae import KLController, RunningScale, explained_variance, gae, value_loss, whitened
from algorithms.policy_gradient import ppo_loss
from algorithms.ppo import PPO, PPOConfig
from envs.base import Task
from models.forward import score_traces
from models.loading import load_tokenizer
from models.scratch import write_model
from models.trace import Kind, Score, Trace

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (0.9, 0.95), (0.97, 0.0), (1.0, 0.5)])
@pytest.mark.parametrize("last", [0.0, 1.7])
def test_gae_is_the_weighted_sum_of_k_step_advantages(discount: float, decay: float, last: float) -> None:
    """By the paper's definition: (1 - lambda) sum_k lambda^(k-1) A^(k), the longest one taking what is left."""
    reward, value = RNG.normal(size=7), RNG.normal(size=7)
    ahead = np.append(value, last)
    advantage, returns = gae(reward, value, last, discount, decay)
    for t in range(7):
        left = 7 - t
        steps = [
            sum(discount**i * reward[t + i] for i in range(k)) + discount**k * ahead[t + k] - value[t]
            for k in range(1, left + 1)
        ]
        weights = [(1 - decay) * decay ** (k - 1) for k in range(1, left)] + [decay ** (left - 1)]
        assert advantage[t] == pytest.approx(np.dot(weights, steps))
    assert returns == pytest.approx(advantage + value)


def test_losses_against_the_formulas() -> None:
    value, target, old = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    value.requires_grad_()
    held = torch.clamp(value, old - 0.2, old + 0.2)
    expected = 0.5 * torch.stack([(value - target) ** 2, (held - target) ** 2]).amax(0)
    assert torch.allclose(value_loss(value, target, old, 0.2), expected)
    assert torch.allclose(value_loss(value, target, old, None), 0.5 * (value - target) ** 2)
    # a value that has moved beyond the bound towards its target has no gradient, one that moved away has
    moved = torch.tensor([1.0, -1.0], requires_grad=True)
    value_loss(moved, torch.tensor([2.0, 2.0]), torch.zeros(2), 0.2).sum().backward()
    assert moved.grad is not None
    assert moved.grad.tolist() == [0.0, pytest.approx(-3.0)]
    ratio, advantage = torch.randn(4, 6).double() * 0.4, torch.randn(4, 6).double()
    r = ratio.exp()
    clipped = torch.stack([-advantage * r, -advantage * r.clamp(0.8, 1.2)]).amax(0)
    assert torch.allclose(ppo_loss(ratio, advantage, 0.2, 0.2), clipped)


def test_a_scale_is_undone_by_its_inverse_and_follows_what_it_sees() -> None:
    scale = RunningScale()
    values = RNG.normal(3.0, 5.0, 400)
    assert scale.restore(scale.normalise(values)) == pytest.approx(values)  # a fresh one changes nothing
    assert scale.normalise(values) == pytest.approx(values)
    scale.update(values)
    assert (scale.mean, scale.std) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert scale.restore(scale.normalise(values)) == pytest.approx(values)
    for _ in range(300):
        scale.update(RNG.normal(-2.0, 0.5, 400))
    assert (scale.mean, scale.std) == (pytest.approx(-2.0, abs=0.05), pytest.approx(0.5, rel=0.05))
    constant = RunningScale()
    constant.update(np.full(5, 2.0))
    assert constant.restore(constant.normalise(np.array([2.0]))) == pytest.approx([2.0])


def test_the_kl_controller_follows_its_target() -> None:
    fixed, free = KLController(0.1), KLController(0.1, target=2.0, horizon=100.0)
    for controller in (fixed, free):
        controller.update(10.0, 50)
    assert fixed.coef == 0.1
    assert free.coef == pytest.approx(0.1 * (1 + 0.2 * 0.5))  # the error of 4 is cut to 0.2
    free.update(1.9, 50)
    assert free.coef == pytest.approx(0.1 * 1.1 * (1 - 0.05 * 0.5))


def test_whitening_and_explained_variance() -> None:
    values = RNG.normal(2.0, 3.0, 50)
    white = whitened(values)
    assert (white.mean(), white.std()) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0))
    assert whitened(values, centre=False) == pytest.approx(values / values.std())
    assert whitened(np.full(3, 2.0)).tolist() == [0.0] * 3
    assert explained_variance(values, values) == 1.0
    assert explained_variance(np.zeros(50), values) == pytest.approx(0.0)
    assert explained_variance(values, np.ones(50)) == 0.0


# ---- what is written on traces


def ppo(**options: Any) -> PPO:
    return PPO(PPOConfig(**options), Context("nowhere", SamplingParams(), 0))


def trace_of(kinds: list[Kind]) -> Trace:
    kind = np.array(kinds, np.uint8)
    sampled = kind == Kind.ACTION
    return Trace(
        token=np.arange(len(kind)),
        kind=kind,
        logprob=np.where(sampled, -1.0, np.nan),
        version=np.where(sampled, 0, -1),
        turn=np.zeros(len(kind)),
        task="t",
        group="g",
        episode="e",
    )


def two_turns(values: list[float], *, cut: bool = False) -> Trace:
    """prompt (2), action (2), observation (1), action (1): rewards 1 and 3."""
    trace = trace_of([Kind.CONTEXT] * 2 + [Kind.ACTION] * 2 + [Kind.CONTEXT] + [Kind.ACTION])
    trace.reward[[3, 5]] = 1.0, 3.0
    trace.scores["critic"] = Score(np.array(values, np.float32), 0)
    if cut:
        trace.meta[CUT] = True
    return trace


@pytest.mark.parametrize("cut", [False, True])
def test_advantages_run_over_the_decisions_of_all_turns(cut: bool) -> None:
    """By hand: the states before the three decisions are read at positions 1, 2 and 4."""
    trace = two_turns([9.0, 0.5, 1.0, 9.0, 2.0, 4.0], cut=cut)
    method = ppo(discount=0.9, gae_lambda=0.8, whiten_advantages=False, normalise_values=False)
    figures = method.credit([Group(Task("t", "x"), [trace])])
    advantage, returns = gae(np.array([0.0, 1.0, 3.0]), np.array([0.5, 1.0, 2.0]), 4.0 if cut else 0.0, 0.9, 0.8)
    assert trace.weights["advantage"] == pytest.approx([0, 0, advantage[0], advantage[1], 0, advantage[2]])
    assert trace.weights["policy"].tolist() == [0, 0, 1, 1, 0, 1]
    assert trace.weights["return"] == pytest.approx([0, returns[0], returns[1], 0, returns[2], 0])
    assert trace.weights["old_value"] == pytest.approx([0, 0.5, 1.0, 0, 2.0, 0])
    assert trace.weights["value"].tolist() == [0, 1, 1, 0, 1, 0]
    assert figures["return/mean"] == pytest.approx(returns.mean())


def test_the_critic_learns_in_the_unit_of_the_returns() -> None:
    """The unit moves from batch to batch; the bound on the value's move is about the critic's output as it was."""
    method = ppo(gae_lambda=1.0)
    for _ in range(2):
        trace = two_turns([0.0, 0.1, 0.2, 0.0, 0.3, 0.0])
        method.credit([Group(Task("t", "x"), [trace])])
        returns = np.array([4.0, 4.0, 3.0])
        assert trace.weights["return"][[1, 2, 4]] == pytest.approx(method.scale.normalise(returns), abs=1e-5)
        assert trace.weights["old_value"][[1, 2, 4]] == pytest.approx([0.1, 0.2, 0.3], abs=1e-5)
    # an output that has not moved is not held back
    value = torch.from_numpy(trace.weights["old_value"]).requires_grad_()
    value_loss(value, torch.from_numpy(trace.weights["return"]), value.detach(), 0.2).sum().backward()
    assert value.grad is not None
    assert (value.grad[[1, 2, 4]] != 0).all()
    again = ppo(gae_lambda=1.0)
    again.load(method.state())
    assert (again.scale, again.kl) == (method.scale, method.kl)


def test_kl_in_the_reward_and_a_missing_critic() -> None:
    trace = two_turns([0.0] * 6)
    trace.scores["reference"] = Score(np.where(trace.sampled, trace.logprob - 0.5, np.nan).astype(np.float32), 0)
    method = ppo(kl_coef=0.2, gae_lambda=1.0, whiten_advantages=False)
    figures = method.credit([Group(Task("t", "x"), [trace])])
    assert figures["kl/reference"] == pytest.approx(1.5)
    assert trace.weights["advantage"][[2, 3, 5]] == pytest.approx([4 - 0.3, 4 - 0.2, 3 - 0.1])
    del trace.scores["critic"]
    with pytest.raises(ValueError, match="critic has not read"):
        method.credit([Group(Task("t", "x"), [trace])])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_target needs"):
        PPOConfig(kl_target=1.0)
    with pytest.raises(ValueError, match="no weights and no learning rate"):
        PPOConfig(critic="shared", critic_lr=1e-3)


# ---- a decision process with a known optimum


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_ppo_finds_the_best_policy_and_its_values(critic: str, tmp_path: Path) -> None:
    """Right, right, right is worth 1; values of its states are 0.9^2, 0.9 and 1. A greedy policy would take 0.3 at once."""
    world = ChainWalk()
    path = str(
        write_model(tmp_path / "m", world.words(), family="gpt2", layers=1, width=32, heads=2, length=32, seed=0)
    )
    tokenizer = load_tokenizer(path)
    settings: dict[str, Any] = {
        "name": "ppo",
        "critic": critic,
        "discount": 0.9,
        "gae_lambda": 0.95,
        "entropy_coef": 0.02,
    }
    method = PPO(PPOConfig(**settings), Context(path, SamplingParams(max_tokens=1), 0, 4))
    run = LocalRun(
        method,
        OptimiserConfig(3e-3, 0, (0.9, 0.95), 1e-8, 0.0, 1.0),
        EnvWorker("chain_walk:ChainWalk", {}),
        [tokenizer.eos_token_id],
        passes=(2, 2),
    )
    tasks = world.tasks("train")
    rows = [run.step(tasks) for _ in range(25)]
    assert rows[0]["reward/mean"] < 0.5
    assert max(row["gap/max"] for row in rows) < 1e-4
    assert np.mean([row["reward/mean"] for row in rows[-3:]]) > 0.9 * PRIZE
    trace = next(
        t for g in run.collect(tasks, 10_000) for t in g.traces if t.total_reward == PRIZE and t.turn.max() == 2
    )
    model = run.models["critic" if critic == "own" else "policy"]
    values = score_traces(model, [trace], head="value")[0]
    found = method.scale.restore(values[np.flatnonzero(trace.sampled) - 1])
    # neighbours differ by 0.1: a critic that says the same everywhere is further off
    assert found == pytest.approx([0.81, 0.9, 1.0], abs=0.03)
