"""Bad input through the command line: one sentence that names place and mend, a non-zero exit, and nothing lost.

Broken configurations are in test_config.py, environment classes in test_registry.py, rows of task files in
test_coding_datasets.py, usage errors in test_cli.py; here is what only a command meets.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from actors.clients import cause
from actors.env_worker import EnvFault, EnvWorker
from actors.serving import EngineDied
from envs.base import Task
from posterior import cli
from posterior.config import RunConfig
from posterior.config_load import load
from posterior.launch import make_plan

ROOT = Path(__file__).resolve().parents[1]
Fails = Callable[..., str]

ENVS = '''
import math, os
from pathlib import Path
from envs.base import Env, Grade, Observation, SingleTurnEnv, Step, Task

class Good(SingleTurnEnv):
    def tasks(self, split): return [Task(id=f"{split}{i}", prompt=f"{split} {i}") for i in range(20)]
    def grade(self, task, text): return Grade(len(text) / 100)
class NotIterable(Good):
    def tasks(self, split): return 3
class NotTasks(Good):
    def tasks(self, split): return ["a", "b"]
class NoTasks(Good):
    def tasks(self, split): return []
class BadPrompt(Good):
    def tasks(self, split): return [Task(id="a", prompt=[{"content": "no role"}])]
class TasksRaise(Good):
    def tasks(self, split): return [1 / 0]
class LateRaise(Good):
    def tasks(self, split):
        raise KeyError("late")
        yield
class NoSplits(Good):
    def splits(self): return []
class OneWord(Good):
    def splits(self): return "train"
class NotReady(Good):
    def ready(self): raise RuntimeError("the grader's program `judge` is missing; install it")
class Text(Good):
    def grade(self, task, text): return "good"
class NaN(Good):
    def grade(self, task, text): return Grade(math.nan)
class Turns(Env):
    max_turns = 2
    def tasks(self, split): return Good().tasks(split)
    async def reset(self, task, seed): return Observation()
    async def step(self, action): return Step("go on", 0.0, False)
class NoReset(Turns):
    async def reset(self, task, seed): return None
class NoStep(Turns):
    async def step(self, action): return ("go on", 0.0)
class Infinite(Turns):
    async def step(self, action): return Step("", math.inf, True)
class BreaksLater(Good):
    """Good for three batches of the tests' run, until somebody mends it."""
    def __init__(self, folder): self.folder = Path(folder)
    def grade(self, task, text):
        if (self.folder / "mended").exists():
            return super().grade(task, text)
        (self.folder / "grades").open("a").write("x")
        return super().grade(task, text) if (self.folder / "grades").stat().st_size <= 12 else "good"
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with environments and a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "bad_envs", raising=False)
    for name in ("RAY_ADDRESS", "POSTERIOR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bad_envs.py").write_text(ENVS)
    return tmp_path


@pytest.fixture
def fails(here: Path, capfd: pytest.CaptureFixture[str]) -> Fails:
    """fails(words...) -> the one sentence of a command that must fail and change no file."""

    def run(*words: str, within: float = 30.0) -> str:
        before, began = snapshot(here), time.monotonic()
        code = cli.main(words)
        assert time.monotonic() - began < within
        assert code == 1
        err = capfd.readouterr().err
        sentence = err.strip().splitlines()[-1]
        assert sentence.startswith("posterior: error: ")
        assert "Traceback" not in err
        assert "POSTERIOR_DEBUG" not in sentence, "not a sentence of ours"
        assert len(sentence) < 500
        assert snapshot(here) == before
        return sentence.removeprefix("posterior: error: ")

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return {str(p): p.read_bytes() for p in files}


def train(fails: Fails, here: Path, *words: str, **more: Any) -> str:
    (here / "c.yaml").write_text("eval: {every: 0}\n")
    return fails("train", "c.yaml", *words, "--out", str(here / "out"), **more)


