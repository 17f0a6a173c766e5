"""Punchlines: an inexactly graded task in the manner of a joke, with many good answers of different quality and a
score known only to the evaluator.

    cat hat bat lake ... ring moon : moon meets king ->          cake shake
    what each of twelve words makes one think of, in a fixed order; the topics; a punchline (a pivot and a closer)

A punchline is good when its first word is where the trains of thought of both topics meet: both are followed for one
to three associations until they share a word. That word is worth most, those that follow it less and less. Its second
word should rhyme with the first; a rare rhyme is worth more than a common one. Nobody writes the best punchline only:
the data set's answers are drawn from p(y | x) ~ exp(gold / tau) over all answers that are good enough, so several
answers to one prompt are legitimate.

The gold score is for evaluation (`grade`); what learns from given answers never sees it. All 144 answers to a prompt
can be listed, so `distribution` is exact, and its entropy is the least loss per answer that any model can reach.

For the other ways to learn such a task there are "pretrain", what a base model has read: thoughts that follow both
trains, or slip, or are none, and middling jokes about the word where they ended; and "labels": such jokes, the
thoughts in `Task.steps`, that people graded with noise, in thirds of a point, and among them a few good ones that
somebody wrote and nobody graded. People see the joke, not the thought.
"""

from __future__ import annotations

import itertools
import math
import zlib
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from envs.base import Grade, SingleTurnEnv, Task
from envs.raters import floors, rated

NOUNS = ("cat", "hat", "bat", "cake", "snake", "lake", "king", "ring", "wing", "moon", "spoon", "balloon")
CLOSERS = (
    *("flat", "brat", "acrobat"),
    *("shake", "brake", "earthquake"),
    *("swing", "sting", "awakening"),
    *("soon", "baboon", "macaroon"),
)
"""Of each family of rhymes a common, a rarer and a rare word; nouns and closers of one family stand at the same place
of their lists."""
FAMILY = 3
LINK = (1.0, 0.7, 0.4)
"""Worth of the word where the topics meet, and of the two that follow it."""
RHYME = (0.6, 0.8, 1.0)
"""Worth of a common, a rarer and a rare rhyme."""
NO_RHYME = 0.2
SPLITS = ("train", "test", "pretrain", "labels", "labels_valid", "labels_test")
GIVEN = "{prompt} given {answer}"
"""The prompt that shows the answer: what a prompted posterior q(z | x, y) reads."""
MARKS = ("<think>", "</think>")
MIXTURE = {"right": 0.4, "slip": 0.2, "none": 0.3, "given": 0.1}
"""Thoughts of "pretrain": both trains as they are, with one wrong association that is carried on, none (and a joke about any
word), and right ones behind a prompt that shows the answer. Those of "labels" have the same shares without the last."""
MIDDLING = 0.3
"""Tau of the writers of "pretrain" and "labels", who write any answer."""
WRITTEN = 0.1
"""Share of "labels" that is a good answer without a grade."""


