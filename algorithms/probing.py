"""What a policy's thoughts are worth on held-out tasks with good answers, whatever method trained it.

    n thoughts a task, y* behind each      log p(y*|x) = log mean_k p(y*|x,z_k), which a mean of logs would understate
    no thought                             what thinking adds: log p(y*|x,z) - log p(y*|x,empty)
    another task's thought                 whether the reader still reads z: it should lose

A reader that answers alike in all three has collapsed: it no longer needs the thought.

For anchoring (`algorithms.anchoring`) the first of those thoughts and as many "hindsight" ones, drawn with the answer in sight, are
judged alike: read behind x for the answer's probability, and behind the prompt that shows y* for the entropies of their steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from actors.types import ENTROPY, Actors, Group, ProbePlan, SamplingParams
from algorithms.anchoring import ZONES, Variant, entropic, lexical, probabilistic, step_means, zone
from algorithms.thoughts import HINTED, Thoughts, answer_of, given_answer, likelihoods, thought
from algorithms.token_credit import log_mean_exp
from envs.base import Task
from models.trace import Kind, Trace

WHICH = "probe"
"""`Trace.meta`: "drawn", "empty" or "other"; for anchoring "hindsight", and "reread" for each thought behind the prompt with y*, those
of "drawn" first."""
STEP_ENDS = "step_ends"
"""`Trace.meta`: for each token of a reread thought, whether it ends a step."""


async def draw_probes(
    thoughts: Thoughts,
    tasks: Sequence[Task],
    actors: Sequence[Actors],
    plan: ProbePlan,
    params: SamplingParams,
    hint: str,
) -> list[Group]:
    """For each task drawn thoughts, an empty one and one of another task, y* behind each. hint: how a prompt shows the answer."""
    drawn = await asyncio.gather(
        *(thoughts.draw(task, own, plan.thoughts, params) for task, own in zip(tasks, actors, strict=True))
    )
    shown = [thoughts.hinted_ids(task.prompt, hint, answer_of(task)) for task in tasks]
    hindsight = await asyncio.gather(
        *(
            thoughts.draw(task, own, plan.anchored, params, ids, part=1)
            for task, own, ids in zip(tasks, actors, shown, strict=True)
        )
    )
    groups = []
    for place, (task, own) in enumerate(zip(tasks, drawn, strict=True)):
        y = answer_of(task)
        none = Trace.from_target(thoughts.chat.prompt_ids(task.prompt), thoughts.empty(task), task.id)
        other = thoughts.rethought(drawn[(place + 1) % len(drawn)][0], task)
        traces = []
        backwards = [("hindsight", thoughts.rethought(t, task)) for t in hindsight[place]]
        for which, trace in [*(("drawn", t) for t in own), ("empty", none), ("other", other), *backwards]:
            whole = thoughts.given(trace, y)
            whole.meta[WHICH] = which
            traces.append(whole)
        for trace in [*own[: plan.anchored], *hindsight[place]]:
            ids = trace.token[trace.kind == Kind.THOUGHT]
            again = Trace.from_target(shown[place], ids.tolist(), task.id)
            again.meta.update(
                {WHICH: "reread", ENTROPY: True, STEP_ENDS: _ends(thoughts.chat.pieces(ids), plan.step_mark)}
            )
            traces.append(again)
        for trace in traces:
            trace.meta[HINTED] = shown[place]
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
        for name, value in _anchoring(group).items():
            note(name, value)
    return each


def _anchoring(group: Group) -> dict[str, float]:
    """Means over the thoughts of one task: "anchoring_..." of its own, "hindsight_..." of those that saw the answer; shares of zones."""
    hindsight, reread = of_kind(group, "hindsight"), of_kind(group, "reread")
    without = float(likelihoods(of_kind(group, "empty"))[0]) if reread else 0.0
    found: dict[str, float] = {}
    for who, traces, again in (
        ("anchoring", of_kind(group, "drawn")[: len(hindsight)], reread[: len(hindsight)]),
        ("hindsight", hindsight, reread[len(hindsight) :]),
    ):
        rows = [_measures(t, log, without, r) for t, log, r in zip(traces, likelihoods(traces), again, strict=True)]
        found.update(
            {f"{who}_{name}": float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}
        )
    return found


def _measures(trace: Trace, log_given: float, log_without: float, reread: Trace) -> dict[str, float]:
    """Every metric and variant of one thought; log p(y*|x,z) and log p(y*|x, no thought) in nats."""
    answer = trace.token[given_answer(trace)]
    words = reread.token[reread.kind == Kind.TARGET]
    entropy = reread.scores[ENTROPY].values[reread.kind == Kind.TARGET]
    steps = step_means(entropy, reread.meta[STEP_ENDS])
    found = {"lexical": lexical(words.tolist(), answer[:-1].tolist() or answer.tolist())}
    variants: tuple[tuple[Variant, str], ...] = (("paper", ""), ("earlier", "_earlier"))
    for variant, suffix in variants:
        level = entropic(steps, variant)
        gain = probabilistic(log_given, log_without, len(answer), variant)
        found[f"entropic{suffix}"], found[f"probabilistic{suffix}"] = level, gain
        found.update({f"zone_{name}{suffix}": float(name == zone(level, gain)) for name in ZONES.values()})
    return found


def _ends(pieces: Sequence[str], mark: str) -> list[bool]:
    """Whether each piece completes the mark; marks that several tokens spell count."""
    ends, text = [], ""
    for piece in pieces:
        text += piece
        ends.append(mark in text)
        text = "" if ends[-1] else text
    return ends
