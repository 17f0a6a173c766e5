"""The embedded toy model: a small Qwen3 that writes short Python functions, shipped as files of this package."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Folder of the toy model in Hugging Face format (README.md there says how it was made)."""
    return Path(__file__).resolve().parent / "weights"
