"""Warm starts: a model that another configuration trains once; where it is found, what is refused, and who waits for whom."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import result, start

from models.loading import ModelError
from posterior import launch, warm_start
from posterior.config_load import ConfigError, dump, load
from posterior.prepare import model_path

WALKER: dict[str, Any] = {
    "name": "walker",
    "model": {"path": "scratch", "scratch": {"family": "gpt2", "layers": 1, "width": 16, "heads": 2}, "max_length": 24},
    "env": {"name": "walk", "train_split": "pretrain"},
    "algorithm": {"name": "neuralese_sft", "written": True},
    "sampling": {"max_tokens": 8},
    "train": {"steps": 3, "batch_groups": 8},
    "eval": {"every": 0},
    "log": {"traces_every": 0},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a working directory of the test's own; configurations lie in the folder `configs` there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path


def write(path: str, **more: Any) -> Path:
    """A walker's configuration with some sections changed."""
    sections = {key: {**WALKER[key], **value} if isinstance(value, dict) else value for key, value in more.items()}
    file = Path(path)
    file.write_text(yaml.safe_dump({**WALKER, **sections}))
    return file


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        launch.make_plan(load(path).config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def instead_of_training(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[Path]:
    """The model from nothing in place of a trained one; returns the list of configurations "trained" so far."""
    trained: list[Path] = []

    def run(warm: warm_start.WarmStart, config: Path, out: Path) -> Path:
        trained.append(warm.path)
        time.sleep(seconds)
        return Path(
            shutil.copytree(model_path(load(config).config), out / "policy", ignore=shutil.ignore_patterns("run"))
        )

    monkeypatch.setattr(warm_start, "_run", run)
    return trained


@pytest.mark.slow
def test_a_run_from_a_warm_start_that_is_trained_once(home: Path) -> None:
    thinker = {"kind": "gated"}  # sampled in torch, which starts faster than vLLM
    base = write("configs/base.yaml", model={"thinker": thinker})
    mine = write(
        "configs/mine.yaml", name="mine", model={"path": "base.yaml", "thinker": thinker}, env={"train_split": None}
    )
    before = result(start("train", str(mine), "--dry-run", cwd=home))["warm_start"]
    assert before["trained"] is False
    assert not Path(before["folder"]).exists()
    done = result(start("train", str(mine), "--out", "run", cwd=home, stderr=home / "said"))
    assert done["status"] == "finished"
    told = (home / "said").read_text()
    assert f"warm start: training configs/base.yaml once (kept in {before['folder']})" in told
    assert load(home / "run" / "config.yaml").config.model.path == str(base.absolute())

    kept = Path(before["folder"])
    assert yaml.safe_load((kept / "run" / "config.yaml").read_text())["env"]["train_split"] == "pretrain"
    steps = [line for line in (kept / "run" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(steps) == 3
    fresh = model_path(load(base).config)
    assert (kept / "model.safetensors").read_bytes() != (Path(fresh) / "model.safetensors").read_bytes()
    assert [path.name for path in kept.parent.glob("*.tmp")] == []

    after = result(start("train", str(mine), "--dry-run", cwd=home))["warm_start"]
    assert after == {"folder": str(kept), "trained": True}
    assert model_path(load(home / "run" / "config.yaml").config) == str(kept)  # as resume looks for it


def test_it_is_trained_again_only_when_its_configuration_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = instead_of_training(monkeypatch)
    write("base.yaml")
    mine = write("mine.yaml", model={"path": "base.yaml"})
    first = model_path(load(mine).config)
    assert model_path(load(mine, ["seed=5", "train.steps=9"]).config) == first
    assert len(trained) == 1
    Path("base.yaml").write_text("# a remark\n" + Path("base.yaml").read_text())
    assert model_path(load(mine).config) == first
    write("base.yaml", seed=1)
    assert model_path(load(mine).config) != first
    assert len(trained) == 2


def test_paths_are_looked_for_here_and_then_beside_the_configuration(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write("configs/mine.yaml", model={"path": "base.yaml"})
    assert load(mine).config.model.path == "base.yaml"  # nowhere yet: said when it is needed
    write("configs/base.yaml")
    assert load(mine).config.model.path == str(home / "configs" / "base.yaml")
    write("base.yaml")
    resolved = load(mine)
    assert resolved.config.model.path == str(home / "base.yaml")
    (home / "dumped.yaml").write_text(dump(resolved.config))
    monkeypatch.chdir(home / "configs")
    assert load(home / "dumped.yaml").config == resolved.config
    assert load(None, [f"model.path={home}"]).config.model.path == str(home)


def test_a_warm_start_of_a_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = instead_of_training(monkeypatch)
    write("first.yaml")
    write("second.yaml", model={"path": "first.yaml"})
    mine = write("mine.yaml", model={"path": "second.yaml"})
    found = warm_start.find(load(mine).config)
    assert found is not None
    assert not found.trained
    model_path(load(mine).config)
    assert [path.name for path in trained] == ["second.yaml", "first.yaml"]
    write("first.yaml", seed=1)  # what it starts from is part of what it is
    again = warm_start.find(load(mine).config)
    assert again is not None
    assert again.folder != found.folder


def test_what_is_refused_before_anything_is_trained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = instead_of_training(monkeypatch)
    mine = write("mine.yaml", model={"path": "nowhere.yaml"})
    assert refused(mine).startswith("model.path: there is no configuration nowhere.yaml to train a warm start from")
    assert refused(write("mine.yaml", model={"path": "mine.yaml"})) == (
        "model.path: a warm start points at itself: mine.yaml -> mine.yaml"
    )
    write("base.yaml", model={"path": "mine.yaml"})
    assert refused(write("mine.yaml", model={"path": "base.yaml"})).endswith(
        "points at itself: base.yaml -> mine.yaml -> base.yaml"
    )
    write("base.yaml", train={"stepz": 3})
    assert refused(mine).startswith("the warm start of model.path: ")
    assert "train.stepz is not a known key" in refused(mine)
    write("base.yaml", env={"name": "walk", "args": {"states": 3}})
    assert "on walk, whose vocabulary lacks words of walk (3, 4); train it on the same environment" in refused(mine)
    write("base.yaml", env={"name": "trace_execution", "args": {}})
    assert launch.make_plan(load(mine).config)  # it has all the words of a walk, and more
    assert len(trained) == 1
    coder = write("mine.yaml", model={"path": "base.yaml"}, env={"name": "coding", "train_split": None})
    assert "whose vocabulary is made of words, as coding is not" in refused(coder)


def test_what_needs_no_model_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = instead_of_training(monkeypatch)
    write("base.yaml")
    bad = write("mine.yaml", model={"path": "base.yaml"}, env={"train_split": "trian"})
    assert refused(bad) == "env.train_split: environment walk has no split 'trian'; did you mean 'train'?"
    bad = write("mine.yaml", model={"path": "base.yaml"}, sampling={"max_tokens": 24})
    assert "leaves no room for a prompt" in refused(bad)
    assert trained == []


def test_longer_traces_than_the_model_has_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_training(monkeypatch)
    for family in ("gpt2", "llama"):
        scratch = {**WALKER["model"]["scratch"], "family": family}
        write("base.yaml", model={"scratch": scratch})
        mine = write("mine.yaml", model={"path": "base.yaml", "max_length": 25})
        assert "base.yaml has 24 positions; set model.max_length to at most 24" in refused(mine)
        assert launch.make_plan(load(write("mine.yaml", model={"path": "base.yaml"})).config)


def test_of_two_at_once_one_trains_and_the_other_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = instead_of_training(monkeypatch, seconds=0.5)
    write("base.yaml")
    config = load(write("mine.yaml", model={"path": "base.yaml"})).config
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(model_path(config))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert found[0] == found[1]
    assert "another process trains base.yaml; waiting for it" in capsys.readouterr().err


def test_a_warm_start_that_fails_says_why_and_leaves_nothing(home: Path) -> None:
    write("base.yaml", eval={"every": 1, "splits": ["tset"]})
    config = load(write("mine.yaml", model={"path": "base.yaml"})).config
    with pytest.raises(warm_start.WarmStartFailed) as caught:
        model_path(config)
    assert str(caught.value) == (
        "the warm start base.yaml was not trained: eval.splits: environment walk has no split 'tset'; did you mean 'test'?"
    )
    warm = warm_start.find(config)
    assert warm is not None
    assert not warm.trained
    assert [path.name for path in warm.folder.parent.iterdir() if not path.name.endswith(".lock")] == []


def test_other_paths_are_no_warm_start() -> None:
    for path in ("scratch", "embedded", "./my.yaml/model", "org/model"):
        assert warm_start.find(load(None, [f"model.path={path}"]).config) is None
    with pytest.raises(ModelError, match="there is no model folder"):
        model_path(load(None, ["model.path=./my.yaml/model"]).config)
