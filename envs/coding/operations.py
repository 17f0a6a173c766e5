"""The vocabulary of procedural programs: small operations on lists, numbers and strings, each with English and code.

A program is a chain of operations of one family applied to one argument (`a`, `n` or `s`). Every operation knows how
people ask for it (`asks`), what a careful thinker calls it (`name` with its parameter) and the Python expression that
does it. Expressions are our own trusted text, so they are evaluated in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

ARGUMENT = {"list": "a", "number": "n", "string": "s"}
"""Family -> name of the function's argument."""

SMALL = tuple(str(k) for k in range(2, 13))
COUNTS = ("2", "3", "4", "5")
LETTERS = tuple("aeioulnrst")


@dataclass(frozen=True)
class Operation:
    """One kind of step.

    name: canonical short name, with `{k}` where the parameter goes; unique within the family.
    asks: paraphrases, imperative and lower case, with `{k}` for the parameter.
    core: the expression a thinker writes down; for `shape` "map" and "filter" it is about one element `x`.
    shape: "map" and "filter" are wrapped in a list comprehension, "whole" is used as it stands, "final" too, and ends a
        chain because its result is no longer of the family's type.
    values: parameter values, empty for none.
    """

    family: str
    name: str
    asks: tuple[str, ...]
    core: str
    shape: str = "whole"
    values: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name without its parameter, for rules about combinations."""
        return self.name.replace("{k}", "_")


@dataclass(frozen=True)
class Step:
    """An operation with its parameter filled in (k is "" where there is none)."""

    op: Operation
    k: str = ""

    def __str__(self) -> str:
        return self.op.name.replace("{k}", self.k)

    @property
    def core(self) -> str:
        return self.op.core.replace("{k}", self.k)

    @property
    def expression(self) -> str:
        """The whole right-hand side in terms of the family's argument."""
        if self.op.shape == "map":
            return f"[{self.core} for x in a]"
        if self.op.shape == "filter":
            return f"[x for x in a if {self.core}]"
        return self.core

    def ask(self, rng: Random) -> str:
        """One of the paraphrases."""
        return rng.choice(self.op.asks).replace("{k}", self.k)


@lru_cache(maxsize=4096)
def function(step: Step) -> Callable[[Any], Any]:
    """The step as a callable."""
    return eval(f"lambda {ARGUMENT[step.op.family]}: {step.expression}", {})


def _list(name: str, core: str, shape: str, values: tuple[str, ...], *asks: str) -> Operation:
    return Operation("list", name, asks, core, shape, values)


def _number(name: str, core: str, shape: str, values: tuple[str, ...], *asks: str) -> Operation:
    return Operation("number", name, asks, core, shape, values)


def _string(name: str, core: str, shape: str, values: tuple[str, ...], *asks: str) -> Operation:
    return Operation("string", name, asks, core, shape, values)


# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    _list("keep evens", "x % 2 == 0", "filter", (),
          "keep only the even numbers", "drop the odd numbers", "throw out whatever is odd"),
    _list("keep odds", "x % 2 == 1", "filter", (),
          "keep only the odd numbers", "drop the even numbers", "throw out whatever is even"),
    _list("keep above {k}", "x > {k}", "filter", SMALL,
          "keep the numbers above {k}", "leave only what is bigger than {k}", "drop whatever is {k} or less"),
    _list("keep below {k}", "x < {k}", "filter", SMALL,
          "keep the numbers below {k}", "leave only what is smaller than {k}", "drop whatever is {k} or more"),
    _list("keep multiples of {k}", "x % {k} == 0", "filter", SMALL[1:],
          "keep the multiples of {k}", "leave only what {k} divides", "drop what is not divisible by {k}"),
    _list("remove each {k}", "x != {k}", "filter", SMALL,
          "remove every {k}", "take out each {k}", "drop whatever equals {k}"),
    _list("keep positives", "x > 0", "filter", (),
          "keep the positive numbers", "drop zeros and negatives", "leave only what is positive"),
    _list("add {k}", "x + {k}", "map", SMALL,
          "add {k} to each number", "raise every number by {k}", "increase all of them by {k}"),
    _list("subtract {k}", "x - {k}", "map", SMALL,
          "subtract {k} from each number", "lower every number by {k}", "take {k} off all of them"),
    _list("multiply by {k}", "x * {k}", "map", SMALL,
          "multiply each number by {k}", "make every number {k} times as big", "scale all of them by {k}"),
    _list("square", "x * x", "map", (),
          "square each number", "multiply each number by itself", "replace all of them by their squares"),
    _list("negate", "-x", "map", (),
          "negate each number", "flip the sign of every number", "turn plus into minus and back"),
    _list("absolute values", "abs(x)", "map", (),
          "make each number absolute", "forget the signs", "replace all of them by their distance from zero"),
    _list("remainder by {k}", "x % {k}", "map", SMALL[1:],
          "take each number modulo {k}", "replace every number by its remainder by {k}"),
    _list("sort", "sorted(a)", "whole", (),
          "sort them", "put them in rising order", "order them from small to big"),
    _list("sort down", "sorted(a)[::-1]", "whole", (),
          "sort them downwards", "put them in falling order", "order them from big to small"),
    _list("reverse", "a[::-1]", "whole", (),
          "reverse the list", "turn the list around", "put them back to front"),
    _list("sort distinct", "sorted(set(a))", "whole", (),
          "sort them without repeats", "remove repeats and sort", "make a sorted list of the distinct values"),
    _list("first {k}", "a[:{k}]", "whole", COUNTS,
          "keep the first {k} items", "cut the list after {k} items", "take {k} from the front"),
    _list("drop first {k}", "a[{k}:]", "whole", COUNTS,
          "skip the first {k} items", "cut {k} items off the front"),
    _list("last {k}", "a[-{k}:]", "whole", COUNTS,
          "keep the last {k} items", "take {k} from the end"),
    _list("every second", "a[::2]", "whole", (),
          "take every second item", "keep items at even positions", "skip every other item"),
    _list("total", "sum(a)", "final", (),
          "give the total", "add everything up", "return the sum"),
    _list("largest", "max(a, default=0)", "final", (),
          "give the largest or 0", "return the maximum, 0 if empty", "find the biggest, 0 if none"),
    _list("smallest", "min(a, default=0)", "final", (),
          "give the smallest or 0", "return the minimum, 0 if empty", "find the least, 0 if none"),
    _list("count", "len(a)", "final", (),
          "count them", "return how many there are", "tell how long the list is"),
    _list("count distinct", "len(set(a))", "final", (),
          "count the distinct values", "return how many different ones there are"),

    _number("add {k}", "n + {k}", "whole", SMALL, "add {k}", "raise it by {k}", "increase it by {k}"),
    _number("subtract {k}", "n - {k}", "whole", SMALL, "subtract {k}", "lower it by {k}", "take {k} off"),
    _number("multiply by {k}", "n * {k}", "whole", SMALL,
            "multiply it by {k}", "make it {k} times as big", "scale it by {k}"),
    _number("divide by {k}", "n // {k}", "whole", SMALL,
            "divide it by {k} rounding down", "see how often {k} fits in", "floor divide by {k}"),
    _number("remainder by {k}", "n % {k}", "whole", SMALL,
            "take it modulo {k}", "replace it by its remainder by {k}"),
    _number("square", "n * n", "whole", (), "square it", "multiply it by itself"),
    _number("negate", "-n", "whole", (), "negate it", "flip its sign"),
    _number("absolute value", "abs(n)", "whole", (), "make it absolute", "forget its sign"),
    _number("at least {k}", "max(n, {k})", "whole", SMALL,
            "raise it to {k} if it is smaller", "make it at least {k}"),
    _number("at most {k}", "min(n, {k})", "whole", SMALL,
            "cap it at {k}", "make it at most {k}"),
    _number("digit sum", "sum(map(int, str(abs(n))))", "whole", (), "sum its digits", "add up its digits"),
    _number("reverse digits", "int(str(abs(n))[::-1])", "whole", (),
            "write its digits backwards", "reverse its digits without sign"),
    _number("halve evens", "n // 2 if n % 2 == 0 else n", "whole", (),
            "halve it if it is even", "cut it in half when even"),
    _number("double above {k}", "n * 2 if n > {k} else n", "whole", SMALL,
            "double it if it is above {k}", "double it when bigger than {k}"),
    _number("zero below {k}", "n if n >= {k} else 0", "whole", SMALL,
            "make it 0 if it is below {k}", "use 0 when it is smaller than {k}"),
    _number("is even", "n % 2 == 0", "final", (), "say whether it is even", "tell if it is even"),
    _number("divisible by {k}", "n % {k} == 0", "final", SMALL[1:],
            "say whether {k} divides it", "tell if it is divisible by {k}"),
    _number("count digits", "len(str(abs(n)))", "final", (), "count its digits", "return how many digits it has"),

    _string("upper", "s.upper()", "whole", (), "make it upper case", "write it in capitals", "shout it"),
    _string("lower", "s.lower()", "whole", (), "make it lower case", "write it in small letters"),
    _string("swap case", "s.swapcase()", "whole", (), "swap its case", "turn capitals small and small ones capital"),
    _string("title", "s.title()", "whole", (), "capitalise each word", "put it in title case"),
    _string("reverse", "s[::-1]", "whole", (), "reverse it", "turn it around", "write it backwards"),
    _string("first {k}", "s[:{k}]", "whole", COUNTS, "keep the first {k} letters", "cut it after {k} letters"),
    _string("drop first {k}", "s[{k}:]", "whole", COUNTS,
            "skip the first {k} letters", "cut {k} letters off the front"),
    _string("last {k}", "s[-{k}:]", "whole", COUNTS, "keep the last {k} letters", "take {k} letters from the end"),
    _string("drop last {k}", "s[:-{k}]", "whole", COUNTS, "drop the last {k} letters", "cut {k} letters off the end"),
    _string("every second", "s[::2]", "whole", (), "take every second letter", "skip every other letter"),
    _string("remove spaces", "s.replace(' ', '')", "whole", (), "remove the spaces", "close all gaps"),
    _string("remove {k}", "s.replace('{k}', '')", "whole", LETTERS, "remove every {k}", "take out each {k}"),
    _string("mask {k}", "s.replace('{k}', '*')", "whole", LETTERS,
            "put a star for every {k}", "turn each {k} into a star"),
    _string("keep digits", "''.join(c for c in s if c.isdigit())", "whole", (),
            "keep only the digits", "drop whatever is not a digit"),
    _string("keep letters", "''.join(c for c in s if c.isalpha())", "whole", (),
            "keep only alphabetic letters", "drop whatever is not alphabetic"),
    _string("double letters", "''.join(c + c for c in s)", "whole", (),
            "double each letter", "write every letter twice"),
    _string("repeat {k}", "s * {k}", "whole", COUNTS, "repeat it {k} times", "write it {k} times in a row"),
    _string("sort letters", "''.join(sorted(s))", "whole", (), "sort its letters", "put its letters in order"),
    _string("reverse words", "' '.join(s.split()[::-1])", "whole", (),
            "reverse the order of the words", "put the last word first and so on"),
    _string("length", "len(s)", "final", (), "return its length", "tell how long it is"),
    _string("count {k}", "s.count('{k}')", "final", LETTERS, "count the letter {k}", "tell how often {k} occurs"),
    _string("count words", "len(s.split())", "final", (), "count the words", "return how many words there are"),
    _string("is palindrome", "s == s[::-1]", "final", (), "say whether it is a palindrome",
            "tell if it reads the same backwards"),
)
# fmt: on

