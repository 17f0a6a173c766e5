"""Coding tasks that ask for efficient code: each has a fast (O(n) or O(n log n)) and a slow (O(n^2)) reference.

Some templates are held out as a whole ("unseen"); of the others, some parameter values ("test"); the rest is "train".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from envs.base import Task

SIZES = (100, 200, 400)
"""List lengths at which work is measured."""

List = list[int]


def spread(n: int, k: int, rng: Random) -> List:
    """Numbers with few coincidences."""
    return [rng.randint(-4 * n, 4 * n) for _ in range(n)]


def crowded(n: int, k: int, rng: Random) -> List:
    """Few different numbers, so that every value repeats."""
    return [rng.randint(-k - 4, k + 4) for _ in range(n)]


def apart(n: int, k: int, rng: Random) -> List:
    """Distinct numbers of which no two add up to k, so that no search ends early."""
    return [2 * k * x + k // 2 + 1 for x in rng.sample(range(1, 4 * n + 1), n)]


def filled(n: int, k: int, rng: Random) -> List:
    """The numbers from k up without a gap, shuffled."""
    return rng.sample(range(k, k + n), n)


@dataclass(frozen=True)
class Template:
    """One question with a parameter k (`{k}` in the texts); `inputs` makes the lists on which work is measured."""

    name: str
    asks: tuple[str, str]
    thought: str
    fast: str
    slow: str
    inputs: Callable[[int, int, Random], List] = spread
    held_out: bool = False


TEMPLATES: tuple[Template, ...] = (
    Template(
        "near duplicates",
        ("say whether two equal numbers are at most {k} places apart", "tell if a number comes back within {k} places"),
        "remember where each number was last seen",
        """def f(a):
    last = {}
    found = False
    for i, x in enumerate(a):
        if x in last and i - last[x] <= {k}:
            found = True
        last[x] = i
    return found""",
        """def f(a):
    found = False
    for i in range(len(a)):
        for j in range(i):
            if a[i] == a[j] and i - j <= {k}:
                found = True
    return found""",
    ),
    Template(
        "two sum",
        ("say whether two of the numbers add up to {k}", "tell if some pair has the sum {k}"),
        "keep the numbers seen so far in a set and look for the missing part",
        """def f(a):
    seen = set()
    for x in a:
        if {k} - x in seen:
            return True
        seen.add(x)
    return False""",
        """def f(a):
    for i in range(len(a)):
        for j in range(i):
            if a[i] + a[j] == {k}:
                return True
    return False""",
        apart,
    ),
    Template(
        "running sums",
        ("give the running sums, starting from {k}", "list the partial sums, with {k} added to each"),
        "carry the sum along instead of adding up again",
        """def f(a):
    total = {k}
    out = []
    for x in a:
        total += x
        out.append(total)
    return out""",
        """def f(a):
    out = []
    for i in range(len(a)):
        total = {k}
        for j in range(i + 1):
            total += a[j]
        out.append(total)
    return out""",
    ),
    Template(
        "pairs with difference",
        ("count the pairs of places whose numbers differ by {k}", "return how many pairs have a difference of {k}"),
        "count the numbers seen so far and look up both neighbours",
        """def f(a):
    seen = {}
    pairs = 0
    for x in a:
        pairs += seen.get(x - {k}, 0) + seen.get(x + {k}, 0)
        seen[x] = seen.get(x, 0) + 1
    return pairs""",
        """def f(a):
    pairs = 0
    for i in range(len(a)):
        for j in range(i):
            if abs(a[i] - a[j]) == {k}:
                pairs += 1
    return pairs""",
        crowded,
    ),
    Template(
        "frequent values",
        (
            "list in rising order the values that occur {k} times or more",
            "sort the values that come at least {k} times",
        ),
        "count all values in one pass",
        """def f(a):
    counts = {}
    for x in a:
        counts[x] = counts.get(x, 0) + 1
    return sorted(x for x in counts if counts[x] >= {k})""",
        """def f(a):
    out = []
    for x in sorted(a):
        number = 0
        for y in a:
            if x == y:
                number += 1
        if number >= {k} and (not out or out[-1] != x):
            out.append(x)
    return out""",
        crowded,
    ),
    Template(
        "longest stretch above",
        (
            "give the length of the longest stretch of numbers above {k}",
            "find how many numbers in a row exceed {k} at most",
        ),
        "grow a counter and reset it",
        """def f(a):
    best = run = 0
    for x in a:
        run = run + 1 if x > {k} else 0
        best = max(best, run)
    return best""",
        """def f(a):
    best = 0
    for i in range(len(a)):
        run = 0
        good = True
        for j in range(i, len(a)):
            good = good and a[j] > {k}
            if good:
                run += 1
        best = max(best, run)
    return best""",
    ),
    Template(
        "running maxima",
        ("give the largest number so far at each place, at least {k}", "list the running maximum, starting from {k}"),
        "carry the maximum along",
        """def f(a):
    top = {k}
    out = []
    for x in a:
        if x > top:
            top = x
        out.append(top)
    return out""",
        """def f(a):
    out = []
    for i in range(len(a)):
        top = {k}
        for j in range(i + 1):
            if a[j] > top:
                top = a[j]
        out.append(top)
    return out""",
    ),
    Template(
        "stretches with sum",
        ("count the stretches of neighbours that add up to {k}", "return how many contiguous parts have the sum {k}"),
        "count the prefix sums seen so far",
        """def f(a):
    seen = {0: 1}
    total = found = 0
    for x in a:
        total += x
        found += seen.get(total - {k}, 0)
        seen[total] = seen.get(total, 0) + 1
    return found""",
        """def f(a):
    found = 0
    for i in range(len(a)):
        total = 0
        for j in range(i, len(a)):
            total += a[j]
            if total == {k}:
                found += 1
    return found""",
        crowded,
    ),
    Template(
        "best later gain",
        (
            "give the largest a[j] - a[i] with j at least i + {k}, or 0",
            "find the best gain after {k} places or more, else 0",
        ),
        "carry the least number that is old enough",
        """def f(a):
    best = 0
    for j in range({k}, len(a)):
        low = a[0] if j == {k} else min(low, a[j - {k}])
        best = max(best, a[j] - low)
    return best""",
        """def f(a):
    best = 0
    for j in range(len(a)):
        for i in range(j - {k} + 1):
            best = max(best, a[j] - a[i])
    return best""",
    ),
    Template(
        "first missing",
        (
            "give the smallest number from {k} up that is not in the list",
            "find the least missing number, counting from {k}",
        ),
        "look numbers up in a set",
        """def f(a):
    seen = set(a)
    x = {k}
    while x in seen:
        x += 1
    return x""",
        """def f(a):
    x = {k}
    while any(y == x for y in a):
        x += 1
    return x""",
        filled,
    ),
    Template(
        "most common",
        (
            "give the most frequent value, the smallest on a tie, {k} if empty",
            "find the mode, the least on a tie, {k} if none",
        ),
        "count all values in one pass",
        """def f(a):
    counts = {}
    for x in a:
        counts[x] = counts.get(x, 0) + 1
    return min(counts, key=lambda x: (-counts[x], x), default={k})""",
        """def f(a):
    best, top = {k}, 0
    for x in a:
        number = 0
        for y in a:
            if x == y:
                number += 1
        if number > top or number == top and x < best:
            best, top = x, number
    return best""",
        crowded,
        held_out=True,
    ),
    Template(
        "falling pairs",
        (
            "count the pairs i < j with a[i] == a[j] + {k}",
            "return how many later numbers are exactly {k} below an earlier one, by pairs",
        ),
        "count the numbers seen so far",
        """def f(a):
    seen = {}
    pairs = 0
    for x in a:
        pairs += seen.get(x + {k}, 0)
        seen[x] = seen.get(x, 0) + 1
    return pairs""",
        """def f(a):
    pairs = 0
    for j in range(len(a)):
        for i in range(j):
            if a[i] == a[j] + {k}:
                pairs += 1
    return pairs""",
        crowded,
        held_out=True,
    ),
    Template(
        "window sums",
        (
            "give the sums of all windows of len(a) // 2 + {k} neighbours",
            "list every sum of len(a) // 2 + {k} numbers in a row",
        ),
        "slide the window: add the new number, take off the old one",
        """def f(a):
    width = len(a) // 2 + {k}
    if width > len(a):
        return []
    total = sum(a[:width])
    out = [total]
    for i in range(width, len(a)):
        total += a[i] - a[i - width]
        out.append(total)
    return out""",
        """def f(a):
    width = len(a) // 2 + {k}
    out = []
    for i in range(len(a) - width + 1):
        total = 0
        for j in range(i, i + width):
            total += a[j]
        out.append(total)
    return out""",
        held_out=True,
    ),
)
VALUES = tuple(range(2, 14))


@dataclass(frozen=True)
class Choice:
    """A template with its parameter: what one task asks for."""

    template: Template
    k: int

    def __str__(self) -> str:
        return f"performance: {self.template.name} {self.k}"

    def fill(self, text: str) -> str:
        """`text` with the parameter in place."""
        return text.replace("{k}", str(self.k))

    @property
    def split(self) -> str:
        """The one split this choice may appear in."""
        if self.template.held_out:
            return "unseen"
        return "test" if hashlib.sha256(str(self).encode()).digest()[0] < 64 else "train"


CHOICES = tuple(Choice(template, k) for template in TEMPLATES for k in VALUES)


def choose(split: str, rng: Random) -> Choice:
    """One of the split's programs."""
    return rng.choice([choice for choice in CHOICES if choice.split == split])


