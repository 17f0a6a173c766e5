"""The RLVR method: unbiased by exhaustive enumeration, masks, edge cases, presets, and the registry."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from plain_forward import PlainForward, batch_of, by_row, forward_of, make_group, make_trace, method, scored, total
from pydantic import ValidationError
from torch import Tensor

from actors.types import Group
from algorithms.base import Algorithm
from algorithms.registry import find
from algorithms.rlvr import PRESETS, RLVRConfig
from envs.base import Task
from models.trace import Kind

# --- unbiasedness: every group that a tiny policy can sample, weighted by its probability -----------------------------

VOCABULARY = 3
SEQUENCES = [(0,), *itertools.product((1, 2), range(VOCABULARY))]
"""Token 0 ends an episode at once; 1 and 2 are followed by one more token."""
REWARD = {s: float(r) for s, r in zip(SEQUENCES, np.random.default_rng(1).random((7, 2)) @ [1, 2], strict=True)}
FIRST = {s: 0.5 * s[0] * (len(s) == 2) for s in SEQUENCES}
"""The part of the reward that comes after the first turn, where an episode has two."""


class Tree:
    """A softmax policy over `SEQUENCES`; logits float64[3, 3]: row 0 for the first token, row a for what follows a."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(3, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()

    def logprobs(self, sequence: tuple[int, ...]) -> Tensor:
        """[2], 0 where the sequence has ended."""
        table = self.logits.log_softmax(-1)
        second = table[sequence[0], sequence[1]] if len(sequence) == 2 else table.new_zeros(())
        return torch.stack([table[0, sequence[0]], second])

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def objective(self) -> Tensor:
        return sum((self.logprobs(s).sum().exp() * REWARD[s] for s in SEQUENCES), torch.zeros(()))

    def kl(self, other: Tree) -> Tensor:
        logp = [(self.logprobs(s).sum(), other.logprobs(s).sum().detach()) for s in SEQUENCES]
        return sum((p.exp() * (p - q) for p, q in logp), torch.zeros(()))


def expected_gradient(
    policy: Tree, behaviour: Tree, size: int, *, reference: Tree | None = None, by_turn: bool = False, **options: Any
) -> Tensor:
    """The method's expected gradient over all groups of `size` episodes drawn from `behaviour`, per trace and token."""
    groups, probability = [], []
    combinations = list(itertools.product(SEQUENCES, repeat=size))
    for index, combination in enumerate(combinations):
        traces = []
        for i, sequence in enumerate(combination):
            n = len(sequence)
            rewards = [FIRST[sequence], REWARD[sequence] - FIRST[sequence]] if n == 2 else [REWARD[sequence]]
            turns = list(range(n)) if by_turn else [0] * n
            logprob = behaviour.logprobs(sequence)[:n].tolist()
            trace = make_trace(logprob, rewards, episode=f"{index}.{i}", turns=turns)
            if reference is not None:
                scored(trace, "reference", reference.logprobs(sequence)[:n].tolist())
            traces.append(trace)
        groups.append(Group(Task("t", "p"), traces, index=index))
        probability.append(torch.stack([behaviour.logprobs(s) for s in combination]).sum().exp().item())
    rlvr = method(max_tokens=1, **{"aggregation": "constant", "loss": "reinforce", **options})
    if options.get("estimator") == "reinforce":  # its baseline is the batch's: every group is a batch of its own
        for group in groups:
            rlvr.credit([group])
    else:
        rlvr.credit(groups)
    batch = batch_of([trace for group in groups for trace in group.traces])
    sampled = [policy.logprobs(s) for combination in combinations for s in combination]
    logprobs = torch.nn.functional.pad(torch.stack(sampled), (1, 0))
    losses = by_row(rlvr.terms("policy", forward_of(logprobs), batch), batch).view(-1, size).mean(-1)
    return policy.gradient((torch.tensor(probability, dtype=torch.float64) * losses).sum())


