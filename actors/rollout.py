"""Playing episodes: prompts to tokens, samples to actions, actions to grades, all of it to Traces."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.clients import EnvClient, EnvSession, SamplerClient
from actors.env_worker import EnvInfo
from actors.types import CUT, Prefix, Sample, SamplingParams
from envs.base import Grade, InfraError, Step, Task
from envs.conform import EnvFault
from models.chat import ChatFormat
from models.trace import Kind, Trace

INFRA_RETRIES = 2
"""How often an episode that our machinery lost is played again before its trace is masked."""


def seed_of(*parts: Any) -> int:
    """A 62-bit seed from the run's seed and whatever names the decision; stable between runs and machines."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


@dataclass(frozen=True)
class _Mark:
    """A place in an episode that others can go on from. pieces: of its trace. state: a snapshot of the environment."""

    turn: int
    pieces: int
    state: bytes
    grade: float
    components: dict[str, float]


@dataclass
class _Episode:
    """A trace under construction: one list per array, one entry per turn's piece."""

    name: str
    seed: int
    token: list[np.ndarray] = field(default_factory=list)
    kind: list[np.ndarray] = field(default_factory=list)
    logprob: list[np.ndarray] = field(default_factory=list)
    version: list[np.ndarray] = field(default_factory=list)
    turn: list[np.ndarray] = field(default_factory=list)
    reward: list[np.ndarray] = field(default_factory=list)
    grade: float = 0.0
    components: dict[str, float] = field(default_factory=dict)
    outcome: str = "ok"
    cut: bool = False
    passed: bool = False
    note: str = ""
    timings: dict[str, float] = field(default_factory=lambda: {"sample": 0.0, "grade": 0.0})
    mark: _Mark | None = None
    root: _Episode | None = None

    def begin_at(self, root: _Episode, mark: _Mark) -> None:
        """Copy a root's beginning. It is context here: nobody sampled it for this episode, so its decisions earn no credit twice."""
        for name in ("token", "kind", "turn", "reward"):
            setattr(self, name, [piece.copy() for piece in getattr(root, name)[: mark.pieces]])
        self.logprob = [np.full_like(piece, np.nan) for piece in root.logprob[: mark.pieces]]
        self.version = [np.full_like(piece, -1) for piece in root.version[: mark.pieces]]
        self.grade, self.components, self.root, self.mark = mark.grade, dict(mark.components), root, mark

    def context(self, ids: np.ndarray, turn: int) -> None:
        n = len(ids)
        self._add(ids, np.full(n, Kind.CONTEXT), np.full(n, np.nan), np.full(n, -1), turn)

    def emit(self, sample: Sample, thought: int, turn: int) -> None:
        kind = np.where(np.arange(len(sample.token)) < thought, Kind.THOUGHT, Kind.ACTION)
        kind = np.where(sample.latent, Kind.LATENT, kind)
        self._add(sample.token, kind, sample.logprob, sample.version, turn)
        self.timings["sample"] += sample.seconds

    def earn(self, step: Step, weight: float) -> None:
        """Put a step's reward on the last position emitted, and keep what the grader said."""
        self.reward[-1][-1] += weight * step.reward
        self.grade += step.reward
        if step.grade is not None:
            self.components.update(step.grade.components)
            self.passed, self.note = step.grade.solved, step.grade.note
        elif step.terminated:
            self.passed = step.reward >= 1.0
        if step.truncated:
            self.outcome, self.cut = "truncated", True

    @property
    def eps_seed(self) -> int:
        """Of the noise of stochastic latents; a copied beginning keeps its own."""
        return seed_of(self.seed, "noise") if self.root is None else self.root.eps_seed

    @property
    def parent(self) -> tuple[str, int] | None:
        if self.root is None or self.mark is None:
            return None
        return self.root.name, sum(map(len, self.root.token[: self.mark.pieces]))

    @property
    def prefix(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.token), np.concatenate(self.kind)

    def _add(self, token: np.ndarray, kind: np.ndarray, logprob: np.ndarray, version: np.ndarray, turn: int) -> None:
        self.token.append(np.asarray(token, np.int32))
        self.kind.append(kind.astype(np.uint8))
        self.logprob.append(logprob.astype(np.float32))
        self.version.append(version.astype(np.int32))
        self.turn.append(np.full(len(token), turn, np.int16))
        self.reward.append(np.zeros(len(token), np.float32))

    def trace(self, task: str, group: str) -> Trace:
        return Trace(
            token=np.concatenate(self.token),
            kind=np.concatenate(self.kind),
            logprob=np.concatenate(self.logprob),
            version=np.concatenate(self.version),
            turn=np.concatenate(self.turn),
            reward=np.concatenate(self.reward),
            task=task,
            group=group,
            episode=self.name,
            parent=self.parent,
            seed=self.seed,
            eps_seed=self.eps_seed,
            grade=self.grade,
            components=self.components,
            outcome=self.outcome,
            passed=self.passed,
            note=self.note,
            timings=self.timings,
            meta={CUT: True} if self.cut else {},
        )


