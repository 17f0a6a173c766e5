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
from urllib.request import Request, urlopen

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STEPS = 8
TOKEN = "0123456789abcdef" * 4
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
    """A running head node. address: of its jobs API. checkout: what is submitted."""

    address: str
    folder: Path
    checkout: Path
    witness: Path

    def submit(self, name: str, *entry: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit` as a user types it."""
        options = ["--address", self.address, "--submission-id", name, "--working-dir", "."]
        options += ["--runtime-env-json", GRACE, *([] if wait else ["--no-wait"])]
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", *options, "--", *entry],
            cwd=self.checkout,
            env=environ(self.folder),
            capture_output=True,
            text=True,
            timeout=200,
        )

    def ask(self, path: str, method: str = "GET") -> Any:
        """One request to the jobs API, as `ray job stop`, `status` and `logs` send it (each takes seconds to start)."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with urlopen(Request(f"{self.address}/api/{path}", headers=headers, method=method), timeout=20) as reply:
            return json.load(reply)

    def up(self) -> bool:
        try:
            return bool(self.ask("version"))
        except OSError:
            return False

    def wait(self, name: str, status: str) -> str:
        """Wait for a job's status; returns its log."""
        deadline = time.monotonic() + 100
        while self.ask(f"jobs/{name}")["status"] != status:
            assert time.monotonic() < deadline, self.ask(f"jobs/{name}/logs")["logs"][-4000:]
            time.sleep(0.2)
        return str(self.ask(f"jobs/{name}/logs")["logs"])


def environ(folder: Path) -> dict[str, str]:
    """Token authentication with a token of our own, the environment's `python`, nothing of another Ray."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    return kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
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
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", str(folder / "ray")),
            *("--port", str(gcs), "--dashboard-port", str(jobs), "--dashboard-agent-listen-port", str(free_port())),
            *("--ray-client-server-port", str(free_port()), "--object-store-memory", str(256 * 2**20)),
        ],
        env=environ(folder) | {"WITNESS": str(witness)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    head = Head(f"http://127.0.0.1:{jobs}", folder, checkout, witness)
    try:
        deadline = time.monotonic() + 60
        while not head.up():
            assert process.poll() is None, (folder / "head.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "head.log").read_text()[-3000:]
            time.sleep(0.2)
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
    _, alive = psutil.wait_procs(family, timeout=3)
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


TRAIN = ("python", "-m", "posterior", "train", CONFIG, *WORDS)


@pytest.fixture(scope="module")
def resumed(head: Head) -> Path:
    """The run directory of a job that was stopped in the middle and of the job that resumed it."""
    run = head.folder / "run"
    started = head.submit("stopped", *TRAIN, "--out", str(run), wait=False)
    assert started.returncode == 0, started.stdout
    head.submit("relative", *TRAIN, "--out", "runs/here", wait=False)
    wait_for_first_step(run, head)
    assert head.ask("jobs/stopped/stop", "POST")["stopped"] is True
    assert "interrupted; continue with `posterior resume" in head.wait("stopped", "STOPPED")
    half = json.loads((run / "result.json").read_text())
    assert half["status"] == "interrupted"
    assert 0 < half["steps"] < STEPS
    before = rows(run)
    assert [row["step"] for row in before] == list(range(half["steps"]))

    done = head.submit("resumed", "python", "-m", "posterior", "resume", str(run))
    assert done.returncode == 0, done.stdout[-4000:]
    assert rows(run)[: half["steps"]] == before
    return run


@pytest.mark.slow
def test_a_job_trains_stops_and_resumes(head: Head, resumed: Path) -> None:
    assert json.loads((resumed / "result.json").read_text())["status"] == "finished"
    assert [row["step"] for row in rows(resumed)] == list(range(STEPS))
    assert any(row["grad_norm/policy"] > 0 for row in rows(resumed))
    came_from_the_jobs_copy(head)


@pytest.mark.slow
def test_a_run_directory_that_would_be_lost_is_refused(head: Head, resumed: Path) -> None:
    log = head.wait("relative", "FAILED")
    assert "posterior: error: a Ray job runs in a temporary copy" in log
    assert "where runs/here would be lost: name a folder that stays, for example --out /absolute/path" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_the_resumed_curve_is_that_of_an_undisturbed_job(head: Head, resumed: Path) -> None:
    whole = head.folder / "whole"
    done = head.submit("whole", *TRAIN, "--out", str(whole))
    assert done.returncode == 0, done.stdout[-4000:]
    assert rows(resumed) == rows(whole)


def wait_for_first_step(run: Path, head: Head) -> None:
    deadline = time.monotonic() + 100
    while not (run / "metrics.jsonl").exists() or not rows(run):
        assert time.monotonic() < deadline, head.ask("jobs/stopped/logs")["logs"][-4000:]
        time.sleep(0.05)


def came_from_the_jobs_copy(head: Head) -> None:
    """Every process imported Posterior from the uploaded copy, and the copy holds only what belongs to it."""
    seen = dict(path.read_text().split(" ", 1) for path in head.witness.iterdir())
    assert set(seen) == {"actors.env_worker", "actors.learner", "actors.collector", "actors.sampler"}
    for copy in {Path(place).parents[1] for place in seen.values()}:
        assert head.folder / "ray" in copy.parents
        assert (copy / CONFIG).is_file()
        assert not [name for name in (".git", ".venv", "runs") if (copy / name).exists()]
