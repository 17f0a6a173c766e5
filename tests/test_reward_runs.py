"""A reward model's run afterwards: `posterior eval` of it, its folders as a learned reward, and what is kept of it as a warm start."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml

from actors import checkpoint
from actors.learner import resolve_roles
from actors.reward import RewardScorer
from actors.types import Group
from actors.update import OptimiserConfig, Updater
from algorithms.reward_model import RewardModel
from envs.noisy_raters import NoisyRaters
from models.forward import Distribution
from models.loading import ModelError, load_role, load_tokenizer, save_role
from models.scratch import write_model
from models.trace import Trace
from posterior import launch, warm_start
from posterior.cli import build_parser
from posterior.commands import runs
from posterior.config_load import ConfigError, dump, load
from posterior.evaluate import evaluate
from posterior.rundir import RunDir, write_atomic
from posterior.targets import best

TASKS = 60


class Trained:
    """A run with two checkpoints. figures: of each on labels_valid, as training wrote them. said: of the first, on `traces`."""

    def __init__(self, run: RunDir, base: Path) -> None:
        self.run, self.base = run, base
        self.figures: dict[int, dict[str, float]] = {}
        self.traces: list[Trace] = []
        self.said: list[float] = []

    def policy(self, step: int) -> Path:
        return self.run.checkpoints / f"step_{step:06d}" / "policy"


@pytest.fixture(scope="module", params=["shared", "separate"])
def trained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Trained:
    """Trained for 30 steps; its second checkpoint is spoilt, so that the first is the best."""
    home = tmp_path_factory.mktemp(request.param)
    base = write_model(home / "base", NoisyRaters().words(), layers=1, width=32, heads=1, length=16)
    file = home / "reward.yaml"
    tree = {
        "model": {"path": str(base), "max_length": 16},
        "env": {"name": "noisy_raters", "args": {"labels": 200}, "train_split": "labels"},
        "algorithm": {"name": "reward_model", "members": 2, "trunk": request.param},
        "sampling": {"max_tokens": 5},
        "eval": {"splits": ["labels_valid"], "tasks": TASKS},
    }
    file.write_text(yaml.safe_dump(tree))
    config = load(file).config
    found = Trained(RunDir.create("reward", home / "run"), base)
    write_atomic(found.run.config, dump(config))
    plan = launch.make_plan(config)
    method = plan.make_algorithm()
    assert isinstance(method, RewardModel)
    specs = resolve_roles(method.roles)
    models = {role: load_role(s.weights, head=s.head, outputs=s.outputs) for role, s in specs.items()}
    settings = dict.fromkeys(models, OptimiserConfig(3e-3, 0, (0.9, 0.99), 1e-8, 0.0, 1.0))
    updater = Updater(method, models, specs, settings, Distribution(), None)
    env = NoisyRaters(labels=200)
    tasks = list(env.tasks("labels"))
    valid = list(itertools.islice(env.tasks("labels_valid"), TASKS))
    for step in range(30):
        groups = [Group(t, [method.example(t, i, step)], i) for i, t in enumerate(tasks[step % 4 :: 4])]
        method.credit(groups)
        updater.update(groups, step, measure_gap=False)
    for step in (10, 20):
        groups = [Group(t, [method.example(t, i, 0)], i) for i, t in enumerate(valid)]
        for role in models:
            updater.score(role, groups, 0)
        each = method.by_task(groups)
        found.figures[step] = method.diagnose(groups, each)
        row = {f"eval/labels_valid/{name}": value for name, value in found.figures[step].items()}
        found.run.append_metrics({"kind": "eval", "step": step, "version": step, **row})
        checkpoint.save(found.run.checkpoints, step, updater, {}, {}, load_tokenizer(str(base)), keep=2)
        if step == 10:
            found.traces, found.said = [group.traces[0] for group in groups], each["predicted"]
            for model in models.values():
                assert model.head is not None
                with torch.no_grad():
                    model.head.bias.add_(2.0)
    assert found.figures[10]["mse"] < found.figures[10]["mse_mean_predictor"] < found.figures[20]["mse"]
    return found


# ---- posterior eval


def test_eval_reads_held_out_items_as_training_does(trained: Trained) -> None:
    running = ray.is_initialized()
    found = evaluate(str(trained.run.path), None, {}, tasks=TASKS)
    assert ray.is_initialized() == running
    assert found["target"].startswith("step_000010 of")
    assert set(found["splits"]) == {"labels_valid", "labels_test"}  # what carries scores and was not trained on
    assert found["splits"]["labels_valid"] == pytest.approx(trained.figures[10], rel=1e-4)
    assert found["splits"]["labels_test"]["mse"] != found["splits"]["labels_valid"]["mse"]
    last = evaluate(str(trained.run.path), None, {}, split="labels_valid", tasks=TASKS, checkpoint="newest")
    assert last["splits"] == {"labels_valid": pytest.approx(trained.figures[20], rel=1e-4)}


def test_eval_keeps_the_scale_of_the_training_data(trained: Trained) -> None:
    fewer = evaluate(str(trained.run.path), None, {"labels": 20}, split="labels_valid", tasks=TASKS)
    assert fewer["splits"]["labels_valid"] == pytest.approx(trained.figures[10], rel=1e-4)


def test_eval_for_people_and_what_it_refuses(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*words: str) -> dict[str, Any]:
        return runs.evaluate(build_parser().parse_args(["eval", *words]))

    run = str(trained.run.path)
    ask(run, "--tasks", str(TASKS), "--split", "labels_valid")
    lines = capsys.readouterr().out.splitlines()
    figures = trained.figures[10]
    assert lines[-1].startswith(f"labels_valid: squared error {figures['mse']:.3f}, mean predictor ")
    assert f"raters' noise {figures['noise_floor']:.3f}, correlation {figures['correlation']:.3f}" in lines[-1]
    with pytest.raises(ConfigError, match="a reward model reads given answers: leave out --samples"):
        ask(run, "--samples", "4")
    with pytest.raises(ConfigError, match="no split 'label_test'; did you mean 'labels_test'"):
        ask(run, "--split", "label_test")
    with pytest.raises(ConfigError, match="no held-out split of environment walk holds what reward_model reads"):
        ask(run, "--env", "walk", "--tasks", "4")
    with pytest.raises(ConfigError, match="holds a reward model, which answers nothing; give the run"):
        ask(str(trained.policy(10)))


# ---- as a learned reward


def policy_config(trained: Trained, path: Path) -> Any:
    words = ["env.name=noisy_raters", f"model.path={trained.base}", "reward={model: 1.0}", f"reward_model.path={path}"]
    return load(None, words).config


def test_a_run_and_a_checkpoint_are_a_learned_reward(trained: Trained) -> None:
    members = len(list(trained.policy(10).parent.glob("member*")))
    for path, step in ((trained.run.path, 10), (trained.policy(10), 10), (trained.policy(20), 20)):
        reward = launch.learned_reward(policy_config(trained, path), str(trained.base))
        assert reward is not None
        beside = [str(trained.policy(step).parent / f"member{e + 1}") for e in range(members)]
        assert list(reward.folders) == [str(trained.policy(step)), *beside]
        said = RewardScorer(reward, "float32", 1).score(trained.traces)
        assert said.shape[1] == 2
        spoilt = 0.0 if step == 10 else 2.0 * reward.std
        assert said.mean(1) - spoilt == pytest.approx(trained.said, abs=1e-4)


def test_a_member_that_is_missing_is_named(trained: Trained, tmp_path: Path) -> None:
    notes = json.loads((trained.policy(10) / "reward.json").read_text())
    alone = tmp_path / "alone"
    save_role(load_role(str(trained.policy(10))), alone, load_tokenizer(str(trained.base)))
    (alone / "reward.json").write_text(json.dumps({**notes, "members": ["member7"]}))
    with pytest.raises(ModelError, match="has no folder member7 of another member in it or beside it") as caught:
        launch.learned_reward(policy_config(trained, alone), str(trained.base))
    assert "\n" not in str(caught.value)


def test_a_head_of_another_shape_is_one_sentence(trained: Trained, tmp_path: Path) -> None:
    save_role(load_role(str(trained.base), head="scalar", outputs=4), tmp_path, None)
    assert load_role(str(tmp_path), head="value", outputs=4).head is not None
    with pytest.raises(ModelError, match="start from a model whose head gives 1 output, or from one") as caught:
        load_role(str(tmp_path), head="value")
    assert "\n" not in str(caught.value)


# ---- as a warm start


def test_an_error_that_was_no_number_is_passed_over(trained: Trained, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.symlink_to(trained.run.checkpoints)
    for step, error in ((10, float("nan")), (20, 3.0)):
        run.append_metrics({"kind": "eval", "version": step, "eval/labels_valid/mse": error})
    found = best(run)
    assert found is not None
    assert found.name == "step_000020"


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_best_version_is_kept_or_the_last_where_none_was_evaluated(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: bool
) -> None:
    """The training itself is replaced by a process that ends at once, over a copy of a finished run."""
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", str(trained.run.path), str(out)], check=True)
    if not evaluated:
        (out / "metrics.jsonl").write_text("")

    def start(words: list[str]) -> subprocess.Popen[str]:
        done = [sys.executable, "-c", """print('{"status": "finished"}')"""]
        return subprocess.Popen(done, stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(warm_start.child, "start", start)
    resolved = load(out / "config.yaml")
    warm = warm_start.WarmStart(out / "config.yaml", resolved, tmp_path / "kept")
    made = warm_start._run(warm, out / "config.yaml", out)
    assert made == out / "checkpoints" / ("step_000010" if evaluated else "step_000020") / "policy"
    members = json.loads((made / "reward.json").read_text())["members"]
    assert all((made / name / "head.safetensors").is_file() for name in members)
