"""The family that learns written thoughts z ~ p(z|x) from good answers y* alone.

A method is a small choice: where z comes from (`draw`), how credit is shared among its tokens and how much the answer term counts
(`assign`), and which other roles read along. Everything else is here:

    draw: K thoughts, each with y* behind it ─► roles read (log p(y*|x,z), log p(z|x), ...) ─► assign ─► two terms

    "thought"     clipped policy gradient on sampled thoughts:   advantage x log p(z_t|x,z_<t)
    "likelihood"  weighted log-likelihood of given text:         weight x log p(y*|x,z), or of an imitated z

Both are divided by the number of groups, so that with `assign` unbiased for one x, the loss is for the mean over x.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt

from actors.types import Actors, Group, ProbePlan, SamplingParams
from algorithms import policy_gradient as pg
from algorithms.base import Algorithm, AlgorithmConfig
from algorithms.cuts import complete_cuts, cut_figures
from algorithms.helper_fit import bayes_gap
from algorithms.probing import of_kind
from algorithms.thoughts import HINT, Thoughts, answer_of, given_answer, likelihoods, progress, thought
from algorithms.token_credit import discounted, log_mean_exp
from envs.base import Task
from models.roles import RoleSpec
from models.terms import Batch, Forward, Term, detached
from models.trace import Kind, Trace


class PosteriorConfig(AlgorithmConfig):
    """Options that all methods of the family share."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    thought_tokens: PositiveInt | None = None
    """Longest thought, its marks included; by default sampling.max_tokens. A longer one is closed by force."""
    answer_weight: NonNegativeFloat = 1.0
    """Factor on the answer term, the gradient of log p(y*|x,z); 0 trains the thought alone."""
    kl_coef: NonNegativeFloat = 0.0
    """Strength of the KL to the reference over thoughts, as part of their reward; 0 uses none and loads none."""
    reference: str = "@policy"
    """Reference weights: a model path, or "@policy" for the policy's initial ones."""
    clip_low: NonNegativeFloat = 0.2
    """Ratios below 1 - clip_low are clipped."""
    clip_high: NonNegativeFloat = Field(0.28)
    """Ratios above 1 + clip_high are clipped."""
    hint: str = HINT
    """How a prompt shows an answer, to methods that think with the answer in sight."""


@dataclass
class Credit:
    """What one trace teaches. advantage: float[T], counts where z was sampled. weight: float[T], counts wherever it is not 0."""

    advantage: np.ndarray | None = None
    weight: np.ndarray | None = None


