"""Small worlds to explore: rooms on a grid, locked doors and their keys, closed chests, dark rooms and a lamp, treasures.

    attic ── den          hall: chest (closed, holds the red key), lamp
      │                   attic: behind the red door
    hall ── cellar        den: dark, holds the ruby

A world is drawn so that it can be solved (a key never lies behind its own door, the lamp never in the dark), and `plan` solves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

ROOMS = (
    *("attic", "bridge", "cave", "cellar", "chapel", "court", "crypt", "den", "forge", "garden", "hall", "kitchen", "library"),
    *("loft", "lounge", "mine", "nook", "office", "parlour", "pantry", "porch", "shed", "stable", "study", "tower", "vault"),
)  # fmt: skip
TREASURES = (
    *("amber", "bell", "coin", "crown", "cup", "dagger", "flute", "gem", "goblet", "harp", "idol", "mask", "medal", "opal"),
    *("pearl", "ring", "ruby", "scroll", "shield", "statue", "sword", "vase"),
)  # fmt: skip
CHESTS = ("box", "chest", "crate", "basket", "drawer", "sack")
COLOURS = ("red", "blue", "green", "black", "white", "brass")
LAMP = "lamp"
WAYS: dict[str, tuple[int, int]] = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}


SIZES = ("rooms", "treasures", "doors", "chests", "dark", "scored_rooms", "loops")


@dataclass(frozen=True)
class Difficulty:
    """How many of each, or [least, most] of each, drawn anew for every world.

    rooms: in all, the first one included. treasures: things that score. doors: locked ones, a key for each. chests: closed ones, each
    with a key or a treasure inside. dark: rooms where nothing is seen without the lamp. scored_rooms: rooms that score when first seen.
    loops: further corridors between neighbours.
    """

    rooms: int | Sequence[int] = 6
    treasures: int | Sequence[int] = 2
    doors: int | Sequence[int] = 1
    chests: int | Sequence[int] = 1
    dark: int | Sequence[int] = 0
    scored_rooms: int | Sequence[int] = 1
    loops: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        rooms = self.bounds("rooms")
        most = {"treasures": len(TREASURES), "doors": len(COLOURS), "chests": len(CHESTS), "dark": rooms[0] - 1}
        most |= {"scored_rooms": rooms[0] - 1, "loops": rooms[1]}
        if not 2 <= rooms[0] <= rooms[1] <= len(ROOMS):
            raise ValueError(f"rooms must be 2 to {len(ROOMS)}, or [least, most] of those, not {self.rooms!r}")
        for name, limit in most.items():
            low, high = self.bounds(name)
            if not 0 <= low <= high <= limit:
                raise ValueError(f"{name} must be 0 to {limit}, or [least, most] of those, not {getattr(self, name)!r}")
        if self.bounds("doors")[1] >= rooms[0]:
            raise ValueError(f"doors must be fewer than rooms, not {self.doors!r} of {self.rooms!r}")
        if self.bounds("treasures")[0] + self.bounds("scored_rooms")[0] == 0:
            raise ValueError("an adventure needs something that scores: give treasures or scored_rooms")

    def bounds(self, name: str) -> tuple[int, int]:
        """(least, most) of what is called `name`. Raises ValueError for anything but a number or two."""
        value = getattr(self, name)
        pair = [value, value] if isinstance(value, int) else value
        if isinstance(pair, str) or not isinstance(pair, Sequence) or [type(v) for v in pair] != [int, int]:
            raise ValueError(f"{name} must be a whole number or [least, most], not {value!r}")
        return pair[0], pair[1]


@dataclass(frozen=True)
class World:
    """rooms: names, the first is where one starts. corridors: (room, way, room). doors: (room, room) -> colour. chests: name -> room.
    places: thing -> room or chest. dark, scored: rooms. treasures: things that score."""

    rooms: tuple[str, ...]
    corridors: tuple[tuple[str, str, str], ...]
    doors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    chests: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    dark: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    treasures: tuple[str, ...] = ()

    def exits(self, room: str) -> dict[str, str]:
        """way -> room."""
        ways = {way: b for a, way, b in self.corridors if a == room}
        return ways | {BACK[way]: a for a, way, b in self.corridors if b == room}

    def door(self, a: str, b: str) -> str | None:
        """The colour of the locked door between two rooms."""
        return self.doors.get((a, b)) or self.doors.get((b, a))

    def room_of(self, thing: str) -> str:
        place = self.places[thing]
        return self.chests.get(place, place)

    def opening(self) -> tuple[object, ...]:
        """All that is told before the first move: worlds with equal openings belong to one split."""
        start = self.rooms[0]
        exits = sorted((way, self.door(start, room) or "") for way, room in self.exits(start).items())
        seen = sorted(thing for thing, place in [*self.places.items(), *self.chests.items()] if place == start)
        return (start, tuple(exits), tuple(seen), tuple(sorted(self.treasures)), tuple(sorted(self.scored)))


def draw(difficulty: Difficulty, rng: np.random.Generator) -> World:
    """A world that can be solved."""
    size = {name: int(rng.integers(low, high + 1)) for name in SIZES for low, high in [difficulty.bounds(name)]}
    rooms = [str(name) for name in rng.permutation(ROOMS)[: size["rooms"]]]
    corridors, above = _map(rooms, size["loops"], rng)
    behind = {room: _way_up(room, above) for room in rooms}  # the room itself and those above it, up to the start

    # A room was dug after the one above it, so this order is one in which the doors can be reached: a key may lie behind earlier ones.
    # A loop could lead around a door: those that do are left out.
    gates = sorted(int(i) for i in rng.choice(np.arange(1, len(rooms)), size["doors"], replace=False))
    locked = [rooms[i] for i in gates]
    corridors = [c for c in corridors if _keeps(c, above, set(locked), behind)]
    colours = [str(c) for c in rng.permutation(COLOURS)[: len(locked)]]
    doors = {(above[room], room): colour for room, colour in zip(locked, colours, strict=True)}

    dark = [str(r) for r in rng.permutation(rooms[1:])[: size["dark"]]]
    scored = [str(r) for r in rng.permutation(rooms[1:])[: size["scored_rooms"]]]
    treasures = [str(t) for t in rng.permutation(TREASURES)[: size["treasures"]]]
    places: dict[str, str] = {}
    if dark:
        places[LAMP] = _pick([r for r in rooms if not {*locked, *dark} & set(behind[r])], rng)
    for i, colour in enumerate(colours):
        places[f"{colour} key"] = _pick([r for r in rooms if not set(locked[i:]) & set(behind[r])], rng)
    for treasure in treasures:
        places[treasure] = _pick(rooms[1:], rng)
    chests: dict[str, str] = {}
    hidden = rng.permutation([t for t in places if t != LAMP]).tolist()[: size["chests"]]
    for name, thing in zip(rng.permutation(CHESTS).tolist(), hidden, strict=False):
        chests[name], places[thing] = places[thing], name
    return World(tuple(rooms), tuple(corridors), doors, chests, places, tuple(dark), tuple(scored), tuple(treasures))


@dataclass(frozen=True)
class Stage:
    """One command of a plan and what must be so after it. dark: nothing can be seen. things, rooms: how many of them have scored."""

    command: str
    room: str
    dark: bool
    things: int
    rooms: int


def plan(world: World) -> list[Stage]:
    """Commands that earn every point: to the nearest thing or room that is needed and within reach, and so on."""
    return _Planner(world).solve()


class _Planner:
    """Walks the world with full knowledge of it. Not the shortest way, but one without a useless thing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.at = world.rooms[0]
        self.held: set[str] = set()
        self.unlocked: set[str] = set()
        self.open: set[str] = set()
        self.lit = False
        self.seen: set[str] = {self.at} - set(world.dark)
        self.moves: list[Stage] = []

    def solve(self) -> list[Stage]:
        wanted = self._needed()
        while wanted:
            goals = {self._room(want) for want in wanted if self._may(want)}
            way = self._route(goals)
            for step, room in way:
                colour = self.world.door(self.at, room)
                if colour and colour not in self.unlocked:
                    self.unlocked.add(colour)
                    self._did(f"unlock {colour} door")
                self.at = room
                if self._sees(room):
                    self.seen.add(room)
                self._did(step)
            for want in [w for w in wanted if self._room(w) == self.at and self._may(w)]:
                self._get(want)
            wanted = [w for w in wanted if w not in self.held and w not in self.seen]
        return self.moves

    def _get(self, want: str) -> None:
        if want in self.world.rooms:
            return
        place = self.world.places[want]
        if place in self.world.chests and place not in self.open:
            self.open.add(place)
            self._did(f"open {place}")
        self.held.add(want)
        self._did(f"take {want}")
        if want == LAMP:
            self.lit = True
            self._did(f"turn on {LAMP}")

    def _did(self, command: str) -> None:
        things, rooms = len(self.held & {*self.world.treasures}), len(self.seen & {*self.world.scored})
        self.moves.append(Stage(command, self.at, not self._sees(self.at), things, rooms))

    def _room(self, want: str) -> str:
        return want if want in self.world.rooms else self.world.room_of(want)

    def _may(self, want: str) -> bool:
        """Whether it is of use now: nothing is found, and no room is seen, in the dark."""
        return self._sees(self._room(want))

    def _route(self, goals: set[str]) -> list[tuple[str, str]]:
        """(way, room) steps to the nearest goal through doors that are unlocked or whose key is held."""
        came: dict[str, tuple[str, str]] = {}
        line = [self.at]
        for room in line:
            if room in goals:
                way = []
                while room != self.at:
                    step, before = came[room]
                    way.append((step, room))
                    room = before
                return way[::-1]
            for step, other in self.world.exits(room).items():
                colour = self.world.door(room, other)
                passable = not colour or colour in self.unlocked or (f"{colour} key" in self.held and self._sees(room))
                if passable and other != self.at and other not in came:
                    came[other] = (step, room)
                    line.append(other)
        raise RuntimeError(f"nothing that is needed can be reached from {self.at} in {self.world}")

    def _sees(self, room: str) -> bool:
        return self.lit or room not in self.world.dark

    def _needed(self) -> list[str]:
        """What scores, the keys of the doors before it, and the lamp if any of it lies in the dark."""
        world = self.world
        wanted = list(dict.fromkeys([*world.treasures, *(r for r in world.scored if r not in self.seen)]))
        for want in wanted:  # grows
            for room, other in self._from_start(self._room(want)):
                colour = world.door(room, other)
                if colour and f"{colour} key" not in wanted:
                    wanted.append(f"{colour} key")
                if colour and room in world.dark and LAMP not in wanted:
                    wanted.append(LAMP)
            if self._room(want) in world.dark and LAMP not in wanted:
                wanted.append(LAMP)
        return wanted

    def _from_start(self, goal: str) -> list[tuple[str, str]]:
        """The corridors of the shortest way from the start, whatever is locked."""
        came: dict[str, str] = {}
        line = [self.world.rooms[0]]
        for room in line:
            for other in self.world.exits(room).values():
                if other != line[0] and other not in came:
                    came[other] = room
                    line.append(other)
        way = []
        while goal != line[0]:
            way.append((came[goal], goal))
            goal = came[goal]
        return way


