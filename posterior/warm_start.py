"""A warm start: a model that a run of its own makes first. `model.path` names that run's configuration.

    posterior train mine.yaml           model.path: base.yaml
      └─► posterior train base.yaml     once; its last policy is kept, named by everything the configuration says
    posterior train mine.yaml seed=1    finds it

The run is a process of its own, as `posterior train` starts it, and a warm start may itself have one. What it makes is built aside and
renamed into its place; of two processes that want the same one at once, the second waits.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from posterior import child
from posterior.config import SCRATCH, EnvConfig, RunConfig
from posterior.config_load import ConfigError, Resolved, dump, is_configuration, load

EVIDENCE = "run"
"""Folder beside the kept weights: configuration, metrics, result and report of the run that made them."""


class WarmStartFailed(RuntimeError):
    """The run that should make the model did not; one sentence."""


@dataclass(frozen=True)
class WarmStart:
    """path: of the configuration. resolved: what it says. folder: where the model lies once it is trained."""

    path: Path
    resolved: Resolved
    folder: Path

    @property
    def trained(self) -> bool:
        return self.folder.is_dir()

    @property
    def judged(self) -> bool:
        """Whether its best checkpoint is kept, by its held-out items (its last where none were read): of what only reads."""
        from posterior.targets import plays

        return not plays(self.resolved.config)

    def __str__(self) -> str:
        where = f"kept in {self.folder}" if self.trained else "not trained yet; the run trains it first"
        return f"{_short(self.path)}: {where}"


def find(config: RunConfig) -> WarmStart | None:
    """The warm start of a run, checked but not trained; None if model.path names no configuration. Raises ConfigError."""
    return _find(config, ()) if is_configuration(config.model.path) else None


def trained(config: RunConfig) -> Path:
    """The model folder of a run's warm start, which is trained now if it is not there. Raises ConfigError, WarmStartFailed."""
    warm = find(config)
    assert warm is not None
    if not warm.trained:
        with _alone(warm):
            if not warm.trained:
                _train(warm)
    return warm.folder


def _find(config: RunConfig, above: Sequence[Path]) -> WarmStart:
    """above: the configurations that led here."""
    from posterior.prepare import cache_folder

    path = Path(config.model.path).absolute()
    if not path.is_file():
        raise ConfigError(
            f"model.path: there is no configuration {config.model.path} to train a warm start from "
            "(looked for in the working directory and beside the run's own configuration)"
        )
    chain = [*above, path.resolve()]
    if path.resolve() in above:
        raise ConfigError(f"model.path: a warm start points at itself: {' -> '.join(map(_short, chain))}")
    try:
        resolved = load(path)
    except ConfigError as error:
        raise ConfigError(f"the warm start of model.path: {error}") from error
    own = resolved.config
    tree = own.model_dump(mode="json")
    if is_configuration(own.model.path):
        tree["model"]["path"] = str(_find(own, chain).folder)
        _check_words(config, own, path)
    elif own.model.path == SCRATCH:
        _check_words(config, own, path)
    return WarmStart(path, resolved, cache_folder("warm start", tree, resolved.implied))


def _check_words(config: RunConfig, own: RunConfig, path: Path) -> None:
    """A model from nothing speaks the words of the environment it was made for, and no others."""
    wanted, known = _words(config.env), _words(own.env)
    missing = [word for word in wanted if word not in known]
    if missing or (known and not wanted):
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        what = (
            f"lacks words of {config.env.name} ({named})"
            if missing
            else f"is made of words, as {config.env.name} is not"
        )
        raise ConfigError(
            f"model.path: the warm start {_short(path)} trains a model from nothing on {own.env.name}, whose vocabulary {what}; "
            "train it on the same environment"
        )


def _words(env: EnvConfig) -> list[str]:
    from envs.registry import make

    return list(make(env.name, env.args).words())


@contextmanager
def _alone(warm: WarmStart) -> Iterator[None]:
    """Hold the warm start's lock; it is let go when this process ends, however it ends."""
    warm.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(warm.folder.with_name(f".{warm.folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say(f"warm start: another process trains {_short(warm.path)}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(warm: WarmStart) -> None:
    from models.scratch import publish

    _say(f"warm start: training {_short(warm.path)} once (kept in {warm.folder})")
    aside = warm.folder.with_name(f".{warm.folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        config = aside / "warm_start.yaml"
        config.write_text(dump(warm.resolved.config), encoding="utf-8")  # the file may change meanwhile
        made = _run(warm, config, aside / EVIDENCE)
        evidence = made / EVIDENCE
        evidence.mkdir()
        for name in ("config.yaml", "metrics.jsonl", "result.json", "report.html"):
            if (aside / EVIDENCE / name).is_file():
                os.rename(aside / EVIDENCE / name, evidence / name)
        publish(made, warm.folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _say("warm start: done")


def _run(warm: WarmStart, config: Path, out: Path) -> Path:
    """Train `config` in a process of its own; the folder of its last policy, of a reward model the best."""
    from actors import checkpoint
    from posterior.rundir import RunDir
    from posterior.targets import best

    process = child.start(["train", str(config), "--out", str(out)])
    try:
        said = process.communicate()[0]
    except BaseException:
        child.end(process)
        raise
    try:
        result = json.loads(said)
    except ValueError:
        result = {"error": f"the run ended with code {process.returncode} and no word"}
    if result.get("status") == "interrupted" or result.get("error") == "interrupted":
        raise KeyboardInterrupt
    run = RunDir(out)
    chosen = (best(run) if warm.judged else None) or checkpoint.latest(run.checkpoints)
    if result.get("status") != "finished" or chosen is None:
        raise WarmStartFailed(f"the warm start {_short(warm.path)} was not trained: {result.get('error', result)}")
    made = chosen / "policy"
    for other in chosen.iterdir():  # other trainable roles, such as the members of an ensemble
        if other.is_dir() and other != made:
            os.rename(other, made / other.name)
    return made


def _short(path: Path) -> str:
    """As one would write it in the working directory."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