def load(source: str) -> Callable[[List], Any]:
    """The function `f` of one of our own references."""
    names: dict[str, Any] = {}
    exec(source, names)
    return names["f"]


def make_task(choice: Choice, split: str, index: int, rng: Random) -> Task:
    """The task that asks for `choice`. meta["performance"]: sizes, args (one per size), fast and slow source."""
    template, k = choice.template, choice.k
    fast, slow, ask = choice.fill(template.fast), choice.fill(template.slow), choice.fill(rng.choice(template.asks))
    opener = rng.choice(("Write a fast f(a) for a long list of numbers:", "I need an efficient f(a) for a big list:"))
    prompt = f"{opener} {ask}."
    reference = load(fast)
    inputs: list[List] = [[], [k], [k, 0, k], *(template.inputs(n, k, rng) for n in (6, 12))]
    inputs += [[rng.randint(-k, 2 * k) for _ in range(n)] for n in (8, 14, 20)]
    large = [template.inputs(n, k, rng) for n in SIZES]
    return Task(
        id=f"{split}-{index}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}",
        prompt=[{"role": "user", "content": prompt}],
        answer=fast,
        steps=(f"1. {template.name}: {template.thought}",),
        meta={
            "entry_point": "f",
            "cases": [[[a], {}, reference(list(a))] for a in inputs],
            "reference": fast,
            "family": "performance",
            "difficulty": 1,
            "program": str(choice),
            "performance": {"sizes": list(SIZES), "args": [[[a], {}] for a in large], "fast": fast, "slow": slow},
        },
    )