class Roller:
    """Plays episodes of one environment with one policy.

    reward_weight: factor on the environment's reward. max_length: prompt and answer together, in tokens.
    """

    def __init__(
        self,
        samplers: SamplerClient,
        envs: EnvClient,
        info: EnvInfo,
        chat: ChatFormat,
        max_length: int,
        reward_weight: float = 1.0,
    ) -> None:
        self.samplers, self.envs, self.info, self.chat = samplers, envs, info, chat
        self.max_length = max_length
        self.reward_weight = reward_weight
        self.end_id = chat.tokenizer.eos_token_id

    async def rollout(
        self, task: Task, n: int, params: SamplingParams, group: str, seed: int, branches: int = 1
    ) -> list[Trace]:
        """n episodes of one task; `group` names them, `seed` with the episode's number and turn seeds every decision.

        branches: of so many episodes one is played from the start, and the others go on from a random turn of it, from a snapshot of
        the environment; `Trace.parent` says from where. Raises EnvFault if the environment takes no snapshots.
        """
        episodes = [_Episode(f"{group}/{j}", seed_of(seed, j)) for j in range(n)]
        if branches > 1 and not self.info.snapshots:
            raise EnvFault(
                "this environment takes no snapshots (Env.snapshot, Env.restore), so its episodes cannot branch; set algorithm.branches: 1"
            )
        if self.info.single_turn:
            await self._single(task, episodes, params, group)
        else:
            families = (episodes[i : i + branches] for i in range(0, n, branches))
            played = await asyncio.gather(*(self._family(task, family, params, group) for family in families))
            episodes = [episode for family in played for episode in family]
        return [episode.trace(task.id, group) for episode in episodes]

    async def _family(
        self, task: Task, episodes: Sequence[_Episode], params: SamplingParams, group: str
    ) -> list[_Episode]:
        """The first episode from the start, the others from a place in it; from the start as well where it has none (it ended at once, or
        was lost)."""
        first, others = episodes[0], episodes[1:]
        root = await self._multi(task, first, params, group, marked=bool(others))
        known = root if root.outcome != "infra" and root.mark is not None else None
        return [root, *await asyncio.gather(*(self._multi(task, e, params, group, root=known) for e in others))]

    async def _single(self, task: Task, episodes: Sequence[_Episode], params: SamplingParams, group: str) -> None:
        prompt = self.chat.prompt_ids(task.prompt)
        for episode in episodes:
            episode.context(prompt, 0)
        params = params.but(latents=params.latents_for(task))
        actions = await self._act(episodes, [0] * len(episodes), params, group)
        start = time.perf_counter()
        steps = await self.envs.grade(task, actions, episodes[0].seed)
        for _ in range(INFRA_RETRIES):
            lost = [i for i, step in enumerate(steps) if isinstance(step, InfraError)]
            if not lost:
                break
            again = await self.envs.grade(task, [actions[i] for i in lost], episodes[0].seed)
            for i, step in zip(lost, again, strict=True):
                steps[i] = step
        seconds = time.perf_counter() - start
        for episode, step in zip(episodes, steps, strict=True):
            episode.timings["grade"] = seconds
            if isinstance(step, InfraError):
                episode.outcome, episode.note = "infra", str(step)
            else:
                episode.earn(step, self.reward_weight)

    async def _multi(
        self,
        task: Task,
        episode: _Episode,
        params: SamplingParams,
        group: str,
        *,
        marked: bool = False,
        root: _Episode | None = None,
    ) -> _Episode:
        """One multi-turn episode, played again from its start if the machinery loses it. marked: keep a place in it, any turn but the
        first being as likely. root: go on from that one's."""
        for attempt in range(INFRA_RETRIES + 1):
            fresh = _Episode(episode.name, episode.seed)
            session = self.envs.session(f"{episode.name}/{attempt}")
            try:
                await self._play(session, task, fresh, params, group, marked, root)
                return fresh
            except InfraError as error:
                fresh.outcome, fresh.note = "infra", str(error)
                if not fresh.token:
                    fresh.context(self.chat.prompt_ids(task.prompt), 0)
                episode = fresh
            finally:
                await session.close()
        return episode

    async def _play(
        self,
        session: EnvSession,
        task: Task,
        episode: _Episode,
        params: SamplingParams,
        group: str,
        marked: bool,
        root: _Episode | None,
    ) -> None:
        params = params.but(latents=params.latents_for(task))
        begin = 0
        if root is not None and root.mark is not None:
            begin = root.mark.turn
            await session.restore(root.mark.state)
            episode.begin_at(root, root.mark)
        else:
            opening = await session.open(task, episode.seed)
            episode.context(self.chat.prompt_ids(opening.prompt if opening.prompt is not None else task.prompt), 0)
        for turn in range(begin, self.info.max_turns):
            # one turn of all those that there will be, each as likely
            if marked and turn and seed_of(episode.seed, "mark", turn) % turn == 0:
                state = await session.snapshot()
                episode.mark = _Mark(turn, len(episode.token), state, episode.grade, dict(episode.components))
            action = (await self._act([episode], [turn], params, group))[0]
            start = time.perf_counter()
            step = await session.step(action)
            episode.timings["grade"] += time.perf_counter() - start
            episode.earn(step, self.reward_weight)
            if step.terminated or step.truncated:
                return
            ended = bool(episode.token[-1][-1] == self.end_id)
            ids = self.chat.turn_ids(step.observation, ended)
            if sum(map(len, episode.token)) + len(ids) >= self.max_length - 1:
                break
            episode.context(ids, turn + 1)
        episode.outcome, episode.cut = "truncated", True

    async def _act(
        self, episodes: Sequence[_Episode], turns: Sequence[int], params: SamplingParams, group: str
    ) -> list[str]:
        """Sample the next emission of each episode; returns the action texts (empty where an answer never came)."""
        prefixes = []
        for episode, turn in zip(episodes, turns, strict=True):
            token, kind = episode.prefix
            prefixes.append(Prefix(token, kind, seed_of(episode.seed, turn), episode.eps_seed, group))
        actions = []
        for episode, turn, prefix, sample in zip(
            episodes, turns, prefixes, await self.samplers.sample(prefixes, params), strict=True
        ):
            thought, closed = self.chat.thought_length(prefix.token, sample.token[~sample.latent])
            thought += int(sample.latent.sum())  # latents come before anything written
            episode.emit(sample, thought, turn)
            if sample.finish == "length":
                episode.outcome = "truncated"
            actions.append(self.chat.decode(sample.token[thought:]).strip() if closed else "")
        return actions


def grade_of(step: Step) -> Grade:
    """The grade of a single-turn step."""
    return step.grade if step.grade is not None else Grade(value=step.reward)
