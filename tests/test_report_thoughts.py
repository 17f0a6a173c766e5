"""The report's section "What are the thoughts worth?"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_report import HOSTILE

from posterior.report import write_report
from posterior.rundir import RunDir

ZONES = {"zone_reason": 0.25, "zone_encode": 0.5, "zone_cloze": 0.0, "zone_copy": 0.25}


def run_of(path: Path, split: str = "test", /, **more: float) -> Path:
    run = RunDir.create("writer", path)
    run.write_config({"name": "writer", "seed": 3})
    run.append_metrics({"kind": "train", "step": 0, "version": 1, "loss/policy/thought": 1.0})
    before: dict[str, Any] = {
        "pass@1": 0.2,
        "low": 0.1,
        "high": 0.3,
        "n": 100,
        "logp_answer": -1.5,
        "thought_gain": 0.25,
    }
    after = {**before, "logp_answer": -0.75, **more}
    run.write_result({"status": "finished", "baseline": {split: before}, "final": {split: after}})
    return run.path


def section(page: Path) -> str:
    text = page.read_text()
    start = text.index('<section id="thoughts"')
    return text[start : text.index("</section>", start)]


def test_probes_stand_before_and_after(tmp_path: Path) -> None:
    text = section(write_report([run_of(tmp_path / "r")]))
    assert "<td>−1.5</td><td>−0.75</td>" in text
    assert "<td>0.25</td><td>0.25</td>" in text
    assert "Bayes gap" not in text
    assert "Anchoring" not in text


def test_anchoring_comes_with_its_caution_and_both_sources(tmp_path: Path) -> None:
    own = {
        f"anchoring_{name}": value
        for name, value in {"lexical": 0.5, "entropic": 0.25, "probabilistic": 1.5, **ZONES}.items()
    }
    seen = {
        f"hindsight_{name}": value
        for name, value in {"lexical": 0.75, "entropic": 0.5, "probabilistic": 2.5, **ZONES}.items()
    }
    text = section(write_report([run_of(tmp_path / "r", "test", **own, **seen)]))
    assert "Read the difference" in text
    assert "lexical: share of the answer found in order; thoughts that saw the answer" in text
    assert "<td>–</td><td>0.75</td>" in text  # not measured before training
    assert text.count("encode, ") == 4  # own and seen: a bar and its tip each
    assert "50.0 %" in text


def test_several_runs_and_hostile_names(tmp_path: Path) -> None:
    text = section(write_report([run_of(tmp_path / "a", HOSTILE), run_of(tmp_path / "b")], tmp_path / "both.html"))
    assert HOSTILE not in text
    assert text.count("<h3>writer, seed 3</h3>") == 2


def test_without_probes_there_is_no_section(tmp_path: Path) -> None:
    run = RunDir.create("plain", tmp_path / "r")
    run.write_config({"name": "plain"})
    run.append_metrics({"kind": "train", "step": 0, "version": 1})
    run.write_result({"status": "finished", "final": {"test": {"pass@1": 0.5}}})
    assert 'id="thoughts"' not in write_report([run.path]).read_text()
