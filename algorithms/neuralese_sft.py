"""Neuralese-SFT: think in latents, then answer; plain cross-entropy on good answers, backpropagated through the thinking.

    prompt ──► K latent steps ──► y*        loss = mean over the tokens of y* of -log p(token | prompt, latents, tokens before)

The loss is supervised fine-tuning's own; with K = 0 it *is* supervised fine-tuning on answers. No grader is needed: the latents are a
deeper network between question and answer, and the gradient reaches them through `models.chain`.

Options: how K is chosen; a curriculum over written reasoning (Coconut, Hao et al. 2024): at stage s the first s written
steps are replaced by latents and the rest is still written, until nothing is; or distillation (CODI, Shen et al.
2025) from the same model reading the written steps, the teacher:

    student  prompt ──► K latent steps ─┐► y*     loss = CE(student) + CE(teacher)
    teacher  prompt ──► written steps ──┘► y*            + weight x smooth-L1(their hidden states there) / teacher's std

The hidden states compared are the last layer's, after the final norm, before the first token of y*; the teacher's is a
constant. CODI compares all layers', and takes the standard deviation over the batch; here it is over the teacher's own
vector, so that the gradient does not depend on how a batch is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from actors.types import Actors, Group, ProbePlan
from algorithms.base import Algorithm, AlgorithmConfig, Context
from algorithms.thoughts import answer_loglik, answer_of
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
    distill: NonNegativeFloat = 0.0
    """Weight of the distance between the student's and the teacher's last hidden state before the answer (CODI: 1 for
    GPT-2, 20 for Llama); 0 has no teacher."""
    written: bool = False
    """Write the reasoning before each answer or action, between thinking marks where the vocabulary has them: a token thinker's warm
    start, for sampling.latents: 0."""

    @model_validator(mode="after")
    def _one_use_of_written_steps(self) -> Self:
        if bool(self.distill) + self.written + (self.curriculum is not None) > 1:
            raise ValueError("distill, written and curriculum are three uses of the written steps; choose one")
        return self


class NeuraleseSFT(Algorithm):
    """Cross-entropy on given answers after latent thinking; one trainable role, "policy"."""

    Config: ClassVar[type[AlgorithmConfig]] = NeuraleseSFTConfig
    offline: ClassVar[bool] = True
    config: NeuraleseSFTConfig

    def __init__(self, config: NeuraleseSFTConfig, context: Context) -> None:
        super().__init__(config, context)
        self._tools: tuple[ChatFormat, int] | None = None
        self.together = bool(config.distill)

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
            opened = chat.opens(parts[-2][0])
            parts.append((chat.emission_ids(written, move.action, self.config.written, opened), Kind.TARGET, turn))
        return self._trace(task, index, parts, len(parts[-1][0]), int(rng.integers(2**62)))

    def examples(self, task: Task, index: int, version: int) -> list[Trace]:
        """The student's, and where there is one the teacher's. Raises ValueError naming a task that a teacher cannot
        read: one without written steps, or of several turns."""
        student = self.example(task, index, version)
        if not self.config.distill:
            return [student]
        if task.steps is None or task.walkthrough:
            raise ValueError(
                f"task {task.id} has {'several turns' if task.walkthrough else 'no written steps'}: distill's teacher "
                "reads the written steps of one answer; set algorithm.distill to 0"
            )
        # words are cut apart at the line's end, so the answer's tokens are the student's own
        assert self._tools is not None
        chat, _ = self._tools
        written = np.array(chat.ids(" ".join(task.steps) + "\n") if task.steps else [], np.int32)
        answer = chat.emission_ids((), str(task.answer))
        parts = [(chat.prompt_ids(task.prompt), Kind.CONTEXT, 0), (np.append(written, answer), Kind.TARGET, 0)]
        teacher = self._trace(task, index, parts, len(answer), 0)
        teacher.episode, teacher.meta["teacher"] = f"{index}/teacher", True
        return [student, teacher]

    @staticmethod
    def _trace(task: Task, index: int, parts: Sequence[tuple[np.ndarray, Kind, int]], answer: int, seed: int) -> Trace:
        """parts: (ids, kind, turn). The last `answer` positions are the answer and the end."""
        sizes = [len(ids) for ids, _, _ in parts]
        n = sum(sizes)
        return Trace(
            token=np.concatenate([ids for ids, _, _ in parts]).astype(np.int32),
            kind=np.repeat(np.array([kind for _, kind, _ in parts], np.uint8), sizes),
            logprob=np.full(n, np.nan, np.float32),
            version=np.full(n, -1, np.int32),
            turn=np.repeat(np.array([turn for _, _, turn in parts], np.int16), sizes),
            task=task.id,
            group=str(index),
            episode=f"{index}/0",
            eps_seed=seed,
            meta={"answer_at": n - answer},
        )

    async def probe(self, tasks: Sequence[Task], actors: Sequence[Actors], plan: ProbePlan) -> list[Group]:
        """Without latents as every method. With them the good answer behind the latents: one reading is log p(y*|x), and the plan has
        no say (of noisy latents it is one draw, and below log p(y*|x) on average)."""
        if not self.context.sampling.latents:
            return await super().probe(tasks, actors, plan)
        chat, latent = ChatFormat(self.context.tokenizer), latent_id(self.context.tokenizer)
        groups = []
        for place, (task, own) in enumerate(zip(tasks, actors, strict=True)):
            prompt = chat.prompt_ids(task.prompt)
            answer = chat.emission_ids((), answer_of(task), False, chat.opens(prompt))
            latents = np.full(self.context.sampling.latents_for(task), latent, np.int32)
            parts = [(prompt, Kind.CONTEXT, 0), (latents, Kind.LATENT, 0), (answer, Kind.TARGET, 0)]
            groups.append(Group(task, [self._trace(task, place, parts, len(answer), own.seed)], place))
        return groups

    def by_task(self, groups: Sequence[Group]) -> dict[str, list[float]]:
        if not self.context.sampling.latents:
            return super().by_task(groups)
        return {"logp_answer": [answer_loglik(group.traces[0]) for group in groups]}

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes "ce": 1 at every position of a good answer. With a teacher "ce_teacher" likewise on its traces, and
        "distill", the term's weight, at the student's last position before the answer."""
        students = []
        for trace in (t for g in groups for t in g.live):
            answer = (trace.kind == Kind.TARGET).astype(np.float32)
            if trace.meta.get("teacher"):
                trace.weights["ce_teacher"] = answer
                continue
            students.append(trace)
            trace.weights["ce"] = answer
            if self.config.distill:
                trace.weights["distill"] = np.zeros(len(trace), np.float32)
                trace.weights["distill"][trace.meta["answer_at"] - 1] = self.config.distill
        return {"latents/mean": float(np.mean([(t.kind == Kind.LATENT).sum() for t in students]))}

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        """ "ce": supervised fine-tuning's loss, the mean over all answer tokens of the batch. With a teacher
        "ce_teacher", over its written steps and answers, and "distill_last_layer", the mean over students."""
        terms = {"ce": Term(-forward.logprobs_BT, "ce", "positions")}
        if self.config.distill:
            terms["ce_teacher"] = Term(-forward.logprobs_BT, "ce_teacher", "positions")
            terms["distill_last_layer"] = Term(distance(forward.hidden_BTD, batch.traces), "distill", "traces")
        return terms

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


