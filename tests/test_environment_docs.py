"""docs/environments.md: every block of code in it runs, and its tables say what is so."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from envs import registry
from envs.adapters.reasoning_gym import EVALUATES, WHITELIST
from posterior import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def modules() -> dict[str, str]:
    """File name -> text, of the blocks that begin with the name of a file."""
    found = {}
    for kind, text in BLOCKS:
        head = re.match(r"# (\w+\.py)\n", text)
        if kind == "python" and head:
            found[head.group(1)] = text
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the page's modules in it."""
    for name, text in modules().items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "sh", "toml"}
    assert set(modules()) == {"my_envs.py", "my_tools.py", "my_data.py"}
    assert all(command.startswith("posterior envs check ") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_succeed(folder: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    if "reasoning_gym" in command:
        pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed; run make setup")
    assert cli.main([*shlex.split(command)[1:], "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["ok"]


@pytest.mark.parametrize("text", [t for kind, t in BLOCKS if kind == "python" and not t.startswith("# my_")])
def test_the_scripts_run(folder: Path, text: str) -> None:
    exec(compile(text, "docs/environments.md", "exec"), {"__name__": "page"})


def test_the_data_set_is_read(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Capital of country {i}?", "answer": f"City {i}"} for i in range(30)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["envs", "check", "my_data:Capitals", "path=rows.jsonl", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tasks"] == {"train": 24, "test": 6}


def test_the_first_environment_is_short() -> None:
    lines = modules()["my_envs.py"].split("class Reverse")[1].splitlines()
    assert len([line for line in lines if line.strip()]) <= 20


def test_the_entry_points_are_those_of_the_example() -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "toml"]
    project = tomllib.loads((ROOT / "examples" / "my_plugin" / "pyproject.toml").read_text())["project"]
    assert tomllib.loads(text)["project"]["entry-points"] == project["entry-points"]


def test_the_table_of_the_audit_is_the_whitelist() -> None:
    rows = re.findall(r"^\| (\w+) \| [\d.–]+ \| [\d.–]+ \| [\d.–]+ \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 106
    assert tuple(name for name, finding in rows if finding == "passes") == WHITELIST
    assert tuple(name for name, finding in rows if finding.startswith("evaluates")) == EVALUATES
    assert len(WHITELIST) >= 70
    assert {"gymnasium", "reasoning_gym", "verifiers", "openenv"} <= set(registry.BUILTIN)
