"""What passes between the learner and a method: a padded batch of readings, a lazy forward pass, and named loss terms.

Shapes: B rows, T positions of the longest row; rows are padded on the right. Every per-position quantity is aligned with the
token it is about: `logprobs_BT[b, t]` is log p(token_BT[b, t] | token_BT[b, :t]), and 0 at t = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from models.trace import Trace, View
from models.velocity import Thought

Denominator = Literal["positions", "traces", "groups"]


@dataclass
class Batch:
    """Rows of one micro-batch as one role reads them.

    token_BT: int64, padding 0. kind_BT: uint8 of `Kind`, padding CONTEXT. length_B: int64 true lengths.
    scored_BT: bool, positions whose log-probability is asked for (sampled or given-answer positions of the trace).
    fields: float32[B, T] each, gathered from the trace through the view, 0 where absent: "logprob" (behaviour),
        "reward", everything in `Trace.weights` by its name, and "score/ROLE" for everything in `Trace.scores`.
    traces, views: the rows' sources, in row order.
    """

    token_BT: Tensor
    kind_BT: Tensor
    length_B: Tensor
    scored_BT: Tensor
    fields: dict[str, Tensor]
    traces: Sequence[Trace]
    views: Sequence[View]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.fields:
            raise KeyError(f"no per-position field {name!r} in this batch; there are: {', '.join(sorted(self.fields))}")
        return self.fields[name]


class Forward(Protocol):
    """One role's forward pass over one `Batch`; each property is computed when first asked for, with its graph."""

    @property
    def logprobs_BT(self) -> Tensor:
        """float32[B, T] log-probabilities of the given tokens under the sampling temperature; 0 outside `scored_BT`."""

    @property
    def entropy_BT(self) -> Tensor:
        """float32[B, T] entropy in nats of the distribution that each scored token was drawn from; 0 elsewhere."""

    @property
    def hidden_BTD(self) -> Tensor:
        """[B, T, D] final hidden states (after the last norm)."""

    @property
    def values_BT(self) -> Tensor:
        """float32[B, T] of the value or scalar head with one output."""

    @property
    def outputs_BTE(self) -> Tensor:
        """float32[B, T, outputs] of the value or scalar head."""

    @property
    def latents(self) -> Tensor | None:
        """Latent thoughts, for models that have them."""

    @property
    def thought(self) -> Thought | None:
        """How the latents came about, where a flow makes them (`models.velocity`); None for other thinkers."""

    def __call__(self, latents: Tensor) -> Forward:
        """The same pass with these latents in place of its own."""


@dataclass
class Term:
    """One named part of a loss.

    The learner adds sum(loss_BT * field) / denominator over the whole mini-batch, where `field` is the per-position field
    called `weight` (written by `Algorithm.credit`). The denominator is taken over the *global* mini-batch, all ranks and
    micro-batches, so neither packing nor data-parallel size changes the gradient:
    "positions": number of positions with a non-zero weight; "traces": number of traces with any; "groups": likewise.

    metrics: name -> [B, T] values averaged over the positions with non-zero weight, for logging only.
    """

    loss_BT: Tensor
    weight: str
    denominator: Denominator
    metrics: dict[str, Tensor] = field(default_factory=dict)


def detached(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metrics without their graphs."""
    return {name: value.detach() for name, value in metrics.items()}
