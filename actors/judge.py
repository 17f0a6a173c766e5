"""The collector's side of a learned reward: asks the reward model's actor, and keeps the fresh labels that it has learnt.

An actor that died and came back knows none of them. It says so before it scores (`reward.Forgotten`), and learns them anew.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from actors.clients import ActorLost, cause
from actors.reward import Forgotten, Labels, LearnedReward, Lesson, check_rater
from models.flops import FlopModel
from models.forward import make_view
from models.trace import Trace

log = logging.getLogger("posterior.judge")


class Judge:
    """reward: how scores become rewards. flops: of the language model under the reward model."""

    def __init__(self, reward: LearnedReward, flops: FlopModel) -> None:
        self.reward, self._flops = reward, flops
        self.labels: list[Labels] = []
        self._actor: Any = None

    def connect(self, actor: Any) -> None:
        self._actor = actor

    async def load(self, labels: Sequence[Labels]) -> None:
        """Take up a checkpoint's labels in place of one's own."""
        self.labels = list(labels)
        await self._ask("learn", self.labels)

    def cost(self, traces: Sequence[Trace]) -> float:
        """FLOPs of scoring: of what the reward model reads, by every member of its own trunk."""
        read = (len(make_view(trace, self.reward.template)) for trace in traces)
        return self._flops.forward(read) * len(self.reward.folders)

    async def give(self, traces: Sequence[Trace]) -> None:
        """Have traces graded; the reward model's word becomes part of their reward."""
        if traces:
            self.reward.give(traces, await self._ask_again("score", list(traces)))

    async def gains(self, traces: Sequence[Trace], texts: Sequence[str]) -> dict[str, float]:
        """`RewardScorer.gains`."""
        return dict(await self._ask_again("gains", list(traces), texts))

    async def listen(self, traces: Sequence[Trace], version: int) -> float:
        """Have the reward model learn what people say of the newest policy, where it is time for that. Returns the FLOPs. Raises NoRater if
        it is the first time and nobody's grades bear the raters' name.

        What is learnt again after a death or from a checkpoint is not counted again: it is no part of the method.
        """
        if self.reward.asks(version) and not self.labels:
            check_rater(traces, self.reward.rater)
        labels = self.reward.graded(traces, version)
        if labels is None:
            return 0.0
        self.labels.append(labels)
        lesson: Lesson = await self._ask("learn", self.labels)
        log.info("version %d: %d fresh labels, squared error %.3g", version, len(labels.grades), lesson.error)
        return self.cost(labels.traces) + self._flops.training(lesson.read)

    async def _ask_again(self, method: str, *args: Any) -> Any:
        try:
            return await self._ask(method, *args, rounds=len(self.labels))
        except RayTaskError as error:
            if not isinstance(error.cause, Forgotten):
                raise
        await self._ask("learn", self.labels)
        return await self._ask(method, *args, rounds=len(self.labels))

    async def _ask(self, method: str, *args: Any, **named: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*args, **named)
        except RayActorError as error:
            raise ActorLost(f"the reward model's actor died and does not come back: {cause(error)}") from error
