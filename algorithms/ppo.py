"""PPO: policy gradient with a learned value of every state (Schulman et al. 2017, arXiv 1707.06347).

    V(s_t) ◄─ critic reads the trace;  s_t is what stands before a sampled decision t: prompt, thoughts, observations
    r_t    ◄─ what was earned from t to the next decision, minus kl_coef x (log pi - log reference) of t        (kl_in: reward)
    A_t    ◄─ generalised advantages over all decisions of an episode, its turns one after another
    losses    clipped ratio x A on the policy; clipped squared error of V to A + V on the critic

A decision is an emitted token, or a sampled choice to think on or to stop; latents between them are part of the state, so the same code
serves token, multi-turn and latent agents. An episode that the environment ended has nothing behind it; one that was cut (`Trace.meta` CUT)
is worth what the critic says of its last state. An answer cut by sampling.max_tokens was graded as it stands and has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from actors.types import CUT, Group
from algorithms import policy_gradient as pg
from algorithms.base import Algorithm, AlgorithmConfig, Context
from algorithms.episodes import Episode, live_episodes, reward_metrics
from algorithms.gae import KLController, RunningScale, explained_variance, gae, value_loss, whitened
from models.roles import RoleSpec
from models.terms import Batch, Forward, Term, detached
from models.trace import Trace


class PPOConfig(AlgorithmConfig):
    """Options of PPO. Several passes over a batch: train.epochs and train.minibatches."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "ppo"
    group_size: PositiveInt = 1
    """Episodes of each task; the critic is the baseline, so one is enough."""
    discount: float = Field(1.0, gt=0.0, le=1.0)
    """Discount from one decision to the next (gamma)."""
    gae_lambda: float = Field(0.95, ge=0.0, le=1.0)
    """How far ahead advantages trust rewards rather than values; 1 is returns minus values."""
    clip_low: NonNegativeFloat = 0.2
    """Ratios below 1 - clip_low are clipped."""
    clip_high: NonNegativeFloat = 0.2
    """Ratios above 1 + clip_high are clipped."""
    critic: Literal["own", "shared"] = "own"
    """A model of its own for values, or a second head on the policy."""
    critic_weights: str = "@policy"
    """Where the critic of its own begins: a model path, or "@policy"."""
    critic_lr: PositiveFloat | None = None
    """Learning rate of the critic of its own; null for the run's."""
    value_coef: NonNegativeFloat = 0.5
    """Factor on the value loss where the trunk is shared."""
    value_clip: PositiveFloat | None = 0.2
    """How far a value may move from the batch's first one before its loss stops rewarding it, in standard deviations of the returns
    (with normalise_values); null for no bound."""
    normalise_values: bool = True
    """The critic learns returns in units of their running mean and standard deviation."""
    whiten_advantages: bool = True
    """Scale a batch's advantages to mean 0 and standard deviation 1."""
    whiten_rewards: bool = False
    """Divide the rewards of decisions by their batch's standard deviation."""
    kl_coef: NonNegativeFloat = 0.0
    """Strength of the KL penalty to the reference model; 0 uses none and loads none."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty enters: token by token in the reward, or as a k3 loss."""
    kl_target: PositiveFloat | None = None
    """KL of an episode in nats that kl_coef is steered to; null keeps kl_coef fixed."""
    kl_horizon: PositiveFloat = 10_000.0
    """Episodes over which kl_coef follows kl_target; smaller is faster."""
    reference: str = "@policy"
    """Reference weights: a model path, or "@policy" for the policy's initial ones."""
    entropy_coef: NonNegativeFloat = 0.0
    """Entropy bonus per token, in nats."""
    shuffle_rewards: bool = False
    """Control: permute the episodes' rewards over the whole batch, so that nothing can be learnt from them."""

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0 to begin with")
        if self.critic == "shared" and (self.critic_weights, self.critic_lr) != ("@policy", None):
            raise ValueError("critic: shared has no weights and no learning rate of its own")
        return self


