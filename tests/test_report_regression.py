"""The report's section of a reward model: its error beside what is possible, and its calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from actors import checkpoint
from posterior.report import write_report
from posterior.rundir import RunDir


def run_of(path: Path, **more: float) -> Path:
    run = RunDir.create("rater", path)
    run.write_config({"name": "rater", "seed": 0})
    run.append_metrics({"kind": "train", "step": 0, "version": 1, "loss/policy/mse0": 1.0})
    figures = {"mse": 0.25, "mse_mean_predictor": 0.5, "noise_floor": 0.125, "calibration_offset": -0.1, **more}
    run.write_result({"status": "finished", "final": {"labels_test": figures}})
    rng = np.random.default_rng(0)
    predicted = rng.normal(1.5, 0.5, 80)
    score = [*(predicted[:-1] + rng.normal(0, 0.2, 79)).tolist(), None]  # one item that nobody graded
    run.write_held_out(7, "labels_test", {"predicted": predicted.tolist(), "score": score})
    return run.path


def test_errors_and_calibration(tmp_path: Path) -> None:
    text = write_report([run_of(tmp_path / "r")]).read_text()
    start = text.index('<section id="regression"')
    section = text[start : text.index("</section>", start)]
    assert "<td>0.25</td>" in section
    assert "<td>−0.1</td>" in section
    assert "correlation" not in section  # not measured
    assert section.count("<circle") == 16  # 8 bins, people and prediction
    assert "not evaluated yet" not in text


def test_the_kept_version_is_shown_not_the_last(tmp_path: Path) -> None:
    """Version 5 was better than version 7, but only 6 and 7 are kept, and 6 is the better of them."""
    run = RunDir.open(run_of(tmp_path / "r"))
    assert "Of the last evaluation." in write_report([run.path]).read_text()
    for at, error in ((5, 0.01), (6, 0.0625), (7, 0.25), (8, None)):
        run.append_metrics({"kind": "eval", "version": at, "eval/labels_test/mse": error})
        run.write_held_out(at, "labels_test", {"predicted": [float(at), 9.0], "score": [1.0, 2.0]})
        if at > 5:
            folder = run.checkpoints / f"step_{at:06d}"
            folder.mkdir()
            (folder / "meta.json").write_text(json.dumps({"format": checkpoint.FORMAT, "files": {}}))
    text = write_report([run.path]).read_text()
    start = text.index('<section id="regression"')
    section = text[start : text.index("</section>", start)]
    assert "Of version 6, of the kept checkpoints the one with the lowest error on labels_test." in section
    assert "<td>0.0625</td>" in section
    assert "<td>0.25</td>" not in section
    assert "6.00" in section
    assert "7.00" not in section


def test_a_run_of_another_kind_has_no_section(tmp_path: Path) -> None:
    run = RunDir.create("plain", tmp_path / "r")
    run.write_config({"name": "plain"})
    run.append_metrics({"kind": "train", "step": 0, "version": 1})
    run.write_result({"status": "finished", "final": {"test": {"pass@1": 0.5}}})
    assert 'id="regression"' not in write_report([run.path]).read_text()
