"""Latent flow: learn a velocity field over a continuous thought that points to where the good answer becomes likelier.

    prompt x ──► z_0 ──d──► z_1 ──d──► ... ──d──► z_T ──► y*        d(z, x, t): one Euler step (`models.velocity`)

At inference the field moves the latents without knowing y. In training, where y* is known, two losses:

    ce      mean of -log p(y* | x, z_T): teaches the reader, and, as far as `model.grad` lets it through the steps, the
            field
    flow    mean square of d(z_n, x, t_n) - u, in units of rms_E, at one n drawn for each example; teaches the field:

            target: local      u = cap( rate g^ + prior (z_0 - z_n) ),   g = grad_z log p(y* | x, z_n)
            target: adjoint    u = cap( rate a^ + prior (z_0 - z_n) ),   a = grad_{z_n} log p(y* | x, z_T(z_n))

with ^ for gradients taken in units of rms_E (rms_E^2 g), all gradients constants, and cap the field's own bound on a
step.

What the regressions mean. The minimiser of a mean square is a conditional mean, so with `local` the optimum (where the
cap does not bind) is d = rate grad_z E_{y|x} log p(y | x, z_n): the answers' gradients are averaged by the regression
itself, and the flow climbs the expected log-likelihood, pulled back to z_0 by the score of a Gaussian prior around it.
`adjoint` climbs what the field itself will make of z_n in its later steps: the gradient of the value instead of that of
the moment.

What to expect, since it decides where the field can help. For y drawn from the reader's own p(. | x, z) the expected g
is sum_y p grad log p = grad sum_y p = 0. So for any belief q(y | x, z) of the field the best regression is

    d = rate sum_y (q(y) - p(y)) grad_z log p(y | x, z):

it moves only where the field knows better than the reader does. They are one decoder, so with `model.grad: detached`
little is left to learn: in benchmarks/latent_flow.py such a flow gains hundredths of a nat. `model.grad: exact` is not
bound by that: through the Euler steps, cross-entropy sends every step a, not as its goal but as a correction (the
gradient of a regression on d + a), whose stationary point is a = 0 with d whatever led there. The path then need not
climb: a problem of h hops stands lower than z_0 until step h, and has its answer there. With `endpoint`, as many steps
as latents and no cap, a fresh field is a gated neuralese chain, in value and gradient, run as parallel sweeps.

Source of the first formulation: the project's facts page (neuralese, section 7, item 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat
from torch import Tensor

from actors.types import Group
from algorithms.base import Context
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig
from models.feedback import has_thinker, thinker_config
from models.seeds import uniform
from models.terms import Batch, Forward, Term, detached
from models.trace import Kind
from models.velocity import Block


class LatentFlowConfig(NeuraleseSFTConfig):
    """Options of latent flow. The number of latents is sampling.latents; Euler steps and bounds are the thinker's
    (kind: flow)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "latent_flow"
    flow: NonNegativeFloat = 1.0
    """Weight of the regression; 0 trains the field by cross-entropy alone, through the Euler steps."""
    target: Literal["local", "adjoint"] = "local"
    """What the field is regressed on: the gradient of log p(y*|x,z) at z itself, or through the field's later steps."""
    rate: PositiveFloat = 1.0
    """Length of an Euler step for a gradient of one nat for one rms_E."""
    prior: NonNegativeFloat = 0.0
    """Pull back to z_0, as a share of the distance in each step."""


class LatentFlow(NeuraleseSFT):
    """Neuralese-SFT's examples and cross-entropy, and the regression of the velocity field; one trainable role,
    "policy"."""

    Config: ClassVar[type[LatentFlowConfig]] = LatentFlowConfig
    config: LatentFlowConfig

    def __init__(self, config: LatentFlowConfig, context: Context) -> None:
        super().__init__(config, context)
        kind = thinker_config(context.model_path).kind if has_thinker(context.model_path) else None
        if kind not in (None, "flow", "pause"):  # pause: its control
            raise ValueError(
                f"latent_flow needs a thinker that is a flow, not {kind!r}; set model.thinker.kind to flow"
            )

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes "ce": 1 at every position of a good answer, and "flow": its weight at every latent position."""
        metrics = super().credit(groups)
        for trace in (t for g in groups for t in g.live):
            trace.weights["flow"] = (trace.kind == Kind.LATENT).astype(np.float32) * self.config.flow
        return metrics

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        """ "ce" as in neuralese-SFT; "flow": mean square of displacement minus target over a latent's values, at latent
        positions."""
        terms = super().terms(role, forward, batch)
        latent_BT = batch.kind_BT == Kind.LATENT
        if self.config.flow == 0 or not bool(latent_BT.any()) or (thought := forward.thought) is None:
            return terms
        if len(thought.blocks) != 1:
            raise ValueError(
                f"latent_flow learns from one block of latents an answer, these have {len(thought.blocks)}"
            )
        block = thought.blocks[0]
        steps = block.field.thinker.config.euler_steps
        seeds = np.array([trace.eps_seed or 0 for trace in batch.traces], np.uint64)
        drawn_B = torch.from_numpy((uniform(seeds, np.zeros(len(seeds)), stream=2) * steps).astype(np.int64))
        n_L = drawn_B.to(latent_BT.device)[block.field.layout.row_N]
        z_LD = pick(block.path, n_L).detach()
        gradient_LD = self.gradient(block, z_LD, n_L)
        made_LD = block.field(z_LD, n_L / steps)
        rms = block.field.thinker.rms
        error_L = ((made_LD - self.target(block, z_LD, gradient_LD)) / rms).square().mean(-1)
        along = torch.nn.functional.cosine_similarity(made_LD, gradient_LD, dim=-1)
        metrics = {
            "flow/cosine": along,
            "flow/step": made_LD.square().mean(-1).sqrt() / rms,
            "flow/gradient": gradient_LD.square().mean(-1).sqrt() * rms,
        }

        def spread(x_L: Tensor) -> Tensor:
            return torch.zeros(latent_BT.shape, dtype=x_L.dtype, device=x_L.device).masked_scatter(latent_BT, x_L)

        metrics = detached({name: spread(x) for name, x in metrics.items()})
        terms["flow"] = Term(spread(error_L), "flow", "positions", metrics)
        return terms

    def gradient(self, block: Block, z_LD: Tensor, n_L: Tensor) -> Tensor:
        """[L, D] gradient of log p(y*|x, .) with respect to z, at step n of each latent; a constant."""
        if self.config.target == "local":
            return block.gradient(z_LD)
        return pick(block.adjoint(), n_L)

    def target(self, block: Block, z_LD: Tensor, gradient_LD: Tensor) -> Tensor:
        """[L, D] what one Euler step from z should be; a constant."""
        c, thinker = self.config, block.field.thinker
        with torch.no_grad():
            pull = c.prior * (block.path[0] - z_LD)
            return thinker.within(c.rate * thinker.rms.square() * gradient_LD + pull, thinker.config.trust)


def pick(by_step: Sequence[Tensor], n_L: Tensor) -> Tensor:
    """[L, D] of each latent the value at its own step. by_step: [L, D] each."""
    return torch.stack(list(by_step))[n_L, torch.arange(len(n_L), device=n_L.device)]
