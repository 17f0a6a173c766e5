"""Ragged rows as one packed sequence: no padding, and equal beginnings are computed once.

Rows of a batch differ in length, and the answers of a group share their prompt. A padded forward pass computes every row to the
length of the longest and every prompt once per answer. Here the rows' *distinct* positions are laid end to end,

    rows      p p p a a            packed   p p p a a b b b c
              p p p b b b                   `---' `-' `---' `
              p p p c              row 2 reads  p p p b b b  through the map `at_BT`

and everything but attention (linear layers, norms, embeddings: nearly all of the work) runs on [1, N]. Two rows may share a
position exactly when all tokens up to it are equal: causal attention then gives it the same hidden state in both, and its gradient
is the sum of what both rows send back. Attention gathers queries and keys by row, in blocks of rows of like length.

The attention function is registered with transformers under the name `ATTENTION` and finds its `Packing` among the keyword
arguments of the model's forward pass; without one it is plain causal attention over right-padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATTENTION = "posterior_packed"
GROWTH = 1.4
"""Rows of one attention block are at most this much longer than its shortest (and a few positions more)."""


@dataclass
class Block:
    """Attention of R rows: Q queries that this block computes, K keys that they may read.

    query_RQ, key_RK: int64 places in the packed sequence (0 where padded). mask_R1QK: bool, True where a query reads a key.
    at_M: int64 places in the packed sequence of the M real queries; from_M: their places in the flat [R * Q].
    """

    query_RQ: Tensor
    key_RK: Tensor
    mask_R1QK: Tensor
    from_M: Tensor
    at_M: Tensor


@dataclass
class Packing:
    """N distinct positions of B rows.

    token_N: int64. position_N: int64 place in the row, for the position embedding. at_BT: int64, where each padded position
    stands in the packed sequence (0 for padding). order_N: int64, where each packed position stands among the queries of all
    blocks, block after block.
    """

    token_N: Tensor
    position_N: Tensor
    at_BT: Tensor
    blocks: list[Block]
    order_N: Tensor


def sort_rows(rows: Sequence[np.ndarray]) -> list[int]:
    """Indices of int rows in lexicographic order: rows with equal beginnings are neighbours."""
    return sorted(range(len(rows)), key=lambda i: (rows[i].astype(">u4").tobytes(), i))


def shared_with_previous(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int64[B]: how many of its first tokens each row shares with the row before it; of sorted rows, all that can be shared."""
    shared = np.zeros(len(rows), np.int64)
    for i in range(1, len(rows)):
        n = min(len(rows[i]), len(rows[i - 1]))
        differs = np.flatnonzero(rows[i][:n] != rows[i - 1][:n])
        shared[i] = differs[0] if len(differs) else n
    return shared


