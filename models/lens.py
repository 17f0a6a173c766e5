"""What latents look like: the words they lean to, their size, how alike they are, and how much one moves the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.forward import ModelForward, collate
from models.loading import RoleModel
from models.trace import Kind, Trace

AT_ONCE = 256
"""Problems read together."""


@dataclass
class Lens:
    """K latent steps of N problems of equally many steps.

    words_NK5, share_NK5: the five likeliest next tokens after each step and their probabilities (logit lens, nostalgebraist 2020).
    norm_K: mean norm in units of an embedding's. rank_K: effective rank of the step's latents over problems, exp of the entropy of the
    normalised singular values (Roy and Vetterli 2007). cosine_KK: mean cosine between steps. gain_K: root mean square of |dz_{k+1}| /
    |dz_k| for random small changes of a latent; below 1 a chain forgets, above it is unstable. The last step has none; a flow has none at
    all, since its latents are not made of each other.
    """

    words_NK5: np.ndarray
    share_NK5: np.ndarray
    norm_K: np.ndarray
    rank_K: np.ndarray
    cosine_KK: np.ndarray
    gain_K: np.ndarray


@torch.no_grad()
def states(model: RoleModel, traces: Sequence[Trace], latents: int) -> tuple[Tensor, Tensor]:
    """([N, K, D] latents, [N, K, D] final hidden states after reading each).

    traces: prompt, `latents` latent positions, anything.
    """
    if model.thinker is None:
        raise ValueError("a token thinker has no latents to look at")
    device = next(model.parameters()).device
    made: list[Tensor] = []
    after: list[Tensor] = []
    for start in range(0, len(traces), AT_ONCE):
        part = traces[start : start + AT_ONCE]
        batch = collate(part, [trace.view() for trace in part], device)
        forward = ModelForward(model, batch)
        assert forward.latents is not None
        made.append(forward.latents.view(len(part), latents, -1))
        after.append(forward.hidden_BTD[batch.kind_BT == Kind.LATENT].view(len(part), latents, -1))
    return torch.cat(made), torch.cat(after)


def look(model: RoleModel, traces: Sequence[Trace], latents: int, seed: int = 0) -> Lens:
    """traces: prompt, `latents` latent positions, anything."""
    z_NKD, after = states(model, traces, latents)
    with torch.no_grad():
        share, words = model.logits(after).softmax(-1).topk(5, -1)
        size = model.base.get_input_embeddings().weight.norm(dim=-1).mean()
        unit = torch.nn.functional.normalize(z_NKD.float(), dim=-1)
        cosine = torch.einsum("nkd,njd->kj", unit, unit) / len(traces)
        rank = torch.stack([_effective_rank(z_NKD[:, k].float()) for k in range(latents)])
    return Lens(
        words.cpu().numpy(),
        share.float().cpu().numpy(),
        (z_NKD.norm(dim=-1).mean(0) / size).cpu().numpy(),
        rank.cpu().numpy(),
        cosine.cpu().numpy(),
        _gain(model, traces, z_NKD, latents, seed),
    )


def _effective_rank(x_ND: Tensor) -> Tensor:
    values = torch.linalg.svdvals(x_ND - x_ND.mean(0))
    p = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(p * p.clamp_min(1e-12).log()).sum())


@torch.no_grad()
def _gain(model: RoleModel, traces: Sequence[Trace], z_NKD: Tensor, latents: int, seed: int) -> np.ndarray:
    """By finite differences of a thousandth of the latent's norm, all problems at once."""
    from models.causal import shortened

    thinker = model.thinker
    assert thinker is not None
    if thinker.config.kind == "flow":
        return np.zeros(0)
    rng = torch.Generator().manual_seed(seed)
    out = []
    for k in range(latents - 1):
        cut = [shortened(trace, k + 1) for trace in traces]
        batch = collate(cut, [trace.view() for trace in cut], z_NKD.device)
        last = batch.kind_BT == Kind.LATENT
        last &= last.cumsum(1) == k + 1
        noise = torch.randn(z_NKD[:, k].shape, generator=rng).to(z_NKD)
        change = 1e-3 * noise * z_NKD[:, k].norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        moved = []
        for delta in (torch.zeros_like(change), change):
            z = z_NKD[:, : k + 1].clone()
            z[:, k] += delta
            forward = ModelForward(model, batch, latents=z.flatten(0, 1))
            moved.append(thinker(forward.hidden_BTD[last]))
        ratio = (moved[1] - moved[0]).norm(dim=-1) / change.norm(dim=-1)
        out.append(float(ratio.square().mean().sqrt()))
    return np.array(out)
