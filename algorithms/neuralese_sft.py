"""Neuralese-SFT: think in latents, then answer; plain cross-entropy on good answers, backpropagated through the thinking.

    prompt ──► K latent steps ──► y*        loss = mean over the tokens of y* of -log p(token | prompt, latents, tokens before)

The loss is supervised fine-tuning's own; with K = 0 it *is* supervised fine-tuning on answers. No grader is needed: the latents are a
deeper network between question and answer, and the gradient reaches them through `models.chain`.

Options: how K is chosen, and a curriculum over written reasoning (Coconut, Hao et al. 2024): at stage s the first s written steps are
replaced by latents and the rest is still written, until nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

from actors.types import Group
from algorithms.base import Algorithm, AlgorithmConfig, Context
from envs.base import Move, Task
from models.chat import ChatFormat
from models.loading import latent_id
from models.terms import Batch, Forward, Term
from models.trace import Kind, Trace


class Curriculum(BaseModel):
    """Stages over written reasoning steps."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    updates_per_stage: PositiveInt = 200
    """Batches before the next written step is replaced."""
    latents_per_step: PositiveInt = 1
    """Latent steps in place of one written step."""
    stages: PositiveInt | None = None
    """Last stage; after it, no step is written. By default as many as the longest task has steps."""
    mix: float = Field(0.0, ge=0.0, le=1.0)
    """Share of examples at a random stage instead of the current one."""


class NeuraleseSFTConfig(AlgorithmConfig):
    """Options of neuralese-SFT. The number of latent steps is sampling.latents, in training and in sampling alike."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "neuralese_sft"
    group_size: Literal[1] = 1
    """One trace a task: its good answer."""
    steps: Literal["fixed", "random"] = "fixed"
    """Latent steps in training: always sampling.latents, or drawn for each example from a log-normal Poisson around it (Geiping et al.
    2025)."""
    sigma: NonNegativeFloat = 0.5
    """Spread of the log-normal (steps: random)."""
    curriculum: Curriculum | None = None
    """Replace written reasoning by latents stage by stage; null trains on answers alone."""
    written: bool = False
    """Write the reasoning before each answer or action, between thinking marks where the vocabulary has them: a token thinker's warm
    start, for sampling.latents: 0."""

    @model_validator(mode="after")
    def _consistent(self) -> NeuraleseSFTConfig:
        if self.written and self.curriculum is not None:
            raise ValueError("written: true keeps all reasoning, curriculum replaces it: give one of the two")
        return self


class NeuraleseSFT(Algorithm):
    """Cross-entropy on given answers after latent thinking; one trainable role, "policy"."""

    Config: ClassVar[type[AlgorithmConfig]] = NeuraleseSFTConfig
    offline: ClassVar[bool] = True
    config: NeuraleseSFTConfig

    def __init__(self, config: NeuraleseSFTConfig, context: Context) -> None:
        super().__init__(config, context)
        self._tools: tuple[ChatFormat, int] | None = None

    def example(self, task: Task, index: int, version: int) -> Trace:
        """prompt, latents, written steps that are left, answer, end; of a task with a walkthrough, all of its turns.

        Raises ValueError naming a task without a good answer.
        """
        if task.answer is None:
            raise ValueError(
                f"task {task.id} has no answer: neuralese-SFT learns from good answers, give every training task one"
            )
        if self._tools is None:
            self._tools = ChatFormat(self.context.tokenizer), latent_id(self.context.tokenizer)
        chat, latent = self._tools
        rng = np.random.default_rng([self.context.seed, 0x517, index])
        moves = task.walkthrough or (Move(task.answer, steps=tuple(task.steps or ())),)
        most = self.context.sampling.latents_for(task)
        parts = [(chat.prompt_ids(task.prompt), Kind.CONTEXT, 0)]
        for turn, move in enumerate(moves):
            latents, written = self._plan(move.steps, most, version, rng)
            if turn:
                parts.append((chat.turn_ids(moves[turn - 1].observation, True), Kind.CONTEXT, turn))
            parts.append((np.full(latents, latent, np.int32), Kind.LATENT, turn))
            parts.append((chat.emission_ids(written, move.action, self.config.written), Kind.TARGET, turn))
        sizes = [len(ids) for ids, _, _ in parts]
        nothing = np.full(sum(sizes), np.nan, np.float32)
        return Trace(
            token=np.concatenate([ids for ids, _, _ in parts]),
            kind=np.repeat([int(kind) for _, kind, _ in parts], sizes),
            logprob=nothing,
            version=np.full(len(nothing), -1, np.int32),
            turn=np.repeat([turn for _, _, turn in parts], sizes),
            task=task.id,
            group=str(index),
            episode=f"{index}/0",
            eps_seed=int(rng.integers(2**62)),
        )

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes "ce": 1 at every position of a good answer."""
        for trace in (t for g in groups for t in g.live):
            trace.weights["ce"] = (trace.kind == Kind.TARGET).astype(np.float32)
        traces = [t for g in groups for t in g.live]
        return {"latents/mean": float(np.mean([(t.kind == Kind.LATENT).sum() for t in traces]))}

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        """ "ce": supervised fine-tuning's loss, the mean over all answer tokens of the batch."""
        return {"ce": Term(-forward.logprobs_BT, "ce", "positions")}

    def _plan(
        self, steps: Sequence[str], most: int, version: int, rng: np.random.Generator
    ) -> tuple[int, Sequence[str]]:
        """(latent steps, written steps that stay) of one answer or action. steps: its written reasoning; most: latents without any."""
        c = self.config
        if c.curriculum is None:
            return (self._draw(most, rng) if c.steps == "random" else most), steps if c.written else ()
        stage = version // c.curriculum.updates_per_stage
        last = len(steps) if c.curriculum.stages is None else min(c.curriculum.stages, len(steps))
        if rng.random() < c.curriculum.mix:
            stage = int(rng.integers(0, last + 2))
        if stage > last:
            return most, ()
        return min(stage * c.curriculum.latents_per_step, most), steps[stage:]

    def _draw(self, mean: int, rng: np.random.Generator) -> int:
        """Log-normal Poisson with this mean, at least 1, at most 4 times the mean."""
        if mean == 0:
            return 0
        rate = np.exp(rng.normal(np.log(mean) - self.config.sigma**2 / 2, self.config.sigma))
        return int(np.clip(rng.poisson(rate), 1, 4 * mean))
