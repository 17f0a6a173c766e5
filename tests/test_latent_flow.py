"""Latent flow: the regression's target is the gradient it is called, its optimum the average over answers, steps stay
in their bounds, and what is served is what is learnt from."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.latent_sampler import LatentSampler
from actors.types import Group, Prefix, SamplingParams
from actors.update import OptimiserConfig, Updater
from algorithms.base import Context
from algorithms.latent_flow import LatentFlow, LatentFlowConfig
from envs.pointer_chase import PointerChase
from models.causal import battery
from models.chain import Gradient
from models.feedback import Thinker, ThinkerConfig
from models.forward import Distribution, ModelForward, collate, score_traces
from models.lens import look
from models.loading import RoleModel, load_role
from models.roles import RoleSpec
from models.scratch import write_model
from models.terms import Batch
from models.trace import Kind, Trace
from models.velocity import flow

ENV = PointerChase(symbols=5, hops=3)


def folder(tmp: Path, family: str = "gpt2", **thinker: Any) -> str:
    """A random model whose field already moves."""
    path = write_model(tmp / family, ENV.words(), family=family, width=16, length=48, heads=2)
    mind = Thinker(ThinkerConfig(kind="flow", **thinker), load_role(str(path)).base)
    torch.manual_seed(1)
    if not thinker.get("endpoint"):
        torch.nn.init.normal_(mind.velocity.weight, std=0.15)
    mind.save(path)
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder(tmp_path_factory.mktemp("m"), euler_steps=3)


def method(path: str, latents: int = 3, **options: Any) -> LatentFlow:
    params = SamplingParams(latents=latents, latents_from="task")
    return LatentFlow(LatentFlowConfig(**options), Context(path, params, seed=0))


def batch_of(algorithm: LatentFlow, n: int = 6) -> tuple[Batch, list[Group]]:
    """Problems of mixed numbers of latents."""
    tasks = itertools.islice(ENV.tasks("train"), n)
    groups = [Group(t, [algorithm.example(t, i, 0)], i) for i, t in enumerate(tasks)]
    algorithm.credit(groups)
    traces = [g.traces[0] for g in groups]
    return collate(traces, [t.view() for t in traces]), groups


def model64(path: str, grad: str = "exact") -> RoleModel:
    return load_role(path, dtype="float64", grad=grad).eval()


def answer_logprob(model: RoleModel, batch: Batch, z_LD: Tensor) -> Tensor:
    """float64[]: by the general reading of given latents, which knows nothing of flows."""
    forward = ModelForward(model, batch, latents=z_LD)
    return torch.where(batch.kind_BT == Kind.TARGET, forward.logprobs_BT, 0.0).double().sum()


def central(function: Any, z_LD: Tensor, direction_LD: Tensor, h: float = 1e-3) -> float:
    """log-probabilities are float32 sums, hence the step's size"""
    with torch.no_grad():
        return float(function(z_LD + h * direction_LD) - function(z_LD - h * direction_LD)) / (2 * h)


def test_the_local_target_is_the_finite_difference_of_logp(path: str) -> None:
    algorithm, model = method(path), model64(path)
    batch, _ = batch_of(algorithm)
    block = ModelForward(model, batch).thought.blocks[0]  # type: ignore[union-attr]
    rng = torch.Generator().manual_seed(0)
    for z_LD in (block.path[0].detach(), block.path[-1].detach()):
        gradient = block.gradient(z_LD)
        for _ in range(4):
            direction = torch.randn(z_LD.shape, generator=rng, dtype=torch.float64)
            found = central(lambda z: block.logprob(z).sum(), z_LD, direction, 1e-5)
            assert found == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-7)
            general = central(lambda z: answer_logprob(model, batch, z), z_LD, direction)
            assert general == pytest.approx(found, rel=2e-3, abs=5e-3)


