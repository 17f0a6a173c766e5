"""A Z-machine story file, played by Jericho's Frotz: commands in, text out, counters and state read from memory; and what the
environments that play such files share.

Jericho gives every `FrotzEnv` its own copy of the C library, so several machines in one process do not disturb one another.
"""

from __future__ import annotations

import ctypes
import pickle
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.adventures import zcode
from envs.adventures.base import Adventure, first_line

NEED = "jericho (pip install jericho==3.3.1; it is built with gcc: apt-get install build-essential)"
ENDED = re.compile(r"\*\*\*.{0,60}\*\*\*|\brestart\b.{0,80}\brestore\b", re.IGNORECASE | re.DOTALL)
"""What a story says when it has ended."""

FORBIDDEN = frozenset((
    *("save", "restore", "restart", "quit", "q", "undo", "script", "transcript", "unscript", "noscript", "recording", "replay"),
    *("verify", "verbose", "brief", "superbrief", "normal", "long", "short", "notify"),
))  # fmt: skip
"""First words that reach past the game: they write files, end or restart it, or change how it speaks."""
STATUS = re.compile(r"Score: -?\d+ +Moves: \d+$")
"""Ends the status line, which some stories write among their text."""


SEVERAL = re.compile(r"[.;!?]|\bthen\b")
STRANGE = re.compile(r"[^a-z0-9',\- ]")


def seed_of(seed: int) -> int:
    """A seed that Frotz takes for one: smaller numbers make it count instead of drawing."""
    return 1000 + seed % 2**30


def command_of(action: str) -> str:
    """The one command in an action text: its first line that is not blank, lower case, up to a full stop; "" if there is none or it is
    forbidden. Nothing but letters, digits and - ' , passes."""
    line = SEVERAL.split(first_line(action).lower(), maxsplit=1)[0]
    line = " ".join(STRANGE.sub(" ", line).split())
    starts = (part.split(maxsplit=1)[0] for part in line.split(",") if part.strip())  # "lamp, save" is an order too
    return "" if any(start in FORBIDDEN for start in starts) else line


class Machine:
    """One running story; `load` before anything else. raw: its last answer as Frotz gave it, status line and prompt included."""

    def __init__(self) -> None:
        self._frotz: Any = None
        self._lib: Any = None
        self._rom = b""
        self._ram: Any = b""
        self.story: zcode.Story
        self.raw = ""

    def load(self, story: Path, seed: int) -> str:
        """Start a story anew and return its opening text. seed: of `seed_of`."""
        path = str(story)
        self._rom, self.story = _story(path)
        if self._frotz is None:
            from jericho import FrotzEnv

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that Jericho does not know this story
                self._frotz = FrotzEnv(path, seed=seed)
            self._lib = self._frotz.frotz_lib
        # what FrotzEnv.reset does, without the copy that FrotzEnv keeps of every story it ever played
        self._lib.shutdown()
        self.raw = self._lib.setup(path.encode(), seed, self._rom, len(self._rom)).decode("cp1252", "replace")
        self._ram = (ctypes.c_ubyte * self._lib.getRAMSize())()
        self._read()
        return clean(self.raw)

    def send(self, command: str) -> str:
        """The story's answer to a command that `command_of` let through."""
        self.raw = self._lib.step(command.encode("ascii", "ignore") + b"\n").decode("cp1252", "replace")
        self._read()
        return clean(self.raw)

    def halted(self) -> bool:
        """Whether the interpreter has stopped."""
        return bool(self._lib.halted())

    def variable(self, number: int) -> int:
        """A global variable, signed."""
        at = self.story.globals_at + 2 * number
        value = self._ram[at] << 8 | self._ram[at + 1]
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
        """Those of the commands that change where the player is, the score or any object, one for each different outcome. first: of the
        variables that hold them."""
        here = self._frotz.get_state()
        known = set()
        for command in ("look", "xyzzyx"):  # what changes by itself, or by speaking at all, changes now too
            self.send(command)
            known.add(self._world(first))
            self._frotz.set_state(here)
        found = []
        for command in commands:
            self.send(command)
            if self._world(first) not in known:
                known.add(self._world(first))
                found.append(command)
            self._frotz.set_state(here)
        self._read()
        return found

    def _world(self, first: int) -> tuple[int, int, bytes]:
        return self.variable(first), self.variable(first + 1), bytes(memoryview(self._ram)[self.story.tree])

    def state(self) -> bytes:
        return pickle.dumps(self._frotz.get_state())

    def restore(self, state: bytes) -> None:
        self._frotz.set_state(pickle.loads(state))
        self._read()

    def _read(self) -> None:
        self._lib.getRAM(self._ram)


class MachineAdventure(Adventure):
    """Played by a `Machine` of its own."""

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self._machine = Machine()
        self._text = ""

    def command(self, action: str) -> str:
        return command_of(action)

    def inventory(self) -> str:
        if ended(self._text):
            return ""
        here = self._machine.state()
        text = self._machine.send("inventory")
        self._machine.restore(here)
        return text

    def save(self) -> bytes:
        return self._machine.state()

    def load(self, state: bytes) -> None:
        self._machine.restore(state)


def ended(text: str) -> bool:
    """Whether a story says that it has ended."""
    return ("***" in text or "estore" in text.lower()) and bool(ENDED.search(text))


def missing() -> list[str]:
    """What has to be installed before any story can be played, in words."""
    return [] if find_spec("jericho") else [NEED]


@lru_cache(maxsize=64)
def _story(path: str) -> tuple[bytes, zcode.Story]:
    content = Path(path).read_bytes()
    return content, zcode.Story(content)


def clean(text: str) -> str:
    """A story's answer without prompt, status line and blank lines."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    if "Score:" in text:
        lines = [line for line in lines if not STATUS.search(line)]
    while lines and (not lines[-1] or lines[-1].startswith(">")):
        lines.pop()
    if lines and lines[0].startswith(">"):
        lines[0] = lines[0][1:].strip()
    return "\n".join(line for line in lines if line)
