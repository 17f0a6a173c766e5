"""The Trace: one sequence exactly as the policy read it, for token and latent thinkers alike.

A trace is a set of flat arrays with one entry per position. Sampled ids are trained on as they are: text is never
re-tokenised between sampler and learner. Other models read other sequences (a helper q reads x, y, z; a reward model reads
x, y): `Trace.view` builds such a sequence together with an index map back to the trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np


class Kind(IntEnum):
    """What a position is."""

    CONTEXT = 0
    """Given: prompt, observation, tool output. Never trained as an action."""
    THOUGHT = 1
    """A sampled token of the readable trace z."""
    LATENT = 2
    """A continuous step; `token` holds the id of `<latent>`, which is never embedded."""
    ACTION = 3
    """A sampled token of the answer or action y, the only part an environment sees."""
    TARGET = 4
    """A token of a given good answer y*, teacher-forced."""


@dataclass
class Score:
    """What one role said about each position of a trace. values: float32[T], NaN where it said nothing."""

    values: np.ndarray
    version: int


@dataclass
class View:
    """Another reading of a trace by another role.

    token: int32[V], kind: uint8[V]. index: int32[V], the trace position each view position came from, -1 where the view
    added text of its own. Per-position fields written on the trace reach the view through `index`.
    """

    token: np.ndarray
    kind: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.token)

    def gather(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Carry float[T] values of the trace to float32[V] of the view, `fill` where the view added text."""
        out = np.full(len(self.index), fill, np.float32)
        own = self.index >= 0
        out[own] = values[self.index[own]]
        return out

    def scatter(self, values: np.ndarray, length: int) -> np.ndarray:
        """Carry float[V, ..] values of the view back to float32[length, ..] of the trace, NaN where the view has no position."""
        out = np.full((length, *values.shape[1:]), np.nan, np.float32)
        own = self.index >= 0
        out[self.index[own]] = values[own]
        return out


@dataclass(frozen=True)
class Literal:
    """New token ids in a view (a template's own words), read as CONTEXT."""

    ids: tuple[int, ...]


