"""Straight-line stack programs over the digits: drawing, running, writing down what the stack holds, and reading it back.

    push 3 push 4 swap sub        push 3 . push 4 3 . swap 3 4 . sub 1 .

On a scratchpad every instruction is followed by the stack behind it, read from the top, so that what is new is written first and what is
below it stays as it was. In Python a stack is a tuple whose last entry is the top.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from random import Random

Program = tuple[str, ...]
State = tuple[int, ...]

BASE = 10
SHARES = {"push": 0.3, "add": 0.25, "sub": 0.2, "dup": 0.07, "swap": 0.12, "drop": 0.06}
"""How often an instruction is drawn, where it is possible."""
NEEDS = {"push": 0, "add": 2, "sub": 2, "dup": 1, "swap": 2, "drop": 1}
"""How many digits it needs on the stack."""
GROWS = {"push": 1, "add": -1, "sub": -1, "dup": 1, "swap": 0, "drop": -1}
TAGS = {"push": "PUSH", "add": "ARITH", "sub": "ARITH", "dup": "MOVE", "swap": "MOVE", "drop": "MOVE"}
"""What an instruction does, without saying what it leads to."""
DEPTH = 4
"""Deepest stack, except where the answer asks for more."""
STOP = "."
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def draw(rng: Random, length: int, least: int) -> Program:
    """A program of `length` instructions (`least` + 2 or more) that never lacks a digit, ends with arithmetic, so that its top is not
    merely the last number pushed, and leaves at least `least` digits on the stack."""
    deepest = max(DEPTH, least + 1)
    program, depth = [], 0
    for left in range(length - 1, -1, -1):
        wanted = least + 2 - left if left else least  # of what follows, the last instruction takes a digit away
        can = [op for op in SHARES if NEEDS[op] <= depth and wanted <= depth + GROWS[op] <= deepest]
        can = can if left else ["add", "sub"]
        op = rng.choices(can, [SHARES[op] for op in can])[0]
        depth += GROWS[op]
        program.append(f"push {int(rng.random() * BASE)}" if op == "push" else op)
    return tuple(program)


def apply(instruction: str, stack: State) -> State:
    """The stack after one instruction."""
    op, _, digit = instruction.partition(" ")
    match op:
        case "push":
            return (*stack, int(digit))
        case "add":
            return (*stack[:-2], (stack[-2] + stack[-1]) % BASE)
        case "sub":
            return (*stack[:-2], (stack[-2] - stack[-1]) % BASE)
        case "dup":
            return (*stack, stack[-1])
        case "swap":
            return (*stack[:-2], stack[-1], stack[-2])
        case "drop":
            return stack[:-1]
    raise ValueError(f"{instruction!r} is not an instruction of a stack program")


def run(program: Program) -> list[State]:
    """The stack after every instruction."""
    states: list[State] = []
    for instruction in program:
        states.append(apply(instruction, states[-1] if states else ()))
    return states


def run_with_a_slip(program: Program, rng: Random) -> list[State]:
    """The same, but after one instruction one digit is written down wrong, and what follows builds on it."""
    true = run(program)
    places = [i for i, state in enumerate(true) if state]
    slip = places[int(rng.random() * len(places))]
    states = true[:slip]
    states.append(wrong_digit(true[slip], rng))
    for instruction in program[slip + 1 :]:
        states.append(apply(instruction, states[-1]))
    return states


def wrong_digit(state: State, rng: Random) -> State:
    """The state with one of its digits changed."""
    at = int(rng.random() * len(state))
    changed = (state[at] + 1 + int(rng.random() * (BASE - 1))) % BASE
    return (*state[:at], changed, *state[at + 1 :])


def scratchpad(program: Program, states: Sequence[State]) -> tuple[str, ...]:
    """One text for each state: the instruction, the stack behind it from its top, and a full stop. The digit of a push is the top."""
    names = (instruction.partition(" ")[0] for instruction in program)
    return tuple(" ".join([op, *map(str, reversed(state)), STOP]) for op, state in zip(names, states, strict=False))


def skeleton(program: Program) -> str:
    """One tag for each instruction: a plan that holds no value."""
    return " ".join(TAGS[instruction.partition(" ")[0]] for instruction in program)


def write(state: State, grammar: int = 0) -> str:
    """A state in one of four grammars, for (3, 7): 7 3; bottom 3 7; holds 7 then 3; seven three."""
    digits = [str(d) for d in reversed(state)]
    return (
        " ".join(digits),
        " ".join(["bottom", *reversed(digits)]),
        f"holds {' then '.join(digits)}",
        " ".join(NAMES[d] for d in reversed(state)),
    )[grammar]


GRAMMARS = 4


def read(text: str) -> State | None:
    """The state that a text of any of the four grammars means; None for every other text."""
    words = text.split()
    if len(words) > 64:
        return None
    plain = [str(d) for d in range(BASE)]
    upwards = words[:1] == ["bottom"]
    if upwards:
        words = words[1:]
    elif words[:1] == ["holds"]:
        if len(words) % 2 or any(word != "then" for word in words[2::2]):
            return None
        words = words[1::2]
    elif words and words[0] in NAMES:
        plain = list(NAMES)
    if not words or any(word not in plain for word in words):
        return None
    state = tuple(plain.index(word) for word in words)
    return state if upwards else state[::-1]


def place(program: Program, places: int) -> int:
    """A number below `places` that belongs to the program and does not change."""
    return zlib.crc32(" ".join(program).encode()) % places
