"""Reverse chain of thought: think with the answer in sight, then imitate that thought without it (arXiv 2602.14469).

    skeleton "none":       prompt with y* ─► z
    skeleton "one_call":   prompt with y* and a request for a skeleton ─► skeleton, mark, z          (SSR)
    skeleton "two_calls":  the skeleton first; then z behind the skeleton, from a prompt that need not show y*

The skeleton is a plan without content; what is imitated, behind the prompt that shows nothing, is z and y*. The thinker is the current
policy, served by the samplers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from actors.types import Actors, Group
from algorithms.base import AlgorithmConfig
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod
from algorithms.thoughts import answer_of, thought
from envs.base import Task
from models.chat import THINK_OPEN
from models.trace import Kind, Trace


class ReverseCoTConfig(PosteriorConfig):
    """Options of reverse-CoT SFT and SSR."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "reverse_cot"
    group_size: int = 1
    """Thoughts a task."""
    skeleton: Literal["none", "one_call", "two_calls"] = "none"
    """Whether a plan without content is written first (SSR), in the same call or in one of its own."""
    skeleton_hint: str = "{prompt} given {answer} skeleton"
    """The prompt that asks for skeleton and thought."""
    mark: str = "reason"
    """The word between skeleton and thought."""
    reason_sees_answer: bool = True
    """Whether the second of two calls still sees y*."""


class ReverseCoT(PosteriorMethod):
    """Imitation of thoughts that were written with the answer in sight."""

    Config: ClassVar[type[AlgorithmConfig]] = ReverseCoTConfig
    config: ReverseCoTConfig

    async def draw(self, task: Task, actors: Actors) -> list[Trace]:
        c, y = self.config, answer_of(task)
        hint = c.hint if c.skeleton == "none" else c.skeleton_hint
        shown = self.thoughts.hinted_ids(task.prompt, hint, y)
        if c.skeleton == "two_calls":
            drawn = await self._two_calls(task, actors, shown)
        else:
            drawn = await self.thoughts.draw(task, actors, c.group_size, self.params, shown)
        if c.skeleton != "none":
            drawn = [self._without_skeleton(trace) for trace in drawn]
        return [self.thoughts.given(self.thoughts.rethought(trace, task), y) for trace in drawn]

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        n = len(group.live)
        taught = [thought(trace) | (trace.kind == Kind.TARGET) for trace in group.live]
        found = np.mean([bool(trace.meta.get("marked", True)) for trace in group.live])
        return [Credit(weight=where / n) for where in taught], {"share/marked": float(found)}

    async def _two_calls(self, task: Task, actors: Actors, shown: Sequence[int]) -> list[Trace]:
        """Skeletons up to the mark, then one thought behind each: traces whose THOUGHT is both."""
        c, mark = self.config, self._mark
        params = self.params.but(stop_ids=(*self.params.stop_ids, mark))
        plans = await self.thoughts.draw(task, actors, c.group_size, params, shown)
        prompt = np.array(shown) if c.reason_sees_answer else self.thoughts.chat.prompt_ids(task.prompt)
        out = []
        for j, plan in enumerate(plans):
            words = plan.token[plan.kind == Kind.THOUGHT]
            ends = np.flatnonzero(words == mark)
            skeleton = words[: ends[0] + 1] if len(ends) else np.append(words, mark)
            whole = (await self.thoughts.draw(task, actors, 1, self.params, [*prompt, *skeleton], 1 + j))[0]
            whole.kind[len(prompt) : len(prompt) + len(skeleton)] = Kind.THOUGHT
            out.append(whole)
        return out

    def _without_skeleton(self, trace: Trace) -> Trace:
        """The trace whose thought begins behind the mark; whole, and not marked, where the mark is missing."""
        at = np.flatnonzero((trace.kind == Kind.THOUGHT) & (trace.token == self._mark))
        kind = trace.kind.copy()
        marked = len(at) > 0
        if marked:
            before = np.arange(len(trace)) <= at[0]
            opening = np.isin(trace.token, self.thoughts.chat.ids(THINK_OPEN))
            kind[before & ~opening & (kind == Kind.THOUGHT)] = Kind.CONTEXT
        return replace(trace, kind=kind, meta={**trace.meta, "marked": marked})

    @property
    def _mark(self) -> int:
        ids = self.thoughts.chat.ids(self.config.mark)
        if len(ids) != 1:
            raise ValueError(
                f"algorithm.mark {self.config.mark!r} is {len(ids)} tokens; choose a word that is one token"
            )
        return ids[0]
