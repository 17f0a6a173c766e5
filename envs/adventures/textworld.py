"""TextWorld's generated games (Cote et al. 2018): the library makes them from a seed, Jericho plays what it compiled."""

from __future__ import annotations

import json
import math
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from envs.adventures import machine, store
from envs.adventures.base import Adventure, Scene, checked_games, checked_split
from envs.adventures.machine import MachineAdventure, ended
from envs.base import InfraError, Move, Task

SPLITS = ("train", "test")
KINDS: dict[str, dict[str, Any]] = {
    "quest": {"rooms": 4, "objects": 6, "quest_length": 4, "quest_breadth": 1},
    "coin_collector": {"level": 5},
    "treasure_hunter": {"level": 5},
    "cooking": {"recipe": 1, "take": 1, "go": 1, "open": True, "cook": False, "cut": False, "drop": False},
}
"""Kinds of game and the settings of each, with what they are by default (for the last three see TextWorld's `tw-make`)."""
FORMAT = 1
STATUS = re.compile(r"-= (?P<room>.+?) =-(?P<score>-?\d+)/\d+\s*$")
"""The status line of every game that TextWorld compiles; it is not written anew when the game ends."""
SCORED = re.compile(r"scored (-?\d+) out of")
RULES = "You are playing a text adventure. Answer with one command at a time, such as: go north, take key, open box, inventory, look."


class TextWorld(MachineAdventure):
    """kind, settings: which games, how hard; see `KINDS`. games: how many a split has, made when first asked for (seconds each) and kept.

    Half of all games are held out, by the text they open with; "cooking" also has held-out food. slack: the step limit as a multiple of
    the walkthrough, at most max_steps.
    """

    description: ClassVar[str] = "TextWorld's generated games, difficulty by configuration (multi-turn, exact)"

    def __init__(
        self,
        kind: str = "treasure_hunter",
        settings: Mapping[str, Any] | None = None,
        games: Mapping[str, int] | None = None,
        slack: float = 3.0,
        max_steps: int = 50,
        **shared: Any,
    ) -> None:
        super().__init__(max_steps=max_steps, **shared)
        if kind not in KINDS:
            raise ValueError(f"textworld: kind is one of {', '.join(KINDS)}, not {kind!r}")
        unknown = set(settings or {}) - set(KINDS[kind])
        if unknown:
            raise ValueError(f"textworld: {kind} has no setting {min(unknown)!r}; it takes {', '.join(KINDS[kind])}")
        self.games = checked_games("textworld", games, {"train": 100, "test": 20}, slack)
        self.kind, self.settings, self.slack = kind, KINDS[kind] | dict(settings or {}), slack
        self._score, self._room = 0.0, ""
        self._library: Any = None

    def ready(self) -> None:
        missing = machine.missing()
        if find_spec("textworld") is None:
            missing.append("textworld (pip install textworld==1.7.0)")
        if missing:
            raise RuntimeError(f"textworld needs {' and '.join(missing)}")

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Sequence[Task]:
        checked_split("textworld", split, SPLITS)
        return self.games_of(self.games[split], lambda i: self._game(split, i))

    # The engine

    def begin(self, task: Task, seed: int) -> Scene:
        story = store.folder("textworld") / f"{task.meta['key']}.z8"
        if not story.exists():  # another machine's task, or a cleaned cache
            self._made(task.meta["seed"], task.meta["held_out"], task.meta["key"])
        self._score, self._room, self._top = 0.0, "", task.meta["top"]
        if self.admissible:
            self._library = _watched(story)
        return self._scene(self._machine.load(story, machine.seed_of(seed)))

    def play(self, command: str) -> Scene:
        if self._library is not None:
            self._library.step(command)
        return self._scene(self._machine.send(command))

    def commands(self) -> list[str]:
        """By the library's own model of the game, which plays along (slowly)."""
        return list(self._library.state.admissible_commands)

    def save(self) -> bytes:
        return b"" if self.admissible else super().save()

    def load(self, state: bytes) -> None:
        if self.admissible:
            Adventure.load(self, state)  # the library's model goes there step by step
        else:
            super().load(state)

    def _scene(self, text: str) -> Scene:
        self._text = text
        status = STATUS.search(self._machine.raw)
        if status:
            self._room, self._score = status["room"].lower(), float(status["score"])
        over = ended(text) or self._machine.halted()
        if over and (scored := SCORED.search(text)):
            self._score = float(scored[1])
        return Scene(text, self._score, self._room, over=over, won=over and self._score >= self._top)

    # Making games

    def _game(self, split: str, index: int) -> Task:
        held_out = split == "test"
        for attempt in range(64):
            seed = 1000 + 64 * index + attempt  # the two splits share the seeds, so what one refuses the other takes
            made = self._made(seed, held_out)
            if made["held_out"] == held_out and len(made["walkthrough"]) <= self.max_turns:
                break
        else:
            raise ValueError(f"textworld: no {split} game {index} can be solved in max_steps {self.max_turns}")
        texts = [*made["texts"], ""]
        moves = tuple(Move(c, t) for c, t in zip(made["walkthrough"], texts, strict=True))
        meta = {key: made[key] for key in ("key", "top")} | {"seed": seed, "held_out": held_out}
        meta["limit"] = math.ceil(self.slack * len(moves))
        prompt = [{"role": "user", "content": f"{RULES}\n\n{made['opening']}"}]
        return Task(f"{split}-{index}", prompt, " , ".join(made["walkthrough"]), walkthrough=moves, meta=meta)

    def _made(self, seed: int, held_out: bool, key: str = "") -> dict[str, Any]:
        """What is known of a game, made and proven once: {key, held_out, opening, walkthrough, texts, top}. The story and the library's
        own description lie beside it. held_out: draw the food of "cooking" from the held-out share. key: the name it must have."""
        food = {"split": "test" if held_out else "train", "recipe_seed": seed} if self.kind == "cooking" else {}
        settings = self.settings | food
        name = store.key(FORMAT, self.kind, sorted(settings.items()), seed)
        if key and key != name:
            raise ValueError(f"textworld: the game {key} was made with other arguments")
        kept, story = (store.folder("textworld") / f"{name}.{ending}" for ending in ("proof", "z8"))
        if not kept.exists() or not story.exists():
            with tempfile.TemporaryDirectory() as aside:
                made, compiled = _generate(self.kind, settings, seed, Path(aside))
                store.write(story.with_suffix(".json"), compiled.with_suffix(".json").read_bytes())
                store.write(story, compiled.read_bytes())
            made["key"] = name
            self._prove(made, story)
            store.write(kept, json.dumps(made).encode())
        return json.loads(kept.read_text())

    def _prove(self, made: dict[str, Any], story: Path) -> None:
        """Play the walkthrough; InfraError unless it earns the full score. Adds texts, opening and held_out."""
        self._library, self._score, self._top = None, 0.0, made["top"]
        opening = self._machine.load(story, machine.seed_of(0))
        scenes = [self.play(command) for command in made["walkthrough"]]
        if not scenes or scenes[-1].score != made["top"]:
            raise InfraError(f"textworld: the walkthrough of {story} does not earn its {made['top']} points")
        lines = opening.split("\n")
        starts = [i for i, line in enumerate(lines) if line.startswith("-= ")]
        made["opening"] = "\n".join([made["objective"], *lines[starts[0] if starts else 0 :]])
        made["held_out"] = bool(store.stable_hash(made["opening"]) % 2)
        made["texts"] = [scene.text for scene in scenes[:-1]]


