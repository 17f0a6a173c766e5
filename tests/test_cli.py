"""The command line: parsing, one-sentence errors, exit codes, --json, and start-up time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.registry import BUILTIN
from posterior import cli

ROOT = Path(__file__).resolve().parent.parent


def run(*words: str, cwd: Path = ROOT, module: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    program = [sys.executable, "-m", "posterior"] if module else [str(Path(sys.executable).parent / "posterior")]
    path = {"PYTHONPATH": str(ROOT)} if cwd != ROOT and module else {}
    return subprocess.run(
        [*program, *words], cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | path | environ
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence a failed command printed."""
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("posterior: error: ")
    return lines[0].removeprefix("posterior: error: ")


COMMANDS = ["demo", "train", "resume", "tune", "eval", "doctor", "report", "envs list", "envs check", "label", "chat"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.build_parser().parse_args([*command.split(), "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert f"  posterior {command}" in text.split("example", 1)[1]


def test_help_and_version_are_instant() -> None:
    best = float("inf")
    for _ in range(3):  # the machine may be busy: the least of three is the program's own time
        began = time.perf_counter()
        assert "doctor" in run("--help").stdout
        best = min(best, time.perf_counter() - began)
    assert best < 0.5
    assert run("--version").stdout.startswith("posterior ")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, posterior.cli as c; c.build_parser(); print([m for m in sys.modules if m in %r])"
    heavy = ("torch", "ray", "vllm", "numpy", "transformers", "pydantic", "yaml")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_may_stand_between_words() -> None:
    args = cli.build_parser().parse_args(["train", "c.yaml", "a.b=1", "--out", "d", "c=2", "--json"])
    assert (args.config, args.words, args.out, args.json) == (Path("c.yaml"), ["a.b=1", "c=2"], Path("d"), True)
    args = cli.build_parser().parse_args(["eval", "m", "--env", "coding", "tasks=f", "--samples", "2", "x=1"])
    assert (args.target, args.env, args.words, args.samples) == ("m", "coding", ["tasks=f", "x=1"], 2)
    args = cli.build_parser().parse_args(["doctor", "seed=1", "--json"])
    assert (args.config, args.words) == ("seed=1", [])
    args = cli.build_parser().parse_args(["envs", "check", "coding", "--unsafe-local", "seed=1"])
    assert (args.name, args.words, args.unsafe_local) == ("coding", ["seed=1"], True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "x"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: CONFIG.yaml"),
        (["eval", "m", "--samples", "0"], "'0' is not a whole number above 0"),
        (["eval", "m", "--temperature", "nan"], "'nan' is not a number of at least 0"),
        (["label", "r", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_usage_errors_are_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == cli.USAGE_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("posterior: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_bad_configuration_is_one_sentence_naming_the_line(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("train:\n  stepz: 3\n")
    done = run("train", str(config))
    assert error_of(done) == f"{config}:2: train.stepz is not a known key; did you mean train.steps?"
    assert done.returncode == 1
    done = run("train", str(config), "--json")
    assert json.loads(done.stdout) == {"ok": False, "error": error_of(done)}
    assert "Traceback" in run("train", str(config), POSTERIOR_DEBUG="1").stderr


def test_dry_run_prints_every_value_with_its_source(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("train:\n  steps: 3\n")
    done = run("train", str(config), "seed=4", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split(None, 1)[1].split("  ") for line in done.stdout.splitlines()}
    assert [part.strip() for part in lines["train.steps"] if part.strip()] == ["3", f"{config}:2"]
    assert [part.strip() for part in lines["seed"] if part.strip()] == ["4", "command line"]
    done = run("train", str(config), "--unsafe-local", "--dry-run", "--json")
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert result["config"]["env"]["args"] == {"unsafe_local": True}
    assert result["sources"]["train.steps"] == f"{config}:2"


def test_envs_list(tmp_path: Path) -> None:
    done = run("envs", "list", "--json", cwd=tmp_path, module=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["envs"]
    assert {row["name"] for row in rows} >= set(BUILTIN)
    usable = [row for row in rows if not row["unusable"]]
    assert {"coding", "key_door", "punchline", "walk"} <= {row["name"] for row in usable}
    assert all(row["splits"] and row["turns"] >= 1 for row in usable)


def test_missing_runs_are_named(tmp_path: Path) -> None:
    for command in ("resume", "report", "label"):
        assert str(tmp_path / "absent") in error_of(run(command, str(tmp_path / "absent")))


def test_a_users_folder_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from posterior.cli import main; sys.exit(main(['envs', 'list']))"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    message = error_of(done)
    assert message.startswith(f"{tmp_path / 'models'} hides Posterior's own package models; ")


def test_json_keeps_standard_output_to_one_object(tmp_path: Path) -> None:
    """A custom environment that prints must not spoil the object."""
    (tmp_path / "loud.py").write_text(
        "import os\n"
        "from envs.base import Grade, SingleTurnEnv, Task\n"
        "class Loud(SingleTurnEnv):\n"
        "    def tasks(self, split):\n"
        "        print('hello'); os.system('echo from a child')\n"
        "        if split not in self.splits(): raise ValueError(split)\n"
        "        return [Task(f'{split}-{i}', f'{split} says {i}', answer=str(i)) for i in range(20)]\n"
        "    def grade(self, task, text):\n"
        "        return Grade(float(text.strip() == task.answer))\n"
    )
    done = run("envs", "check", "loud:Loud", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert (result["ok"], done.returncode) == (True, 0), result
    assert "from a child" in done.stderr
    done = run("envs", "check", "loud:Loud", cwd=tmp_path)
    assert done.returncode == 0
    assert "ok    " in done.stdout


def test_errors_that_are_not_expected_say_how_to_see_more() -> None:
    assert cli.sentence(ZeroDivisionError("x")) == "ZeroDivisionError: x (POSTERIOR_DEBUG=1 shows where)"
    assert cli.sentence(ValueError("two\n lines")) == "two lines"
    assert "make setup" in cli.sentence(ModuleNotFoundError("no", name="vllm.sub"))
