"""TRICE: Markov-chain Monte Carlo over thoughts, one memory per example (Phan et al. 2023, arXiv 2312.02179).

    memory z_n ~ p(z|x_n,y_n), kept between visits by an independence sampler: propose z' ~ p(z|x), and accept it

        "likelihood"   with probability min(1, p(y*|x,z') / p(y*|x,z)): no grader            (the general rule)
        "match"        if the answer behind z' is graded right: uses a grader                (as published)

    gradient  1/M sum_m  grad log p(z_m|x) - beta_m grad log p(z'_m|x),     beta_m: how often the *other* proposals were accepted

The second part has expectation 0 (z' comes from p itself) and cancels the first as the model learns: an accepted proposal counts 1 - beta.
Proposals that fail under "match" push away from what they say; a memory that was never right teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, PositiveInt

from actors.types import Actors, Group
from algorithms.base import AlgorithmConfig, Context
from algorithms.posterior_method import Credit, PosteriorConfig, PosteriorMethod, on_answer
from algorithms.thoughts import answer_loglik, answer_of, thought
from envs.base import Task
from models.trace import Kind, Trace


class TRICEConfig(PosteriorConfig):
    """Options of TRICE."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "trice"
    group_size: Literal[1] = 1
    """One proposal a visit."""
    accept: Literal["likelihood", "match"] = "likelihood"
    """When a proposal takes the memory's place; match uses a grader."""
    first: Literal["hint", "prior"] = "hint"
    """Where an example's first memory comes from: a prompt that shows y*, or the model as it is."""
    control_variate: bool = True
    """Subtract the proposals' gradients, scaled by how often others were accepted."""
    resample: PositiveInt | None = None
    """Draw so many of all thoughts, systematically, in proportion to their weights (saves backward passes); null uses all."""


@dataclass(frozen=True)
class Memory:
    """An example's thought. token: int32[n], with its closing mark. right: whether its answer was graded right. age: visits."""

    token: np.ndarray
    right: bool
    age: int


