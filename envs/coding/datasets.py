"""Coding tasks from files and from Hugging Face datasets.

Row layouts, told apart by their columns:

    MBPP        text or prompt, code, test_list [, test_setup_code, test_imports, challenge_test_list, task_id]
    HumanEval   prompt (a signature with docstring), test (defines check(candidate)), entry_point
                [, canonical_solution, task_id]
    generic     prompt, entry_point, and cases [[args, kwargs, expected], ...] or tests (source, or a list of asserts)
                [, solution, id, performance]

Every row becomes a `Task` with this meta, which the grader reads:

    entry_point   name of the function asked for
    cases         [[args: list, kwargs: dict, expected (, Rule)], ...] compared in the trusted process, or None
    test_source   test code that is not plain cases, run in a second sandbox, or None
    prelude       source put in front of a candidate (HumanEval: the prompt, with its imports and helpers), or ""
    reference     source of a right answer, or None
    performance   None, or {"sizes", "args", "fast", "slow"} (see envs/coding/work_score.py)

Test code is as untrusted as a candidate: it is read with `ast` here and never run in this process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs import rows
from envs.base import Task
from envs.coding import asserts

_MBPP_SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "train": range(511, 975)}
"""The split of MBPP by task id that its authors use; "prompt" are the few-shot examples."""
_LAYOUTS = (
    "MBPP (text or prompt, code, test_list), HumanEval (prompt, test, entry_point) "
    "or generic (prompt, entry_point, and tests or cases)"
)


@dataclass(frozen=True)
class Dataset:
    """Tasks of a file by split; `train_share` decides only where the rows themselves do not say."""

    splits: dict[str, tuple[Task, ...]]

    @property
    def all(self) -> tuple[Task, ...]:
        return tuple(task for tasks in self.splits.values() for task in tasks)


def load(source: str, train_share: float = 0.8) -> Dataset:
    """Load the tasks of `source`: a .json or .jsonl file, a `save_to_disk` folder, or hf:NAME[:SPLIT].

    Splits: those of the dataset where it has them; MBPP's usual id ranges for its rows (511-974 train, 11-510 test,
    1-10 prompt); otherwise `train_share` of the tasks, chosen by a hash of the id, train and the rest test.
    Raises ValueError (one sentence: place, fault, mend) for a missing file or a broken row.
    """
    path = Path(source.removeprefix("hf:"))
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _load(source, train_share, stamp)


@lru_cache(maxsize=8)
def _load(source: str, train_share: float, stamp: int) -> Dataset:
    splits: dict[str, list[Task]] = {}
    seen: dict[str, str] = {}
    for row in rows.read(source):
        task = task_from_row(row.value, row.place)
        if task.id in seen:
            raise ValueError(
                f"{row.place}: the id {task.id!r} was already used at {seen[task.id]}; give every row its own id"
            )
        seen[task.id] = row.place
        splits.setdefault(row.split or _split_of(task, train_share), []).append(task)
    if not splits:
        raise ValueError(f"{source}: holds no rows; expected one task per row in a layout of {_LAYOUTS}")
    order = sorted(splits, key=lambda name: (name != "train", name != "test", name))
    return Dataset({name: tuple(splits[name]) for name in order})


def task_from_row(row: Any, place: str) -> Task:
    """One row as a `Task`. `place` ("file, line 3") opens the sentence of the ValueError that a broken row raises."""
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object with named columns, found {type(row).__name__}")
    row = {name: value for name, value in row.items() if value is not None}
    if "test_list" in row:
        return _mbpp(row, place)
    if "test" in row and "prompt" in row:
        return _humaneval(row, place)
    if "tests" in row or "cases" in row:
        return _generic(row, place)
    raise ValueError(f"{place}: columns {sorted(row)} fit no known layout; use {_LAYOUTS}")


def _mbpp(row: dict[str, Any], place: str) -> Task:
    text = _text(row, "text" if "text" in row else "prompt", place)
    code = _text(row, "code", place)
    lines = _strings(row, "test_list", place)
    extra = _strings(row, "challenge_test_list", place, default=[])
    imports = _strings(row, "test_imports", place, default=[])
    setup = _text(row, "test_setup_code", place, default="")
    tests = lines + extra
    if not tests:
        raise ValueError(f'{place}: "test_list" is empty; give at least one assert line')
    entry_point = _entry_point(tests, code, place)
    # The tests were written to run beside the solution, so they may lean on what it imports.
    prelude = [*imports, *asserts.import_lines(code), setup]
    cases, source = _split_tests(tests, entry_point, prelude, plain=not setup.strip())
    request = f"{text}\nThe function must be called `{entry_point}` and pass this test:\n\n```python\n{tests[0]}\n```"
    task_id = row.get("task_id", _fingerprint(text + code))
    in_range = isinstance(task_id, int) and any(task_id in ids for ids in _MBPP_SPLITS.values())
    usual = next((name for name, ids in _MBPP_SPLITS.items() if task_id in ids), None) if in_range else None
    return _task(f"mbpp/{task_id}", request, entry_point, cases, source, code, split=usual)


def _humaneval(row: dict[str, Any], place: str) -> Task:
    prompt = _text(row, "prompt", place)
    test = _text(row, "test", place)
    entry_point = _identifier(row, "entry_point", place)
    solution = _text(row, "canonical_solution", place, default="")
    reference = prompt + solution if solution.strip() else None
    cases = asserts.parse_check_function(test)
    source = None if cases else f"{test}\n\ncheck({entry_point})\n"
    request = f"Complete this Python function.\n\n```python\n{prompt.rstrip()}\n```"
    task_id = str(row.get("task_id", _fingerprint(prompt)))
    performance = _performance(row, place)
    prelude = prompt if asserts.defined_functions(prompt) else ""
    return _task(task_id, request, entry_point, cases, source, reference, prelude=prelude, performance=performance)


def _generic(row: dict[str, Any], place: str) -> Task:
    prompt = _text(row, "prompt", place)
    entry_point = _identifier(row, "entry_point", place)
    reference = _text(row, "solution", place, default="") or None
    cases: list[asserts.Case] = []
    source = None
    if "cases" in row:
        cases += _cases(row["cases"], place)
    if "tests" in row:
        tests = [row["tests"]] if isinstance(row["tests"], str) else _strings(row, "tests", place)
        parsed, source = _split_tests(tests, entry_point, [], plain=True)
        cases += parsed or []
    if not cases and source is None:
        raise ValueError(f'{place}: neither "tests" nor "cases" holds a test; give at least one')
    request = prompt if entry_point in prompt else f"{prompt}\nThe function must be called `{entry_point}`."
    task_id = str(row.get("id", row.get("task_id", _fingerprint(prompt))))
    performance = _performance(row, place)
    return _task(task_id, request, entry_point, cases or None, source, reference, performance=performance)


def _task(
    task_id: str,
    request: str,
    entry_point: str,
    cases: list[asserts.Case] | None,
    test_source: str | None,
    reference: str | None,
    *,
    prelude: str = "",
    performance: dict[str, Any] | None = None,
    split: str | None = None,
) -> Task:
    request = request.replace("\r\n", "\n")
    content = f"{request}\n\nAnswer with the function in one ```python block."
    reference = reference.replace("\r\n", "\n").strip("\n") if reference else None
    meta = {
        "entry_point": entry_point,
        "cases": cases,
        "test_source": test_source,
        "prelude": prelude,
        "reference": reference,
        "performance": performance,
        "split": split,
    }
    answer = f"```python\n{reference}\n```" if reference else None
    return Task(id=task_id, prompt=({"role": "user", "content": content},), answer=answer, meta=meta)


def _split_tests(
    tests: list[str], entry_point: str, prelude: list[str], *, plain: bool
) -> tuple[list[asserts.Case] | None, str | None]:
    """Cases of the tests that are simple asserts, and the source of the others behind `prelude`."""
    cases: list[asserts.Case] = []
    others: list[str] = []
    for test in tests:
        parsed = asserts.parse_asserts(test, entry_point) if plain else None
        if parsed is None:
            others.append(test)
        else:
            cases += parsed
    source = "\n".join([*(line for line in prelude if line.strip()), *others]) + "\n" if others else None
    return cases or None, source


def _entry_point(tests: list[str], code: str, place: str) -> str:
    defined = asserts.defined_functions(code)
    called = [name for test in tests for name in asserts.called_names(test)]
    for name in called:
        if name in defined:
            return name
    raise ValueError(
        f'{place}: no test calls a function that "code" defines (tests call {sorted(set(called))}, '
        f"code defines {defined}); make the names agree"
    )


def _cases(value: Any, place: str) -> list[asserts.Case]:
    if not isinstance(value, list):
        raise ValueError(f'{place}: "cases" must be a list of [args, kwargs, expected], found {type(value).__name__}')
    for number, case in enumerate(value):
        well_formed = isinstance(case, list) and len(case) == 3
        if not (well_formed and isinstance(case[0], list) and isinstance(case[1], dict)):
            raise ValueError(
                f"{place}: case {number} is not [args, kwargs, expected]; write for example [[1, 2], {{}}, 3]"
            )
    return value


def _performance(row: dict[str, Any], place: str) -> dict[str, Any] | None:
    value = row.get("performance")
    if value is None:
        return None
    needed = {"sizes", "args", "fast", "slow"}
    if not isinstance(value, dict) or not needed <= set(value):
        raise ValueError(f'{place}: "performance" needs the keys {", ".join(sorted(needed))}')
    if len(value["sizes"]) < 3 or len(value["sizes"]) != len(value["args"]):
        raise ValueError(f'{place}: "performance" needs at least 3 sizes and one [args, kwargs] per size')
    return {name: value[name] for name in sorted(needed)}


def _split_of(task: Task, train_share: float) -> str:
    usual = task.meta["split"]
    if usual is not None:
        return str(usual)
    draw = int.from_bytes(hashlib.blake2b(task.id.encode(), digest_size=8).digest(), "big") / 2**64
    return "train" if draw < train_share else "test"


def _fingerprint(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


# Columns


def _text(row: dict[str, Any], column: str, place: str, default: str | None = None) -> str:
    value = row.get(column, default)
    if not isinstance(value, str):
        fault = "is missing" if value is None else f"is {type(value).__name__}"
        raise ValueError(f'{place}: column "{column}" {fault}; it must be a string')
    if not value.strip() and default is None:
        raise ValueError(f'{place}: column "{column}" is empty; give its text or delete the row')
    return value


def _strings(row: dict[str, Any], column: str, place: str, default: list[str] | None = None) -> list[str]:
    value = row.get(column, default)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f'{place}: column "{column}" must be a list of strings')
    return value


def _identifier(row: dict[str, Any], column: str, place: str) -> str:
    value = _text(row, column, place)
    if not value.isidentifier():
        raise ValueError(f'{place}: column "{column}" is {value!r}; it must be the name of a function')
    return value