# Models


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("no tokenizer", "the tokenizer of {model} knows no text; save it with tokenizer.save_pretrained()"),
        ("tokenizer.json", "no tokenizer can be loaded from {model}: "),
        ("config.json", "config.json of the model {model} cannot be used: It looks like the config file"),
        ("config [] ", "config.json of the model {model} cannot be used: "),
        ("config {}", "Should have a `model_type` key"),
        ("generation_config.json", "{model}/generation_config.json is not a JSON object"),
        ("weights", "the weights {model}/model.safetensors are damaged ("),
        ("no weights", "model folder {model} has no weights (*.safetensors); save the model with save_pretrained()"),
        ("no folder", "there is no model folder {model}; give a folder in Hugging Face format"),
    ],
)
def test_models(fails: Fails, here: Path, tiny_model: Callable[..., Path], harm: str, message: str) -> None:
    model = here / "model"
    shutil.copytree(tiny_model(), model)
    weights = model / "model.safetensors"
    match harm:
        case "no tokenizer":
            for file in [*model.glob("tokenizer*"), *model.glob("special*")]:
                file.unlink()
        case "config [] " | "config {}":
            (model / "config.json").write_text(harm.split()[1])
        case "weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no weights":
            weights.unlink()
        case "no folder":
            shutil.rmtree(model)
        case file:
            (model / file).write_text("{ no")
    assert message.format(model=model) in train(fails, here, f"model.path={model}")


def test_heads_that_the_sampler_cannot_compute(fails: Fails, here: Path, tiny_model: Callable[..., Path]) -> None:
    model = here / "model"
    shutil.copytree(tiny_model(), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "head_dim": 16}))
    said = train(fails, here, f"model.path={model}")
    assert "have 16 dimensions, and vLLM on a CPU takes 32, 64, " in said
    assert "resources.sampler_gpus" in said


def test_longer_than_the_model_reads(fails: Fails, here: Path, tiny_model: Callable[..., Path]) -> None:
    """A length that is asked for must fit; the default takes what there is."""
    model = here / "model"
    shutil.copytree(tiny_model(), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    said = train(fails, here, f"model.path={model}", "sampling.max_tokens=64", "model.max_length=97")
    assert f"model.max_length is 97, but the model {model} has 96 positions; set model.max_length to at most 96" in said
    assert make_plan(load(None, [f"model.path={model}"]).config).max_length == 96


# What a plan cannot hold


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm.name=ppo"], "the role critic has a head of its own beside the language model; set resources.sharding: none"),
        (["algorithm.name=ppo", "algorithm.critic=shared"], "the role policy has a head of its own"),
        (["algorithm.name=trice"], "the role policy scores batches as well as learns from them; set resources.sharding: none"),
        (["eval.every=5", "eval.thoughts=8"], "eval.thoughts has the policy read thoughts"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_sharded(fails: Fails, here: Path, words: list[str], message: str) -> None:
    assert message in train(fails, here, "resources.sharding=fsdp2", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["monitor.kl_budget=1.0"], "monitor.kl_budget ends a run by what evaluations measure, and eval.every: 0 makes none; set"),
        (["monitor.stop=true", "monitor.rater=rater"], "monitor.stop ends a run by what evaluations measure"),
        (["monitor.stop=true", "eval.every=5"], "monitor.stop needs monitor.rater"),
        (["reward_model.fresh=8"], "reward_model.fresh needs monitor.rater"),
    ],
)  # fmt: skip
def test_a_monitor_that_could_never_speak(fails: Fails, here: Path, words: list[str], message: str) -> None:
    assert message in train(fails, here, "reward.model=1.0", "reward_model.path=nowhere", *words)


