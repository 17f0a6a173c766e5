"""Crash drills: real runs whose processes are killed or stopped, or whose disk is full. Each drill ends with the curve of the
undisturbed run (`whole`), so a lost, doubled or differently seeded task would show."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from runs import STEPS, events, find, processes, result, rows, start, wait_for_step, wait_until

from actors.diary import Diary
from posterior.rundir import RunDir
from posterior.watchdog import Watchdog

GROUPS = 3


def curve(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "restarts"} for row in rows(run)]


def lineage(run: Path) -> list[int]:
    """The groups that the final weights were trained on, in order."""
    return [index for row in rows(run) if row["kind"] == "train" for index in row["groups"]]


def told(run: Path, *words: str, since: float = 0.0) -> list[dict[str, Any]]:
    """The events that hold all words. since: seconds since the epoch."""
    return [
        event
        for event in events(run)
        if datetime.fromisoformat(event["time"]).timestamp() >= since and all(word in event["text"] for word in words)
    ]


def drill(run: Path, process: subprocess.Popen[str], victims: list[psutil.Process], death: str, after: str) -> None:
    """Kill; the log must name the death and the cause within 30 s, and what came after it."""
    killed = time.time()
    for victim in victims:
        with suppress(psutil.NoSuchProcess):  # it fell with the one before
            victim.send_signal(signal.SIGKILL)
    wait_until(death, lambda: bool(told(run, death, "SIGKILL", since=killed)), process, 60)
    noticed = datetime.fromisoformat(told(run, death, "SIGKILL", since=killed)[0]["time"]).timestamp()
    assert noticed - killed < 30
    print(f"{death}: noticed after {noticed - killed:.1f} s")
    wait_until(after, lambda: bool(told(run, after, since=killed)), process, 120)


def sandboxes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The warm interpreters in the sandboxes of the environment worker."""
    found = [p for p in processes(process, "ray::EnvWorker")[0].children(recursive=True) if p.is_running()]
    assert found
    return found


@pytest.mark.slow
def test_every_kind_of_process_is_killed_and_nothing_but_time_is_lost(whole: Path) -> None:
    run, log = whole / "killed", whole / "killed.log"
    process = start("train", str(whole / "config.yaml"), "--out", str(run), cwd=whole, stderr=log)
    wait_for_step(run, 0, process)
    # before the first checkpoint: everything begins again
    drill(run, process, processes(process, "ray::Collector"), "the collector died", "goes on from the beginning")
    wait_until("a new start", lambda: len(rows(run)) < 2, process, 60)
    wait_for_step(run, 2, process)
    drill(run, process, processes(process, "ray::TokenSampler"), "sampler 0", "sampler 0 is back")
    drill(run, process, processes(process, "ray::EnvWorker"), "environment worker 0", "environment worker 0 is back")
    at = max(row["step"] for row in rows(run))
    wait_for_step(run, at + 1, process)
    drill(run, process, sandboxes(process), "sandbox slot", "sandbox slot")
    drill(run, process, processes(process, "ray::RayTrainWorker"), "the learner (rank 0) died", "goes on from version")
    assert result(process)["status"] == "finished"
    assert curve(run) == curve(whole / "run")
    assert lineage(run) == list(range(STEPS * GROUPS))
    for event in events(run):
        assert event["text"] in log.read_text(), "an event that the user did not see"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes all space but `leave` bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return ballast


@contextmanager
def standstill(
    run: Path, process: subprocess.Popen[str], begin: Callable[[], Any], end: Callable[[], Any], *names: str
) -> Iterator[None]:
    """Something hangs until the watchdog has named it."""
    began = time.time()
    begin()
    try:
        wait_until(f"a line on {names}", lambda: bool(told(run, "nothing has moved", *names, since=began)), process, 60)
        yield
    finally:
        end()