BY_FAMILY: dict[str, tuple[Operation, ...]] = {
    family: tuple(op for op in OPERATIONS if op.family == family) for family in ARGUMENT
}

_OPENERS = {
    "list": (
        "Write f(a) for a list of numbers.",
        "I have a list of numbers and need f(a).",
        "Can you make f(a)? It gets a list of numbers.",
        "hey, I need f(a) for a list.",
    ),
    "number": (
        "Write f(n) for a whole number.",
        "I have a whole number and need f(n).",
        "Can you make f(n)? It gets a number.",
        "hey, I need f(n) for a number.",
    ),
    "string": (
        "Write f(s) for a string.",
        "I have some text and need f(s).",
        "Can you make f(s)? It gets a string.",
        "hey, I need f(s) for some text.",
    ),
}

# Upper-case placeholders start a sentence. Some frames name the steps out of order.
_FRAMES = {
    1: ("{A}.", "It should {a}.", "Please {a}.", "All it has to do: {a}."),
    2: (
        "First {a}, then {b}.",
        "{A} and after that {b}.",
        "It should {a} and then {b}.",
        "{A}; once that is done, {b}.",
        "Before you {b}, {a}.",
        "{B}, but first {a}.",
    ),
    3: (
        "First {a}, then {b}, and finally {c}.",
        "{A}, then {b} and after that {c}.",
        "It should {a}; next {b}; last {c}.",
        "{A}. Then {b}. Then {c}.",
        "Before you {c}, {a} and then {b}.",
        "{C}, but first {a} and then {b}.",
    ),
}
DIFFICULTIES = tuple(_FRAMES)


def sentence(family: str, asks: list[str], rng: Random) -> str:
    """The question in English: an opener of the family and a frame around the paraphrased steps, in a random style."""
    words = dict(zip("abc", asks, strict=False))
    words |= {name.upper(): ask[0].upper() + ask[1:] for name, ask in words.items()}
    return f"{rng.choice(_OPENERS[family])} {rng.choice(_FRAMES[len(asks)]).format(**words)}"


def source(family: str, expressions: list[str]) -> str:
    """Source of `f`: one assignment per expression, the last one returned."""
    name = ARGUMENT[family]
    lines = [f"def f({name}):", *(f"    {name} = {e}" for e in expressions[:-1]), f"    return {expressions[-1]}"]
    return "\n".join(lines)
