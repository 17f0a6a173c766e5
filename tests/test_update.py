"""The update is blind to packing: the gradient is the same under any micro-batching, row order and number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.types import Group, SamplingParams
from actors.update import OptimiserConfig, Updater, count_denominators
from algorithms.base import Context
from algorithms.rlvr import RLVR, RLVRConfig
from envs.base import Task
from models.forward import Distribution, ModelForward, collate, make_view, plan_microbatches, token_logprobs
from models.loading import load_role, merged_weights, save_role
from models.roles import RoleSpec
from models.trace import Kind, Literal, Trace

ADAM = OptimiserConfig(lr=1e-3, warmup_steps=0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, grad_clip=1e9)


def random_groups(n: int = 3, size: int = 4, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(n):
        prompt = rng.integers(10, 250, int(rng.integers(4, 9)))
        traces = []
        for k in range(size):
            length = int(rng.integers(1, 30))
            p, t = len(prompt), len(prompt) + length
            trace = Trace(
                token=np.concatenate([prompt, rng.integers(10, 250, length)]),
                kind=np.array([Kind.CONTEXT] * p + [Kind.ACTION] * length, np.uint8),
                logprob=np.concatenate([np.full(p, np.nan), -rng.uniform(3, 7, length)]),
                version=np.concatenate([np.full(p, -1), np.zeros(length)]),
                turn=np.zeros(t),
                task=f"t{g}",
                group=str(g),
                episode=f"{g}/{k}",
                outcome="infra" if (g, k) == (1, 2) else "ok",
            )
            trace.reward[-1] = rng.uniform()
            traces.append(trace)
        groups.append(Group(Task(f"t{g}", "p"), traces, index=g))
    return groups


def make_updater(folder: Path, budget: int, **options: Any) -> Updater:
    config = RLVRConfig(**{"loss": "reinforce", **options})
    algorithm = RLVR(config, Context(str(folder), SamplingParams(max_tokens=32), seed=0))
    model = load_role(str(folder)).double()
    return Updater(
        algorithm,
        {"policy": model},
        {"policy": RoleSpec(weights=str(folder), trainable=True)},
        {"policy": ADAM},
        Distribution(),
        budget,
    )


@pytest.mark.parametrize("preset", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_gradient_does_not_depend_on_micro_batches(tiny_model: Callable[..., Path], preset: str) -> None:
    groups = random_groups()
    found = []
    for budget in (1, 64, 100_000):
        updater = make_updater(tiny_model(), budget, preset=preset, loss=RLVRConfig(preset=preset).loss)
        updater.algorithm.credit(groups)
        found.append(updater.gradients("policy", groups))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    for other in found[1:]:
        for name, gradient in found[0].items():
            # losses are float32, weights float64: agreement far below the gradient's size
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-3


RANKS = """
    import sys, torch, torch.distributed as dist
    from pathlib import Path
    sys.path[:0] = [{tests!r}]
    from test_update import make_updater, random_groups
    from actors.sharding import shard
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    groups = random_groups()
    updater = make_updater(Path({model!r}), 64, preset="dapo", loss="ppo")
    if {sharded}:
        updater.sharded = True
        shard(updater.models["policy"])
    updater.algorithm.credit(groups)
    found = updater.gradients("policy", groups)
    found = {{n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}}
    if dist.get_rank() == 0:
        torch.save(found, {out!r})
    dist.barrier()
