"""Searches: their files, what is drawn, and one whole search with real runs, stopped in the middle and continued."""

from __future__ import annotations

import contextlib
import csv
import html
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from posterior.config_load import ConfigError, load
from posterior.rundir import RunDir
from posterior.tune import SearchDir, concurrency
from posterior.tune_config import load_search
from posterior.tune_page import _axis, _steps
from posterior.tune_table import Row, as_text, best_row

ROOT = Path(__file__).resolve().parents[1]
BASE = {"name": "base", "eval": {"every": 4}}
SPACE = {"train.optimiser.lr": {"loguniform": [1e-4, 1e-2]}, "algorithm.preset": {"grid": ["grpo", "dapo"]}}


def write(folder: Path, run: dict[str, Any] | None = None, **more: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(run or BASE))
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "space": SPACE, **more}, sort_keys=False))
    return path


def line_of(path: Path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_draws_are_combined_with_the_grid_and_repeated_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, search={"trials": 3}, set={"train.steps": 7})
    trials = load_search(path, ["train.batch_groups=2"]).trials
    assert [trial.values["algorithm.preset"] for trial in trials] == ["grpo", "dapo"] * 3
    rates = [trial.values["train.optimiser.lr"] for trial in trials]
    assert len(set(rates)) == 6
    assert all(1e-4 <= rate <= 1e-2 and float(f"{rate:.4g}") == rate for rate in rates)
    for trial in trials:
        assert trial.config.train.optimiser.lr == trial.values["train.optimiser.lr"]
        assert trial.config.algorithm["preset"] == trial.values["algorithm.preset"]
        assert (trial.config.train.steps, trial.config.train.batch_groups) == (7, 2)
    assert len({trial.name for trial in trials}) == 6
    assert [trial.values for trial in load_search(path).trials] == [trial.values for trial in trials]
    again = load_search(path, ["search.seed=1", "search.trials=1"]).trials
    assert len(again) == 2
    assert again[0].values["train.optimiser.lr"] not in rates


def test_every_way_to_choose_and_draws_that_repeat(tmp_path: Path) -> None:
    space = {
        "train.epochs": {"randint": [1, 3]},
        "train.optimiser.betas": {"choice": [[0.9, 0.95], [0.8, 0.9]]},
    }
    plan = load_search(write(tmp_path, space=space, search={"trials": 30}))
    found = {(trial.config.train.epochs, trial.config.train.optimiser.betas) for trial in plan.trials}
    assert found == {(epochs, betas) for epochs in (1, 2) for betas in ((0.9, 0.95), (0.8, 0.9))}
    assert (len(plan.trials), plan.repeated) == (4, 26)
    plan = load_search(write(tmp_path, space={"sampling.temperature": {"uniform": [0.5, 1.5]}}))
    assert len({trial.config.sampling.temperature for trial in plan.trials}) == 8
    assert load_search(write(tmp_path, space={"seed": {"grid": [1, 2]}})).config.search.trials == 1


@pytest.mark.parametrize(
    ("more", "at", "message"),
    [
        ({"space": {"train.optimiser.lrr": {"grid": [1]}}}, "lrr", "did you mean train.optimiser.lr?"),
        ({"set": {"train.stepz": 5}}, "stepz", "train.stepz is not a known key; did you mean train.steps?"),
        ({"space": {"train.steps": {"grid": [0]}}}, "train.steps", "train.steps must be above 0, not 0"),
        ({"space": {"train.steps": {"gird": [1]}}}, "gird", "did you mean space.train.steps.grid?"),
        ({"space": {"train.steps": {}}}, "train.steps", "give one of choice, grid, uniform, loguniform, randint"),
        ({"space": {"train.steps": {"grid": [1], "choice": [2]}}}, "train.steps", "not choice and grid"),
        ({"space": {"seed": {"randint": [5, 5]}}}, "seed", "the first number of randint must be below the second"),
        ({"space": {"seed": 5}}, "seed", "space.seed must be a mapping"),
        ({"search": {"trails": 5}}, "trails", "did you mean search.trials?"),
        ({"search": {"metric": "eval/test/pass@2"}}, "metric", "the evaluations have: eval/test/pass@1"),
        ({"set": {"eval.every": 0}}, None, "eval.every is 0"),
        ({"set": {"train.optimiser": {"lr": 1e-3}}}, "train.optimiser.lr:", "remove one of the two"),
        ({"train": {"steps": 5}}, "train:", "train is a key of a run, not of a search"),
        ({"base": "bass.yaml"}, "bass", "there is no configuration"),
    ],
)
def test_mistakes_are_one_sentence_naming_the_line(
    more: dict[str, Any], at: str | None, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, **more)
    with pytest.raises(ConfigError) as error:
        load_search(path)
    assert message in str(error.value)
    if at is not None:
        assert str(error.value).startswith(f"{path}:{line_of(path, at)}: ")


def test_searched_keys_are_not_words_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"searched here but command line sets train\.optimiser\.lr"):
        load_search(write(tmp_path), ["train.optimiser.lr=1e-3"])