def _watched(story: Path) -> Any:
    """The library's own player of a game, which knows its admissible commands."""
    import textworld

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Jericho does not know this story
        player = textworld.start(str(story), textworld.EnvInfos(admissible_commands=True))
    player.reset()
    return player


def _generate(kind: str, settings: Mapping[str, Any], seed: int, folder: Path) -> tuple[dict[str, Any], Path]:
    """A game made by the library and compiled into `folder`: what it says of itself, and the story file."""
    from textworld import GameOptions
    from textworld.challenges.tw_coin_collector import coin_collector
    from textworld.challenges.tw_cooking import cooking
    from textworld.challenges.tw_treasure_hunter import treasure_hunter
    from textworld.generator import compile_game, make_game

    options = GameOptions()
    options.seeds, options.path, options.file_ext = seed, str(folder / "game.z8"), ".z8"
    if kind == "quest":
        options.nb_rooms, options.nb_objects = settings["rooms"], settings["objects"]
        options.quest_length, options.quest_breadth = settings["quest_length"], settings["quest_breadth"]
        game = make_game(options)
    else:
        maker = {"coin_collector": coin_collector, "treasure_hunter": treasure_hunter, "cooking": cooking}[kind]
        game = maker.make(settings, options)
    story = Path(compile_game(game, options))
    about = {
        "top": game.max_score,
        "walkthrough": list(game.metadata.get("walkthrough") or game.walkthrough),
        "objective": game.objective,
    }
    return about, story
