"""Thoughts and what follows them: z ~ p(z|x), then a given answer y* or a sampled one.

    x CONTEXT ─► z THOUGHT ─► (closing mark CONTEXT, where z did not write it) ─► y* TARGET   or   y ACTION

A thought ends with its closing mark, with the end of the text, or where its budget is spent. In the last two cases a closing mark is
put behind it that nobody sampled. So p(z|x) is the product of the sampled tokens' probabilities, however z ended, and p(y|x,z) is
what the model writes behind the mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.types import Actors, Prefix, SamplingParams
from envs.base import Prompt, Task
from models.chat import THINK_CLOSE, THINK_OPEN, ChatFormat
from models.trace import Kind, Literal, Trace

ANSWER_AT = "answer_at"
"""`Trace.meta`: the position at which y* or y begins."""
HINT = "{prompt} given {answer}"
"""How a prompt shows an answer, unless a method says otherwise."""
HINTED = "hinted"
"""`Trace.meta`: ids of a prompt that shows an answer, which a helper reads instead of x."""


class Thoughts:
    """Draws and puts together traces for one tokenizer. Raises ValueError if it cannot spell the closing mark as one token."""

    def __init__(self, tokenizer: object) -> None:
        self.chat = ChatFormat(tokenizer)
        ids = self.chat.ids(THINK_CLOSE)
        if len(ids) != 1 or ids[0] == self.chat.tokenizer.unk_token_id:
            raise ValueError(
                f"the tokenizer does not spell {THINK_CLOSE} as one token, so a thought's end cannot be seen; "
                "add it to the tokenizer's special tokens and train the model to write it"
            )
        self.close = ids[0]
        self.end = self.chat.tokenizer.eos_token_id

    async def draw(
        self,
        task: Task,
        actors: Actors,
        n: int,
        params: SamplingParams,
        context: Sequence[int] | np.ndarray | None = None,
        part: int = 0,
    ) -> list[Trace]:
        """n closed thoughts on a task. context: ids to read in place of the task's own prompt. part: tells several draws of a
        group apart."""
        context = self.chat.prompt_ids(task.prompt) if context is None else np.asarray(context, np.int32)
        stem = Trace(
            token=context,
            kind=np.full(len(context), Kind.CONTEXT, np.uint8),
            logprob=np.full(len(context), np.nan, np.float32),
            version=np.full(len(context), -1, np.int32),
            turn=np.zeros(len(context), np.int16),
            task=task.id,
            group=actors.name,
            episode=actors.name,
        )
        seeds = np.random.default_rng([actors.seed, 0x7A, part]).integers(2**62, size=n).tolist()
        prefixes = [Prefix(stem.token, stem.kind, seed, group=actors.name) for seed in seeds]
        samples = await actors.sample(prefixes, params.but(stop_ids=(*params.stop_ids, self.close)))
        out = []
        for j, (seed, sample) in enumerate(zip(seeds, samples, strict=True)):
            trace = replace(stem, episode=f"{actors.name}/{part}.{j}", seed=seed)
            trace = trace.extended(sample.token, Kind.THOUGHT, sample.logprob, sample.version)
            trace.timings["sample"] = sample.seconds
            closed = len(sample.token) > 0 and int(sample.token[-1]) == self.close
            trace.outcome = "truncated" if sample.finish == "length" and not closed else "ok"
            trace.meta["closed"] = closed
            out.append(trace if closed else trace.extended([self.close], Kind.CONTEXT))
        return out

    async def answer(self, traces: Sequence[Trace], actors: Actors, params: SamplingParams) -> list[Trace]:
        """The same traces, each with an answer sampled behind its thought; `Trace.meta` ANSWER_AT is where it begins."""
        seeds = [int(np.random.default_rng([t.seed, 0xA5]).integers(2**62)) for t in traces]
        prefixes = [Prefix(t.token, t.kind, s, group=t.group) for t, s in zip(traces, seeds, strict=True)]
        out = []
        for trace, sample in zip(traces, await actors.sample(prefixes, params), strict=True):
            longer = trace.extended(sample.token, Kind.ACTION, sample.logprob, sample.version)
            longer.meta[ANSWER_AT] = len(trace)
            out.append(longer)
        return out

    def given(self, trace: Trace, answer: str) -> Trace:
        """The same thought with a given answer and the end of the text behind it."""
        longer = trace.extended(self.chat.emission_ids((), answer), Kind.TARGET)
        longer.meta[ANSWER_AT] = len(trace)
        return longer

    def rethought(self, trace: Trace, task: Task) -> Trace:
        """The thought of a trace that was drawn from another prompt, behind the task's own: a given text now (TARGET), for imitation."""
        context = self.chat.prompt_ids(task.prompt)
        z = trace.token[trace.kind == Kind.THOUGHT]
        forced = [] if trace.meta.get("closed") else [self.close]
        stem = Trace.from_target(context, [*z.tolist(), *forced], task.id)
        stem.group, stem.episode, stem.seed = trace.group, trace.episode, trace.seed
        stem.meta.update(trace.meta)
        return stem

    def empty(self, task: Task) -> list[int]:
        """Ids of a thought without words; of its closing mark alone where the prompt opens it."""
        opened = self.chat.opens(self.chat.prompt_ids(task.prompt))
        return [*([] if opened else self.chat.ids(THINK_OPEN)), self.close]

    def text(self, trace: Trace) -> str:
        """What stands at `ANSWER_AT` and behind it."""
        return self.chat.decode(trace.token[trace.meta[ANSWER_AT] :]).strip()

    def hinted_ids(self, prompt: Prompt, template: str, answer: str) -> tuple[int, ...]:
        """Ids of a prompt that shows an answer."""
        return tuple(self.chat.prompt_ids(hinted(prompt, template, answer)).tolist())


