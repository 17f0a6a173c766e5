"""STaR: imitate the thoughts that led to the right answer (Zelikman et al. 2022, arXiv 2203.14465). Uses a grader.

    K thoughts and answers ─► those graded right are imitated, thought and answer
    none right ─► K more from a prompt that shows y*; those that then answer right are imitated behind the prompt that does not

The published loop alternates between sampling everything and training from the initial weights; here both go on at once, from the
current weights. Without `hint_retry` and with K thoughts it is ReST-EM's filter (arXiv 2312.06585).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from actors.types import Actors, Group
from algorithms.base import AlgorithmConfig
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod
from algorithms.thoughts import answer_of, thought
from envs.base import Task
from models.trace import Kind, Trace


class STaRConfig(PosteriorConfig):
    """Options of STaR."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "star"
    hint_retry: bool = True
    """Try again with the answer in sight where no thought was right."""


class STaR(PosteriorMethod):
    """Filtered imitation; needs no policy gradient."""

    Config: ClassVar[type[AlgorithmConfig]] = STaRConfig
    config: STaRConfig

    async def draw(self, task: Task, actors: Actors) -> list[Trace]:
        n = self.config.group_size
        right, first = await self._right(task, actors, None, 0)
        if not right and self.config.hint_retry:
            shown = self.thoughts.hinted_ids(task.prompt, self.config.hint, answer_of(task))
            right, _ = await self._right(task, actors, shown, 1)
        out = [self.thoughts.given(self.thoughts.rethought(trace, task), answer_of(task)) for trace in right]
        # a task without a right thought teaches nothing, but its trace shows what was tried
        out = out or [self.thoughts.given(trace, answer_of(task)) for trace in first[:1]]
        for trace in out:
            trace.passed, trace.meta["right"] = bool(right), len(right) / n
        return out

    async def _right(
        self, task: Task, actors: Actors, context: Sequence[int] | None, part: int
    ) -> tuple[list[Trace], list[Trace]]:
        """(thoughts whose answers are graded right, all thoughts)"""
        drawn = await self.thoughts.draw(task, actors, self.config.group_size, self.params, context, part)
        answered = await self.thoughts.answer(drawn, actors, self.params)
        grades = await actors.grade(task, [self.thoughts.text(trace) for trace in answered])
        return [trace for trace, grade in zip(drawn, grades, strict=True) if grade.solved], drawn

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        traces = group.live
        right = [trace for trace in traces if trace.passed]
        credits = []
        for trace in traces:
            taught = thought(trace) | (trace.kind == Kind.TARGET)
            credits.append(Credit(weight=taught / len(right) if trace.passed else np.zeros(len(trace))))
        return credits, {"share/right": float(np.mean([trace.meta["right"] for trace in traces]))}
