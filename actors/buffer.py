"""TraceBuffer: which groups may start, which belong to the next batch. Pure bookkeeping: no clock, no actor, no waiting.

Staleness S is a bound. With B groups a batch and v the current policy version:

  admission:    accepted + running <= (S + v + 1) * B   (accepted: consumed and waiting groups that `keep` let in)
  consumption:  the batch of version v takes the B oldest waiting groups, once what is left is not overdue: for every
                j = 0..S at most j * B groups admitted at a version <= v + j - S remain, running ones included.

A group admitted at version a must be consumed by version a + S, and each version consumes B: the rule for j > 0 keeps young, fast
groups from overtaking so many slow ones that these no longer fit before their deadline (waiting only for groups that are due
at v, j = 0, does not bound the age). Admission leaves at most (j + 1) B groups of versions <= v + j - S, so once the older ones have
ended the rule holds and the batch goes: it waits for stragglers, never for ever. A group refused by `keep` frees its place.
With S = 0 a batch is exactly the groups admitted at its version.
Every index is admitted once, and after a restart again only if its group was not consumed.
"""

from __future__ import annotations

import heapq
from typing import Any

from actors.types import Group


class TraceBuffer:
    """See the module's docstring. batch_groups: B. staleness: S."""

    def __init__(self, batch_groups: int, staleness: int) -> None:
        self.batch_groups = batch_groups
        self.staleness = staleness
        self.version = 0
        self.consumed = 0
        self.refused = 0
        self._next = 0
        self._again: list[int] = []
        self._running: dict[int, int] = {}
        self._ready: dict[int, Group] = {}

    def may_admit(self) -> bool:
        return self._room > 0

    @property
    def _room(self) -> int:
        accepted = self.consumed + len(self._ready)
        return (self.staleness + self.version + 1) * self.batch_groups - accepted - len(self._running)

    def upcoming(self) -> list[int]:
        """The indices that `admit` would give now, up to the bound."""
        room = self._room
        again = heapq.nsmallest(room, self._again)
        return again + list(range(self._next, self._next + room - len(again)))

    def admit(self) -> int:
        """Start a group: its index, which names its task and its seeds. Only when `may_admit`."""
        if not self.may_admit():
            raise RuntimeError("admission beyond the staleness bound")
        if self._again:
            index = heapq.heappop(self._again)
        else:
            index, self._next = self._next, self._next + 1
        self._running[index] = self.version
        return index

    def finish(self, index: int, group: Group | None) -> None:
        """A started group ended: with its traces, or None where `keep` refused it."""
        admitted = self._running.pop(index)
        if group is None:
            self.refused += 1
        else:
            group.index, group.admitted = index, admitted
            self._ready[index] = group

    def may_take(self) -> bool:
        batch = self._oldest()
        if len(batch) < self.batch_groups:
            return False
        left = [g.admitted for i, g in self._ready.items() if i not in batch] + list(self._running.values())
        bounds = ((self.version + j - self.staleness, j * self.batch_groups) for j in range(self.staleness + 1))
        return all(sum(admitted <= version for admitted in left) <= most for version, most in bounds)

    def take(self) -> list[Group]:
        """The batch of the current version, in order of index. Only when `may_take`."""
        if not self.may_take():
            raise RuntimeError("the batch is not complete")
        batch = self._oldest()
        self.consumed += len(batch)
        return [self._ready.pop(i) for i in sorted(batch)]

    def _oldest(self) -> set[int]:
        return set(sorted(self._ready, key=lambda i: (self._ready[i].admitted, i))[: self.batch_groups])

    def advance(self, version: int) -> None:
        """New weights are published; versions only grow, except through `load`."""
        if version < self.version:
            raise ValueError(f"version {version} is older than {self.version}")
        self.version = version

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def ready(self) -> int:
        return len(self._ready)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: groups still running are started again after a restart."""
        return {
            "version": self.version,
            "consumed": self.consumed,
            "refused": self.refused,
            "next": self._next,
            "again": sorted([*self._again, *self._running]),
            "ready": list(self._ready.values()),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.version = state["version"]
        self.consumed = state["consumed"]
        self.refused = state["refused"]
        self._next = state["next"]
        self._again = sorted(state["again"])
        self._running = {}
        self._ready = {group.index: group for group in state["ready"]}