# Task files and environments


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"id": "a", "prompt": "x", "entry_point": "f", "tests": "assert f(1) == 1"}\n{"id": \n', "tasks.jsonl, line 2: not valid JSON"),
        ("", "tasks.jsonl: holds no rows"),
        ('\n{"id": "a", "prompt": "x"}\n', "tasks.jsonl, line 2: columns ['id', 'prompt'] fit no known layout"),
        (None, "tasks.jsonl: no such file"),
    ],
)  # fmt: skip
def test_task_files(fails: Fails, here: Path, rows: str | None, message: str) -> None:
    if rows is not None:
        (here / "tasks.jsonl").write_text(rows)
    assert message in train(fails, here, "env.args.tasks=tasks.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NotIterable", "tasks('train') must return a list or another iterable of Task, not int (3)"),
        ("NotTasks", "tasks('train') must hold envs.base.Task, not str ('a')"),
        ("NoTasks", "the split 'train' has no tasks"),
        ("BadPrompt", "the task 'a' of tasks('train') needs an id that is text, and a prompt that is text or messages"),
        ("TasksRaise", "raised ZeroDivisionError in tasks('train'): division by zero"),
        ("LateRaise", "raised KeyError in tasks('train'): 'late'"),
        ("NoSplits", 'splits() must return names such as ("train", "test"), not []'),
        ("OneWord", 'splits() must return names such as ("train", "test"), not \'train\''),
        ("NotReady", "ready(): the grader's program `judge` is missing; install it"),
    ],
)
def test_environments_are_asked_before_anything_starts(fails: Fails, here: Path, name: str, message: str) -> None:
    sentence = train(fails, here, f"env.name=bad_envs:{name}")
    assert sentence.startswith(f"environment bad_envs:{name}")
    assert message in sentence


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Text", "grade() must return envs.base.Grade, not str ('good')"),
        ("NaN", "grade() must return a finite value, not nan"),
        ("NoReset", "reset() must return envs.base.Observation, not NoneType (None)"),
        ("NoStep", "step() must return envs.base.Step, not tuple (('go on', 0.0))"),
        ("Infinite", "step() must return a text and a finite reward, not '' and inf"),
    ],
)
def test_what_an_environment_returns_is_checked_where_it_returns_it(here: Path, name: str, message: str) -> None:
    import asyncio

    async def play() -> None:
        worker = EnvWorker(f"bad_envs:{name}", {}, [str(here)])
        if (await worker.info()).single_turn:
            await worker.grade(Task("a", "a"), ["x"], 0)
        else:
            await worker.open("e", Task("a", "a"), 0)
            await worker.step("e", "x")

    with pytest.raises(EnvFault) as caught:
        asyncio.run(play())
    assert str(caught.value) == f"environment bad_envs:{name}: {message}"


def test_a_method_that_does_not_import(fails: Fails, here: Path) -> None:
    (here / "bad_method.py").write_text("1 / 0")
    sentence = train(fails, here, "algorithm.name=bad_method:Mine")
    assert "importing bad_method failed: ZeroDivisionError: division by zero" in sentence


# Run directories


def test_run_directories(fails: Fails, here: Path) -> None:
    (here / "file").write_text("mine")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    (here / "c.yaml").write_text("")
    assert f"{here}/file is a file: choose another --out" in fails("train", "c.yaml", "--out", "file")
    assert f"{here}/full already holds something: choose another --out" in fails("train", "c.yaml", "--out", "full")
    below = fails("train", "c.yaml", "--out", "file/run")
    assert below == f"the run directory {here}/file/run cannot be made (Not a directory): choose another --out."
    denied = fails("train", "c.yaml", "--out", "/proc/run")  # not even root may write there
    assert denied.startswith("the run directory /proc/run cannot be made (")
    for command in ("resume", "report"):
        assert f"{here}/full is not a run directory" in fails(command, "full")
    (here / "full" / "config.yaml").write_text("train: {steps: [}\n")
    assert f"{here}/full/config.yaml:1: this is not YAML" in fails("resume", "full")


