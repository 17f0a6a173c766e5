"""Held-out tasks inside a run: played by the samplers or only read, what thoughts are worth, and the monitor of a learned reward."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.reward import check_rater
from actors.types import Group
from models.forward import Distribution, score_traces

if TYPE_CHECKING:
    from actors.collector import EvalReply
    from actors.learner import Learner

log = logging.getLogger("posterior.held_out")


class HeldOut:
    """Of one learner rank; all ranks must call `evaluate`, rank 0 writes."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.heard: list[dict[str, Any]] = []
        """Evaluations of the first split, for the monitor of a learned reward."""
        self.ended = False
        """Whether the monitor has ended the run; every rank knows."""

    def evaluate(self, version: int) -> None:
        learner, c = self.learner, self.learner.config
        start = time.perf_counter()
        row: dict[str, Any] = {"kind": "eval", "step": version, "version": version}
        each: dict[str, dict[str, list[Any]]] = {split: {} for split in c.eval_splits}
        plays = learner.algorithm.plays
        if plays and learner.rank == 0:
            for split in c.eval_splits:
                groups, each[split] = self._play(split, version, row)
                if split == c.eval_splits[0]:
                    self._listen(row, groups)
        if c.monitor is not None:
            self.ended = learner.broadcast(self.ended)
        if not plays or (c.probe.thoughts and (version == 0 or learner.last or self.ended)):
            for split in c.eval_splits:
                figures, probed = self._probe(split, version)
                each[split].update(probed)
                row.update({f"eval/{split}/{name}": value for name, value in figures.items()})
        if learner.rank != 0:
            return
        for split in c.eval_splits:
            c.recorder.held_out(version, split, each[split])
        row["time/eval"] = time.perf_counter() - start
        row["seconds"] = learner.seconds()
        c.recorder.metrics(row)

    def _play(self, split: str, version: int, row: dict[str, Any]) -> tuple[list[Group], dict[str, list[Any]]]:
        """Have the samplers play held-out tasks; figures go into the row. Returns the groups, and values by task."""
        learner, c = self.learner, self.learner.config
        learner.status.stage(f"evaluating version {version} on {split}")
        reply: EvalReply = learner.ask("evaluate", split, c.eval_tasks, c.eval_samples, c.eval_temperature)
        row.update({f"eval/{split}/{name}": value for name, value in reply.figures.items()})
        c.recorder.traces(f"eval_{version:06d}_{split}", version, reply.groups[: c.trace_groups])
        row.update(self._gap(reply.groups))
        return reply.groups, dict(reply.each)

    def _listen(self, row: dict[str, Any], groups: Sequence[Group]) -> None:
        """Let the monitor of a learned reward hear an evaluation of the first split; it may write "hacking/alarm" and "hacking/kl_budget"
        into the row, and end the run. Raises NoRater at the first evaluation if nobody's grades bear the raters' name."""
        c = self.learner.config
        first = f"eval/{c.eval_splits[0]}/"
        if c.monitor is None or f"{first}proxy" not in row:
            return
        if not self.heard:
            check_rater([trace for group in groups for trace in group.live], c.monitor.component)
        figures = {key.removeprefix(first): value for key, value in row.items() if key.startswith(first)}
        self.heard.append({"step": row["version"], **figures})
        said = c.monitor.verdict(self.heard)
        for name, sentence in (("alarm", said.alarm), ("kl_budget", said.kl_budget)):
            if sentence:
                row[f"hacking/{name}"] = 1.0
                log.warning("step %d: %s%s", row["version"], sentence, "; the run ends" if said.ends else "")
        self.ended = self.ended or said.ends

    def _probe(self, split: str, version: int) -> tuple[dict[str, float], dict[str, list[float]]]:
        """(figures in all, values by task) of held-out tasks that are read: by every role that scores or learns."""
        learner, c = self.learner, self.learner.config
        learner.status.stage(f"reading held-out tasks of {split} with version {version}")
        groups = learner.ask("probe", split, c.eval_tasks, c.probe) if learner.rank == 0 else None
        groups = learner.broadcast(groups)
        for role, spec in c.roles.items():
            if spec.scores or spec.trainable:
                learner.score(role, spec, groups, version, charge=False)
        if c.probe.anchored:
            learner.updater.read_entropy("policy", groups, version)
        each = learner.algorithm.by_task(groups)
        return learner.algorithm.diagnose(groups, each), each

    def _gap(self, groups: Sequence[Group]) -> dict[str, float]:
        """Sampler against learner on a few held-out traces, which the current version sampled (with staleness no batch is)."""
        learner = self.learner
        if learner.updater.sharded:
            return {}  # a sharded model reads only when all ranks do
        traces = [t for g in groups for t in g.live][:8]
        distribution = Distribution(learner.config.eval_temperature or 1.0)
        scores = score_traces(
            learner.updater.models["policy"], traces, distribution=distribution, device=learner.device
        )
        gaps = np.concatenate([np.abs(s - t.logprob)[t.sampled] for s, t in zip(scores, traces, strict=True)])
        return {"gap/max": float(gaps.max()), "gap/mean": float(gaps.mean())}
