"""Compare a candidate's results with expected values, in the trusted process.

Both sides are plain data: results arrive through the sandbox's exact-type protocol, so no `__eq__` of the candidate's
can run here. A case says how it wants to be compared with a `Rule`; one without a rule is compared exactly.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, expected: value in expected,
    "not in": lambda value, expected: value not in expected,
    "contains": lambda value, expected: expected in value,
}


@dataclass(frozen=True)
class Rule:
    """How one case compares the result of a call with the expected value.

    op: "exact" (same value and same types all the way down), one of Python's comparison operators, "contains"
        (expected in result), "isclose" (`math.isclose`), or "within" (|result - expected| < abs_tol).
    wrap: name of a builtin that the test applies to the result before comparing ("bool", "set", "sorted", "len", ...).
        It is applied inside the candidate's sandbox, so results the protocol cannot carry (a match object, a
        generator) are judged as the test meant; the candidate gains nothing, since it chooses its results anyway.
    inclusive: "within" accepts a difference of exactly abs_tol.
    """

    op: str = "exact"
    wrap: str = ""
    rel_tol: float = 1e-9
    abs_tol: float = 0.0
    inclusive: bool = False


EXACT = Rule()


def matches(value: Any, expected: Any, rule: Rule = EXACT) -> bool:
    """Whether plain data `value` meets `expected` under `rule`; values that cannot be compared do not match."""
    try:
        if rule.op == "exact":
            return identical(value, expected)
        if rule.op == "isclose":
            return math.isclose(value, expected, rel_tol=rule.rel_tol, abs_tol=rule.abs_tol)
        if rule.op == "within":
            gap = abs(value - expected)
            return bool(gap <= rule.abs_tol if rule.inclusive else gap < rule.abs_tol)
        return bool(_OPERATORS[rule.op](value, expected))
    except (TypeError, ValueError, ArithmeticError, RecursionError):
        return False


def identical(a: Any, b: Any) -> bool:
    """Equality with exact types: True is not 1, a tuple is not a list, 1.0 is not 1; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        keys = {key: key for key in a}
        return len(a) == len(b) and all(k in keys and identical(keys[k], k) and identical(a[k], b[k]) for k in b)
    if isinstance(a, set | frozenset):
        members = {member: member for member in a}
        return len(a) == len(b) and all(m in members and identical(members[m], m) for m in b)
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def show(value: Any, width: int = 60) -> str:
    """A short representation for people; never raises."""
    try:
        text = reprlib.repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        return f"<{type(value).__name__}>"
    return text if len(text) <= width else text[: width - 1] + "…"
