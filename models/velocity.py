"""Latents by a flow: all thoughts of a block at once, moved along a velocity field that the model itself computes.

    z_0 = pause token (+ noise)         K latents of width D between prompt and answer
    z_{n+1} = ball(z_n + d(z_n, x, t_n))        T Euler steps, t_n = n / T
    d = cap(rms_E W [h, h'])                    or, with `endpoint`,
    d = cap(m - z_n),  m = rms_E norm((1-g) norm(pause) + g norm(W2 gelu(W1 [h, h'])))

h are the decoder's hidden states over z_n + clock(t_n), after the prompt x; h' those of the position before.

One step is one parallel pass over the K latents, given the prompt's keys and values: T passes for K thoughts, where a
chain (`models.chain`) needs K. h' is there because a decoder's hidden state says what comes next: were d a function of
h' alone, the steps would be the Jacobi iteration of a chain (PCCoT, Wu et al. 2025). d is the displacement v / T of one
step. Two trust regions: `cap`, the root mean square of d is at most `trust` rms_E, and `ball`, that of z at most rms_E,
the size of an embedding. The answer is then read after z_T in one ordinary pass.

Gradients are autograd's own: each pass keeps its keys and values as tensors, so that what later passes send back
reaches the prompt. Shapes: R rows, S slots read before, Q longest row of new positions, N new positions of all rows
together, L latents, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.chain import EXACT, Gradient
from models.chain_plan import segments
from models.feedback import Thinker
from models.trace import Kind

Layers = dict[int, tuple[Tensor, Tensor]]


@dataclass
class Past:
    """What R rows have read. layers: keys and values [R, Hk, S, D]. valid_RS: bool, slots that hold a position.
    length_R: int64. last_RD: hidden state of the last position."""

    layers: Layers
    valid_RS: Tensor
    length_R: Tensor
    last_RD: Tensor

    def detach(self) -> Past:
        layers = {i: (k.detach(), v.detach()) for i, (k, v) in self.layers.items()}
        return Past(layers, self.valid_RS, self.length_R, self.last_RD.detach())


class Layout:
    """Where width_R new positions of every row go; N of them, row after row."""

    def __init__(self, past: Past, width_R: Tensor) -> None:
        device, longest = width_R.device, int(width_R.max())
        query_Q = torch.arange(longest, device=device)
        self.width_R = width_R
        self.real_RQ = query_Q < width_R[:, None]
        self.row_N, self.query_N = self.real_RQ.nonzero(as_tuple=True)
        first_R = width_R.cumsum(0) - width_R
        self.own_RQ = torch.where(self.real_RQ, first_R[:, None] + query_Q, 0)
        self.from_N = self.row_N * longest + self.query_N
        self.end_R = first_R + width_R - 1
        self.position_N = past.length_R[self.row_N] + self.query_N
        own = (query_Q[:, None] >= query_Q).expand(len(width_R), -1, -1)
        seen = past.valid_RS[:, None].expand(-1, longest, -1)
        self.mask_R1QS = torch.cat([seen, own], 2)[:, None]


class Read:
    """One pass of the model over a layout; stands in for its attention function (see `packing.packed_attention`)."""

    def __init__(self, past: Past, layout: Layout) -> None:
        self.past, self.layout = past, layout
        self.layers: Layers = {}

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
        """q: [1, H, N, D], k, v: [1, Hk, N, D] -> [1, N, H, D]."""
        window = options.get("sliding_window")
        if window is not None and self.layout.mask_R1QS.shape[-1] > window:
            raise NotImplementedError(f"latent flows longer than the model's sliding window ({window}) are not built")
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise NotImplementedError("attention with a soft cap or sinks cannot think in latents")
        index: int = module.layer_idx  # type: ignore[assignment]
        own, at = self.layout.own_RQ.flatten(), self.layout.own_RQ.shape
        q_RHQD, k_RHQD, v_RHQD = (
            x[0].index_select(1, own).view(x.shape[1], *at, x.shape[3]).transpose(0, 1) for x in (q, k, v)
        )
        if index in self.past.layers:
            keys, values = self.past.layers[index]
            k_RHQD, v_RHQD = torch.cat([keys, k_RHQD], 2), torch.cat([values, v_RHQD], 2)
        self.layers[index] = k_RHQD, v_RHQD
        out_RHQD = nn.functional.scaled_dot_product_attention(
            q_RHQD,
            k_RHQD,
            v_RHQD,
            self.layout.mask_R1QS,
            scale=options.get("scaling"),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out_RHQD.transpose(1, 2).flatten(0, 1).index_select(0, self.layout.from_N)[None], None

    def run(self, lm: Any, x_ND: Tensor) -> Tensor:
        """[N, D] inputs -> [N, D] hidden states after the last norm."""
        return lm.base_model(
            inputs_embeds=x_ND[None], position_ids=self.layout.position_N[None], use_cache=False, reader=self
        ).last_hidden_state[0]

    def after(self, hidden_ND: Tensor) -> Past:
        """Past and what this pass read. hidden_ND: what `run` gave."""
        valid = torch.cat([self.past.valid_RS, self.layout.real_RQ], 1)
        moved_R1 = (self.layout.width_R > 0)[:, None]
        last_RD = torch.where(moved_R1, hidden_ND[self.layout.end_R.clamp(min=0)], self.past.last_RD)
        return Past(self.layers, valid, self.past.length_R + self.layout.width_R, last_RD)


@dataclass
class Field:
    """The velocity field over one block of latents: x is in `past`."""

    lm: Any
    thinker: Thinker
    past: Past
    layout: Layout

    def __call__(self, z_LD: Tensor, t_L: Tensor | float) -> Tensor:
        """[L, D] displacement of one Euler step at latents z and times t in [0, 1)."""
        hidden = Read(self.past, self.layout).run(self.lm, self.thinker.clocked(z_LD, t_L))
        first_L1 = (self.layout.query_N == 0)[:, None]
        before = torch.where(first_L1, self.past.last_RD[self.layout.row_N], hidden.roll(1, 0))
        return self.thinker.displacement(torch.cat([hidden, before], 1), z_LD)

    def start(self, epsilon_LD: Tensor | None = None) -> Tensor:
        """[L, D] z_0."""
        z = self.thinker.pause.expand(len(self.layout.row_N), -1)
        return self.thinker.ball(z if epsilon_LD is None else self.thinker.noisy(z, epsilon_LD))

    def path(self, z_LD: Tensor, grad: Gradient = EXACT) -> list[Tensor]:
        """z_0 .. z_T, each [L, D]. Without the gradients that `grad` leaves out: detached, none; truncated, none before
        the last steps."""
        steps = self.thinker.config.euler_steps
        first = steps if grad.detached else 0 if grad.last is None else max(0, steps - grad.last)
        path = [z_LD if first == 0 else z_LD.detach()]
        for n in range(steps):
            kept = torch.is_grad_enabled() and n >= first
            with torch.set_grad_enabled(kept):
                path.append(
                    checkpoint(self._step, path[-1], n / steps, use_reentrant=False)
                    if kept and grad.recompute
                    else self._step(path[-1], n / steps)
                )
        return path

    def _step(self, z_LD: Tensor, t: float) -> Tensor:
        return self.thinker.ball(z_LD + self(z_LD, t))


@dataclass
class Block:
    """One block of latents of a batch, and what is read after it.

    path: z_0 .. z_T, each [L, D]. rest: layout of the latents and the tokens up to the next block. token_N, latent_N,
    target_N: of its positions: int64 ids; bool, latents; bool, tokens of a good answer.
    """

    field: Field
    path: list[Tensor]
    rest: Layout
    token_N: Tensor
    latent_N: Tensor
    target_N: Tensor

    def read(self, z_LD: Tensor, past: Past | None = None) -> tuple[Read, Tensor]:
        """The pass that reads these latents and the tokens after them, and its [N, D] hidden states."""
        embeds = self.field.lm.get_input_embeddings()(self.token_N)
        x = embeds.masked_scatter(self.latent_N[:, None], z_LD.to(embeds.dtype))
        now = Read(past or self.field.past, self.rest)
        return now, now.run(self.field.lm, x)

    def logprob(self, z_LD: Tensor) -> Tensor:
        """float[M]: log p of every token of the good answers after z; the prompt is a constant."""
        _, hidden = self.read(z_LD, self.field.past.detach())
        # a latent stands before the first of them, so what predicts a token is the position before it
        before = hidden[self.target_N.nonzero()[:, 0] - 1]
        logits = self.field.lm.get_output_embeddings()(before)
        return -nn.functional.cross_entropy(logits, self.token_N[self.target_N], reduction="none")

    def gradient(self, z_LD: Tensor) -> Tensor:
        """[L, D] grad_z log p(y* | x, z), no graph: where each row's answer becomes likelier."""
        with torch.enable_grad():
            leaf = z_LD.detach().requires_grad_()
            return torch.autograd.grad(self.logprob(leaf).sum(), leaf)[0]

    def adjoint(self) -> list[Tensor]:
        """T tensors [L, D]: grad of log p(y* | x, z_T) with respect to z_0 .. z_{T-1}, through the field's own later
        steps; no graph."""
        with torch.enable_grad():
            apart = Field(self.field.lm, self.field.thinker, self.field.past.detach(), self.field.layout)
            path = apart.path(self.path[0].detach().requires_grad_())
            return list(torch.autograd.grad(self.logprob(path[-1]).sum(), path[:-1]))


