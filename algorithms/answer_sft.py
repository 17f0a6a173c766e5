"""Answer-only SFT: cross-entropy on an empty thought and y*. What a model reaches without thinking in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from actors.types import Group
from algorithms.base import Algorithm, AlgorithmConfig
from algorithms.thoughts import ANSWER_AT, Thoughts, answer_of
from envs.base import Task
from models.terms import Batch, Forward, Term
from models.trace import Kind, Trace


class AnswerSFTConfig(AlgorithmConfig):
    """Options of answer-only SFT."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "answer_sft"
    group_size: Literal[1] = 1
    """One trace a task: its good answer."""


class AnswerSFT(Algorithm):
    """Cross-entropy on given answers without a thought; one trainable role, "policy"."""

    Config: ClassVar[type[AlgorithmConfig]] = AnswerSFTConfig
    offline: ClassVar[bool] = True
    _thoughts: Thoughts | None = None

    def example(self, task: Task, index: int, version: int) -> Trace:
        """prompt, opening and closing mark, answer, end: all but the prompt is taught."""
        if self._thoughts is None:
            self._thoughts = Thoughts(self.context.tokenizer)
        chat = self._thoughts.chat
        prompt, marks = chat.prompt_ids(task.prompt), self._thoughts.empty(task)
        answer = chat.emission_ids((), answer_of(task))
        trace = Trace.from_target(prompt, [*marks, *answer.tolist()], task.id)
        trace.group, trace.episode = str(index), f"{index}/0"
        trace.meta[ANSWER_AT] = len(prompt) + len(marks)
        return trace

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes "ce": 1 at every given position."""
        for trace in (t for g in groups for t in g.live):
            trace.weights["ce"] = (trace.kind == Kind.TARGET).astype(np.float32)
        return {}

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        return {"ce": Term(-forward.logprobs_BT, "ce", "positions")}
