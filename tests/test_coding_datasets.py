"""Coding tasks from files: layouts, broken rows, asserts read as cases, and the comparison of results."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Task
from envs.coding import datasets
from envs.coding.asserts import parse_asserts, parse_check_function
from envs.coding.compare import Rule, identical, matches

MBPP_ROW: dict[str, Any] = {
    "task_id": 600,
    "text": "Write a function to add one.",
    "code": "import math\r\ndef add_one(x):\r\n    return x + 1",
    "test_list": ["assert add_one(1) == 2", "assert math.isclose(add_one(0.5), 1.5, rel_tol=0.001)"],
}
HUMANEVAL_ROW: dict[str, Any] = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Add them up."""\n',
    "canonical_solution": "    return sum(xs)\n",
    "test": "METADATA = {'author': 'x'}\n\n\n"
    "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "entry_point": "total",
}
GENERIC_ROW: dict[str, Any] = {
    "id": "square",
    "prompt": "Square a number.",
    "entry_point": "square",
    "cases": [[[3], {}, 9]],
    "solution": "def square(x):\n    return x * x",
}
MBPP = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbpp"


def shown(task: Task) -> str:
    """The text of the one message that a task's prompt consists of."""
    assert not isinstance(task.prompt, str)
    (message,) = task.prompt
    return message["content"]


def write_lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_the_three_layouts_and_their_meta(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "tasks.jsonl", MBPP_ROW, HUMANEVAL_ROW, GENERIC_ROW)
    tasks = {task.id: task for task in datasets.load(source, train_share=1.0).all}
    mbpp, humaneval, generic = tasks["mbpp/600"], tasks["HumanEval/0"], tasks["square"]

    assert mbpp.meta["entry_point"] == "add_one"
    assert [case[:3] for case in mbpp.meta["cases"]] == [[[1], {}, 2], [[0.5], {}, 1.5]]
    assert mbpp.meta["test_source"] is None
    assert "\r" not in mbpp.meta["reference"]
    assert "assert add_one(1) == 2" in shown(mbpp)
    assert "isclose" not in shown(mbpp), "only one test is shown"

    assert [case[:3] for case in humaneval.meta["cases"]] == [[[[1, 2]], {}, 3], [[[]], {}, 0]]
    assert humaneval.meta["reference"].endswith("return sum(xs)")
    assert humaneval.meta["prelude"] == HUMANEVAL_ROW["prompt"]
    assert "Add them up" in shown(humaneval)
    assert "candidate([1, 2])" not in shown(humaneval), "the tests stay hidden"

    assert generic.meta["cases"] == [[[3], {}, 9]]
    assert generic.answer == "```python\ndef square(x):\n    return x * x\n```"


def test_tests_that_are_no_plain_cases_are_kept_as_source(tmp_path: Path) -> None:
    row = MBPP_ROW | {"test_list": ["assert add_one(1) == 2", "assert add_one(2) == math.floor(3.5)"]}
    (task,) = datasets.load(write_lines(tmp_path / "a.jsonl", row)).all
    assert len(task.meta["cases"]) == 1
    assert task.meta["test_source"] == "import math\nassert add_one(2) == math.floor(3.5)\n"
    row = HUMANEVAL_ROW | {
        "test": "def check(candidate):\n    for i in range(3):\n        assert candidate([i]) == i\n"
    }
    (task,) = datasets.load(write_lines(tmp_path / "b.jsonl", row)).all
    assert task.meta["cases"] is None
    assert task.meta["test_source"].endswith("check(total)\n")