def plan_packed(rows: Sequence[np.ndarray], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` distinct positions, rows with equal beginnings together.

    A single row longer than the budget gets a micro-batch of its own. Returns row indices; every row appears once.
    """
    order = sort_rows(rows)
    shared = shared_with_previous([rows[i] for i in order])
    plan: list[list[int]] = []
    used = budget
    for i, row in enumerate(order):
        new = len(rows[row]) - int(shared[i])
        if used + new > budget:
            plan.append([])
            used, new = 0, len(rows[row])
        plan[-1].append(row)
        used += new
    return plan


def pack(token_BT: np.ndarray, length_B: np.ndarray, device: torch.device | str = "cpu") -> Packing:
    """Lay out right-padded rows. token_BT: int[B, T]; length_B: int[B], at least 1 each."""
    order = sort_rows([token_BT[b, : length_B[b]] for b in range(len(length_B))])
    shared = shared_with_previous([token_BT[b, : length_B[b]] for b in order])
    at_BT = np.zeros(token_BT.shape, np.int64)
    first_B = np.zeros(len(order), np.int64)
    tokens, positions, count, previous = [], [], 0, -1
    for b, start in zip(order, shared.tolist(), strict=True):
        n = int(length_B[b])
        if start:
            at_BT[b, :start] = at_BT[previous, :start]
        at_BT[b, start:n] = np.arange(count, count + n - start)
        tokens.append(token_BT[b, start:n])
        positions.append(np.arange(start, n))
        count += n - start
        first_B[b], previous = start, b
    blocks = [_block(rows, at_BT, first_B, length_B) for rows in _blocks_of_like_length(length_B, first_B)]
    order_N = np.empty(count, np.int64)
    order_N[np.concatenate([block[4] for block in blocks])] = np.arange(count)

    def place(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Packing(
        token_N=place(np.concatenate(tokens).astype(np.int64)),
        position_N=place(np.concatenate(positions)),
        at_BT=place(at_BT),
        blocks=[Block(*map(place, block)) for block in blocks],
        order_N=place(order_N),
    )


def _blocks_of_like_length(length_B: np.ndarray, first_B: np.ndarray) -> list[list[int]]:
    """Rows that have positions of their own, in groups of like length."""
    rows = [b for b in np.lexsort((first_B, length_B)).tolist() if length_B[b] > first_B[b]]
    groups: list[list[int]] = []
    for b in rows:
        if not groups or length_B[b] > GROWTH * length_B[groups[-1][0]] + 8:
            groups.append([])
        groups[-1].append(b)
    return groups


def _block(
    rows: Sequence[int], at_BT: np.ndarray, first_B: np.ndarray, length_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    first, length = first_B[rows], length_B[rows]
    queries, keys = int((length - first).max()), int(length.max())
    position_RQ = first[:, None] + np.arange(queries)
    real_RQ = position_RQ < length[:, None]
    query_RQ = np.where(real_RQ, np.take_along_axis(at_BT[rows], np.where(real_RQ, position_RQ, 0), 1), 0)
    # beyond a row's end no real query reads: its queries stand before their keys
    mask_RQK = np.arange(keys) <= position_RQ[:, :, None]
    return query_RQ, at_BT[rows, :keys], mask_RQK[:, None], np.flatnonzero(real_RQ), query_RQ[real_RQ]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    reader: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface: query [1, H, N, D], key and value [1, H', N, D] -> [1, N, H, D].

    reader: attends in this function's place (a latent chain, `models.chain.Reader`).
    """
    if reader is not None:
        return reader(
            module, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap, s_aux=s_aux
        )
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with a soft cap or sinks cannot be packed")
    heads = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    if packing is None:
        if sliding_window is not None and query.shape[2] > sliding_window:
            raise NotImplementedError("plain rows longer than a sliding window need a mask")
        causal = attention_mask is None and query.shape[2] > 1
        out = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, is_causal=causal, **heads)  # type: ignore[arg-type]
        return out.transpose(1, 2), None
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query, key, value))
    pieces = []
    for block in packing.blocks:
        mask = block.mask_R1QK
        if sliding_window is not None:
            mask = mask & _within(block, packing, sliding_window)
        out_RHQD = nn.functional.scaled_dot_product_attention(
            _rows(query_NHD, block.query_RQ),
            _rows(key_NHD, block.key_RK),
            _rows(value_NHD, block.key_RK),
            mask,
            **heads,  # type: ignore[arg-type]
        )
        pieces.append(out_RHQD.transpose(1, 2).flatten(0, 1).index_select(0, block.from_M))
    return torch.cat(pieces).index_select(0, packing.order_N)[None], None


def _rows(x_NHD: Tensor, at_RK: Tensor) -> Tensor:
    """[R, H, K, D]"""
    picked = x_NHD.flatten(1).index_select(0, at_RK.flatten())
    return picked.view(*at_RK.shape, *x_NHD.shape[1:]).transpose(1, 2)


def _within(block: Block, packing: Packing, window: int) -> Tensor:
    query_RQ, key_RK = packing.position_N[block.query_RQ], packing.position_N[block.key_RK]
    return (query_RQ[:, None, :, None] - key_RK[:, None, None, :]) < window


def packed_hidden(lm: Any, packing: Packing) -> Tensor:
    """[N, D] final hidden states, after the last norm, of a transformers model that was enabled."""
    return lm.base_model(
        input_ids=packing.token_N[None], position_ids=packing.position_N[None], use_cache=False, packing=packing
    ).last_hidden_state[0]


@torch.no_grad()
def enable(lm: Any) -> bool:
    """Switch a causal language model to packed attention if it then computes what it computed before.

    Models with recurrent layers, soft caps or attention of their own do not; they stay as they were, and the answer is False.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    before, training = lm.config._attn_implementation, lm.training
    vocabulary, device = lm.config.get_text_config().vocab_size, next(lm.parameters()).device
    token_BT = np.random.default_rng(0).integers(0, vocabulary, (3, 11))
    token_BT[1:, :5] = token_BT[0, :5]
    packing = pack(token_BT, np.array([11, 8, 6]), device)
    lm.eval()
    try:
        plain_BTD = lm.base_model(input_ids=torch.from_numpy(token_BT).to(device), use_cache=False).last_hidden_state
        lm.set_attn_implementation(ATTENTION)
        packed_BTD = packed_hidden(lm, packing)[packing.at_BT]
        real_BT = torch.arange(11, device=device) < torch.tensor([11, 8, 6], device=device)[:, None]
        off = (packed_BTD - plain_BTD)[real_BT].abs().max() / plain_BTD.abs().max()
        same = bool(off < (1e-3 if plain_BTD.dtype == torch.float32 else 5e-2))
    except Exception:  # whatever a model that is built otherwise raises
        same = False
    if not same:
        lm.set_attn_implementation(before)
    lm.train(training)
    return same


@contextmanager
def padded_attention(lm: Any) -> Iterator[None]:
    """For a while transformers' own attention, which reads masks and so rows that are padded on the left."""
    before = lm.config._attn_implementation
    if before == ATTENTION:
        lm.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if before == ATTENTION:
            lm.set_attn_implementation(before)
