"""Directed graphs with two roots and two candidate leaves: how they grow, how they are read from ProsQA's files, and
what their shapes give away.

The growth is in the manner of ProsQA (appendix of Hao et al. 2024): node by node, each new node draws its
parents from the descendants of one root, of the other, or from all, deep nodes being likelier. The constants are
fitted to the 300 published validation rows (`tests/test_graph_reach.py` compares them).
"""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

SIDES = (0.36, 0.46)
"""Shares of nodes whose parents descend from the first root only, from the second only; the others draw from all
nodes."""
NEW_ROOT = 0.035
"""Share of nodes that begin without parents."""
FAR = 1 << 20
DEEPER = 0.6
"""A node at depth d is 1 + 0.6 d times as likely a parent as a root."""


@dataclass(frozen=True)
class Graph:
    """edges: (from, to) in the order shown. root: asked from. target: reachable from it; other: not. path: from the
    root to the target.

    names: of the nodes, where the graph comes from a file.
    """

    nodes: int
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    other: int
    path: tuple[int, ...]
    names: tuple[str, ...] | None = None

    @property
    def hops(self) -> int:
        return len(self.path) - 1


class Grower:
    """Grows graphs with a seeded generator. parents: mean of the Poisson number of parents, of which 0 is drawn
    again."""

    def __init__(self, parents: float, rng: np.random.Generator) -> None:
        self.rng = rng
        shares = [parents**k / math.factorial(k) for k in range(1, 12)]
        self._count = [sum(shares[: k + 1]) / sum(shares) for k in range(11)]
        self._luck: list[float] = []

    def grow(self, nodes: int, hops: int, balanced: bool) -> Graph | None:
        """A graph from two roots (nodes 0 and 1) whose answer is `hops` away from the asked root, or None if it
        offers no such pair.

        balanced: the other candidate is as far from its own root, so that depth tells nothing.
        """
        if len(self._luck) < 16 * nodes:
            self._luck = self.rng.random(1 << 14).tolist()
        # paths that are long for so few nodes would hardly ever come by themselves
        edges, belongs, far = self._edges(nodes, DEEPER * 2 ** max(0.0, hops - nodes / 6))
        inner = {a for a, _ in edges}
        # leaves of one root alone
        leaves = [[n for n in range(2, nodes) if belongs[n] == side and n not in inner] for side in (1, 2)]
        root = int(2 * self._luck.pop())
        targets = [n for n in leaves[root] if far[n][root] == hops]
        others = [n for n in leaves[1 - root] if not balanced or far[n][1 - root] == hops]
        if not targets or not others:
            return None
        target, other = (pool[int(self._luck.pop() * len(pool))] for pool in (targets, others))
        return _renumbered(edges, root, target, other, self.rng)

    def _edges(self, nodes: int, deeper: float) -> tuple[list[tuple[int, int]], list[int], list[tuple[int, int]]]:
        """(edges, for every node which roots it descends from: bit 0 for node 0, bit 1 for node 1, and how far it is
        from each)"""
        draw = self._luck.pop
        belongs, far, depth, weight = [1, 2], [(0, FAR), (FAR, 0)], [0, 0], [1.0, 1.0]
        edges: list[tuple[int, int]] = []
        for node in range(2, nodes):
            u = draw()
            side = 1 if u < SIDES[0] else 2 if u < SIDES[0] + SIDES[1] else 3
            # what descends from no root may be a parent on either side
            pool = list(range(node)) if side == 3 else [i for i in range(node) if not belongs[i] & ~side]
            count = 0 if draw() < NEW_ROOT else min(1 + bisect(self._count, draw()), len(pool))
            origin, nearest, near = 0, FAR, (FAR, FAR)
            for _ in range(count):
                sums = list(accumulate([weight[i] for i in pool]))
                parent = pool.pop(min(bisect(sums, draw() * sums[-1]), len(pool) - 1))
                edges.append((parent, node))
                origin |= belongs[parent]
                nearest = min(nearest, depth[parent] + 1)
                near = (min(near[0], far[parent][0] + 1), min(near[1], far[parent][1] + 1))
            nearest = nearest if count else 0
            belongs.append(origin)
            far.append(near)
            depth.append(nearest)
            weight.append(1 + deeper * nearest)
        return edges, belongs, far


