"""The example package: installed, found by its names, checked, and trained on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, rows

EXAMPLE = ROOT / "examples" / "my_plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example is installed, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")  # building writes beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True, timeout=120)
    return folder / "site"


def posterior(site: Path, *words: str) -> dict:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "XDG_CACHE_HOME": str(site.parent / "cache")}
    command = [sys.executable, "-m", "posterior", *words, "--json"]
    done = subprocess.run(command, env=env, cwd=site.parent, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_its_environments_are_listed_and_pass_the_suite(site: Path) -> None:
    found = {row["name"]: row for row in posterior(site, "envs", "list")["envs"]}
    assert (found["clock"]["kind"], found["clock"]["splits"]) == ("single-turn", {"train": 120, "test": 24})
    assert (found["lift"]["kind"], found["lift"]["turns"]) == ("multi-turn", 6)
    for name in ("clock", "lift"):
        assert posterior(site, "envs", "check", name)["ok"]


@pytest.mark.slow
def test_a_run_trains_on_it_by_name(site: Path) -> None:
    done = posterior(site, "train", str(EXAMPLE / "train.yaml"), "--out", "run")
    assert done["status"] == "finished"
    losses = [row["loss/policy/ce"] for row in rows(site.parent / "run") if row["kind"] == "train"]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
