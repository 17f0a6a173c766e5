"""A Z-machine story file, played by Jericho's Frotz: commands in, text out, counters and state read from memory.

Jericho gives every `FrotzEnv` its own copy of the C library, so several machines in one process do not disturb one another.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from envs.adventures import zcode

COMMAND_LIMIT = 120
"""Characters of a command that reach the game; Frotz's own buffer holds 198."""
NEED = "needs jericho: pip install 'jericho==3.3.1' (it is built with gcc: apt-get install build-essential)"

FORBIDDEN = frozenset(
    "save restore restart quit q script transcript unscript noscript recording replay undo verify verbose brief superbrief"
    " normal long short notify".split()
)
"""First words that reach past the game: they write files, end or restart it, or change how it speaks."""


def command_of(action: str) -> str:
    """The one command in an action text: its first line that is not blank, lower case, up to a full stop; "" if there is none or it is
    forbidden. Nothing but letters, digits and - ' , passes."""
    line = next((line for line in action[: 8 * COMMAND_LIMIT].splitlines() if line.strip()), "")
    line = re.split(r"[.;!?]|\bthen\b", line.lower().strip(" >\t"), maxsplit=1)[0]
    words = re.sub(r"[^a-z0-9',\- ]", " ", line).split()
    return "" if not words or words[0] in FORBIDDEN else " ".join(words)[:COMMAND_LIMIT]


class Machine:
    """One running story. `load` before anything else; `globals` are numbered as in the story's table."""

    def __init__(self) -> None:
        self._frotz: Any = None
        self._loaded: tuple[str, int] | None = None
        self._ram = np.zeros(0, np.uint8)
        self.story: zcode.Story

    def load(self, story: Path, seed: int) -> str:
        """Start a story anew and return its opening text. seed: of the story's random numbers, at least 1."""
        key = (str(story), seed)
        if self._frotz is None or key != self._loaded:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that Jericho does not know this story
                if self._frotz is None:
                    from jericho import FrotzEnv

                    self._frotz = FrotzEnv(str(story), seed=seed)
                else:
                    self._frotz._cache.clear()  # it would keep every story ever played
                    self._frotz.close()
                    self._frotz.load(str(story), seed=seed)
            self._loaded = key
            self.story = _story(str(story))
        text, _ = self._frotz.reset()
        self._lib = self._frotz.frotz_lib
        self._ram = np.zeros(self._lib.getRAMSize(), np.uint8)
        self._at = np.ctypeslib.as_ctypes(self._ram)
        self._read()
        return clean(text)

    def send(self, command: str) -> str:
        """The story's answer to a command that `command_of` let through."""
        text = self._lib.step(command.encode("ascii", "ignore") + b"\n").decode("cp1252", "replace")
        self._read()
        return clean(text)

    def variable(self, number: int) -> int:
        """A global variable, signed."""
        at = self.story.globals_at + 2 * number
        value = int(self._ram[at]) << 8 | int(self._ram[at + 1])
        return value - 0x10000 if value & 0x8000 else value

    def name(self, number: int) -> str:
        """The short name of an object, lower case; "" where there is none."""
        return self.story.name(number)

    def inside(self, holder: str) -> list[str]:
        """Names of all things inside the object of that name, at any depth."""
        story = self.story
        above = {i: story.parent(self._ram, i) for i in range(1, story.objects + 1)}
        found = []
        for number in above:
            at = above[number]
            for _ in above:
                if not at or story.name(at) == holder:
                    break
                at = above.get(at, 0)
            if at and story.name(at) == holder:
                found.append(story.name(number))
        return found

    def effective(self, commands: Sequence[str], first: int) -> list[str]:
        """Those of the commands that change where the player is, the score or any object. first: of the variables that hold them."""
        here = self._frotz.get_state()
        before = self._world(first)
        found = []
        for command in commands:
            self.send(command)
            if self._world(first) != before:
                found.append(command)
            self._frotz.set_state(here)
        self._read()
        return found

    def _world(self, first: int) -> tuple[int, int, bytes]:
        return self.variable(first), self.variable(first + 1), self._ram[self.story.tree].tobytes()

    def state(self) -> bytes:
        return pickle.dumps(self._frotz.get_state())

    def restore(self, state: bytes) -> None:
        self._frotz.set_state(pickle.loads(state))
        self._read()

    def _read(self) -> None:
        self._lib.getRAM(self._at)


@lru_cache(maxsize=64)
def _story(path: str) -> zcode.Story:
    return zcode.Story(Path(path).read_bytes())


def jericho_found() -> bool:
    return find_spec("jericho") is not None


def clean(text: str) -> str:
    """A story's answer without prompt, status line and blank lines."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    while lines and (not lines[-1] or lines[-1].startswith(">")):
        lines.pop()
    if lines and lines[0].startswith(">"):
        lines[0] = lines[0][1:].strip()
    return "\n".join(line for line in lines if line)