def assert_close(got: Tensor, exact: Tensor) -> None:
    """Advantages and behaviour log-probs are float32."""
    torch.testing.assert_close(got, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("estimator", "size", "factor"),
    [("rloo", 2, 1.0), ("rloo", 3, 1.0), ("dr_grpo", 2, 1 / 2), ("dr_grpo", 3, 2 / 3), ("reinforce", 2, 1 / 2)],
)
def test_expected_gradient_is_the_exact_one(estimator: str, size: int, factor: float) -> None:
    """A mean over all n returns, one's own among them, shrinks the gradient by (n - 1) / n; leaving it out does not."""
    policy = Tree(0)
    got = expected_gradient(policy, policy, size, estimator=estimator)
    assert_close(got, -factor * policy.gradient(policy.objective()))


@pytest.mark.parametrize("loss", ["ppo", "cispo", "reinforce"])
def test_every_loss_has_the_exact_gradient_on_policy(loss: str) -> None:
    policy = Tree(1)
    got = expected_gradient(policy, policy, 2, estimator="rloo", loss=loss)
    assert_close(got, -policy.gradient(policy.objective()))


def test_credit_by_turn_is_unbiased_though_episodes_end_at_different_turns() -> None:
    policy = Tree(2)
    got = expected_gradient(policy, policy, 2, estimator="rloo", credit_by="turn", by_turn=True)
    assert_close(got, -policy.gradient(policy.objective()))


def test_kl_in_the_reward_is_the_gradient_of_the_sequence_kl() -> None:
    policy, reference = Tree(0), Tree(3)
    got = expected_gradient(
        policy, policy, 2, reference=reference, estimator="rloo", kl_coef=0.7, kl_in="reward", kl="k1"
    )
    assert_close(got, -policy.gradient(policy.objective() - 0.7 * policy.kl(reference)))


class OneToken(Tree):
    """The same policy when every episode ends after its first token."""

    def logprobs(self, sequence: tuple[int, ...]) -> Tensor:
        # the first token alone decides; its two-token continuations share its probability evenly
        share = 1 if sequence[0] == 0 else VOCABULARY
        first = self.logits[0].log_softmax(-1)[sequence[0]] - np.log(share)
        return torch.stack([first, first.new_zeros(())])


@pytest.mark.parametrize("loss", ["ppo", "cispo"])
def test_ratios_correct_for_another_sampler(loss: str) -> None:
    policy, behaviour = OneToken(0), OneToken(4)
    got = expected_gradient(policy, behaviour, 2, estimator="rloo", loss=loss, clip_low=1.0, clip_high=1e6)
    assert_close(got, -policy.gradient(policy.objective()))


def test_truncated_importance_sampling_corrects_for_another_sampler() -> None:
    policy, behaviour = OneToken(0), OneToken(4)
    options: dict[str, Any] = {"estimator": "rloo", "old_logprobs": "learner"}
    exact = -policy.gradient(policy.objective())
    assert_close(expected_gradient(policy, behaviour, 2, **options, tis_cap=1e6), exact)
    assert (expected_gradient(policy, behaviour, 2, **options) - exact).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_of_the_kl_loss(kind: str) -> None:
    """On policy: k1 none in expectation, k2 that of KL(policy || reference), k3 that of KL(reference || policy)."""
    policy, reference = OneToken(0), OneToken(3)
    without = expected_gradient(policy, policy, 1, estimator="rloo")
    got = expected_gradient(policy, policy, 1, reference=reference, estimator="rloo", kl_coef=1.0, kl=kind) - without
    p, q = (tree.logits[0].log_softmax(-1) for tree in (policy, reference))
    exact = {"k1": 0.0 * p.sum(), "k2": (p.exp() * (p - q.detach())).sum(), "k3": -(q.detach().exp() * p).sum()}[kind]
    assert_close(got, policy.gradient(exact))


# --- credit -----------------------------------------------------------------------------------------------------------