def test_reading_a_dataset_runs_none_of_its_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = f"open({str(mark)!r}, 'w').close()"
    row = MBPP_ROW | {"code": f"{evil}\ndef add_one(x): return x", "test_list": [f"assert add_one({evil}) == {evil}"]}
    setup = MBPP_ROW | {"task_id": 601, "test_setup_code": evil}
    check = HUMANEVAL_ROW | {"test": f"{evil}\ndef check(candidate):\n    {evil}\n    assert candidate([]) == 0"}
    datasets.load(write_lines(tmp_path / "evil.jsonl", row, setup, check))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": "x", ', ["line 2", "not valid JSON"]),
        ("[1, 2]", ["line 2", "found list"]),
        ({"question": "?"}, ["line 2", "'question'", "no known layout", "HumanEval"]),
        (MBPP_ROW | {"code": None}, ["line 2", '"code"', "missing"]),
        (MBPP_ROW | {"code": 3}, ["line 2", '"code"', "int", "string"]),
        (MBPP_ROW | {"test_list": "assert add_one(1) == 2"}, ["line 2", '"test_list"', "list of strings"]),
        (MBPP_ROW | {"test_list": []}, ["line 2", '"test_list"', "empty"]),
        (MBPP_ROW | {"test_list": ["assert plus(1) == 2"]}, ["line 2", "plus", "add_one", "agree"]),
        (MBPP_ROW | {"task_id": 602}, ["line 2", "mbpp/602", "line 1"]),
        (HUMANEVAL_ROW | {"entry_point": "not a name"}, ["line 2", '"entry_point"', "name of a function"]),
        (GENERIC_ROW | {"cases": [[3, 9]]}, ["line 2", "case 0", "[args, kwargs, expected]"]),
        (GENERIC_ROW | {"cases": []}, ["line 2", "at least one"]),
        (GENERIC_ROW | {"performance": {"sizes": [1]}}, ["line 2", "performance", "slow"]),
    ],
)
def test_a_broken_row_gets_one_sentence_with_its_place(tmp_path: Path, row: Any, words: list[str]) -> None:
    source = write_lines(tmp_path / "broken.jsonl", MBPP_ROW | {"task_id": 602}, row)
    with pytest.raises(ValueError, match=r"broken\.jsonl") as caught:
        datasets.load(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_broken_row_of_a_json_array_is_found_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text("[\n" + json.dumps(MBPP_ROW) + ",\n\n" + json.dumps({"question": "?"}) + "\n]\n")
    with pytest.raises(ValueError, match=r"array\.json, line 4: "):
        datasets.load(str(path))


def test_missing_empty_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        datasets.load(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        datasets.load(str(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"line 2: not UTF-8"):
        datasets.load(str(tmp_path / "latin.jsonl"))


def test_splits_by_id_range_and_by_hash(tmp_path: Path) -> None:
    rows = [MBPP_ROW | {"task_id": i} for i in (5, 11, 510, 511, 974)]
    splits = datasets.load(write_lines(tmp_path / "mbpp.jsonl", *rows)).splits
    assert {name: [task.id for task in tasks] for name, tasks in splits.items()} == {
        "train": ["mbpp/511", "mbpp/974"],
        "test": ["mbpp/11", "mbpp/510"],
        "prompt": ["mbpp/5"],
    }
    rows = [GENERIC_ROW | {"id": str(i)} for i in range(300)]
    source = write_lines(tmp_path / "own.jsonl", *rows)
    splits = datasets.load(source, 0.75).splits
    assert list(splits) == ["train", "test"]
    assert 0.65 < len(splits["train"]) / 300 < 0.85
    assert list(datasets.load(source, 0.0).splits) == ["test"]


def test_hugging_face_folders(tmp_path: Path) -> None:
    import datasets as hf

    rows = [GENERIC_ROW | {"id": str(i), "cases": None, "tests": "assert square(2) == 4"} for i in range(4)]
    hf.DatasetDict({"train": hf.Dataset.from_list(rows[:3]), "test": hf.Dataset.from_list(rows[3:])}).save_to_disk(
        tmp_path / "both"
    )
    hf.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    both = datasets.load(f"hf:{tmp_path / 'both'}")
    assert {name: len(tasks) for name, tasks in both.splits.items()} == {"train": 3, "test": 1}
    assert both.splits["test"][0].meta["cases"][0][:3] == [[2], {}, 4]
    assert len(datasets.load(f"hf:{tmp_path / 'both'}:train").all) == 3
    assert len(datasets.load(str(tmp_path / "one")).all) == 4
    with pytest.raises(ValueError, match="no split 'dev'"):
        datasets.load(f"hf:{tmp_path / 'both'}:dev")


@pytest.mark.skipif(not MBPP.is_dir(), reason="the MBPP files are not beside this checkout")
def test_mbpp_is_read_almost_wholly_into_cases() -> None:
    sanitized = datasets.load(str(MBPP / "sanitized-mbpp.json"))
    assert {name: len(tasks) for name, tasks in sanitized.splits.items()} == {"train": 163, "test": 257, "prompt": 7}
    assert [task.id for task in sanitized.all if task.meta["test_source"]] == ["mbpp/596"]
    full = datasets.load(str(MBPP / "mbpp.jsonl"))
    assert {name: len(tasks) for name, tasks in full.splits.items()} == {"train": 464, "test": 500, "prompt": 10}
    assert sum(bool(task.meta["test_source"]) for task in full.all) <= 5


# Asserts


@pytest.mark.parametrize(
    ("line", "case"),
    [
        ("assert f(1, b=[2]) == (3, {'a'})", [[1], {"b": [2]}, (3, {"a"}), Rule("==")]),
        ("assert 3 < f(), 'message'", [[], {}, 3, Rule(">")]),
        ("assert f(-1) != -1.5", [[-1], {}, -1.5, Rule("!=")]),
        ("assert f(14*14) is None", [[196], {}, None, Rule("exact")]),
        ("assert not f('x')", [["x"], {}, False, Rule("==", "bool")]),
        ("assert f('x')", [["x"], {}, True, Rule("==", "bool")]),
        ("assert set(f([1])) == set([1, 2])", [[[1]], {}, {1, 2}, Rule("==", "set")]),
        ("assert f(0) in [1, 2]", [[0], {}, [1, 2], Rule("in")]),
        ("assert 1 in f(0)", [[0], {}, 1, Rule("contains")]),
        ("assert math.isclose(f(2), 4., rel_tol=0.1)", [[2], {}, 4.0, Rule("isclose", rel_tol=0.1)]),
        ("assert abs(f(2) - 4.0) < 1e-6", [[2], {}, 4.0, Rule("within", abs_tol=1e-6)]),
        ("assert abs(4.0 - f(2)) <= 1", [[2], {}, 4.0, Rule("within", abs_tol=1, inclusive=True)]),
        ("assert f(2 + 3j) == float('inf')", [[2 + 3j], {}, math.inf, Rule("==")]),
    ],
)
def test_simple_asserts_become_cases(line: str, case: list[Any]) -> None:
    assert parse_asserts(line, "f") == [case]


@pytest.mark.parametrize(
    "source",
    [
        "",
        "f(1)",
        "assert f(1) == g(1)",
        "assert f(1) == f(2)",
        "assert f(x) == 1",
        "assert f(*[1]) == 1",
        "assert f(**{'a': 1}) == 1",
        "assert f(1) == 1 == 1",
        "assert f(1) == 9 ** 9 ** 9",
        "assert f('a' * 9) == 1",
        "assert f(1/0) == 1",
        "assert g(f(1)) == 1",
        "assert f(...) == 1",
        "assert f({[]}) == 1",
        "assert f(1) is 1",
        "assert " + "(" * 5000,
        "assert f(" + "[" * 80 + "]" * 80 + ") == 1",
        "import os\nassert f(1) == 1",
    ],
)
def test_everything_else_is_left_as_source(source: str) -> None:
    assert parse_asserts(source, "f") is None


def test_check_functions() -> None:
    body = "    'doc'\n    assert True, 'x'\n    assert candidate(1) == 2\n"
    source = f"import math\nMETADATA = {{}}\ndef check(candidate):\n{body}"
    assert parse_check_function(source) == [[[1], {}, 2, Rule("==")]]
    assert parse_check_function("def check(c):\n    x = 1\n    assert c(1) == 2") is None
    assert parse_check_function("print()\ndef check(c):\n    assert c(1) == 2") is None
    assert parse_check_function("def check(c):\n    pass") is None


# Comparison


def test_exact_comparison_tells_types_apart() -> None:
    different = [
        True,
        1,
        1.0,
        "1",
        b"1",
        None,
        (1,),
        [1],
        {1},
        frozenset({1}),
        {1: 1},
        {True: 1},
        [True],
        {1.0},
        1 + 0j,
    ]
    for i, a in enumerate(different):
        for j, b in enumerate(different):
            assert identical(a, b) == (i == j), (a, b)
    assert identical(math.nan, math.nan)
    assert identical([math.nan, {"a": (1, 2)}], [math.nan, {"a": (1, 2)}])
    assert identical(deque([1]), deque([1]))
    assert not identical(deque([1]), deque([True]))
    assert not identical(Counter("a"), {"a": 1})


def test_rules() -> None:
    assert matches(1, True, Rule("=="))
    assert matches(Counter("a"), {"a": 1}, Rule("=="))
    assert not matches((1,), [1], Rule("=="))
    assert not matches(math.nan, math.nan, Rule("=="))
    assert matches(1.0004, 1.0, Rule("isclose", rel_tol=0.001))
    assert not matches("1", 1.0, Rule("isclose"))
    assert not matches(10**400, 1.0, Rule("isclose"))
    assert not matches("a", 1, Rule("<"))
    assert not matches(None, 1.0, Rule("within", abs_tol=9))
    assert matches([1, 2], 2, Rule("contains"))
    assert not matches(1, 2, Rule("contains"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(plain)
def test_a_value_is_identical_to_its_copy_and_not_to_its_box(value: Any) -> None:
    import copy

    assert identical(value, copy.deepcopy(value))
    assert not identical(value, [value])
