"""TextWorld-Express (Jansen and Cote 2023): eight kinds of generated games, simulated fast in Java."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any, ClassVar

from envs.adventures import store
from envs.adventures.base import Adventure, Scene, checked_games, checked_split
from envs.base import InfraError, Move, Task

SPLITS = ("train", "test")
KINDS = ("cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")
FORMAT = 1
RULES = (
    "You are playing a text game. Answer with one command at a time, such as: move north, take coin, open fridge, inventory, "
    "look around."
)


class TextWorldExpress(Adventure):
    """kind: of KINDS. settings: of the kind, as TextWorld-Express names them (numLocations, includeDoors, ...).

    games: how many a split has. The splits are the library's own folds; of the openings that both could have, half belong to each.
    slack: the step limit as a multiple of the gold path, at most max_steps. All instances in a process share one Java machine.
    """

    description: ClassVar[str] = "TextWorld-Express: eight kinds of generated games, needs Java (multi-turn, exact)"

    def __init__(
        self,
        kind: str = "coin",
        settings: Mapping[str, int] | None = None,
        games: Mapping[str, int] | None = None,
        slack: float = 3.0,
        max_steps: int = 50,
        **shared: Any,
    ) -> None:
        super().__init__(max_steps=max_steps, **shared)
        if kind not in KINDS:
            raise ValueError(f"textworld_express: kind is one of {', '.join(KINDS)}, not {kind!r}")
        self.games = checked_games("textworld_express", games, {"train": 300, "test": 100}, slack)
        self.kind, self.slack = kind, slack
        self.settings = ",".join(f"{name}={value}" for name, value in sorted((settings or {}).items()))
        self._server: Any = None
        self._seen: dict[str, tuple[list[Task], int]] = {split: ([], 0) for split in SPLITS}
        self._last: dict[str, Any] = {}

    def ready(self) -> None:
        missing = []
        if shutil.which("java") is None:
            missing.append("Java (apt-get install openjdk-17-jre-headless)")
        if find_spec("textworld_express") is None:
            missing.append("textworld-express (pip install textworld-express==1.1.0)")
        if missing:
            raise RuntimeError(f"textworld_express needs {' and '.join(missing)}")
        self._ask("getTaskDescription")

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Sequence[Task]:
        checked_split("textworld_express", split, SPLITS)
        return self.games_of(self.games[split], lambda i: self._game(split, i))

    # The engine

    def begin(self, task: Task, seed: int) -> Scene:
        return self._scene(self._ask("generateNewGameJSON", task.meta["seed"], task.meta["fold"], False))

    def play(self, command: str) -> Scene:
        return self._scene(self._ask("stepJSON", command))

    def commands(self) -> list[str]:
        return sorted(self._last["validActions"])

    def inventory(self) -> str:
        return self._last["inventory"]

    def _scene(self, answer: str) -> Scene:
        told = self._last = json.loads(answer)
        won = bool(told["tasksuccess"]) or told["score"] >= 1.0
        return Scene(told["observation"].strip(), told["score"], over=won or bool(told["taskfailure"]), won=won)

    def _ask(self, method: str, *args: Any) -> Any:
        """A call of this instance's simulator, which is made at the first one. InfraError if Java died; ValueError for bad settings."""
        from py4j.protocol import Py4JError

        try:
            if self._server is None:
                server = _java().jvm.textworldexpress.runtime.PythonInterface()
                if fault := server.load(self.kind, self.settings):
                    raise ValueError(f"textworld_express: {fault}")
                self._server = server
            return getattr(self._server, method)(*args)
        except (Py4JError, OSError) as error:
            self._server = None
            _forget()
            raise InfraError(f"textworld_express: its Java machine failed: {error}") from error

    # Games

    def _game(self, split: str, index: int) -> Task:
        """The index-th game of a fold whose opening belongs to the split (half of all openings to each) and that max_steps allow."""
        found, tried = self._seen[split]
        seeds = list(self._ask("getSeedsTrain" if split == "train" else "getSeedsTest"))
        while len(found) <= index and tried < len(seeds):
            scene = self._scene(self._ask("generateNewGameJSON", seeds[tried], split, False))
            opening = f"{self._ask('getTaskDescription')}\n{scene.text}"
            if (store.stable_hash(opening) % 2 == 1) == (split == "test"):
                moves = self._solved(split, seeds[tried])
                if len(moves) <= self.max_turns:
                    found.append(self._task_of(f"{split}-{len(found)}", split, seeds[tried], opening, moves))
            tried += 1
        self._seen[split] = found, tried
        if len(found) <= index:
            raise ValueError(
                f"textworld_express: {self.kind} has only {len(found)} {split} games that max_steps allow; give games fewer"
            )
        return found[index]

    def _task_of(self, name: str, split: str, seed: int, opening: str, moves: tuple[Move, ...]) -> Task:
        meta = {"seed": seed, "fold": split, "top": 1.0, "limit": math.ceil(self.slack * len(moves))}
        prompt = [{"role": "user", "content": f"{RULES}\n\n{opening}"}]
        return Task(name, prompt, " , ".join(move.action for move in moves), walkthrough=moves, meta=meta)

    def _solved(self, split: str, seed: int) -> tuple[Move, ...]:
        """The library's gold path, played to the end. That of "coin" and "twc" holds a random walk of the library's own: the first one
        that is made is kept. InfraError if it does not solve the game."""
        kept = store.folder("textworld_express") / f"{store.key(FORMAT, self.kind, self.settings, split, seed)}.json"
        if not kept.exists():
            self._ask("generateNewGameJSON", seed, split, True)
            gold = [str(command) for command in self._ask("getGoldActionSequence")]
            scenes = [self._scene(self._ask("generateNewGameJSON", seed, split, False))]
            while not scenes[-1].over and len(scenes) <= len(gold):  # some gold paths go on after the end
                scenes.append(self.play(gold[len(scenes) - 1]))
            if not scenes[-1].won:
                raise InfraError(f"textworld_express: the gold path of {self.kind} {seed} ({split}) does not solve it")
            texts = [*(scene.text for scene in scenes[1:-1]), ""]
            store.write(kept, json.dumps(list(zip(gold, texts, strict=False))).encode())
        return tuple(Move(command, text) for command, text in json.loads(kept.read_text()))


_gateway: Any = None
_starting = Lock()


def _java() -> Any:
    """The process's Java machine; it ends with the process."""
    global _gateway
    with _starting:
        if _gateway is None:
            from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
            from textworld_express.constants import BASEPATH, JAR_PATH

            port, token = launch_gateway(classpath=JAR_PATH, die_on_exit=True, cwd=BASEPATH, enable_auth=True)
            _gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token, auto_field=True))
    return _gateway


def _forget() -> None:
    global _gateway
    _gateway = None
