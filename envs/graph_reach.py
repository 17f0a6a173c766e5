"""Which of two nodes can be reached? A generator in the manner of ProsQA (Hao et al. 2024), as words or as bare symbols.

A directed graph grows from two roots. Every further node descends from one of them or from both; a candidate of each root's own
descendants, both leaves, is offered, and the one below the asked root is the answer. Statistics of the default "prosa" sizes follow
the published files: 22.8 nodes and 35.8 edges on average, 3 to 6 hops with shares .40, .43, .14, .06 (of what the generator makes, the
rest is refused).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from envs.base import Grade, SingleTurnEnv, Task

NAMES = (
    "Alex",
    "Bob",
    "Carol",
    "Davis",
    "Eva",
    "Fae",
    "Gabe",
    "Jack",
    "Max",
    "Oliver",
    "Polly",
    "Rex",
    "Sally",
    "Sam",
    "Stella",
    "Tom",
    "Wren",
)
HEADS = ("b", "br", "d", "f", "g", "gr", "gw", "h", "j", "l", "n", "r", "s", "sh", "st", "t", "w", "y", "z")
STEMS = ("ompus", "umpus", "impus", "orpus", "erpus", "ilpus", "empus", "ampus")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Graph:
    """edges: (from, to) in the order shown. root: asked from. target: reachable from it; other: not. path: from the root to the target."""

    nodes: int
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    other: int
    path: tuple[int, ...]


class GraphReach(SingleTurnEnv):
    """nodes: least and most nodes of a graph. hops: shares of path lengths, from the first entry on (by default those published for
    ProsQA).

    style: "symbols" (`3 > 7 ; ... ? 4 9 from 0`) or "prosqa" (sentences about lempuses).
    """

    description: ClassVar[str] = "which of two nodes can be reached from a root (ProsQA's generator)"

    def __init__(
        self,
        nodes: Sequence[int] = (18, 28),
        hops: dict[int, float] | None = None,
        style: str = "symbols",
        extra_edges: float = 0.57,
    ) -> None:
        low, high = nodes
        if not 6 <= low <= high:
            raise ValueError(f"graph_reach needs nodes: [least, most] with least at least 6, not {list(nodes)}")
        if style not in ("symbols", "prosqa"):
            raise ValueError(f"graph_reach has no style {style!r}; there are symbols and prosqa")
        self.low, self.high, self.style = low, high, style
        self.shares = {int(h): float(s) for h, s in (hops or {3: 0.40, 4: 0.43, 5: 0.14, 6: 0.02}).items()}
        self.extra_edges = extra_edges
        self._kinds = [head + stem for stem in STEMS for head in HEADS][: max(high, 40)]

    def splits(self) -> Sequence[str]:
        return SPLITS

    def words(self) -> Sequence[str]:
        if self.style == "symbols":
            return (*map(str, range(self.high)), ">", ";", "?", "from")
        raise ValueError(
            "graph_reach has too many words for a word-level model in the style prosqa; use the style symbols"
        )

    def tasks(self, split: str) -> Iterator[Task]:
        if split not in SPLITS:
            raise ValueError(f"graph_reach has no split {split!r}; there are: train, test")
        rng = np.random.default_rng([self.low, self.high, SPLITS.index(split), 0x9A])
        lengths, shares = list(self.shares), np.array(list(self.shares.values()))
        serial = 0
        while True:
            wanted = int(rng.choice(lengths, p=shares / shares.sum()))
            graph = None
            while graph is None or len(graph.path) - 1 != wanted:
                graph = grow(int(rng.integers(self.low, self.high + 1)), self.extra_edges, rng)
            yield self._task(f"{split}-{serial}", graph, rng)
            serial += 1

    def grade(self, task: Task, text: str) -> Grade:
        """1 if the text ends with the answer's own words."""
        given, good = text.strip().rstrip(".").split(), (task.answer or "").rstrip(".").split()
        return Grade(float(bool(given) and given[-1] == good[-1]))

    def _task(self, name: str, graph: Graph, rng: np.random.Generator) -> Task:
        first, second = (graph.target, graph.other) if rng.random() < 0.5 else (graph.other, graph.target)
        if self.style == "symbols":
            label = [str(i) for i in rng.permutation(self.high)[: graph.nodes]]
            edges = " ; ".join(f"{label[a]} > {label[b]}" for a, b in graph.edges)
            prompt = f"{edges} ? {label[first]} {label[second]} from {label[graph.root]}"
            steps = tuple(label[i] for i in graph.path[1:-1])
            return Task(name, prompt, label[graph.target], steps, {"hops": len(graph.path) - 1})
        people = rng.permutation(len(NAMES))
        kinds = rng.permutation(len(self._kinds))
        roots = {a for a, _ in graph.edges} - {b for _, b in graph.edges}
        label = [NAMES[people[i]] if i in roots else self._kinds[kinds[i]] for i in range(graph.nodes)]

        def say(a: int, b: int) -> str:
            return f"{label[a]} is a {label[b]}." if a in roots else f"Every {label[a]} is a {label[b]}."

        question = f"Is {label[graph.root]} a {label[first]} or {label[second]}?"
        prompt = " ".join([*(say(a, b) for a, b in graph.edges), question])
        steps = tuple(say(a, b) for a, b in zip(graph.path, graph.path[1:], strict=False))
        return Task(
            name, prompt, f"{label[graph.root]} is a {label[graph.target]}.", steps, {"hops": len(graph.path) - 1}
        )


