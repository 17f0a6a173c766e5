"""Advantages and losses: closed forms by hand, finite differences, and TRL's own code on the same random tensors."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_forward import batch_of, forward_of, make_trace, method, scored, total
from torch import Tensor

from actors.types import Group
from algorithms import policy_gradient as pg
from envs.base import Task

ESTIMATORS = ["grpo", "dr_grpo", "rloo", "reinforce", "reinforce++", "reinforce++_baseline"]


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # two groups: rewards 1 0 0 (mean 1/3, sample std 1/sqrt 3) and 0 1; the batch: mean 2/5, sample std sqrt 0.3
        ("grpo", [(2 / 3) / (3**-0.5 + 1e-4), *[(-1 / 3) / (3**-0.5 + 1e-4)] * 2, -0.5 / (0.5**0.5 + 1e-4)]),
        ("dr_grpo", [2 / 3, -1 / 3, -1 / 3, -1 / 2]),
        ("rloo", [1.0, -1 / 2, -1 / 2, -1.0]),
        ("reinforce", [0.6, -0.4, -0.4, -0.4]),
        ("reinforce++", [x / (0.3**0.5 + 1e-4) for x in (0.6, -0.4, -0.4, -0.4)]),
        # squares of the group-centred rewards: 4/9 + 1/9 + 1/9 + 1/4 + 1/4 = 7/6, over 4
        ("reinforce++_baseline", [x / ((7 / 24) ** 0.5 + 1e-4) for x in (2 / 3, -1 / 3, -1 / 3, -1 / 2)]),
    ],
)
def test_advantages_by_hand(estimator: pg.Estimator, expected: list[float]) -> None:
    got = pg.advantages(estimator, np.array([1.0, 0, 0, 0, 1]), np.array([7, 7, 7, 2, 2]))
    np.testing.assert_allclose(got[:4], expected, rtol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_or_lone_returns_have_no_advantage(estimator: pg.Estimator) -> None:
    assert not pg.advantages(estimator, np.full(7, 0.1), np.array([0, 0, 0, 0, 0, 0, 1])).any()
    assert not pg.advantages(estimator, np.array([0.3]), np.array([0])).any()
    assert len(pg.advantages(estimator, np.array([]), np.array([]))) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 3)), min_size=1, max_size=20),
    st.sampled_from(ESTIMATORS),
)
def test_advantages_are_finite_and_centred(entries: list[tuple[float, int]], estimator: pg.Estimator) -> None:
    returns, group = np.array([e[0] for e in entries]), np.array([e[1] for e in entries])
    got = pg.advantages(estimator, returns, group)
    assert np.isfinite(got).all()
    parts = [slice(None)] if estimator in ("reinforce", "reinforce++") else [group == g for g in np.unique(group)]
    for part in parts:
        assert abs(got[part].sum()) < 1e-9 * (1 + np.abs(returns).max()) / 1e-4


def test_returns_to_go() -> None:
    got = pg.returns_to_go(np.array([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]]), 0.5)
    np.testing.assert_array_equal(got, [[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]])


def test_overlong_penalty_is_dapo_equation_13() -> None:
    got = pg.overlong_penalty(np.array([0, 80, 85, 95, 100, 130]), limit=100, zone=20)
    np.testing.assert_allclose(got, [0, 0, -0.25, -0.75, -1, -1])


def test_shuffling_is_a_permutation_fixed_by_seed_and_groups() -> None:
    rewards = np.arange(40.0)
    first = pg.shuffled(rewards, 3, [4, 5])
    np.testing.assert_array_equal(np.sort(first), rewards)
    np.testing.assert_array_equal(first, pg.shuffled(rewards, 3, [4, 5]))
    assert (first != rewards).any()
    assert (first != pg.shuffled(rewards, 4, [4, 5])).any()
    assert (first != pg.shuffled(rewards, 3, [6, 7])).any()


def test_position_weights() -> None:
    sampled = np.array([False, True, True, False, True])
    np.testing.assert_allclose(pg.position_weights("token", sampled, 10), [0, 1, 1, 0, 1])
    np.testing.assert_allclose(pg.position_weights("sequence", sampled, 10), [0, 1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(pg.position_weights("constant", sampled, 10), [0, 0.1, 0.1, 0, 0.1], rtol=1e-6)
    assert not pg.position_weights("sequence", np.zeros(3, bool), 10).any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.56, 0.0),  # pushed up past 1 + 0.28: no gradient
        (1.5, -2.0, 3.0, 3.0),  # pushed back: gradient stays
        (0.5, -2.0, 1.6, 0.0),  # pushed down past 1 - 0.2: no gradient
        (0.5, 2.0, -1.0, -1.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    got = pg.ppo_loss(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.28)
    (gradient,) = torch.autograd.grad(got.sum(), log_ratio)
    assert got.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    clipped = pg.clipped(log_ratio, torch.tensor([advantage]), 0.2, 0.28)
    assert bool(clipped) == (slope == 0 and advantage != 0)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    logprobs = torch.tensor([-0.2, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-3.2, -1.0, -0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    log_ratio = pg.log_ratio(logprobs, old, torch.ones(3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(pg.cispo_loss(logprobs, log_ratio, advantage, 0.2, 4.0).sum(), logprobs)
    np.testing.assert_allclose(gradient, [-5.0, 0.8, -2.0])


def test_log_ratio_ignores_what_stands_outside_the_mask() -> None:
    new = torch.tensor([[1.0, float("nan"), 500.0]], requires_grad=True)
    old = torch.tensor([[0.5, 3.0, -500.0]])
    got = pg.log_ratio(new, old, torch.tensor([[True, False, True]]))
    assert got.tolist() == [[0.5, 0.0, pg.MAX_LOG_RATIO]]
    (gradient,) = torch.autograd.grad(pg.ppo_loss(got, torch.ones(1, 3), 0.2, 0.2).sum(), new)
    assert gradient.isfinite().all()


def test_truncated_importance() -> None:
    old, behaviour = torch.tensor([[0.0, -1.0, 2.0]]), torch.tensor([[-5.0, -1.5, 9.0]])
    got = pg.truncated_importance(old, behaviour, torch.tensor([[True, True, False]]), 2.0)
    np.testing.assert_allclose(got, [[2.0, np.exp(0.5), 1.0]], rtol=1e-6)


# --- finite differences -----------------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [False, False, False, False]])


def random_tensors(seed: int, spread: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(3, 4, generator=generator, dtype=torch.float64) - 0.1
    new = old + spread * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    advantage = torch.randn(3, 1, generator=generator, dtype=torch.float64).expand(3, 4)
    return new.requires_grad_(), old, advantage


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_finite_differences(seed: int) -> None:
    new, old, advantage = random_tensors(seed)
    ratio = lambda x: pg.log_ratio(x, old, MASK)  # noqa: E731
    assert torch.autograd.gradcheck(lambda x: pg.ppo_loss(ratio(x), advantage, 0.2, 0.28), new)
    assert torch.autograd.gradcheck(
        lambda x: pg.ppo_loss(pg.sequence_log_ratio(ratio(x), MASK), advantage, 0.05, 0.1), new
    )
    for kind in ("k1", "k2", "k3"):
        assert torch.autograd.gradcheck(lambda x, kind=kind: pg.kl_estimate(kind, ratio(x)), new)


# --- against TRL ------------------------------------------------------------------------------------------------------

LENGTHS, LIMIT = [3, 6, 2, 5, 4, 1], 6


@pytest.fixture(scope="module")
def trl() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL remarks on the vLLM version; no vLLM takes part here
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer
    return SimpleNamespace(grpo=GRPOTrainer, rloo=RLOOTrainer)


def trainer(**fields: Any) -> SimpleNamespace:
    """The attributes that TRL's loss and advantage code reads from its trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        sync_gradients=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1, "gradient_accumulation_steps": 1}
    args |= {"per_device_train_batch_size": 8, "gradient_checkpointing_kwargs": None}
    base = {
        "accelerator": accelerator,
        "args": SimpleNamespace(**args),
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": LIMIT,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "_metrics": {"train": defaultdict(list)},
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "num_iterations": 1,
        "pad_to_multiple_of": None,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "mask_truncated_completions": False,
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": torch.ones(1),
        "reward_func_names": ["reward"],
        "reward_clip_range": None,
        "normalize_advantages": False,
        "_logs": {k: [] for k in ("prompt", "completion", "advantages")} | {"rewards": defaultdict(list), "extra": {}},
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "log_multimodal": False,
        "_is_vlm": False,
    }
    return SimpleNamespace(**{**base, **fields})


