"""What all text adventures share: the record of an episode, what it earns, when it is cut, and how its texts are shown."""

from __future__ import annotations

import pickle
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from envs.base import Env, Grade, Observation, Prompt, Step, Task

COMMAND_LIMIT = 120
"""Characters of a command that reach a game."""
CUT = " [...]"
"""Ends an observation that was longer than `observation_chars`."""


@dataclass(frozen=True)
class Scene:
    """What an engine tells after a command. text: for the player. score: so far, as the game counts. room: where the player is, "" where
    the engine does not say. over: the game has ended, won or lost."""

    text: str
    score: float
    room: str = ""
    over: bool = False
    won: bool = False


@dataclass
class Record:
    """The course of one episode."""

    commands: list[str] = field(default_factory=list)
    score: float = 0.0
    items: set[str] = field(default_factory=set)
    rooms: set[str] = field(default_factory=set)
    won: bool = False
    earned: float = 0.0
    chars: int = 0
    cut: int = 0
    over: bool = False


@dataclass(frozen=True)
class Rewards:
    """What an episode is to earn; the weights are divided by their sum, so that all of it together is 1.

    score: the game's own score, as a share of the highest. win: the game's own good end. items: name -> weight, for holding a thing once.
    rooms: name -> weight, for having been there; what a game does not have cannot be earned in it. pay: each gain at the step that makes
    it, or all at the end.
    """

    score: float = 1.0
    win: float = 0.0
    items: Mapping[str, float] = field(default_factory=dict)
    rooms: Mapping[str, float] = field(default_factory=dict)
    pay: Literal["step", "end"] = "step"

    def __post_init__(self) -> None:
        weights = [self.score, self.win, *self.items.values(), *self.rooms.values()]
        fair = all(isinstance(w, int | float) and not isinstance(w, bool) and 0.0 <= w < 1e6 for w in weights)
        if not fair or not sum(weights):
            raise ValueError(f"rewards: the weights must be numbers of at least 0 and not all 0, not {weights}")
        if self.pay not in ("step", "end"):
            raise ValueError(f"rewards: pay is 'step' or 'end', not {self.pay!r}")

    def value(self, record: Record, top: float) -> float:
        """In [-1, 1]: the weighted share of all there is to earn. top: the score that counts as full."""
        share = max(-1.0, min(1.0, record.score / top))
        if not (self.win or self.items or self.rooms):
            return round(share, 9)
        got = self.score * share + self.win * record.won
        got += sum(w for name, w in self.items.items() if name in record.items)
        got += sum(w for name, w in self.rooms.items() if name in record.rooms)
        total = self.score + self.win + sum(self.items.values()) + sum(self.rooms.values())
        return round(got / total, 9)


def rewards_of(given: Mapping[str, Any] | None) -> Rewards:
    """Rewards from an environment's argument. Raises ValueError for an unknown part."""
    parts: dict[str, Any] = dict(given or {})
    if "score" not in parts and any(parts.get(part) for part in ("win", "items", "rooms")):
        parts["score"] = 0.0  # what is named replaces the score, unless it is named too
    for part in ("items", "rooms"):
        if part in parts:
            parts[part] = {str(name).lower(): weight for name, weight in dict(parts[part]).items()}
    try:
        return Rewards(**parts)
    except TypeError as error:
        raise ValueError(f"rewards has the parts score, win, items, rooms and pay, not {given!r} ({error})") from error


