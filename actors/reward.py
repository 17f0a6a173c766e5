"""A learned reward: an actor that holds a reward model, and how its scores become a trace's reward.

The model reads prompt and answer; whether it also reads the thought is a choice (`LearnedReward.sees`). Scores are on the scale of the
people it learned from. With fresh labels (`LearnedReward.fresh`) people grade some of the newest policy's answers from time to time, and
the model learns those too: what a policy found behind the old labels is seen before it pays for long.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from models.forward import ModelForward, collate, make_view, plan_microbatches, score_traces, token_budget_of
from models.loading import ModelError, classifier_padding, load_role, load_tokenizer, stop_ids
from models.roles import REWARD_NOTES, Template
from models.trace import Kind, Trace

PROXY, SPREAD = "proxy", "proxy_spread"
"""`Trace.components`: mean and standard deviation of the members' scores."""
FRESH_BATCH = 128
"""Answers of an update on fresh labels."""


class Forgotten(RuntimeError):
    """The actor has not learnt as many rounds of fresh labels as it is asked to judge by: it died and came back."""


class NoRater(ValueError):
    """No grade has the component that stands for a fresh rater's word; one sentence."""


class NoScore(ValueError):
    """A reward model says nothing finite; one sentence."""


class Labels(NamedTuple):
    """One round of fresh labels: answers of the policy of a version, and a grade of each."""

    version: int
    traces: list[Trace]
    grades: list[float]


class Lesson(NamedTuple):
    """What was learnt of the newest round of fresh labels. error: its squared error before. read: positions of each answer that was learnt
    from, once for each time and for each model that has a trunk of its own."""

    error: float
    read: list[int]


