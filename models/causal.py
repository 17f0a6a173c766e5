"""Does it think? Interventions on latents, and what the answer loses by each.

A batch of prompts with good answers is read once with the model's own latents. Then the latents of every row are replaced, the rest of
the row is read with the replacements in one pass, and the answer is judged again: an answer that survives any replacement did not need
the thought.

| intervention | the latents become |
|---|---|
| clean | the model's own |
| zero | 0 |
| mean | the batch's mean of each step |
| noise | random directions of the same norm |
| shuffle | the row's own, in a random order of steps |
| transplant | those of another problem |
| truncate k | the row's own first k; the others are not there |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.forward import ModelForward, collate
from models.loading import RoleModel
from models.trace import Kind, Trace

POSITIONS = 1 << 15
"""Read at once."""
INTERVENTIONS = ("zero", "mean", "noise", "shuffle", "transplant")


@dataclass
class Outcome:
    """correct: bool[n], every token of the answer is the likeliest one. logprob: float64[n] of the whole answer."""

    correct: np.ndarray
    logprob: np.ndarray


@torch.no_grad()
def battery(model: RoleModel, traces: Sequence[Trace], latents: int, seed: int = 0) -> dict[str, Outcome]:
    """All interventions on traces of prompt, `latents` latent positions and good answer (TARGET)."""
    own, clean = _read(model, traces, None)
    if clean is None:
        return {"clean": own}
    out = {"clean": own}
    rng = torch.Generator().manual_seed(seed)
    z_NKD = clean.view(len(traces), latents, -1)
    for name in INTERVENTIONS:
        out[name] = _read(model, traces, intervene(name, z_NKD, rng).flatten(0, 1))[0]
    for k in range(latents):
        out[f"truncate {k}"] = _read(model, [shortened(t, k) for t in traces], z_NKD[:, :k].flatten(0, 1))[0]
    return out


def intervene(name: str, z_NKD: Tensor, rng: torch.Generator) -> Tensor:
    """[N, K, D] in place of the latents of N problems."""
    n, steps, _ = z_NKD.shape
    if name == "zero":
        return torch.zeros_like(z_NKD)
    if name == "mean":
        return z_NKD.mean(0, keepdim=True).expand_as(z_NKD)
    if name == "noise":
        noise = torch.randn(z_NKD.shape, generator=rng).to(z_NKD)
        return noise * z_NKD.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    if name == "shuffle":
        order = torch.rand(n, steps, generator=rng).argsort(1).to(z_NKD.device)
        return z_NKD.gather(1, order[..., None].expand_as(z_NKD))
    if name == "transplant":
        # a cycle through a random order: nobody keeps its own
        order = torch.randperm(n, generator=rng)
        donor = torch.empty_like(order)
        donor[order] = order.roll(1)
        return z_NKD[donor.to(z_NKD.device)]
    raise ValueError(f"no intervention is called {name!r}; there are: {', '.join(INTERVENTIONS)}")


def shortened(trace: Trace, latents: int) -> Trace:
    """The same trace with only its first latent positions."""
    drop = trace.where(Kind.LATENT)[latents:]
    keep = np.setdiff1d(np.arange(len(trace)), drop)
    fields = {name: getattr(trace, name)[keep] for name in ("token", "kind", "logprob", "version", "turn", "reward")}
    return Trace(**fields, task=trace.task, group=trace.group, episode=trace.episode, eps_seed=trace.eps_seed)


def _read(model: RoleModel, traces: Sequence[Trace], latents_LD: Tensor | None) -> tuple[Outcome, Tensor | None]:
    """Read rows of equally many latents each, some at a time. latents_LD: [L, D] in place of the model's own."""
    each = 0 if latents_LD is None else len(latents_LD) // len(traces)
    size = max(1, POSITIONS // max(map(len, traces)))
    parts = []
    for first in range(0, len(traces), size):
        rows = traces[first : first + size]
        given = None if latents_LD is None else latents_LD[first * each : (first + len(rows)) * each]
        parts.append(_read_part(model, rows, given))
    own = [latents for _, latents in parts if latents is not None]
    outcome = Outcome(*(np.concatenate([getattr(o, name) for o, _ in parts]) for name in ("correct", "logprob")))
    return outcome, torch.cat(own) if own else None


def _read_part(model: RoleModel, traces: Sequence[Trace], latents_LD: Tensor | None) -> tuple[Outcome, Tensor | None]:
    device = next(model.parameters()).device
    batch = collate(traces, [trace.view() for trace in traces], device)
    forward = ModelForward(model, batch, latents=latents_LD)
    target_BT = batch.kind_BT == Kind.TARGET
    before = forward.hidden_BTD[:, :-1][target_BT[:, 1:]]
    best = model.logits(before).argmax(-1)
    right = torch.ones_like(target_BT).masked_scatter(target_BT, best == batch.token_BT[target_BT]).all(1)
    logprob = torch.where(target_BT, forward.logprobs_BT, 0.0).double().sum(1)
    return Outcome(right.cpu().numpy(), logprob.cpu().numpy()), forward.latents