def test_credit_reaches_every_sampled_position_of_a_multi_turn_episode() -> None:
    trace = make_trace([-1.0] * 5, [0, 1, 0, 0, 2], turns=[0, 0, 1, 1, 1], thoughts=1, episode="a")
    trace.kind[2], trace.kind[3], trace.logprob[3] = Kind.LATENT, Kind.CONTEXT, np.nan
    other = make_trace([-1.0] * 2, 1.0, episode="b")
    groups = [Group(Task("t", "p"), [trace, other])]
    metrics = method(estimator="rloo").credit(groups)
    np.testing.assert_array_equal(trace.weights["advantage"], [0, 2, 2, 0, 2, 2])
    np.testing.assert_array_equal(trace.weights["policy"], [0, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(other.weights["advantage"], [0, -2, -2])
    assert trace.weights["advantage"].dtype == trace.weights["policy"].dtype == np.float32
    assert metrics["reward/mean"] == 2.0
    assert metrics["length/thought"] == 0.5
    assert metrics["length/mean"] == 3.0
    assert metrics["turns/mean"] == 1.5

    method(estimator="rloo", credit_by="turn", discount=0.5).credit(groups)
    np.testing.assert_array_equal(trace.weights["advantage"], [0, 1, 1, 0, 2, 2])  # returns (2, 2) against (1, 0)
    np.testing.assert_array_equal(other.weights["advantage"], [0, -1, -1])


def test_traces_of_one_episode_share_its_return() -> None:
    first, second = make_trace([-1.0], 0.0, episode="a"), make_trace([-1.0], 1.0, episode="a")
    other = make_trace([-1.0], 0.0, episode="b")
    method(estimator="dr_grpo").credit([Group(Task("t", "p"), [first, second, other])])
    assert [t.weights["advantage"][1] for t in (first, second, other)] == [0.5, 0.5, -0.5]


def test_masked_traces_enter_no_statistic_and_get_no_weight() -> None:
    group, clean = make_group([1, 0, 0, 9]), make_group([1, 0, 0])
    group.traces[3].outcome = "infra"
    for estimator in ("grpo", "rloo", "reinforce++"):
        rlvr = method(estimator=estimator)
        got, expected = rlvr.credit([group]), rlvr.credit([clean])
        assert got.pop("traces/masked") == 0.25
        assert expected.pop("traces/masked") == 0.0
        assert got == expected
        for trace, twin in zip(group.traces, clean.traces, strict=False):
            np.testing.assert_array_equal(trace.weights["advantage"], twin.weights["advantage"])
    assert group.traces[3].weights == {}


def test_zero_advantages_count_in_the_denominator() -> None:
    groups = [make_group([1, 0], 0), make_group([1, 1], 1)]
    rlvr = method(estimator="dr_grpo")
    assert rlvr.credit(groups)["groups/zero_variance"] == 0.5
    batch = batch_of([trace for group in groups for trace in group.traces])
    logprobs = torch.full((4, 4), -1.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(rlvr.terms("policy", forward_of(logprobs), batch), batch), logprobs)
    np.testing.assert_allclose(gradient[0, 1:], -0.5 / 12)
    assert not gradient[2:].any()
    assert not gradient[:, 0].any()


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("rewards", [[[1.0]], [[0.3, 0.3, 0.3]], [[1, 0], [5]]])
def test_nothing_is_ever_nan(preset: str | None, rewards: list[list[float]]) -> None:
    groups = [make_group(r, index) for index, r in enumerate(rewards)]
    groups[0].traces.append(make_trace([], [], episode="empty"))  # the length limit left no room for a single token
    groups[0].traces.append(make_trace([-1.0], 1.0, episode="failed", outcome="infra"))
    rlvr = method(preset=preset)
    assert np.isfinite(list(rlvr.credit(groups).values())).all()
    batch = batch_of([trace for group in groups for trace in group.traces])
    logprobs = torch.full(batch.token_BT.shape, -60.0, dtype=torch.float64, requires_grad=True)
    terms = rlvr.terms("policy", forward_of(logprobs), batch)
    (gradient,) = torch.autograd.grad(by_row(terms, batch).sum(), logprobs)
    assert gradient.isfinite().all()
    assert all(value.isfinite().all() for term in terms.values() for value in term.metrics.values())


def test_a_batch_of_failures_yields_only_the_count() -> None:
    group = make_group([1, 0])
    for trace in group.traces:
        trace.outcome = "infra"
    assert method().credit([group]) == {"traces/masked": 1.0}
    assert not any(trace.weights for trace in group.traces)


def test_truncated_traces_keep_their_reward_but_not_their_weight() -> None:
    group = make_group([1, 0])
    group.traces[1].outcome = "truncated"
    metrics = method(estimator="rloo", mask_truncated=True).credit([group])
    assert metrics["truncated"] == 0.5
    assert group.traces[0].weights["advantage"][1] == 1.0
    assert group.traces[0].weights["policy"].sum() == 3
    assert not group.traces[1].weights["policy"].any()


def test_overlong_turns_lose_reward() -> None:
    group = make_group([1, 1], length=5)
    group.traces[1] = make_trace([-1.0] * 18, [0.0] * 17 + [1.0], turns=[0] * 9 + [1] * 9, episode="long")
    rlvr = method(max_tokens=10, estimator="rloo", overlong_share=0.4)
    # two turns of 9 tokens, the zone begins at 6: -0.75 each
    assert rlvr.credit([group])["reward/overlong"] == pytest.approx(-0.75)
    assert group.traces[0].weights["advantage"][1] == pytest.approx(1.5)


def test_shuffled_rewards_keep_the_rewards_and_lose_their_owners() -> None:
    groups = [make_group(list(range(8 * g, 8 * g + 8)), g) for g in range(4)]
    metrics = method(estimator="reinforce", shuffle_rewards=True).credit(groups)
    assert metrics["reward/mean"] == 15.5
    credited = np.array([t.weights["advantage"][1] + 15.5 for g in groups for t in g.traces])
    np.testing.assert_allclose(np.sort(credited), np.arange(32))
    assert abs(np.corrcoef(credited, np.arange(32))[0, 1]) < 0.5
    assert [t.total_reward for g in groups for t in g.traces] == list(range(32))
    method(estimator="reinforce", shuffle_rewards=True).credit(groups)
    np.testing.assert_array_equal(credited, [t.weights["advantage"][1] + 15.5 for g in groups for t in g.traces])


def test_dynamic_sampling_refuses_groups_without_contrast() -> None:
    mixed, equal, failed = make_group([1, 0]), make_group([1, 1]), make_group([1, 0])
    failed.traces[1].outcome = "infra"
    assert [method(dynamic_sampling=True).keep(g) for g in (mixed, equal, failed)] == [True, False, False]
    assert all(method().keep(g) for g in (mixed, equal, failed))


def test_a_missing_score_is_named() -> None:
    group = make_group([1, 0])
    rlvr = method(kl_coef=0.1)
    with pytest.raises(ValueError, match=r"trace 0\.0: the role 'reference' has not scored"):
        rlvr.credit([group])
    for trace in group.traces:
        scored(trace, "reference", [-1.0, np.nan, -1.0])
    with pytest.raises(ValueError, match="has not scored all"):
        rlvr.credit([group])


# --- terms and configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_micro_batches_do_not_change_the_gradient(preset: str | None) -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 7, 1, 5]
    traces = [make_trace(-rng.random(n), float(n % 3), episode=str(n)) for n in lengths]
    rlvr = method(preset=preset, kl_coef=0.1, entropy_coef=0.01)
    for trace in traces:
        scored(trace, "reference", -rng.random(len(trace) - 1))
    rlvr.credit([Group(Task("t", "p"), traces)])
    new = [torch.tensor([0.0, *-rng.random(n)], dtype=torch.float64, requires_grad=True) for n in lengths]

    def gradients(parts: list[list[int]]) -> list[Tensor]:
        loss = torch.zeros((), dtype=torch.float64)
        for rows in parts:
            batch = batch_of([traces[i] for i in rows])
            logprobs = torch.nn.utils.rnn.pad_sequence([new[i] for i in rows], batch_first=True)
            terms = rlvr.terms("policy", PlainForward(logprobs, logprobs.square()), batch)
            assert set(terms) == ({"policy", "entropy"} | (set() if rlvr.config.kl_in == "reward" else {"kl"}))
            loss = loss + by_row(terms, batch).sum()
        return list(torch.autograd.grad(loss, new))

    for whole, split in zip(gradients([[0, 1, 2, 3]]), gradients([[2, 0], [3], [1]]), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-12, atol=1e-15)


def test_metrics_of_the_policy_term() -> None:
    group = make_group([1, 0], length=2)
    rlvr = method(clip_low=0.2, clip_high=0.28)
    rlvr.credit([group])
    batch = batch_of(group.traces)
    logprobs = torch.tensor([[0, -1 + np.log(1.5), -1], [0, -1 + np.log(0.5), -1]], requires_grad=True)
    term = rlvr.terms("policy", PlainForward(logprobs, torch.full((2, 3), 0.7)), batch)["policy"]
    np.testing.assert_allclose(term.metrics["ratio"][:, 1:], [[1.5, 1], [0.5, 1]])
    np.testing.assert_array_equal(term.metrics["clip_fraction"][:, 1:], [[1, 0], [1, 0]])
    np.testing.assert_allclose(term.metrics["approx_kl"][:, 1], [0.5 - np.log(1.5), -0.5 + np.log(2)])
    np.testing.assert_allclose(term.metrics["entropy"], 0.7)
    assert not any(value.requires_grad for value in term.metrics.values())
    with pytest.raises(TypeError, match="critic"):
        rlvr.terms("critic", forward_of(logprobs), batch)


def test_old_logprobs() -> None:
    """The sampler's; the learner's current ones while it has not moved; else those kept from the start of the batch."""
    group = make_group([1, 0], length=1)
    for trace in group.traces:
        scored(trace, "policy", [-2.0])
    logprobs = torch.tensor([[0.0, -3.0]] * 2)

    def ratio(**options: Any) -> float:
        rlvr = method(**options)
        rlvr.credit([group])
        batch = batch_of(group.traces)
        return rlvr.terms("policy", forward_of(logprobs), batch)["policy"].metrics["ratio"][0, 1].log().item()

    assert ratio() == pytest.approx(-2)
    assert ratio(old_logprobs="learner") == 0
    assert ratio(old_logprobs="learner", updates_per_batch=2) == pytest.approx(-1)


def test_roles_are_declared_only_when_used() -> None:
    assert {n: (r.trainable, r.scores) for n, r in method().roles.items()} == {"policy": (True, False)}
    assert not method(old_logprobs="learner").roles["policy"].scores
    assert method(old_logprobs="learner", updates_per_batch=4).roles["policy"].scores
    reference = method(kl_coef=0.1).roles["reference"]
    assert (reference.weights, reference.trainable, reference.scores) == ("@policy", False, True)


def test_presets_yield_to_options_given_beside_them() -> None:
    config = RLVRConfig(preset="dapo", clip_high=0.3, group_size=4)
    assert (config.clip_high, config.dynamic_sampling, config.aggregation) == (0.3, True, "token")
    assert RLVRConfig(**config.model_dump()) == config
    for preset, options in PRESETS.items():
        made = RLVRConfig(preset=preset)
        assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "grop"}, "preset"),
        ({"clip_hgih": 0.3}, "clip_hgih"),
        ({"tis_cap": 2.0}, "old_logprobs: learner"),
        ({"loss": "gspo"}, "aggregation: sequence"),
        ({"discount": 0.9}, "credit_by: turn"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RLVRConfig(**options)


def test_every_option_is_explained() -> None:
    assert [
        n for n, f in RLVRConfig.model_fields.items() if not f.description and n not in ("name", "group_size")
    ] == []


def test_registry() -> None:
    assert find("rlvr") is find("algorithms.rlvr:RLVR")
    assert issubclass(find("rlvr"), Algorithm)
    for name, words in {
        "rvlr": "did you mean rlvr",
        "something": "known: .*rlvr",
        "no_such_pkg.mod:X": "no module 'no_such_pkg'",
        "algorithms.rlvr:Nope": "has no 'Nope'",
        "algorithms.rlvr:PRESETS": "not a subclass",
    }.items():
        with pytest.raises(ValueError, match=words):
            find(name)
