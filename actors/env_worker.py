"""EnvWorker: a Ray actor that plays episodes. Environments, their sandboxes and their task streams live here, nowhere else."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from actors.diary import Diary
from envs.base import Env, GradeExpected, InfraError, Observation, SingleTurnEnv, Step, Task
from envs.conform import EnvFault, check_observation, check_splits, check_step, check_task, check_tasks, raised

log = logging.getLogger("posterior.env")


@dataclass
class EnvInfo:
    """What the rollout needs to know beforehand."""

    single_turn: bool
    max_turns: int
    splits: tuple[str, ...]
    snapshots: bool = False


class EnvWorker:
    """Build it with `ray.remote(EnvWorker).options(...)`.

    name, args: of the environment (`envs.registry.make`). path: folders to import user code from, first. number, diary: which
    worker this is, and where its warnings (a sandbox that restarts) are told.
    """

    def __init__(
        self, name: str, args: dict[str, Any], path: Sequence[str] = (), number: int = 0, diary: Diary | None = None
    ) -> None:
        if diary is not None:
            diary.listen(f"environment worker {number}")
        for folder in reversed(path):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        from envs.registry import make

        self._make = lambda: make(name, args)
        self.name = name
        self._first = self._make()
        self._idle: list[Env] = [self._first]
        self._playing: dict[str, Env] = {}
        self._lists: dict[str, Sequence[Task]] = {}
        self._streams: dict[str, tuple[Iterator[Task], int]] = {}

    async def info(self) -> EnvInfo:
        env = self._first
        splits = tuple(check_splits(env, self.name))
        return EnvInfo(isinstance(env, SingleTurnEnv), env.max_turns, splits, type(env).snapshot is not Env.snapshot)

    async def alive(self) -> dict[str, Any]:
        """A sign of life."""
        return {"pid": os.getpid()}

    async def tasks(self, split: str, start: int, count: int, seed: int | None) -> list[Task]:
        """Tasks start..start+count-1 of a split's endless order.

        A finite split (`Sequence`) repeats, reshuffled every epoch from `seed`; with seed None it is given once in its own
        order, and fewer than `count` may come back. A stream is advanced to `start`, and started again when it ends.
        """
        source = self._lists.get(split) or self._ask(split)
        if isinstance(source, Sequence):
            self._lists[split] = source
            if len(source) == 0:
                raise EnvFault(f"environment {self.name}: the split {split!r} has no tasks")
            if seed is None:
                order: Iterable[int] = range(start, min(start + count, len(source)))
            else:
                order = (_shuffled(i, len(source), seed) for i in range(start, start + count))
            return [check_task(source[i], self.name, split) for i in order]
        return self._advance(split, start, count, repeat=seed is not None)

    async def grade(self, task: Task, actions: Sequence[str], seed: int) -> list[Step | InfraError]:
        """Grade answers to a single-turn task, one fresh episode each; an `InfraError` in place of what could not be graded."""
        import asyncio

        async def one(action: str) -> Step | InfraError:
            env = self._take()
            try:
                await env.reset(task, seed)
                return check_step(await env.step(action), self.name)
            except InfraError as error:
                return error
            except EnvFault:
                raise
            except Exception as error:
                raise self._fault(error, f"grading an answer to task {task.id}") from error
            finally:
                self._idle.append(env)

        return list(await asyncio.gather(*(one(action) for action in actions)))

    async def open(self, episode: str, task: Task, seed: int) -> Observation:
        """Start a multi-turn episode under a name of the caller's."""
        env = self._playing[episode] = self._take()
        try:
            return check_observation(await env.reset(task, seed), self.name)
        except (InfraError, EnvFault):
            raise
        except Exception as error:
            raise self._fault(error, f"reset of task {task.id}") from error

    async def step(self, episode: str, action: str) -> Step:
        env = self._player(episode)
        try:
            return check_step(await env.step(action), self.name)
        except (InfraError, EnvFault):
            raise
        except Exception as error:
            raise self._fault(error, f"step of episode {episode}") from error

    async def snapshot(self, episode: str) -> bytes:
        """The state of an episode, for `restore`."""
        return self._guard(self._player(episode).snapshot, f"snapshot of episode {episode}")

    async def restore(self, episode: str, state: bytes) -> None:
        """Start a multi-turn episode at a snapshot, which another worker may have taken."""
        env = self._playing[episode] = self._take()
        self._guard(partial(env.restore, state), f"restore of episode {episode}")

    async def close(self, episode: str) -> None:
        """End an episode; its instance is reset before it plays again."""
        env = self._playing.pop(episode, None)
        if env is not None:
            self._idle.append(env)

    def _player(self, episode: str) -> Env:
        if episode not in self._playing:
            raise InfraError(f"the episode {episode} was lost when its worker died")
        return self._playing[episode]

    def _take(self) -> Env:
        return self._idle.pop() if self._idle else self._make()

    def _advance(self, split: str, start: int, count: int, repeat: bool) -> list[Task]:
        if split not in self._streams or self._streams[split][1] > start:
            self._streams[split] = iter(self._ask(split)), 0
        stream, at = self._streams.pop(split)
        out: list[Task] = []
        empty = False
        while at < start + count:
            task = self._guard(partial(next, stream, None), f"tasks({split!r})")
            if task is None:
                if not repeat or empty:
                    break
                stream, empty = iter(self._ask(split)), True
                continue
            empty = False
            if at >= start:
                out.append(check_task(task, self.name, split))
            at += 1
        self._streams[split] = (stream, at)
        if not out:
            raise EnvFault(f"environment {self.name}: the split {split!r} has no tasks")
        return out

    def _ask(self, split: str) -> Iterable[Task]:
        """The environment's own answer, each time anew: a generator can be read only once."""
        return check_tasks(self._guard(lambda: self._first.tasks(split), f"tasks({split!r})"), self.name, split)

    def _guard(self, call: Any, what: str) -> Any:
        try:
            return call()
        except (InfraError, EnvFault):
            raise
        except Exception as error:
            raise self._fault(error, what) from error

    def _fault(self, error: BaseException, what: str) -> EnvFault:
        if isinstance(error, GradeExpected):
            return EnvFault(f"environment {self.name}: {error}")
        return raised(self.name, what, error)


def _shuffled(index: int, n: int, seed: int) -> int:
    """The position of the index-th task in an endless order that is a fresh permutation every epoch."""
    epoch, at = divmod(index, n)
    return int(_permutation(n, seed, epoch)[at])


_permutations: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    key = (n, seed, epoch)
    if key not in _permutations:
        for old in list(itertools.islice(_permutations, max(0, len(_permutations) - 3))):
            del _permutations[old]
        _permutations[key] = np.random.default_rng([seed, epoch, 0x7A5C]).permutation(n)
    return _permutations[key]
