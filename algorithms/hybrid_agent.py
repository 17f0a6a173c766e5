"""Hybrid agents: think in latents, act in tokens, learn from the episode's reward.

    observation ─► K latent steps ─► action ─► observation ─► K latent steps ─► action ...
                   a deeper network   a decision              no decision        a decision

Between two decisions the latents are deterministic functions of the parameters (given the noise, where there is some), so the policy of the
emitted tokens is well defined and RLVR's policy gradient holds for it unchanged: only sampled decisions (emitted tokens, and where the
number of steps is sampled also each "think on" and "stop") have a log-probability, a ratio and an advantage. The ratio's numerator thinks
every latent anew under the current parameters; its gradient flows back through the thinking, and through keys and values into earlier
turns (`model.grad: exact,turn` stops it there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from actors.types import Group
from algorithms.base import AlgorithmConfig, Context
from algorithms.episodes import Episode, live_episodes
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig
from algorithms.rlvr import RLVR, RLVRConfig
from envs.base import Task
from models.feedback import has_thinker
from models.trace import Kind, Trace


class HybridAgentConfig(RLVRConfig):
    """Options of hybrid agents: RLVR's own. Latent steps a turn are sampling.latents (the most, with model.thinker.stop)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "hybrid_agent"


class HybridAgent(RLVR):
    """RLVR on episodes of latent thinking and emitted tokens."""

    Config: ClassVar[type[AlgorithmConfig]] = HybridAgentConfig

    def __init__(self, config: HybridAgentConfig, context: Context) -> None:
        super().__init__(config, context)
        if not has_thinker(context.model_path):
            raise ValueError(
                f"hybrid_agent thinks in latents, and the model {context.model_path} has no thinker; set model.thinker "
                "(kind: gated), or use rlvr for a model that thinks in tokens"
            )
        self._given = NeuraleseSFT(NeuraleseSFTConfig(), context)

    def example(self, task: Task, index: int, version: int) -> Trace:
        """The task's good episode, thought in latents; for the causal battery (an online method does not learn from it)."""
        return self._given.example(task, index, version)

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """RLVR's credit; and how long an episode is in actions (`action_metrics`)."""
        return super().credit(groups) | action_metrics([e for g in groups for e in live_episodes(g)])


def action_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """The length of an episode as the policy gradient sees it: means over episodes.

    "actions/mean": sampled decisions. "actions/stops": those of them that decide whether to think on. "actions/token_cot": what the same
    episode would have if every latent step were a written token, which is a decision. "actions/share": the first over the last.
    """
    if not episodes:
        return {}
    traces = [e.traces for e in episodes]
    actions = float(np.mean([sum(int(t.sampled.sum()) for t in ts) for ts in traces]))
    stops = float(np.mean([sum(int((t.sampled & (t.kind == Kind.LATENT)).sum()) for t in ts) for ts in traces]))
    latents = float(np.mean([sum(len(t.where(Kind.LATENT)) for t in ts) for ts in traces]))
    written = actions - stops + latents
    out = {"actions/mean": actions, "actions/stops": stops, "actions/token_cot": written}
    return out | ({"actions/share": actions / written} if written else {})
