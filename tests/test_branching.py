"""Episodes that branch from snapshots: what is copied, what is credited, and that the game goes on as if played from its start."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from actors.clients import EnvClient, SamplerClient
from actors.env_worker import EnvWorker
from actors.latent_sampler import LatentSampler
from actors.local import Local, LocalActors
from actors.rollout import Roller
from actors.types import Group, SamplingParams
from algorithms.base import Context
from algorithms.rlvr import RLVR, RLVRConfig
from envs.base import Env, Observation, Step, Task
from envs.conform import EnvFault
from envs.key_door import KeyDoor
from models.chat import ChatFormat
from models.feedback import Thinker, ThinkerConfig
from models.forward import ModelForward, collate
from models.loading import load_role, load_tokenizer
from models.scratch import write_model
from models.trace import Kind, Trace

LENGTH, GROUP, BRANCHES = 96, 6, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random policy for key-and-door worlds."""
    path = tmp_path_factory.mktemp("branch") / "model"
    write_model(path, KeyDoor().words(), family="gpt2", width=16, heads=2, length=LENGTH)
    model = load_role(str(path))
    torch.manual_seed(0)
    Thinker(ThinkerConfig(), model.base).save(path)
    return str(path)


async def play(
    folder: str, env: str, tasks: list[Task], group_size: int, branches: int, latents: int = 0, max_length: int = LENGTH
) -> list[Group]:
    """Through the real sampler, environment worker and RLVR's own `collect`."""
    sampler = LatentSampler(folder, dtype="float64", max_length=max_length, stop_ids=[1], armed=True)
    envs = EnvClient([Local(EnvWorker(env, {}))])
    chat = ChatFormat(load_tokenizer(folder))
    roller = Roller(SamplerClient([Local(sampler)]), envs, await envs.info(), chat, max_length)
    params = SamplingParams(latents=latents, max_tokens=3)
    method = rlvr(folder, params, group_size=group_size, branches=branches)
    engine: Any = None  # whole episodes are the roller's
    actors = [LocalActors(engine, None, str(i), i, roller, params) for i in range(len(tasks))]
    return [await method.collect(task, own) for task, own in zip(tasks, actors, strict=True)]


def rlvr(folder: str, params: SamplingParams | None = None, **options: Any) -> RLVR:
    config = RLVRConfig(**{"credit_by": "turn", **options})
    return RLVR(config, Context(folder, params or SamplingParams(), 0))


def some_worlds(n: int) -> list[Task]:
    return list(itertools.islice(KeyDoor().tasks("train"), n))


def test_a_branch_goes_on_where_its_root_was(folder: str) -> None:
    worlds = some_worlds(4)
    groups = asyncio.run(play(folder, "key_door", worlds, GROUP, BRANCHES, latents=2))
    tokenizer = load_tokenizer(folder)
    for task, group in zip(worlds, groups, strict=True):
        by_name = {trace.episode: trace for trace in group.traces}
        assert [trace.parent is None for trace in group.traces] == [True, False, False] * 2
        for trace in group.traces:
            if trace.parent is not None:
                root, at = by_name[trace.parent[0]], trace.parent[1]
                turn = int(trace.turn[at])
                assert 1 <= turn <= root.turn.max()
                assert trace.turn[at - 1] == turn  # the observation before the action that is taken anew
                for name in ("token", "kind", "turn", "reward"):
                    assert np.array_equal(getattr(trace, name)[:at], getattr(root, name)[:at]), name
                assert root.parent is None
                assert not trace.sampled[:at].any()
                assert trace.sampled[at:].any()
            # the game tells what it would have told somebody who played all of these moves from the start
            assert told(trace, tokenizer) == asyncio.run(replayed(task, trace, tokenizer))
        one, other = group.traces[1:3]
        assert one.parent == other.parent
        assert one.seed != other.seed


def told(trace: Trace, tokenizer: object) -> list[str]:
    """The observations in a trace, one a turn."""
    last = int(trace.turn.max())
    return [words(trace, turn, Kind.CONTEXT, tokenizer) for turn in range(1, last + 1)]


def words(trace: Trace, turn: int, kind: Kind, tokenizer: object) -> str:
    at = (trace.turn == turn) & (trace.kind == kind)
    return str(tokenizer.decode(trace.token[at].tolist(), skip_special_tokens=True)).strip()  # type: ignore[attr-defined]


