"""The run directory: paths, appends that survive a kill, truncation on resume, atomic results."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from posterior.rundir import RunDir, plain, write_atomic


def test_create_default_is_absolute_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = RunDir.create("a b/c"), RunDir.create("a b/c")
    monkeypatch.chdir("/")
    assert first.path.is_absolute()
    assert first.path != second.path
    assert first.path.parent == tmp_path / "runs"
    assert first.path.name.startswith("a-b-c-")
    assert first.traces.is_dir()
    assert first.checkpoints.is_dir()


def test_create_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="posterior resume"):
        RunDir.create("x", tmp_path)
    with pytest.raises(FileExistsError):
        RunDir.create("x", tmp_path / "file")
    assert RunDir.create("x", tmp_path / "new" / "deep").path.is_dir()
    (tmp_path / "empty").mkdir()
    assert RunDir.create("x", tmp_path / "empty").path == tmp_path / "empty"


def test_open_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory"):
        RunDir.open(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="neither config"):
        RunDir.open(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert RunDir.open(tmp_path).read_metrics() == []


def test_metrics_round_trip_and_cut_line(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    run.append_metrics(
        {"kind": "train", "step": 0, "a": np.float32(0.5), "b": math.nan, "c": np.int64(3), "d": math.inf}
    )
    assert run.read_metrics() == [{"kind": "train", "step": 0, "a": 0.5, "b": None, "c": 3, "d": None}]
    with open(run.metrics, "a") as file:
        file.write('{"kind": "train", "st')
    assert len(run.read_metrics()) == 1
    run.append_metrics({"kind": "train", "step": 1})  # the fragment does not spoil the next line
    assert [row["step"] for row in run.read_metrics()] == [0, 1]
    assert run.metrics.read_bytes().endswith(b"\n")


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    run.metrics.write_text('{"step": 0}\noops\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        run.read_metrics()


def _append(path: str, start: int) -> None:
    for step in range(start, start + 50):
        RunDir(path).append_metrics({"step": step, "pad": "é" * 300})


def test_two_writers_never_mix_lines(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(str(run.path), start)) for start in (0, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(row["step"] for row in run.read_metrics()) == list(range(100))


def test_truncate_keeps_what_a_resumed_run_will_not_repeat(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    for version in (0, 10, 20):
        run.append_metrics({"kind": "eval", "step": version, "version": version})
    for step in range(15):
        run.append_metrics({"kind": "train", "step": step, "version": step})
    run.truncate_metrics(10)
    rows = run.read_metrics()
    assert [row["version"] for row in rows if row["kind"] == "eval"] == [0, 10]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(10))


def test_result_and_config(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    assert run.read_result() == {}
    assert run.read_config() == {}
    run.write_result({"gain": np.float64(0.25), "bad": math.nan})
    assert run.read_result() == {"gain": 0.25, "bad": None}
    run.write_config({"name": "ä", "path": tmp_path, "betas": (0.9, 0.95)})
    assert run.read_config() == {"name": "ä", "path": str(tmp_path), "betas": [0.9, 0.95]}
    assert not list(run.path.glob(".*"))  # nothing left aside
    run.result.write_text("[1]")
    with pytest.raises(ValueError, match="does not hold an object"):
        run.read_result()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_plain_is_standard_json() -> None:
    value = {1: [np.bool_(True), np.array([1.0, math.nan])], "path": Path("a")}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {"1": [True, [1.0, None]], "path": "a"}