class Punchline(SingleTurnEnv):
    """hops: the most associations between a topic and the word where they meet (1 to 3). tau: how much the data set
    prefers the best answers. good: the least gold score of an answer in the data set, and of a solved task. train_tasks: how
    many training tasks there are, to be seen again and again; 0 for no end. labels: answers in "labels". raters, noise: how
    many grade each, and the standard deviation of what one says of it.

    Splits: "train", "test" and "pretrain", endless, "labels", and "labels_valid" and "labels_test", endless; no prompt of
    "test" or "labels_test" is in another.
    """

    exact: ClassVar[bool] = False
    description: ClassVar[str] = "end a joke: many good answers of different quality (inexactly graded)"

    def __init__(
        self,
        hops: int = 3,
        tau: float = 0.15,
        good: float = 0.4,
        train_tasks: int = 0,
        labels: int = 4000,
        raters: int = 3,
        noise: float = 0.3,
    ) -> None:
        if not 1 <= hops <= 3 or tau <= 0 or not 0 < good <= 0.6:
            raise ValueError(
                f"punchline needs hops of 1 to 3, tau above 0 and 0 < good <= 0.6, not {hops}, {tau} and {good}"
            )
        if train_tasks < 0 or labels < 1 or raters < 1 or noise < 0:
            raise ValueError(
                "punchline needs labels and raters of at least 1, and train_tasks and noise of at least 0, not "
                f"labels {labels}, raters {raters}, train_tasks {train_tasks} and noise {noise}"
            )
        self.hops, self.tau, self.good = hops, tau, good
        self.train_tasks, self.labels, self.raters, self.noise = train_tasks, labels, raters, noise

    def splits(self) -> Sequence[str]:
        return SPLITS

    def words(self) -> Sequence[str]:
        return (*NOUNS, *CLOSERS, ":", "meets", "given", *MARKS)

    def tasks(self, split: str) -> Iterator[Task] | list[Task]:
        if split not in SPLITS:
            raise ValueError(f"punchline has no split {split!r}; there are: {', '.join(SPLITS)}")
        end = {"train": self.train_tasks, "labels": self.labels}.get(split)
        return list(itertools.islice(self._stream(split), end)) if end else self._stream(split)

    def _stream(self, split: str) -> Iterator[Task]:
        held_out = split in ("test", "labels_test")
        rng = np.random.default_rng([self.hops, SPLITS.index(split), 0x90C])
        serial = 0
        while True:
            leads_to, topics = self._setup(rng)
            if _held_out(leads_to, topics) == held_out:
                task = self._task(f"{split}-{serial}", leads_to, topics, rng)
                if split == "labels" and rng.random() < WRITTEN:
                    task = replace(task, meta={**task.meta, "written": True, "scores": []})
                elif split not in ("train", "test"):
                    kinds = [kind for kind in MIXTURE if split == "pretrain" or kind != "given"]
                    task = self._middling(task, leads_to, topics, kinds, rng)
                    if split != "pretrain":
                        gold = self.grade(task, str(task.answer)).value
                        scores = rated(gold, self.noise, rng, self.raters)
                        task = replace(task, meta={**task.meta, "scores": scores})
                yield task
                serial += 1

    def grade(self, task: Task, text: str) -> Grade:
        """The gold score of the last two words; 0 for anything that is not a noun and a closer. Not exact: it stands
        in for people. "rater": one person's word."""
        said = text.split()[-2:]
        known = len(said) == 2 and said[0] in NOUNS and said[1] in CLOSERS
        link, style = _parts(task.meta["pivots"], *said) if known else (0.0, 0.0)
        value = link * style
        luck = np.random.default_rng(zlib.crc32(f"{task.id} {text}".encode(errors="replace")))
        parts = {"link": link, "style": style, "rater": rated(value, self.noise, luck, 1)[0]}
        return Grade(value, parts, exact=False, passed=value >= self.good)

    def solution(self, task: Task) -> list[str]:
        """For `posterior envs check`: a best answer, since those of "pretrain" and "labels" are middling."""
        noun = task.meta["pivots"][0]
        return [f"{noun} {CLOSERS[NOUNS.index(noun) // FAMILY * FAMILY + FAMILY - 1]}"]

    def distribution(self, task: Task) -> dict[str, float]:
        """p(y | x) of the data set: every answer in it with its probability."""
        return dict(_distribution(tuple(task.meta["pivots"]), self.tau, self.good))

    def entropy(self, task: Task) -> float:
        """Nats: the least -E log p(y* | x) of any model."""
        return -sum(p * math.log(p) for p in self.distribution(task).values())

    def good_answers(self, task: Task, n: int, seed: int) -> list[str]:
        """n draws from `distribution`, such as n people might have written."""
        return self._drawn(task, np.random.default_rng([seed, 0x600D]).random(n).tolist())

    def _drawn(self, task: Task, luck: Sequence[float]) -> list[str]:
        shares = self.distribution(task)
        answers, sums = list(shares), list(itertools.accumulate(shares.values()))
        return [answers[min(bisect(sums, u), len(answers) - 1)] for u in luck]

    def references(self, split: str, tasks: int) -> dict[str, float]:
        """The entropy of the data set's answers (nats), and the gold score they have on average; of graded answers the squared
        errors of their mean grade and of whoever knows what raters say on average."""
        if split.startswith("labels"):
            rows = [t.meta["scores"] for t in itertools.islice(self.tasks(split), tasks)]
            return floors([row for row in rows if row])
        asked = list(itertools.islice(self.tasks(split), tasks))
        gold = [p * self.grade(task, y).value for task in asked for y, p in self.distribution(task).items()]
        return {"entropy": sum(map(self.entropy, asked)) / len(asked), "gold of the data": sum(gold) / len(asked)}

    def _setup(self, rng: np.random.Generator) -> tuple[list[int], tuple[int, int]]:
        """(what each noun leads to, the two topics): two chains of `hops` at most that meet, and a tail of two behind
        the meeting."""
        order = rng.permutation(len(NOUNS)).tolist()
        near, far = (int(i) for i in rng.integers(1, self.hops + 1, size=2))
        one, other = order[:near], order[near : near + far]
        meeting, *tail = order[near + far : near + far + 3]
        rest = order[near + far + 3 :]
        leads_to = [0] * len(NOUNS)
        for chain in ([*one, meeting], [*other, meeting], [meeting, *tail]):
            for a, b in itertools.pairwise(chain):
                leads_to[a] = b
        # nothing but the topics may tell the meeting: other words meet too, and the tail leads back to somewhere
        places = rng.integers(1, len(NOUNS), size=len(NOUNS)).tolist()
        for loose in [tail[-1], *rest]:
            leads_to[loose] = (loose + places[loose]) % len(NOUNS)
        return leads_to, (one[0], other[0])

    def _task(self, name: str, leads_to: Sequence[int], topics: tuple[int, int], rng: np.random.Generator) -> Task:
        steps, meeting = self._thought(leads_to, topics)
        prompt = " ".join([*(NOUNS[i] for i in leads_to), ":", NOUNS[topics[0]], "meets", NOUNS[topics[1]]])
        task = Task(name, prompt, None, steps, {"pivots": _pivots(leads_to, meeting), "hops": len(steps)})
        return replace(task, answer=self._drawn(task, [float(rng.random())])[0])

    def _thought(self, leads_to: Sequence[int], topics: tuple[int, int]) -> tuple[tuple[str, ...], int]:
        """(where both trains are after each association, up to where they meet, the meeting; the last word of the first train
        where they do not meet in time)"""
        trains = [[topic] for topic in topics]
        while not set(trains[0]) & set(trains[1]) and len(trains[0]) <= self.hops:
            for train in trains:
                train.append(leads_to[train[-1]])
        steps = tuple(f"{NOUNS[a]} {NOUNS[b]}" for a, b in zip(*trains, strict=True))[1:]
        return steps, next((i for i in trains[0] if i in trains[1]), trains[0][-1])

    def _middling(
        self,
        task: Task,
        leads_to: Sequence[int],
        topics: tuple[int, int],
        kinds: Sequence[str],
        rng: np.random.Generator,
    ) -> Task:
        """The same prompt with a thought of one of these kinds and a middling joke about the word where it ended."""
        share = np.array([MIXTURE[kind] for kind in kinds])
        kind = str(rng.choice(kinds, p=share / share.sum()))
        steps, pivots = task.steps, task.meta["pivots"]
        if kind == "none":
            steps, pivots = (), _pivots(leads_to, int(rng.integers(len(NOUNS))))
        elif kind == "slip":
            # a word that is passed on the way leads elsewhere
            passed = [topics[0], topics[1], *(NOUNS.index(w) for step in task.steps or () for w in step.split())]
            slipped = list(leads_to)
            slipped[int(rng.choice(passed))] = int(rng.integers(len(NOUNS)))
            steps, meeting = self._thought(slipped, topics)
            pivots = _pivots(slipped, meeting)
        answers, sums = _any_answer(tuple(pivots))
        answer = answers[min(int(np.searchsorted(sums, rng.random())), len(answers) - 1)]
        prompt = GIVEN.format(prompt=task.prompt, answer=answer) if kind == "given" else task.prompt
        return replace(task, prompt=prompt, steps=steps, answer=answer, meta={**task.meta, "kind": kind})


