"""`ray job submit` against `ray start --head` on this machine: train, stop, resume, and what a job must not do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STEPS = 5
WORDS = [
    # one small group size and short answers; staleness 0, so that the curve can be compared
    *("train.staleness=0", f"train.steps={STEPS}", "train.batch_groups=2", "train.checkpoint_every=2"),
    *("algorithm.group_size=4", "sampling.max_tokens=64", "model.max_length=256"),
    *("eval.every=0", "resources.learner_cpus=0.5", "resources.sampler_cpus=0.5"),
]
CONFIG = "tune_configs/rlvr_coding.yaml"
GRACE = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
WITNESS = """

import os as _os, pathlib as _pathlib, uuid as _uuid
if _os.environ.get("WITNESS"):
    (_pathlib.Path(_os.environ["WITNESS"]) / _uuid.uuid4().hex).write_text(__name__ + " " + __file__)
"""
"""Added to modules of the submitted copy: tells from where a process imported them."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Head:
    """A running head node. address: of its jobs API. gcs: of Ray itself. checkout: what is submitted."""

    address: str
    gcs: str
    folder: Path
    checkout: Path
    witness: Path

    def job(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(BIN / "ray"), "job", *words],
            cwd=self.checkout,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done

    def submit(self, name: str, *entry: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        options = ["--address", self.address, "--submission-id", name, "--working-dir", "."]
        options += ["--runtime-env-json", GRACE, *([] if wait else ["--no-wait"])]
        return self.job("submit", *options, "--", *entry)

    @property
    def environ(self) -> dict[str, str]:
        return environ(self.folder) | {"WITNESS": str(self.witness)}


def environ(folder: Path) -> dict[str, str]:
    """Token authentication with a token of our own, the environment's `python`, nothing of another Ray."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    return kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
    }


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-head-", dir="/tmp"))  # short: Ray's sockets lie in it
    jobs, gcs = free_port(), free_port()
    witness = folder / "witness"
    witness.mkdir()
    checkout = folder / "checkout"
    skip = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".cache", ".hypothesis", "shared")
    shutil.copytree(ROOT, checkout, ignore=skip)
    for module in ("actors/env_worker.py", "actors/learner.py", "actors/collector.py", "actors/sampler.py"):
        with (checkout / module).open("a") as file:
            file.write(WITNESS)
    for heavy in ("runs/old/model.bin", ".venv/lib/heavy.bin", ".git/objects/pack.bin"):
        (checkout / heavy).parent.mkdir(parents=True)
        (checkout / heavy).write_bytes(b"x")
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--object-store-memory", str(256 * 2**20)]
        + ["--port", str(gcs), "--dashboard-port", str(jobs), "--dashboard-agent-listen-port", str(free_port())]
        + ["--ray-client-server-port", str(free_port()), "--temp-dir", str(folder / "ray")],
        env=environ(folder) | {"WITNESS": str(witness)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    head = Head(f"http://127.0.0.1:{jobs}", f"127.0.0.1:{gcs}", folder, checkout, witness)
    try:
        deadline = time.monotonic() + 60
        while head.job("list", "--address", head.address).returncode != 0:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()[-3000:]
            time.sleep(0.5)
        yield head
    finally:
        log.close()
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[Any]) -> None:
    """End the head and everything that descends from it; nobody else's Ray is touched."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for p in alive:
        try:
            p.kill()
        except psutil.NoSuchProcess:
            continue
    process.kill()
    process.wait()


def rows(run: Path) -> list[dict[str, Any]]:
    """Training rows without what a clock wrote."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time/", "seconds", "tokens/per_second")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines if line["kind"] == "train"]


def test_a_job_trains_stops_and_resumes_on_the_same_curve(head: Head, tmp_path: Path) -> None:
    train = ("python", "-m", "posterior", "train", CONFIG, *WORDS)
    lost = head.submit("relative", *train, "--out", "runs/here")
    assert lost.returncode != 0
    assert "a Ray job runs in a temporary copy" in lost.stdout
    assert "--out /absolute/path" in lost.stdout
    assert "Traceback" not in lost.stdout

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = head.submit("whole", *train, "--out", str(whole))
    assert done.returncode == 0, done.stdout[-4000:]
    assert [row["step"] for row in rows(whole)] == list(range(STEPS))
    assert any(row["grad_norm/policy"] > 0 for row in rows(whole))
    came_from_the_jobs_copy(head)

    assert head.submit("stopped", *train, "--out", str(stopped), wait=False).returncode == 0
    wait_for_first_step(stopped, head)
    assert head.job("stop", "--address", head.address, "stopped").returncode == 0
    assert "STOPPED" in head.job("status", "--address", head.address, "stopped").stderr
    half = json.loads((stopped / "result.json").read_text())
    assert half["status"] == "interrupted"
    assert 0 < half["steps"] < STEPS
    assert rows(stopped) == rows(whole)[: half["steps"]]

    done = head.submit("resumed", "python", "-m", "posterior", "resume", str(stopped))
    assert done.returncode == 0, done.stdout[-4000:]
    assert json.loads((stopped / "result.json").read_text())["status"] == "finished"
    assert rows(stopped) == rows(whole)


def wait_for_first_step(run: Path, head: Head) -> None:
    deadline = time.monotonic() + 100
    while not (run / "metrics.jsonl").exists() or not rows(run):
        assert time.monotonic() < deadline, head.job("logs", "--address", head.address, run.name).stdout[-4000:]
        time.sleep(0.05)


def came_from_the_jobs_copy(head: Head) -> None:
    """Every process imported Posterior from the uploaded copy, and the copy holds only what belongs to it."""
    seen = dict(path.read_text().split(" ", 1) for path in head.witness.iterdir())
    assert set(seen) == {"actors.env_worker", "actors.learner", "actors.collector", "actors.sampler"}
    copies = {Path(place).parents[1] for place in seen.values()}
    assert len(copies) == 1, copies
    (copy,) = copies
    assert head.folder / "ray" in copy.parents
    assert (copy / CONFIG).is_file()
    assert not [name for name in (".git", ".venv", "runs") if (copy / name).exists()]
