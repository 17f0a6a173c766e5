"""Which of two nodes can be reached? A generator in the manner of ProsQA (Hao et al. 2024), as words or as bare
symbols.

    0 3 ; 3 7 ; 5 9 ? 7 9 from 0 ->          7: edges, two candidates, the root

A graph (`envs.graphs`) grows from two roots; a leaf below each is offered, and the one below the asked root is the
answer. The default sizes follow the published files: 22.8 nodes and about 36 edges on average, 3 to 6 hops with
shares .40, .43, .14, .02. `prosqa: FILE` adds a split of the published rows in the same words, so that what is
trained on the generator is judged on them.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, islice, permutations
from typing import Any, ClassVar

import numpy as np

from envs.base import Grade, SingleTurnEnv, Task
from envs.graphs import Graph, Grower, layers, read_prosqa, shortcut_floors

NAMES: tuple[str, ...] = (
    *("Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max"),
    *("Oliver", "Polly", "Rex", "Sally", "Sam", "Stella", "Tom", "Wren"),
)
"""ProsQA's people."""
KINDS: tuple[str, ...] = (
    *("bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus", "grimpus"),
    *("gwompus", "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus", "numpus", "quimpus"),
    *("rempus", "rompus", "rorpus", "scrompus", "shumpus", "sterpus", "storpus", "terpus", "timpus", "tumpus"),
    *("vumpus", "worpus", "wumpus", "yerpus", "yimpus", "yumpus", "zhorpus", "zumpus"),
)
"""ProsQA's made-up classes."""
STYLES = ("symbols", "arrows", "prosqa", "spaced")
WRITTEN = ("path", "frontier")


