"""Roles: the models that take part in a run (policy, reference, helper, critic, reward) and what each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from models.trace import Literal as Words
from models.trace import Trace

REWARD_NOTES = "reward.json"
"""File beside a reward model's weights: {"mean", "std", "outputs", "members"}, see `algorithms.reward_model` and `actors.reward`."""
Template = Callable[[Trace], Sequence[np.ndarray | Words]]
"""Builds the reading of a trace that a role sees: the parts handed to `Trace.view`."""


@dataclass(frozen=True)
class RoleSpec:
    """What one role is.

    weights: a model path, or "@policy" (another role's name after "@") to start from that role's initial weights.
    trainable: whether the learner optimises it; frozen roles are served by Scorer actors.
    scores: whether it must have scored a batch (written `Trace.scores[role]`) before `Algorithm.credit` sees it.
    head: "lm" gives log-probabilities, "value" one number a position, "lm+value" both (the values as `Trace.scores["ROLE/value"]`),
        "scalar" one number a sequence (its last position).
    outputs: numbers that a value or scalar head gives (an ensemble's members); its scores are then float32[T, outputs].
    template: the role's reading of a trace; None is the policy's own reading. Must be importable (it travels to workers).
    optimiser: overrides of the run's `train.optimiser` for this role, for example {"lr": 1e-4}.
    """

    weights: str
    trainable: bool
    scores: bool = False
    head: Literal["lm", "value", "lm+value", "scalar"] = "lm"
    outputs: int = 1
    template: Template | None = None
    optimiser: dict[str, Any] = field(default_factory=dict)