class Case:
    """The same random log-probs for both sides, six traces; ours have one prompt token before them."""

    def __init__(self, seed: int, spread: float = 0.4) -> None:
        rng = np.random.default_rng(seed)
        draw = lambda scale: [(scale * rng.standard_normal(n)).astype(np.float32) for n in LENGTHS]  # noqa: E731
        self.behaviour = [-np.exp(x) for x in draw(0.5)]
        self.old = [b + d for b, d in zip(self.behaviour, draw(0.1), strict=True)]
        self.new = [b + d for b, d in zip(self.old, draw(spread), strict=True)]
        self.reference = [b + d for b, d in zip(self.old, draw(0.3), strict=True)]
        self.rewards = rng.random(len(LENGTHS)).astype(np.float32)

    def ours(self, **options: Any) -> tuple[float, Tensor, Tensor]:
        """(loss, its gradient by log-prob [B, T], advantages [B]) of our method."""
        rlvr = method(max_tokens=LIMIT, **options)
        groups = []
        for g in range(2):
            rows = range(3 * g, 3 * g + 3)
            traces = [make_trace(self.behaviour[i], float(self.rewards[i]), episode=str(i)) for i in rows]
            for i, trace in zip(rows, traces, strict=True):
                scored(trace, "policy", self.old[i])
                scored(trace, "reference", self.reference[i])
            groups.append(Group(Task("t", "p"), traces, index=g))
        rlvr.credit(groups)
        batch = batch_of([trace for group in groups for trace in group.traces])
        logprobs = padded(self.new).requires_grad_()
        forward = forward_of(torch.nn.functional.pad(logprobs, (1, 0)))
        loss = total(rlvr.terms("policy", forward, batch), batch)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        return loss.item(), gradient, batch["advantage"][:, 1]

    def theirs(
        self, loss: Any, advantages: Tensor, sampler_ratio_cap: float = 0.0, **fields: Any
    ) -> tuple[float, Tensor]:
        """(loss, its gradient by log-prob [B, T]) of TRL's `_compute_loss`."""
        logprobs, mask = padded(self.new).requires_grad_(), padded([np.ones(n) for n in LENGTHS])
        self_ = trainer(**fields)
        self_._get_per_token_logps_and_entropies = lambda *a, **k: (logprobs, torch.zeros_like(logprobs), None)
        prompt = torch.zeros(len(LENGTHS), 1, dtype=torch.long)
        old = padded(self.old)
        inputs = {
            "prompt_ids": prompt,
            "prompt_mask": prompt + 1,
            "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
            "completion_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old,
            "old_logps": (old * mask).sum(1),
            "ref_per_token_logps": padded(self.reference),
            "num_items_in_batch": mask.sum(),
            "importance_sampling_ratio": (old - padded(self.behaviour)).exp().clamp(max=sampler_ratio_cap),
        }
        value = loss(self_, self_.model, inputs)
        (gradient,) = torch.autograd.grad(value, logprobs)
        return value.item(), gradient


