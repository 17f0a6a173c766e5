"""Whole runs through the command line, on real vLLM, Ray and Ray Train: reproducible, resumable, extensible."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import ROOT, STEPS, config, result, rows, start, wait_for_step, write


def test_a_whole_run_leaves_what_it_promises(whole: Path) -> None:
    run = whole / "run"
    train = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(STEPS))
    assert any(row["grad_norm/policy"] > 0 for row in train)
    assert train[0]["policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert [row["version"] for row in rows(run) if row["kind"] == "eval"] == [0, STEPS // 2, STEPS]
    assert (run / "report.html").stat().st_size > 10_000
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_000012", "step_000014"}
    assert list((run / "tensorboard").iterdir())
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = str(run / "checkpoints/step_000014/policy")
    assert AutoTokenizer.from_pretrained(policy).eos_token == "<|end|>"
    assert AutoModelForCausalLM.from_pretrained(policy).config.model_type == "qwen3"


def test_a_seed_reproduces_a_run_and_a_stopped_run_continues_the_same_curve(whole: Path) -> None:
    stopped = whole / "stopped"
    process = start("train", str(whole / "config.yaml"), "--out", str(stopped), cwd=whole)
    wait_for_step(stopped, 0, process)
    process.send_signal(signal.SIGINT)
    half = result(process, code=130)
    assert half["status"] == "interrupted"
    assert 0 < half["steps"] < STEPS
    before = rows(stopped)
    assert before == rows(whole / "run")[: len(before)]

    resumed = result(start("resume", str(stopped), cwd=whole))
    assert resumed["status"] == "finished"
    assert rows(stopped) == rows(whole / "run")
    again = result(start("resume", str(stopped), cwd=whole), code=1)
    assert "is finished" in again["error"]


@pytest.mark.slow
def test_a_custom_environment_and_a_users_model_train_with_one_command(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = result(
        start(
            "train",
            str(ROOT / "tune_configs/my_env.yaml"),
            f"model.path={tiny_model(tied=False, seed=3)}",
            "train.steps=2",
            "train.batch_groups=2",
            "eval.tasks=4",
            "sampling.max_tokens=16",
            "--out",
            str(out),
            cwd=ROOT / "examples",
        )
    )
    assert done["status"] == "finished"
    assert done["final"]["test"]["n"] == 4


@pytest.mark.slow
def test_many_parts_at_once(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Multi-turn episodes, staleness 1, a reference and old log-probs of the learner, two epochs of two mini-batches, two
    data-parallel learners, LoRA, truncated sampling, and episodes that the machinery loses."""
    path = write(
        tmp_path,
        config(
            tiny_model(),
            env={"name": "twenty_questions:Guess", "args": {"lose": 0}, "workers": 2},
            sampling={"max_tokens": 12, "temperature": 0.9, "top_p": 0.95, "top_k": 50},
            train={"steps": 3, "batch_groups": 2, "staleness": 1, "epochs": 2, "minibatches": 2},
            algorithm={"kl_coef": 0.05, "old_logprobs": "learner", "tis_cap": 2.0},
            resources={"learners": 2, "learner_cpus": 0.5},
            model={"lora": {"rank": 4, "alpha": 8.0}},
        ),
    )
    out = tmp_path / "run"
    done = result(start("train", str(path), "--out", str(out), cwd=ROOT / "tests"))
    assert done["status"] == "finished"
    train = [row for row in rows(out) if row["kind"] == "train"]
    assert [row["step"] for row in train] == [0, 1, 2]
    assert all(row["staleness/max"] <= 1 for row in train)
    assert train[0]["gap/max"] < 1e-4
    assert any("drift/mean" in row for row in train), "no batch was one version old"
    assert all(row["gap/max"] < 1e-4 for row in rows(out) if row["kind"] == "eval")
    assert all(row["turns/mean"] == 3 for row in train)
    assert all("policy/kl_reference" in row and "policy/tis_weight" in row for row in train)
    lines = [json.loads(line) for line in (out / "traces/step_000000.jsonl").read_text().splitlines()]
    trace = lines[0]["traces"][0]
    assert set(trace["turn"]) == {0, 1, 2}
    assert "higher" in "".join(trace["tokens"])


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_is_named(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    more = {"model": {"max_length": 6}, "sampling": {"max_tokens": 4}, "env": {"name": "twenty_questions:Guess"}}
    path = write(tmp_path, config(tiny_model(), **more, eval={"every": 0}))
    failed = result(start("train", str(path), "--out", str(tmp_path / "run"), cwd=ROOT / "tests"), code=1)
    assert "tokens but model.max_length is 6; raise model.max_length" in failed["error"]
    assert len(failed["error"]) < 300


def test_eval_doctor_and_chat_on_a_run(whole: Path) -> None:
    run = str(whole / "run")
    graded = result(start("eval", run, "--tasks", "6", "--samples", "2", "--max-tokens", "16", cwd=whole))
    figures = graded["splits"]["test"]
    assert figures["n"] == 6
    assert figures["samples"] == 2
    assert figures["low"] <= figures["pass@1"] <= figures["high"]
    assert "pass@2" in figures

    checked = result(start("doctor", str(whole / "config.yaml"), cwd=whole))
    names = [check["name"] for check in checked["checks"]]
    assert all(check["ok"] for check in checked["checks"])
    assert "weight update, by value" in names
    assert sum(name.startswith("agreement") for name in names) == 3

    talk = start("chat", run, cwd=whole)
    out, err = talk.communicate("hello\nand again\n", timeout=100)
    assert talk.returncode == 0, err[-2000:]
    assert json.loads(out)["turns"] == 2


def test_doctor_names_what_is_wrong(whole: Path) -> None:
    checked = result(start("doctor", str(whole / "config.yaml"), "model.path=./nowhere", cwd=whole), code=1)
    failed = [check for check in checked["checks"] if not check["ok"]]
    assert [check["name"] for check in failed] == ["plan"]
    assert "no model folder" in failed[0]["detail"]