"""


@pytest.mark.parametrize("sharded", [False, True], ids=["data parallel", "fsdp2"])
def test_gradient_does_not_depend_on_ranks(tiny_model: Callable[..., Path], tmp_path: Path, sharded: bool) -> None:
    folder, out = tiny_model(tied=not sharded), tmp_path / "gradient.pt"
    tests = Path(__file__).parent
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANKS.format(tests=str(tests), model=str(folder), out=str(out), sharded=sharded)))
    env = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(out)
    groups = random_groups()
    updater = make_updater(folder, 64, preset="dapo", loss="ppo")
    updater.algorithm.credit(groups)
    one = updater.gradients("policy", groups)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-7)


def test_denominators_count_positions_traces_and_groups() -> None:
    groups = random_groups()
    from actors.update import Row

    rows = []
    for place, g in enumerate(groups):
        for trace in g.live:
            weight = trace.sampled.astype(np.float32)
            if trace.episode == "0/0":
                weight[:] = 0
            trace.weights = {"w": weight}
            rows.append(Row(trace, make_view(trace, None), place))
    counts = count_denominators(rows)
    assert counts["w", "positions"] == sum(int(r.trace.weights["w"].sum()) for r in rows)
    assert counts["w", "traces"] == 10
    assert counts["w", "groups"] == 3


def test_non_finite_gradient_skips_the_step(tiny_model: Callable[..., Path]) -> None:
    groups = random_groups()
    updater = make_updater(tiny_model(), 4096)
    updater.algorithm.credit(groups)
    before = merged_weights(updater.models["policy"])
    groups[0].traces[0].weights["advantage"][:] = np.nan
    metrics = updater.update(groups, 0, measure_gap=False)
    assert metrics["skipped/policy"] == 1.0
    after = merged_weights(updater.models["policy"])
    assert all(np.array_equal(before[n], after[n]) for n in before)


def test_microbatch_plan_covers_every_row_once_within_the_budget() -> None:
    lengths = [5, 3, 9, 9, 1, 40, 2]
    plan = plan_microbatches([np.arange(n) for n in lengths], 20, packs=False)
    assert sorted(i for rows in plan for i in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= 20 for rows in plan)


def test_views_carry_fields_there_and_scores_back() -> None:
    trace = random_groups()[0].traces[0]
    answer = trace.where(Kind.ACTION)
    parts: list[np.ndarray | Literal] = [answer, Literal((7, 8)), trace.where(Kind.CONTEXT)]
    view = trace.view(parts)
    values = np.arange(len(trace), dtype=np.float32)
    carried = view.gather(values, fill=-1)
    assert carried.tolist()[: len(answer)] == answer.tolist()
    assert (carried == -1).sum() == 2
    assert np.array_equal(view.scatter(carried, len(trace)), values)


def test_logprobs_against_plain_softmax_and_recomputed_chunks(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_role(str(tiny_model()))
    traces = [t for g in random_groups() for t in g.traces]
    batch = collate(traces, [make_view(t, None) for t in traces])
    forward = ModelForward(model, batch, Distribution(0.7))
    logits = model.lm(batch.token_BT).logits / 0.7
    expected = torch.zeros(batch.token_BT.shape)
    expected[:, 1:] = logits.log_softmax(-1)[:, :-1].gather(-1, batch.token_BT[:, 1:, None])[..., 0]
    expected = torch.where(batch.scored_BT, expected, 0.0)
    torch.testing.assert_close(forward.logprobs_BT, expected, rtol=1e-4, atol=1e-5)

    forward.logprobs_BT.sum().backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr("models.forward.CHUNK_LOGITS", 7 * model.base.config.vocab_size)
    chunked = ModelForward(model, batch, Distribution(0.7))
    torch.testing.assert_close(chunked.logprobs_BT, expected, rtol=1e-4, atol=1e-5)
    chunked.logprobs_BT.sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-3, atol=1e-4)


def test_truncated_logprobs_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4, 1)
    token = torch.tensor([0, 1, 2, 3])
    top_k, _ = token_logprobs(logits, token, Distribution(1.0, 1.0, 2))
    # the two largest stay; a token outside them joins its own support
    assert top_k.exp().tolist() == pytest.approx([0.5 / 0.8, 0.3 / 0.8, 0.15 / 0.95, 0.05 / 0.85])
    top_p, entropy = token_logprobs(logits, token, Distribution(1.0, 0.75, 0))
    assert top_p.exp()[:2].tolist() == pytest.approx([0.5 / 0.8, 0.3 / 0.8])
    p = np.array([0.5, 0.3]) / 0.8
    assert float(entropy[0]) == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-5)


def test_lora_trains_adapters_only_and_publishes_merged_weights(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear"}
    model = load_role(str(tiny_model()), lora=lora)
    plain = load_role(str(tiny_model()))
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n} == set()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.add_(0.05 * torch.randn_like(p))
    merged = merged_weights(model)
    assert merged.keys() == merged_weights(plain).keys()
    save_role(model, tmp_path / "merged", None)
    again = load_role(str(tmp_path / "merged"))
    ids = torch.randint(10, 250, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(again.lm(ids).logits, model.lm(ids).logits, rtol=1e-3, atol=1e-4)
        assert float((plain.lm(ids).logits - model.lm(ids).logits).abs().max()) > 1e-2
