"""Which passes a batch with latent positions needs, and where everything goes.

    row 0   t t t t  L L L  t t        pass 0 (tokens)   t t t t | t t            equal beginnings once (`models.packing`)
    row 1   t t      L L L  t t        pass 1, 2, 3      L | L                    one step of every row
                                       pass 4 (tokens)   t t | t t                and so on, for as many blocks as there are

Rows are sorted by the length of their first block, so that the rows still thinking are always the first ones. Slots of the key/value
buffers are given by phase: a row shorter than another in a phase leaves slots empty, which a mask hides. Positions are the rows' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from models.kv import Fill
from models.packing import Packing, pack
from models.trace import Kind


@dataclass
class TokenPass:
    """N packed positions, read together.

    token_N, position_N: int64. start: where this pass begins in the concatenated hidden states. fill: where keys and values are kept.
    packing: of the first pass. Later ones have row_R, own_RQ, from_M, order_N and mask_R1QS instead: row r's queries, and the slots
    [0, base) and own positions they may read.
    """

    start: int
    token_N: Tensor
    position_N: Tensor
    fill: Fill
    base: int = 0
    packing: Packing | None = None
    row_R: Tensor | None = None
    own_RQ: Tensor | None = None
    mask_R1QS: Tensor | None = None
    from_M: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.token_N)


@dataclass
class LatentPass:
    """One latent step of the first `rows` rows, written to one slot.

    source_R: int64 places in the concatenated hidden states of what each row thinks on from. position_R: int64. step, steps: number in
    its block, and the longest row's.
    left_R: latent steps the row's block has from here on, this one included; 0 or less for rows that rest.
    """

    start: int
    rows: int
    slot: int
    step: int
    steps: int
    position_R: Tensor
    source_R: Tensor
    left_R: Tensor

    @property
    def size(self) -> int:
        return self.rows


@dataclass
class Plan:
    """order_B: batch row of each chain row. at_BT: int64[B, T] of the *batch's* rows, where each position stands in the concatenated
    hidden states (0 for padding). place_L: int64, where each latent position stands there, in the order of the batch's (row, position);
    ends_L: bool, whether it is the last of its block."""

    passes: list[TokenPass | LatentPass]
    order_B: Tensor
    at_BT: Tensor
    valid_BS: Tensor
    positions: int
    place_L: Tensor


def segments(kind_T: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of alternating token runs and latent blocks, tokens first; a run may be empty but for the first."""
    if len(kind_T) == 0 or kind_T[0] == Kind.LATENT:
        raise ValueError("a sequence cannot begin with a latent position: there is nothing to think on from")
    cuts = np.flatnonzero(np.diff((kind_T == Kind.LATENT).astype(np.int8))) + 1
    edges = [0, *cuts.tolist(), len(kind_T)]
    return list(pairwise(edges))


def plan_chain(token_BT: np.ndarray, kind_BT: np.ndarray, length_B: np.ndarray, device: torch.device | str) -> Plan:
    """Lay out right-padded rows. token_BT: int; kind_BT: uint8 of `Kind`; length_B: int, at least 1 each."""
    known: dict[bytes, list[tuple[int, int]]] = {}  # rows of a batch are often cut alike
    parts = []
    for kind, n in zip(kind_BT, length_B.tolist(), strict=True):
        key = kind[:n].tobytes()
        if key not in known:
            known[key] = segments(kind[:n])
        parts.append(known[key])
    first_block = [part[1][1] - part[1][0] if len(part) > 1 else 0 for part in parts]
    order = sorted(range(len(parts)), key=lambda b: (-first_block[b], b))
    parts = [parts[b] for b in order]
    token, rows = token_BT[order], len(order)
    at_BT = np.zeros(token.shape, np.int64)
    passes: list[TokenPass | LatentPass] = []
    valid: list[np.ndarray] = []
    base = count = 0

    def place(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    for phase in range(max(map(len, parts))):
        spans = [part[phase] if phase < len(part) else (0, 0) for part in parts]
        widths = np.array([stop - start for start, stop in spans])
        starts = np.array([start for start, _ in spans])
        longest = int(widths.max())
        valid.append(np.arange(longest) < widths[:, None])
        if phase % 2 == 0:
            made = _token_pass(
                token, starts, widths, at_BT, np.concatenate(valid[:-1], 1) if phase else None, base, count, place
            )
            passes.append(made)
            count += made.size
        else:
            for step in range(longest):
                active = int(np.flatnonzero(widths > step).max()) + 1
                at = starts[:active] + step
                resting = widths[:active] <= step
                # a resting row computes something nobody reads: at its own last place, to stay within the position table
                at = np.where(resting, 0, at)
                source = at_BT[np.arange(active), np.maximum(at - 1, 0)]
                moving = np.flatnonzero(~resting)
                at_BT[moving, at[moving]] = count + moving
                passes.append(
                    LatentPass(
                        count,
                        active,
                        base + step,
                        step,
                        longest,
                        place(at),
                        place(source),
                        place(widths[:active] - step),
                    )
                )
                count += active
        base += longest
    back = np.empty(rows, np.int64)
    back[order] = np.arange(rows)
    at_batch = at_BT[back]
    latent = (kind_BT == Kind.LATENT) & (np.arange(kind_BT.shape[1]) < length_B[:, None])
    return Plan(
        passes, place(np.array(order)), place(at_batch), place(np.concatenate(valid, 1)), count, place(at_batch[latent])
    )


def _token_pass(
    token: np.ndarray,
    starts: np.ndarray,
    widths: np.ndarray,
    at_BT: np.ndarray,
    earlier_BS: np.ndarray | None,
    base: int,
    count: int,
    place,
) -> TokenPass:
    """Writes at_BT."""
    if earlier_BS is None:
        packing = pack(token[:, : int(widths.max())], widths, place(widths).device)
        real_BT = np.arange(token.shape[1]) < widths[:, None]
        row_F, slot_F = np.nonzero(real_BT)
        at_BT[real_BT] = packing.at_BT.cpu().numpy()[row_F, slot_F]
        fill = Fill(place(at_BT[row_F, slot_F]), place(row_F), place(slot_F))
        return TokenPass(count, packing.token_N, packing.position_N, fill, packing=packing)
    row_R = np.flatnonzero(widths)
    width_R, longest = widths[row_R], int(widths.max())
    first_R = np.cumsum(width_R) - width_R
    real_RQ = np.arange(longest) < width_R[:, None]
    own_RQ = np.where(real_RQ, first_R[:, None] + np.arange(longest), 0)
    row_N, query_N = np.nonzero(real_RQ)
    at_N = starts[row_R][row_N] + query_N
    at_BT[row_R[row_N], at_N] = count + np.arange(len(row_N))
    own_mask = np.broadcast_to(np.tril(np.ones((longest, longest), bool)), (len(row_R), longest, longest))
    seen = np.broadcast_to(earlier_BS[row_R][:, None], (len(row_R), longest, earlier_BS.shape[1]))
    return TokenPass(
        count,
        place(token[row_R[row_N], at_N].astype(np.int64)),
        place(at_N),
        Fill(place(np.arange(len(row_N))), place(row_R[row_N]), place(base + query_N)),
        base=base,
        row_R=place(row_R),
        own_RQ=place(own_RQ),
        mask_R1QS=place(np.concatenate([seen, own_mask], 2))[:, None],
        from_M=place(np.flatnonzero(real_RQ)),
    )
