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
from envs.punchline import CLOSERS, MIXTURE, NOUNS, WRITTEN, Punchline


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


def test_a_base_model_reads_thoughts_that_lead_to_its_answers() -> None:
    env = Punchline()
    read = take(env, "pretrain", 3000)
    counts = Counter(t.meta["kind"] for t in read)
    for kind, share in MIXTURE.items():
        assert counts[kind] / 3000 == pytest.approx(share, abs=0.03), kind
    good: dict[str, float] = {}
    for kind in MIXTURE:
        own = [t for t in read if t.meta["kind"] == kind]
        good[kind] = sum(env.grade(t, str(t.answer)).value for t in own) / len(own)
    # middling jokes about the right word; about the wrong one or any word they are worse
    assert good["given"] == pytest.approx(good["right"], abs=0.04)
    assert 0.2 < good["right"] < 0.45
    assert good["none"] < good["slip"] < good["right"] - 0.05
    for task in read[:200]:
        shown = str(task.prompt).split()[16:]
        assert shown == (["given", *str(task.answer).split()] if task.meta["kind"] == "given" else [])
        assert (task.steps == ()) == (task.meta["kind"] == "none")
        assert {*str(task.prompt).split(), *str(task.answer).split(), *" ".join(task.steps or ()).split()} <= set(
            env.words()
        )


def test_people_grade_with_noise_around_the_gold_score() -> None:
    env = Punchline(labels=3000, raters=4, noise=0.2)
    labels = list(env.tasks("labels"))
    assert len(labels) == 3000
    written = [t for t in labels if t.meta.get("written")]
    assert len(written) / 3000 == pytest.approx(WRITTEN, abs=0.02)
    assert all(t.meta["scores"] == [] and env.grade(t, str(t.answer)).value >= env.good for t in written)
    graded = [t for t in labels if not t.meta.get("written")]
    assert all(len(t.meta["scores"]) == 4 and set(t.meta["scores"]) <= {0.0, 1 / 3, 2 / 3, 1.0} for t in graded)
    assert {t.meta["kind"] for t in graded} == set(MIXTURE) - {"given"}
    raters = [env.grade(t, str(t.answer)).components["rater"] for t in graded]
    assert raters == [env.grade(t, str(t.answer)).components["rater"] for t in graded]
    assert set(raters) <= {0.0, 1 / 3, 2 / 3, 1.0}
    assert sum(raters) / len(raters) == pytest.approx(
        sum(sum(t.meta["scores"]) / 4 for t in graded) / len(graded), abs=0.02
    )
    # in the middle of the scale rounding and its ends cancel out
    middle = [t for t in graded if 0.4 <= env.grade(t, str(t.answer)).value <= 0.6]
    said = sum(sum(t.meta["scores"]) / 4 for t in middle) / len(middle)
    gold = sum(env.grade(t, str(t.answer)).value for t in middle) / len(middle)
    assert said == pytest.approx(gold, abs=0.04)
    known = env.references("labels_test", 400)
    assert 0 < known["noise floor"] < known["mean predictor"]
    assert not {str(t.prompt) for t in labels} & {str(t.prompt) for t in take(env, "labels_test", 300)}
    assert [t.prompt for t in Punchline(train_tasks=5).tasks("train")] == [t.prompt for t in take(env, "train", 5)]


def test_it_conforms() -> None:
    report = asyncio.run(check_env("punchline", {}, samples=40))
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    with pytest.raises(ValueError, match="hops of 1 to 3"):
        Punchline(hops=4)
