"""Graphs in the manner of ProsQA: answers by search, the published statistics, shortcuts, the published rows where
they lie here."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import Task
from envs.check import check_env
from envs.graph_reach import GraphReach
from envs.graphs import Graph, ancestors, in_degree, layers, read_prosqa, shortcut_floors

SMALL: dict[str, Any] = {"nodes": (10, 12), "hops": {1: 0.2, 2: 0.4, 3: 0.4}, "parents": 1.0, "balanced": True}
ROWS = (
    Path(os.environ.get("POSTERIOR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "prosqa/prosqa_valid.json"
)


def take(env: GraphReach, split: str, n: int) -> list[Task]:
    return list(itertools.islice(env.tasks(split), n))


def graphs(env: GraphReach, n: int) -> list[Graph]:
    return list(itertools.islice(env.graphs("train"), n))


def reached(edges: Sequence[tuple[Any, ...]], root: Any) -> dict[Any, int]:
    """Distances from the root, by spreading until nothing changes."""
    found = {root: 0}
    for step in range(1, 40):
        found |= {b: step for a, b in edges if found.get(a) == step - 1 and b not in found}
    return found


def test_arrows_tell_the_same_graphs_with_one_word_an_edge() -> None:
    symbols, arrows = GraphReach(**SMALL), GraphReach(**SMALL, style="arrows")
    words = set(arrows.words())
    for one, other in zip(take(symbols, "test", 40), take(arrows, "test", 40), strict=True):
        shown, asked = str(one.prompt).split(" ? ")
        edges = shown.replace(" ; ", "|").replace(" ", ">").replace("|", " ")
        assert other.prompt == f"{edges} ? {asked}"
        assert (other.answer, other.steps, other.meta) == (one.answer, one.steps, one.meta)
        assert set(str(other.prompt).split()) <= words


def test_frontier_steps_lie_at_each_distance() -> None:
    straight, spread = GraphReach(**SMALL), GraphReach(**SMALL, written="frontier")
    strays = 0
    for task in take(spread, "hops3", 60):
        shown, asked = str(task.prompt).split(" ? ")
        edges = [tuple(edge.split()) for edge in shown.split(" ; ")]
        far = reached(edges, asked.split()[-1])
        assert task.steps is not None
        assert [far[node] for node in task.steps] == [1, 2]
        strays += tuple(task.steps) not in edges
    assert strays  # drawn one by one, not along a path
    for graph in graphs(straight, 60):
        far = reached(graph.edges, graph.root)
        assert layers(graph) == [sorted(n for n in far if far[n] == k) for k in range(1 + max(far.values()))]
    with pytest.raises(ValueError, match="symbols only"):
        GraphReach(style="spaced", written="frontier")


def test_answers_and_steps_by_search() -> None:
    for args in ({}, SMALL):
        env = GraphReach(**args)
        for task in take(env, "test", 40):
            shown, asked = str(task.prompt).split(" ? ")
            edges = [tuple(edge.split()) for edge in shown.split(" ; ")]
            one, other, said, root = asked.split()
            assert said == "from"
            far = reached(edges, root)
            assert {n for n in (one, other) if n in far} == {task.answer}
            assert not {a for a, _ in edges} & {one, other}  # both are leaves
            assert far[str(task.answer)] == task.meta["hops"]
            assert task.steps is not None
            way = [root, *task.steps, task.answer]
            assert len(way) == task.meta["hops"] + 1
            assert all(edge in edges for edge in itertools.pairwise(way))
            assert set(str(task.prompt).split()) <= set(env.words())
            assert env.grade(task, f"so {task.answer}").value == 1.0
            assert env.grade(task, other if one == task.answer else one).value == 0.0


def test_statistics_are_those_published_for_prosqa() -> None:
    made = graphs(GraphReach(), 400)
    assert np.mean([g.nodes for g in made]) == pytest.approx(22.8, abs=0.4)
    assert np.std([g.nodes for g in made]) == pytest.approx(2.04, abs=0.3)
    assert np.mean([len(g.edges) for g in made]) == pytest.approx(35.8, abs=1.2)
    hops = Counter(g.hops for g in made)
    for h, share in {3: 0.40, 4: 0.43, 5: 0.14, 6: 0.02}.items():
        assert hops[h] / len(made) == pytest.approx(share, abs=0.07)
    # of the 300 published validation rows: nodes with so many parents, and what the shortcuts are worth
    parents = Counter(in_degree(g, n) for g in made for n in range(g.nodes))
    for k, share in {0: 0.110, 1: 0.437, 2: 0.277, 3: 0.124, 4: 0.037}.items():
        assert parents[k] / parents.total() == pytest.approx(share, abs=0.03)
    floors = shortcut_floors(made)
    assert floors["more ancestors"] == pytest.approx(0.70, abs=0.07)
    assert floors["lower in-degree"] == pytest.approx(0.67, abs=0.07)


def test_balanced_candidates_leave_little_to_shortcuts() -> None:
    env = GraphReach(**SMALL)
    made = graphs(env, 400)
    assert max(g.nodes for g in made) <= 12
    for g in made[:50]:
        far = reached(g.edges, g.root)
        assert g.other not in far
        roots = {a for a, _ in g.edges} - {b for _, b in g.edges}
        assert any(reached(g.edges, r).get(g.other) == g.hops for r in roots - {g.root})
    assert all(0.4 < floor < 0.6 for floor in shortcut_floors(made).values())
    assert env.references("train", 400) == shortcut_floors(made)


def test_shortcuts_of_a_graph_drawn_by_hand() -> None:
    #  0 -> 2 -> 4 (target); 1 -> 3, 1 -> 5 and 3 -> 5 (other)
    graph = Graph(6, ((0, 2), (2, 4), (1, 3), (1, 5), (3, 5)), 0, 4, 5, (0, 2, 4))
    assert (ancestors(graph, 4), ancestors(graph, 5)) == (2, 2)
    assert (in_degree(graph, 4), in_degree(graph, 5)) == (1, 2)
    assert shortcut_floors([graph]) == {"more ancestors": 0.5, "lower in-degree": 1.0, "either": 1.0}


def test_styles_tell_the_same() -> None:
    symbols, prosqa, spaced = (take(GraphReach(style=s), "test", 5) for s in ("symbols", "prosqa", "spaced"))
    for plain, text, words in zip(symbols, prosqa, spaced, strict=True):
        assert str(text.prompt).replace(".", " .").replace("?", " ?") == words.prompt
        assert str(text.prompt).count(" is a ") == str(plain.prompt).count(";") + 1
        assert len(text.steps or ()) == text.meta["hops"] == plain.meta["hops"]
        assert set(str(words.prompt).split()) | set(str(words.answer).split()) <= set(
            GraphReach(style="spaced").words()
        )
    with pytest.raises(ValueError, match="use symbols or spaced"):
        GraphReach(style="prosqa").words()


@pytest.mark.parametrize("args", [{"style": "spaced"}, SMALL])
def test_it_conforms(args: dict[str, Any]) -> None:
    report = asyncio.run(check_env("graph_reach", args, samples=10))
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    assert set(report["shortcut_floors"]) == set(report["tasks"])


def test_rows_of_a_file_are_a_split(tmp_path: Path) -> None:
    row: dict[str, Any] = {"idx_to_symbol": ["Tom", "Max", "lempus", "terpus", "yumpus"]}
    row |= {"edges": [[0, 2], [2, 3], [1, 4]], "root": 0, "target": 3, "neg_target": 4}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    env = GraphReach(style="prosqa", prosqa=str(file))
    (task,) = env.tasks("prosqa")
    assert task.answer == "Tom is a terpus."
    assert task.steps == ("Tom is a lempus.", "Every lempus is a terpus.")
    assert {"Tom is a lempus", "Max is a yumpus"} < set(str(task.prompt).split(". "))
    file.write_text(json.dumps([row, {**row, "target": 4}]))
    with pytest.raises(ValueError, match="row 2: expected edges"):
        read_prosqa.__wrapped__(str(file))
    with pytest.raises(ValueError, match="there is no file"):
        next(GraphReach(prosqa="nowhere.json").tasks("prosqa"))


@pytest.mark.skipif(not ROWS.is_file(), reason="ProsQA's rows are not here")
def test_the_published_rows_share_the_words() -> None:
    published = json.loads(ROWS.read_text())
    tasks = take(GraphReach(style="prosqa", prosqa=str(ROWS)), "prosqa", 300)
    for task, row in zip(tasks, published, strict=True):
        assert task.answer == row["answer"]
        assert len(task.steps or ()) == len(row["steps"])
        asked = str(task.prompt).split(". ")
        assert sorted(asked[:-1]) == sorted(row["question"].split(". ")[:-1])
    for style in ("symbols", "spaced"):
        env = GraphReach(style=style, prosqa=str(ROWS))
        held = take(env, "prosqa", 300)
        assert {w for t in held for w in f"{t.prompt} {t.answer}".split()} <= set(env.words())
    floors = env.references("prosqa", 300)
    assert floors["more ancestors"] == pytest.approx(0.70, abs=0.01)
    assert floors["lower in-degree"] == pytest.approx(0.67, abs=0.01)


def test_a_runs_result_stands_beside_the_floors() -> None:
    from posterior.afterwards import _references
    from posterior.config import RunConfig

    config = RunConfig.model_validate(
        {
            "env": {"name": "graph_reach", "args": {**SMALL, "hops": {"1": 0.2, "2": 0.4, "3": 0.4}}},
            "eval": {"splits": ["hops2", "test"], "tasks": 50},
        }
    )
    found = _references(config)
    assert set(found) == {"hops2", "test"}
    assert found["hops2"] == GraphReach(**SMALL).references("hops2", 50)
    config.env.name, config.env.args = "pointer_chase", {}
    config.eval.splits = ["test"]
    assert _references(config) == {}
