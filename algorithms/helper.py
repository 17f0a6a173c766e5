"""The posterior helper: a learned q(z|x,y*) tells which tokens of a thought the good answer asks for.

    stage 1   q, which begins as the policy, learns z from (x, y), on thoughts of the policy itself          (`first_steps`)
    stage 2   z ~ p(z|x), K a task; l_t = log q(z_t|x,y*,z_<t) - log p(z_t|x,z_<t) is a token's reward;
              `algorithms.token_credit` makes advantages of it; q stays as it is, or is fitted further (`refit`)

q reads the prompt that shows the answer (`hint`), then the thought. The plain method is credit: sequence, anchor: false, denominator:
frozen, refit: never and a kl_coef. With the moving denominator the reward already holds a KL of strength 1 to the policy's start: it is
distillation onto q, so kl_coef adds to it. Why w and the anchor are the default: docs/posterior-methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat

from actors.types import Actors, Group
from algorithms.base import AlgorithmConfig, Context
from algorithms.helper_fit import Fit, bayes_gap, log_variance_weights, wake_weights
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod, on_answer
from algorithms.thoughts import HINTED, answer_of, likelihoods, progress, reading_with_answer
from algorithms.token_credit import Rule, log_mean_exp, others_log_mean, token_advantages
from envs.base import Task
from models.roles import RoleSpec
from models.terms import Batch, Forward, Term
from models.trace import Kind, Trace

SLEEP = "sleep"
"""`Trace.meta`: the trace carries an answer of the model's own and teaches the helper only."""
SMOOTHING = 0.8
"""Of the Bayes gap, from batch to batch."""


class HelperConfig(PosteriorConfig):
    """Options of the posterior helper."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "helper"
    credit: Rule = "w"
    """How a thought's reward is shared: on all its tokens (sequence), from each token on (return_to_go), each its own
    (immediate), or by the steps of w_t = p(y*|x,z_<=t) / p(y*|x) (w)."""
    decay: float = Field(0.9, ge=0.0, le=1.0)
    """Of later steps of w in a token's advantage: 0 trusts the helper, 1 only the end (w)."""
    anchor: bool = True
    """Set the reward's sum to the exact log p(y*|x,z) - log p(y*|x); with credit return_to_go, or w and decay 1, no error of the helper
    then biases the gradient."""
    clip: PositiveFloat | None = 5.0
    """Bound on a token's |log q - log p|, in nats."""
    denominator: Literal["moving", "frozen"] = "moving"
    """What q is compared with: the policy as it is, or the reference (its start)."""
    first_steps: NonNegativeInt = 50
    """Steps in which only the helper learns."""
    fit: Fit = "mixed"
    """How the helper learns: likelihood (thoughts with the model's own answers), wake (y*, thoughts weighed by their likelihood),
    log_variance (y*), mixed (likelihood and log_variance)."""
    refit: Literal["never", "always", "gap"] = "gap"
    """When it learns on in stage 2: never (frozen), always, or while its Bayes gap is above `refit_gap`."""
    refit_gap: PositiveFloat = 0.5
    """Bayes gap in nats, averaged over batches, above which the helper learns on."""
    helper_lr: PositiveFloat | None = None
    """Learning rate of the helper; null for the run's."""


