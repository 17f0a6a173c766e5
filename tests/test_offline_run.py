"""Whole runs on given answers with latent thinking, through the command line: reproducible, resumable, with
evidence."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import result, rows, start, wait_for_step, write

STEPS, BATCH = 60, 16


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a configuration, and an undisturbed run of it in folder/run."""
    folder = tmp_path_factory.mktemp("thinker")
    config = {
        "name": "thinker",
        "model": {
            "path": "scratch",
            "scratch": {"family": "gpt2", "layers": 1, "width": 32, "heads": 2},
            "thinker": {"kind": "gated"},
            "max_length": 24,
        },
        "env": {"name": "pointer_chase", "args": {"symbols": 5, "hops": 2}},
        "algorithm": {"name": "neuralese_sft"},
        "sampling": {"latents": 2, "latents_from": "task", "max_tokens": 2},
        "train": {"steps": STEPS, "batch_groups": BATCH, "checkpoint_every": 20, "optimiser": {"lr": 3e-3}},
        "eval": {"every": 30, "splits": ["hops1", "hops2"], "tasks": 12, "causal": 24},
        "log": {"traces_every": 30},
    }
    write(folder, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # where a model from nothing is made
        done = result(start("train", "config.yaml", "--out", "run", cwd=folder, stderr=folder / "said"))
        assert done["status"] == "finished"
        yield folder


def test_a_run_on_given_answers_carries_its_evidence(thinker: Path) -> None:
    run = thinker / "run"
    train = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["groups"] for row in train[:2]] == ["0..15", "16..31"]
    assert len(train) == STEPS
    losses = [row["loss/policy/ce"] for row in train]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert all(row["latents/mean"] > 1 for row in train)
    assert train[0]["tokens/batch"] > BATCH * 10
    assert "tokens/per_second" in json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    found = json.loads((run / "result.json").read_text())
    assert set(found["causal"]) == {"hops1", "hops2"}
    assert {"clean", "transplant", "truncate 1", "lens", "probes"} <= set(found["causal"]["hops2"])
    assert found["causal_of"] == {"checkpoint": f"step_{STEPS:06d}", "tasks": 24, "seed": 0}
    assert len(found["accuracy_by_hop"]) == 2
    said = (thinker / "said").read_text()
    assert f"step {STEPS}/{STEPS}  loss " in said
    assert "reward" not in said
    page = (run / "report.html").read_text()
    assert "Does it think?" in page
    assert "whether latents help is not known" in page


@pytest.mark.slow
def test_a_stopped_run_sees_the_same_data_in_the_same_order(thinker: Path) -> None:
    stopped = thinker / "stopped"
    process = start("train", "config.yaml", "--out", "stopped", cwd=thinker)
    wait_for_step(stopped, 0, process)
    process.send_signal(signal.SIGINT)
    half = result(process, code=130)
    assert half["status"] == "interrupted"
    assert 0 < half["steps"] < STEPS
    resumed = result(start("resume", "stopped", cwd=thinker))
    assert resumed["status"] == "finished"
    whole = rows(thinker / "run")
    assert [row.get("groups") for row in rows(stopped)] == [row.get("groups") for row in whole]
    assert rows(stopped) == whole  # losses too, bit for bit
    assert resumed["causal"] == json.loads((thinker / "run" / "result.json").read_text())["causal"]


@pytest.mark.slow
def test_evidence_of_another_checkpoint(thinker: Path) -> None:
    before = json.loads((thinker / "run" / "result.json").read_text())
    asked = ("--causal", "--tasks", "16", "--split", "hops2", "--checkpoint")
    wrong = result(start("eval", "run", *asked, "7", cwd=thinker), code=1)
    assert "keeps no checkpoint '7'; choose newest, best or one of: 40, 60" in wrong["error"]
    found = result(start("eval", "run", *asked, "40", cwd=thinker))
    assert found["causal_of"] == {"checkpoint": "step_000040", "tasks": 16, "seed": 0}
    assert set(found["causal"]) == {"hops2"}
    assert found["causal"]["hops2"]["clean"] != before["causal"]["hops2"]["clean"]
    after = json.loads((thinker / "run" / "result.json").read_text())
    assert after["causal"] == found["causal"]
    assert {k: v for k, v in after.items() if not k.startswith("causal")} == {
        k: v for k, v in before.items() if not k.startswith("causal")
    }


@pytest.mark.slow
def test_doctor_checks_a_thinker(thinker: Path) -> None:
    checked = result(start("doctor", "run", cwd=thinker))
    names = [check["name"] for check in checked["checks"]]
    assert all(check["ok"] for check in checked["checks"]), checked
    assert sum(name.startswith("agreement") and name.endswith(" + 2 latents") for name in names) == 3
    assert {"weight update, by value", "weight update, undone"} <= set(names)
    assert "step_000060" in next(check["detail"] for check in checked["checks"] if check["name"] == "plan")