def test_the_adjoint_is_the_finite_difference_through_the_later_steps(path: str) -> None:
    algorithm, model = method(path), model64(path)
    batch, _ = batch_of(algorithm)
    block = ModelForward(model, batch).thought.blocks[0]  # type: ignore[union-attr]
    steps = model.thinker.config.euler_steps  # type: ignore[union-attr]

    def end(z_LD: Tensor, n: int) -> Tensor:
        for k in range(n, steps):
            z_LD = block.field.thinker.ball(z_LD + block.field(z_LD, k / steps))
        return block.logprob(z_LD).sum()

    rng = torch.Generator().manual_seed(0)
    adjoint = block.adjoint()
    for n in range(steps):
        z_LD = block.path[n].detach()
        direction = torch.randn(z_LD.shape, generator=rng, dtype=torch.float64)
        found = central(lambda z, n=n: end(z, n), z_LD, direction, 1e-5)
        assert found == pytest.approx(float((adjoint[n] * direction).sum()), rel=1e-5, abs=1e-7)
    # one step before the end the value's gradient is not the moment's: the field answers to where it stands
    assert not torch.allclose(adjoint[-1], block.gradient(block.path[steps - 1]), rtol=1e-2)


def test_a_fresh_endpoint_field_is_a_gated_chain(tmp_path: Path) -> None:
    """In value and in gradient, with as many steps as latents and no cap: the steps are the chain's Jacobi iteration,
    which is through after K sweeps."""
    path = folder(tmp_path, endpoint=True, euler_steps=3, trust=10.0)
    moved, chain = model64(path), model64(path)
    mine = moved.thinker
    assert mine is not None
    chain.thinker = Thinker(ThinkerConfig(), chain.base)
    halves = {name: value[:, 16:] if name == "up.weight" else value for name, value in mine.state_dict().items()}
    chain.thinker.load_state_dict({name: halves[name] for name in chain.thinker.state_dict()})
    batch, _ = batch_of(method(path, flow=0.0))
    found = []
    for model in (moved, chain):
        forward = ModelForward(model, batch)
        torch.where(batch.kind_BT == Kind.TARGET, forward.logprobs_BT, 0.0).sum().backward()
        found.append((forward, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (ours, mine_by), (theirs, other_by) = found
    assert ours.latents is not None
    assert theirs.latents is not None
    assert torch.allclose(ours.latents, theirs.latents, atol=1e-10)
    assert torch.allclose(ours.logprobs_BT, theirs.logprobs_BT, atol=1e-6)
    for name, gradient in other_by.items():
        same = mine_by[name][:, 16:] if name == "thinker.up.weight" else mine_by[name]
        assert torch.allclose(same, gradient, atol=1e-6), name
    assert mine_by["thinker.up.weight"][:, :16].abs().max() > 1e-6  # and it may become more than that
    assert mine_by["thinker.clock.weight"].abs().max() > 1e-6


def test_euler_along_the_exact_gradient_raises_logp(path: str) -> None:
    algorithm, model = method(path), model64(path)
    batch, _ = batch_of(algorithm)
    block = ModelForward(model, batch).thought.blocks[0]  # type: ignore[union-attr]
    z, before = block.path[0].detach(), block.logprob(block.path[0]).sum().item()
    for _ in range(5):
        z = block.field.thinker.ball(z + 0.1 * algorithm.target(block, z, block.gradient(z)))
        after = block.logprob(z).sum().item()
        assert after > before
        before = after
    assert after > block.logprob(block.path[0]).sum().item() + 0.05


def test_steps_and_latents_stay_in_their_bounds(tmp_path: Path) -> None:
    path = folder(tmp_path, trust=0.3, euler_steps=6, noise=2.0)
    model = model64(path)
    assert model.thinker is not None
    with torch.no_grad():
        model.thinker.velocity.weight.mul_(50)
    algorithm = method(path, rate=1e6, prior=0.5)
    batch, _ = batch_of(algorithm)
    block = ModelForward(model, batch).thought.blocks[0]  # type: ignore[union-attr]
    rms = float(model.thinker.rms)

    def size(x_LD: Tensor) -> Tensor:
        return x_LD.square().mean(-1).sqrt() / rms

    for z, following in itertools.pairwise(block.path):
        step = block.field(z, 0.5)
        assert size(step).max().item() == pytest.approx(0.3, rel=1e-6)  # so large a field is cut everywhere
        assert (size(following - z) <= 0.3 + 1e-6).all()
        assert (size(z) <= 1 + 1e-6).all()
        assert (size(algorithm.target(block, z, block.gradient(z))) <= 0.3 + 1e-6).all()
    inside = model.thinker.within(torch.full((1, 16), 0.1 * rms, dtype=torch.float64), 0.3)
    assert torch.allclose(
        inside, torch.full((1, 16), 0.1 * rms, dtype=torch.float64)
    )  # what is small enough is left alone


def answered(trace: Trace, answer: int) -> Trace:
    """The trace with another answer of one token, and no end."""
    cut = len(trace) - 1
    fields = {name: getattr(trace, name)[:cut].copy() for name in ("token", "kind", "logprob", "version", "turn")}
    fields["token"][-1] = answer
    return Trace(**fields, task="t", group="g", episode="e", eps_seed=trace.eps_seed)


def test_the_optimum_averages_over_answers(tmp_path: Path) -> None:
    """One prompt, several good answers of unequal frequency, one Euler step: at d = mean of the answers' gradients the
    loss is stationary in the field's head, which can move d anywhere; the mean over the reader's own distribution is
    zero."""
    path = folder(tmp_path, euler_steps=1, trust=1e6)
    algorithm, model = method(path, rate=0.7), model64(path, "detached")
    assert model.thinker is not None
    template = algorithm.example(next(t for t in ENV.tasks("train") if t.meta["hops"] == 1), 0, 0)
    vocabulary = len(algorithm.context.tokenizer)
    every = [answered(template, word) for word in range(vocabulary)]
    batch = collate(every, [t.view() for t in every])
    forward = ModelForward(model, batch)
    block = forward.thought.blocks[0]  # type: ignore[union-attr]
    gradient_VD = block.gradient(block.path[0])
    p_V = block.logprob(block.path[0]).exp()
    assert p_V.sum().item() == pytest.approx(1, abs=1e-9)
    assert (p_V @ gradient_VD).abs().max() < 1e-9 < gradient_VD.abs().max()

    answers = [4, 4, 4, 5, 6]
    given = [every[word] for word in answers]
    rms2 = float(model.thinker.rms) ** 2
    mean_D = 0.7 * rms2 * gradient_VD[answers].mean(0)
    for trace in given:
        trace.weights = {"flow": (trace.kind == Kind.LATENT).astype(np.float32)}
    batch = collate(given, [t.view() for t in given])

    def loss_and_slope(d_D: Tensor) -> tuple[float, float]:
        mind = model.thinker
        assert mind is not None
        with torch.no_grad():
            mind.velocity.weight.zero_()
            mind.velocity.bias.copy_(d_D / mind.rms)
        term = algorithm.terms("policy", ModelForward(model, batch), batch)["flow"]
        loss = (term.loss_BT * batch["flow"]).sum() / len(given)
        slopes = torch.autograd.grad(loss, [mind.velocity.weight, mind.velocity.bias])
        return loss.item(), max(float(s.abs().max()) for s in slopes)

    at_mean, flat = loss_and_slope(mean_D)
    assert flat < 1e-7
    for other in (torch.zeros_like(mean_D), 0.7 * rms2 * gradient_VD[4], 1.3 * mean_D):
        worse, steep = loss_and_slope(other)
        assert worse > at_mean + 1e-6
        assert steep > 1e-4


class LinearGaussian:
    """y | x, z ~ N(A z, s2) per problem: what the method asks of a block, in closed form."""

    def __init__(self, thinker: Thinker, a: Tensor, y: Tensor, s2: float, start: Tensor) -> None:
        self.field = type("Field", (), {"thinker": thinker})
        self.a, self.y, self.s2, self.path = a, y, s2, [start]

    def gradient(self, z: Tensor) -> Tensor:
        return (self.y - z @ self.a.T) @ self.a / self.s2


def test_linear_gaussian_optimum_in_closed_form(tmp_path: Path) -> None:
    """Regressing on targets at sampled (x, y, z) finds rate rms^2 A'(B x - A z) / s2 - prior z, though it never sees
    E[y|x] = B x."""
    path = folder(tmp_path, trust=1e9)
    algorithm = method(path, rate=0.4, prior=0.3)
    thinker: Any = load_role(path, dtype="float64").thinker
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    n, s2 = 20_000, 0.5
    a, b = normal(3, 16), normal(3, 4)
    x, z = normal(n, 4), normal(n, 16)
    y = x @ b.T + normal(n, 3)
    block: Any = LinearGaussian(thinker, a, y, s2, torch.zeros(n, 16, dtype=torch.float64))
    target = algorithm.target(block, z, algorithm.gradient(block, z, torch.zeros(n, dtype=torch.long)))
    found = torch.linalg.lstsq(torch.cat([x, z], 1), target).solution
    scale = 0.4 * float(thinker.rms) ** 2 / s2
    expected = torch.cat([scale * b.T @ a, -scale * a.T @ a - 0.3 * torch.eye(16, dtype=torch.float64)])
    noise = scale * float(a.norm(dim=0).max()) / n**0.5  # standard error of a coefficient
    assert (found - expected).abs().max() < 6 * noise
    assert (found[:4] - expected[:4]).abs().max() > 0  # it is estimated, not given


def gradients(path: str, grad: str, **options: Any) -> dict[str, Tensor]:
    algorithm, model = method(path, **options), model64(path, grad)
    _, groups = batch_of(algorithm)
    update = Updater(
        algorithm,
        {"policy": model},
        {"policy": RoleSpec(path, True)},
        {"policy": OptimiserConfig(1e-3, 0, (0.9, 0.999), 1e-8, 0.0, 1.0)},
        Distribution(),
        None,
    )
    return update.gradients("policy", groups)


def test_how_far_gradients_go(path: str) -> None:
    exact = gradients(path, "exact", flow=0.0)
    for same in ("recompute", "truncated:3"):  # three Euler steps in all
        other = gradients(path, same, flow=0.0)
        assert all(torch.allclose(exact[name], other[name], atol=1e-10) for name in exact)
    assert exact["thinker.velocity.weight"].abs().max() > 1e-6
    short = gradients(path, "truncated:1", flow=0.0)["thinker.velocity.weight"]
    assert short.abs().max() > 1e-6
    assert not torch.allclose(short, exact["thinker.velocity.weight"], rtol=1e-3)
    reader = gradients(path, "detached", flow=0.0)
    assert "thinker.velocity.weight" not in reader
    both = gradients(path, "detached", flow=1.0)
    assert both["thinker.velocity.weight"].abs().max() > 1e-6  # the regression alone teaches the field
    assert Gradient.parse("detached").detached


def test_parameters_get_the_finite_difference_of_the_loss(path: str) -> None:
    """Cross-entropy through prompt, Euler steps and reader."""
    found = gradients(path, "exact", flow=0.0)
    algorithm, model = method(path, flow=0.0), model64(path)
    batch, _ = batch_of(algorithm)
    rng = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def loss() -> float:
        block = ModelForward(model, batch).thought.blocks[0]  # type: ignore[union-attr]
        return -float(block.logprob(block.path[-1]).mean())

    named = dict(model.named_parameters())
    for name in (
        "lm.transformer.h.0.attn.c_attn.weight",
        "lm.transformer.wte.weight",
        "thinker.clock.weight",
        "thinker.pause",
    ):
        direction = torch.randn(named[name].shape, generator=rng, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                named[name].add_(sign * 1e-5 * direction)
            losses.append(loss())
            with torch.no_grad():
                named[name].sub_(sign * 1e-5 * direction)
        slope = (losses[0] - losses[1]) / 2e-5
        assert float((found[name] * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def trace_of(prefix: Prefix, sample: Any) -> Trace:
    n, new = len(prefix.token), len(sample.token)
    return Trace(
        token=np.concatenate([prefix.token, sample.token]),
        kind=np.concatenate([prefix.kind, np.where(sample.latent, Kind.LATENT, Kind.ACTION)]),
        logprob=np.concatenate([np.full(n, np.nan), sample.logprob]),
        version=np.zeros(n + new),
        turn=np.zeros(n + new),
        task="t",
        group="g",
        episode="e",
        eps_seed=prefix.eps_seed,
    )


@pytest.mark.parametrize("endpoint", [False, True])
def test_what_is_served_is_what_is_learnt_from(tmp_path: Path, endpoint: bool) -> None:
    """Log-probabilities of sampler and learner, alone or in a crowd, over two turns of thought, with noise, prompts of
    mixed length."""
    path = folder(tmp_path, noise=0.4, endpoint=endpoint)
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 10, rng.integers(2, 9)).astype(np.int32) for _ in range(9)]
    given = [Prefix(row, np.zeros(len(row), np.uint8), seed=i, eps_seed=i) for i, row in enumerate(rows)]
    sampler = LatentSampler(path, dtype="float64", max_length=48, stop_ids=[1], rows=4, armed=True)
    params = SamplingParams(max_tokens=5, latents=3)
    learner = load_role(path, dtype="float64")
    for _ in range(2):
        samples = asyncio.run(sampler.sample(given, params))
        assert all(s.latent.tolist()[:3] == [True] * 3 for s in samples)
        traces = [trace_of(p, s) for p, s in zip(given, samples, strict=True)]
        for trace, score in zip(traces, score_traces(learner, traces), strict=True):
            assert np.abs(score - trace.logprob)[trace.sampled].max() < 5e-6
        given = [Prefix(np.append(t.token, [9, 6]), np.append(t.kind, [0, 0]).astype(np.uint8), 77 + i, t.eps_seed)
                 for i, t in enumerate(traces)]  # fmt: skip


def test_the_general_reading_of_its_latents_agrees(path: str) -> None:
    """The causal battery and the lens read a flow's latents like any others."""
    algorithm, model = method(path), model64(path)
    batch, groups = batch_of(algorithm, 8)
    own = ModelForward(model, batch)
    assert own.latents is not None
    assert torch.allclose(own(own.latents).logprobs_BT, own.logprobs_BT, atol=1e-6)
    assert model.thinker is not None
    still = flow(
        model.base, model.thinker, batch.token_BT, batch.kind_BT, batch.length_B, replace=lambda block: block.path[0]
    )
    real_BT = torch.arange(batch.token_BT.shape[1]) < batch.length_B[:, None] - 1  # nobody asks what follows the last
    assert torch.allclose(own(still.latents_LD).hidden_BTD[real_BT], still.hidden_ND[still.at_BT][real_BT], atol=1e-9)
    assert not torch.allclose(still.latents_LD, own.latents)
    same = [g.traces[0] for g in groups if (g.traces[0].kind == Kind.LATENT).sum() == 2]
    found = battery(model, same, 2)
    assert found["zero"].logprob.tolist() != found["clean"].logprob.tolist()
    assert look(model, same, 2).norm_K.shape == (2,)


def test_other_thinkers_and_several_blocks_are_refused(path: str, tmp_path: Path) -> None:
    other = write_model(tmp_path / "gated", ENV.words(), family="gpt2", width=16, length=48, heads=2)
    Thinker(ThinkerConfig(), load_role(str(other)).base).save(other)
    with pytest.raises(ValueError, match=r"set model\.thinker\.kind to flow"):
        method(str(other))
    with pytest.raises(ValueError, match="cannot be a sampled decision"):
        Thinker(ThinkerConfig(kind="flow", stop=True), load_role(path).base)
    algorithm = method(path)
    trace = algorithm.example(next(iter(ENV.tasks("train"))), 0, 0)
    trace.kind[-1] = Kind.LATENT
    trace.weights = {"ce": np.ones(len(trace), np.float32), "flow": np.ones(len(trace), np.float32)}
    batch = collate([trace], [trace.view()])
    with pytest.raises(ValueError, match="one block of latents an answer, these have 2"):
        algorithm.terms("policy", ModelForward(model64(path), batch), batch)


def test_the_comparison_counts_flops_of_what_it_does() -> None:
    """Positions are the currency; attention's share is small."""
    from benchmarks.latent_flow import VARIANTS, flops_of_example
    from models.flops import FlopModel

    cost = FlopModel(parameters=1000, layers=0, width=1)

    def positions(name: str, latents: int = 3) -> float:
        return flops_of_example(cost, 9, latents, 2, VARIANTS[name], 4) / 2000

    assert positions("no_thought", 0) == 3 * 11
    assert positions("neuralese") == positions("pause") == 3 * 14
    assert positions("through") == 3 * 14 + 3 * 4 * 3  # four steps over three latents, forwards and backwards
    assert (
        positions("local") == 3 * 14 + 4 * 3 + 3 * 3 + 2 * 5
    )  # steps forwards, one regressed, one gradient of the reading
    assert positions("adjoint") == positions("local") + 2 * 4 * 3