def distance(hidden_BTD: Tensor, traces: Sequence[Trace]) -> Tensor:
    """float32[B, T]: smooth-L1 distance, averaged over D, of a student's hidden state before its answer from its
    teacher's, divided by the standard deviation of the teacher's; 0 elsewhere. A teacher is the trace of the same
    group marked as one.

    Raises ValueError if a student's teacher is not among the traces.
    """
    teacher = {trace.group: b for b, trace in enumerate(traces) if trace.meta.get("teacher")}
    student = [b for b, trace in enumerate(traces) if not trace.meta.get("teacher")]
    lost = [traces[b].group for b in student if traces[b].group not in teacher]
    if lost:
        raise ValueError(f"the teacher of group {lost[0]} is not in the student's micro-batch")
    before = [trace.meta["answer_at"] - 1 for trace in traces]
    out_BT = hidden_BTD.new_zeros(hidden_BTD.shape[:2], dtype=torch.float32)
    if not student:
        return out_BT
    with_whom = [teacher[traces[b].group] for b in student]
    own_SD = hidden_BTD[student, [before[b] for b in student]].float()
    shown_SD = hidden_BTD[with_whom, [before[b] for b in with_whom]].detach().float()
    apart_S = torch.nn.functional.smooth_l1_loss(own_SD, shown_SD, reduction="none").mean(-1) / shown_SD.std(-1)
    return out_BT.index_put((torch.tensor(student), torch.tensor([before[b] for b in student])), apart_S)
