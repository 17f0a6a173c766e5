"""A whole run of the posterior helper through vLLM and Ray: two trainable roles, thoughts behind given answers, probes in the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import result, rows, start, write

CONFIG = {
    "name": "walker",
    "model": {
        "path": "scratch",
        "scratch": {"family": "llama", "layers": 1, "width": 32, "heads": 1},
        "max_length": 32,
    },
    "env": {"name": "walk"},
    "algorithm": {"name": "helper", "group_size": 4, "first_steps": 2, "kl_coef": 0.02},
    "sampling": {"max_tokens": 6},
    "train": {"steps": 4, "batch_groups": 4, "checkpoint_every": 2, "optimiser": {"lr": 3e-3}},
    "eval": {"every": 4, "tasks": 6, "samples": 2, "thoughts": 32, "anchoring": 4, "step_mark": "0"},
    "log": {"traces_every": 0},
}


@pytest.mark.slow
def test_a_helper_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, CONFIG)
    done = result(start("train", "config.yaml", "--out", "run", cwd=tmp_path, stderr=tmp_path / "said"))
    assert done["status"] == "finished"
    train = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert [row["helper/first_stage"] for row in train] == [1.0, 1.0, 0.0, 0.0]
    assert all("grad_norm/policy" not in row for row in train[:2])
    assert all(row["grad_norm/policy"] > 0 for row in train[2:])
    assert max(row["gap/max"] for row in train[2:]) < 1e-4
    assert all(row["helper/bayes_gap"] > 0 for row in train)
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    for when in ("baseline", "final"):
        figures = found[when]["test"]
        assert {
            "pass@1",
            "pass@2",
            "logp_answer",
            "thought_gain",
            "shuffled_loss",
            "helper_bayes_gap",
            "helper_w_error",
        } <= set(figures)
        assert sum(figures[f"anchoring_zone_{name}"] for name in ("reason", "encode", "cloze", "copy")) == 1
        assert 0 <= figures["hindsight_lexical"] <= 1
        # a mean of 32 probabilities is at least the exponential of the mean log-probability
        assert figures["logp_given_thought"] <= figures["logp_answer"] <= 0