def _map(
    rooms: Sequence[str], loops: int, rng: np.random.Generator
) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Corridors (room, way, room) of a random tree on a grid and up to `loops` more; and the room from which each was dug."""
    cell = {rooms[0]: (0, 0)}
    corridors: list[tuple[str, str, str]] = []
    above: dict[str, str] = {}
    for room in rooms[1:]:
        free = [
            (other, way, (x + dx, y + dy))
            for other, (x, y) in cell.items()
            for way, (dx, dy) in WAYS.items()
            if (x + dx, y + dy) not in cell.values()
        ]
        other, way, at = free[int(rng.integers(len(free)))]
        cell[room], above[room] = at, other
        corridors.append((other, way, room))
    joined = {frozenset((a, b)) for a, _, b in corridors}
    near = [
        (a, way, b)
        for a, (x, y) in cell.items()
        for way, (dx, dy) in list(WAYS.items())[:2]
        for b, at in cell.items()
        if at == (x + dx, y + dy) and frozenset((a, b)) not in joined
    ]
    return corridors + [near[int(i)] for i in rng.permutation(len(near))[:loops]], above


def _keeps(
    corridor: tuple[str, str, str], above: Mapping[str, str], locked: set[str], behind: Mapping[str, Sequence[str]]
) -> bool:
    """Whether a corridor belongs to the tree, or joins two rooms behind the same locked doors."""
    a, _, b = corridor
    return above.get(b) == a or set(behind[a]) & locked == set(behind[b]) & locked


def _way_up(room: str, above: Mapping[str, str]) -> list[str]:
    way = [room]
    while way[-1] in above:
        way.append(above[way[-1]])
    return way


def _pick(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]
