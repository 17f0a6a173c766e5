"""One text written behind several prompts in lock-step: each next token is chosen from what the model says behind all of them.

    prompt ─────────────► log p(s|x, z_<t)    ┐
                                              ├─► choose ─► z_t, put behind both
    prompt that hints ──► log q(s|.., z_<t)   ┘

Flow-guided decoding (CoT-Flow, arXiv 2601.09260) takes the token whose probability the hint raises most; its authors' candidate set is not
known, so as in contrastive decoding only tokens with at least `FLOOR` of the likeliest one's probability are candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from models.loading import RoleModel
from models.packing import padded_attention

FLOOR = 0.1
Choose = Callable[[Tensor], Tensor]
"""From float[S, N, V] log-probabilities behind S prompts to int64[N] tokens."""


def guided(logp_SNV: Tensor) -> Tensor:
    """Of the candidates of the first prompt, the token that the second one makes likelier by the largest factor."""
    plain, hinted = logp_SNV
    candidate = plain >= plain.max(-1, keepdim=True).values + float(np.log(FLOOR))
    return torch.where(candidate, hinted - plain, -torch.inf).argmax(-1)


def greedy(logp_SNV: Tensor) -> Tensor:
    """The likeliest token behind the first prompt."""
    return logp_SNV[0].argmax(-1)


@torch.no_grad()
def lockstep(
    model: RoleModel, prompts: Sequence[Sequence[np.ndarray]], choose: Choose, ends: Collection[int], most: int
) -> list[np.ndarray]:
    """For each of N texts int32[n] chosen tokens, an end token included if one came before `most`.

    prompts: S rows of N prompts, int ids each. All N texts are written at once, left-padded, with the model's own key-value cache.
    """
    rows = [np.asarray(row) for stream in prompts for row in stream]
    n, width = len(prompts[0]), max(map(len, rows))
    device = next(model.parameters()).device
    token = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width + most, dtype=torch.long)
    for i, row in enumerate(rows):
        token[i, width - len(row) :] = torch.from_numpy(row.astype(np.int64))
        mask[i, width - len(row) :] = 1  # and of all that will be written
    token, mask = token.to(device), mask.to(device)
    position = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
    out: list[list[int]] = [[] for _ in range(n)]
    alive, cache = np.ones(n, bool), None
    with padded_attention(model.lm):
        for step in range(most):
            said = model.lm(
                input_ids=token,
                attention_mask=mask[:, : width + step],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            cache = said.past_key_values
            chosen = choose(said.logits[:, -1].log_softmax(-1).unflatten(0, (-1, n)))
            for i in np.flatnonzero(alive):
                out[i].append(int(chosen[i]))
                alive[i] = out[i][-1] not in ends
            if not alive.any():
                break
            token, position = chosen.repeat(len(prompts))[:, None], position[:, -1:] + 1
    return [np.array(ids, np.int32) for ids in out]
