"""CoT-Flow: reward a thought's tokens by how much they are expected once the answer is seen (arXiv 2601.09260).

The teacher is the initial model with another prompt, one that shows y*. Token by token the "probabilistic flow progress" is

    v_t = log p_0(z_t|prompt with y*, z_<t) - log p(z_t|x,z_<t),     which is log p(y|x,z_<=t) - log p(y|x,z_<t) for an exact teacher

Template, clipping and normalisation of the published training are not known; these are ours: v clipped to +-2, credit summed from a
token on or taken as it is, divided by its standard deviation over the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat

from actors.types import Actors, Group
from algorithms.base import AlgorithmConfig
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod, on_answer
from algorithms.thoughts import HINTED, answer_of, progress, reading_with_answer
from algorithms.token_credit import token_advantages
from envs.base import Task
from models.roles import RoleSpec
from models.trace import Kind, Trace


class CoTFlowConfig(PosteriorConfig):
    """Options of CoT-Flow."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "cot_flow"
    credit: Literal["return_to_go", "immediate"] = "return_to_go"
    """What a token is credited with: the progress from it on, or its own."""
    clip: PositiveFloat = 2.0
    """Bound on a token's progress, in nats."""
    teacher: str = "@policy"
    """Weights that read the answer: a model path, or the policy's initial ones."""
    answer_weight: NonNegativeFloat = 0.0
    """Factor on the answer term; the published method has none."""


class CoTFlow(PosteriorMethod):
    """Dense rewards from a teacher that sees the answer."""

    Config: ClassVar[type[AlgorithmConfig]] = CoTFlowConfig
    guide = "teacher"
    config: CoTFlowConfig

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        teacher = RoleSpec(self.config.teacher, trainable=False, scores=True, template=reading_with_answer)
        return {**super().roles, "teacher": teacher}

    async def draw(self, task: Task, actors: Actors) -> list[Trace]:
        traces = await super().draw(task, actors)
        ids = self.thoughts.hinted_ids(task.prompt, self.config.hint, answer_of(task))
        for trace in traces:
            trace.meta[HINTED] = ids
        return traces

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        traces, n = group.live, len(group.live)
        flow = [progress(trace, "teacher") for trace in traces]
        advantage = [token_advantages(self.config.credit, v, clip=self.config.clip) for v in flow]
        flat = np.concatenate(advantage)
        mean, std = (flat.mean(), flat.std() + 1e-4) if len(flat) > 1 else (0.0, 1.0)
        credits = []
        for trace, values in zip(traces, advantage, strict=True):
            full = np.zeros(len(trace))
            full[trace.kind == Kind.THOUGHT] = (values - mean) / std / n
            credits.append(Credit(full, on_answer(trace, self.config.answer_weight / n)))
        return credits, {"progress/mean": float(np.mean([v.sum() for v in flow]))}
