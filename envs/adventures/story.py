"""Any Z-machine story file by its path: room, score and moves are read from memory, and whether they are is tested at load."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from envs.adventures import machine, store
from envs.adventures.base import Scene, checked_split
from envs.adventures.machine import Machine, MachineAdventure, ended
from envs.base import Move, Task

FORMAT = 1
SAID = re.compile(r"(?:score is|scored)\s+(-?\d+)(?:\D{0,30}?of\D{0,20}?(\d+))?", re.IGNORECASE)
DIRECTIONS = (
    "north",
    "east",
    "south",
    "west",
    "northeast",
    "northwest",
    "southeast",
    "southwest",
    "up",
    "down",
    "in",
    "out",
)
VERBS = ("take", "open", "read", "move", "push", "turn on", "unlock", "enter", "climb", "drop")
NO_NOUNS = frozenset(
    {*DIRECTIONS, "the", "and", "all", "with", "for", "that", "this", "there", "here", "you", "into", "from"}
)
RULES = "You are playing a text adventure. Answer with one command at a time, such as: north, take lamp, open door, inventory, look."


@dataclass(frozen=True)
class Reading:
    """What the test at load found. first: the global variable that holds the room; score and moves follow it. most: the highest score,
    0 where the story does not tell. opening: its first text, from the first room's name on."""

    first: int
    most: int
    opening: str


class Story(MachineAdventure):
    """path: a story file (.z3, .z5, .z8, ...), or several; each is a task of the split "train". test: held-out ones.

    goal: the score that counts as full and ends the episode; by default the highest one, where the story tells it. walkthrough: commands
    of a good episode, where there is one file. verbs: tried on the words in view for `admissible`. The episode's seed is that of
    the story's random numbers.
    """

    description: ClassVar[str] = "any Z-machine story file, score read from memory (multi-turn, exact)"

    def __init__(
        self,
        path: str | Sequence[str],
        test: str | Sequence[str] = (),
        goal: int | None = None,
        walkthrough: Sequence[str] = (),
        verbs: Sequence[str] = VERBS,
        max_steps: int = 100,
        **shared: Any,
    ) -> None:
        super().__init__(max_steps=max_steps, **shared)
        self.files = {split: [Path(p) for p in _listed(given)] for split, given in (("train", path), ("test", test))}
        if not self.files["train"]:
            raise ValueError("story: give path, a story file")
        if goal is not None and goal < 1:
            raise ValueError(f"story: goal must be at least 1, not {goal}")
        if walkthrough and len(self.files["train"]) > 1:
            raise ValueError("story: a walkthrough belongs to one file; path names several")
        self.goal, self.walkthrough, self.verbs = goal, tuple(walkthrough), tuple(verbs)

    def ready(self) -> None:
        if missing := machine.missing():
            raise RuntimeError(f"story needs {missing[0]}")
        for files in self.files.values():
            for file in files:
                self._read(file)

    def splits(self) -> Sequence[str]:
        return ("train", "test") if self.files["test"] else ("train",)

    def tasks(self, split: str) -> Sequence[Task]:
        checked_split("story", split, self.splits())
        return self.games_of(len(self.files[split]), lambda i: self._game(self.files[split][i], split))

    def _game(self, file: Path, split: str) -> Task:
        reading = self._read(file)
        top = self.goal or reading.most
        if not top:
            raise ValueError(f"story: {file} does not tell its highest score; give goal")
        meta = {"path": str(file.resolve()), "first_global": reading.first, "top": top}
        task = Task(file.stem, [{"role": "user", "content": f"{RULES}\n\n{reading.opening}"}], meta=meta)
        if split != "train" or not self.walkthrough:
            return task
        self.begin(task, 0)
        texts = [self.play(command).text for command in self.walkthrough]
        moves = [Move(c, t) for c, t in zip(self.walkthrough, [*texts[:-1], ""], strict=True)]
        return Task(task.id, task.prompt, " , ".join(self.walkthrough), walkthrough=tuple(moves), meta=meta)

    # The engine

    def begin(self, task: Task, seed: int) -> Scene:
        self._first, self._top = task.meta["first_global"], task.meta["top"]
        return self._scene(self._machine.load(Path(task.meta["path"]), machine.seed_of(seed)))

    def play(self, command: str) -> Scene:
        return self._scene(self._machine.send(command))

    def commands(self) -> list[str]:
        """Directions, and the verbs on every word in view that the story knows."""
        here = self._machine.state()
        seen = self._text + " " + self._machine.send("look") + " " + self._machine.send("inventory")
        self._machine.restore(here)
        nouns = [w for w in dict.fromkeys(re.findall(r"[a-z]{3,}", seen.lower())) if self._machine.story.knows(w)]
        candidates = [*DIRECTIONS, *(f"{verb} {noun}" for noun in nouns if noun not in NO_NOUNS for verb in self.verbs)]
        return self._machine.effective(candidates, self._first)

    def _scene(self, text: str) -> Scene:
        self._text = text
        score = self._machine.variable(self._first + 1)
        room = self._machine.name(self._machine.variable(self._first))
        return Scene(text, score, room, over=ended(text) or self._machine.halted(), won=score >= self._top)

    def _read(self, file: Path) -> Reading:
        """The test at load, done once for each story and kept. Raises ValueError naming the file and what is wrong with it."""
        if not file.is_file():
            raise ValueError(f"story: there is no file {file}")
        content = file.read_bytes()
        kept = store.folder("story") / f"{store.key(FORMAT, content)}.json"
        if not kept.exists():
            try:
                reading = probe(self._machine, file)
            except ValueError as error:
                raise ValueError(f"story: {file}: {error}") from error
            store.write(kept, json.dumps(asdict(reading)).encode())
        return Reading(**json.loads(kept.read_text()))


def probe(game: Machine, file: Path) -> Reading:
    """Find room, score and moves among the first global variables of a story, as version 3 prescribes them (The Z-Machine Standards
    Document 1.1, section 8.2) and Inform's library keeps them: the room is an object named in the text, moves rise while one waits,
    and score and moves are what the story answers to "score". Raises ValueError if none of that is so."""
    opening = game.load(file, machine.seed_of(0))
    looked = game.send("look")
    first_ones = range(1 if game.story.version == 3 else 8)
    told = f"{opening}\n{looked}".lower()
    rooms = [i for i in first_ones if game.name(game.variable(i)) and game.name(game.variable(i)) in told]
    before = {i: game.variable(i + 2) for i in rooms}
    game.send("wait")
    rooms = [i for i in rooms if game.variable(i + 2) > before[i]]
    counts = {i: (game.variable(i + 1), game.variable(i + 2)) for i in rooms}
    answer = game.send("score")
    said = SAID.search(answer)
    numbers = {int(n) for n in re.findall(r"-?\d+", answer)}
    fit = [i for i, (score, moves) in counts.items() if said and int(said[1]) == score and numbers & {moves, moves + 1}]
    if not fit:
        raise ValueError(
            "room, score and moves were not found in its memory; only stories that keep them in successive global variables "
            f"(version 3, or Inform's library) and answer to 'score' can be graded (the answer was {answer[:120]!r})"
        )
    assert said is not None
    name = game.name(game.variable(fit[0]))
    lines = opening.split("\n")
    starts = [n for n, line in enumerate(lines) if line.lower().startswith(name)]
    return Reading(fit[0], int(said[2] or 0), "\n".join(lines[starts[0] :] if starts else lines))


def _listed(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else list(given)
