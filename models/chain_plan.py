"""Which passes a batch with latent positions needs, and where everything goes.

    row 0   t t t t  L L L  t t        pass 0 (tokens)   t t t t | t t            equal beginnings once (`models.packing`)
    row 1   t t      L L L  t t        pass 1, 2, 3      L | L                    one step of every row
                                       pass 4 (tokens)   t t | t t                and so on, for as many blocks as there are

Rows are sorted by the length of their first block, so that the rows still thinking are always the first ones. Slots of the key/value
buffers are given by phase: a row shorter than another in a phase leaves slots empty, which a mask hides. Positions are the rows' own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    fresh_R: bool, rows that think on from a position of an earlier turn, where turns are told apart.
    """

    start: int
    rows: int
    slot: int
    step: int
    steps: int
    position_R: Tensor
    source_R: Tensor
    left_R: Tensor
    fresh_R: Tensor | None = None

    @property
    def size(self) -> int:
        return self.rows


@dataclass
class Plan:
    """order_B: batch row of each chain row. at_BT: int64[B, T] of the *batch's* rows, where each position stands in the concatenated
    hidden states (0 for padding). place_L: int64, where each latent position stands there, in the order of the batch's (row, position).
    open_BS: by the first slot of a pass, bool[B, slots before it], those of the row's own turn (`models.kv`); empty if all are open."""

    passes: list[TokenPass | LatentPass]
    order_B: Tensor
    at_BT: Tensor
    valid_BS: Tensor
    positions: int
    place_L: Tensor
    open_BS: dict[int, Tensor] = field(default_factory=dict)


def segments(kind_T: np.ndarray, turn_T: np.ndarray | None = None) -> list[tuple[int, int]]:
    """[start, stop) of alternating token runs and latent blocks, tokens first; a run may be empty but for the first.

    turn_T: cut where the turn changes too; between two runs of one kind then lies an empty one of the other.
    """
    if len(kind_T) == 0 or kind_T[0] == Kind.LATENT:
        raise ValueError("a sequence cannot begin with a latent position: there is nothing to think on from")
    changes = np.diff((kind_T == Kind.LATENT).astype(np.int8)) != 0
    cuts = np.flatnonzero(changes) + 1
    if turn_T is not None:
        empty = np.flatnonzero((np.diff(turn_T) != 0) & ~changes) + 1
        cuts = np.sort(np.concatenate([cuts, empty, empty]))
    edges = [0, *cuts.tolist(), len(kind_T)]
    return list(pairwise(edges))


def plan_chain(
    token_BT: np.ndarray,
    kind_BT: np.ndarray,
    length_B: np.ndarray,
    device: torch.device | str,
    turn_BT: np.ndarray | None = None,
) -> Plan:
    """Lay out right-padded rows. token_BT: int; kind_BT: uint8 of `Kind`; length_B: int, at least 1 each.

    turn_BT: int, where no gradient is to cross from one turn to another.
    """
    known: dict[bytes, list[tuple[int, int]]] = {}  # rows of a batch are often cut alike
    parts = []
    for b, (kind, n) in enumerate(zip(kind_BT, length_B.tolist(), strict=True)):
        turn = None if turn_BT is None else turn_BT[b, :n]
        key = kind[:n].tobytes() + (b"" if turn is None else turn.tobytes())
        if key not in known:
            known[key] = segments(kind[:n], turn)
        parts.append(known[key])
    first_block = [part[1][1] - part[1][0] if len(part) > 1 else 0 for part in parts]
    order = sorted(range(len(parts)), key=lambda b: (-first_block[b], b))
    parts = [parts[b] for b in order]
    token, rows = token_BT[order], len(order)
    at_BT = np.zeros(token.shape, np.int64)
    passes: list[TokenPass | LatentPass] = []
    valid: list[np.ndarray] = []
    turn = None if turn_BT is None else turn_BT[order]
    turn_of: list[np.ndarray] = []
    open_BS: dict[int, Tensor] = {}
    base = count = 0

    def place(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    for phase in range(max(map(len, parts))):
        spans = [part[phase] if phase < len(part) else (0, 0) for part in parts]
        widths = np.array([stop - start for start, stop in spans])
        starts = np.array([start for start, _ in spans])
        longest = int(widths.max())
        valid.append(np.arange(longest) < widths[:, None])
        if turn is not None:
            own = turn[np.arange(rows), np.minimum(starts, turn.shape[1] - 1)]
            if phase and longest:
                open_BS[base] = place(np.concatenate(turn_of, 1) == own[:, None])
            turn_of.append(np.broadcast_to(own[:, None], (rows, longest)))
        if phase % 2 == 0 and longest:
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
                before = np.maximum(at - 1, 0)
                source = at_BT[np.arange(active), before]
                fresh = None
                if turn is not None and step == 0:
                    fresh = place(turn[np.arange(active), at] != turn[np.arange(active), before])
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
                        fresh,
                    )
                )
                count += active
        base += longest
    back = np.empty(rows, np.int64)
    back[order] = np.arange(rows)
    at_batch = at_BT[back]
    latent = (kind_BT == Kind.LATENT) & (np.arange(kind_BT.shape[1]) < length_B[:, None])
    return Plan(
        passes,
        place(np.array(order)),
        place(at_batch),
        place(np.concatenate(valid, 1)),
        count,
        place(at_batch[latent]),
        open_BS,
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