def answer_of(task: Task) -> str:
    """The task's good answer. Raises ValueError naming a task without one."""
    if task.answer is None:
        raise ValueError(f"task {task.id} has no answer: this method learns from good answers, give every task one")
    return task.answer


def hinted(prompt: Prompt, template: str, answer: str) -> Prompt:
    """A prompt rewritten by a template with {prompt} and {answer}; of a chat, its last user message. A text that opens the thought
    opens it behind the template's words."""

    def fill(text: str) -> str:
        opened = isinstance(prompt, str) and text.endswith(THINK_OPEN)
        bare = text.removesuffix(THINK_OPEN).rstrip() if opened else text
        return template.replace("{answer}", answer).replace("{prompt}", bare) + (f" {THINK_OPEN}" if opened else "")

    if isinstance(prompt, str):
        return fill(prompt)
    messages = [dict(message) for message in prompt]
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=len(messages) - 1)
    messages[last]["content"] = fill(messages[last]["content"])
    return messages


def given_answer(trace: Trace) -> np.ndarray:
    """bool[T]: positions of the given answer y* (and the end of the text behind it)."""
    if ANSWER_AT not in trace.meta:
        return np.zeros(len(trace), bool)
    return (trace.kind == Kind.TARGET) & (np.arange(len(trace)) >= trace.meta[ANSWER_AT])


def thought(trace: Trace) -> np.ndarray:
    """bool[T]: positions of the thought, sampled or given."""
    at = trace.meta.get(ANSWER_AT, len(trace))
    given = (trace.kind == Kind.TARGET) & (np.arange(len(trace)) < at)
    return (trace.kind == Kind.THOUGHT) | given


def answer_loglik(trace: Trace, role: str = "policy") -> float:
    """log p(y*|x,z) in nats as a role scored it, the end of the text included."""
    return float(trace.scores[role].values[given_answer(trace)].astype(np.float64).sum())


def likelihoods(traces: Sequence[Trace]) -> np.ndarray:
    """float64[K]: log p(y*|x,z) of each trace, in nats."""
    return np.array([answer_loglik(trace) for trace in traces])


def progress(trace: Trace, role: str, prior: str = "policy") -> np.ndarray:
    """float64[n]: log-ratio of a role that sees the answer to the prior, at each sampled token of the thought."""
    at = trace.kind == Kind.THOUGHT
    return trace.scores[role].values[at].astype(np.float64) - trace.scores[prior].values[at]


def reading_with_answer(trace: Trace) -> Sequence[np.ndarray | Literal]:
    """The helper's reading of a trace: the prompt that shows the answer, then the thought (a `models.roles.Template`)."""
    return [Literal(trace.meta[HINTED]), trace.where(Kind.THOUGHT)]
