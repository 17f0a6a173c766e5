"""Episodes of a batch: their traces put together, and what they earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.types import Group
from models.trace import Kind, Trace


@dataclass
class Episode:
    """The traces of one episode (several where its context was rewritten on the way). group: place in the batch."""

    traces: list[Trace]
    group: int

    @property
    def turns(self) -> int:
        return max(int(trace.turn.max(initial=0)) for trace in self.traces) + 1

    @property
    def masked(self) -> bool:
        return any(trace.masked for trace in self.traces)

    def by_turn(self, values: Sequence[np.ndarray], length: int) -> np.ndarray:
        """float64[length]: per-position values of each trace, summed by turn."""
        parts = [np.bincount(t.turn, v, length) for t, v in zip(self.traces, values, strict=True)]
        return np.sum(parts, axis=0)

    @property
    def total_reward(self) -> float:
        return sum(trace.total_reward for trace in self.traces)


def live_episodes(group: Group, place: int = 0) -> list[Episode]:
    """The episodes of a group that the machinery did not fail on, in order of their first trace."""
    found: dict[str, list[Trace]] = {}
    for trace in group.traces:
        found.setdefault(trace.episode, []).append(trace)
    return [e for e in (Episode(traces, place) for traces in found.values()) if not e.masked]


def reward_metrics(groups: Sequence[Group], episodes: Sequence[Episode]) -> dict[str, float]:
    """What the batch earned and how long it was, over live episodes, before shaping or shuffling. Lengths in tokens."""
    traces = [trace for group in groups for trace in group.traces]
    metrics = {"traces/masked": float(np.mean([trace.masked for trace in traces])) if traces else 0.0}
    if not episodes:
        return metrics
    rewards = np.array([episode.total_reward for episode in episodes])
    by_group: dict[int, set[float]] = {}
    for episode in episodes:
        by_group.setdefault(episode.group, set()).add(episode.total_reward)

    def share(name: str, outcome: Sequence[bool]) -> None:
        metrics[name] = float(np.mean(outcome))

    def length(name: str, *kinds: Kind) -> None:
        metrics[f"length/{name}"] = float(np.mean([sum(len(t.where(*kinds)) for t in e.traces) for e in episodes]))

    metrics |= {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std())}
    share("pass_rate", [any(trace.passed for trace in episode.traces) for episode in episodes])
    share("truncated", [any(trace.outcome == "truncated" for trace in episode.traces) for episode in episodes])
    share("groups/zero_variance", [len(rewards) == 1 for rewards in by_group.values()])
    length("mean", Kind.THOUGHT, Kind.LATENT, Kind.ACTION)
    length("thought", Kind.THOUGHT)
    length("action", Kind.ACTION)
    if any(len(trace.where(Kind.LATENT)) for trace in traces):
        length("latent", Kind.LATENT)
    metrics["turns/mean"] = float(np.mean([episode.turns for episode in episodes]))
    for name in sorted({name for e in episodes for t in e.traces for name in t.components}):
        values = [t.components[name] for e in episodes for t in e.traces if name in t.components]
        metrics[f"component/{name}"] = float(np.mean(values))
    return metrics
