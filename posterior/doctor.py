"""`posterior doctor`: the launch gate. Proves on the configured model that a run may start."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from actors.learner import GAP_BOUND
from actors.types import Prefix, Sample
from models.forward import score_traces
from models.loading import RoleModel, load_role, load_tokenizer, merged_weights
from models.trace import Kind, Trace
from posterior import launch
from posterior.cluster import cluster
from posterior.config_load import Resolved
from posterior.recorder import hardware, versions


@dataclass
class Check:
    """One finding. detail: figures, or what to mend."""

    name: str
    ok: bool
    detail: str
    seconds: float = 0.0


def doctor(resolved: Resolved) -> dict[str, Any]:
    """All checks; {"ok", "checks": [...]} . Later ones are left out when an earlier one makes them pointless."""
    checks: list[Check] = []

    def run(name: str, what: Callable[[], str]) -> bool:
        start = time.perf_counter()
        try:
            detail, ok = what(), True
        except Exception as error:
            detail, ok = " ".join(str(error).split()) or type(error).__name__, False
        checks.append(Check(name, ok, detail, round(time.perf_counter() - start, 2)))
        return ok

    run("installation", _installation)
    run("hardware", hardware)
    run("sandbox", lambda: _sandbox(resolved))
    if run("plan", lambda: _plan(resolved)):
        checks.extend(_engine(resolved))
    return {"ok": all(c.ok for c in checks), "checks": [asdict(c) for c in checks]}


def _installation() -> str:
    missing = []
    for name in ("torch", "vllm", "ray", "transformers", "peft", "trl"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    if missing:
        raise RuntimeError(
            f"cannot import {', '.join(missing)}; run `make setup`, or pip install -e '.[cpu]' in the checkout"
        )
    return ", ".join(f"{name} {number}" for name, number in versions().items())


def _sandbox(resolved: Resolved) -> str:
    if resolved.config.env.args.get("unsafe_local"):
        return "off: --unsafe-local was given, candidate programs run with all your rights"
    from envs.coding.sandbox import require_sandbox

    require_sandbox()
    return "bubblewrap and seccomp work"


def _plan(resolved: Resolved) -> str:
    plan = launch.make_plan(resolved.config)
    needed = launch.needed_resources(plan, learners=True)
    return f"model {plan.model}; the run reserves {needed['CPU']:g} CPUs and {needed['GPU']:g} GPUs"


def _engine(resolved: Resolved) -> list[Check]:
    """Sampler against learner: log-probs at several lengths and batch sizes, a weight update by value, and its undoing.

    A thinker is asked for its latent steps too: what it says after them depends on all of them.
    """
    import ray

    config = resolved.config.model_copy(deep=True)
    config.resources.samplers = 1
    plan = launch.make_plan(config)
    figure, bound = GAP_BOUND[config.model.dtype]
    checks: list[Check] = []
    rng = np.random.default_rng(config.seed)
    vocabulary = len(load_tokenizer(plan.model, config.model.trust_remote_code))
    params = plan.sampling.but(max_tokens=min(32, plan.sampling.max_tokens))
    thoughts = f" + {params.latents} latents" if params.latents else ""

    def prefixes(n: int, length: int) -> list[Prefix]:
        return [
            Prefix(
                rng.integers(0, vocabulary, length).astype(np.int32),
                np.zeros(length, np.uint8),
                int(rng.integers(2**31)),
                eps_seed=i,
            )
            for i in range(n)
        ]

    def agree(name: str, model: RoleModel, asked: Sequence[Prefix], samples: Sequence[Sample], start: float) -> None:
        gaps = gap_figures(model, asked, samples, plan)
        detail = f"|Δ log-prob| max {gaps['gap/max']:.1e}, mean {gaps['gap/mean']:.1e} (bound: {figure} {bound:.0e})"
        checks.append(Check(name, gaps[figure] <= bound, detail, round(time.perf_counter() - start, 2)))

    try:
        with cluster(config.resources, launch.needed_resources(plan, learners=False)):
            sampler = launch.start_samplers(plan, armed=True)[0]
            model = load_role(plan.model, trust_remote_code=config.model.trust_remote_code).eval()
            longest = max(1, plan.max_length - params.max_tokens - params.latents - 1)
            for n, length in ((1, min(8, longest)), (16, min(64, longest)), (4, longest)):
                start = time.perf_counter()
                asked = prefixes(n, length)
                agree(
                    f"agreement, {n} x {length}{thoughts}",
                    model,
                    asked,
                    ray.get(sampler.sample.remote(asked, params)),
                    start,
                )
            start = time.perf_counter()
            original = merged_weights(model)
            _disturb(model, config.seed)
            ray.get(sampler.update_weights.remote(merged_weights(model), 1))
            asked = prefixes(8, min(32, longest))
            agree("weight update, by value", model, asked, ray.get(sampler.sample.remote(asked, params)), start)
            ray.get(sampler.update_weights.remote(original, 2))
            fresh = load_role(plan.model, trust_remote_code=config.model.trust_remote_code).eval()
            agree("weight update, undone", fresh, asked, ray.get(sampler.sample.remote(asked, params)), start)
    except Exception as error:
        checks.append(Check("sampler", False, " ".join(str(error).split())[:500]))
    return checks


def gap_figures(
    model: RoleModel, asked: Sequence[Prefix], samples: Sequence[Sample], plan: launch.Plan
) -> dict[str, float]:
    """{"gap/max", "gap/mean"}: |log-prob of the learner's forward pass - log-prob of the sampler| over sampled tokens."""
    traces = [as_trace(p, s) for p, s in zip(asked, samples, strict=True)]
    scores = score_traces(model, traces, distribution=plan.distribution)
    gaps = np.concatenate([np.abs(s - t.logprob)[t.sampled] for s, t in zip(scores, traces, strict=True)])
    return {"gap/max": float(gaps.max()), "gap/mean": float(gaps.mean())}


def as_trace(prefix: Prefix, sample: Sample) -> Trace:
    """A bare trace of one sample."""
    p, n = len(prefix.token), len(sample.token)
    return Trace(
        token=np.concatenate([prefix.token, sample.token]),
        kind=np.concatenate([prefix.kind, np.where(sample.latent, Kind.LATENT, Kind.ACTION)]),
        logprob=np.concatenate([np.full(p, np.nan, np.float32), sample.logprob]),
        version=np.concatenate([np.full(p, -1), sample.version]),
        turn=np.zeros(p + n),
        task="probe",
        group="probe",
        episode="probe",
        eps_seed=prefix.eps_seed,
    )


def _disturb(model: RoleModel, seed: int) -> None:
    """Move every weight, the tied ones too, far enough that an update that did not arrive is seen."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = float(parameter.std()) if parameter.numel() > 1 else 1.0
            parameter.add_(0.2 * max(scale, 1e-3) * torch.randn(parameter.shape, generator=generator))