def _pivots(leads_to: Sequence[int], meeting: int) -> list[str]:
    """The meeting and the two words that follow it."""
    after = leads_to[meeting]
    return [NOUNS[i] for i in (meeting, after, leads_to[after])]


@lru_cache(maxsize=4096)
def _any_answer(pivots: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """All answers, and the sums of their probabilities under writers of middling jokes."""
    answers = list(itertools.product(NOUNS, CLOSERS))
    weight = np.exp(np.array([math.prod(_parts(pivots, *answer)) for answer in answers]) / MIDDLING)
    return [" ".join(answer) for answer in answers], np.cumsum(weight / weight.sum())


def _parts(pivots: Sequence[str], noun: str, closer: str) -> tuple[float, float]:
    """(worth of the link, worth of the rhyme)"""
    link = LINK[pivots.index(noun)] if noun in pivots else 0.0
    place = CLOSERS.index(closer)
    return link, RHYME[place % FAMILY] if place // FAMILY == NOUNS.index(noun) // FAMILY else NO_RHYME


@lru_cache(maxsize=4096)
def _distribution(pivots: tuple[str, ...], tau: float, good: float) -> dict[str, float]:
    gold = {f"{noun} {closer}": math.prod(_parts(pivots, noun, closer)) for noun in pivots for closer in CLOSERS}
    weight = {answer: math.exp(value / tau) for answer, value in gold.items() if value >= good}
    total = sum(weight.values())
    return {answer: w / total for answer, w in weight.items()}


def _held_out(leads_to: Sequence[int], topics: Sequence[int]) -> bool:
    """One in sixteen prompts, by a hash that does not change."""
    value = 1
    for i in (*leads_to, *topics):
        value = (value * 1_000_003 + i + 1) % 2_147_483_647
    return value * 2_654_435_761 % 4_294_967_296 >> 28 == 0
