"""Comparisons: their files, the figures that follow from run directories, and one whole comparison, interrupted and continued."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import result, rows, start, wait_until

from actors.collector import by_task
from actors.types import Group
from envs.base import Task
from models.trace import Trace
from posterior.compare import CompareDir, _alone, _outcome, compare, resume
from posterior.compare_config import compute, load_comparison
from posterior.compare_read import choose, read
from posterior.compare_run import Job, prepare, run_all
from posterior.compare_table import Table
from posterior.config_load import ConfigError, load
from posterior.rundir import RunDir
from posterior.train import RunFailed

ROOT = Path(__file__).resolve().parents[1]
BASE = {"name": "base", "env": {"name": "walk"}, "eval": {"every": 4, "thoughts": 32}, "sampling": {"max_tokens": 6}}
ARMS: dict[str, Any] = {"sft": {"set": {"algorithm.name": "answer_sft"}}, "jepo": {"set": {"algorithm.name": "jepo"}}}


def write(folder: Path, base: dict[str, Any] | None = None, **more: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(base or BASE))
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "arms": ARMS, **more}, sort_keys=False))
    return path


def test_arms_seeds_and_the_sweep_make_the_runs(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**BASE, "algorithm": {"name": "rlvr"}}))
    arms = {**ARMS, "rlvr": {"config": "own.yaml", "grader": True, "set": {"train.batch_groups": 3}}}
    tuning = {"set": {"train.optimiser.lr": [1e-3, 1e-2], "train.epochs": [1, 2]}, "seed": 9}
    path = write(tmp_path, arms=arms, set={"train.flops": 1e9}, seeds=[4, 5], tuning=tuning)
    plan = load_comparison(path, ["train.steps=7", "bootstrap=10"])
    assert (plan.config.reference, plan.config.split, plan.config.bootstrap) == ("sft", "test", 10)
    assert (plan.config.tuning.metric, plan.config.tuning.split) == ("pass@1", "test")
    runs = {name: resolved.config for name, resolved in plan.arms.items()}
    assert [run.algorithm["name"] for run in runs.values()] == ["answer_sft", "jepo", "rlvr"]
    assert {(run.train.flops, run.train.steps, run.seed) for run in runs.values()} == {(1e9, 7, 4)}
    assert [run.train.batch_groups for run in runs.values()] == [8, 8, 3]
    assert compute(runs) == "flops"
    found = CompareDir.create(plan, tmp_path / "out")
    sweep = found.sweep("rlvr")
    assert [tuple(job.values.values()) for job in sweep] == [(1e-3, 1), (1e-3, 2), (1e-2, 1), (1e-2, 2)]
    assert sweep[3].name == "rlvr-lr=0.01,epochs=2-seed9"
    assert [job.name for job in found.compared()[:3]] == ["sft-seed4", "jepo-seed4", "rlvr-seed4"]
    run = prepare(sweep[3], found.arm("rlvr"), found.run(sweep[3]).path)
    written = load(run.config).config
    assert (written.train.optimiser.lr, written.train.epochs, written.seed, written.name) == (1e-2, 2, 9, sweep[3].name)
    assert (written.train.batch_groups, written.algorithm) == (3, {"name": "rlvr"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arms": {"a": {}}}, "arms must be"),
        ({"arms": {"a": {}, "b": {"confg": "x"}}}, "did you mean arms.b.config?"),
        ({"arms": {"a": {}, "b": {"config": "lost.yaml"}}}, "there is no configuration"),
        ({"arms": {"a": {}, "../b": {}}}, "a name is a folder's"),
        ({"arms": {"a": {}, "b": {"set": {"train.stepz": 1}}}}, "arm b: "),
        ({"arms": {"a": {}, "b": {"set": {"train.stepz": 1}}}}, "did you mean train.steps?"),
        ({"arms": {"a": {}, "b": {"set": {"seed": 1}}}}, "seed is the comparison's own"),
        (
            {"arms": {"a": {}, "b": {"set": {"eval.tasks": 5}}}},
            "arm b has eval.tasks 5 and a 128, which cannot be compared",
        ),
        ({"arms": {"a": {}, "b": {"set": {"env.args": {"length": 4}}}}}, "arm b"),
        ({"arms": {"a": {}, "b": {"set": {"eval.every": 0}}}}, "arm b: eval.every is 0"),
        ({"reference": "c"}, "reference 'c' is no arm; there are: sft, jepo"),
        ({"split": "best"}, "is not evaluated on split 'best'"),
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"strata": [0.5, 0.1]}, "the edges must rise"),
        ({"metrics": ["logp_answer"], "set": {"eval.thoughts": 0}}, "nothing measures logp_answer"),
        ({"tuning": {"set": {"train.steps": []}}}, "train.steps has no value to try"),
        ({"tuning": {"set": {"train.steps": [1]}, "seed": 0}}, "tuning.seed 0 is one of seeds"),
        ({"tuning": {"set": {"train.steps": [0]}}}, "train.steps must be above 0"),
        ({"tuning": {"set": {"train.steps": [1]}}, "set": {"train": {"steps": 5}}}, "remove one of the two"),
        ({"train": {"steps": 5}}, "train is a key of a run, not of a comparison"),
    ],
)
def test_mistakes_are_one_sentence(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_comparison(write(tmp_path, **more))
    assert message in str(error.value)


def test_compute_is_matched_by_what_all_arms_share(tmp_path: Path) -> None:
    def bound(**more: Any) -> str | None:
        plan = load_comparison(write(tmp_path, **more))
        return compute({name: resolved.config for name, resolved in plan.arms.items()})

    assert bound() == "steps"
    assert bound(set={"train.seconds": 3.0, "train.flops": 1e9}) == "flops"
    own = {name: {"set": {**arm["set"], "train.steps": 5 + i}} for i, (name, arm) in enumerate(ARMS.items())}
    assert bound(arms=own) is None
    assert bound(arms=own, set={"train.seconds": 3.0}) == "seconds"


def test_the_shipped_comparison_is_valid() -> None:
    plan = load_comparison(ROOT / "tune_configs/compare_posterior.yaml")
    assert len(plan.arms) == 12
    assert len(plan.points) == 2
    assert [name for name, arm in plan.config.arms.items() if arm.grader] == ["rlvr", "star"]
    assert compute({name: resolved.config for name, resolved in plan.arms.items()}) == "flops"
    thinkers = {name for name, resolved in plan.arms.items() if resolved.config.model.thinker}
    assert thinkers == {"neuralese"}
    plan = load_comparison(ROOT / "tune_configs/compare_posterior_answers.yaml")
    assert all(resolved.config.env.args["literal"] for resolved in plan.arms.values())
    assert compute({name: resolved.config for name, resolved in plan.arms.items()}) == "flops"


# Figures from run directories


def fake_run(found: CompareDir, job: Job, rate: float, gain: float, tasks: int = 12, status: str = "finished") -> None:
    """What a run would have left behind: rates before and after, and log-likelihoods that say how easy a task was."""
    leave(prepare(job, found.arm(job.arm), found.run(job).path), rate, gain, tasks, status)


def leave(run: RunDir, rate: float, gain: float, tasks: int = 12, status: str = "finished") -> None:
    ids = [f"t{i}" for i in range(tasks)]
    ease = np.linspace(np.log(0.01), np.log(0.9), tasks).tolist()
    for version, more in ((0, 0.0), (2, 5.0), (3, gain)):
        each = {"tasks": ids, "pass@1": [rate + more] * tasks, "mean_grade": [rate] * tasks}
        if version != 2:  # probes are drawn before the first and after the last step only
            each["logp_answer"] = [value + more for value in ease]
        run.write_held_out(version, "test", each)
    for step in range(3):
        flops = {"flops/sampling": 2.0 * step, "flops/scoring": 1.0, "flops/learning": 3.0 * step, "flops/eval": 99.0}
        run.append_metrics(
            {"kind": "train", "step": step, "version": step + 1, "time/trained": step + 0.5, "seconds": 9.0} | flops
        )
    run.write_result({"name": run.path.name, "status": status, **({"error": "it broke"} if status == "failed" else {})})


def compared(folder: Path, **more: Any) -> CompareDir:
    return CompareDir.create(load_comparison(write(folder, **more)), folder / "out")


def test_figures_tables_and_files_of_known_runs(tmp_path: Path) -> None:
    labels = {"sft": {**ARMS["sft"], "label": "SFT | plain"}, "jepo": {**ARMS["jepo"], "grader": True}}
    found = compared(tmp_path, arms=labels, seeds=[0, 1, 2], bootstrap=200)
    for seed in (0, 1, 2):
        fake_run(found, Job("sft", seed), 0.2 + 0.1 * seed, 0.1)
        fake_run(found, Job("jepo", seed), 0.2 + 0.1 * seed, 0.3, status="failed" if seed == 2 else "finished")
    done = _outcome(found, False)
    text = done.pop("text")
    assert json.loads((tmp_path / "out/result.json").read_text()) == done
    assert (done["tasks"], done["metrics"], done["bound"]) == (12, ["pass@1", "logp_answer"], "steps")
    assert done["means"]["pass@1"]["sft"]["after"]["mean"] == pytest.approx(0.4)
    assert done["means"]["pass@1"]["sft"]["before"]["mean"] == pytest.approx(0.3)
    # seeds 0 and 1 only: paired, so that the seeds' rates drop out
    apart = done["differences"]["pass@1"]["jepo"]
    assert (apart["mean"], apart["low"], apart["high"]) == pytest.approx((0.2, 0.2, 0.2))
    assert apart["p_holm"] == pytest.approx(2 / 201)
    assert "sft" not in done["differences"]["pass@1"]
    ease = np.exp(np.linspace(np.log(0.01), np.log(0.9), 12))
    sizes = [int(((ease >= low) & (ease < high)).sum()) for low, high in ((0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 1))]
    assert done["strata_tasks"] == sizes
    assert [s["mean"] for s in done["strata"]["logp_answer"]["jepo"]] == pytest.approx([0.3] * 4)
    jepo = done["arms"]["jepo"]
    assert (jepo["seeds"], jepo["missing"]) == (2, {"2": "it broke"})
    assert jepo["compute"] == {
        "steps": 3.0,
        "seconds": 9.0,
        "trained": 2.5,
        "flops": {"sampling": 4.0, "scoring": 1.0, "learning": 6.0},
    }
    assert (tmp_path / "out/table.md").read_text() == text
    for part in (
        "SFT \\| plain",
        "jepo ‡",
        "2 of 3",
        "+20.0 [+20.0, +20.0]",
        "0.010",
        "Missing: jepo, seed 2: it broke",
    ):
        assert part in text
    assert "Intervals over 3 seeds are too narrow" in text
    with (tmp_path / "out/compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines[:2]] == ["sft-seed0", "jepo-seed0"]
    assert float(lines[0]["pass@1 after"]) == pytest.approx(0.3)
    assert (lines[-1]["status"], lines[-1]["error"], lines[-1]["pass@1 after"]) == ("failed", "it broke", "")
    page = (tmp_path / "out/report.html").read_text()
    assert "SFT | plain" in page
    assert "+20.0 [+20.0, +20.0]" in page


def test_one_seed_says_that_intervals_are_over_tasks_alone(tmp_path: Path) -> None:
    found = compared(tmp_path, seeds=[3], bootstrap=50)
    for arm in ("sft", "jepo"):
        fake_run(found, Job(arm, 3), 0.5, 0.1)
    done = _outcome(found, False)
    assert "over held-out tasks only" in done["text"]
    assert "An interval of width 0" in done["text"]
    equal = done["differences"]["pass@1"]["jepo"]
    assert (equal["mean"], equal["low"], equal["high"], equal["p_holm"]) == (0.0, 0.0, 0.0, 1.0)


def test_a_comparison_with_nothing_yet_has_its_files(tmp_path: Path) -> None:
    done = _outcome(compared(tmp_path), True)
    assert done["status"] == "interrupted"
    assert done["metrics"] == []
    assert done["arms"]["sft"]["missing"]["0"] == "waiting"
    assert done["report"] is None


def test_the_sweep_chooses_by_what_finished(tmp_path: Path) -> None:
    found = compared(tmp_path, tuning={"set": {"train.optimiser.lr": [1e-4, 1e-3, 1e-2]}})
    jobs = found.sweep("jepo")
    for job, rate, status in zip(jobs, (0.3, 0.4, 0.9), ("finished", "finished", "failed"), strict=True):
        fake_run(found, job, rate, 0.0, status=status)
    best = choose([read(job, found.run(job), "test") for job in jobs], "pass@1")
    assert best is not None
    assert best.job.values == {"train.optimiser.lr": 1e-3}
    assert choose([read(jobs[2], found.run(jobs[2]), "test")], "pass@1") is None
    found.chosen = {"jepo": dict(best.job.values), "sft": None}
    found.save()
    again = CompareDir.open(found.path)
    assert again.unable("sft")
    assert not again.unable("jepo")
    assert {job.values.get("train.optimiser.lr") for job in again.compared() if job.arm == "jepo"} == {1e-3}
    assert "no run of its sweep" in _outcome(again, False)["text"]


def test_runs_follow_one_another_past_failures_and_go_on_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep first, what it chose in every later run; a resumed comparison repeats nothing that has finished."""
    asked: list[str] = []
    ill, interrupt = {"jepo-lr=0.1-seed1000", "sft-seed0"}, {"jepo-seed0"}

    def pretend(queue: Iterator[tuple[RunDir, int]], concurrent: int, done: Callable[[RunDir, str], None]) -> None:
        for run, _ in queue:
            asked.append(run.path.name)
            if run.path.name in interrupt:
                raise KeyboardInterrupt
            fails = run.path.name in ill
            leave(run, load(run.config).config.train.optimiser.lr, 0.1, status="failed" if fails else "finished")
            done(run, "it broke" if fails else "")

    monkeypatch.setattr("posterior.compare.run_all", pretend)
    monkeypatch.setattr("posterior.compare._check", lambda arms: None)
    plan = load_comparison(
        write(tmp_path, seeds=[0, 1], tuning={"set": {"train.optimiser.lr": [0.01, 0.1]}}, bootstrap=20)
    )
    first = compare(plan, tmp_path / "out")
    sweep = [f"{arm}-lr={lr}-seed1000" for arm in ("sft", "jepo") for lr in (0.01, 0.1)]
    assert asked == [*sweep, "sft-seed0", "jepo-seed0"]
    assert first["status"] == "interrupted"
    assert [first["arms"][arm]["tuned"] for arm in ("sft", "jepo")] == [
        {"train.optimiser.lr": 0.1},
        {"train.optimiser.lr": 0.01},
    ]
    asked.clear()
    ill.clear()
    interrupt.clear()
    done = resume(tmp_path / "out")
    assert asked == ["sft-seed0", "jepo-seed0", "sft-seed1", "jepo-seed1"]
    assert done["status"] == "finished"
    assert done["means"]["pass@1"]["sft"]["after"]["mean"] == pytest.approx(0.1 + 0.1)
    assert done["means"]["pass@1"]["jepo"]["after"]["mean"] == pytest.approx(0.01 + 0.1)
    asked.clear()
    assert compare(plan, tmp_path / "out")["means"] == done["means"]
    assert asked == []