class GraphReach(SingleTurnEnv):
    """nodes: least and most nodes of a graph. hops: shares of path lengths (by default those published for ProsQA).

    style: "symbols" (see the module), "arrows" (the same with every edge one word, 0>3), "prosqa" (sentences about lempuses,
    for models that know English), or "spaced" (the same with punctuation as words of its own, for word-level models).
    parents: mean of the Poisson number of parents of a node. balanced: both candidates lie equally far from their roots,
    so that shortcuts are worth less.
    written: the steps of a task are the nodes of a shortest path ("path"), or ("frontier", symbols only) any one node at
    distance 1 from the root, any one at distance 2 and so on, which takes no foresight (Zhu et al. 2025,
    arXiv:2509.23365). prosqa: a file of ProsQA's rows to be judged on.

    Splits: "train" and "test" (endless), "hops3" .. for one length of the path each, and with a file "prosqa".
    """

    description: ClassVar[str] = "which of two nodes can be reached from a root (ProsQA's generator)"

    def __init__(
        self,
        nodes: Sequence[int] = (17, 28),
        hops: Mapping[int | str, float] | None = None,
        style: str = "symbols",
        parents: float = 1.5,
        balanced: bool = False,
        written: str = "path",
        prosqa: str | None = None,
    ) -> None:
        low, high = nodes
        if not 6 <= low <= high:
            raise ValueError(f"graph_reach needs nodes: [least, most] with least at least 6, not {list(nodes)}")
        if style not in STYLES:
            raise ValueError(f"graph_reach has no style {style!r}; there are: {', '.join(STYLES)}")
        self.bare = style in ("symbols", "arrows")
        if not self.bare and high > len(KINDS):
            raise ValueError(f"graph_reach has words for {len(KINDS)} nodes, not {high}; use the style symbols")
        if written not in WRITTEN:
            raise ValueError(f"graph_reach cannot write {written!r} as steps; there are: {', '.join(WRITTEN)}")
        if written == "frontier" and not self.bare:
            raise ValueError(
                "graph_reach writes the frontier in symbols only; set style: symbols or arrows, or written: path"
            )
        if parents <= 0:
            raise ValueError(f"graph_reach needs parents above 0, not {parents}")
        self.low, self.high, self.style, self.parents, self.prosqa = low, high, style, parents, prosqa
        self.balanced, self.written = balanced, written
        self.shares = {int(h): float(s) for h, s in (hops or {3: 0.40, 4: 0.43, 5: 0.14, 6: 0.02}).items()}

    def splits(self) -> Sequence[str]:
        each = tuple(f"hops{h}" for h in sorted(self.shares))
        return ("train", "test", *each) if self.prosqa is None else ("train", "test", *each, "prosqa")

    def words(self) -> Sequence[str]:
        if self.style == "symbols":
            return (*map(str, range(self.high)), ";", "?", "from")
        if self.style == "arrows":
            arrows = (f"{a}>{b}" for a, b in permutations(range(self.high), 2))
            return (*map(str, range(self.high)), "?", "from", *arrows)
        if self.style == "spaced":
            return (*NAMES, *KINDS, *["Every", "is", "a", "Is", "or", ".", "?"])
        raise ValueError("graph_reach in the style prosqa is for models that know English; use symbols or spaced")

    def tasks(self, split: str) -> Iterator[Task]:
        if split not in self.splits():
            raise ValueError(f"graph_reach has no split {split!r}; there are: {', '.join(self.splits())}")
        rng = np.random.default_rng([self.low, self.high, self.splits().index(split), 0x9A])
        for serial, graph in enumerate(self.graphs(split)):
            yield self._task(f"{split}-{serial}", graph, rng)

    def graphs(self, split: str) -> Iterator[Graph]:
        """The graphs behind `tasks(split)`."""
        if split == "prosqa":
            assert self.prosqa is not None
            graphs = read_prosqa(self.prosqa)
            most = max(graph.nodes for graph in graphs)
            if most > self.high and self.bare:
                raise ValueError(f"{self.prosqa} has graphs of {most} nodes; give graph_reach nodes: [..., {most}]")
            yield from graphs
            return
        rng = np.random.default_rng([self.low, self.high, self.splits().index(split), 0x6A])
        lengths, total = list(self.shares), sum(self.shares.values())
        sums = list(accumulate(share / total for share in list(self.shares.values())[:-1]))
        if split.startswith("hops"):
            lengths, sums = [int(split.removeprefix("hops"))], []
        middle, spread = (self.low + self.high) / 2 + 0.5, (self.high - self.low) / 5.5
        grower = Grower(self.parents, rng)
        while True:
            wanted = int(lengths[bisect(sums, rng.random())])
            graph = None
            while graph is None or graph.nodes < self.low:
                size = min(max(round(middle + spread * rng.standard_normal()), self.low), self.high)
                graph = grower.grow(size, wanted, self.balanced)
            yield graph

    def grade(self, task: Task, text: str) -> Grade:
        """1 if the text ends with the answer's own last word, full stop aside."""
        given, good = (t.strip().rstrip(".").split() for t in (text, task.answer or ""))
        return Grade(float(bool(given) and given[-1] == good[-1]))

    def references(self, split: str, tasks: int) -> dict[str, float]:
        """Accuracy of the rules of `graphs.shortcut_floors` on the first so many tasks of a split."""
        shape = ((self.low, self.high), tuple(self.shares.items()), self.parents, self.balanced, self.prosqa)
        return dict(_floors(shape, split, tasks))

    async def extra_checks(self, samples: int) -> dict[str, Any]:
        """For `posterior envs check`: the floors."""
        return {"shortcut_floors": {split: self.references(split, samples) for split in self.splits()}}

    def _task(self, name: str, graph: Graph, rng: np.random.Generator) -> Task:
        first, second = (graph.target, graph.other) if rng.random() < 0.5 else (graph.other, graph.target)
        meta = {"hops": graph.hops}
        if self.bare:
            label = [str(i) for i in rng.permutation(self.high)[: graph.nodes]]
            between, apart = (" ", " ; ") if self.style == "symbols" else (">", " ")
            edges = apart.join(f"{label[a]}{between}{label[b]}" for a, b in graph.edges)
            prompt = f"{edges} ? {label[first]} {label[second]} from {label[graph.root]}"
            nodes = graph.path[1:-1]
            if self.written == "frontier":
                nodes = tuple(int(rng.choice(layer)) for layer in layers(graph)[1 : graph.hops])
            return Task(name, prompt, label[graph.target], tuple(label[i] for i in nodes), meta)
        without_parents = {a for a, _ in graph.edges} - {b for _, b in graph.edges}
        people, kinds = rng.permutation(len(NAMES)), rng.permutation(len(KINDS))
        label = [NAMES[people[i % len(NAMES)]] if i in without_parents else KINDS[kinds[i]] for i in range(graph.nodes)]
        label = list(graph.names) if graph.names else label
        stop = " ." if self.style == "spaced" else "."

        def say(a: int, b: int) -> str:
            subject = label[a] if a in without_parents else f"Every {label[a]}"
            return f"{subject} is a {label[b]}{stop}"

        asked = f"Is {label[graph.root]} a {label[first]} or {label[second]}{stop.replace('.', '?')}"
        prompt = " ".join([*(say(a, b) for a, b in graph.edges), asked])
        steps = tuple(say(a, b) for a, b in zip(graph.path, graph.path[1:], strict=False))
        return Task(name, prompt, f"{label[graph.root]} is a {label[graph.target]}{stop}", steps, meta)


@lru_cache(maxsize=32)
def _floors(shape: tuple[Any, ...], split: str, tasks: int) -> tuple[tuple[str, float], ...]:
    nodes, shares, parents, balanced, prosqa = shape
    env = GraphReach(nodes, dict(shares), "symbols", parents, balanced, prosqa=prosqa)
    return tuple(shortcut_floors(islice(env.graphs(split), tasks)).items())