class PosteriorMethod(Algorithm):
    """Base of the family; one trainable role "policy", which reads every batch before credit is given."""

    Config: ClassVar[type[AlgorithmConfig]] = PosteriorConfig
    guide: ClassVar[str | None] = None
    """The role that sees y* and gives tokens their credit, where there is one; probes say how far it is from the posterior."""
    config: PosteriorConfig

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        roles = {"policy": RoleSpec(weights=self.context.model_path, trainable=True, scores=True)}
        if self.needs_reference:
            roles["reference"] = RoleSpec(weights=self.config.reference, trainable=False, scores=True)
        return roles

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_coef > 0

    @cached_property
    def thoughts(self) -> Thoughts:
        return Thoughts(self.context.tokenizer)

    @property
    def params(self) -> SamplingParams:
        """How a thought is sampled."""
        params = self.context.sampling
        return params.but(max_tokens=self.config.thought_tokens or params.max_tokens)

    # ---- what a method chooses ------------------------------------------------------------------------------------------

    async def draw(self, task: Task, actors: Actors) -> list[Trace]:
        """The traces of one task: by default K thoughts with y* behind each."""
        drawn = await self.thoughts.draw(task, actors, self.config.group_size, self.params)
        return [self.thoughts.given(trace, answer_of(task)) for trace in drawn]

    @abstractmethod
    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        """(credit of each live trace, metrics). The scores of all roles are there."""

    # ---- what all share -------------------------------------------------------------------------------------------------

    async def collect(self, task: Task, actors: Actors) -> Group:
        return Group(task=task, traces=await self.draw(task, actors))

    async def probe(self, tasks: Sequence[Task], actors: Sequence[Actors], plan: ProbePlan) -> list[Group]:
        """With completions of some cut thoughts, where a guide is to be judged by them."""
        groups = await super().probe(tasks, actors, plan)
        if self.guide:
            await complete_cuts(self.thoughts, tasks, actors, groups, plan.thoughts, self.context.sampling)
        return groups

    def diagnose(self, groups: Sequence[Group], each: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """With how far the guide is from the posterior on held-out tasks: whole thoughts (Bayes gap) and cut ones (w)."""
        figures = super().diagnose(groups, each)
        if self.guide is None:
            return figures
        own = [of_kind(group, "drawn") for group in groups]
        scores = [np.array([progress(t, self.guide).sum() for t in traces]) for traces in own]
        measured = {**bayes_gap(scores, [likelihoods(traces) for traces in own]), **cut_figures(groups, self.guide)}
        return {**figures, **{f"{self.guide}_{name}": value for name, value in measured.items()}}

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes "advantage" and "thought" (a mask), "weight" and "likelihood" (a mask), float32[T] each."""
        metrics: dict[str, list[float]] = {}
        for group in groups:
            for trace in group.traces:
                trace.weights.clear()
            live = group.live
            if not live:
                continue
            credits, figures = self.assign(group)
            for trace, credit in zip(live, credits, strict=True):
                self._write(trace, credit)
            for name, value in {**describe(live), **figures}.items():
                metrics.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in metrics.items()}

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        if role != "policy":
            raise TypeError(f"{type(self).__name__} does not train the role {role!r}")
        logprobs, terms = forward.logprobs_BT, {}
        if "thought" in batch.fields:
            advantage = batch["advantage"]
            log_ratio = pg.log_ratio(logprobs, batch["logprob"], batch["thought"] != 0)
            loss = pg.ppo_loss(log_ratio, advantage, self.config.clip_low, self.config.clip_high)
            terms["thought"] = Term(
                loss, "thought", "groups", detached({"ratio": log_ratio.exp(), "entropy": forward.entropy_BT})
            )
        if "likelihood" in batch.fields:
            terms["likelihood"] = Term(-batch["weight"] * logprobs, "likelihood", "groups")
        return terms

    def _write(self, trace: Trace, credit: Credit) -> None:
        sampled = trace.kind == Kind.THOUGHT
        if credit.advantage is not None:
            advantage = credit.advantage
            if self.config.kl_coef > 0:
                drift = np.where(sampled, _values(trace, "policy") - _values(trace, "reference"), 0.0)
                # score function of the whole KL: what a token leads to counts, not only its own term
                advantage = advantage - self.config.kl_coef / self.config.group_size * discounted(drift, 1.0)
            trace.weights["advantage"] = np.where(sampled, advantage, 0.0).astype(np.float32)
            trace.weights["thought"] = sampled.astype(np.float32)
        if credit.weight is not None and credit.weight.any():
            trace.weights["weight"] = credit.weight.astype(np.float32)
            trace.weights["likelihood"] = (credit.weight != 0).astype(np.float32)


def on_thought(trace: Trace, value: float) -> np.ndarray:
    """float64[T]: one number on every sampled token of the thought."""
    return np.where(trace.kind == Kind.THOUGHT, value, 0.0)


def on_answer(trace: Trace, value: float) -> np.ndarray:
    """float64[T]: one number on every token of y*."""
    return np.where(given_answer(trace), value, 0.0)


def describe(traces: Sequence[Trace]) -> dict[str, float]:
    """Figures of one task's traces that carry y*."""
    traces = [trace for trace in traces if given_answer(trace).any() and "policy" in trace.scores]
    if not traces:
        return {}
    log_K = likelihoods(traces)
    return {
        "logp/answer": log_mean_exp(log_K),
        "logp/answer_given_thought": float(log_K.mean()),
        "thought/length": float(np.mean([thought(trace).sum() for trace in traces])),
        "thought/closed": float(np.mean([bool(trace.meta.get("closed", True)) for trace in traces])),
        "thought/distinct": len({trace.token.tobytes() for trace in traces}) / len(traces),
    }


def _values(trace: Trace, role: str) -> np.ndarray:
    return np.nan_to_num(trace.scores[role].values.astype(np.float64))