@dataclass
class Thought:
    """A batch that was thought through and read. hidden_ND, at_BT, latents_LD: as of `models.thinking.think`. past: all
    of it."""

    hidden_ND: Tensor
    at_BT: Tensor
    latents_LD: Tensor
    past: Past
    blocks: list[Block] = field(default_factory=list)


def flow(
    lm: Any,
    thinker: Thinker,
    token_BT: Tensor,
    kind_BT: Tensor,
    length_B: Tensor,
    grad: Gradient = EXACT,
    epsilon_LD: Tensor | None = None,
    replace: Callable[[Block], Tensor] | None = None,
) -> Thought:
    """Read right-padded rows with latent blocks anywhere (see `models.chain_plan`), their latents made by the flow.

    epsilon_LD: standard normal noise of z_0, in order of row and position. replace: gives the [L, D] latents to read
    after a block's path, instead of its end.
    """
    device, (rows, width) = token_BT.device, token_BT.shape
    kind, lengths = kind_BT.cpu().numpy(), length_B.tolist()
    spans = [segments(kind[b, :n]) for b, n in enumerate(lengths)]
    latent_BT = (kind_BT == Kind.LATENT) & (torch.arange(width, device=device) < length_B[:, None])
    embed = lm.get_input_embeddings()
    # by place in the batch, so that blocks need not come in order of rows
    noise_MD, all_MD = None, embed.weight.new_zeros(rows * width, embed.weight.shape[1])
    if epsilon_LD is not None:
        noise_MD = torch.zeros_like(all_MD)
        noise_MD[latent_BT.flatten()] = epsilon_LD.to(all_MD)
    at_BT = torch.zeros_like(token_BT).flatten()
    nothing = embed.weight.new_zeros(rows, embed.weight.shape[1])
    past = Past({}, torch.zeros(rows, 0, dtype=torch.bool, device=device), torch.zeros_like(length_B), nothing)
    hidden, blocks, count = [], [], 0

    def widths(number: int) -> Tensor:
        found = [span[number][1] - span[number][0] if number < len(span) else 0 for span in spans]
        return torch.tensor(found, device=device)

    def place(layout: Layout) -> Tensor:
        return layout.row_N * width + layout.position_N

    now = Read(past, Layout(past, widths(0)))
    cell_N = place(now.layout)
    out = now.run(lm, embed(token_BT.flatten()[cell_N]))
    hidden.append(out)
    at_BT[cell_N] = torch.arange(len(cell_N), device=device)
    count += len(cell_N)
    for number in range(1, max(map(len, spans)), 2):
        past = now.after(out)
        inner = Layout(past, widths(number))
        rest = Layout(past, inner.width_R + widths(number + 1))
        mine_L, cell_N = place(inner), place(rest)
        field_ = Field(lm, thinker, past, inner)
        path = field_.path(field_.start(None if noise_MD is None else noise_MD[mine_L]), grad)
        latent_N = rest.query_N < inner.width_R[rest.row_N]
        target_N = kind_BT.flatten()[cell_N] == Kind.TARGET
        token_N = token_BT.flatten()[cell_N].masked_fill(
            latent_N, 0
        )  # what stands at a latent position is never embedded
        block = Block(field_, path, rest, token_N, latent_N, target_N)
        end = path[-1] if replace is None else replace(block)
        all_MD = all_MD.index_copy(0, mine_L, end.to(all_MD.dtype))
        now, out = block.read(end)
        hidden.append(out)
        at_BT[cell_N] = count + torch.arange(len(cell_N), device=device)
        count += len(cell_N)
        blocks.append(block)
    return Thought(torch.cat(hidden), at_BT.view(rows, width), all_MD[latent_BT.flatten()], now.after(out), blocks)


@torch.no_grad()
def think_after(lm: Any, thinker: Thinker, past: Past, steps_R: np.ndarray, epsilon_LD: Tensor | None = None) -> Tensor:
    """[L, D] latents of the next block of every row, row after row, given what the rows have read: a sampler's way."""
    width_R = torch.from_numpy(steps_R.astype(np.int64)).to(past.length_R.device)
    now = Field(lm, thinker, past, Layout(past, width_R))
    return now.path(now.start(epsilon_LD))[-1]