class Adventure(Env):
    """rewards: see `Rewards`; by default the game's score. max_steps: commands before an episode is cut.

    admissible: tell with every observation which commands would change something. observation_chars: longest observation; a longer one
    ends with a mark, and the grade counts it. context_chars: an episode whose prompt, actions and observations reach so many characters
    is cut, as at the step limit; 0 sets no bound. An episode that is cut is `truncated`, and its grade says why.
    """

    def __init__(
        self,
        rewards: Mapping[str, Any] | None = None,
        max_steps: int = 50,
        admissible: bool = False,
        observation_chars: int = 1000,
        context_chars: int = 0,
    ) -> None:
        if max_steps < 1 or observation_chars < 20 or context_chars < 0:
            raise ValueError(
                "an adventure needs max_steps of at least 1, observation_chars of at least 20 and context_chars of at least 0, not "
                f"{max_steps}, {observation_chars} and {context_chars}"
            )
        self.rewards = rewards_of(rewards)
        self.max_turns = max_steps
        self.admissible, self.observation_chars, self.context_chars = admissible, observation_chars, context_chars
        self._task: Task | None = None
        self._seed = 0
        self._record = Record()

    # What an engine writes

    @abstractmethod
    def begin(self, task: Task, seed: int) -> Scene:
        """Start the task's game anew."""

    @abstractmethod
    def play(self, command: str) -> Scene:
        """Give the game one command."""

    def command(self, action: str) -> str:
        """The command in a model's action, its first line that is not blank; "" if there is none, which costs the step and does nothing."""
        return first_line(action)

    @abstractmethod
    def commands(self) -> list[str]:
        """Commands that would change something now."""

    @abstractmethod
    def inventory(self) -> str:
        """What the player holds, as text that names every thing."""

    def save(self) -> bytes:
        """The engine's state. By default nothing: the commands so far lead there again."""
        return b""

    def load(self, state: bytes) -> None:
        """Return to a state of `save` in the episode that has been restored; its game has been started."""
        assert self._task is not None
        self.begin(self._task, self._seed)
        for command in self._record.commands:
            if command:
                self.play(command)

    def top(self, task: Task) -> float:
        """The score that counts as full."""
        return float(task.meta["top"])

    def limit(self, task: Task) -> int:
        """Commands before this task's episode is cut."""
        return min(self.max_turns, int(task.meta.get("limit", self.max_turns)))

    def games_of(self, count: int, make: Callable[[int], Task]) -> Games:
        """A split of so many games, whose prompts and walkthroughs read as an episode will."""
        return Games(count, lambda i: self._as_read(make(i)))

    def _as_read(self, task: Task) -> Task:
        moves = task.walkthrough or ()
        if not self.admissible:
            return replace(
                task, walkthrough=tuple(replace(m, observation=self._shown(m.observation)) for m in moves) or None
            )
        self.begin(task, 0)
        if isinstance(task.prompt, str):
            prompt: Prompt = listed(task.prompt, self.commands())
        else:
            *before, last = task.prompt
            prompt = [*before, {**last, "content": listed(last["content"], self.commands())}]
        told = []
        for move in moves:
            scene = self.play(move.action)
            told.append(replace(move, observation="" if scene.over else self._shown(scene.text, self.commands())))
        return replace(task, prompt=prompt, walkthrough=tuple(told) or None)

    # The environment

    async def reset(self, task: Task, seed: int) -> Observation:
        self._task, self._seed, self._record = task, seed, Record()
        scene = self.begin(task, seed)
        prompt = task.prompt if isinstance(task.prompt, str) else "".join(m["content"] for m in task.prompt)
        self._record.chars = len(prompt)
        self._record.score = scene.score
        return Observation()

    async def step(self, action: str) -> Step:
        """One command. An action that holds none, or one that would reach past the game, does nothing and costs the step."""
        task, record = self._task, self._record
        if task is None or record.over:
            raise RuntimeError("step() before reset()" if task is None else "step() after the episode's end")
        command = self.command(action)
        record.commands.append(command)
        scene = self.play(command) if command else Scene(self.refusal, record.score)
        self._note(scene)
        value = self.rewards.value(record, self.top(task))
        record.cut += len(scene.text) > self.observation_chars
        info = {"admissible": self.commands()} if self.admissible and not scene.over else {}
        observation = self._shown(scene.text, info.get("admissible"))
        record.chars += len(action) + len(observation)
        why = ""
        if value < 1.0 and not scene.over:
            if len(record.commands) >= self.limit(task):
                why = f"cut after {len(record.commands)} steps"
            elif self.context_chars and record.chars >= self.context_chars:
                why = f"cut at {record.chars} characters of context"
        record.over = bool(value >= 1.0 or scene.over or why)
        paid = value if self.rewards.pay == "end" and record.over else 0.0
        if self.rewards.pay == "step":
            paid, record.earned = value - record.earned, value
        grade = self._grade(value, why) if record.over else None
        return Step(observation, paid, terminated=record.over and not why, truncated=bool(why), info=info, grade=grade)

    refusal = "That is not possible here."
    """Answers an action without a command that may be played."""

    def snapshot(self) -> bytes:
        """The running episode: game, record and task. Bytes for `restore` of this class only (they are unpickled)."""
        if self._task is None:
            raise RuntimeError("snapshot() before reset()")
        return pickle.dumps((self._task, self._seed, self._record, self.save()))

    def restore(self, state: bytes) -> None:
        """Go on from a snapshot, also one that another instance took."""
        task, seed, record, engine = pickle.loads(state)
        if self._task is None or (self._task.id, self._task.meta, self._seed) != (task.id, task.meta, seed):
            self.begin(task, seed)
        self._task, self._seed, self._record = task, seed, record
        self.load(engine)

    def _note(self, scene: Scene) -> None:
        record = self._record
        record.score, record.won = scene.score, record.won or scene.won
        if scene.room in self.rewards.rooms:
            record.rooms.add(scene.room)
        if len(record.items) < len(self.rewards.items):
            held = f" {' '.join(re.findall(r'[a-z0-9-]+', self.inventory().lower()))} "
            record.items |= {name for name in self.rewards.items if f" {name} " in held}

    def _shown(self, text: str, commands: Sequence[str] | None = None) -> str:
        """What the model reads of an answer: cut, with a mark, and followed by the admissible commands where they are told."""
        if len(text) > self.observation_chars:
            text = text[: self.observation_chars - len(CUT)] + CUT
        return text if commands is None else listed(text, commands)

    def _grade(self, value: float, why: str) -> Grade:
        record = self._record
        parts = {"score": float(record.score), "steps": float(len(record.commands)), "won": float(record.won)}
        parts |= {f"item {name}": float(name in record.items) for name in self.rewards.items}
        parts |= {f"room {name}": float(name in record.rooms) for name in self.rewards.rooms}
        if record.cut:
            parts["observations cut"] = float(record.cut)
        return Grade(value, parts, note=why)


def first_line(text: str) -> str:
    """The first line that is not blank, printable characters only, at most COMMAND_LIMIT of them."""
    line = text[: 8 * COMMAND_LIMIT].strip()
    if not (line.isascii() and line.isprintable()):
        line = line.splitlines()[0] if line else ""
        line = "".join(c if c.isprintable() and c.isascii() else " " for c in line)
    return line.strip(" >")[:COMMAND_LIMIT]


class Games(Sequence[Task]):
    """A split of so many games, each made when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Task]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)


def listed(text: str, commands: Sequence[str]) -> str:
    """A text with the line that lists admissible commands."""
    return f"{text}\ncommands : {' , '.join(commands)}"


def checked_split(name: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; there are: {', '.join(splits)}")


def checked_games(name: str, games: Mapping[str, int] | None, usual: Mapping[str, int], slack: float) -> dict[str, int]:
    """How many games each split has. Raises ValueError for a split that is none, fewer than one game, or a step limit below the
    walkthrough."""
    out = {**usual, **(games or {})}
    if set(out) != set(usual) or min(out.values()) < 1 or not slack >= 1.0:
        raise ValueError(
            f"{name}: games gives the number of {' and '.join(usual)} games, at least 1, and slack is at least 1"
        )
    return out