class Helper(PosteriorMethod):
    """Policy gradient with token credit from a learned posterior; trainable roles "policy" and "helper"."""

    Config: ClassVar[type[AlgorithmConfig]] = HelperConfig
    guide = "helper"
    config: HelperConfig

    def __init__(self, config: HelperConfig, context: Context) -> None:
        super().__init__(config, context)
        self.batches = 0
        self.gap: float | None = None
        self.age = 0  # versions of the policy since the helper learnt

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        own = {} if self.config.helper_lr is None else {"lr": self.config.helper_lr}
        spec = RoleSpec("@policy", trainable=True, scores=True, template=reading_with_answer, optimiser=own)
        return {**super().roles, "helper": spec}

    @property
    def needs_reference(self) -> bool:
        return super().needs_reference or self.config.denominator == "frozen"

    @property
    def first_stage(self) -> bool:
        return self.batches < self.config.first_steps

    @property
    def fitting(self) -> bool:
        """Whether the helper learns from the next batch."""
        c = self.config
        if self.first_stage or c.refit == "always":
            return True
        return c.refit == "gap" and self.gap is not None and self.gap > c.refit_gap

    async def draw(self, task: Task, actors: Actors) -> list[Trace]:
        """K thoughts with y*; while the helper learns from the model's own answers, the same thoughts with those too."""
        drawn = await self.thoughts.draw(task, actors, self.config.group_size, self.params)
        shown = self.thoughts.hinted_ids(task.prompt, self.config.hint, answer_of(task))
        out = [self.thoughts.given(trace, answer_of(task)) for trace in drawn]
        for trace in out:
            trace.meta[HINTED] = shown
        if self.fitting and self.config.fit in ("likelihood", "mixed"):
            for trace in await self.thoughts.answer(drawn, actors, self.params):
                said = self.thoughts.text(trace)
                own = replace(trace, episode=f"{trace.episode}/own", meta={**trace.meta, SLEEP: True})
                own.meta[HINTED] = self.thoughts.hinted_ids(task.prompt, self.config.hint, said)
                out.append(own)
        return out

    def to_read(self, role: str, groups: Sequence[Group]) -> list[Trace]:
        return [trace for trace in super().to_read(role, groups) if not trace.meta.get(SLEEP)]

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Of thoughts with y* as the family does, but for stage 1; and "fit" (a mask) with "fit_weight" for the helper."""
        awake = [replace(g, traces=[t for t in g.traces if not t.meta.get(SLEEP)]) for g in groups]
        metrics = super().credit(awake)
        scores = [np.array([progress(t, "helper").sum() for t in g.live]) for g in awake]
        measured = bayes_gap(scores, [likelihoods(g.live) for g in awake])
        fitting, first = self.fitting, self.first_stage
        for group, whole in zip(awake, groups, strict=True):
            for trace in whole.traces:
                if trace.meta.get(SLEEP) or first:
                    trace.weights.clear()
            if fitting:
                self._fit(group.live, [t for t in whole.live if t.meta.get(SLEEP)])
        if "bayes_gap" in measured:
            gap = measured["bayes_gap"]
            self.gap = gap if self.gap is None else SMOOTHING * self.gap + (1 - SMOOTHING) * gap
        self.batches += 1
        self.age = 0 if fitting else self.age + 1
        shared = {f"helper/{name}": value for name, value in measured.items()}
        return {
            **metrics,
            **shared,
            "helper/fitting": float(fitting),
            "helper/age": float(self.age),
            "helper/first_stage": float(first),
        }

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        c, traces = self.config, group.live
        log_K, n = likelihoods(traces), len(traces)
        marginal_K = others_log_mean(log_K)
        prior = "policy" if c.denominator == "moving" else "reference"
        credits, rewards = [], []
        for trace, log, marginal in zip(traces, log_K, marginal_K, strict=True):
            ratio = progress(trace, "helper", prior)
            end = float(log - marginal)
            ceiling = float(np.exp(min(-marginal, 50.0)))
            advantage = np.zeros(len(trace))
            advantage[trace.kind == Kind.THOUGHT] = (
                token_advantages(
                    c.credit, ratio, end if c.anchor else None, decay=c.decay, ceiling=ceiling, clip=c.clip
                )
                / n
            )
            credits.append(Credit(advantage, on_answer(trace, c.answer_weight * np.exp(log - log_mean_exp(log_K)) / n)))
            rewards.append(float(ratio.sum()))
        return credits, {"reward/mean": float(np.mean(rewards))}

    def trains(self, role: str, trace: Trace) -> bool:
        return ("fit" if role == "helper" else "thought") in trace.weights

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        if role != "helper":
            return super().terms(role, forward, batch)
        return {"fit": Term(-batch["fit_weight"] * forward.logprobs_BT, "fit", "groups")}

    def state(self) -> dict[str, Any]:
        return {"batches": self.batches, "gap": self.gap, "age": self.age}

    def load(self, state: dict[str, Any]) -> None:
        self.batches, self.gap, self.age = state["batches"], state["gap"], state["age"]

    def _fit(self, awake: Sequence[Trace], asleep: Sequence[Trace]) -> None:
        """Write the helper's weights on the traces of one task."""
        c, log_K = self.config, likelihoods(awake)
        if c.fit in ("log_variance", "mixed"):
            difference = np.array([progress(trace, "helper").sum() for trace in awake]) - log_K
            weights = log_variance_weights(difference)
        elif c.fit == "wake":
            weights = wake_weights(log_K)
        else:
            weights = None
        if weights is not None:
            for trace, weight in zip(awake, weights, strict=True):
                _write_fit(trace, float(weight))
        for trace in asleep:
            _write_fit(trace, 1.0 / len(asleep))


def _write_fit(trace: Trace, weight: float) -> None:
    sampled = trace.kind == Kind.THOUGHT
    trace.weights["fit"] = sampled.astype(np.float32)
    trace.weights["fit_weight"] = np.where(sampled, weight, 0.0).astype(np.float32)
