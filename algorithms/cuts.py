"""Is w_t what it says? A guide's log w_t at a cut of a thought, beside p(y*|x,z_<=t) / p(y*|x) from completions of that cut.

z_1 .. z_t | ─► n completions ~ p(.|x,z_<=t), y* behind each ─► log mean p(y*|x,z) - log mean over whole thoughts of p(y*|x,z)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from actors.types import Actors, Group, SamplingParams
from algorithms.probing import WHICH, of_kind
from algorithms.thoughts import HINTED, Thoughts, answer_of, likelihoods, progress
from algorithms.token_credit import log_mean_exp
from envs.base import Task
from models.trace import Kind, Trace

TASKS = 32
"""Tasks at most whose first thought is cut."""
CUT_AT = "cut_at"
"""`Trace.meta` of a completion: how many tokens of the thought it continues."""


async def complete_cuts(
    thoughts: Thoughts,
    tasks: Sequence[Task],
    actors: Sequence[Actors],
    groups: Sequence[Group],
    n: int,
    params: SamplingParams,
) -> None:
    """Add n completions ("completion") to each of the first groups, of its first thought cut at a random place."""

    async def one(task: Task, own: Actors, group: Group) -> None:
        first = of_kind(group, "drawn")[0]
        z = first.where(Kind.THOUGHT)
        if len(z) < 2:
            return  # nothing lies between its ends
        at = int(np.random.default_rng([own.seed, 0xC7]).integers(1, len(z)))
        beginning = first.token[: z[at]]
        rest = params.but(max_tokens=params.max_tokens - at)
        for trace in await thoughts.draw(task, own, n, rest, beginning, part=2):
            whole = thoughts.given(trace, answer_of(task))
            whole.meta.update({WHICH: "completion", CUT_AT: at, HINTED: first.meta[HINTED]})
            group.traces.append(whole)

    await asyncio.gather(*(one(*these) for these in list(zip(tasks, actors, groups, strict=True))[:TASKS]))


def cut_figures(groups: Sequence[Group], guide: str) -> dict[str, float]:
    """ "w_error": root mean square of the guide's log w_t minus the measured one, nats. "w_correlation": over tasks."""
    believed, measured = [], []
    for group in groups:
        completions: list[Trace] = of_kind(group, "completion")
        if not completions:
            continue
        own = of_kind(group, "drawn")
        believed.append(float(progress(own[0], guide)[: completions[0].meta[CUT_AT]].sum()))
        measured.append(log_mean_exp(likelihoods(completions)) - log_mean_exp(likelihoods(own)))
    if not believed:
        return {}
    q, mc = np.array(believed), np.array(measured)
    out = {"w_error": float(np.sqrt(np.mean((q - mc) ** 2)))}
    if len(q) > 1 and q.std() > 0 and mc.std() > 0:
        out["w_correlation"] = float(np.corrcoef(q, mc)[0, 1])
    return out
