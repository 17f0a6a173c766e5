"""The rules of the house, kept by reading the source: who may import whom, how long files are, what they may not name."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from posterior.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "models", "actors", "algorithms", "posterior")
LONGEST = 550
FORBIDDEN = {
    "envs": {"torch", "ray", "vllm", "models", "actors", "algorithms", "posterior"},
    "models": {"ray", "vllm", "envs", "actors", "algorithms", "posterior"},
    "actors": {"algorithms", "posterior"},
    "algorithms": {"vllm", "ray", "posterior"},
    "posterior": {"vllm"},
}
EXCEPTIONS = {("posterior/doctor.py", "vllm")}
ATTACKS = "envs/coding/attack"
"""Start of the names of the files of hostile programs, which are full of paths that an attacker would try."""


def tracked() -> list[Path]:
    """The files under version control that exist."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the whole name"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for line, module in imports(path):
            top = module.partition(".")[0]
            if top in FORBIDDEN[package] and (name, top) not in EXCEPTIONS:
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_algorithms_see_of_the_actors_only_their_messages() -> None:
    for path in sorted((ROOT / "algorithms").rglob("*.py")):
        for line, module in imports(path):
            if module.startswith("actors"):
                assert module.startswith("actors.types"), f"{path.name}:{line} imports {module}"


def test_no_file_is_too_long() -> None:
    sources = (path for path in tracked() if path.suffix in {".py", ".js", ".css", ".sh", ".html"})
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in sources
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    hosts = (("pypi", "org"), ("pythonhosted", "org"), ("deb.debian", "org"), ("npmjs", "org"), ("npmjs", "com"))
    folders = ("work", "root", "opt/wheels", "opt/pypi")
    pattern = "|".join(
        [
            *(re.escape(".".join(host)) for host in hosts),
            *(rf"(?<![\w./])/{folder}(?=[/\s\"']|$)" for folder in folders),
        ]
    )
    wrong = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights
        for number, line in enumerate(text.split("\n"), 1):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(ATTACKS) and re.search(pattern, line):
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert wrong == []


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, without the groups they stand in."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for inner in group.choices.values():
            yield from commands(inner)


def test_every_command_has_json() -> None:
    found = list(commands(build_parser()))
    assert len(found) >= 10
    assert [parser.prog for parser in found if "--json" not in parser._option_string_actions] == []
