"""The update: one batch of credited groups into gradient steps, blind to the method that wrote the credit.

Every rank holds the whole batch, so global denominators need no communication: they are counted from the per-position weights
before any forward pass. Each rank then takes its share of the rows, cuts it into micro-batches by token budget, adds

    sum over terms of  sum(loss_BT * weight) / denominator

and the gradients are summed over ranks. Packing, micro-batches and the number of ranks therefore do not change the gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from actors.types import ENTROPY, Group
from models.forward import (
    Distribution,
    ModelForward,
    collate,
    deal,
    make_view,
    plan_microbatches,
    score_traces,
    token_budget_of,
)
from models.loading import RoleModel
from models.roles import RoleSpec
from models.terms import Term
from models.trace import Score, Trace, View


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW of one role; lr after `warmup_steps` of linear warm-up."""

    lr: float
    warmup_steps: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip: float

    def lr_at(self, update: int) -> float:
        return self.lr * min(1.0, (update + 1) / self.warmup_steps) if self.warmup_steps else self.lr


@dataclass
class Row:
    """One reading of one trace, and the place of its group in the batch."""

    trace: Trace
    view: View
    group: int


@dataclass
class Unit:
    """Rows that stay in one micro-batch, and their tokens, one row's after another's."""

    rows: list[Row]
    token: np.ndarray


