"""Posterior methods against exact gradients: every pair of thoughts that a small model can write, weighted by its probability."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.types import Group, SamplingParams
from algorithms.base import Context
from algorithms.posterior_method import PosteriorMethod
from algorithms.registry import find
from algorithms.thoughts import reading_with_answer
from benchmarks.posterior_testbed import BASELINES, RULES, Case, Testbed
from envs.base import Task
from models.forward import Distribution, ModelForward, collate, score_traces
from models.loading import RoleModel, load_role, load_tokenizer
from models.scratch import write_model
from models.trace import Kind, Score

WORDS = ("0", "1", "2", "3", "given", "<think>", "</think>")
TASK = Task("t", "0 3", answer="2")
TOP_K, BUDGET = 3, 2


class Small:
    """A random policy, another random model, and everything the policy can think on `TASK`."""

    def __init__(self, folder: Path, spread: float = 0.3) -> None:
        path = str(write_model(folder / "m", WORDS, family="gpt2", layers=1, width=16, heads=2, length=16, seed=3))
        self.path, self.distribution = path, Distribution(1.0, 1.0, TOP_K)
        self.policy: RoleModel = load_role(path, dtype="float64")
        self.other: RoleModel = load_role(path, dtype="float64")
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for model, size in ((self.policy, spread), (self.other, 0.5)):
                for p in model.parameters():
                    p.add_(size * torch.randn(p.shape, generator=noise, dtype=p.dtype))
        self.bed = Testbed(self.policy, load_tokenizer(path), self.distribution, BUDGET, "{prompt} given {answer}")
        self.case: Case = self.bed.case(TASK)
        self.learned: Case = self.bed.case(TASK, self.other)

    def method(self, name: str, **options: Any) -> PosteriorMethod:
        cls = find(name)
        sampling = SamplingParams(top_k=TOP_K, max_tokens=BUDGET)
        made = cls(cls.Config(name=name, **options), Context(self.path, sampling, 0))
        assert isinstance(made, PosteriorMethod)
        return made

    def expected(self, method: PosteriorMethod, ratio: list[np.ndarray] | None = None) -> Tensor:
        """The method's expected ascent direction over all pairs of thoughts. ratio: l_t of an exact helper, by thought; None lets
        `other` be the helper."""
        groups = self._pairs(method, ratio)
        method.credit(groups)
        traces = [trace for group in groups for trace in group.traces]
        batch = collate(traces, [trace.view() for trace in traces])
        terms = method.terms("policy", ModelForward(self.policy, batch, self.distribution), batch)
        p = self.case.probability
        chance = torch.tensor([p[i] * p[j] for i, j in itertools.product(range(len(p)), repeat=2)]).repeat_interleave(2)
        loss = sum((t.loss_BT * (batch[t.weight] != 0) * chance[:, None]).sum() for t in terms.values())
        assert isinstance(loss, Tensor)
        return -self.bed.gradient(loss)

    def _pairs(self, method: PosteriorMethod, ratio: list[np.ndarray] | None) -> list[Group]:
        case, z = self.case, self.case.listed.traces
        own = score_traces(self.policy, z, distribution=self.distribution)
        reference = score_traces(self.other, z, distribution=self.distribution)
        plain = Distribution()
        helper = score_traces(self.other, z, template=reading_with_answer, distribution=plain)
        if ratio is not None:
            for scores, row, own_row, l in zip(helper, z, own, ratio, strict=True):
                scores[row.kind == Kind.THOUGHT] = own_row[row.kind == Kind.THOUGHT] + l
        groups = []
        for index, (i, j) in enumerate(itertools.product(range(len(z)), repeat=2)):
            traces = []
            for k in (i, j):
                trace = z[k].extended([], Kind.CONTEXT)
                trace.logprob = np.where(trace.kind == Kind.THOUGHT, own[k], np.nan).astype(np.float32)
                trace.scores = {
                    "policy": Score(own[k], 0),
                    "reference": Score(reference[k], 0),
                    "helper": Score(helper[k], 0),
                    "teacher": Score(helper[k], 0),
                }
                traces.append(trace)
            groups.append(Group(TASK, traces, index=index))
        assert len(groups) == len(case.probability) ** 2
        return groups


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


def close(got: Tensor, exact: Tensor, tolerance: float = 2e-5) -> None:
    """Scores and weights are float32."""
    assert float((got - exact).norm() / exact.norm()) < tolerance


def objective(small: Small, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Gradient of a function of (log p(z|x), log p(y*|x,z)) over all thoughts."""
    return small.bed.gradient(value(small.case.listed.logp, small.case.listed.answer_logp))


