"""`posterior compare`: several methods on the same tasks, seeds and compute; every run is a whole run in a folder of its own.

    OUT/compare.json     the comparison as planned, and what the sweep chose for each arm
    OUT/arms/ARM.yaml    each arm's configuration, resolved
    OUT/tuning/...       the runs of the sweep            OUT/runs/ARM-seedS/  the runs that are compared
    OUT/result.json      all figures                      OUT/table.md         for people
    OUT/compare.csv      one line a run                   OUT/report.html      the tables, and all runs over each other

Runs are processes of their own, one after another or `concurrent` at once: a run that breaks takes nothing with it, and its sentence stands
in the table.
What happened is read from the run directories: `posterior resume OUT`, or the same command again, does what is left.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posterior import launch
from posterior.cluster import sigterm_as_ctrl_c
from posterior.compare_config import RECORD, CompareConfig, ComparePlan, compute
from posterior.compare_read import Facts, choose, figures, read
from posterior.compare_run import Job, prepare, run_all
from posterior.compare_table import lead, markdown, write_csv
from posterior.config_load import ConfigError, Resolved, dump, load
from posterior.report import write_report
from posterior.rundir import RunDir, make_folder, plain, write_atomic
from posterior.train import RunFailed, say

RUNS, TUNING, ARMS = "runs", "tuning", "arms"


class CompareDir:
    """The folder of a comparison. chosen: what the sweep chose for an arm, null where all of its runs failed."""

    def __init__(self, path: Path, plan: ComparePlan, chosen: dict[str, dict[str, Any] | None]) -> None:
        self.path, self.plan, self.chosen = path, plan, chosen
        self.config: CompareConfig = plan.config

    @classmethod
    def create(cls, plan: ComparePlan, out: Path | None) -> CompareDir:
        """The folder of a new comparison; of the same one started before, that one.

        Raises FileExistsError if `out` holds something else.
        """
        if out is not None and (out.expanduser() / RECORD).is_file():
            before = cls.open(out)
            if before._same(plan):
                before.config.concurrent = plan.config.concurrent
                before.save()
                return before
            raise FileExistsError(
                f"{before.path} holds a comparison that was planned differently: choose another --out, or continue that one with "
                f"`posterior resume {before.path}`."
            )
        found = cls(make_folder(plan.config.name, out), plan, {})
        (found.path / ARMS).mkdir()
        for name, resolved in plan.arms.items():
            write_atomic(found.arm(name), dump(resolved.config))
        found.save()
        return found

    @classmethod
    def open(cls, path: Path) -> CompareDir:
        """A comparison that was started before. Raises ConfigError if a file of it cannot be read."""
        path = path.expanduser().absolute()
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            config = CompareConfig.model_validate(record["config"])
            points, chosen = list(record["points"]), dict(record["chosen"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path / RECORD} cannot be read ({error}); start the comparison again in a new folder"
            ) from None
        arms = {name: load(path / ARMS / f"{name}.yaml") for name in config.arms}
        return cls(path, ComparePlan(config, arms, points), chosen)

    def save(self) -> None:
        record = {"config": self.config.model_dump(mode="json"), "points": self.plan.points, "chosen": self.chosen}
        write_atomic(self.path / RECORD, json.dumps(plain(record), indent=2) + "\n")

    def arm(self, name: str) -> Path:
        return self.path / ARMS / f"{name}.yaml"

    def run(self, job: Job) -> RunDir:
        return RunDir(self.path / (TUNING if job.tuning else RUNS) / job.name)

    def sweep(self, arm: str) -> list[Job]:
        return [Job(arm, self.config.tuning.seed, point, tuning=True) for point in self.plan.points]

    def compared(self) -> list[Job]:
        """Seed after seed, so that what is there after half the time is a comparison too."""
        return [Job(arm, seed, self.chosen.get(arm) or {}) for seed in self.config.seeds for arm in self.config.arms]

    def unable(self, arm: str) -> bool:
        """Whether the sweep left an arm without anything to train with."""
        return bool(self.plan.points) and arm in self.chosen and self.chosen[arm] is None

    def _same(self, plan: ComparePlan) -> bool:
        mine, new = (p.config.model_dump(mode="json", exclude={"concurrent"}) for p in (self.plan, plan))
        return plain(mine) == plain(new) and all(
            self.plan.arms[name].config == resolved.config for name, resolved in plan.arms.items()
        )


def compare(plan: ComparePlan, out: Path | None = None) -> dict[str, Any]:
    """Run a comparison; returns its outcome as `posterior compare --json` prints it, with the tables for people as "text"."""
    _check(plan.arms)
    return _run(CompareDir.create(plan, out))


def resume(path: Path) -> dict[str, Any]:
    """Do what is left of a comparison: finished runs stay as they are, stopped and failed ones go on from their checkpoints."""
    found = CompareDir.open(path)
    _check(found.plan.arms)
    return _run(found)


def _check(arms: Mapping[str, Resolved]) -> None:
    """What `posterior train` checks before it starts anything, for every arm; a warm start is trained here, once for all."""
    for name, resolved in arms.items():
        try:
            launch.make_plan(resolved.config)
        except ValueError as error:
            raise ConfigError(f"arm {name}: {error}") from error


def _run(found: CompareDir) -> dict[str, Any]:
    say(f"comparison directory: {found.path}")
    interrupted = False
    with _alone(found.path):
        try:
            with sigterm_as_ctrl_c():
                _train(found)
        except KeyboardInterrupt:
            interrupted = True
        result = _outcome(found, interrupted)
    if interrupted:
        say(f"interrupted; continue with `posterior resume {found.path}`")
    elif all(arm["seeds"] == 0 for arm in result["arms"].values()):
        first = next(why for arm in result["arms"].values() for why in arm["missing"].values())
        raise RunFailed(
            f"no run of the comparison {found.path} has finished (see compare.csv there); the first: {first}"
        )
    return result


def _train(found: CompareDir) -> None:
    """All runs that are not finished yet, the sweep's first."""
    tuning = found.config.tuning
    open_arms = [arm for arm in found.config.arms if found.plan.points and found.chosen.get(arm) is None]
    swept = len(found.plan.points) * len(found.config.arms)
    total = swept + len(found.compared())
    sweep = [job for arm in open_arms for job in found.sweep(arm)]
    _run_jobs(found, sweep, swept - len(sweep), total)
    for arm in open_arms:
        best = choose(_facts(found, found.sweep(arm), str(tuning.split)), str(tuning.metric))
        found.chosen[arm] = None if best is None else dict(best.job.values)
        found.save()
        say(f"{arm}: tuned to {found.chosen[arm]}" if best else f"{arm}: no run of its sweep has finished")
    _run_jobs(found, [job for job in found.compared() if not found.unable(job.arm)], swept, total)


