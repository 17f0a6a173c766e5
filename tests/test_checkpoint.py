"""A run with adapters is taken up again with all that it has trained: adapters, head, thinker, and their optimiser's averages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from actors import checkpoint
from actors.diary import Status
from actors.learner import Learner
from posterior import launch
from posterior.config_load import load
from posterior.rundir import RunDir
from posterior.train import learner_config

BASE: dict[str, Any] = {
    "model": {
        "path": "scratch",
        "scratch": {"family": "llama", "layers": 1, "width": 32, "heads": 1},
        "max_length": 16,
        "lora": {"rank": 2},
    },
    "sampling": {"max_tokens": 5},
    "eval": {"every": 0},
}
METHODS: dict[str, dict[str, Any]] = {
    "a head": {
        "algorithm": {"name": "reward_model", "members": 2},
        "env": {"name": "noisy_raters", "args": {"labels": 20}, "train_split": "labels"},
    },
    "a shared critic": {"algorithm": {"name": "ppo", "critic": "shared"}, "env": {"name": "noisy_raters"}},
    "a thinker": {
        "algorithm": {"name": "neuralese_sft"},
        "env": {"name": "pointer_chase", "args": {"symbols": 5, "hops": 2}},
        "model": {**BASE["model"], "thinker": {"kind": "gated"}, "max_length": 24},
    },
}
BESIDE = {"a head": "head.", "a shared critic": "head.", "a thinker": "thinker."}


def trained(learner: Learner) -> dict[str, torch.Tensor]:
    named = learner.updater.models["policy"].named_parameters()
    return {name: p for name, p in named if p.requires_grad}


def steps(learner: Learner, *seeds: int) -> None:
    """Updates by gradients drawn at random, through the run's own optimiser."""
    for seed in seeds:
        made = torch.Generator().manual_seed(seed)
        for p in trained(learner).values():
            p.grad = torch.randn(p.shape, generator=made)
        learner.updater._step("policy", finite=True)
        learner.updater.updates += 1


@pytest.mark.parametrize("what", list(METHODS))
def test_a_run_with_adapters_goes_on_with_all_that_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**BASE, **METHODS[what]}))
    run = RunDir.create("run", tmp_path / "run")
    config = learner_config(launch.make_plan(load(file).config), run, None, None)  # type: ignore[arg-type]
    learner = Learner(config, Status(None))
    assert any("lora_" in name for name in trained(learner))
    assert any(name.startswith(BESIDE[what]) for name in trained(learner))
    steps(learner, 0, 1)
    checkpoint.save(run.checkpoints, 2, learner.updater, {"mine": 1}, {}, learner.tokenizer, 2)

    resumed = Learner(replace(config, seed=7), Status(None))  # other adapters at the start
    assert resumed.found is not None
    assert any(not torch.equal(p, trained(learner)[name]) for name, p in trained(resumed).items())
    assert checkpoint.restore(resumed.found, resumed.updater) == (2, {"mine": 1}, {})
    assert resumed.updater.updates == 2
    assert trained(resumed).keys() == trained(learner).keys()
    for _ in range(2):
        for name, p in trained(learner).items():
            assert torch.equal(p, trained(resumed)[name]), name
        steps(learner, 2)  # the averages too: the next step is the same
        steps(resumed, 2)

    # what an older version wrote: adapters alone
    saved = torch.load(resumed.found / "trainer.pt", weights_only=False)
    own = saved["adapters"]["policy"]
    saved["adapters"]["policy"] = {name: p for name, p in own.items() if "lora_" in name}
    torch.save(saved, resumed.found / "trainer.pt")
    with pytest.raises(
        checkpoint.CheckpointError, match=rf"lacks {BESIDE[what]}.* of the role policy .*: start a new run"
    ):
        checkpoint.restore(resumed.found, resumed.updater)