def grow(nodes: int, extra: float, rng: np.random.Generator) -> Graph | None:
    """A random graph from two roots (nodes 0 and 1), or None if it offers no pair of candidates. extra: further parents a node has on
    average."""
    side = [{0}, {1}]
    below = [[0], [1]]  # nodes that descend from one root only
    parents: list[list[int]] = [[], []]
    belongs: list[set[int]] = [*side]
    for node in range(2, nodes):
        both = rng.random() < 0.25
        of = {0, 1} if both else {int(rng.integers(2))}
        pool = list(range(node)) if both else below[next(iter(of))]
        # late nodes are likelier parents: paths become long
        weight = np.arange(1, len(pool) + 1) ** 1.0
        count = min(1 + rng.poisson(extra), len(pool), 3)
        chosen = rng.choice(len(pool), size=count, replace=False, p=weight / weight.sum())
        mine = sorted(pool[i] for i in chosen)
        parents.append(mine)
        origin = set().union(*(belongs[p] for p in mine))
        belongs.append(origin)
        if len(origin) == 1:
            below[next(iter(origin))].append(node)
    edges = [(p, node) for node, mine in enumerate(parents) for p in mine]
    inner = {a for a, _ in edges}
    leaves = [[n for n in below[r] if n not in inner and n > 1] for r in (0, 1)]
    if not leaves[0] or not leaves[1]:
        return None
    root = int(rng.integers(2))
    target, other = int(rng.choice(leaves[root])), int(rng.choice(leaves[1 - root]))
    order = rng.permutation(len(edges))
    shown = tuple(edges[i] for i in order)
    return Graph(nodes, shown, root, target, other, shortest(edges, root, target))


def shortest(edges: Sequence[tuple[int, int]], root: int, target: int) -> tuple[int, ...]:
    """A shortest path, the one through the smallest numbers."""
    children: dict[int, list[int]] = {}
    for a, b in sorted(edges):
        children.setdefault(a, []).append(b)
    before: dict[int, int] = {root: root}
    queue = deque([root])
    while queue:
        node = queue.popleft()
        if node == target:
            break
        for child in children.get(node, ()):
            if child not in before:
                before[child] = node
                queue.append(child)
    path = [target]
    while path[-1] != root:
        path.append(before[path[-1]])
    return tuple(reversed(path))
