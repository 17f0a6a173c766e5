"""Procedural coding tasks: seeded, unlimited, with train, test and unseen splits that cannot overlap.

A task asks in informal English for a small Python function `f`. Behind it stands a *program*: one to three operations
(`envs/coding/operations.py`) chained on one argument. Which split a program belongs to depends on the program alone:

* "unseen": some two neighbouring operations form a pair that is held out (by a hash of the two names), so neither train
  nor test ever shows that combination in that order;
* "test": otherwise, one in five by a hash of the canonical program, parameters included;
* "train": the rest.

The family "performance" (`envs/coding/efficient.py`) asks for efficient code and takes part only when named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, pairwise
from random import Random
from typing import Any, overload

from envs.base import Task
from envs.coding import efficient
from envs.coding.operations import ARGUMENT, BY_FAMILY, DIFFICULTIES, Step, function, sentence, source

SPLITS = ("train", "test", "unseen")
FAMILIES = tuple(ARGUMENT)
"""Default families; "performance" may be named besides."""
CASES = 8
"""Unit tests per task."""
_POOL = 40
_FINAL_SHARE = 0.4


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on nothing but `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


@dataclass(frozen=True)
class Program:
    """A chain of steps of one family, applied from left to right."""

    family: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.family}: " + " | ".join(map(str, self.steps))

    def __call__(self, argument: Any) -> Any:
        for step in self.steps:
            argument = function(step)(argument)
        return argument

    @property
    def split(self) -> str:
        """The one split this program may appear in."""
        keys = [step.op.key for step in self.steps]
        if any(fraction(f"pair {self.family}: {a} > {b}") < 0.12 for a, b in pairwise(keys)):
            return "unseen"
        return "test" if fraction(f"program {self}") < 0.2 else "train"

    @property
    def source(self) -> str:
        return source(self.family, [step.expression for step in self.steps])


def reasoning(steps: Iterable[Step]) -> tuple[str, ...]:
    """Written reasoning: each step named and translated to its expression, numbered."""
    return tuple(f"{i}. {step}: {step.core}" for i, step in enumerate(steps, 1))


def random_step(family: str, last: bool, rng: Random) -> Step:
    """A step that may stand at the end of a chain (`last`) or inside it."""
    final = last and rng.random() < _FINAL_SHARE
    op = rng.choice([op for op in BY_FAMILY[family] if (op.shape == "final") == final])
    return Step(op, rng.choice(op.values) if op.values else "")


def random_program(family: str, difficulty: int, split: str, rng: Random) -> Program:
    """A program of `split` with `difficulty` distinct operations, each of which matters for the result."""
    while True:
        steps = tuple(random_step(family, i == difficulty - 1, rng) for i in range(difficulty))
        program = Program(family, steps)
        distinct = len({step.op.key for step in steps}) == difficulty
        if distinct and program.split == split and _meaningful(program):
            return program


def mutants(program: Program, rng: Random) -> list[Program]:
    """Wrong programs near `program`: a step dropped, two swapped, an operation replaced, a parameter off by one."""
    steps, family = program.steps, program.family
    chains: list[tuple[Step, ...]] = []
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        chains.append(steps[:i] + steps[i + 1 :])
        if i and steps[i].op.shape != "final":
            chains.append((*steps[: i - 1], steps[i], steps[i - 1], *steps[i + 1 :]))
        near = [v for v in step.op.values if v != step.k]
        near.sort(key=lambda v: abs(int(v) - int(step.k)) if v.isdigit() else 0)
        others = [random_step(family, last, rng) for _ in range(4)] + [Step(step.op, v) for v in near[:2]]
        chains += [(*steps[:i], other, *steps[i + 1 :]) for other in others if other != step]
    return [Program(family, chain) for chain in chains]


def _argument(family: str, near: list[int], rng: Random) -> Any:
    """A random argument; `near` holds the program's own numbers, around which wrong programs differ."""

    def number(low: int, high: int) -> int:
        if near and rng.random() < 0.4:
            return rng.choice(near) * rng.choice((1, 1, 1, 2, 3, -1)) + rng.choice((-1, 0, 0, 1))
        return rng.randint(low, high)

    if family == "list":
        items = [number(-15, 20) for _ in range(rng.choice((0, 1, 3, 5, 6, 7, 8, 9, 10, 12)))]
        return items + [rng.choice(items) for _ in range(2)] if items and rng.random() < 0.7 else items
    if family == "number":
        return number(-60, 60) if rng.random() < 0.6 else rng.randint(-2000, 9999)
    words = ["".join(rng.choice("aeioulnrstAEIOTLNRS123") for _ in range(rng.randint(1, 6))) for _ in range(3)]
    text = " ".join(words[: rng.choice((0, 1, 2, 2, 3, 3, 3))])
    return text + text[::-1] if rng.random() < 0.2 else text


def arguments(program: Program, number: int, rng: Random) -> list[Any]:
    """`number` different random arguments suited to the program."""
    near = [int(step.k) for step in program.steps if step.k.isdigit()]
    found: dict[str, Any] = {}
    while len(found) < number:
        argument = _argument(program.family, near, rng)
        found.setdefault(repr(argument), argument)
    return list(found.values())


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right