@pytest.mark.slow
def test_a_full_disk_then_standstills_then_a_death_too_many_and_the_curve_is_the_same(
    whole: Path, small_disk: Path, tmp_path: Path
) -> None:
    run, log = small_disk / "run", tmp_path / "log"
    words = ["log.watchdog_seconds=3", "resources.max_restarts=0"]
    process = start("train", str(whole / "config.yaml"), *words, "--out", str(run), cwd=whole, stderr=log)
    first = run / "checkpoints/step_000002"
    wait_until("the first checkpoint", first.exists, process)
    ballast = fill(small_disk, leave=sum(f.stat().st_size for f in first.rglob("*")) // 2)
    failed = result(process, code=1)
    assert "disk full while saving the checkpoint of version" in failed["error"]
    assert f"free space and continue with `posterior resume {run}`" in failed["error"]
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert all((run / "checkpoints" / name / "meta.json").exists() for name in saved)
    assert "step_000002" in saved
    assert rows(run)[:3] == rows(whole / "run")[:3]
    assert told(run, "nothing has moved for", "the learner is starting")

    ballast.unlink()
    done = max(row["step"] for row in rows(run))
    process = start("resume", str(run), cwd=whole, stderr=log)
    wait_for_step(run, done + 1, process)
    sampler = processes(process, "ray::TokenSampler")[0]
    with standstill(run, process, sampler.suspend, sampler.resume, "sampler 0", "has not answered for"):
        pass
    wait_until("moving", lambda: "moving again" in events(run)[-1]["text"], process, 30)
    hold = whole / "hold"
    with standstill(run, process, hold.touch, hold.unlink, "environment worker 0 works on"):
        sampler.kill()  # which nobody calls just now
        wait_until("a death", lambda: bool(told(run, "sampler 0 (process", "died with 0 requests")), process, 30)
    failed = result(process, code=1)
    assert "sampler 0 died and may not be restarted again (resources.max_restarts is 0): its process" in failed["error"]

    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["log"]["watchdog_stop_seconds"] = 45  # longer than any stage of the start on a busy machine
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    process = start("resume", str(run), cwd=whole, stderr=log)
    wait_until("a collector", lambda: bool(find(process, "ray::Collector")), process)
    collector = processes(process, "ray::Collector")[0]
    collector.suspend()
    failed = result(process, code=1)
    assert "nothing has moved for" in failed["error"]
    assert "the collector" in failed["error"]
    assert "log.watchdog_stop_seconds" in failed["error"]
    assert not collector.is_running()

    settings["log"]["watchdog_stop_seconds"] = 0
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    process = start("resume", str(run), cwd=whole, stderr=log)

    def stage(who: str) -> str:
        said = Diary(run).statuses().get(who, {})
        alive = said.get("beats") and said["pid"] in [p.pid for p in find(process, "ray::")]
        return said["stage"] if alive else ""

    for name, who, when in (("ray::RayTrainWorker", "learner", "loading"), ("ray::Collector", "collector", "working")):
        wait_until(f"the {who} {when}", lambda who=who, when=when: when in stage(who), process)  # type: ignore[misc]
        victim = processes(process, name)[0]
        with standstill(
            run, process, victim.suspend, victim.resume, f"the {who} (process {victim.pid}) has given no sign"
        ):
            pass
    finished = result(process)
    assert finished["status"] == "finished"
    assert rows(run) == rows(whole / "run")
    assert lineage(run) == list(range(STEPS * GROUPS))


def test_a_full_disk_never_leaves_half_a_line(small_disk: Path) -> None:
    run = RunDir.create("x", small_disk / "run")
    run.append_metrics({"step": 0, "pad": "x" * 1000})
    Diary(run.path).event("a", "first")
    ballast = fill(small_disk)

    def append(step: int) -> None:
        run.append_metrics({"step": step, "pad": "x" * 1000})
        append(step + 1)

    with pytest.raises(OSError, match="No space left"):
        append(1)
    whole_rows = run.read_metrics()
    assert run.metrics.read_bytes().endswith(b"\n")
    assert not Diary(run.path).event("a", "x" * 5000)
    ballast.unlink()
    run.append_metrics({"step": "after"})
    assert [row["step"] for row in run.read_metrics()] == [*(row["step"] for row in whole_rows), "after"]
    assert Diary(run.path).event("a", "second")
    assert [event["text"] for event in events(run.path)] == ["first", "second"]


def test_the_watchdog_speaks_at_growing_intervals_and_stops_when_told_to(tmp_path: Path) -> None:
    now = 0.0
    diary = Diary(tmp_path)
    dog = Watchdog(diary, 60, 500, clock=lambda: now)
    learner = diary.status("learner")

    def until(end: float) -> list[str]:
        nonlocal now
        before = len(events(tmp_path))
        while now < end:
            now += 1
            learner.beat()
            dog.look()
        return [event["text"] for event in events(tmp_path)[before:]]

    assert until(59) == []
    learner.stage("forward and backward of step 3")
    said = until(400)
    assert [line.split(":")[0] for line in said] == [f"nothing has moved for {n} s" for n in (60, 120, 240)]
    assert all("forward and backward of step 3; the collector is starting" in line for line in said)
    learner.stage("publishing version 4 to the samplers")
    assert [line.split(":")[0] for line in until(461)] == ["moving again after 341 s", "nothing has moved for 60 s"]
    assert not dog.stop
    until(950)
    assert "nothing has moved for 500 s (log.watchdog_stop_seconds): publishing version 4" in dog.stop
