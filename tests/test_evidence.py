"""What may be said of a run's latents: every sentence, where something is missing, contradicts it, or all is there."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import checkpoint
from actors.stats import wilson
from envs.pointer_chase import PointerChase
from models.feedback import Thinker, ThinkerConfig
from models.loading import load_role
from models.scratch import write_model
from posterior.afterwards import _by_number
from posterior.causal import causal, eval_causal
from posterior.cli import build_parser
from posterior.commands.runs import _causal
from posterior.config import RunConfig
from posterior.config_load import ConfigError, dump
from posterior.evidence import controls_of, in_order, interventions, lines, verdict
from posterior.rundir import RunDir, write_atomic
from posterior.targets import open_target


def entry(p: float, n: int = 200, key: str = "accuracy") -> dict[str, Any]:
    low, high = wilson(p * n, n)
    return {key: p, "low": low, "high": high, "logprob_lost": 2.0, "logprob_lost_low": 1.5, "logprob_lost_high": 2.5}


def result(**more: Any) -> dict[str, Any]:
    """A run whose answers need their latents, with all controls."""
    battery = {"clean": entry(0.99), "transplant": entry(0.13), "truncate 10": entry(0.9), "truncate 2": entry(0.2)}
    finals = {f"hops{h}": entry(0.99, key="pass@1") for h in (2, 10)}
    by_number = _by_number({f"hops{h}": entry(0.3, key="pass@1") for h in (2, 10)})
    controls = {name: {"lr": 1e-3, **by_number} for name in ("no_thought", "pause", "detached")}
    return {"causal": {s: copy.deepcopy(battery) for s in finals}, "final": finals, "controls": controls, **more}


def test_the_claim_is_made_only_where_nothing_is_missing() -> None:
    assert "In this run the latents help" in verdict(result())
    for name in ("no_thought", "pause", "detached"):
        lacking = result()
        del lacking["controls"][name]
        assert "whether latents help is not known" in verdict(lacking)
    empty: list[dict[str, Any]] = [{}, {"causal": {}}, {"causal": None, "controls": []}]
    for bare in empty:
        assert verdict(bare).startswith("Nothing is known")


@pytest.mark.parametrize("name", ["no_thought", "pause", "detached"])
def test_a_control_that_does_as_well_denies_the_claim(name: str) -> None:
    found = result()
    found["controls"][name]["accuracy_by_hop"] = found["controls"][name]["accuracy_by_hops"] = [0.3, 0.97]
    ends = [wilson(60, 200), wilson(194, 200)]
    for key in [k for k in found["controls"][name] if k.endswith("_interval")]:
        found["controls"][name][key] = ends
    assert "does not show that latents help" in verdict(found)


def test_answers_that_survive_a_transplant_deny_the_claim() -> None:
    found = result()
    found["causal"]["hops10"]["transplant"] = entry(0.9)
    assert "not shown to be the latents" in verdict(found)
    del found["causal"]["hops10"]["transplant"]
    assert "help:" not in verdict(found)


def test_the_table_holds_every_figure_with_its_interval() -> None:
    found = result(controls_wanted=["no_thought"])
    text = "\n".join(lines(found))
    assert text.index("hops2") < text.index("hops10")
    low, high = wilson(26, 200)
    assert f"another problem's           13.0 % [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert "2.00 [1.50, 2.50]" in text
    assert text.count("(control: pause tokens)") == 2
    assert "Not trained yet" not in text
    del found["controls"]["no_thought"]
    assert "Not trained yet: no thought; `posterior resume RUN`" in "\n".join(lines(found))


def test_splits_and_truncations_are_in_the_order_of_their_numbers() -> None:
    assert in_order(["hops10", "hops9", "hops1"]) == ["hops1", "hops9", "hops10"]
    assert in_order(["test", "hops1"]) == ["test", "hops1"]
    names = interventions({"a": {"truncate 10": {}, "truncate 9": {}, "zero": {}, "clean": {}}})
    assert names == ["clean", "zero", "truncate 9", "truncate 10"]


def test_controls_of_unnumbered_splits() -> None:
    found = {"final": {"test": entry(0.9, key="pass@1")}}
    found["controls"] = {"pause": {"final": {"test": entry(0.5, key="pass@1")}}, "detached": {"final": 3}}
    assert {n: by["test"].p for n, by in controls_of(found).items()} == {"pause": 0.5}


def thinking_config(folder: Path) -> RunConfig:
    path = write_model(folder / "model", PointerChase().words(), family="gpt2", width=32, length=64)
    Thinker(ThinkerConfig(), load_role(str(path)).base).save(path)
    return RunConfig.model_validate(
        {
            "model": {"path": str(path), "max_length": 32},
            "env": {"name": "pointer_chase", "args": {"hops": 3}},
            "algorithm": {"name": "neuralese_sft"},
            "sampling": {"latents": 3, "latents_from": "task", "max_tokens": 2},
        }
    )


def test_the_battery_of_a_model(tmp_path: Path) -> None:
    config, told = thinking_config(tmp_path), []
    found = causal(config, ["hops3", "test"], 60, lambda done, what: told.append((done, what)))
    assert [done for done, _ in told] == [0, 1, 2, 3, 4, 5]
    probes = found["hops3"]["probes"]
    assert (probes["problems"], probes["steps"]) == (240, ["step 1", "step 2", "answer"])
    assert np.shape(probes["latent"]["accuracy"]) == np.shape(probes["state"]["control"]) == (3, 3)
    low, value, high = (np.array(probes["state"][key]) for key in ("low", "accuracy", "high"))
    assert (low <= value + 1e-3).all()
    assert (value <= high + 1e-3).all()
    # where hops are mixed, the problems with the most steps are probed
    assert len(found["test"]["probes"]["steps"]) == 3
    assert found["test"]["probes"]["problems"] < 240
    # an online method reads its answers in the same way
    config.algorithm = {"name": "rlvr"}
    again = causal(config, ["hops3"], 60)["hops3"]
    assert again["clean"] == found["hops3"]["clean"]
    config.sampling.latents = 0
    assert set(causal(config, ["hops3"], 8)["hops3"]) == {"clean"}


@pytest.fixture
def stored(tmp_path: Path) -> RunDir:
    """A finished run with three checkpoints (steps 10, 20, 30) of one model, the second the best on held-out tasks."""
    config = thinking_config(tmp_path)
    config.eval.splits = ["hops2", "hops3"]
    run = RunDir.create("stored", tmp_path / "run")
    write_atomic(run.config, dump(config))
    for step, p in ((10, 0.5), (20, 0.9), (30, 0.7)):
        folder = run.checkpoints / f"step_{step:06d}"
        shutil.copytree(config.model.path, folder / "policy")
        (folder / "meta.json").write_text(json.dumps({"format": checkpoint.FORMAT, "files": {}}))
        run.append_metrics({"kind": "eval", "version": step, "eval/hops2/pass@1": p, "eval/hops3/pass@1": p - 0.1})
    run.write_result({"status": "finished", "final": {"hops3": entry(0.7, key="pass@1")}})
    return run


def test_a_runs_checkpoints_can_be_chosen(stored: RunDir) -> None:
    for which, step in (("newest", 30), ("best", 20), ("10", 10), ("step_000010", 10)):
        config, what = open_target(str(stored.path), which)
        assert config.model.path == str(stored.checkpoints / f"step_{step:06d}" / "policy")
        assert what.startswith(f"step_{step:06d} of")
    (stored.checkpoints / "step_000020" / "meta.json").unlink()  # a damaged one is passed over
    assert open_target(str(stored.path), "best")[1].startswith("step_000030")
    with pytest.raises(ConfigError, match="choose newest, best or one of: 10, 30"):
        open_target(str(stored.path), "20")


def test_what_was_found_is_kept_with_the_run(stored: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*words: str) -> dict[str, Any]:
        return _causal(build_parser().parse_args(["eval", str(stored.path), "--causal", "--tasks", "16", *words]))

    first = ask("--split", "hops3")
    said = capsys.readouterr()
    assert "hops3: probes" in said.err
    assert "(trained run, sampled)      70.0 %" in said.out
    assert "The controls are missing" in said.out
    assert stored.read_result()["causal_of"] == {"checkpoint": "step_000030", "tasks": 16, "seed": 0}
    ask("--split", "hops2")  # beside the first
    kept = stored.read_result()
    assert set(kept["causal"]) == {"hops2", "hops3"}
    assert kept["causal"]["hops3"]["clean"] == first["causal"]["hops3"]["clean"]
    assert kept["status"] == "finished"
    ask("--split", "hops2", "--checkpoint", "best")  # in place of another checkpoint's
    assert set(stored.read_result()["causal"]) == {"hops2"}
    other = ask("hops=2", "--split", "test")  # of another environment: told, not kept
    assert set(other["causal"]) == {"test"}
    assert set(stored.read_result()["causal"]) == {"hops2"}


def test_words_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory"):
        eval_causal(str(tmp_path), None, {}, split=None, tasks=8, seed=0, checkpoint="newest")
    with pytest.raises(ConfigError, match="do not go with --causal"):
        _causal(build_parser().parse_args(["eval", "r", "--causal", "--samples", "3"]))
