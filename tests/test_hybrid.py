"""Hybrid agents: ratios of 1, the exact gradient by enumeration, what crosses turns, counting actions; the key-and-door world."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ROOT, result, start
from test_chain import A, C, L, gradients, make_lm
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from actors.clients import EnvClient, SamplerClient
from actors.env_worker import EnvWorker
from actors.latent_sampler import LatentSampler
from actors.local import Local
from actors.rollout import Roller
from actors.types import Group, SamplingParams
from actors.update import OptimiserConfig, Updater
from algorithms.base import Context
from algorithms.hybrid_agent import HybridAgent, HybridAgentConfig
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig
from envs.base import Task
from envs.check import check_env
from envs.key_door import KeyDoor
from models.chain import Chain, Gradient, run_chain, token_ids
from models.chain_plan import plan_chain
from models.chat import ChatFormat
from models.feedback import Thinker, ThinkerConfig, load_thinker
from models.forward import Distribution, ModelForward, collate, score_traces
from models.loading import latent_id, load_role, load_tokenizer
from models.packing import enable
from models.scratch import write_model
from models.trace import Kind, Trace
from posterior.config import RunConfig
from posterior.config_load import ConfigError
from posterior.prepare import model_path

END = 1


def folder(tmp: Path, words: Any, **thinker: Any) -> str:
    """A model of random weights, large enough for distributions with a shape."""
    path = write_model(tmp / "model", words, family="gpt2", width=16, heads=2, length=96)
    model = load_role(str(path))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        mind = Thinker(ThinkerConfig(**thinker), model.base)
        if mind.config.stop:
            mind.stop.weight.normal_()
    model.lm.save_pretrained(path)
    mind.save(path)
    return str(path)


def agent(path: str, latents: int = 2, **options: Any) -> HybridAgent:
    return HybridAgent(
        HybridAgentConfig(**options), Context(path, SamplingParams(latents=latents, max_tokens=4), seed=0)
    )


async def play(path: str, params: SamplingParams, tasks: list[Task], n: int) -> list[Group]:
    """Episodes of the key-and-door world by the real sampler and environment worker, in this process."""
    sampler = LatentSampler(path, dtype="float64", max_length=96, stop_ids=[END], armed=True)
    envs = EnvClient([Local(EnvWorker("key_door", {}))])
    tokenizer = load_tokenizer(path)
    roller = Roller(SamplerClient([Local(sampler)]), envs, await envs.info(), ChatFormat(tokenizer), 96)
    return [Group(t, await roller.rollout(t, n, params, str(i), i), i) for i, t in enumerate(tasks)]


def test_ratios_are_1_at_equal_parameters(tmp_path: Path) -> None:
    """Over turns, with noise and sampled stops, latents thought anew from an episode's tokens and seeds."""
    path = folder(tmp_path, KeyDoor().words(), stop=True, noise=0.3, expected_steps=2)
    tasks = list(itertools.islice(KeyDoor().tasks("train"), 2))
    groups = asyncio.run(play(path, SamplingParams(latents=3, max_tokens=4), tasks, 3))
    for group in groups:
        group.traces[0].reward[-1] = 1.0  # a random model gets nowhere; ratios need an advantage to count for
    algorithm = agent(path, latents=3, preset="grpo")
    metrics = algorithm.credit(groups)
    traces = [t for g in groups for t in g.traces]
    assert all(t.turn.max() >= 2 for t in traces)
    stops = [t.sampled & (t.kind == Kind.LATENT) for t in traces]
    assert sum(s.sum() for s in stops) > 10
    assert metrics["actions/stops"] == pytest.approx(np.mean([s.sum() for s in stops]))
    batch = collate(traces, [t.view() for t in traces])
    term = algorithm.terms("policy", ModelForward(load_role(path, dtype="float64"), batch), batch)["policy"]
    counted = batch["policy"] != 0
    assert (counted.numpy() == batch.scored_BT.numpy()).all()
    assert float((term.metrics["ratio"][counted] - 1).abs().max()) < 5e-6


