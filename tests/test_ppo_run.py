"""From grades to a reward model to PPO through vLLM and Ray, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from runs import result, rows, start

BASE = {
    "model": {
        "path": "scratch",
        "scratch": {"family": "llama", "layers": 1, "width": 32, "heads": 1},
        "max_length": 16,
    },
    "env": {"name": "noisy_raters", "train_split": "pretrain"},
    "algorithm": {"name": "neuralese_sft"},
    "sampling": {"max_tokens": 5},
    "train": {"steps": 60, "batch_groups": 64, "optimiser": {"lr": 5e-3}},
    "eval": {"every": 0},
    "log": {"traces_every": 0},
}
REWARD = {
    **BASE,
    "model": {"path": "base.yaml", "max_length": 16},
    "env": {"name": "noisy_raters", "args": {"labels": 200}, "train_split": "labels"},
    "algorithm": {"name": "reward_model", "members": 2, "trunk": "separate"},
    "train": {"steps": 20, "batch_groups": 64, "checkpoint_every": 10, "optimiser": {"lr": 3e-3}},
    "eval": {"every": 10, "splits": ["labels_valid"], "tasks": 100},
}
PPO = {
    **BASE,
    "model": {"path": "base.yaml", "max_length": 16},
    "env": {"name": "noisy_raters"},
    "algorithm": {"name": "ppo", "kl_coef": 0.01},
    "reward": {"model": 1.0},
    "reward_model": {"path": "reward.yaml", "bound": 0.5},
    "monitor": {"rater": "rater", "answers": 16, "kl_budget": 1000.0},
    "train": {"steps": 6, "batch_groups": 16, "epochs": 2, "minibatches": 2, "checkpoint_every": 3},
    "eval": {"every": 2, "tasks": 24},
}


@pytest.mark.slow
def test_grades_to_policy_in_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, config in (("base", BASE), ("reward", REWARD), ("ppo", PPO)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    done = result(start("train", "ppo.yaml", "--out", "run", cwd=tmp_path, stderr=tmp_path / "said"))
    assert done["status"] == "finished"
    train = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert len(train) == 6
    assert max(row["gap/max"] for row in train) < 1e-4
    assert all(row["grad_norm/critic"] > 0 and row["grad_norm/policy"] > 0 for row in train)
    assert all(row["component/proxy_spread"] > 0 for row in train)
    # the reward is the model's word less half its spread, and nothing of the environment's
    assert train[0]["reward/mean"] == pytest.approx(
        train[0]["component/proxy"] - 0.5 * train[0]["component/proxy_spread"], abs=1e-4
    )
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    wanted = {"proxy", "proxy_spread", "kl", "rater", "rater_error", "repeats", "mean_grade", "pass@1"}
    assert wanted <= set(found["final"]["test"])
    assert found["baseline"]["test"]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert 'id="hacking"' in (tmp_path / "run" / "report.html").read_text()
    # a budget of KL ends a run where it is passed; the reward model learns fresh labels meanwhile
    words = ("monitor.kl_budget=0.01", "train.optimiser.lr=0.01", "reward_model.fresh=16", "reward_model.fresh_every=1")
    done = result(start("train", "ppo.yaml", *words, "--out", "ended", cwd=tmp_path, stderr=tmp_path / "said"))
    assert (done["status"], done["kl_budget"], done["steps"]) == ("finished", 2, 2)
    assert "alarm" not in done
    assert rows(tmp_path / "ended")[-1]["hacking/kl_budget"] == 1.0
    assert (tmp_path / "ended" / "checkpoints" / "step_000002").is_dir()
    assert "has passed its budget of 0.01; the run ends" in (tmp_path / "said").read_text()
    ended = [row for row in rows(tmp_path / "ended") if row["kind"] == "train"]
    learnt = [row["flops/scoring"] for row in ended]
    assert learnt[1] > 3 * learnt[0]
    kept = list((tmp_path / "cache").rglob("reward.json"))
    assert len(kept) == 1
    assert (kept[0].parent / "member1" / "head.safetensors").is_file()
