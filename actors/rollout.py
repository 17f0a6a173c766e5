"""Playing episodes: prompts to tokens, samples to actions, actions to grades, all of it to Traces."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.clients import EnvClient, SamplerClient
from actors.env_worker import EnvInfo
from actors.types import CUT, Prefix, Sample, SamplingParams
from envs.base import Grade, InfraError, Step, Task
from models.chat import ChatFormat
from models.trace import Kind, Trace

INFRA_RETRIES = 2
"""How often an episode that our machinery lost is played again before its trace is masked."""


def seed_of(*parts: Any) -> int:
    """A 62-bit seed from the run's seed and whatever names the decision; stable between runs and machines."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


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
        """Of the noise of stochastic latents."""
        return seed_of(self.seed, "noise")

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

    async def rollout(self, task: Task, n: int, params: SamplingParams, group: str, seed: int) -> list[Trace]:
        """n episodes of one task; `group` names them, `seed` with the episode's number and turn seeds every decision."""
        episodes = [_Episode(f"{group}/{j}", seed_of(seed, j)) for j in range(n)]
        if self.info.single_turn:
            await self._single(task, episodes, params, group)
        else:
            episodes = list(await asyncio.gather(*(self._multi(task, e, params, group) for e in episodes)))
        return [episode.trace(task.id, group) for episode in episodes]

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

    async def _multi(self, task: Task, episode: _Episode, params: SamplingParams, group: str) -> _Episode:
        """One multi-turn episode, played again from its start if the machinery loses it."""
        for attempt in range(INFRA_RETRIES + 1):
            fresh = _Episode(episode.name, episode.seed)
            session = self.envs.session(f"{episode.name}/{attempt}")
            try:
                await self._play(session, task, fresh, params, group)
                return fresh
            except InfraError as error:
                fresh.outcome, fresh.note = "infra", str(error)
                if not fresh.token:
                    fresh.context(self.chat.prompt_ids(task.prompt), 0)
                episode = fresh
            finally:
                await session.close()
        return episode

    async def _play(self, session: Any, task: Task, episode: _Episode, params: SamplingParams, group: str) -> None:
        opening = await session.open(task, episode.seed)
        params = params.but(latents=params.latents_for(task))
        episode.context(self.chat.prompt_ids(opening.prompt if opening.prompt is not None else task.prompt), 0)
        for turn in range(self.info.max_turns):
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