@dataclass
class Trace:
    """One sequence as the policy read it. T positions.

    token: int32[T] token ids. kind: uint8[T] of `Kind`.
    logprob: float32[T] behaviour log-probability of every sampled decision (also of "think on / stop" at a LATENT position,
        where the number of latent steps is sampled), under the sampling temperature and truncation; NaN elsewhere.
    version: int32[T] policy version that sampled the position, -1 where nothing was sampled.
    turn: int16[T] turn index of a multi-turn episode.
    task, group, episode: ids; `parent` is (trace episode id, position) where this one branched from a snapshot.
    seed: of the sampled decisions. eps_seed: counter-based noise seed of stochastic latents, None for tokens.
    reward: float32[T], the environment's reward at the last position of the action that earned it, else 0. Their sum is
        `total_reward` for methods that want one number.
    grade: what the environment gave in all, whatever of it became reward. components: named parts of the grade. outcome: "ok",
        "truncated" (cut by a length limit) or "infra" (masked).
    passed: whether the task counts as solved. note: the grader's words, for people.
    scores: what roles said about each position. weights: per-position credit written by `Algorithm.credit`.
    timings: seconds by stage. meta: anything else, picklable.
    """

    token: np.ndarray
    kind: np.ndarray
    logprob: np.ndarray
    version: np.ndarray
    turn: np.ndarray
    task: str
    group: str
    episode: str
    parent: tuple[str, int] | None = None
    seed: int = 0
    eps_seed: int | None = None
    reward: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    grade: float = 0.0
    components: dict[str, float] = field(default_factory=dict)
    outcome: str = "ok"
    passed: bool = False
    note: str = ""
    scores: dict[str, Score] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.token = np.asarray(self.token, np.int32)
        self.kind = np.asarray(self.kind, np.uint8)
        self.logprob = np.asarray(self.logprob, np.float32)
        self.version = np.asarray(self.version, np.int32)
        self.turn = np.asarray(self.turn, np.int16)
        self.reward = np.asarray(self.reward, np.float32)
        if len(self.reward) == 0:
            self.reward = np.zeros(len(self.token), np.float32)
        for name in ("kind", "logprob", "version", "turn", "reward"):
            if len(getattr(self, name)) != len(self.token):
                raise ValueError(
                    f"trace {self.episode}: {name} has {len(getattr(self, name))} entries, token has {len(self)}"
                )

    def __len__(self) -> int:
        return len(self.token)

    def where(self, *kinds: Kind, turn: int | None = None) -> np.ndarray:
        """Positions (int64[n], ascending) of the given kinds, of one turn if asked."""
        hit = np.isin(self.kind, [int(k) for k in kinds])
        if turn is not None:
            hit &= self.turn == turn
        return np.flatnonzero(hit)

    @property
    def sampled(self) -> np.ndarray:
        """bool[T]: positions at which the policy made a sampled decision (exactly those with a log-probability)."""
        return ~np.isnan(self.logprob)

    @property
    def total_reward(self) -> float:
        return float(self.reward.sum())

    @property
    def masked(self) -> bool:
        """True for a trace that the machinery failed on: kept for the count, never trained on."""
        return self.outcome == "infra"

    def extended(
        self,
        token: Iterable[int],
        kind: Kind | np.ndarray,
        logprob: np.ndarray | None = None,
        version: np.ndarray | None = None,
    ) -> Trace:
        """A new trace: this one and n positions more in its last turn, without what roles said and what credit wrote.

        token: int32[n]. kind: one, or uint8[n]. logprob: float32[n] of what was sampled. version: int32[n] likewise.
        """
        token = np.asarray(list(token), np.int32)
        n = len(token)
        return replace(
            self,
            token=np.append(self.token, token),
            kind=np.append(self.kind, np.broadcast_to(np.asarray(kind, np.uint8), n)),
            logprob=np.append(self.logprob, np.full(n, np.nan, np.float32) if logprob is None else logprob),
            version=np.append(self.version, np.full(n, -1, np.int32) if version is None else version),
            turn=np.append(self.turn, np.full(n, self.turn[-1] if len(self) else 0, np.int16)),
            reward=np.append(self.reward, np.zeros(n, np.float32)),
            scores={},
            weights={},
            components=dict(self.components),
            timings=dict(self.timings),
            meta=dict(self.meta),
        )

    def view(self, parts: Iterable[np.ndarray | Literal] | None = None) -> View:
        """Another reading of this trace: trace positions (integer arrays) and `Literal` ids, in the order given.

        Without `parts`, the policy's own reading. A template is a function that returns such parts, for example
        `[trace.where(Kind.CONTEXT), Literal(hint), trace.where(Kind.ACTION), trace.where(Kind.THOUGHT)]`.
        """
        if parts is None:
            return View(self.token, self.kind, np.arange(len(self), dtype=np.int32))
        token: list[np.ndarray] = []
        kind: list[np.ndarray] = []
        index: list[np.ndarray] = []
        for part in parts:
            if isinstance(part, Literal):
                token.append(np.asarray(part.ids, np.int32))
                kind.append(np.full(len(part.ids), Kind.CONTEXT, np.uint8))
                index.append(np.full(len(part.ids), -1, np.int32))
            else:
                positions = np.asarray(part, np.int64)
                token.append(self.token[positions])
                kind.append(self.kind[positions])
                index.append(positions.astype(np.int32))
        if not token:
            raise ValueError(f"trace {self.episode}: an empty view")
        return View(np.concatenate(token), np.concatenate(kind), np.concatenate(index))

    @classmethod
    def from_target(cls, context: Iterable[int], target: Iterable[int], task: str, **more: Any) -> Trace:
        """A trace for supervised methods: given context, then a given good answer (TARGET), nothing sampled."""
        context, target = list(context), list(target)
        n = len(context) + len(target)
        return cls(
            token=np.array([*context, *target], np.int32),
            kind=np.array([Kind.CONTEXT] * len(context) + [Kind.TARGET] * len(target), np.uint8),
            logprob=np.full(n, np.nan, np.float32),
            version=np.full(n, -1, np.int32),
            turn=np.zeros(n, np.int16),
            task=task,
            group=task,
            episode=task,
            **more,
        )
