"""Graded answers from files: layouts, raters, splits by prompt, faults by place; grades of `posterior label`; UniEval."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from envs.base import Task
from envs.graded import Graded
from posterior.label import Item, Labels

UNIEVAL = (
    Path(os.environ.get("POSTERIOR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "unieval/topical_chat.json"
)


def items(env: Graded) -> dict[tuple[str, str | None], list[float]]:
    return {(str(t.prompt), t.answer): t.meta["scores"] for t in env.items}


def test_one_item_whatever_the_layout(tmp_path: Path) -> None:
    """Two raters of one answer, and one of another: as rows, as a list, as nested values, as columns."""
    rows: dict[str, tuple[Any, dict[str, Any]]] = {
        "rows.jsonl": (
            [
                {"prompt": "p", "answer": "a", "score": 1},
                {"prompt": "p", "answer": "a ", "score": 3},
                {"prompt": "q", "answer": "b", "score": 2},
            ],
            {},
        ),
        "list.json": (
            [{"prompt": "p", "answer": "a", "score": [1, 3]}, {"prompt": "q", "answer": "b", "score": [2]}],
            {},
        ),
        "nested.json": (
            [{"q": "p", "out": "a", "s": {"x": 1, "y": 3}}, {"q": "q", "out": "b", "s": {"x": 2, "y": None}}],
            {"prompt": "q", "answer": "out", "score": ["s.x", "s.y"]},
        ),
        "columns.csv": ("prompt,answer,ann,bob\np,a,1,3\nq,b,2,\n", {"score": ["ann", "bob"]}),
    }
    for name, (content, options) in rows.items():
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        env = Graded(str(path), **options)
        assert items(env) == {("p", "a"): [1.0, 3.0], ("q", "b"): [2.0]}, name
        task = next(t for t in env.items if t.prompt == "p")
        assert env.grade(task, "a").value == pytest.approx(0.5)
        assert env.grade(task, "z").note == "nobody graded this answer"


def test_no_prompt_is_in_two_splits_and_written_answers_are_trained_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 60}", "answer": f"a{i}", "score": i % 5} for i in range(180)]
    (tmp_path / "g.json").write_text(json.dumps(rows))
    (tmp_path / "w.json").write_text(json.dumps([{"prompt": "new", "answer": "good"}]))
    env = Graded(str(tmp_path / "g.json"), written=str(tmp_path / "w.json"), valid=0.2, test=0.2)
    prompts = [{str(t.prompt) for t in env.tasks(split)} for split in env.splits()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 61
    assert sum(len(env.tasks(split)) for split in env.splits()) == 181
    assert [t.answer for t in env.tasks("train") if t.meta.get("written")] == ["good"]
    ids = [t.id for split in env.splits() for t in env.tasks(split)]
    assert len(set(ids)) == len(ids)


def test_written_answers_to_held_out_prompts_are_left_out(tmp_path: Path) -> None:
    graded = [{"prompt": f"p{i}", "answer": "bad", "score": i % 5} for i in range(100)]
    written = [{"prompt": f"p{i}", "answer": answer} for i in range(100) for answer in ("bad", "good")]
    (tmp_path / "g.json").write_text(json.dumps(graded))
    (tmp_path / "w.json").write_text(json.dumps(written))
    env = Graded(str(tmp_path / "g.json"), written=str(tmp_path / "w.json"))
    prompts = [{str(t.prompt) for t in env.tasks(split)} for split in env.splits()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 100
    train = env.tasks("train")
    assert len([t for t in train if t.meta.get("written")]) == 2 * len(prompts[0])
    assert len({t.id for t in train}) == len(train) == 3 * len(prompts[0])


def test_prompts_of_chat_messages(tmp_path: Path) -> None:
    """Messages are one prompt by their content, whatever the order of their keys; text of the same words is another."""
    asked = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"p {i}"}] for i in range(50)]
    rows: list[dict[str, Any]] = [{"prompt": prompt, "answer": "a", "score": 1} for prompt in asked]
    turned = [dict(reversed(message.items())) for message in asked[0]]
    rows += [{"prompt": turned, "answer": "a", "score": 3}, {"prompt": "p 0", "answer": "a", "score": 2}]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = Graded(str(tmp_path / "g.jsonl"), valid=0.3, test=0.3)
    assert len(env.items) == 51
    assert (env.items[0].prompt, env.items[0].meta["scores"]) == (asked[0], [1.0, 3.0])
    assert env.grade(Task("t", turned), "a").value == pytest.approx(0.5)
    assert min(len(env.tasks(split)) for split in env.splits()) > 5
    assert list(env.words())[:3] == ["0", "1", "10"]
    assert "Be" in env.words()


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('[{"prompt": "p", "answer": "a"}]', {}, "line 1: there is no column 'score'; there are: prompt, answer"),
        ('[{"prompt": "p", "answer": 3, "score": 1}]', {}, "line 1: answer must be text, not int"),
        ('[{"prompt": "p", "answer": "a", "score": "good"}]', {}, "score must be a number"),
        ('[{"prompt": "p", "answer": "a", "score": 1e999}]', {}, "not finite"),
        ('{"prompt": "p"}', {}, "line 1: there is no column 'answer'"),
        ('[{"prompt": "p"', {}, r"line 1: not valid JSON .*; expected an array of objects"),
        ("[]", {}, "holds no rows"),
        ('[{"prompt": "p", "answer": "a", "score": null}]', {}, "g.json holds not one score in score; name the column"),
        ('[{"prompt": 3, "answer": "a", "score": 1}]', {}, "line 1: prompt must be text, not int"),
        ('[{"prompt": [], "answer": "a", "score": 1}]', {}, "line 1: prompt holds no chat message"),
        ('[{"prompt": [{"role": "user"}], "answer": "a", "score": 1}]', {}, "line 1: prompt holds .* no chat message"),
        ("[3]", {}, "expected columns"),
        ('[{"prompt": "p", "answer": "a", "score": 1}]', {"valid": 0.5, "test": 0.5}, "leave something to train on"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: str, options: dict[str, Any], said: str) -> None:
    (tmp_path / "g.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        Graded(str(tmp_path / "g.json"), **options)
    with pytest.raises(ValueError, match="no such file; give a "):
        Graded(str(tmp_path / "nothing.json"))


def test_a_hugging_face_dataset_and_a_broken_table(tmp_path: Path) -> None:
    import datasets

    given = {"ask": ["p", "q"], "reply": ["a", "b"], "grades": [{"ann": 1, "bob": 2}, {"ann": 3, "bob": None}]}
    datasets.Dataset.from_dict(given).save_to_disk(tmp_path / "saved")
    for source in (str(tmp_path / "saved"), f"hf:{tmp_path / 'saved'}"):
        env = Graded(source, prompt="ask", answer="reply", score=["grades.ann", "grades.bob"])
        assert items(env) == {("p", "a"): [1.0, 2.0], ("q", "b"): [3.0]}
    (tmp_path / "g.csv").write_text('prompt,answer,score\np,"two\nlines",3\nq,one, two,4\n')
    with pytest.raises(ValueError, match=r"g.csv, line 4: more cells than columns; put text with commas in quotes"):
        Graded(str(tmp_path / "g.csv"))


def test_the_labels_of_two_raters_feed_a_reward_model(tmp_path: Path) -> None:
    for rater, scores in (("ann", (4, 1)), ("bob", (5, 2))):
        labels = Labels(tmp_path / "labels" / f"{rater}.jsonl", rater)
        for i, score in enumerate(scores):
            labels.add(Item(f"t{i}", f"t{i}/0", f"prompt {i}", f"answer {i}"), score)
    env = Graded(str(tmp_path / "labels"))
    assert items(env) == {("prompt 0", "answer 0"): [4.0, 5.0], ("prompt 1", "answer 1"): [1.0, 2.0]}


@pytest.mark.skipif(not UNIEVAL.exists(), reason="the UniEval file is not here")
def test_unieval_is_read() -> None:
    env = Graded(str(UNIEVAL), prompt="source", answer="system_output", score="scores.overall")
    assert len(env.items) > 300
    assert env.scale == (1.0, 5.0)
    assert len({str(t.prompt) for t in env.items}) < len(env.items)  # several systems answer one context