def padded(rows: list[np.ndarray]) -> Tensor:
    out = torch.zeros(len(rows), max(LENGTHS), dtype=torch.float64)
    for b, row in enumerate(rows):
        out[b, : len(row)] = torch.from_numpy(np.asarray(row, np.float64))
    return out


OURS = {"old_logprobs": "learner", "updates_per_batch": 2, "clip_low": 0.2, "clip_high": 0.28}
MEAN_KL = {"kl_coef": 0.3, "kl": "k3"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"aggregation": "sequence"}, {"loss_type": "grpo"}),
        ({"aggregation": "sequence", **MEAN_KL}, {"loss_type": "grpo", "beta": 0.3}),
        ({"aggregation": "constant"}, {"loss_type": "dr_grpo"}),
        ({"aggregation": "token"}, {"loss_type": "dapo"}),
        ({"aggregation": "token", **MEAN_KL}, {"loss_type": "bnpo", "beta": 0.3}),
        (
            {"aggregation": "token", "tis_cap": 1.05},
            {"loss_type": "dapo", "use_vllm": True, "vllm_importance_sampling_correction": True},
        ),
        (
            {"loss": "gspo", "aggregation": "sequence", "clip_low": 0.05, "clip_high": 0.1},
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1},
        ),
        # TRL's cispo bound is on the ratio itself and has no lower side
        ({"loss": "cispo", "clip_low": 1.0, "clip_high": 0.4}, {"loss_type": "cispo", "epsilon_high": 1.4}),
    ],
)
def test_losses_and_gradients_equal_trl(trl: SimpleNamespace, seed: int, options: dict, fields: dict) -> None:
    case = Case(seed)
    loss, gradient, advantages = case.ours(**{**OURS, **options})
    their_loss, their_gradient = case.theirs(trl.grpo._compute_loss, advantages, options.get("tis_cap", 0.0), **fields)
    assert advantages.abs().max() > 0.1
    # our weights (1 / length) travel as float32, theirs are float64
    assert loss == pytest.approx(their_loss, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("seed", range(2))
def test_rloo_gradient_equals_trl_on_policy(trl: SimpleNamespace, seed: int) -> None:
    """TRL's ratio is the whole sequence's; where it is 1, the gradients are the same up to the length constant."""
    case = Case(seed, spread=0.0)
    _, gradient, advantages = case.ours(preset="rloo", old_logprobs="learner", updates_per_batch=2)
    _, their_gradient = case.theirs(trl.rloo._compute_loss, advantages)
    torch.testing.assert_close(LIMIT * gradient, their_gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "fields"),
    [
        ("grpo", {"scale_rewards": "group"}),
        ("dr_grpo", {"scale_rewards": "none"}),
        ("rloo", None),
    ],
)
def test_advantages_equal_trl(trl: SimpleNamespace, estimator: pg.Estimator, fields: dict | None) -> None:
    """Through TRL's own rollout code, with given ids and rewards for generation; one completion is unscorable."""
    rewards = np.random.default_rng(0).random(12)
    rewards[4:8] = 0.7
    rewards[9] = np.nan
    ids = [[1, 2]] * 12
    self_ = trainer(num_generations=4, **(fields or {}))
    self_._calculate_rewards = lambda *a: torch.from_numpy(rewards)[:, None]
    self_._get_per_token_logps_and_entropies = lambda *a, **k: (torch.zeros(12, 2), torch.zeros(12, 2), None)
    trainer_class = trl.rloo if fields is None else trl.grpo
    self_._generate = lambda p: (ids, ids, [""] * 12) if fields is None else (ids, ids, None, [""] * 12, *[None] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = trainer_class._generate_and_score_completions(self_, [{"prompt": "x"}] * 12)
    live = ~np.isnan(rewards)
    ours = np.zeros(12)
    ours[live] = pg.advantages(estimator, rewards[live], (np.arange(12) // 4)[live])
    np.testing.assert_allclose(ours, out["advantages"].numpy(), rtol=0, atol=1e-7)
