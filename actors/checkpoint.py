"""Checkpoints: a folder written aside, flushed to disk and renamed, so that a kill at any moment leaves only whole ones.

checkpoints/step_000025/
    policy/         Hugging Face format (adapters merged), loads anywhere; other trainable roles beside it
    trainer.pt      optimisers, adapters, counters, random state
    collector.pkl   buffer and collection state (Python pickle: load only checkpoints you trust)
    meta.json       step, versions of the format and of the model
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from actors.diary import disk_full
from actors.update import Updater
from models.loading import RoleModel, merged_weights, save_role

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one sentence."""


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted(p for p in folder.glob("step_*") if (p / "meta.json").is_file())
    return found[-1] if found else None


def save(
    folder: Path,
    step: int,
    updater: Updater,
    collector_state: dict[str, Any],
    algorithm_state: dict[str, Any],
    tokenizer: Any,
    keep: int,
) -> Path | None:
    """Write the checkpoint of a version (`step` batches consumed); every rank must call it, rank 0 writes and returns the path.

    Raises DiskFull; older checkpoints are touched only after the new one is whole.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    optimisers = {
        role: get_optimizer_state_dict(updater.models[role], optimiser, options=options)
        for role, optimiser in updater.optimisers.items()
    }
    if updater.sharded and updater.rank != 0:
        for model in updater.models.values():
            merged_weights(model)  # takes part in gathering the weights that rank 0 writes
    final = folder / f"step_{step:06d}"
    if updater.rank == 0:
        for left in folder.glob(".step_*.tmp"):
            shutil.rmtree(left, ignore_errors=True)  # a writer was killed in the middle
        aside = folder / f".{final.name}.{os.getpid()}.tmp"
        try:
            _write(aside, step, updater, optimisers, collector_state, algorithm_state, tokenizer)
            # there already when a run is stopped right where it was resumed: the same state, and never to be without
            if not (final / "meta.json").is_file():
                shutil.rmtree(final, ignore_errors=True)
                os.rename(aside, final)
            _flush_folder(folder)
        except Exception as error:
            if full := disk_full(error, folder.parent, f"saving the checkpoint of version {step}"):
                raise full from error
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in sorted(p for p in folder.glob("step_*") if p.is_dir())[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    if updater.world > 1:
        dist.barrier()
    return final if updater.rank == 0 else None


def _write(
    aside: Path,
    step: int,
    updater: Updater,
    optimisers: Mapping[str, Any],
    collector_state: Mapping[str, Any],
    algorithm_state: Mapping[str, Any],
    tokenizer: Any,
) -> None:
    """All files of a checkpoint, flushed to disk."""
    aside.mkdir(parents=True)
    for role, model in updater.models.items():
        save_role(model, aside / role, tokenizer if role == "policy" else None)
    torch.save(
        {
            "optimisers": optimisers,
            "adapters": {role: _adapters(model) for role, model in updater.models.items()},
            "updates": updater.updates,
            "algorithm": algorithm_state,
            "torch_rng": torch.get_rng_state(),
        },
        aside / "trainer.pt",
    )
    (aside / "collector.pkl").write_bytes(pickle.dumps(collector_state))
    meta = {"format": FORMAT, "step": step, "model": _identity(updater.models["policy"])}
    (aside / "meta.json").write_text(json.dumps(meta, indent=2))
    _flush(aside)


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint; raises CheckpointError when it is not one of ours."""
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of Posterior: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {meta.get('format')}, this version reads {FORMAT}")
    return meta


def restore(path: Path, updater: Updater) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Put optimisers, adapters, counters and random state back; returns (step, collector state, algorithm state).

    The roles' weights themselves were loaded from the checkpoint's folders when the models were built.
    """
    meta = read_meta(path)
    mine = _identity(updater.models["policy"])
    if meta["model"] != mine:
        raise CheckpointError(
            f"checkpoint {path} is of another model: it was {meta['model']}, the configured one is {mine}"
        )
    saved = torch.load(path / "trainer.pt", map_location="cpu", weights_only=False)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for role, state in saved["optimisers"].items():
        set_optimizer_state_dict(updater.models[role], updater.optimisers[role], state, options=options)
    for role, adapters in saved["adapters"].items():
        if adapters:
            updater.models[role].load_state_dict(adapters, strict=False)
    updater.updates = saved["updates"]
    torch.set_rng_state(saved["torch_rng"])
    collector_state = pickle.loads((path / "collector.pkl").read_bytes())
    return meta["step"], collector_state, saved["algorithm"]


def _adapters(model: RoleModel) -> dict[str, torch.Tensor]:
    """LoRA parameters (the merged folder does not hold them apart)."""
    return {name: p.detach().cpu() for name, p in model.named_parameters() if "lora_" in name}


def _identity(model: RoleModel) -> str:
    config: Mapping[str, Any] = model.base.config.to_dict()
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return ", ".join(f"{key} {config.get(key)}" for key in keys)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