def _run_jobs(found: CompareDir, jobs: Sequence[Job], before: int, total: int) -> None:
    """Train each that is not finished to its end; a failure is recorded in its folder, and the next one's turn comes.

    before, total: how many runs of the comparison were there before these, and are there in all.
    """
    of: dict[Path, Job] = {}

    def queue() -> Iterator[tuple[RunDir, int]]:
        for number, job in enumerate(jobs, start=before + 1):
            run = found.run(job)
            if run.read_result().get("status") == "finished":
                continue
            prepare(job, found.arm(job.arm), run.path)
            of[run.path] = job
            say(f"run {number} of {total}: {job.name}")
            yield run, found.plan.arms[job.arm].config.train.steps

    def done(run: RunDir, failure: str) -> None:
        job, config = of[run.path], found.config
        if failure:
            say(f"  {job.name} failed: {failure}")
            return
        metric = str(config.tuning.metric) if job.tuning else config.metrics[0]
        value = read(job, run, str(config.tuning.split if job.tuning else config.split)).mean(metric)
        say(f"  {job.name}: {metric} {'not measured' if value is None else round(value, 3)}")

    run_all(queue(), found.config.concurrent, done)


def _facts(found: CompareDir, jobs: list[Job], split: str) -> list[Facts]:
    return [read(job, found.run(job), split) for job in jobs]


def _outcome(found: CompareDir, interrupted: bool) -> dict[str, Any]:
    """Write result.json, table.md, compare.csv and report.html; returns result.json with the tables as "text"."""
    config = found.config
    jobs = found.compared()
    facts = _facts(found, jobs, str(config.split))
    runs = {arm: [own for own in facts if own.job.arm == arm] for arm in config.arms}
    swept = {arm: _facts(found, found.sweep(arm), str(config.tuning.split)) for arm in config.arms}
    result: dict[str, Any] = {
        "comparison": str(found.path),
        "name": config.name,
        "status": "interrupted" if interrupted else "finished",
        "split": config.split,
        "seeds": config.seeds,
        "reference": config.reference,
        "bound": compute({name: resolved.config for name, resolved in found.plan.arms.items()}),
        "strata_edges": config.strata,
        "bootstrap": config.bootstrap,
        **figures(config, runs),
        "arms": {arm: _arm(found, arm, runs[arm], swept[arm]) for arm in config.arms},
        "table": str(found.path / "table.md"),
        "csv": str(found.path / "compare.csv"),
        "report": None,
    }
    text = markdown(result)
    every = [*(own for arm in config.arms for own in swept[arm]), *facts]
    write_csv(found.path / "compare.csv", every, list(config.tuning.set or {}), result["metrics"])
    write_atomic(found.path / "table.md", text)
    shown = [found.run(job).path for job in sorted(jobs, key=lambda job: list(config.arms).index(job.arm))]
    shown = [path for path in shown if (path / "metrics.jsonl").exists()]
    if shown:
        result["report"] = str(write_report(shown, found.path / "report.html", config.name, lead(result)))
    write_atomic(found.path / "result.json", json.dumps(plain(result), allow_nan=False, indent=2) + "\n")
    return {**result, "text": text}


def _arm(found: CompareDir, arm: str, runs: list[Facts], swept: list[Facts]) -> dict[str, Any]:
    """What is known of an arm beside its figures. missing: seed to why its run is not in them."""
    told, tuning = found.config.arms[arm], found.config.tuning
    done = [facts for facts in runs if facts.status == "finished"]
    why = "no run of its sweep has finished" if found.unable(arm) else ""
    metric = str(tuning.metric)
    tried = [
        {"values": facts.job.values, metric: facts.mean(metric), "status": facts.status, "error": facts.error or None}
        for facts in swept
    ]
    mean = {
        key: sum(getattr(facts, key) for facts in done) / max(1, len(done)) for key in ("steps", "seconds", "trained")
    }
    flops = {part: sum(facts.flops[part] for facts in done) / len(done) for part in done[0].flops} if done else {}
    return {
        "label": told.label or arm,
        "grader": told.grader,
        "tuned": found.chosen.get(arm),
        "tried": tried,
        "seeds": len(done),
        "missing": {
            str(facts.job.seed): why or facts.error or facts.status for facts in runs if facts.status != "finished"
        },
        "compute": {**mean, "flops": flops} if done else None,
        "runs": [str(found.run(facts.job).path) for facts in runs],
    }


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the folder's lock; it is let go when this process ends, however it ends. Raises ConfigError if another has it."""
    with open(path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is at work on the comparison {path}; wait for it, or end it") from None
        yield
