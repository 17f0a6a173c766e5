"""The report's section "Does it think?": what it shows, what it refuses to say, and what it survives."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_evidence import entry, result
from test_report import HOSTILE

from posterior.evidence import Share, battery_of
from posterior.report import write_report
from posterior.report_figures import _step, line_chart
from posterior.report_latents import over
from posterior.rundir import RunDir


def lens(steps: int, word: str = "7") -> dict[str, Any]:
    words = [[[word, 0.9], ["1", 0.05]] for _ in range(steps)]
    problem = {"prompt": f"from {word}", "answer": word, "steps": words}
    cosine = [[1.0 if i == j else 0.25 for j in range(steps)] for i in range(steps)]
    return {
        "norm": [0.5 + k for k in range(steps)],
        "rank": [4.0] * steps,
        "gain": [0.7] * (steps - 1),
        "cosine": cosine,
        "problems": [problem] * 6,
    }


def probes(steps: int) -> dict[str, Any]:
    square = [[0.9 if i == j else 0.2 for j in range(2)] for i in range(steps)]
    part = {"accuracy": square, "low": square, "high": square, "control": [[0.125] * 2 for _ in range(steps)]}
    return {"problems": 800, "steps": ["step 1", "answer"], "common": [0.14, 0.15], "latent": part, "state": part}


def thinking_run(path: Path, seed: int = 0, word: str = "7", **found: Any) -> Path:
    run = RunDir.create("thinker", path)
    run.write_config({"name": "thinker", "seed": seed, "model": {"path": "scratch", "thinker": {"kind": "gated"}}})
    run.append_metrics({"kind": "train", "step": 0, "version": 1, "loss/policy/ce": 1.0})
    whole = result(causal_of={"checkpoint": "step_000750", "tasks": 200}, status="finished", **found)
    for number, causal in enumerate(whole["causal"].values(), 3):
        causal.update(lens=lens(number, word), probes=probes(number))
    run.write_result(whole)
    return run.path


def section(page: Path) -> str:
    text = page.read_text()
    start = text.index('<section id="thinking"')
    return text[start : text.index("</section>", start)]


def test_a_whole_result_is_shown_with_its_controls_and_intervals(tmp_path: Path) -> None:
    text = section(write_report([thinking_run(tmp_path / "r")]))
    assert "In this run the latents help" in text
    assert "step_000750, 200 problems of each split" in text
    for name in ("with latents", "no thought", "pause tokens", "detached feedback"):
        assert f'data-series="{name}"' in text
    assert text.count('class="whisker"') == 8  # four series, two splits
    assert "line: control without thought 30.0 %" in text
    bars = re.findall(r'class="bar-row" title="([^"]+)"', text)
    assert bars[0].startswith("the model&#x27;s own: 99.0 % [")
    assert [bar.split(":")[0] for bar in bars[2:]] == ["only the first 2", "only the first 10"]
    assert text.count("likeliest words after each latent step") == 4
    # the last split has four latent steps; its lens has two words a step
    assert len(re.findall(r"after latent \d: &#x27;7&#x27; 90.0 %", text)) == 16
    assert "z1, z2: 0.250" in text
    assert "answer from z2: 90.0 % [90.0, 90.0], shuffled 12.5 %, commonest value 15.0 %" in text
    for title in ("Norm", "Effective rank", "Jacobian gain", "Cosine between steps"):
        assert f"<span>{title}</span>" in text


def test_without_controls_the_section_says_so_and_claims_nothing(tmp_path: Path) -> None:
    text = section(write_report([thinking_run(tmp_path / "r", controls={})]))
    assert "The controls are missing (no thought, pause tokens, detached feedback)" in text
    assert "controls missing: no thought, pause tokens, detached feedback" in text
    assert "latents help:" not in text
    assert text.count('data-series="') == 1 + 3  # the run, and the three small plots


def test_a_thinker_whose_latents_were_never_replaced_is_told_how(tmp_path: Path) -> None:
    text = section(write_report([thinking_run(tmp_path / "r", causal={})]))
    assert "Nothing is known: `posterior eval RUN --causal`" in text


def test_a_token_thinkers_report_has_no_such_section(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    run.write_config({"name": "x", "model": {"path": "embedded", "thinker": None}})
    assert 'id="thinking"' not in write_report([run.path]).read_text()


def test_seeds_are_averaged_and_each_has_its_sentence(tmp_path: Path) -> None:
    runs = [thinking_run(tmp_path / f"s{seed}", seed) for seed in range(3)]
    found = json.loads((runs[2] / "result.json").read_text())
    found["causal"]["hops10"]["transplant"] = entry(0.58)
    (runs[2] / "result.json").write_text(json.dumps(found))
    text = section(write_report(runs, tmp_path / "all.html"))
    assert "another problem&#x27;s: 28.0 % [13.0, 58.0]" in text
    assert "mean and range over 3 seeds" in text
    assert text.count("In this run the latents help") == 2
    assert "<b>seed 2</b>: On hops10" in text
    assert text.count("Inside the latents of thinker, seed") == 3


def test_the_mean_and_range_of_runs() -> None:
    assert over([Share(0.2, 0.1, 0.3), None, Share(0.6)]) == Share(0.4, 0.2, 0.6)
    assert over([None, Share(0.2, 0.1, 0.3)]) == Share(0.2, 0.1, 0.3)
    assert over([None]) is None


@pytest.mark.parametrize("damage", [{"lens": {"norm": 3}}, {"lens": []}, {"probes": {"steps": ["a"]}}, {"clean": "x"}])
def test_damage_is_survived(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = thinking_run(tmp_path / "r")
    found = json.loads((path / "result.json").read_text())
    found["causal"]["hops10"].update(damage)
    found["causal"]["hops11"] = 7
    (path / "result.json").write_text(json.dumps(found))
    assert "Does it think?" in section(write_report([path]))
    assert list(battery_of(found)) == ["hops2", "hops10"]


def test_many_latents_are_cut_and_the_page_says_so(tmp_path: Path) -> None:
    path = thinking_run(tmp_path / "r")
    found = json.loads((path / "result.json").read_text())
    found["causal"]["hops10"]["lens"] = lens(64)
    (path / "result.json").write_text(json.dumps(found))
    text = section(write_report([path]))
    assert "first 24 of 64 steps" in text
    assert len(text) < 150_000


def test_what_a_model_says_stays_text(tmp_path: Path) -> None:
    text = section(write_report([thinking_run(tmp_path / "r", word=HOSTILE)]))
    assert "<script" not in text
    assert "<img" not in text


def test_axes_have_round_numbers() -> None:
    assert [_step(span) for span in (1.0, 12.0, 0.035, 7.6, 30)] == pytest.approx([0.25, 2.5, 0.01, 2.5, 10])
    picture = line_chart("t", "u", ["a", "b"], [("s", "red", [Share(11.2), Share(9.4)])])
    assert re.findall(r'text-anchor="end">([^<]+)<', picture) == ["0", "2.5", "5", "7.5", "10", "12.5"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_the_page_allows_what_the_section_needs(tmp_path: Path) -> None:
    """Nothing of it falls to the page's content policy: the browser has no complaint, and widths arrive."""
    import subprocess

    page = write_report([thinking_run(tmp_path / "r")])
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --enable-logging=stderr --virtual-time-budget=2000"
    flags += " --dump-dom"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'style="--w:52%"' in done.stdout