class Totals:
    """Weighted sums over micro-batches and ranks that become metrics."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.added: dict[str, float] = defaultdict(float)
        self.largest: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        self.added[name] += value

    def mean(self, name: str, total: float, count: float) -> None:
        self.sums[name] += total
        self.counts[name] += count

    def max(self, name: str, value: float) -> None:
        self.largest[name] = max(self.largest.get(name, -math.inf), value)

    def gathered(self) -> dict[str, float]:
        """Sums, means and maxima over all ranks."""
        parts = _all_gather((dict(self.sums), dict(self.counts), dict(self.added), self.largest))
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        out: dict[str, float] = {}
        for part_sums, part_counts, part_added, part_largest in parts:
            for name, value in part_added.items():
                out[name] = out.get(name, 0.0) + value
            for name, value in part_sums.items():
                sums[name] += value
                counts[name] += part_counts[name]
            for name, value in part_largest.items():
                out[name] = max(out.get(name, -math.inf), value)
        out.update({name: total / counts[name] for name, total in sums.items() if counts[name]})
        return out


class Updater:
    """Holds the trainable roles' models and optimisers.

    models: role -> model (all of one device). token_budget: positions of a micro-batch, None for as many as fit.
    half: autocast to bfloat16. on one rank nothing is communicated.
    """

    def __init__(
        self,
        algorithm: Any,
        models: Mapping[str, RoleModel],
        specs: Mapping[str, RoleSpec],
        optimisers: Mapping[str, OptimiserConfig],
        distribution: Distribution,
        token_budget: int | None,
        *,
        device: str = "cpu",
        half: bool = False,
        sharded: bool = False,
    ) -> None:
        self.algorithm = algorithm
        self.models = dict(models)
        self.specs = dict(specs)
        self.settings = dict(optimisers)
        self.distribution = distribution
        self.token_budget = token_budget or min(token_budget_of(model, device) for model in models.values())
        self.device = device
        self.half = half
        self.sharded = sharded
        self.updates = 0
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            role: torch.optim.AdamW(
                [p for p in model.parameters() if p.requires_grad],
                lr=self.settings[role].lr,
                betas=self.settings[role].betas,
                eps=self.settings[role].eps,
                weight_decay=self.settings[role].weight_decay,
            )
            for role, model in self.models.items()
        }

    # ---- scoring ----------------------------------------------------------------------------------------------------------

    def score(self, role: str, groups: Sequence[Group], version: int) -> None:
        """Have a trainable role read the batch under its current weights; writes `Trace.scores[role]` on every rank."""
        traces = self.algorithm.to_read(role, groups)
        heads = self.specs[role].head.split("+")
        self._read(role, role, heads[0], traces, version)
        for head in heads[1:]:
            self._read(f"{role}/{head}", role, head, traces, version)

    def read_entropy(self, role: str, groups: Sequence[Group], version: int) -> None:
        """Write `Trace.scores["entropy"]`, nats, where a trace asks for it (`Trace.meta` ENTROPY)."""
        traces = [trace for group in groups for trace in group.live if trace.meta.get(ENTROPY)]
        self._read(ENTROPY, role, "entropy", traces, version)

    def _read(self, name: str, role: str, head: str, traces: Sequence[Trace], version: int) -> None:
        mine = list(range(self.rank, len(traces), self.world))
        spec = self.specs[role]
        with self._precision():
            values = score_traces(
                self.models[role],
                [traces[i] for i in mine],
                template=spec.template,
                head=head,
                distribution=self.distribution,
                token_budget=4 * self.token_budget,
                device=self.device,
            )
        for part in _all_gather(dict(zip(mine, values, strict=True))):
            for i, value in part.items():
                traces[i].scores[name] = Score(value, version)

    # ---- updating ---------------------------------------------------------------------------------------------------------

    def update(self, groups: Sequence[Group], version: int, *, measure_gap: bool) -> dict[str, float]:
        """One optimiser step of every trainable role on one mini-batch; returns metrics.

        version: the policy's before the step. measure_gap: compare with the sampler's log-probs (only meaningful while no
        step was taken on this batch): gap/max and gap/mean over tokens that this version sampled, drift/mean over tokens of
        older versions (there the policy itself has moved too).
        A non-finite loss or gradient skips the role's step and is reported as skipped/ROLE = 1.
        """
        totals = Totals()
        metrics: dict[str, float] = {}
        for role, model in self.models.items():
            rows = self._rows(role, groups)
            if not rows:
                continue  # this role has nothing to learn from the batch, and keeps its weights and averages
            model.train()
            finite = self._backward(role, rows, totals, version if measure_gap and role == "policy" else None)
            metrics.update(self._step(role, finite))
        self.updates += 1
        metrics.update(totals.gathered())
        return metrics

    def gradients(self, role: str, groups: Sequence[Group]) -> dict[str, Tensor]:
        """The global gradient of a role's loss on a mini-batch, without a step (for tests and diagnosis)."""
        self._backward(role, self._rows(role, groups), Totals(), None)
        found = {n: p.grad.detach().clone() for n, p in self.models[role].named_parameters() if p.grad is not None}
        self.optimisers[role].zero_grad()
        return found

    def _rows(self, role: str, groups: Sequence[Group]) -> list[Row]:
        template = self.specs[role].template
        return [
            Row(trace, make_view(trace, template), place)
            for place, group in enumerate(groups)
            for trace in group.live
            if self.algorithm.trains(role, trace)
        ]

    def _units(self, rows: Sequence[Row]) -> list[Unit]:
        if not self.algorithm.together:
            return [Unit([row], row.view.token) for row in rows]
        groups: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            groups[row.group].append(row)
        return [Unit(own, np.concatenate([row.view.token for row in own])) for own in groups.values()]

    def _backward(self, role: str, rows: Sequence[Row], totals: Totals, gap_version: int | None) -> bool:
        denominators = count_denominators(rows)
        packs, budget = self.models[role].packs, self.token_budget
        units = self._units(rows)
        mine = [units[i] for i in deal([unit.token for unit in units], self.world, packs)[self.rank]]
        finite = True
        plans = plan_microbatches([unit.token for unit in mine], budget, packs)
        # sharded layers communicate in every pass, so all ranks must make equally many
        passes = max(_all_gather(len(plans))) if self.sharded else len(plans)
        for plan in plans:
            finite &= self._micro(role, [row for i in plan for row in mine[i].rows], denominators, totals, gap_version)
        for _ in range(passes - len(plans)):
            self._idle_pass(role, min(units, key=lambda unit: len(unit.token)).rows)
        if self.world > 1 and not self.sharded:
            for parameter in self.models[role].parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)
        return finite

    def _micro(
        self,
        role: str,
        rows: Sequence[Row],
        denominators: Mapping[tuple[str, str], float],
        totals: Totals,
        gap_version: int | None,
    ) -> bool:
        batch = collate([row.trace for row in rows], [row.view for row in rows], self.device)
        with self._precision():
            forward = ModelForward(self.models[role], batch, self.distribution)
            terms: dict[str, Term] = self.algorithm.terms(role, forward, batch)
        loss = torch.zeros((), device=self.device)
        for name, term in terms.items():
            weight_BT = batch[term.weight]
            divisor = denominators[term.weight, term.denominator]
            if divisor == 0:
                continue
            # where, not product: a position without weight may hold an infinity that must not become a NaN
            part = torch.where(weight_BT != 0, term.loss_BT.float() * weight_BT, 0.0).sum() / divisor
            loss = loss + part
            totals.add(f"loss/{role}/{name}", part.item())
            used = weight_BT != 0
            count = float(used.sum())
            for key, value_BT in term.metrics.items():
                if count:
                    totals.mean(f"{role}/{key}", float(value_BT[used].double().sum()), count)
        if gap_version is not None:
            self._gap(forward, rows, gap_version, totals)
        if not bool(torch.isfinite(loss)):
            return False
        if loss.requires_grad:
            loss.backward()
        return True

    def _idle_pass(self, role: str, rows: Sequence[Row]) -> None:
        """A pass without effect on the gradient."""
        batch = collate([row.trace for row in rows], [row.view for row in rows], self.device)
        with self._precision():
            terms = self.algorithm.terms(role, ModelForward(self.models[role], batch, self.distribution), batch)
        loss = sum((torch.where(batch.scored_BT, term.loss_BT, 0.0).sum() for term in terms.values()), torch.zeros(()))
        (0.0 * loss).backward()

    def _gap(self, forward: ModelForward, rows: Sequence[Row], version: int, totals: Totals) -> None:
        """Keep the learner's log-probs on the traces, and measure their distance from the sampler's."""
        if not any(row.trace.sampled.any() for row in rows):
            return  # given answers, which nobody sampled
        logprobs_BT = forward.logprobs_BT.detach().float().cpu().numpy()
        for b, row in enumerate(rows):
            own = row.view.scatter(logprobs_BT[b, : len(row.view)], len(row.trace))
            own = np.where(row.trace.sampled, own, np.nan).astype(np.float32)
            row.trace.scores["learner"] = Score(own, version)
            distance = np.abs(own - row.trace.logprob)
            scored = np.isfinite(distance)
            scored[0] = False
            same = scored & (row.trace.version == version)
            if same.any():
                totals.max("gap/max", float(distance[same].max()))
                totals.mean("gap/mean", float(distance[same].sum()), float(same.sum()))
            if (older := scored & ~same).any():
                totals.mean("drift/mean", float(distance[older].sum()), float(older.sum()))

    def _step(self, role: str, finite: bool) -> dict[str, float]:
        model, optimiser, settings = self.models[role], self.optimisers[role], self.settings[role]
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip) if parameters else torch.zeros(())
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        # one rank's bad loss is everyone's: the decision must be the same on all
        good = all(_all_gather(finite and math.isfinite(norm)))
        if good:
            lr = settings.lr_at(self.updates)
            for part in optimiser.param_groups:
                part["lr"] = lr
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return {f"grad_norm/{role}": norm, f"skipped/{role}": 0.0 if good else 1.0}

    def _precision(self) -> Any:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16) if self.half else nullcontext()


def count_denominators(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """(field, kind) -> global count over a mini-batch: positions, traces and groups with a non-zero weight (see `Term`)."""
    counts: dict[tuple[str, str], float] = defaultdict(float)
    groups: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        for name, values in row.trace.weights.items():
            used = int(np.count_nonzero(row.view.gather(values)))
            if used:
                counts[name, "positions"] += used
                counts[name, "traces"] += 1
                groups[name].add(row.group)
    for name, places in groups.items():
        counts[name, "groups"] = float(len(places))
    return counts


def _all_gather(value: Any) -> list[Any]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out
