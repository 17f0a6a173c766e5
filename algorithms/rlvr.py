"""RLVR: policy gradient on sampled decisions, graded by a verifier.

    rewards by turn ── overlong penalty ── shuffle control ── KL in reward ──► returns ──► advantages ──► Trace.weights

`credit` writes two fields on every trace: "advantage" and "policy", the weight of each position in the loss. They are
apart because a position whose advantage is 0 still counts in the denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from actors.types import Actors, Group
from algorithms import policy_gradient as pg
from algorithms.base import Algorithm, AlgorithmConfig, Context
from algorithms.episodes import Episode, live_episodes, reward_metrics
from envs.base import Task
from models.roles import RoleSpec
from models.terms import Batch, Forward, Term, detached
from models.trace import Trace

PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"estimator": "grpo", "loss": "ppo", "aggregation": "sequence", "clip_low": 0.2, "clip_high": 0.2},
    "dr_grpo": {"estimator": "dr_grpo", "loss": "ppo", "aggregation": "constant", "clip_low": 0.2, "clip_high": 0.2},
    "rloo": {"estimator": "rloo", "loss": "ppo", "aggregation": "constant", "clip_low": 0.2, "clip_high": 0.2},
    "reinforce++": {
        "estimator": "reinforce++",
        "aggregation": "token",
        "clip_high": 0.2,
        "kl_in": "reward",
        "kl": "k1",
    },
    "dapo": {"estimator": "grpo", "aggregation": "token", "clip_low": 0.2, "clip_high": 0.28}
    | {"dynamic_sampling": True, "overlong_share": 0.2},
    "gspo": {"estimator": "grpo", "loss": "gspo", "aggregation": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"estimator": "grpo", "loss": "cispo", "aggregation": "token", "clip_low": 1.0, "clip_high": 4.0},
}
"""Published settings by name. None switches a KL penalty on: that is `kl_coef`."""


class RLVRConfig(AlgorithmConfig):
    """Options of RLVR."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "rlvr"
    preset: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "dapo", "gspo", "cispo"] | None = None
    """One word for a published set of the options below; options given beside it win."""
    estimator: pg.Estimator = "grpo"
    """Advantage: grpo (group mean, std), dr_grpo (group mean), rloo (leave one out), reinforce (batch mean),
    reinforce++ (batch mean, std), reinforce++_baseline (group mean, batch std)."""
    credit_by: Literal["episode", "turn"] = "episode"
    """What a decision is credited with: the episode's whole reward, or what was earned from its own turn on."""
    discount: float = Field(1.0, gt=0.0, le=1.0)
    """Discount from one turn to the next (credit_by: turn)."""
    branches: PositiveInt = 1
    """Of so many episodes of a group one is played from the start, and the others go on from a random turn of it, from a snapshot of the
    environment; with credit_by: turn they are compared there with each other. 1 plays all from the start."""
    loss: Literal["ppo", "gspo", "cispo", "reinforce"] = "ppo"
    """ppo: clipped ratio by token; gspo: by sequence; cispo: clipped weight without gradient; reinforce: no ratio."""
    clip_low: NonNegativeFloat = 0.2
    """Ratios below 1 - clip_low are clipped; 1 sets no lower bound."""
    clip_high: NonNegativeFloat = 0.28
    """Ratios above 1 + clip_high are clipped."""
    aggregation: pg.Aggregation = "token"
    """What counts alike in the mean: token (every token), sequence (every trace), constant (traces, by the sum of their
    tokens over length_constant)."""
    length_constant: PositiveFloat | None = None
    """Divisor of aggregation constant, in tokens; by default sampling.max_tokens."""
    old_logprobs: Literal["sampler", "learner"] = "sampler"
    """Denominator of the ratio: the sampler's log-probs (the ratio then corrects for staleness and mismatch too), or
    the learner's own at the start of the batch."""
    tis_cap: PositiveFloat | None = None
    """Truncated importance sampling: weigh tokens by min(tis_cap, learner / sampler), with old_logprobs: learner; 2 is
    usual."""
    kl_coef: NonNegativeFloat = 0.0
    """Strength of the KL penalty to the reference model; 0 uses none and loads none."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the penalty enters."""
    kl: pg.KL = "k3"
    """Estimator: k1, k2 or k3. In the loss k1 has no expected gradient on policy; in the reward it is the usual one."""
    reference: str = "@policy"
    """Reference weights: a model path, or "@policy" for the policy's initial ones."""
    entropy_coef: NonNegativeFloat = 0.0
    """Entropy bonus per token, in nats."""
    dynamic_sampling: bool = False
    """Refuse groups whose rewards are all equal, and sample others in their place (DAPO)."""
    overlong_share: float = Field(0.0, ge=0.0, le=1.0)
    """Last share of sampling.max_tokens in which a turn's length is penalised, up to overlong_penalty; 0 never."""
    overlong_penalty: NonNegativeFloat = 1.0
    """Reward lost by a turn that fills sampling.max_tokens."""
    mask_truncated: bool = False
    """Train on no trace that a length limit cut; its reward still counts in the baseline (DAPO, overlong filtering)."""
    shuffle_rewards: bool = False
    """Control: permute the rewards over the whole batch, so that nothing can be learnt from them."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("preset"), str):
            return {**PRESETS.get(given["preset"], {}), **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> RLVRConfig:
        if self.tis_cap is not None and self.old_logprobs == "sampler":
            raise ValueError("tis_cap needs old_logprobs: learner (with the sampler's, the ratio corrects already)")
        if self.loss == "gspo" and self.aggregation != "sequence":
            raise ValueError("loss: gspo is an objective of whole sequences and needs aggregation: sequence")
        if self.group_size % self.branches:
            raise ValueError(f"group_size {self.group_size} cannot be dealt into families of {self.branches} branches")
        if self.discount != 1.0 and self.credit_by == "episode":
            raise ValueError("discount needs credit_by: turn")
        return self


class RLVR(Algorithm):
    """Policy gradient from grades; one trainable role, "policy", and a frozen "reference" where a KL is asked for."""

    Config: ClassVar[type[AlgorithmConfig]] = RLVRConfig
    config: RLVRConfig

    def __init__(self, config: RLVRConfig, context: Context) -> None:
        super().__init__(config, context)

    @property
    def rescored(self) -> bool:
        """Whether the learner's log-probs at the start of a batch must be kept: they move once it is updated."""
        return self.config.old_logprobs == "learner" and self.context.updates_per_batch > 1

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        roles = {"policy": RoleSpec(weights=self.context.model_path, trainable=True, scores=self.rescored)}
        if self.config.kl_coef > 0:
            roles["reference"] = RoleSpec(weights=self.config.reference, trainable=False, scores=True)
        return roles

    async def collect(self, task: Task, actors: Actors) -> Group:
        c = self.config
        return Group(task=task, traces=await actors.rollout(task, c.group_size, branches=c.branches))

    def keep(self, group: Group) -> bool:
        if not self.config.dynamic_sampling:
            return True
        return len({episode.total_reward for episode in live_episodes(group)}) > 1

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes "advantage" and "policy" (float32[T]) on every trace that is not masked."""
        c = self.config
        episodes = [episode for place, group in enumerate(groups) for episode in live_episodes(group, place)]
        metrics = reward_metrics(groups, episodes)
        for trace in (trace for group in groups for trace in group.traces):
            trace.weights.pop("advantage", None)
            trace.weights.pop("policy", None)
        if not episodes:
            return metrics
        self._check_scores(episodes)

        turns = max(episode.turns for episode in episodes)
        rewards_EK = np.stack([e.by_turn([t.reward for t in e.traces], turns) for e in episodes])
        if c.overlong_share > 0:
            limit = self.context.sampling.max_tokens
            lengths_EK = np.stack([e.by_turn([t.sampled for t in e.traces], turns) for e in episodes])
            penalty_EK = c.overlong_penalty * pg.overlong_penalty(
                lengths_EK, limit, max(round(c.overlong_share * limit), 1)
            )
            rewards_EK += penalty_EK
            metrics["reward/overlong"] = float(penalty_EK.sum(1).mean())
        if c.shuffle_rewards:
            totals_E = pg.shuffled(rewards_EK.sum(1), self.context.seed, [group.index for group in groups])
            rewards_EK = np.zeros_like(rewards_EK)
            rewards_EK[np.arange(len(episodes)), [episode.turns - 1 for episode in episodes]] = totals_E
        if c.kl_coef > 0 and c.kl_in == "reward":
            kl_EK = np.stack([e.by_turn([self._kl(t) for t in e.traces], turns) for e in episodes])
            rewards_EK -= c.kl_coef * kl_EK
            metrics["reward/kl"] = float(kl_EK.sum(1).mean())

        group_E = np.array([episode.group for episode in episodes])
        if c.credit_by == "episode":
            advantage_E = pg.advantages(c.estimator, rewards_EK.sum(1), group_E)
            advantage_EK = np.repeat(advantage_E[:, None], turns, axis=1)
        else:
            returns_EK = pg.returns_to_go(rewards_EK, c.discount)
            place_EK = group_E[:, None] * turns + np.arange(turns)
            _compare_branches(episodes, place_EK)
            advantage_EK = pg.advantages(c.estimator, returns_EK.ravel(), place_EK.ravel()).reshape(returns_EK.shape)

        constant = c.length_constant or float(self.context.sampling.max_tokens)
        for episode, advantage_K in zip(episodes, advantage_EK, strict=True):
            for trace in episode.traces:
                trained = trace.sampled & (not (c.mask_truncated and trace.outcome == "truncated"))
                trace.weights["advantage"] = np.where(trace.sampled, advantage_K[trace.turn], 0.0).astype(np.float32)
                trace.weights["policy"] = pg.position_weights(c.aggregation, trained, constant)
        metrics["advantage/abs"] = float(np.abs(advantage_EK).mean())
        return metrics

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        """ "policy", and where asked for "kl" and "entropy", all over the same positions."""
        if role != "policy":
            raise TypeError(f"RLVR trains the role 'policy', not {role!r}")
        c = self.config
        mask, advantage, logprobs = batch["policy"] != 0, batch["advantage"], forward.logprobs_BT
        old = self._old(batch, logprobs)
        token_log_ratio = pg.log_ratio(logprobs, old, mask)
        log_ratio = pg.sequence_log_ratio(token_log_ratio, mask) if c.loss == "gspo" else token_log_ratio
        if c.loss == "reinforce":
            loss = -advantage * logprobs
        elif c.loss == "cispo":
            loss = pg.cispo_loss(logprobs, log_ratio, advantage, c.clip_low, c.clip_high)
        else:
            loss = pg.ppo_loss(log_ratio, advantage, c.clip_low, c.clip_high)
        metrics = {
            "ratio": log_ratio.exp(),
            "approx_kl": pg.kl_estimate("k3", -token_log_ratio),
            "entropy": forward.entropy_BT,
        }
        if c.loss != "reinforce":
            metrics["clip_fraction"] = pg.clipped(log_ratio, advantage, c.clip_low, c.clip_high)
        if c.tis_cap is not None:
            metrics["tis_weight"] = pg.truncated_importance(old, batch["logprob"], mask, c.tis_cap)
            loss = loss * metrics["tis_weight"]

        over = pg.DENOMINATOR[c.aggregation]
        terms = {"policy": Term(loss, "policy", over, detached(metrics))}
        if c.kl_coef > 0 and c.kl_in == "loss":
            kl = pg.kl_estimate(c.kl, pg.log_ratio(logprobs, batch["score/reference"], mask))
            terms["kl"] = Term(c.kl_coef * kl, "policy", over, detached({"kl_reference": kl}))
        if c.entropy_coef > 0:
            terms["entropy"] = Term(-c.entropy_coef * forward.entropy_BT, "policy", over)
        return terms

    def _old(self, batch: Batch, current: Tensor) -> Tensor:
        """[B, T] log-probs in the denominator of the ratio."""
        if self.config.old_logprobs == "sampler":
            return batch["logprob"]
        return batch["score/policy"] if self.rescored else current.detach()

    def _kl(self, trace: Trace) -> np.ndarray:
        """float[T]: the KL estimate at each sampled position of the trace, 0 elsewhere."""
        ratio = np.where(trace.sampled, trace.logprob - trace.scores["reference"].values, 0.0)
        return pg.kl_estimate(
            self.config.kl, torch.from_numpy(ratio).clamp(-pg.MAX_LOG_RATIO, pg.MAX_LOG_RATIO)
        ).numpy()

    def _check_scores(self, episodes: Sequence[Episode]) -> None:
        """A position that a role left out would read as log-probability 0 in the loss: refuse it here instead."""
        for role in (name for name, spec in self.roles.items() if spec.scores):
            for trace in (trace for episode in episodes for trace in episode.traces):
                if role not in trace.scores or not np.isfinite(trace.scores[role].values[trace.sampled]).all():
                    raise ValueError(
                        f"trace {trace.episode}: the role {role!r} has not scored all of its sampled positions"
                    )


def _compare_branches(episodes: Sequence[Episode], place_EK: np.ndarray) -> None:
    """Give the turn at which episodes branched from one state a place of its own, so that their returns are compared there with each other:
    they differ by nothing but what was decided from there on."""
    by_name = {(episode.group, episode.traces[0].episode): e for e, episode in enumerate(episodes)}
    new = int(place_EK.max(initial=0)) + 1
    for e, episode in enumerate(episodes):
        trace = episode.traces[0]
        if trace.parent is not None:
            name, position = trace.parent
            turn = int(trace.turn[position])
            root = by_name.get((episode.group, name), e)  # itself where the root was lost
            place_EK[[e, root], turn] = new + root
