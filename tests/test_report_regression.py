"""The report's section of a reward model: its error beside what is possible, and its calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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


def test_a_run_of_another_kind_has_no_section(tmp_path: Path) -> None:
    run = RunDir.create("plain", tmp_path / "r")
    run.write_config({"name": "plain"})
    run.append_metrics({"kind": "train", "step": 0, "version": 1})
    run.write_result({"status": "finished", "final": {"test": {"pass@1": 0.5}}})
    assert 'id="regression"' not in write_report([run.path]).read_text()
