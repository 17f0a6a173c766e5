"""Punchlines: where the trains of thought meet, by following every word; the gold score; the distribution of good
answers."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter

import pytest

from envs.base import Task
from envs.check import check_env
from envs.punchline import CLOSERS, NOUNS, Punchline


def take(env: Punchline, split: str, n: int) -> list[Task]:
    return list(itertools.islice(env.tasks(split), n))


def distances(table: dict[str, str], topic: str) -> dict[str, int]:
    found: dict[str, int] = {}
    word = topic
    while word not in found:
        found[word] = len(found)
        word = table[word]
    return found


def rhymes(noun: str, closer: str) -> bool:
    ends = {"at": "at", "ake": "ake", "ing": "ing", "oon": "oon"}
    return any(noun.endswith(end) and closer.endswith(end) for end in ends)


def test_the_trains_of_thought_meet_where_the_task_says() -> None:
    for task in take(Punchline(), "train", 200):
        words = str(task.prompt).split()
        table = dict(zip(NOUNS, words[:12], strict=True))
        assert words[12::2] == [":", "meets"]
        one, other = distances(table, words[13]), distances(table, words[15])
        meeting = min((max(one[w], other[w]), w) for w in set(one) & set(other))[1]
        assert task.meta["pivots"] == [meeting, table[meeting], table[table[meeting]]]
        assert 1 <= min(one[meeting], other[meeting]) <= max(one[meeting], other[meeting]) <= 3
        assert task.steps is not None
        assert len(task.steps) == max(one[meeting], other[meeting])
        assert meeting in " ".join(task.steps).split()
        assert set(words) | set(str(task.answer).split()) <= set(Punchline().words())


def test_the_gold_score_pays_for_the_link_and_the_rhyme() -> None:
    env, task = Punchline(), take(Punchline(), "test", 1)[0]
    first, second, third = task.meta["pivots"]
    for place, (pivot, link) in enumerate(((first, 1.0), (second, 0.7), (third, 0.4))):
        for closer in CLOSERS:
            style = (0.6, 0.8, 1.0)[CLOSERS.index(closer) % 3] if rhymes(pivot, closer) else 0.2
            assert env.grade(task, f"so {pivot} {closer}").value == pytest.approx(link * style), place
    elsewhere = next(noun for noun in NOUNS if noun not in task.meta["pivots"])
    assert env.grade(task, f"{elsewhere} {CLOSERS[0]}").value == 0.0
    for text in (first, f"{first} {first}", f"{CLOSERS[0]} {first}", ""):
        assert env.grade(task, text).value == 0.0
    assert not env.grade(task, f"{first} {CLOSERS[0]}").exact


def test_answers_are_drawn_from_the_known_distribution() -> None:
    env, task = Punchline(tau=0.2), take(Punchline(), "train", 1)[0]
    every = {f"{n} {c}": env.grade(task, f"{n} {c}").value for n in NOUNS for c in CLOSERS}
    weight = {y: math.exp(g / 0.2) for y, g in every.items() if g >= 0.4}
    shares = env.distribution(task)
    assert shares == pytest.approx({y: w / sum(weight.values()) for y, w in weight.items()})
    assert env.entropy(task) == pytest.approx(-sum(p * math.log(p) for p in shares.values()))
    assert env.entropy(task) > 1.0
    n = 4000
    counts = Counter(env.good_answers(task, n, 7))
    for answer, p in shares.items():
        assert counts[answer] / n == pytest.approx(p, abs=4 * math.sqrt(p / n))
    assert env.good_answers(task, 9, 7) == env.good_answers(task, 9, 7) != env.good_answers(task, 9, 8)


def test_the_data_set_holds_several_answers_of_different_worth() -> None:
    env = Punchline()
    tasks = take(env, "train", 150)
    gold = [env.grade(t, str(t.answer)).value for t in tasks]
    assert min(gold) >= 0.4
    assert len({round(g, 3) for g in gold}) >= 5
    known = env.references("train", 150)
    assert known["gold of the data"] == pytest.approx(sum(gold) / len(gold), abs=0.05)
    assert known["entropy"] == pytest.approx(
        env.entropy(tasks[0])
    )  # every prompt has seven good answers of the same worths
    assert not {str(t.prompt) for t in tasks} & {str(t.prompt) for t in take(env, "test", 100)}


def test_it_conforms() -> None:
    report = asyncio.run(check_env("punchline", {}, samples=40))
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    with pytest.raises(ValueError, match="hops of 1 to 3"):
        Punchline(hops=4)
