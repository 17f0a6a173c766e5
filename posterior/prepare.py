"""The model folder that a configuration asks for: found as it is, made from nothing, trained by another run (`posterior.warm_start`), or
given a thinker.

What is made lies in a cache, named by everything it depends on: the same configuration finds it again, after a restart too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from models.loading import check_model_path, load_config
from posterior.config import DEFAULT_LENGTH, EMBEDDED, SCRATCH, RunConfig
from posterior.config_load import ConfigError, is_configuration


def model_path(config: RunConfig) -> str:
    """The folder or hub id behind `model`."""
    found = _base(config)
    check_model_path(found)
    thinker = config.model.thinker
    from models.feedback import has_thinker, thinker_config

    if thinker is None:
        return found
    if has_thinker(found):
        if (own := thinker_config(found).kind) != thinker.kind:
            raise ConfigError(
                f"the model {found} thinks by a thinker of kind {own}, and model.thinker asks for {thinker.kind}; "
                "leave model.thinker out, or start from a model without one"
            )
        return found
    load_config(found, config.model.trust_remote_code)
    folder = cache_folder(found, thinker.model_dump(), config.seed)
    if not folder.is_dir():
        _add_thinker(found, folder, config)
    return str(folder)


def _base(config: RunConfig) -> str:
    path = config.model.path
    if path == EMBEDDED:
        from posterior.embedded import path as embedded

        return str(embedded())
    if path == SCRATCH:
        return str(_scratch(config))
    if is_configuration(path):
        from posterior.warm_start import trained

        return str(trained(config))
    folder = Path(path)
    return str(folder.absolute()) if folder.exists() else path


def _scratch(config: RunConfig) -> Path:
    from envs.registry import make
    from models.scratch import write_model

    env = make(config.env.name, config.env.args)
    words = list(env.words())
    if not words:
        raise ConfigError(
            f"model.path: scratch needs an environment that lists its words, and {config.env.name} does not; give a model folder instead"
        )
    options = {
        **config.model.scratch.model_dump(),
        "length": config.model.max_length or DEFAULT_LENGTH,
        "seed": config.seed,
    }
    folder = cache_folder("scratch", words, options)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_model(folder, words, **options)
    return folder


def _add_thinker(path: str, folder: Path, config: RunConfig) -> None:
    """The same model with a fresh thinker beside it; a local model's files are linked, not copied."""
    import torch

    from models.feedback import Thinker, ThinkerConfig
    from models.loading import load_role, load_tokenizer, save_role
    from models.scratch import publish

    assert config.model.thinker is not None
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True, exist_ok=True)
    model = load_role(path, trust_remote_code=config.model.trust_remote_code)
    if Path(path).is_dir():
        for file in Path(path).iterdir():
            if file.is_file():
                (aside / file.name).symlink_to(file.resolve())
    else:
        save_role(model, aside, load_tokenizer(path, config.model.trust_remote_code))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            Thinker(ThinkerConfig(**config.model.thinker.model_dump()), model.base).save(aside)
        except ValueError as error:
            raise ConfigError(f"model.thinker: {error}") from error
    publish(aside, folder)


def cache_folder(*parts: Any) -> Path:
    """Where what was made from `parts` lies, or will lie."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    name = hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    return home / "posterior" / "models" / name
