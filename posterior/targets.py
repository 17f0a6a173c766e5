"""What `eval`, `chat` and `doctor` are pointed at: a run directory, or a model by path, hub id or "embedded"."""

from __future__ import annotations

from pathlib import Path

from actors import checkpoint
from posterior.config import RunConfig
from posterior.config_load import ConfigError, load
from posterior.rundir import RunDir


def open_target(target: str) -> tuple[RunConfig, str]:
    """(configuration, what is looked at): of a run, with `model.path` at its newest checkpoint; or defaults with the model."""
    folder = Path(target)
    if (folder / "config.yaml").is_file():
        run = RunDir.open(folder)
        config = load(run.config, []).config
        newest = checkpoint.latest(run.checkpoints)
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
