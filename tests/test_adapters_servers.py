"""verifiers and OpenEnv, which live in Pythons of their own: refusals always, the real thing where such a Python is named.

POSTERIOR_VERIFIERS_PYTHON names one that has verifiers, POSTERIOR_OPENENV_PYTHON one that has openenv-core.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs import registry
from envs.adapters.openenv import OpenEnv
from envs.adapters.verifiers import VARIABLE, Verifiers, _Process
from envs.base import InfraError, Step
from envs.check import check_env

VERIFIERS = os.environ.get(VARIABLE)
OPENENV = os.environ.get("POSTERIOR_OPENENV_PYTHON")
needs_verifiers = pytest.mark.skipif(
    not VERIFIERS, reason=f"set {VARIABLE} to a Python that has verifiers (docs/environments.md)"
)

ADDITION = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str = ""

class Add(vf.Task[Data]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        if trace.last_reply == "raise":
            raise RuntimeError("a grader that fails")
        return float(trace.last_reply == self.data.answer)
    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))
    EXTRA

class Addition(vf.Taskset[Add, vf.TasksetConfig]):
    def load(self):
        print("loading")
        for i in range(40):
            yield Add(Data(prompt=f"{i} + 1 = ?", system_prompt="Add.", answer=str(i + 1)), self.config.task)

__all__ = ["Addition"]
"""
RUNTIME = """
    @vf.reward
    async def runs(self, trace, runtime) -> float:
        return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "addition_taskset.py").write_text(ADDITION.replace("EXTRA", ""))
    (tmp_path / "runtime_taskset.py").write_text(ADDITION.replace("    EXTRA\n", RUNTIME))
    return tmp_path


def test_without_verifiers_it_says_how_to_have_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no package verifiers; it needs an environment of its own: python3 -m venv"
    ):
        Verifiers("x", python=sys.executable).ready()
    with pytest.raises(ValueError, match=r"python does not start: No such file"):
        Verifiers("x", python=str(tmp_path / "python")).ready()


@needs_verifiers
@pytest.mark.slow
def test_a_taskset_of_verifiers_passes_the_whole_suite(folder: Path) -> None:
    args: dict[str, Any] = {"taskset": "addition_taskset", "path": str(folder)}
    report = asyncio.run(check_env("verifiers", args))
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert sum(report["tasks"].values()) == 40
    env = Verifiers(**args)
    task = next(iter(env.tasks("train")))
    assert [message["role"] for message in task.prompt] == ["system", "user"]  # type: ignore[index]

    async def grade(text: str) -> Any:
        return await env.grade(task, text)

    right = asyncio.run(grade(str(task.answer)))
    assert (right.value, right.solved) == (1.0, True)
    assert right.components == {"right": 1.0, "length": float(len(str(task.answer)))}
    failed = asyncio.run(grade("raise"))
    assert failed.value == 0.0
    assert "a grader that fails" in failed.note
    worker = next(iter(_Process._all.values())).process
    assert worker is not None
    worker.kill()
    worker.wait()
    assert asyncio.run(grade(str(task.answer))).value == 1.0  # a new worker, which lists the tasks again


@needs_verifiers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("taskset", "words"),
    [
        ("runtime_taskset", "its reward runs needs a runtime"),
        ("no_such_taskset", "the taskset does not load: .*no_such_taskset"),
        ("openenv", "the taskset does not load"),
    ],
)
def test_what_verifiers_cannot_give_is_one_sentence(folder: Path, taskset: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Verifiers(taskset, path=str(folder)).ready()


SERVER = """
import sys
import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_app

class Say(Action):
    text: str

class Seen(Observation):
    text: str = ""

class Rooms(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def reset(self, seed=None, episode_id=None, **_):
        self.secret, self.left = (seed or 0) % 7, 4
        return Seen(text=f"Room {seed}: say its number modulo 7.")
    def step(self, action, timeout_s=None, **_):
        if action.text == "crash":
            raise RuntimeError("the server's own fault")
        self.left -= 1
        right = action.text == str(self.secret)
        return Seen(text="right" if right else "wrong", reward=float(right), done=right or not self.left)
    @property
    def state(self):
        return State(step_count=4 - self.left)

uvicorn.run(create_app(Rooms, Say, Seen, max_concurrent_envs=4), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real OpenEnv server, made by create_app, in the other Python."""
    if not OPENENV:
        pytest.skip("set POSTERIOR_OPENENV_PYTHON to a Python that has openenv-core (docs/environments.md)")
    path = tmp_path_factory.mktemp("openenv") / "server.py"
    path.write_text(SERVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([OPENENV, str(path), str(port)])
    try:
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"{url}/health").close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_an_openenv_server_passes_the_whole_suite(server: str) -> None:
    args: dict[str, Any] = {"url": server, "observation": "text", "max_turns": 5}
    report = asyncio.run(check_env("openenv", args, samples=20))
    assert [check for check in report["checks"] if not check["ok"]] == []
    env = OpenEnv(**args)
    env.ready()
    task = next(iter(env.tasks("test")))

    async def play(*actions: str) -> list[Step]:
        await env.reset(task, 0)
        return [await env.step(action) for action in actions]

    steps = asyncio.run(play("x", str(task.meta["seed"] % 7)))
    assert [(step.observation, step.terminated) for step in steps] == [("wrong", False), ("right", True)]
    assert steps[1].grade is not None
    assert steps[1].grade.solved
    assert asyncio.run(play(*"wxyz"))[-1].terminated
    with pytest.raises(InfraError, match="EXECUTION_ERROR: the server's own fault"):
        asyncio.run(play("crash"))
    with pytest.raises(ValueError, match="observes text, and no 'words'"):
        next(iter(OpenEnv(server, observation="words").tasks("train")))


def test_an_absent_server_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"no OpenEnv server answers at http://127\.0\.0\.1:9 .*start it, or give its url"
    ):
        registry.make("openenv", {"url": "http://127.0.0.1:9/"}).ready()
    with pytest.raises(ValueError, match="url must begin with http"):
        registry.make("openenv", {"url": "localhost:8000"})
    env = OpenEnv("http://127.0.0.1:9", action="text")
    env.ready()
    with pytest.raises(InfraError, match="no connection to http"):
        next(iter(env.tasks("train")))
