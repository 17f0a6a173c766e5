"""Estimators of the gradient of log p(y*|x) beside the exact one, on prompts whose thoughts can all be listed.

What is compared is the gradient that reaches the model through the thought; the reader p(y*|x,z) is held fixed. An estimator is a rule that
gives every token of every sampled thought a coefficient: g = sum_k sum_t c_kt grad log p(z_kt|x,z_k<t).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.thoughts import HINTED, Thoughts, reading_with_answer
from algorithms.token_credit import Rule, leave_one_out, log_mean_exp, others_log_mean, token_advantages
from algorithms.trice import chain_weights
from envs.base import Task
from models.enumeration import Enumeration, enumerate_thoughts, list_thoughts, read_thoughts
from models.forward import Distribution, ModelForward, collate, make_view
from models.loading import RoleModel
from models.trace import Kind, Trace


@dataclass
class Case:
    """One prompt with everything that is known about it. ratio: l_t of every thought, of the helper in question."""

    listed: Enumeration
    probability: np.ndarray
    answer_logp: np.ndarray
    marginal: float
    ratio: list[np.ndarray]


Coefficients = Callable[[Case, np.ndarray, np.random.Generator], list[np.ndarray]]
"""(case, int[K] indices of thoughts drawn from p(z|x), luck) -> float64[n] for each, 1/K included."""


def rule(name: Rule, anchor: bool, decay: float = 0.0) -> Coefficients:
    """Token credit from a helper, with the exact log p(y*|x)."""

    def give(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> list[np.ndarray]:
        ends = case.answer_logp[drawn] - case.marginal
        ratios = [case.ratio[i] for i in drawn]
        return [
            token_advantages(name, r, float(e) if anchor else None, decay=decay) / len(drawn)
            for r, e in zip(ratios, ends, strict=True)
        ]

    return give


def by_sequence(value: Callable[[Case, np.ndarray, np.random.Generator], np.ndarray]) -> Coefficients:
    """One number a thought, on all of its tokens."""

    def give(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> list[np.ndarray]:
        numbers = value(case, drawn, luck)
        return [np.full(len(case.listed.thoughts[i]), v) for i, v in zip(drawn, numbers, strict=True)]

    return give


def _rlvr(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    right = luck.random(len(drawn)) < np.exp(case.answer_logp[drawn])
    return (right / np.exp(case.marginal) - 1.0) / len(drawn)


def _verifree(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    return (np.exp(case.answer_logp[drawn] - case.marginal) - 1.0) / len(drawn)


def _jepo_single(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    mean = float(case.probability @ case.answer_logp)
    return (case.answer_logp[drawn] - mean) / len(drawn)


def _jepo_multi(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    log_K = case.answer_logp[drawn]
    return log_mean_exp(log_K) - others_log_mean(log_K)


def _star(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    right = luck.random(len(drawn)) < np.exp(case.answer_logp[drawn])
    return right / max(right.sum(), 1)


def _verifree_sampled(case: Case, drawn: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    return leave_one_out(np.exp(case.answer_logp[drawn])) / np.exp(case.marginal) / len(drawn)


def trice(case: Case, drawn: np.ndarray, luck: np.random.Generator, *, control: bool = True) -> tuple[Any, Any]:
    """(indices, coefficients) of K chains at stationarity: the memories are drawn from the exact posterior."""
    posterior = case.probability * np.exp(case.answer_logp - case.marginal)
    memory = luck.choice(len(posterior), len(drawn), p=posterior / posterior.sum())
    accepted = np.log(luck.random(len(drawn))) < case.answer_logp[drawn] - case.answer_logp[memory]
    weights = chain_weights(accepted, np.ones(len(drawn), bool), control) / len(drawn)
    where = np.concatenate([memory, drawn])
    return where, [np.full(len(case.listed.thoughts[i]), w) for i, w in zip(where, weights.T.ravel(), strict=True)]


BASELINES: dict[str, Coefficients] = {
    "rlvr": by_sequence(_rlvr),
    "verifree": by_sequence(_verifree),
    "jepo_single": by_sequence(_jepo_single),
}
"""With a perfect baseline, which no method has; and unbiased, or not, one thought at a time."""
GROUPED: dict[str, Coefficients] = {
    "jepo_multi": by_sequence(_jepo_multi),
    "verifree_leave_one_out": by_sequence(_verifree_sampled),
    "star": by_sequence(_star),
}
"""Of a group of thoughts."""
RULES: dict[str, Coefficients] = {
    "sequence": rule("sequence", False),
    "return_to_go": rule("return_to_go", False),
    "immediate": rule("immediate", False),
    "w": rule("w", False),
    "return_to_go_anchored": rule("return_to_go", True),
    "w_anchored_0": rule("w", True, 0.0),
    "w_anchored_0.5": rule("w", True, 0.5),
    "w_anchored_0.9": rule("w", True, 0.9),
    "w_anchored_1": rule("w", True, 1.0),
}
"""Of a helper, exact or learned."""


class Testbed:
    """A model, a tokenizer's thoughts, and how they are drawn. model: of dtype float64."""

    __test__ = False

    def __init__(self, model: RoleModel, tokenizer: Any, distribution: Distribution, budget: int, hint: str) -> None:
        self.model, self.distribution, self.budget, self.hint = model.eval(), distribution, budget, hint
        self.thoughts = Thoughts(tokenizer)
        self.parameters = [p for p in model.base.parameters() if p.requires_grad]

    def case(self, task: Task, helper: RoleModel | None = None) -> Case:
        """helper: a learned one; None takes the exact posterior."""
        context = self.thoughts.chat.prompt_ids(task.prompt)
        ends = (self.thoughts.close, self.thoughts.end)
        found = list_thoughts(self.model, context, self.budget, ends, self.distribution)
        listed = enumerate_thoughts(self.model, found, partial(self.trace, task, context), self.distribution)
        probability = listed.logp.detach().exp().numpy()
        ratio = listed.posterior_ratio() if helper is None else self.learned_ratio(helper, listed)
        return Case(listed, probability, listed.answer_logp.detach().numpy(), float(listed.marginal.detach()), ratio)

    def trace(self, task: Task, context: np.ndarray, z: np.ndarray) -> Trace:
        """A thought as if it had been sampled, y* behind it."""
        stem = Trace.from_target(context, [], task.id).extended(z, Kind.THOUGHT, np.zeros(len(z), np.float32))
        if len(z) == 0 or z[-1] != self.thoughts.close:
            stem = stem.extended([self.thoughts.close], Kind.CONTEXT)
        out = self.thoughts.given(stem, str(task.answer))
        out.meta[HINTED] = self.thoughts.hinted_ids(task.prompt, self.hint, str(task.answer))
        return out

    @torch.no_grad()
    def learned_ratio(self, helper: RoleModel, listed: Enumeration) -> list[np.ndarray]:
        """l_t of a learned helper."""
        views = [make_view(trace, reading_with_answer) for trace in listed.traces]
        batch = collate(listed.traces, views)
        logprobs = ModelForward(helper, batch, Distribution(self.distribution.temperature)).logprobs_BT.numpy()
        out = []
        for z, row, view, own in zip(listed.thoughts, logprobs, views, listed.token_logp.detach().numpy(), strict=True):
            out.append(row[: len(view)][-len(z) :] - own[: len(z)])
        return out

    def gradient(self, value: Tensor) -> Tensor:
        """float64[P]: of a scalar by all parameters, flat."""
        grads = torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).ravel() for p, g in zip(self.parameters, grads, strict=True)]
        )

    def exact(self, case: Case) -> Tensor:
        """The gradient of log p(y*|x) through the thought."""
        return self.gradient(torch.logsumexp(case.listed.logp + case.listed.answer_logp.detach(), 0))

    def expectation(self, case: Case, give: Coefficients) -> Tensor:
        """Of an estimator whose coefficients depend on its own thought only, by enumeration (one thought a group)."""
        every = np.arange(len(case.listed.thoughts))
        luck = np.random.default_rng(0)
        coefficients = [give(case, every[i : i + 1], luck)[0] for i in every]
        return self.gradient((self._padded(case, every, coefficients, case.probability) * case.listed.token_logp).sum())

    def sampled(
        self, case: Case, rules: dict[str, Coefficients], groups: int, size: int, seed: Sequence[int]
    ) -> dict[str, Tensor]:
        """float64[G, P]: so many draws of each estimator, on the same thoughts."""
        luck = np.random.default_rng(seed)
        out: dict[str, list[Tensor]] = {name: [] for name in [*rules, "trice", "trice_no_control"]}
        for _ in range(groups):
            drawn = luck.choice(len(case.probability), size, p=case.probability / case.probability.sum())
            chains = {
                name: trice(case, drawn, np.random.default_rng([*seed, int(luck.integers(2**31))]), control=on)
                for name, on in (("trice", True), ("trice_no_control", False))
            }
            read = np.unique(np.concatenate([drawn, *(where for where, _ in chains.values())]))
            place = {int(i): k for k, i in enumerate(read)}
            token_logp, _ = read_thoughts(self.model, [case.listed.traces[i] for i in read], self.distribution)
            for name in out:
                where, given = chains[name] if name in chains else (drawn, rules[name](case, drawn, luck))
                total = torch.zeros_like(token_logp)
                for i, c in zip(where, given, strict=True):
                    total[place[int(i)], : len(c)] += torch.from_numpy(c)
                out[name].append(self.gradient((total * token_logp).sum()))
        return {name: torch.stack(values) for name, values in out.items()}

    @staticmethod
    def _padded(case: Case, rows: np.ndarray, coefficients: Sequence[np.ndarray], weight: np.ndarray) -> Tensor:
        out = torch.zeros_like(case.listed.token_logp)
        for i, c in zip(rows, coefficients, strict=True):
            out[i, : len(c)] = torch.from_numpy(c * weight[i])
        return out