def test_the_shipped_search_is_valid() -> None:
    plan = load_search(ROOT / "tune_configs/tune_rlvr_coding.yaml")
    assert len(plan.trials) >= 6
    r = plan.trials[0].config.resources
    assert r.samplers * r.sampler_cpus + r.learners * r.learner_cpus == 1


def test_the_best_is_the_last_evaluation_of_a_trial_that_did_not_fail() -> None:
    def row(name: str, metric: float | None, status: str = "finished", best: float | None = None) -> Row:
        return Row(
            name, {"a.b": 1}, status, metric, None, None, best, 4, 8, 1.0, "it broke" if status == "failed" else ""
        )

    rows = [
        row("0_", 0.2, best=0.9),
        row("1_", 0.5),
        row("2_", 0.5),
        row("3_", 0.7, "failed"),
        row("4_", None, "waiting"),
    ]
    best, least = best_row(rows, "max"), best_row(rows, "min")
    assert best is not None
    assert least is not None
    assert (best.name, least.name) == ("1_", "0_")
    assert best_row(rows[3:], "max") is None
    lines = as_text(rows, "m", "max").splitlines()
    assert [line.split()[0] for line in lines] == ["trial", "1", "2", "0", "3", "4"]
    assert lines[4].endswith("failed: it broke")


def test_axes() -> None:
    place, ticks = _axis([1e-4, 1e-3, 1e-2])
    assert [place(v) for v in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert ticks == pytest.approx([1e-4, 1e-3, 1e-2])
    place, _ = _axis([2, 6, 4])
    assert [place(v) for v in (2, 4, 6)] == [0, 0.5, 1]
    place, ticks = _axis(["a", None, True])
    assert [place(v) for v in ("a", None, True)] == [0, 0.5, 1]
    assert ticks == ["a", "None", "True"]
    assert _steps(0.11, 0.52) == pytest.approx([0.2, 0.3, 0.4, 0.5])


def test_as_many_trials_run_at_once_as_fit(tmp_path: Path, ray_session: None) -> None:
    plan = load_search(write(tmp_path, search={"trials": 4}))
    found = SearchDir(tmp_path, plan.config, plan.trials, {})
    assert concurrency(found, {"CPU": 1.0, "GPU": 0.0}) == 2
    assert concurrency(found, {"CPU": 0.2, "GPU": 0.0}) == 8
    plan.config.search.concurrent = 3
    assert concurrency(found, {"CPU": 0.5, "GPU": 0.0}) == 3
    with pytest.raises(ConfigError, match=r"search.concurrent is 3 but 2 trials fit at once: each needs 1 CPUs of 2"):
        concurrency(found, {"CPU": 1.0, "GPU": 0.0})


# A whole search

STEPS, GRACE, FREE = 32, 8, 3


def small_search(folder: Path, model: Path, scores: list[float]) -> Path:
    """The file of a search over the environment's score, two trials at once; scores below 2 wait at gates in the folder."""
    base = {
        "model": {"path": str(model), "max_length": 64},
        "env": {"name": "scored:Scored", "args": {"gates": str(folder), "free": 2 + FREE * 4}},
        "sampling": {"max_tokens": 8},
        "train": {"steps": STEPS, "batch_groups": 2},
        "eval": {"every": 4, "tasks": 2},
        "algorithm": {"name": "rlvr", "group_size": 2},
        "log": {"traces_every": 0},
        "resources": {"sampler_cpus": 0.5, "learner_cpus": 0.5},
    }
    search = {"metric": "eval/test/mean_grade", "scheduler": "asha", "grace_period": GRACE}
    return write(folder, base, space={"env.args.score": {"grid": scores}}, search=search)


@pytest.mark.slow
def test_a_small_search(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Two trials at once; asha stops the bad one, which comes second to every step; the best is a run's configuration."""
    path, out = small_search(tmp_path, tiny_model(), [3.0, 1.0]), tmp_path / "out"
    process = start("tune", str(path), "--out", str(out))
    wait(process, lambda: status(out, 0) == "finished" and len(rows(out, 1, "train")) == FREE, "the first trial's end")
    (tmp_path / "1.0.open").touch()
    keep(tmp_path / "said.json", process, 0)
    done = said(tmp_path, "said")["result"]
    assert (done["status"], done["concurrent"]) == ("finished", 2)
    check_stopped(out, done)
    check_outcome(out, done)


@pytest.fixture(scope="module")
def searched(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three trials: a good one; a bad one that waits until the search has been interrupted, after the good one
    has finished; and one with a bug, which waits until the bad one's actors have gone. Then resumed."""
    folder = tmp_path_factory.mktemp("search")
    path, out = small_search(folder, tiny_model(), [3.0, 1.0, -1.0]), folder / "out"

    process = start("tune", str(path), "--out", str(out))
    wait(process, lambda: status(out, 0) == "finished" and len(rows(out, 1, "train")) == FREE, "the first trial's end")
    process.send_signal(signal.SIGINT)
    log = trial(out, 1) / "trial.log"
    wait(process, lambda: "stopping after this step" in log.read_text(), "word of Ctrl-C in the second trial")
    (folder / "1.0.open").touch()
    keep(folder / "first.json", process, 130)

    process = start("resume", str(out))
    wait(process, lambda: bool(stopped(out)), "the second trial's stop")
    wait(process, (folder / "-1.0.waiting").exists, "the third trial's start")
    wait(process, lambda: samplers(process) == 1, "end of the stopped trial's actors", seconds=60)
    (folder / "-1.0.open").touch()
    keep(folder / "again.json", process, 0)
    return folder


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "posterior", *words, "--json"],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str], until: Callable[[], bool], what: str, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"{what} did not come: {process.communicate()[1][-4000:]}")
        time.sleep(0.1)