def test_every_thought_is_listed_once(small: Small) -> None:
    case = small.case
    assert len({z.tobytes() for z in case.listed.thoughts}) == len(case.listed.thoughts) > TOP_K
    assert abs(case.probability.sum() - 1) < 1e-12
    assert any(len(z) < BUDGET for z in case.listed.thoughts) or len(case.listed.thoughts) == TOP_K**BUDGET


def test_bayes_identity_of_the_exact_posterior(small: Small) -> None:
    sums = np.array([l.sum() for l in small.case.ratio])
    assert np.abs(sums - (small.case.answer_logp - small.case.marginal)).max() < 1e-12
    # the expected log-ratio is minus a KL, and its exponential averages to 1
    p = small.case.probability
    posterior = p * np.exp(small.case.answer_logp - small.case.marginal)
    assert float(p @ sums) == pytest.approx(-float((p * np.log(p / posterior)).sum()), abs=1e-12)
    assert float(p @ np.exp(sums)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["w", "w_anchored_0", "w_anchored_0.5", "w_anchored_1"])
def test_w_is_unbiased_with_the_exact_posterior(small: Small, name: str) -> None:
    close(small.bed.expectation(small.case, RULES[name]), small.bed.exact(small.case), 1e-12)


def test_the_log_forms_aim_elsewhere(small: Small) -> None:
    """Sequence and return-to-go: at E log p(y*|x,z). Immediate: at neither."""
    jensen = objective(small, lambda z, y: (z.exp() * y.detach()).sum())
    for name in ("sequence", "return_to_go", "return_to_go_anchored"):
        close(small.bed.expectation(small.case, RULES[name]), jensen, 1e-12)
    exact = small.bed.exact(small.case)
    immediate = small.bed.expectation(small.case, RULES["immediate"])
    assert float((jensen - exact).norm() / exact.norm()) > 0.02
    assert float((immediate - exact).norm() / exact.norm()) > 0.02


def test_the_anchor_removes_the_bias_of_a_wrong_helper(small: Small) -> None:
    exact = small.bed.exact(small.case)
    for name in ("w", "w_anchored_0"):
        assert float((small.bed.expectation(small.learned, RULES[name]) - exact).norm() / exact.norm()) > 0.1
    close(small.bed.expectation(small.learned, RULES["w_anchored_1"]), exact, 1e-12)
    jensen = objective(small, lambda z, y: (z.exp() * y.detach()).sum())
    close(small.bed.expectation(small.learned, RULES["return_to_go_anchored"]), jensen, 1e-12)


def test_verifree_climbs_the_probability_of_the_answer(small: Small) -> None:
    exact = objective(small, lambda z, y: (z + y).exp().sum())
    close(small.expected(small.method("verifree", group_size=2)), exact)
    close(small.bed.expectation(small.case, BASELINES["verifree"]), small.bed.exact(small.case), 1e-12)


def test_verifree_normalised_points_along_the_gradient_of_log_p(small: Small) -> None:
    """With two thoughts the other one's likelihood is the divisor: right direction, scaled by E 1/p."""
    got = small.expected(small.method("verifree", group_size=2, normalise=True))
    exact = objective(small, lambda z, y: torch.logsumexp(z + y, 0))
    p, answer = small.case.probability, np.exp(small.case.answer_logp)
    scale = float(p @ (1 / answer)) * float(np.exp(small.case.marginal))
    close(got, scale * exact)


def test_jepo_single_climbs_jensens_bound(small: Small) -> None:
    exact = objective(small, lambda z, y: (z.exp() * y).sum())
    close(small.expected(small.method("jepo", group_size=2, bound="single")), exact)


