"""Reading rows with latent positions: thought anew under the current parameters, or with given latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.chain import EXACT, Chain, Gradient, run_chain, token_ids
from models.chain_plan import plan_chain
from models.feedback import Thinker
from models.packing import pack
from models.trace import Kind


def think(
    lm: Any,
    thinker: Thinker,
    token_BT: Tensor,
    kind_BT: Tensor,
    length_B: Tensor,
    grad: Gradient = EXACT,
    epsilon_LD: Tensor | None = None,
    turn_BT: np.ndarray | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """([N, D] final hidden states, int64[B, T] of where each position stands among them, [L, D] latents in order of row and position).

    epsilon_LD: standard normal noise of the latents, for a thinker with noise. turn_BT: int, each position's turn (grad: ...,turn).
    """
    if thinker.config.kind == "pause" and not grad.turn:
        latents = thinker.pause.expand(int(is_latent(kind_BT, length_B).sum()), -1)
        return *read_with(lm, token_BT, kind_BT, length_B, latents), latents
    turns = turn_BT if grad.turn else None
    plan = plan_chain(token_BT.cpu().numpy(), kind_BT.cpu().numpy(), length_B.cpu().numpy(), token_BT.device, turns)
    embeds = lm.get_input_embeddings()(token_ids(plan))
    epsilon = None
    if epsilon_LD is not None:
        epsilon = embeds.new_zeros(plan.positions, embeds.shape[1])
        epsilon[plan.place_L] = epsilon_LD.to(embeds.dtype)
    hidden, latents = run_chain(Chain(lm, thinker, plan, grad, epsilon), embeds)
    return hidden, plan.at_BT, latents


def read_with(
    lm: Any, token_BT: Tensor, kind_BT: Tensor, length_B: Tensor, latents_LD: Tensor
) -> tuple[Tensor, Tensor]:
    """The same rows in one parallel pass, with these latents in place of the model's own; differentiable in them."""
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    latent_BT = is_latent(kind_BT, length_B)
    # every latent is a word of its own, so that rows share only what stands before
    word_BT = token_BT.clone()
    word_BT[latent_BT] = vocabulary + torch.arange(len(latents_LD), device=token_BT.device)
    packing = pack(word_BT.cpu().numpy().astype(np.int64), length_B.cpu().numpy(), token_BT.device)
    own_N = packing.token_N >= vocabulary
    embeds = lm.get_input_embeddings()(packing.token_N.masked_fill(own_N, 0))
    embeds = torch.where(
        own_N[:, None], latents_LD[(packing.token_N - vocabulary).clamp_(min=0)].to(embeds.dtype), embeds
    )
    hidden = lm.base_model(
        inputs_embeds=embeds[None], position_ids=packing.position_N[None], use_cache=False, packing=packing
    ).last_hidden_state[0]
    return hidden, packing.at_BT


def is_latent(kind_BT: Tensor, length_B: Tensor) -> Tensor:
    """bool[B, T]"""
    real = torch.arange(kind_BT.shape[1], device=kind_BT.device) < length_B[:, None]
    return (kind_BT == Kind.LATENT) & real
