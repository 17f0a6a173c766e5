"""What a policy's thoughts are worth on held-out tasks with good answers, whatever method trained it.

    n thoughts a task, y* behind each      log p(y*|x) = log mean_k p(y*|x,z_k), which a mean of logs would understate
    no thought                             what thinking adds: log p(y*|x,z) - log p(y*|x,empty)
    another task's thought                 whether the reader still reads z: it should lose

A reader that answers alike in all three has collapsed: it no longer needs the thought.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from actors.types import Actors, Group, SamplingParams
from algorithms.answer_sft import empty_thought
from algorithms.posterior_method import answer_of, likelihoods
from algorithms.thoughts import HINTED, Thoughts, thought
from algorithms.token_credit import log_mean_exp
from envs.base import Task
from models.trace import Kind, Trace

WHICH = "probe"
"""`Trace.meta`: "drawn", "empty" or "other"."""


async def draw_probes(
    thoughts: Thoughts,
    tasks: Sequence[Task],
    actors: Sequence[Actors],
    n: int,
    params: SamplingParams,
    hint: str | None,
) -> list[Group]:
    """For each task n drawn thoughts, an empty one and one of another task, y* behind each. hint: how a helper sees the answer."""
    drawn = await asyncio.gather(
        *(thoughts.draw(task, own, n, params) for task, own in zip(tasks, actors, strict=True))
    )
    groups = []
    for place, (task, own) in enumerate(zip(tasks, drawn, strict=True)):
        y = answer_of(task)
        none = Trace.from_target(thoughts.chat.prompt_ids(task.prompt), empty_thought(thoughts, task), task.id)
        other = thoughts.rethought(drawn[(place + 1) % len(drawn)][0], task)
        traces = []
        for which, trace in [*(("drawn", t) for t in own), ("empty", none), ("other", other)]:
            whole = thoughts.given(trace, y)
            whole.meta[WHICH] = which
            if hint is not None:
                whole.meta[HINTED] = thoughts.hinted_ids(task.prompt, hint, y)
            traces.append(whole)
        groups.append(Group(task=task, traces=traces, index=place))
    return groups


def of_kind(group: Group, which: str) -> list[Trace]:
    return [trace for trace in group.live if trace.meta[WHICH] == which]


def probe_values(groups: Sequence[Group]) -> dict[str, list[float]]:
    """One value a task, in nats where a logarithm is meant; the policy has scored the groups."""
    each: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        each.setdefault(name, []).append(value)

    for group in groups:
        own = of_kind(group, "drawn")
        log_K = likelihoods(own)
        mean = float(log_K.mean())
        note("logp_answer", log_mean_exp(log_K))
        note("logp_given_thought", mean)
        note("thought_gain", mean - float(likelihoods(of_kind(group, "empty"))[0]))
        note("shuffled_loss", mean - float(likelihoods(of_kind(group, "other"))[0]))
        note("thought_length", float(np.mean([thought(trace).sum() for trace in own])))
        note("thought_closed", float(np.mean([bool(trace.meta["closed"]) for trace in own])))
        note("thought_distinct", len({trace.token.tobytes() for trace in own}) / len(own))
        surprise = np.concatenate([-trace.logprob[trace.kind == Kind.THOUGHT] for trace in own])
        note("thought_entropy", float(surprise.mean()))
    return each
