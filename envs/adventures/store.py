"""Where generated games are kept: files named by what they were made from, whole or absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def folder(kind: str) -> Path:
    """The cache folder of one kind of game, made if need be: $XDG_CACHE_HOME/posterior/adventures/KIND."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = home / "posterior" / "adventures" / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(*parts: object) -> str:
    """A name for what was made from `parts` (anything whose repr says it all)."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def stable_hash(value: object) -> int:
    """Of anything whose repr says it all; the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=6).digest(), "big")


def write(path: Path, content: bytes) -> None:
    """A file that is there as a whole or not at all, however many processes write it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
