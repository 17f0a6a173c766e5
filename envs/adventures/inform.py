"""Posterior's own adventures: worlds drawn from a seed, compiled by Inform 6, played by Jericho, each proven by its walkthrough."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from envs.adventures import inform_source, machine, store, worlds
from envs.adventures.base import Scene, checked_split
from envs.adventures.machine import MachineAdventure
from envs.base import InfraError, Move, Prompt, Task

SPLITS = ("train", "test")
LIBRARY = Path("/usr/share/inform6/library")
HELD_OUT = 8
"""One world in so many is held out, by what it tells before the first move."""
FORMAT = 2
"""Of what is kept on disk beside a game; raise it when that changes."""
RULES = (
    "You are playing a text adventure. Answer with one command at a time, such as: north, take lamp, turn on lamp, open chest, "
    "unlock red door, inventory, look."
)


class Inform(MachineAdventure):
    """A few rooms, things that score, locked doors, closed chests, the dark; solved when every point is earned.

    style: "terse" (a few lower-case words an answer, all of them in `words()`) or "prose" (sentences, and a chat message that explains).
    difficulty: see `worlds.Difficulty`. games: how many a split has; every one is drawn, compiled and solved when it is first asked for.
    slack: the step limit as a multiple of the walkthrough, at most max_steps. thing_points, room_points: the game's own score.
    Worlds that open alike belong to the same split.
    """

    description: ClassVar[str] = "generated text adventures: keys, chests, dark rooms, treasures (multi-turn, exact)"

    def __init__(
        self,
        difficulty: Mapping[str, Any] | None = None,
        style: str = "terse",
        games: Mapping[str, int] | None = None,
        slack: float = 3.0,
        thing_points: int = 4,
        room_points: int = 2,
        max_steps: int = 50,
        **shared: Any,
    ) -> None:
        super().__init__(max_steps=max_steps, **shared)
        try:
            self.difficulty = worlds.Difficulty(**(difficulty or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"inform: difficulty: {error}") from error
        self.games = {"train": 1000, "test": 200} | dict(games or {})
        if style not in inform_source.STYLES:
            raise ValueError(f"inform: style is {' or '.join(inform_source.STYLES)}, not {style!r}")
        if set(self.games) != set(SPLITS) or min(self.games.values()) < 1:
            raise ValueError(
                f"inform: games gives the number of {' and '.join(SPLITS)} games, at least 1, not {games!r}"
            )
        if not slack >= 1.0 or min(thing_points, room_points) < 1:
            raise ValueError("inform: slack, thing_points and room_points must be at least 1")
        self.style, self.slack = style, slack
        self.thing_points, self.room_points = thing_points, room_points
        self.refusal = "no" if style == "terse" else MachineAdventure.refusal
        self._first, self._top = 0, 0
        self._candidates: list[str] = []
        self._words = frozenset(self.words())

    def ready(self) -> None:
        missing = []
        if shutil.which("inform6") is None or not LIBRARY.is_dir():
            missing.append("inform6 (apt-get install inform6-compiler inform6-library)")
        missing += machine.missing()
        if missing:
            raise RuntimeError(f"inform needs {' and '.join(missing)}")

    def splits(self) -> Sequence[str]:
        return SPLITS

    def words(self) -> Sequence[str]:
        if self.style != "terse":
            return ()
        names = (*worlds.ROOMS, *worlds.TREASURES, *worlds.CHESTS, *worlds.COLOURS)
        return (*inform_source.TERSE_WORDS, *names, *(("commands", ":", ",") if self.admissible else ()))

    def tasks(self, split: str) -> Sequence[Task]:
        checked_split("inform", split, SPLITS)
        return self.games_of(self.games[split], lambda i: self._game(split, i))

    def world(self, split: str, index: int) -> tuple[worlds.World, list[worlds.Stage]]:
        """The index-th world of a split, and its plan."""
        held_out = split != "train"
        for attempt in range(10_000):
            rng = np.random.default_rng([0xAD, held_out, index, attempt])
            world = worlds.draw(self.difficulty, rng)
            if (store.stable_hash(world.opening()) % HELD_OUT == 0) != held_out:
                continue
            moves = worlds.plan(world)
            if len(moves) <= self.max_turns:
                return world, moves
        raise ValueError(f"inform: no {split} world with a walkthrough of at most max_steps {self.max_turns} was found")

    # The engine

    def begin(self, task: Task, seed: int) -> Scene:
        meta = task.meta
        story = store.folder("inform") / f"{meta['key']}.z5"
        if not story.exists():  # another machine's task, or a cleaned cache
            world, _ = self.world(*meta["world"])
            story = self._compiled(self._source(world))
            if story.stem != meta["key"]:
                raise ValueError(f"inform: task {task.id} was made with other arguments or another compiler")
        text = self._machine.load(story, machine.seed_of(seed))
        self._first, self._top, self._candidates = meta["first_global"], meta["top"], meta["candidates"]
        return self._scene(text)

    def play(self, command: str) -> Scene:
        return self._scene(self._machine.send(command))

    def commands(self) -> list[str]:
        return self._machine.effective(self._candidates, self._first)

    def inventory(self) -> str:
        return " , ".join(self._machine.inside("(self object)"))

    def _scene(self, text: str) -> Scene:
        score = self._machine.variable(self._first + 1)
        won = score >= self._top
        if self.style == "terse":
            text = "won" if won else self._few_words(text)
        return Scene(text, score, self._machine.name(self._machine.variable(self._first)), over=won, won=won)

    def _few_words(self, text: str) -> str:
        """The answer without colons; "no" for what the parser asks back, which holds other words."""
        text = text.replace(":", "")
        return text if self._words.issuperset(text.split()) else self.refusal

    # Making games

    def _source(self, world: worlds.World) -> str:
        return inform_source.source(world, self.style, self.thing_points, self.room_points)

    def _game(self, split: str, index: int) -> Task:
        world, stages = self.world(split, index)
        story = self._compiled(self._source(world))
        proof = self._proven(story, world, stages)
        opening, *answers = proof["texts"]
        moves = tuple(
            Move(stage.command, "" if stage is stages[-1] else text)
            for stage, text in zip(stages, answers, strict=True)
        )
        meta = {
            "key": story.stem,
            "world": (split, index),
            "first_global": proof["first_global"],
            "top": inform_source.points(world, self.thing_points, self.room_points),
            "limit": math.ceil(self.slack * len(stages)),
            "candidates": _candidates(world),
        }
        answer = " , ".join(move.action for move in moves)
        return Task(f"{split}-{index}", self._prompt(world, opening), answer, walkthrough=moves, meta=meta)

    def _prompt(self, world: worlds.World, opening: str) -> Prompt:
        """What is to be found and visited, and what the game says first."""
        if self.style == "terse":
            found = ["find", *world.treasures] if world.treasures else []
            visited = ["visit", *world.scored] if world.scored else []
            return " ".join([*found, *visited, opening])
        goals = [f"find the {thing}" for thing in world.treasures] + [f"visit the {room}" for room in world.scored]
        return [{"role": "user", "content": f"{RULES}\nYour tasks: {', '.join(goals)}.\n\n{opening}"}]

    def _compiled(self, source: str) -> Path:
        """The story file of a source text, compiled once."""
        story = store.folder("inform") / f"{store.key(FORMAT, source, _toolchain())}.z5"
        if not story.exists():
            with tempfile.TemporaryDirectory() as aside:
                text, made = Path(aside) / "game.inf", Path(aside) / "game.z5"
                text.write_text(source)
                line = ["inform6", "-w", "-v5", f"+include_path={LIBRARY}", str(text), str(made)]
                done = subprocess.run(line, capture_output=True, text=True, timeout=60)
                if done.returncode or not made.exists():
                    raise InfraError(f"inform6 did not compile a generated game: {done.stdout.strip()[-300:]}")
                store.write(story, made.read_bytes())
        return story

    def _proven(self, story: Path, world: worlds.World, stages: Sequence[worlds.Stage]) -> dict[str, Any]:
        """Play the plan once, and keep what the game said: {first_global, texts}. Room, score and moves are read from memory after every
        command and must be what the plan says; InfraError if no place in memory holds them."""
        kept = story.with_suffix(".json")
        if kept.exists():
            return json.loads(kept.read_text())
        game = self._machine
        texts = [game.load(story, machine.seed_of(0))]
        fits = set(range(4))  # where the three variables may begin, which depends on the compiler's version
        for turn, stage in enumerate(stages, 1):
            answer = game.send(stage.command)
            texts.append(self._few_words(answer) if self.style == "terse" else answer)
            room = "(darkness object)" if stage.dark else stage.room
            score = stage.things * self.thing_points + stage.rooms * self.room_points
            fits = {
                i
                for i in fits
                if game.name(game.variable(i)) == room and (game.variable(i + 1), game.variable(i + 2)) == (score, turn)
            }
            if not fits:
                raise InfraError(
                    f"inform: after {stage.command!r} (move {turn}) the game {story.name} is not where the plan says: {texts[-1]!r}"
                )
        proof = {"first_global": min(fits), "texts": texts}
        store.write(kept, json.dumps(proof).encode())
        return proof


def _candidates(world: worlds.World) -> list[str]:
    """Every command that is ever of use in a world."""
    things = list(world.places)
    lamp = [f"turn on {worlds.LAMP}"] if worlds.LAMP in things else []
    doors = [f"unlock {colour} door" for colour in world.doors.values()]
    return [*worlds.WAYS, *(f"take {t}" for t in things), *lamp, *(f"open {c}" for c in world.chests), *doors]


@lru_cache(maxsize=1)
def _toolchain() -> str:
    """Which compiler and library: a game is compiled anew when they change."""
    compiler = shutil.which("inform6")
    if compiler is None:
        raise RuntimeError("inform needs inform6 (apt-get install inform6-compiler inform6-library)")
    made = [f"{path.stat().st_size} {path.stat().st_mtime_ns}" for path in (Path(compiler), LIBRARY / "version.h")]
    return " ".join(made)