class Process:
    """Stands for a run's process: it ends at the second look, or when it is asked to."""

    def __init__(self, run: RunDir, events: list[str], code: int) -> None:
        self.name, self.run, self.events, self.looks = run.path.name, run, events, 0
        self.returncode = code
        events.append(f"start {self.name}")

    def poll(self) -> int | None:
        return self.returncode if self.looks > 1 else None

    def communicate(self, timeout: float) -> tuple[bytes, None]:
        self.looks += 1
        if self.looks < 2:
            raise subprocess.TimeoutExpired("run", timeout)
        self.run.write_result({"status": "finished"})
        self.events.append(f"end {self.name}")
        return b'{"ok": true, "status": "finished"}', None

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGINT
        self.events.append(f"ask {self.name}")


def test_so_many_runs_go_on_at_once_and_all_are_asked_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {name: RunDir.create(name, tmp_path / name) for name in "abcd"}
    events: list[str] = []
    monkeypatch.setattr(
        "posterior.compare_run.child.start", lambda words, log: Process(RunDir(Path(words[1])), events, 0)
    )
    ended: list[str] = []
    run_all(((run, 5) for run in runs.values()), 2, lambda run, failure: ended.append(f"{run.path.name}{failure}"))
    assert ended == ["a", "b", "c", "d"]
    assert events == [f"{what} {name}" for pair in ("ab", "cd") for what in ("start", "end") for name in pair]
    events.clear()

    def stop(run: RunDir, failure: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(((run, 5) for run in runs.values()), 3, stop)
    # a was the first to end; c had been looked at as often as it had not
    assert events[:5] == ["start a", "start b", "start c", "end a", "ask b"]
    assert "ask c" in events
    assert "start d" not in events


def test_a_clock_cannot_match_runs_that_share_processors(tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[0], concurrent=2)
    assert load_comparison(path, ["train.flops=1e9"]).config.concurrent == 2
    with pytest.raises(ConfigError, match=r"with concurrent 2 .*match compute by train\.flops"):
        load_comparison(path, ["train.seconds=5"])


def test_a_comparison_without_one_finished_run_fails_with_the_first_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(queue: Iterator[tuple[RunDir, int]], concurrent: int, done: Callable[[RunDir, str], None]) -> None:
        for run, _ in queue:
            leave(run, 0.0, 0.0, status="failed")
            done(run, "it broke")

    monkeypatch.setattr("posterior.compare.run_all", fail)
    monkeypatch.setattr("posterior.compare._check", lambda arms: None)
    with pytest.raises(RunFailed, match=r"no run of the comparison .* has finished .*the first: it broke"):
        compare(load_comparison(write(tmp_path, seeds=[0])), tmp_path / "out")
    tuning = {"set": {"train.steps": [1]}}
    with pytest.raises(RunFailed, match="the first: no run of its sweep has finished"):
        compare(load_comparison(write(tmp_path, seeds=[0], tuning=tuning)), tmp_path / "swept")
    assert not (tmp_path / "swept/runs").exists()


def test_two_processes_do_not_work_on_the_same_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posterior.compare._check", lambda arms: None)
    found = compared(tmp_path)
    with _alone(found.path), pytest.raises(ConfigError, match="another process is at work"):
        resume(found.path)


def test_the_same_command_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[0])
    first = CompareDir.create(load_comparison(path), tmp_path / "out")
    first.chosen = {"sft": {"a": 1}}
    first.save()
    assert CompareDir.create(load_comparison(path), tmp_path / "out").chosen == first.chosen
    # how many run at once may change
    assert CompareDir.create(load_comparison(path, ["concurrent=2"]), tmp_path / "out").config.concurrent == 2
    assert CompareDir.open(tmp_path / "out").config.concurrent == 2
    for words in (["seeds=[0,1]"], ["train.steps=3"]):
        with pytest.raises(FileExistsError, match="planned differently"):
            CompareDir.create(load_comparison(path, words), tmp_path / "out")
    (tmp_path / "out/compare.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        CompareDir.open(tmp_path / "out")


def test_tables_escape_what_would_end_them() -> None:
    table = Table("a < b", ["x", "y"], [["<b>", "1 | 2"]])
    assert table.markdown().splitlines()[-1] == "| <b> | 1 \\| 2 |"
    assert "&lt;b&gt;" in table.html()
    assert "a &lt; b" in table.html()


def test_held_out_values_by_task_follow_the_checkpoint(tmp_path: Path) -> None:
    run = RunDir.create("r", tmp_path / "r")
    for version in (0, 4, 8):
        run.write_held_out(version, "test", {"tasks": ["a"], "pass@1": [version / 8]})
        run.write_held_out(version, "test_more", {"tasks": ["a"], "pass@1": [float("nan")]})
    assert list(run.read_held_out("test")) == [0, 4, 8]
    assert run.read_held_out("test_more")[4] == {"tasks": ["a"], "pass@1": [None]}
    run.truncate_held_out(4)
    assert list(run.read_held_out("test")) == [0, 4]
    run.truncate_held_out(-1)
    assert run.read_held_out("test_more") == {}


def test_by_task_means_are_the_figures() -> None:
    """A task none of whose answers could be graded is null, and takes no part in the mean."""

    def group(name: str, grades: Sequence[float | None]) -> Group:
        traces = []
        for grade in grades:
            trace = Trace.from_target([1], [2], name)
            trace.outcome, trace.passed = "infra" if grade is None else "ok", grade == 1.0
            trace.grade = grade or 0.0
            traces.append(trace)
        return Group(Task(name, "x"), traces)

    each = by_task([group("a", [1.0, 0.5]), group("b", [None]), group("c", [None, 1.0])])
    assert each == {"tasks": ["a", "b", "c"], "pass@1": [0.5, None, 1.0], "mean_grade": [0.75, None, 1.0]}


# A whole comparison

FLOPS = 4e8
WALKER: dict[str, Any] = {
    "model": {
        "path": "scratch",
        "scratch": {"family": "llama", "layers": 1, "width": 32, "heads": 1},
        "max_length": 32,
    },
    "env": {"name": "walk"},
    "algorithm": {"name": "jepo", "group_size": 4},
    "sampling": {"max_tokens": 6},
    "train": {"steps": 2000, "flops": FLOPS, "batch_groups": 4, "checkpoint_every": 5, "optimiser": {"lr": 3e-3}},
    "eval": {"every": 1000, "flops": FLOPS / 4, "tasks": 6, "samples": 2, "thoughts": 32},
    "log": {"traces_every": 0},
}


def charged(row: dict[str, Any]) -> float:
    return float(sum(row[f"flops/{part}"] for part in ("sampling", "scoring", "learning")))


@pytest.mark.slow
def test_a_comparison_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods with the same FLOPs, Ctrl-C in the second's run, and the same command again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arms = {"sft": {"set": {"algorithm": {"name": "answer_sft", "group_size": 1}}}, "jepo": {}}
    path, out = write(tmp_path, WALKER, arms=arms, seeds=[0], bootstrap=100), tmp_path / "out"
    second = out / "runs/jepo-seed0"

    process = start("compare", str(path), "--out", str(out), cwd=tmp_path, stderr=tmp_path / "first")
    wait_until(
        "the second run's first step",
        lambda: (second / "metrics.jsonl").exists() and any(row["kind"] == "train" for row in rows(second)),
        process,
        seconds=600,
    )
    process.send_signal(signal.SIGINT)
    first = result(process, 130)
    assert first["status"] == "interrupted"
    assert f"posterior resume {out}" in (tmp_path / "first").read_text()
    assert first["arms"]["sft"]["seeds"] == 1
    before = (out / "runs/sft-seed0/metrics.jsonl").stat().st_mtime_ns

    done = result(start("compare", str(path), "--out", str(out), cwd=tmp_path, stderr=tmp_path / "again"))
    assert (done["status"], done["bound"], done["tasks"]) == ("finished", "flops", 6)
    assert json.loads((out / "result.json").read_text()) == {k: v for k, v in done.items() if k != "ok"}
    assert (out / "runs/sft-seed0/metrics.jsonl").stat().st_mtime_ns == before
    assert {"pass@1", "logp_answer"} == set(done["metrics"])
    assert set(done["differences"]["logp_answer"]) == {"jepo"}
    assert done["arms"]["jepo"]["missing"] == {}
    assert "over held-out tasks only" in (out / "table.md").read_text()
    assert "jepo" in (out / "report.html").read_text()
    for name in ("sft", "jepo"):
        check_run(out / f"runs/{name}-seed0", done["means"], name)


def check_run(run: Path, means: dict[str, Any], arm: str) -> None:
    """It ended with the step that spent the FLOPs; its last version was evaluated by task, and saved."""
    train = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(len(train)))
    assert charged(train[-1]) >= FLOPS
    assert len(train) > 1
    assert charged(train[-2]) < FLOPS
    last = train[-1]["version"]
    assert (run / f"checkpoints/step_{last:06d}/meta.json").exists()
    quarters = [0, *(charged(row) // (FLOPS / 4) for row in train)]
    evaluated = {0, last, *(version for version in range(1, last) if quarters[version] > quarters[version - 1])}
    assert len(evaluated) > 2
    assert {path.name for path in (run / "held_out").iterdir()} == {f"{version:06d}_test.json" for version in evaluated}
    found = json.loads((run / "result.json").read_text())
    assert (found["status"], found["steps"]) == ("finished", last)
    for version, when, mine in ((0, "baseline", "before"), (last, "final", "after")):
        each = json.loads((run / f"held_out/{version:06d}_test.json").read_text())
        assert len(set(each["tasks"])) == 6
        for metric in ("pass@1", "mean_grade", "logp_answer"):
            assert np.mean(each[metric]) == pytest.approx(found[when]["test"][metric])
        assert means["logp_answer"][arm][mine]["mean"] == pytest.approx(np.mean(each["logp_answer"]))
