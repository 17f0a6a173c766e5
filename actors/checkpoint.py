"""Checkpoints: a folder written aside, flushed to disk and renamed, so that a kill at any moment leaves only whole ones.

checkpoints/step_000025/
    policy/         Hugging Face format (adapters merged), loads anywhere; other trainable roles beside it
    trainer.pt      optimisers, of models with adapters what is trained, counters, random state
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
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from actors.diary import disk_full
from actors.update import Updater
from models.loading import RoleModel, merged_weights, save_role

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one sentence."""


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None if there is none at all.

    A damaged one is passed over. Raises CheckpointError if there are only damaged ones: starting anew would lose the run.
    """
    faults = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        fault = damage(path)
        if fault is None:
            return path
        faults.append(fault)
    if faults:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole ({faults[0]}); bring one back from a copy, or empty this folder to start anew"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by the sizes of its files, or None."""
    try:
        meta = read_meta(path)
    except CheckpointError as error:
        return str(error)
    for name, size in meta.get("files", {}).items():
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
    return None


def check_model(path: Path, config: Any) -> None:
    """Raise CheckpointError unless a checkpoint is of a model with this configuration (of transformers)."""
    was, mine = read_meta(path)["model"], _identity(config)
    if was != mine:
        raise CheckpointError(
            f"checkpoint {path} is of another model: it was {was}, the configured one is {mine}; put the run's own model.path "
            "back, or start a new run with the other model"
        )


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
    adapted = {role: _apart(model) for role, model in updater.models.items()}
    if updater.sharded and updater.rank != 0:
        for model in updater.models.values():
            merged_weights(model)  # takes part in gathering the weights that rank 0 writes
    final = folder / f"step_{step:06d}"
    if updater.rank == 0:
        for left in folder.glob(".step_*.tmp"):
            shutil.rmtree(left, ignore_errors=True)  # a writer was killed in the middle
        aside = folder / f".{final.name}.{os.getpid()}.tmp"
        try:
            _write(aside, step, updater, optimisers, adapted, collector_state, algorithm_state, tokenizer)
            # there already when a run is stopped right where it was resumed: the same state, and never to be without
            if damage(final) is not None:
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
    adapted: Mapping[str, Mapping[str, torch.Tensor]],
    collector_state: Mapping[str, Any],
    algorithm_state: Mapping[str, Any],
    tokenizer: Any,
) -> None:
    """All files of a checkpoint, flushed to disk."""
    aside.mkdir(parents=True)
    for role, model in updater.models.items():
        save_role(model, aside / role, tokenizer if role == "policy" else None)
        for name, notes in updater.algorithm.notes(role).items():
            (aside / role / name).write_text(json.dumps(notes))
    torch.save(
        {
            "optimisers": optimisers,
            "adapters": adapted,
            "updates": updater.updates,
            "algorithm": algorithm_state,
            "torch_rng": torch.get_rng_state(),
        },
        aside / "trainer.pt",
    )
    (aside / "collector.pkl").write_bytes(pickle.dumps(collector_state))
    files = {str(p.relative_to(aside)): p.stat().st_size for p in sorted(aside.rglob("*")) if p.is_file()}
    of = _identity(updater.models["policy"].base.config)
    meta = {"format": FORMAT, "step": step, "model": of, "files": files}
    (aside / "meta.json").write_text(json.dumps(meta, indent=2))
    _flush(aside)


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint; raises CheckpointError when it is not one of ours."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        if not isinstance(meta, dict):
            raise ValueError("meta.json is no object")
    except OSError as error:
        raise CheckpointError(f"{path / 'meta.json'} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a checkpoint of Posterior: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {meta.get('format')}, this version reads {FORMAT}")
    return meta


def restore(path: Path, updater: Updater) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Put optimisers, adapters, counters and random state back; returns (step, collector state, algorithm state).

    The weights of models without adapters were loaded from the checkpoint's folders when the models were built.
    """
    meta = read_meta(path)
    check_model(path, updater.models["policy"].base.config)
    try:
        saved = torch.load(path / "trainer.pt", map_location="cpu", weights_only=False)
        collector_state = pickle.loads((path / "collector.pkl").read_bytes())
    except Exception as error:  # unpickling damaged bytes raises anything
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "delete its folder to continue from the one before it"
        ) from error
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for role, state in saved["optimisers"].items():
        set_optimizer_state_dict(updater.models[role], updater.optimisers[role], state, options=options)
    options = StateDictOptions(full_state_dict=True, strict=False)
    for role, model in updater.models.items():
        kept = saved["adapters"].get(role, {})
        if lost := [name for name in _trained(model) if name not in kept]:
            raise CheckpointError(
                f"checkpoint {path} lacks {lost[0]} of the role {role} (older versions kept a model's adapters and not what was trained "
                "beside them): start a new run"
            )
        if kept:
            set_model_state_dict(model, kept, options=options)
    updater.updates = saved["updates"]
    torch.set_rng_state(saved["torch_rng"])
    return meta["step"], collector_state, saved["algorithm"]


def _trained(model: RoleModel) -> list[str]:
    """Names of all that is trained of a model with adapters: those, and its head and thinker. None of any other model."""
    adapted = hasattr(model.lm, "merge_adapter")
    return [name for name, p in model.named_parameters() if adapted and p.requires_grad]


def _apart(model: RoleModel) -> dict[str, torch.Tensor]:
    """What `_trained` names, whole: a run is taken up on the original weights, for the folder holds the adapters merged in. Every rank
    must call it; if the model is sharded, rank 0 alone gets it."""
    names = _trained(model)
    if not names:
        return {}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return {name: found[name] for name in names if name in found}


def _identity(config: Any) -> str:
    values: Mapping[str, Any] = config.to_dict()
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return ", ".join(f"{key} {values.get(key)}" for key in keys)


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