async def replayed(task: Task, trace: Trace, tokenizer: object) -> list[str]:
    env = KeyDoor()
    await env.reset(task, 0)
    actions = [words(trace, turn, Kind.ACTION, tokenizer) for turn in range(int(trace.turn.max()))]
    return [(await env.step(action)).observation for action in actions]


def test_ratios_are_1_behind_a_copied_beginning(folder: str) -> None:
    groups = asyncio.run(play(folder, "key_door", some_worlds(3), GROUP, BRANCHES, latents=2))
    for group in groups:
        for i, trace in enumerate(group.traces):
            trace.reward[-1] = float(i)
    method = rlvr(folder)
    method.credit(groups)
    traces = [trace for group in groups for trace in group.traces]
    batch = collate(traces, [trace.view() for trace in traces])
    assert (batch["policy"].numpy() != 0).tolist() == batch.scored_BT.numpy().tolist()
    term = method.terms("policy", ModelForward(load_role(folder, dtype="float64"), batch), batch)["policy"]
    assert float((term.metrics["ratio"][batch["policy"] != 0] - 1).abs().max()) < 5e-6


class Corridor(Env):
    """Six moves, whatever they are."""

    max_turns = 10

    def tasks(self, split: str) -> list[Task]:
        return [Task("t", "at hall")]

    async def reset(self, task: Task, seed: int) -> Observation:
        self.moves = 0
        return Observation()

    async def step(self, action: str) -> Step:
        self.moves += 1
        return Step("at hall", 0.25, terminated=self.moves == 6)

    def snapshot(self) -> bytes:
        return bytes([self.moves])

    def restore(self, state: bytes) -> None:
        self.moves = state[0]


def test_every_turn_but_the_first_is_as_likely(folder: str) -> None:
    groups = asyncio.run(play(folder, f"{__name__}:Corridor", [Task("t", "at hall")] * 120, 8, 2, max_length=64))
    turns = Counter(int(t.turn[t.parent[1]]) for g in groups for t in g.traces if t.parent is not None)
    assert sum(turns.values()) == 480
    assert sorted(turns) == [1, 2, 3, 4, 5]
    # 96 each; the standard deviation of a count is 8.8
    assert all(abs(count - 96) < 4 * 8.8 for count in turns.values())
    assert {t.grade for g in groups for t in g.traces} == {1.5}
    assert {t.total_reward for g in groups for t in g.traces} == {1.5}


def episode(name: str, reward: list[float], parent: tuple[str, int] | None = None) -> Trace:
    """Two positions a turn: what is read, what is said."""
    n = 2 * len(reward)
    kind = np.tile([Kind.CONTEXT, Kind.ACTION], len(reward))
    sampled = (kind == Kind.ACTION) & (np.arange(n) >= (parent[1] if parent else 0))
    out = Trace(
        np.zeros(n), kind, np.where(sampled, -1.0, np.nan), np.zeros(n), np.arange(n) // 2, "t", "g", name, parent
    )
    out.reward[1::2] = reward
    return out


def test_branches_are_compared_where_they_part(folder: str) -> None:
    """By hand: returns from turn 1 on are 4 and 2 in the first family, 1 and 0 in the second; from turn 2 on 3, 1, 1, 0."""
    family = [episode("g/0", [0, 1, 3]), episode("g/1", [0, 1, 1], ("g/0", 3))]
    other = [episode("g/2", [0, 0, 1]), episode("g/3", [0, 0, 0], ("g/2", 5))]
    traces = [*family, *other]
    rlvr(folder, group_size=4, branches=2, estimator="dr_grpo").credit([Group(Task("t", "x"), traces)])
    at_1 = [trace.weights["advantage"][3] for trace in traces]
    at_2 = [trace.weights["advantage"][5] for trace in traces]
    # the first family parts at turn 1, the second at turn 2; elsewhere all of the group are compared, copied turns earn no credit
    assert at_1 == pytest.approx([1.0, -1.0, 0.5, 0.0])
    assert at_2 == pytest.approx([1.0, -1.0, 0.5, -0.5])


def test_what_cannot_branch_says_so(folder: str) -> None:
    with pytest.raises(EnvFault, match="takes no snapshots"):
        asyncio.run(play(folder, "pointer_chase", [Task("t", "at hall")], 4, 2))
    with pytest.raises(ValueError, match="families of 3 branches"):
        RLVRConfig(group_size=8, branches=3)