def _renumbered(
    edges: Sequence[tuple[int, int]], root: int, target: int, other: int, rng: np.random.Generator
) -> Graph:
    """Without the nodes that no edge touches; the edges in a random order."""
    used = sorted({node for edge in edges for node in edge})
    new = {node: i for i, node in enumerate(used)}
    named = [(new[a], new[b]) for a, b in edges]
    shown = tuple(named[i] for i in rng.permutation(len(named)))
    path = shortest(named, new[root], new[target])
    return Graph(len(used), shown, new[root], new[target], new[other], path)


def shortest(edges: Sequence[tuple[int, int]], root: int, target: int) -> tuple[int, ...]:
    """A shortest path, the one through the smallest numbers. Raises ValueError if there is none."""
    children: dict[int, list[int]] = {}
    for a, b in sorted(edges):
        children.setdefault(a, []).append(b)
    before: dict[int, int] = {root: root}
    queue = deque([root])
    while queue and target not in before:
        node = queue.popleft()
        for child in children.get(node, ()):
            if child not in before:
                before[child] = node
                queue.append(child)
    if target not in before:
        raise ValueError(f"node {target} cannot be reached from node {root}")
    path = [target]
    while path[-1] != root:
        path.append(before[path[-1]])
    return tuple(reversed(path))


def layers(graph: Graph) -> list[list[int]]:
    """The nodes at distance 0, 1, 2, .. from the root, as far as there are any."""
    children: dict[int, set[int]] = {}
    for a, b in graph.edges:
        children.setdefault(a, set()).add(b)
    found, seen = [[graph.root]], {graph.root}
    while found[-1]:
        new = set().union(*(children.get(node, ()) for node in found[-1])) - seen
        seen |= new
        found.append(sorted(new))
    return found[:-1]


@lru_cache(maxsize=8)
def read_prosqa(path: str) -> tuple[Graph, ...]:
    """The graphs of a ProsQA file (a .json list of rows with edges, root, target, neg_target, idx_to_symbol), their
    edges shuffled.

    The files list edges in the order of growth, which gives depths away; the questions do not. Raises ValueError
    naming the row.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"graph_reach: there is no file {path}")
    graphs = []
    for number, row in enumerate(json.loads(file.read_text(encoding="utf-8")), 1):
        try:
            edges = [(int(a), int(b)) for a, b in row["edges"]]
            order = np.random.default_rng(number).permutation(len(edges))
            root, target, other = int(row["root"]), int(row["target"]), int(row["neg_target"])
            names = tuple(map(str, row["idx_to_symbol"]))
            way = shortest(edges, root, target)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, row {number}: expected edges, root, target, neg_target and idx_to_symbol ({error!r})"
            ) from None
        graphs.append(Graph(len(names), tuple(edges[i] for i in order), root, target, other, way, names))
    return tuple(graphs)


def ancestors(graph: Graph, node: int) -> int:
    """How many nodes lead to this one."""
    parents: dict[int, list[int]] = {}
    for a, b in graph.edges:
        parents.setdefault(b, []).append(a)
    seen: set[int] = set()
    stack = [node]
    while stack:
        for parent in parents.get(stack.pop(), ()):
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return len(seen)


def in_degree(graph: Graph, node: int) -> int:
    return sum(b == node for _, b in graph.edges)


def shortcut_floors(graphs: Iterable[Graph]) -> dict[str, float]:
    """Accuracy of rules that look at the two candidates and never at the root; ties count half.

    "more ancestors", "lower in-degree", and "either": ancestors first, in-degree where they tie. A figure near these
    shows no search.
    """
    points = []
    for graph in graphs:
        more = _half(ancestors(graph, graph.target) - ancestors(graph, graph.other))
        lower = _half(in_degree(graph, graph.other) - in_degree(graph, graph.target))
        points.append((more, lower, lower if more == 0.5 else more))
    means = np.mean(points, axis=0)
    return dict(zip(("more ancestors", "lower in-degree", "either"), map(float, means), strict=True))


def _half(difference: int) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