def test_jepo_multi_climbs_the_bound_of_two(small: Small) -> None:
    def bound(z: Tensor, y: Tensor) -> Tensor:
        pair = torch.logaddexp(y[:, None], y[None, :]) - np.log(2)
        return ((z[:, None] + z[None, :]).exp() * pair).sum()

    close(small.expected(small.method("jepo", group_size=2, bound="multi")), objective(small, bound))


@pytest.mark.parametrize("exact_helper", [True, False])
def test_the_helper_anchored_climbs_whatever_its_helper_says(small: Small, exact_helper: bool) -> None:
    ratio = small.case.ratio if exact_helper else None
    options: dict[str, Any] = {"group_size": 2, "answer_weight": 0.0, "first_steps": 0, "refit": "never", "clip": None}
    jensen = objective(small, lambda z, y: (z.exp() * y.detach()).sum())
    close(small.expected(small.method("helper", credit="return_to_go", **options), ratio), jensen)
    w = small.expected(small.method("helper", credit="w", decay=1.0, **options), ratio)
    p, answer = small.case.probability, np.exp(small.case.answer_logp)
    scale = float(p @ (1 / answer)) * float(np.exp(small.case.marginal))
    close(w, scale * small.bed.exact(small.case))


def test_the_plain_helper_distils_the_posterior(small: Small) -> None:
    """Credit of the whole sequence, frozen denominator, exact q: E_p log(q / p_0), here with p_0 = another model."""
    method = small.method(
        "helper",
        group_size=2,
        credit="sequence",
        anchor=False,
        denominator="frozen",
        answer_weight=0.0,
        first_steps=0,
        refit="never",
        clip=None,
    )
    got = small.expected(method, small.case.ratio)
    frozen = torch.tensor(
        [
            float(np.nansum(np.where(t.kind == Kind.THOUGHT, s, np.nan)))
            for t, s in zip(
                small.case.listed.traces,
                score_traces(small.other, small.case.listed.traces, distribution=small.distribution),
                strict=True,
            )
        ],
        dtype=torch.float64,
    )
    log_q = small.case.listed.logp.detach() + torch.tensor([l.sum() for l in small.case.ratio])
    close(got, objective(small, lambda z, y: (z.exp() * (log_q - frozen)).sum()), 1e-4)


def test_kl_to_the_reference_is_the_exact_one(small: Small) -> None:
    """The same method with and without the penalty differ by minus beta times the gradient of KL(p || reference)."""
    plain = small.expected(small.method("jepo", group_size=2, bound="single"))
    held = small.expected(small.method("jepo", group_size=2, bound="single", kl_coef=0.3))
    z = small.case.listed.traces
    rows = score_traces(small.other, z, distribution=small.distribution)
    other = torch.tensor([float(r[t.kind == Kind.THOUGHT].sum()) for t, r in zip(z, rows, strict=True)]).double()
    kl = objective(small, lambda logp, y: (logp.exp() * (logp - other)).sum())
    close(plain - held, 0.3 * kl, 1e-4)


def trice_draws(small: Small) -> dict[str, Tensor]:
    return small.bed.sampled(small.case, {}, 400, 8, [5])


@pytest.mark.parametrize("spread", [0.3, 0.02])
def test_trice_is_unbiased_at_stationarity(tmp_path: Path, spread: float) -> None:
    """With and without its control variate, whether thoughts matter much or little."""
    small = Small(tmp_path, spread)
    exact = small.bed.exact(small.case)
    drawn = trice_draws(small)
    for name in ("trice", "trice_no_control"):
        error = (drawn[name].mean(0) - exact).norm()
        noise = (drawn[name].var(0).sum() / 400).sqrt()
        assert float(error) < 2.0 * float(noise)


def test_trices_control_variate_pays_where_proposals_are_accepted(tmp_path: Path) -> None:
    """Here nearly all are, since thoughts matter little. Where few are, it costs variance (docs/results.md)."""
    drawn = trice_draws(Small(tmp_path, 0.02))
    assert float(drawn["trice"].var(0).sum()) < 0.3 * float(drawn["trice_no_control"].var(0).sum())
