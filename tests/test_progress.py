"""The live line of a run: what it says of runs that sample, of runs on given answers, and what it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.diary import Diary
from actors.learner import lineage
from posterior import progress
from posterior.progress import Progress
from posterior.rundir import RunDir
from posterior.watchdog import Watchdog

TIMES = {"time/wait": 0.25, "time/forward_backward": 1.5, "time/publish": 0.1, "tokens/per_second": 12345.6}


@pytest.fixture
def shown(tmp_path: Path) -> Progress:
    run = RunDir.create("r", tmp_path / "r")
    return Progress(run, 3, Watchdog(Diary(run.path), 0, 0))


def train(version: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": version - 1, "version": version, **TIMES, **more}


def said(shown: Progress, row: dict[str, Any]) -> str:
    shown.run.append_metrics(row)
    shown.update()
    return shown._fields


def test_a_run_that_samples_shows_its_reward(shown: Progress) -> None:
    row = train(1, **{"reward/mean": 0.314, "pass_rate": 0.25, "loss/policy/policy_gradient": 0.1})
    assert said(shown, row) == "reward 0.31  pass 25 %  12,346 tok/s  sample 0.2s  learn 1.5s  publish 0.1s"


def test_a_run_on_given_answers_shows_its_losses(shown: Progress) -> None:
    assert said(shown, train(1, **{"loss/policy/ce": 1.23456})).startswith("loss 1.235  12,346 tok/s  wait 0.2s  learn")
    several = train(2, **{"loss/policy/ce": 0.5, "loss/policy/distill": float("nan")})
    assert said(shown, several).startswith("ce 0.500  distill not finite  12,346 tok/s")


def test_rows_are_read_once_and_again_after_a_restart(shown: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(shown, "_take", lambda row: read.append(row["version"]))
    for version in (1, 2):
        said(shown, train(version))
    with shown.run.metrics.open("a") as file:
        file.write(json.dumps(train(3))[:20])  # a line half written
    shown.update()
    assert read == [1, 2]
    with shown.run.metrics.open("a") as file:
        file.write(json.dumps(train(3))[20:] + "\n")
    shown.update()
    assert read == [1, 2, 3]
    shown.run.truncate_metrics(1)
    shown.update()
    assert read == [1, 2, 3, 1]


def test_without_a_terminal_a_line_comes_now_and_then(
    shown: Progress, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(shown, train(1, **{"loss/policy/ce": 1.0}))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    said(shown, train(2, **{"loss/policy/ce": 0.75}))
    assert capsys.readouterr().err.startswith("step 2/3  loss 0.750  12,346 tok/s")


def test_the_lineage_of_given_answers_is_two_numbers() -> None:
    assert lineage(list(range(512, 768)), offline=True) == "512..767"
    assert lineage([4, 6, 5], offline=True) == [4, 6, 5]
    assert lineage([4, 5, 6], offline=False) == [4, 5, 6]