def differs(program: Program, mutant: Program, pool: Sequence[Any]) -> bool:
    """Whether the two programs give different results (types count) somewhere in `pool`."""
    return any(not _same(program(x), mutant(x)) for x in pool)


@lru_cache(maxsize=65536)
def _meaningful(program: Program) -> bool:
    """Whether no step is idle: the result varies, and changes when any one step is left out."""
    pool = arguments(program, 24, Random(f"meaning {program}"))
    results = [program(x) for x in pool]
    if len({repr(result) for result in results}) < (2 if isinstance(results[0], bool) else 4):
        return False
    steps = program.steps
    shorter = [Program(program.family, steps[:i] + steps[i + 1 :]) for i in range(len(steps))]
    return all(differs(program, other, pool) for other in shorter)


def cases(program: Program, rng: Random) -> list[list[Any]]:
    """Unit tests [[args, kwargs, expected], ...], chosen greedily so that each catches mutants the others miss."""
    pool = arguments(program, _POOL, rng)
    results = [program(x) for x in pool]
    wrong = mutants(program, rng)
    usual = max(results, key=results.count)  # -1 and -2: answers that ignore their argument must fail too
    caught = [
        {j for j, mutant in enumerate(wrong) if not _same(mutant(x), result)} | {-1 - (result == usual)}
        for x, result in zip(pool, results, strict=True)
    ]
    open_mutants: set[int] = set().union(*caught)
    left = list(range(_POOL))
    chosen: list[int] = []
    while len(chosen) < CASES:
        best = max(left, key=lambda i: (len(caught[i] & open_mutants), len(caught[i])))
        left.remove(best)
        chosen.append(best)
        open_mutants -= caught[best]
    return [[[pool[i]], {}, results[i]] for i in sorted(chosen)]


def make_task(program: Program, split: str, index: int, rng: Random) -> Task:
    """The task that asks for `program`, in words chosen by `rng`."""
    prompt = sentence(program.family, [step.ask(rng) for step in program.steps], rng)
    return Task(
        id=f"{split}-{index}-{hashlib.sha256(f'{program} {prompt}'.encode()).hexdigest()[:8]}",
        prompt=[{"role": "user", "content": prompt}],
        answer=program.source,
        steps=reasoning(program.steps),
        meta={
            "entry_point": "f",
            "cases": cases(program, rng),
            "reference": program.source,
            "family": program.family,
            "difficulty": len(program.steps),
            "program": str(program),
            "performance": None,
        },
    )


class Stream:
    """The endless training tasks; every `iter()` starts the same stream; tasks are independent of each other."""

    def __init__(self, seed: int, families: Sequence[str], difficulties: Sequence[int], split: str = "train") -> None:
        self.seed, self.families, self.difficulties, self.split = seed, families, difficulties, split

    def __iter__(self) -> Iterator[Task]:
        return (self.task(i) for i in count())

    def program(self, index: int) -> tuple[Program | efficient.Choice, Random]:
        """What task `index` is about, and the random numbers that go on to its words and inputs."""
        rng = Random(f"{self.split} {self.seed} {index}")
        family = rng.choice(self.families)
        if family == "performance":
            return efficient.choose(self.split, rng), rng
        return random_program(family, rng.choice(self.difficulties), self.split, rng), rng

    def task(self, index: int) -> Task:
        """Task number `index` of the stream."""
        program, rng = self.program(index)
        if isinstance(program, Program):
            return make_task(program, self.split, index, rng)
        return efficient.make_task(program, self.split, index, rng)


class HeldOut(Sequence[Task]):
    """A finite sequence of tasks with distinct programs, made when first read."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream, self._size = stream, size

    @cached_property
    def _tasks(self) -> list[Task]:
        first: dict[str, int] = {}
        last_new = index = 0
        while len(first) < self._size and index - last_new < 2000:
            program = str(self._stream.program(index)[0])
            if program not in first:
                first[program] = last_new = index
            index += 1
        return [self._stream.task(i) for i in first.values()]

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        return self._tasks[index]


def tasks(
    split: str,
    seed: int = 0,
    *,
    families: Sequence[str] | None = None,
    difficulties: Sequence[int] | None = None,
    size: int = 200,
) -> Iterable[Task]:
    """The tasks of a split.

    split: "train" is an endless stream; "test" (held-out programs) and "unseen" (held-out compositions) are sequences
        of `size` tasks with distinct programs (fewer where the choice of families and difficulties has fewer).
    families: of "list", "number", "string" and "performance"; the first three by default.
    difficulties: numbers of composed operations, 1 to 3; all by default ("unseen" needs at least 2). The family
        "performance" has no difficulties.
    Raises ValueError for an unknown or impossible choice.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
    families = tuple(families or FAMILIES)
    difficulties = tuple(difficulties or DIFFICULTIES)
    known = (*FAMILIES, "performance")
    for family in families:
        if family not in known:
            raise ValueError(f"unknown family {family!r}; there are: {', '.join(known)}")
    for difficulty in difficulties:
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty {difficulty!r} is not one of {', '.join(map(str, DIFFICULTIES))}")
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if split == "unseen":
        difficulties = tuple(d for d in difficulties if d > 1)
        if not difficulties:
            raise ValueError("the unseen split holds compositions, so it needs a difficulty of 2 or 3")
    stream = Stream(seed, families, difficulties, split)
    return stream if split == "train" else HeldOut(stream, size)