# Ray


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a server that is not Ray."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_addresses_where_no_ray_answers(
    fails: Fails, here: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, but nothing listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        address = f"127.0.0.1:{port}"
        sentence = train(fails, here, f"resources.address={address}")
        assert sentence.startswith(
            f"no Ray answers at {address} (resources.address): Connection refused; start one there"
        )
        assert f"`ray start --head --port={port}`" in sentence
        assert not (here / "out").exists(), "a run that never started leaves nothing behind"
        monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
        assert train(fails, here).startswith(f"no Ray answers at ray://{address} (RAY_ADDRESS): Connection refused")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{stranger}")
    assert train(fails, here).startswith(f"what listens at 127.0.0.1:{stranger} (RAY_ADDRESS) is not Ray; start one")
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{stranger}")
    assert "which is no Ray address: give host:port as `ray start --head` prints it" in train(fails, here)


def test_memory_and_processors_that_ray_does_not_get(fails: Fails, here: Path) -> None:
    for megabytes in (10, 10**7):
        sentence = train(fails, here, f"resources.object_store_mb={megabytes}")
        assert sentence.startswith(
            f"resources.object_store_mb is {megabytes}, but Ray needs at least 75 and this machine has "
        )
    sentence = train(fails, here, "resources.samplers=200")
    assert sentence.startswith("the run needs 201 CPUs but Ray has ")
    assert "lower resources.samplers, resources.learners or their cpus" in sentence
    assert not (here / "out").exists()


# Folders that hide our packages


@pytest.mark.parametrize("package", ["envs", "models", "actors", "algorithms"])
@pytest.mark.parametrize("entry", [["-m", "posterior", "envs", "list"], ["-m", "benchmarks.sandbox", "--quick"]])
def test_a_users_folder_that_hides_a_package(here: Path, package: str, entry: list[str]) -> None:
    """In the current folder, where `python -m` looks first."""
    (here / package).mkdir()
    (here / package / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, *entry],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert f"error: {here / package} hides Posterior's own package {package}; rename it" in done.stderr


# A run that meets bad input on its way


@pytest.mark.slow
def test_a_run_that_an_environment_breaks_stays_whole(
    fails: Fails, here: Path, tiny_model: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong grade in the fourth batch, then another model, then damaged checkpoints; mended, the run goes on."""
    run, model = here / "run", tiny_model()
    config = {
        "model": {"path": str(model), "max_length": 128},
        "env": {"name": "bad_envs:BreaksLater", "args": {"folder": str(here)}},
        "sampling": {"max_tokens": 8},
        "train": {"steps": 5, "batch_groups": 2, "checkpoint_every": 1},
        "algorithm": {"name": "rlvr", "group_size": 2},
        "eval": {"every": 0},
    }
    (here / "c.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", "c.yaml", "--out", str(run)]) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "environment bad_envs:BreaksLater: grade() must return envs.base.Grade, not str ('good')" in error
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert steps(run) == [0, 1, 2]
    assert cli.main(["report", str(run)]) == 0

    written = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(written.replace(str(model), str(tiny_model(width=32))))
    sentence = fails("resume", str(run))
    assert (
        f"checkpoint {run}/checkpoints/step_000003 is of another model: it was model_type qwen3, hidden_size 64"
        in sentence
    )
    (run / "config.yaml").write_text(written)

    older, newer = (run / "checkpoints" / name for name in ("step_000002", "step_000003"))
    weights = newer / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (older / "trainer.pt").rename(here / "aside")
    sentence = fails("resume", str(run))
    assert sentence.startswith(f"no checkpoint in {run}/checkpoints is whole ({weights} has 1000 bytes instead of ")

    (here / "aside").rename(older / "trainer.pt")
    (here / "mended").touch()
    capfd.readouterr()
    assert cli.main(["resume", str(run)]) == 0
    assert f"passing over a damaged checkpoint: {weights} has 1000 bytes" in capfd.readouterr().err
    assert steps(run) == [0, 1, 2, 3, 4]


def steps(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


def test_why_an_engine_died_is_no_link() -> None:
    """pydantic ends its errors, vLLM's among them, with an address."""
    with pytest.raises(ValidationError) as caught:
        RunConfig(seed="three")
    assert "https" in str(caught.value).splitlines()[-1]
    assert cause(EngineDied(str(caught.value))).startswith("Input should be a valid integer")
