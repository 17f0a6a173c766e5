"""What `eval`, `chat` and `doctor` are pointed at: a run directory, or a model by path, hub id or "embedded"."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from actors import checkpoint
from algorithms.registry import find as find_algorithm
from posterior.config import RunConfig
from posterior.config_load import ConfigError, load
from posterior.rundir import RunDir


def open_target(target: str, which: str | None = None) -> tuple[RunConfig, str]:
    """(configuration, what is looked at): of a run, with `model.path` at one of its checkpoints; or defaults with a
    model.

    which: "newest", "best" (by held-out figures, see `best`), or the step of one that is kept; None is the newest, of a reward model the
    best.
    """
    folder = Path(target)
    if (folder / "config.yaml").is_file():
        run = RunDir.open(folder)
        config = load(run.config, []).config
        which = which or ("newest" if plays(config) else "best")
        newest = checkpoint.latest(run.checkpoints)
        if newest is not None and which != "newest":
            newest = (best(run) or newest) if which == "best" else kept(run, which)
        if newest is None:
            raise ConfigError(
                f"the run {folder} has no checkpoint yet; give its model by path, or wait for the first one"
            )
        config.model.path = str(newest / "policy")
        config.model.lora = None  # the checkpoint's policy has them merged
        return config, f"{newest.name} of {folder}"
    config = RunConfig()
    config.model.path = target
    return config, target


def plays(config: RunConfig) -> bool:
    """Whether a run's method plays; a reward model only reads."""
    return find_algorithm(str(config.algorithm["name"])).plays


def best(run: RunDir) -> Path | None:
    """The kept checkpoint with the highest mean held-out pass@1 (of a reward model: the lowest squared error on the first split), the
    newest of equals; None if none was evaluated. One whose figures were no numbers counts as not evaluated.

    It was chosen on the tasks it was evaluated on: its figures there are a little too good.
    """
    rows = [row for row in run.read_metrics() if row.get("kind") == "eval"]
    figures = {
        row["version"]: [v for k, v in row.items() if k.endswith("/pass@1")]
        or [None if v is None else -v for k, v in row.items() if k.endswith("/mse")][:1]
        for row in rows
    }
    score = {at: mean(values) for at, values in figures.items() if values and None not in values}
    found = [path for path in run.checkpoints.glob("step_*") if checkpoint.damage(path) is None]
    judged = [(score[version(path)], version(path), path) for path in found if version(path) in score]
    return max(judged)[2] if judged else None


def kept(run: RunDir, step: str) -> Path:
    """The whole checkpoint of a step. Raises ConfigError naming those that are kept."""
    found = {version(path): path for path in sorted(run.checkpoints.glob("step_*")) if checkpoint.damage(path) is None}
    wanted = step.removeprefix("step_")
    if not wanted.isdecimal() or int(wanted) not in found:
        raise ConfigError(
            f"the run {run.path} keeps no checkpoint {step!r}; choose newest, best or one of: "
            + ", ".join(map(str, found))
        )
    return found[int(wanted)]


def version(path: Path) -> int:
    """Of a checkpoint, from its folder's name."""
    return int(path.name.removeprefix("step_"))