def keep(path: Path, process: subprocess.Popen[str], code: int) -> None:
    """Wait for the end and write down what a search said."""
    out, told = process.communicate(timeout=200)
    assert process.returncode == code, told[-4000:]
    path.write_text(json.dumps({"result": json.loads(out), "told": told, "time": time.time()}))


def trial(out: Path, number: int) -> Path:
    return next((out / "trials").glob(f"{number:02d}_*"))


def status(out: Path, number: int) -> str:
    if not (out / "trials").is_dir() or not list((out / "trials").glob(f"{number:02d}_*/result.json")):
        return ""
    return str(json.loads((trial(out, number) / "result.json").read_text())["status"])


def rows(out: Path, number: int, kind: str) -> list[dict[str, Any]]:
    return [row for row in RunDir(trial(out, number)).read_metrics() if row["kind"] == kind]


def stopped(out: Path) -> dict[str, int]:
    return dict(json.loads((out / "search.json").read_text())["stopped"])


def samplers(process: subprocess.Popen[str]) -> int:
    """Living sampler actors below a process."""
    count = 0
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            count += "".join(child.cmdline()).startswith("ray::TokenSampler")
    return count


def said(searched: Path, part: str) -> dict[str, Any]:
    return dict(json.loads((searched / f"{part}.json").read_text()))


def check_stopped(out: Path, done: dict[str, Any]) -> None:
    """The second trial was stopped at a rung, and its folder is still a run with a checkpoint."""
    good, bad = done["trials"][:2]
    assert (good["status"], good["steps"]) == ("finished", STEPS)
    assert bad["status"] == "stopped"
    assert GRACE <= bad["steps"] < STEPS
    assert list(stopped(out)) == [bad["name"]]
    assert status(out, 1) == "stopped"
    assert list((trial(out, 1) / "checkpoints").glob("step_*/policy/config.json"))


def check_outcome(out: Path, done: dict[str, Any]) -> None:
    """A configuration that loads, a table and a page that say the same as the command."""
    assert done["best"]["config"] == str(out / "best.yaml")
    assert load(out / "best.yaml").config.env.args["score"] == 3.0
    assert done["best"]["metric"] == pytest.approx(3.0, abs=0.1)
    with (out / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["env.args.score"]) for line in table] == [t["values"]["env.args.score"] for t in done["trials"]]
    assert [line["status"] for line in table] == [trial["status"] for trial in done["trials"]]
    assert float(table[0]["metric"]) == pytest.approx(done["best"]["metric"])
    page = (out / "search.html").read_text()
    assert 'aria-label="metric against env.args.score"' in page
    assert all(html.escape(trial.get("error", "")) in page for trial in done["trials"])


@pytest.mark.slow
def test_ctrl_c_ends_a_search_with_checkpoints_and_a_word_on_how_to_go_on(searched: Path) -> None:
    first, out = said(searched, "first"), searched / "out"
    assert first["result"]["status"] == "interrupted"
    assert f"posterior resume {out}" in first["told"]
    states = [trial["status"] for trial in first["result"]["trials"]]
    assert states[:2] == ["finished", "interrupted"]
    assert states[2] in ("waiting", "interrupted")
    assert first["result"]["best"]["values"] == {"env.args.score": 3.0}


@pytest.mark.slow
def test_a_resumed_search_repeats_nothing_and_continues_from_checkpoints(searched: Path) -> None:
    out, then = searched / "out", said(searched, "first")["time"]
    assert (trial(out, 0) / "metrics.jsonl").stat().st_mtime < then
    train = rows(out, 1, "train")
    assert [row["step"] for row in train] == list(range(len(train)))
    assert (trial(out, 1) / "trial.log").read_text().count("run directory:") == 2
    seconds = [row["seconds"] for row in train]
    assert seconds == sorted(seconds)  # the learner's clock went on: its checkpoint was taken up


@pytest.mark.slow
def test_a_stopped_and_a_broken_trial_do_not_stop_the_search(searched: Path) -> None:
    out, again = searched / "out", said(searched, "again")["result"]
    assert again["status"] == "finished"
    check_stopped(out, again)
    check_outcome(out, again)
    assert again["trials"][2]["status"] == "failed"
    assert "scored:Scored raised KeyError" in again["trials"][2]["error"]
