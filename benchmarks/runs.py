"""Whole runs through the command line, for benchmarks of what a user would see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "tune_configs"


def train(config: Path, out: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """`posterior train`; its result.json. A run that is in `out` already is continued, or read if it has finished.

    Raises RuntimeError with the run's own sentence if it fails.
    """
    done = out / "result.json"
    if done.is_file() and json.loads(done.read_text()).get("status") == "finished":
        return dict(json.loads(done.read_text()))
    started = (out / "config.yaml").exists()
    rest = ["resume", str(out)] if started else ["train", str(config), *words, "--out", str(out)]
    command = [sys.executable, "-m", "posterior", *rest, "--json"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    result = json.loads(ran.stdout)
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.get('error')}")
    return dict(result)


def chain(name: str, folder: Path, seed: int, values: Mapping[str, Any], env: Mapping[str, Any]) -> Path:
    """A copy of tune_configs/NAME in `folder`, and of the configurations it begins from, for one seed.

    values: over the first one, by dotted key. env: arguments of the environment for all of them.
    """
    config = yaml.safe_load((CONFIGS / name).read_text())
    for key, value in values.items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    config["seed"] = seed
    config["env"]["args"] = {**config["env"].get("args", {}), **env}
    for part in ("model", "reward_model"):
        begins = str(config.get(part, {}).get("path", ""))
        if begins.endswith(".yaml"):
            config[part]["path"] = str(chain(Path(begins).name, folder, seed, {}, env))
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / name
    out.write_text(yaml.safe_dump(config, sort_keys=False))
    return out