class TRICE(PosteriorMethod):
    """Imitation of posterior samples with a control variate."""

    Config: ClassVar[type[AlgorithmConfig]] = TRICEConfig
    config: TRICEConfig

    def __init__(self, config: TRICEConfig, context: Context) -> None:
        super().__init__(config, context)
        self.memory: dict[str, Memory] = {}

    async def draw(self, task: Task, actors: Actors) -> list[Trace]:
        """The memory, then the proposal; y* behind each."""
        y = answer_of(task)
        proposal = (await self.thoughts.draw(task, actors, 1, self.params))[0]
        kept = self.memory.get(task.id)
        if kept is not None:
            memory = self.recalled(task, kept)
        else:
            shown = self.thoughts.hinted_ids(task.prompt, self.config.hint, y) if self.config.first == "hint" else None
            drawn = await self.thoughts.draw(task, actors, 1, self.params, shown, 1)
            memory = self.thoughts.rethought(drawn[0], task)
        if self.config.accept == "match":
            asked = [proposal] if kept is not None else [proposal, memory]
            # the answer must be a function of the thought: the likeliest
            answered = await self.thoughts.answer(asked, actors, self.params.but(temperature=0.0))
            grades = await actors.grade(task, [self.thoughts.text(trace) for trace in answered])
            right = [grade.solved for grade in grades]
            proposal.meta["right"] = right[0]
            memory.meta["right"] = kept.right if kept is not None else right[1]
        memory.meta["age"] = 0 if kept is None else kept.age
        return [self.thoughts.given(trace, y) for trace in (memory, proposal)]

    def recalled(self, task: Task, kept: Memory) -> Trace:
        """A memory as a trace: given text."""
        context = self.thoughts.chat.prompt_ids(task.prompt)
        return Trace.from_target(context, kept.token, task.id)

    def assign(self, group: Group) -> tuple[Sequence[Credit], dict[str, float]]:
        raise TypeError("TRICE gives credit over the whole batch")

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Moves the memories on and writes "weight" and "likelihood" on memory and proposal."""
        c = self.config
        for trace in (trace for group in groups for trace in group.traces):
            trace.weights.clear()
        groups = [group for group in groups if len(group.live) == 2]
        if not groups:
            return {}
        pairs = [(group.live[0], group.live[1]) for group in groups]
        accepted = np.array([self._accepts(g.index, *pair) for g, pair in zip(groups, pairs, strict=True)])
        counts = np.ones(len(groups), bool)
        if c.accept == "match":
            counts = accepted | np.array([bool(memory.meta["right"]) for memory, _ in pairs])
        weights_M2 = chain_weights(accepted, counts, c.control_variate)
        if c.resample is not None:
            weights_M2 = resampled(weights_M2.ravel(), c.resample, [self.context.seed, 0x3D, groups[0].index]).reshape(
                -1, 2
            )
        for place, (group, (memory, proposal)) in enumerate(zip(groups, pairs, strict=True)):
            now = proposal if accepted[place] else memory
            for trace, weight in zip((memory, proposal), weights_M2[place], strict=True):
                values = np.where(thought(trace), weight, 0.0)
                if c.accept == "likelihood" and trace is now:
                    values += on_answer(trace, c.answer_weight)
                if counts[place] and (trace is now or weight):
                    trace.weights["weight"] = values.astype(np.float32)
                    trace.weights["likelihood"] = (thought(trace) | (values != 0)).astype(np.float32)
            age = 0 if accepted[place] else memory.meta["age"] + 1
            self.memory[group.task.id] = Memory(now.token[_text(now)].copy(), bool(counts[place]), age)
        loglik = [answer_loglik(proposal) for _, proposal in pairs]
        return {
            "accepted": float(accepted.mean()),
            "memory/age": float(np.mean([self.memory[group.task.id].age for group in groups])),
            "memory/right": float(counts.mean()),
            "logp/answer_given_thought": float(np.mean(loglik)),
            "thought/length": float(np.mean([thought(proposal).sum() for _, proposal in pairs])),
        }

    def state(self) -> dict[str, Any]:
        return {"memory": {name: (m.token, m.right, m.age) for name, m in self.memory.items()}}

    def load(self, state: dict[str, Any]) -> None:
        self.memory = {name: Memory(*entry) for name, entry in state["memory"].items()}

    def _accepts(self, index: int, memory: Trace, proposal: Trace) -> bool:
        if self.config.accept == "match":
            return bool(proposal.meta["right"])
        luck = np.random.default_rng([self.context.seed, 0x3C, index]).random()
        return bool(np.log(luck) < answer_loglik(proposal) - answer_loglik(memory))


def chain_weights(accepted_M: np.ndarray, counts_M: np.ndarray, control_variate: bool = True) -> np.ndarray:
    """float64[M, 2]: weights of the gradients of log p at (old memory, proposal), after the memories were moved on.

    accepted_M, counts_M: bool. A chain that does not count has weight 0. beta_m is the share accepted among the others that count.
    """
    accepted, counts = accepted_M.astype(np.float64), counts_M.astype(np.float64)
    others = counts.sum() - counts
    beta = np.where(others > 0, ((counts * accepted).sum() - counts * accepted) / np.maximum(others, 1), 0.0)
    if not control_variate:
        beta = np.zeros_like(beta)
    return np.stack([counts * (1 - accepted), counts * (accepted - beta)], 1)


def resampled(weights_N: np.ndarray, draws: int, seed: Sequence[int]) -> np.ndarray:
    """float64[N]: weights after systematic resampling of so many draws in proportion to |weight|; unbiased, most are 0."""
    size = np.abs(weights_N)
    total = size.sum()
    if total == 0:
        return weights_N.copy()
    points = (np.random.default_rng(seed).random() + np.arange(draws)) / draws * total
    chosen = np.searchsorted(np.cumsum(size), points, side="right").clip(max=len(size) - 1)
    return np.sign(weights_N) * np.bincount(chosen, minlength=len(size)) * total / draws


def _text(trace: Trace) -> np.ndarray:
    """bool[T]: the thought with a closing mark that was put behind it."""
    at = trace.meta["answer_at"]
    first = int(np.flatnonzero(thought(trace))[0])
    place = np.arange(len(trace))
    return (place >= first) & (place < at) & (trace.kind != Kind.ACTION)
