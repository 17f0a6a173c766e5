"""Finding environments by name and by import path, and the sentences said when they are not right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from envs import registry
from envs.base import Grade, SingleTurnEnv, Task
from envs.coding.env import CodingEnv

GOOD = """
from envs.base import Env, Grade, SingleTurnEnv, Task
class MyEnv(SingleTurnEnv):
    def __init__(self, size: int = 3, *, suffix: str = ""): self.size = size
    def tasks(self, split): return [Task(f"{split}-{i}", f"{split} {i}?", answer=str(i)) for i in range(self.size)]
    def grade(self, task, text): return Grade(float(text == task.answer))
class NeedsPath(MyEnv):
    def __init__(self, path): raise RuntimeError("no " + path)
class NoGrade(SingleTurnEnv):
    def tasks(self, split): return []
class NoStep(Env):
    def tasks(self, split): return []
    async def reset(self, task, seed): ...
class SyncStep(NoStep):
    def step(self, action): ...
class BadArity(MyEnv):
    def grade(self, task): ...
class NotAnEnv: ...
function = print
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a user's package in it."""
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "my_env.py").write_text(GOOD)
    (tmp_path / "my_pkg" / "broken.py").write_text("1 / 0")
    (tmp_path / "my_pkg" / "needy.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for name in [name for name in sys.modules if name.split(".")[0] == "my_pkg"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_built_in_names() -> None:
    assert registry.find("coding") is CodingEnv
    assert registry.paths()["coding"] == "envs.coding.env:CodingEnv"
    assert registry.known()["coding"] == CodingEnv.description
    assert registry.find("envs.coding.env:CodingEnv") is CodingEnv


def test_import_paths_reach_the_current_folder(folder: Path) -> None:
    env = registry.make("my_pkg.my_env:MyEnv", {"size": 2})
    tasks = list(env.tasks("train"))
    assert [task.id for task in tasks] == ["train-0", "train-1"]
    assert isinstance(tasks[0], Task)
    assert isinstance(env, SingleTurnEnv)
    assert env.grade(tasks[1], "1") == Grade(1.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("codign", ["'codign'", "did you mean 'coding'?"]),
        ("zzz", ["'zzz'", "there are: ", "coding"]),
        ("no_pkg.my_env:MyEnv", ["no module 'no_pkg'", "current folder"]),
        ("my_pkg.my_evn:MyEnv", ["no module 'my_pkg.my_evn'"]),
        ("my_pkg.broken:MyEnv", ["importing my_pkg.broken failed", "ZeroDivisionError"]),
        ("my_pkg.needy:MyEnv", ["needs the module 'no_such_library'"]),
        ("my_pkg.my_env:MyEvn", ["has no 'MyEvn'", "did you mean 'MyEnv'?"]),
        ("my_pkg.my_env:NotAnEnv", ["NotAnEnv", "must subclass envs.base"]),
        ("my_pkg.my_env:function", ["not a class"]),
        ("my_pkg.my_env:NoGrade", ["class NoGrade", "lacks the method grade(self, task, text)"]),
        ("my_pkg.my_env:NoStep", ["class NoStep", "lacks the method async step(self, action)"]),
        ("my_pkg.my_env:SyncStep", ["method step", "SyncStep", "async def step"]),
        ("my_pkg.my_env:BadArity", ["method grade of class BadArity", "grade(self, task, text)"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(folder: Path, name: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        registry.find(name)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("my_pkg.my_env:MyEnv", {"sise": 3}, ["no argument 'sise'", "did you mean 'size'?"]),
        ("my_pkg.my_env:MyEnv", {"q": 3}, ["no argument 'q'", "it takes: size, suffix"]),
        ("my_pkg.my_env:NeedsPath", {}, ["needs the argument 'path'"]),
        ("my_pkg.my_env:NeedsPath", {"path": "x"}, ["NeedsPath(...) failed", "RuntimeError: no x"]),
        ("coding", {"famlies": ["list"]}, ["unknown option 'famlies'", "did you mean 'families'?"]),
        ("coding", {"unsafe_locl": True}, ["did you mean 'unsafe_local'?"]),
        ("coding", {"memory_mb": -1}, ["memory_mb", "positive"]),
        ("coding", {"cpu_seconds": "fast"}, ["cpu_seconds", "'fast'"]),
        ("coding", {"partial": "yes"}, ["partial", "true or false", "'yes'"]),
        ("coding", {"seed": 1.5}, ["seed", "whole number"]),
        ("coding", {"train_share": 2.0}, ["train_share", "between 0 and 1"]),
        ("coding", {"tasks": "x.jsonl", "families": ["list"]}, ["'families'", "generated tasks only"]),
    ],
)
def test_arguments_are_checked_before_anything_starts(folder: Path, name: str, args: dict, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        registry.make(name, args)
    for word in words:
        assert word in str(caught.value)