# ---- the gradient by enumeration -----------------------------------------------------------------------------------------------


REWARD = np.array([0.0, 1.0, -0.5, 0.3, 2.0])
"""Of each token of the bandit's vocabulary."""


def expected_reward(path: str) -> tuple[Tensor, dict[tuple[int, int], Tensor], torch.nn.Module]:
    """(E[R], probability of each (latents, token), the modules) of the bandit by transformers' own cache: think once; stop or think again;
    speak."""
    lm: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    thinker = load_thinker(path, lm).double()
    cache = DynamicCache(config=lm.config)
    h = lm.base_model(input_ids=torch.tensor([[4, 1, 4]]), past_key_values=cache, use_cache=True).last_hidden_state[
        :, -1
    ]
    p: dict[tuple[int, int], Tensor] = {}
    alive = torch.ones((), dtype=torch.float64)
    for step in (1, 2):
        latent = thinker(h)
        h = lm.base_model(inputs_embeds=latent[None], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        stop = thinker.stop(h)[0, 0].sigmoid() if step == 1 else torch.ones(())
        speak = lm.lm_head(h)[0].softmax(-1)
        p |= {(step, a): alive * stop * speak[a] for a in range(len(REWARD))}
        alive = alive * (1 - stop)
    value = torch.stack([p[k, a] * REWARD[a] for k, a in p]).sum()
    return value, p, torch.nn.ModuleList([lm, thinker])


def bandit_trace(latents: int, token: int, name: str) -> Trace:
    n = 3 + latents + 1
    trace = Trace(
        token=np.array([4, 1, 4, *[3] * latents, token]),
        kind=np.array([C] * 3 + [L] * latents + [int(Kind.ACTION)]),
        logprob=np.full(n, np.nan),
        version=np.zeros(n),
        turn=np.zeros(n),
        task="t",
        group="g",
        episode=name,
    )
    trace.logprob[[3, n - 1]] = 0.0  # the decision after the first step, and the token
    trace.reward[-1] = REWARD[token]
    return trace


def named(modules: torch.nn.Module) -> dict[str, Tensor]:
    names = {"0.": "lm.", "1.": "thinker."}
    return {names[n[:2]] + n[2:]: p.grad for n, p in modules.named_parameters() if p.grad is not None}


def test_the_expected_gradient_is_that_of_the_expected_reward(tmp_path: Path) -> None:
    """All pairs of outcomes of a bandit through credit, terms and the learner's own backward pass, weighted by their probabilities."""
    path = folder(tmp_path, ["a"], stop=True, expected_steps=2)
    expected, p, modules = expected_reward(path)
    assert sum(float(x.detach()) for x in p.values()) == pytest.approx(1, abs=1e-12)
    expected.backward()
    wanted = named(modules)
    assert "thinker.stop.weight" in wanted
    model = load_role(path, dtype="float64")
    algorithm = agent(path, preset="rloo", length_constant=1.0)
    optimiser = OptimiserConfig(1e-3, 0, (0.9, 0.95), 1e-8, 0.0, 1.0)
    updater = Updater(algorithm, {"policy": model}, algorithm.roles, {"policy": optimiser}, Distribution(), 4096)
    outcomes = list(p)
    scores = score_traces(model, [bandit_trace(*o, "x") for o in outcomes])
    for outcome, score in zip(outcomes, scores, strict=True):
        assert np.nansum(score) == pytest.approx(float(p[outcome].detach().log()), abs=1e-5)

    def gradient() -> dict[str, Tensor]:
        """Every pair as a group, its rewards scaled by its probability: the expectation in one batch."""
        groups = []
        for i, j in itertools.combinations(range(len(outcomes)), 2):  # equal outcomes teach nothing
            pair = [bandit_trace(*outcomes[i], f"{i}/{j}/0"), bandit_trace(*outcomes[j], f"{i}/{j}/1")]
            for trace, score in zip(pair, (scores[i], scores[j]), strict=True):
                trace.logprob[:] = score
                trace.reward *= 2 * float(p[outcomes[i]].detach() * p[outcomes[j]].detach())
            groups.append(Group(Task("t", "x"), pair))
        algorithm.credit(groups)
        return {name: -len(groups) * g for name, g in updater.gradients("policy", groups).items()}

    found = gradient()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name
    # a part of it flows through the thinking
    model.grad = Gradient.parse("detached")
    cut = gradient()
    for name in ("thinker.gate", "lm.transformer.h.0.mlp.c_fc.weight"):
        assert float((cut[name] - wanted[name]).norm()) > 0.02 * float(wanted[name].norm()), name


# ---- from turn to turn --------------------------------------------------------------------------------------------------------


EPISODES = [
    [(C, 0)] * 4 + [(L, 0)] * 3 + [(A, 0)] * 2 + [(C, 1)] * 2 + [(L, 1)] * 2 + [(A, 1)] * 2 + [(C, 2), (L, 2), (A, 2)],
    # an observation of no words: the latent thinks on from the action before; then no action either
    [(C, 0)] * 3 + [(L, 0)] * 2 + [(A, 0)] + [(L, 1)] * 3 + [(L, 2)] * 2 + [(A, 2)] * 2,
    # turns without a thought
    [(C, 0)] * 2 + [(A, 0)] + [(C, 1)] * 2 + [(L, 1)] + [(A, 1)] + [(C, 2)] + [(A, 2)],
    [(C, 0)] * 3 + [(L, 0)] * 4 + [(A, 0)],
]


def episodes(rows: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(token, kind, length, turn) as one padded batch."""
    length = np.array([len(row) for row in rows])
    kind, turn = np.full((2, len(rows), length.max()), C)
    for b, row in enumerate(rows):
        kind[b, : len(row)], turn[b, : len(row)] = np.array(row).T
    token = np.random.default_rng(0).integers(1, 31, kind.shape)
    token[1:, :2] = token[0, :2]  # a shared beginning
    return token, kind.astype(np.uint8), length, turn.astype(np.int16)


def turn_by_turn(lm: Any, thinker: Thinker, token: np.ndarray, kind: np.ndarray, turn: np.ndarray) -> Tensor:
    """[T, D] hidden states, position by position; at a new turn all that was there before becomes a constant."""
    cache: Any = DynamicCache(config=lm.config)
    out: list[Tensor] = []
    for t in range(len(token)):
        if t and turn[t] != turn[t - 1]:
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        if kind[t] == L:
            before = out[-1] if turn[t] == turn[t - 1] else out[-1].detach()
            x = thinker(before[None])
        else:
            x = lm.get_input_embeddings()(torch.tensor([int(token[t])]))
        h = lm.base_model(inputs_embeds=x[None], past_key_values=cache, use_cache=True).last_hidden_state[0, 0]
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize("rows", [EPISODES, EPISODES[:1], EPISODES[1:2]], ids=["ragged", "one", "no words"])
@pytest.mark.parametrize(("family", "way"), [("gpt2", "exact"), ("qwen", "recompute"), ("llama", "exact")])
def test_turns_can_be_cut(family: str, way: str, rows: list[list[tuple[int, int]]]) -> None:
    token, kind, length, turn = episodes(rows)
    lm: Any = make_lm(family)
    torch.manual_seed(1)
    thinker = Thinker(ThinkerConfig(), lm).double()
    weight = torch.randn(*token.shape, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = [turn_by_turn(lm, thinker, token[b, :n], kind[b, :n], turn[b, :n]) for b, n in enumerate(length)]
    wanted = gradients(
        sum(((h * weight[b, : len(h)]).sum() for b, h in enumerate(plain)), torch.zeros(())), lm, thinker
    )
    assert enable(lm)

    def chain(grad: str) -> dict[str, Tensor]:
        parsed = Gradient.parse(grad)
        plan = plan_chain(token, kind, length, "cpu", turn if parsed.turn else None)
        made = Chain(lm, thinker, plan, parsed, general=family == "llama")
        hidden = run_chain(made, lm.get_input_embeddings()(token_ids(plan)))[0][plan.at_BT]
        for b, row in enumerate(plain):
            assert torch.allclose(hidden[b, : len(row)], row, rtol=0, atol=1e-10)
        return gradients(
            sum(((hidden[b, :n] * weight[b, :n]).sum() for b, n in enumerate(length)), torch.zeros(())), lm, thinker
        )

    found, whole = chain(f"{way},turn"), chain(way)
    for name, value in wanted.items():
        scale = max(float(value.abs().max()), 1e-3)
        assert float((found[name] - value).abs().max()) < 1e-9 * scale, name
    assert max(float((whole[name] - value).abs().max()) for name, value in wanted.items()) > 1e-2


@pytest.mark.parametrize("grad", ["exact", "exact,turn"])
def test_a_later_turn_teaches_an_earlier_one_unless_cut(tmp_path: Path, grad: str) -> None:
    """The gradient of the last move's log-probability in the embeddings of the first turn's positions."""
    path = folder(tmp_path, KeyDoor().words())
    task = next(iter(KeyDoor().tasks("train")))
    trace = agent(path).example(task, 0, 0)
    model: Any = load_role(path, grad=grad)
    batch = collate([trace], [trace.view()])
    last = int(trace.turn.max())
    asked = torch.from_numpy((trace.kind == Kind.TARGET) & (trace.turn == last))[None]
    ModelForward(model, batch).logprobs_BT[asked].sum().backward()
    by_position = model.lm.transformer.wpe.weight.grad.abs().sum(-1)[: len(trace)].numpy()
    assert (by_position[trace.turn == last][:-1] > 0).all()
    reached = by_position[trace.turn < last] > 0
    assert reached.all() if grad == "exact" else not reached.any()


# ---- counting, warm starts, the world -----------------------------------------------------------------------------------------------


def test_only_decisions_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path, ["a", "b"], stop=True)
    traces = [bandit_trace(2, 4, "0"), bandit_trace(1, 1, "1")]
    algorithm = agent(path, preset="rloo")
    metrics = algorithm.credit([Group(Task("t", "x"), traces)])
    assert metrics["actions/mean"] == 2  # stop or go, and the token
    assert metrics["actions/stops"] == 1
    assert metrics["actions/token_cot"] == 2.5  # (2 + 1 and 1 + 1 if the steps were written)
    assert metrics["actions/share"] == pytest.approx(0.8)
    assert (traces[0].weights["policy"] != 0).tolist() == [False] * 3 + [True, False, True]


def test_a_token_thinker_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", ["a", "b"], width=16, heads=2)
    with pytest.raises(ValueError, match=r"has no thinker; set model\.thinker"):
        agent(str(path))


def test_another_kind_of_thinker_than_the_folders_own_is_refused(tmp_path: Path) -> None:
    """Or the pause control of a warm-started agent would be the agent itself."""
    path = folder(tmp_path, ["a", "b"])
    config = RunConfig.model_validate({"model": {"path": path, "thinker": {"kind": "gated"}}})
    assert model_path(config) == path
    assert config.model.thinker is not None
    config.model.thinker.kind = "pause"
    with pytest.raises(ConfigError, match="of kind gated, and model"):
        model_path(config)


def test_warm_starts_read_as_episodes_do(tmp_path: Path) -> None:
    path = folder(tmp_path, KeyDoor().words())
    task = next(iter(KeyDoor().tasks("train")))
    tokenizer = load_tokenizer(path)
    latent = latent_id(tokenizer)
    context = Context(path, SamplingParams(latents=2), seed=0)
    trace = NeuraleseSFT(NeuraleseSFTConfig(), context).example(task, 0, 0)
    expected = tokenizer.encode(str(task.prompt))
    for move in task.walkthrough or ():
        expected += [latent, latent, *tokenizer.encode(move.action), END, *tokenizer.encode(move.observation)]
    assert trace.token.tolist() == expected
    assert [len(trace.where(Kind.TARGET, turn=k)) for k in range(6)] == [2] * 6
    # written: what a token thinker samples is told apart again into thought and action
    bare = Context(path, SamplingParams(), seed=0)
    written = NeuraleseSFT(NeuraleseSFTConfig(written=True), bare).example(task, 0, 0)
    chat = ChatFormat(tokenizer)
    for turn, move in enumerate(task.walkthrough or ()):
        emitted = written.token[written.where(Kind.TARGET, turn=turn)]
        thought, closed = chat.thought_length(written.token[written.turn < turn], emitted)
        assert closed
        assert chat.decode(emitted[:thought]).split()[1:-1] == list(move.steps)
        assert chat.decode(emitted[thought:]) == move.action


def test_the_world_obeys_and_its_thoughts_lead_back() -> None:
    for args in ({}, {"rooms": 10, "depth": [1, 4], "slack": 1, "key_reward": 0.25}):
        report = asyncio.run(check_env("key_door", args, samples=40, graded=6))
        assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    env = KeyDoor(rooms=9, depth=[2, 3])
    for task in itertools.islice(env.tasks("test"), 100):
        words = str(task.prompt).split()
        entered = dict(zip("abcdefghi", words[:9], strict=True))
        at, target = "hall", words[10]
        for move in task.walkthrough or ():
            assert move.steps[0] == target
            assert all(entered[a] == b for a, b in itertools.pairwise(move.steps))
            assert (move.steps[-1], entered[move.action]) == (move.action, at)
            at = move.action
            if at == target:
                at, target = "hall", words[12]


def test_the_world_by_hand() -> None:
    prompt = "hall a hall b c c key f door d at hall"
    meta = {"parents": dict(zip("abcdef", prompt.split(), strict=False)), "key": "f", "door": "d", "limit": 7}

    async def told(*actions: str) -> list[tuple[str, float, bool, bool]]:
        env = KeyDoor(rooms=6, depth=[2, 3])
        await env.reset(Task("t", prompt, meta=meta), 0)
        steps = [await env.step(action) for action in actions]
        return [(s.observation, s.reward, s.terminated, s.truncated) for s in steps]

    won = asyncio.run(told("c", " f\n", "b", "a", "b", "d"))
    assert [w[0] for w in won] == ["at c", "key at hall", "no at hall", "at a", "at b", "open"]
    assert [w[1] for w in won] == [0, 0, 0, 0, 0, 1]
    assert won[-1][2:] == (True, False)
    lost = asyncio.run(told("a", "b", "d", "f", "a b", "", "c"))
    assert [w[0] for w in lost[:3]] == ["at a", "at b", "locked d"]
    assert {w[0] for w in lost[3:]} == {"no at d"}
    assert lost[-1] == ("no at d", 0, False, True)


@pytest.mark.slow
def test_the_configuration_trains(tmp_path: Path) -> None:
    words = [
        "train.steps=2",
        "eval.every=2",
        "eval.tasks=8",
        "eval.causal=8",
        "train.batch_groups=2",
        "train.checkpoint_every=2",
    ]
    run = tmp_path / "run"
    told = result(start("train", str(ROOT / "tune_configs/hybrid_key_door.yaml"), *words, "--out", str(run)))
    assert told["status"] == "finished"
    assert set(told["causal"]["test"]) >= {"clean", "zero", "transplant"}
    lines = (run / "metrics.jsonl").read_text()
    assert '"actions/token_cot"' in lines
    assert '"policy/ratio"' in lines