class PPO(Algorithm):
    """Trainable roles "policy" and "critic" (or a policy with a value head), and a frozen "reference" where a KL is asked for."""

    Config: ClassVar[type[AlgorithmConfig]] = PPOConfig
    config: PPOConfig

    def __init__(self, config: PPOConfig, context: Context) -> None:
        super().__init__(config, context)
        self.scale = RunningScale()
        self.kl = KLController(config.kl_coef, config.kl_target, config.kl_horizon)

    @property
    def shared(self) -> bool:
        return self.config.critic == "shared"

    @property
    def values(self) -> str:
        """Where the values stand in `Trace.scores`."""
        return "policy/value" if self.shared else "critic"

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        c = self.config
        roles = {
            "policy": RoleSpec(
                self.context.model_path, trainable=True, scores=self.shared, head="lm+value" if self.shared else "lm"
            )
        }
        if not self.shared:
            own = {} if c.critic_lr is None else {"lr": c.critic_lr}
            roles["critic"] = RoleSpec(c.critic_weights, trainable=True, scores=True, head="value", optimiser=own)
        if c.kl_coef > 0:
            roles["reference"] = RoleSpec(c.reference, trainable=False, scores=True)
        return roles

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes on every live trace, float32[T] each: "advantage" and "policy" (a mask) at sampled decisions; one position earlier, where
        the state before them was read, "return" (in the critic's unit), "old_value" (its output) and "value" (a mask)."""
        c = self.config
        episodes = [episode for place, group in enumerate(groups) for episode in live_episodes(group, place)]
        metrics = reward_metrics(groups, episodes)
        for trace in (trace for group in groups for trace in group.traces):
            trace.weights.clear()
        # an episode that was cut before its first decision has nothing to learn from
        episodes = [episode for episode in episodes if any(trace.sampled.any() for trace in episode.traces)]
        if not episodes:
            return metrics
        rewards = [_rewards(episode) for episode in episodes]
        if c.shuffle_rewards:
            totals = pg.shuffled(np.array([r.sum() for r in rewards]), self.context.seed, [g.index for g in groups])
            rewards = [np.append(np.zeros(len(r) - 1), total) for r, total in zip(rewards, totals, strict=True)]
        if c.kl_coef > 0:
            drift = [_at_decisions(episode, _log_ratio) for episode in episodes]
            kl = float(np.mean([d.sum() for d in drift]))
            metrics |= {"kl/reference": kl, "kl/coef": self.kl.coef}
            if c.kl_in == "reward":
                rewards = [r - self.kl.coef * d for r, d in zip(rewards, drift, strict=True)]
            self.kl.update(kl, len(episodes))
        if c.whiten_rewards:
            flat = whitened(np.concatenate(rewards), centre=False)
            rewards = np.split(flat, np.cumsum([len(r) for r in rewards])[:-1])

        raw = [_at_decisions(episode, self._before) for episode in episodes]
        last = [self._last(episode) for episode in episodes]
        found = [
            gae(reward, self.scale.restore(value), end, c.discount, c.gae_lambda)
            for reward, value, end in zip(rewards, raw, last, strict=True)
        ]
        advantages, returns = (np.concatenate(parts) for parts in zip(*found, strict=True))
        metrics |= {
            "value/explained": explained_variance(self.scale.restore(np.concatenate(raw)), returns),
            "value/mean": float(self.scale.restore(np.concatenate(raw)).mean()),
            "return/mean": float(returns.mean()),
            "advantage/abs": float(np.abs(advantages).mean()),
        }
        if c.normalise_values:
            self.scale.update(returns)
        if c.whiten_advantages:
            advantages = whitened(advantages)
        # what the critic put out: the clip bounds how far its output moves, whatever unit it is read in
        old = np.concatenate(raw)
        at = 0
        for trace in (trace for episode in episodes for trace in episode.traces):
            n = int(trace.sampled.sum())
            _write(trace, advantages[at : at + n], self.scale.normalise(returns[at : at + n]), old[at : at + n])
            at += n
        return metrics

    def trains(self, role: str, trace: Trace) -> bool:
        return "policy" in trace.weights

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        c = self.config
        if role == "critic":
            return {"value": self._value(forward, batch, 1.0)}
        if role != "policy":
            raise TypeError(f"PPO trains the roles 'policy' and 'critic', not {role!r}")
        mask, advantage, logprobs = batch["policy"] != 0, batch["advantage"], forward.logprobs_BT
        ratio = pg.log_ratio(logprobs, batch["logprob"], mask)
        metrics = {
            "ratio": ratio.exp(),
            "approx_kl": pg.kl_estimate("k3", -ratio),
            "entropy": forward.entropy_BT,
            "clip_fraction": pg.clipped(ratio, advantage, c.clip_low, c.clip_high),
        }
        loss = pg.ppo_loss(ratio, advantage, c.clip_low, c.clip_high)
        terms = {"policy": Term(loss, "policy", "positions", detached(metrics))}
        if c.kl_coef > 0 and c.kl_in == "loss":
            kl = pg.kl_estimate("k3", pg.log_ratio(logprobs, batch["score/reference"], mask))
            terms["kl"] = Term(self.kl.coef * kl, "policy", "positions", detached({"kl_reference": kl}))
        if c.entropy_coef > 0:
            terms["entropy"] = Term(-c.entropy_coef * forward.entropy_BT, "policy", "positions")
        if self.shared:
            terms["value"] = self._value(forward, batch, c.value_coef)
        return terms

    def state(self) -> dict[str, Any]:
        return {"scale": vars(self.scale).copy(), "kl_coef": self.kl.coef}

    def load(self, state: dict[str, Any]) -> None:
        self.scale, self.kl.coef = RunningScale(**state["scale"]), state["kl_coef"]

    def _value(self, forward: Forward, batch: Batch, factor: float) -> Term:
        loss = value_loss(forward.values_BT, batch["return"], batch["old_value"], self.config.value_clip)
        return Term(factor * loss, "value", "positions")

    def _before(self, trace: Trace) -> np.ndarray:
        """float[T]: at each position the critic's value of the state before it. Raises ValueError if it read too little."""
        values = trace.scores[self.values].values if self.values in trace.scores else np.full(len(trace), np.nan)
        before = np.append(np.nan, values[:-1])
        if not np.isfinite(before[trace.sampled]).all():
            raise ValueError(f"trace {trace.episode}: the critic has not read the states before all of its decisions")
        return before

    def _last(self, episode: Episode) -> float:
        """Value of what stands behind the episode: 0 where it ended, the critic's word where it was cut."""
        trace = episode.traces[-1]
        if not trace.meta.get(CUT):
            return 0.0
        return float(self.scale.restore(trace.scores[self.values].values[-1:])[0])


def _at_decisions(episode: Episode, values: Any) -> np.ndarray:
    """float64[N]: `values(trace)` at the decisions of the episode, in order."""
    return np.concatenate([np.asarray(values(trace), np.float64)[trace.sampled] for trace in episode.traces])


def _log_ratio(trace: Trace) -> np.ndarray:
    return trace.logprob - trace.scores["reference"].values


def _rewards(episode: Episode) -> np.ndarray:
    """float64[N]: what was earned from each decision to the next."""
    reward = np.concatenate([trace.reward for trace in episode.traces]).astype(np.float64)
    starts = np.flatnonzero(np.concatenate([trace.sampled for trace in episode.traces]))
    earned = np.add.reduceat(reward, starts)
    earned[0] += reward[: starts[0]].sum()
    return earned


def _write(trace: Trace, advantage: np.ndarray, target: np.ndarray, old: np.ndarray) -> None:
    at = np.flatnonzero(trace.sampled)
    if not len(at):
        return
    for name, where, values in (
        ("advantage", at, advantage),
        ("policy", at, 1.0),
        ("return", at - 1, target),
        ("old_value", at - 1, old),
        ("value", at - 1, 1.0),
    ):
        field = np.zeros(len(trace), np.float32)
        field[where] = values
        trace.weights[name] = field