def check_rater(traces: Sequence[Trace], rater: str | None) -> None:
    """Raise NoRater if grades have no component `rater` (monitor.rater): a misspelt name would silence the alarm and fresh labels without a
    word. None asks for nothing."""
    if rater is None or not traces or any(rater in trace.components for trace in traces):
        return
    known = sorted({name for trace in traces for name in trace.components} - {PROXY, SPREAD})
    near = difflib.get_close_matches(rater, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise NoRater(
        f"monitor.rater: no grade of the environment has a component {rater!r}; {hint}there are: {', '.join(known) or 'none'}"
    )


@dataclass(frozen=True)
class LearnedReward:
    """folders: of the trunks, the first one holds `REWARD_NOTES`. weight: of the score in the reward. bound: standard deviations of the
    ensemble that are taken off its mean. sees: "answer" hides thoughts, "trace" shows them. fresh: answers of the newest policy that people
    grade every `every` versions, by the component `rater` of the environment's grade; 0 for none. steps, lr: updates on each round of these
    labels, and Adam's learning rate. padding: a token that is passed over at the end of what is read, as sequence classifiers do."""

    folders: tuple[str, ...]
    outputs: int
    mean: float
    std: float
    weight: float = 1.0
    bound: float = 0.0
    sees: Literal["answer", "trace"] = "answer"
    fresh: int = 0
    every: int = 10
    rater: str | None = None
    steps: int = 30
    lr: float = 3e-4
    padding: int | None = None

    @classmethod
    def read(cls, folder: str, weight: float, bound: float, sees: Literal["answer", "trace"]) -> LearnedReward:
        """Of a reward model's folder: ours, with its other members in it or, as in a checkpoint, beside it; or a sequence classifier with
        one label, such as TRL's RewardTrainer saves, whose scores are taken as they are. Raises ModelError if it is none."""
        if (padding := classifier_padding(folder)) is not None:
            return cls((folder,), 1, 0.0, 1.0, weight, bound, sees, padding=padding)
        file = Path(folder) / REWARD_NOTES
        try:
            notes = json.loads(file.read_text())
            members, scale = list(notes["members"]), (notes["outputs"], notes["mean"], notes["std"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{folder} is no reward model ({file.name}: {error}); train one with algorithm.name: reward_model"
            ) from error
        folders = [folder]
        for name in members:
            places = [Path(folder) / name, Path(folder).absolute().parent / name]
            found = next((place for place in places if place.is_dir()), None)
            if found is None:
                raise ModelError(
                    f"the reward model {folder} has no folder {name} of another member in it or beside it; copy the whole checkpoint"
                )
            folders.append(str(found))
        return cls(tuple(folders), *scale, weight, bound, sees)

    def give(self, traces: Sequence[Trace], said_NE: np.ndarray) -> None:
        """Put the scores on the last decision of each trace, and note them as components."""
        for trace, said in zip(traces, said_NE, strict=True):
            mean, spread = float(said.mean()), float(said.std())
            trace.components.update({PROXY: mean, SPREAD: spread})
            at = np.flatnonzero(trace.sampled)
            if len(at):
                trace.reward[at[-1]] += self.weight * (mean - self.bound * spread)

    @property
    def template(self) -> Template | None:
        """What is read of a trace."""
        hidden = self.sees == "answer"
        if self.padding is None:
            return without_thought if hidden else None
        return partial(_unpadded, hidden=hidden, padding=self.padding)

    def asks(self, version: int) -> bool:
        """Whether people grade answers of a version."""
        return bool(self.fresh) and version > 0 and version % self.every == 0

    def graded(self, traces: Sequence[Trace], version: int) -> Labels | None:
        """The round of fresh labels that a version asks for, out of its batch; None if it asks for none or nobody graded anything."""
        if not self.asks(version):
            return None
        known = [trace for trace in traces if self.rater in trace.components][: self.fresh]
        return Labels(version, known, [trace.components[str(self.rater)] for trace in known]) if known else None


class RewardScorer:
    """Build it with `ray.remote(RewardScorer).options(...)`."""

    def __init__(self, reward: LearnedReward, dtype: str, threads: int, trust_remote_code: bool = False) -> None:
        import torch

        torch.set_num_threads(threads)
        self.reward = reward
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._load = partial(
            load_role, dtype=dtype, head="scalar", outputs=reward.outputs, trust_remote_code=trust_remote_code
        )
        self._begin()

    def _begin(self) -> None:
        # it learns as it judges, without dropout: what is drawn at random would be drawn anew by an actor that comes back
        self.models = [self._load(folder).to(self.device).eval() for folder in self.reward.folders]
        self._learnt: list[int] = []

    def learn(self, rounds: Sequence[Labels]) -> Lesson:
        """Fit every member to all rounds of fresh labels, half of each batch from the newest.

        What was learnt already is not learnt again; if `rounds` begin otherwise (a run that was taken up again, an actor that was
        restarted), all of them are, from the weights on disk, which comes to the same.
        """
        if self._learnt != [one.version for one in rounds[: len(self._learnt)]]:
            self._begin()
        lesson = Lesson(float("nan"), [])
        for newest in range(len(self._learnt), len(rounds)):
            said_NE = self.score(rounds[newest].traces)
            error = float(((said_NE.mean(1) - rounds[newest].grades) ** 2).mean())
            lesson = Lesson(error, self._fit(rounds[: newest + 1]))
            self._learnt.append(rounds[newest].version)
        return lesson

    def _fit(self, rounds: Sequence[Labels]) -> list[int]:
        """What `Lesson.read` is."""
        import torch

        rng = np.random.default_rng([rounds[-1].version, 0xF5])
        traces = [trace for one in rounds for trace in one.traces]
        target = (np.array([grade for one in rounds for grade in one.grades]) - self.reward.mean) / self.reward.std
        first = len(traces) - len(rounds[-1].traces)
        views = [make_view(trace, self.reward.template) for trace in traces]
        half, read = FRESH_BATCH // 2, []
        for model in self.models:
            optimiser = torch.optim.AdamW(model.parameters(), lr=self.reward.lr, weight_decay=0.1)
            budget = token_budget_of(model, self.device)
            for _ in range(self.reward.steps):
                drawn = [*rng.integers(first, len(traces), half), *rng.integers(0, len(traces), half)]
                optimiser.zero_grad()
                for part in plan_microbatches([views[i].token for i in drawn], budget, model.packs):
                    rows = [drawn[i] for i in part]
                    batch = collate([traces[i] for i in rows], [views[i] for i in rows], self.device)
                    said_BTE = ModelForward(model, batch).outputs_BTE
                    # what it says of an answer stands at its last position
                    said_BE = said_BTE[torch.arange(len(rows)), batch.length_B - 1]
                    wanted_B = torch.tensor(target[rows], dtype=said_BE.dtype, device=self.device)
                    ((said_BE - wanted_B[:, None]).square().mean(1).sum() / len(drawn)).backward()
                optimiser.step()
                read += [len(views[i]) for i in drawn]
        return read

    def gains(self, traces: Sequence[Trace], texts: Sequence[str], rounds: int = 0) -> dict[str, float]:
        """By what each text behind the answers raises their mean score, and under "" what saying the answer twice does: is the judge swayed
        by words that are no better answer? A text that this vocabulary cannot spell, and what is too long for the model, is left out."""
        folder = self.reward.folders[0]
        tokenizer = load_tokenizer(folder)
        spelt = {text: tokenizer.encode(" " + text, add_special_tokens=False) for text in texts}
        added = {text: ids for text, ids in spelt.items() if ids and tokenizer.unk_token_id not in ids}
        ends = set(stop_ids(folder, tokenizer))
        hidden = self.reward.sees == "answer"
        told = [_told(trace, ends, hide_thought=hidden) for trace in traces]
        most = getattr(self.models[0].base.config, "max_position_embeddings", None) or 1 << 30

        def mean(behind: Callable[[list[int]], list[int]]) -> float | None:
            rows = [(context, [*answer, *behind(answer), *end]) for context, answer, end in told]
            if not rows or max(len(context) + len(target) for context, target in rows) > most:
                return None
            return float(self.score([Trace.from_target(c, t, "probe") for c, t in rows], rounds).mean())

        plain = mean(lambda answer: [])
        said = {text: mean(lambda answer, ids=ids: ids) for text, ids in added.items()}  # type: ignore[misc]
        said[""] = mean(lambda answer: answer)
        return {text: score - plain for text, score in said.items() if score is not None and plain is not None}

    def score(self, traces: Sequence[Trace], rounds: int = 0) -> np.ndarray:
        """float64[N, E]: what each member says of each trace, on the people's scale. Raises Forgotten if it has not learnt so many rounds
        of fresh labels."""
        if rounds > len(self._learnt):
            raise Forgotten(f"{len(self._learnt)} of {rounds} rounds of fresh labels are known")
        template, device = self.reward.template, self.device
        said = [score_traces(m, traces, template=template, head="scalar", device=device) for m in self.models]
        rows = [np.concatenate([self._last(own[i], trace) for own in said]) for i, trace in enumerate(traces)]
        return np.array(rows, np.float64).reshape(len(traces), -1) * self.reward.std + self.reward.mean

    def _last(self, values: np.ndarray, trace: Trace) -> np.ndarray:
        """The outputs at the only position that has any. Raises NoScore if they are not finite."""
        told = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not told.any():
            mend = "lower reward_model.fresh_lr" if self._learnt else "train it again with a lower train.optimiser.lr"
            since = " since it learnt fresh labels" if self._learnt else ""
            raise NoScore(
                f"the reward model {self.reward.folders[0]} says nothing finite of an answer to task {trace.task}{since}; {mend}"
            )
        return np.atleast_1d(values[np.flatnonzero(told)[-1]])


def _told(trace: Trace, ends: set[int], *, hide_thought: bool) -> tuple[list[int], list[int], list[int]]:
    """(what stands before the last answer, the last answer, the token that ended it if one did), without latents."""
    shown = trace.kind != Kind.LATENT
    if hide_thought:
        shown &= trace.kind != Kind.THOUGHT
    token, kind = trace.token[shown].tolist(), trace.kind[shown]
    end = token[-1:] if token and token[-1] in ends else []
    before = np.flatnonzero(~np.isin(kind, (Kind.ACTION, Kind.TARGET)))
    first = int(before[-1]) + 1 if len(before) else 0
    return token[:first], token[first : len(token) - len(end)], end


def without_thought(trace: Trace) -> list[np.ndarray]:
    """A trace as a reward model reads it when the thought is hidden: prompts, observations and what was said, in order."""
    return [trace.where(Kind.CONTEXT, Kind.ACTION, Kind.TARGET)]


def _unpadded(trace: Trace, *, hidden: bool, padding: int) -> list[np.ndarray]:
    """What is read of a trace, up to the last token that is no padding."""
    at = without_thought(trace)[0] if hidden else np.arange(len(trace))
    told = np.flatnonzero(trace.token[at] != padding)
    return [at[: int(told[-1]) + 1 if len(told) else 1]]
