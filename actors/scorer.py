"""Scorer: a Ray actor that holds one frozen role and reads traces with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.forward import Distribution, score_traces
from models.loading import load_role
from models.roles import RoleSpec
from models.trace import Score, Trace


class Scorer:
    """Build it with `ray.remote(Scorer).options(...)`. spec: the role, with its weights resolved to a path."""

    def __init__(
        self, spec: RoleSpec, dtype: str, distribution: Distribution, threads: int, trust_remote_code: bool = False
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.spec = spec
        self.distribution = distribution
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_role(
            spec.weights, dtype=dtype, head=spec.head, outputs=spec.outputs, trust_remote_code=trust_remote_code
        ).to(self.device)

    def score(self, traces: Sequence[Trace]) -> list[np.ndarray]:
        """float32[T] for each trace; see `models.forward.score_traces`."""
        return score_traces(
            self.model,
            traces,
            template=self.spec.template,
            head=self.spec.head,
            distribution=self.distribution,
            device=self.device,
        )


def write_scores(role: str, version: int, traces: Sequence[Trace], values: Sequence[np.ndarray]) -> None:
    """Keep what a role said on the traces."""
    for trace, value in zip(traces, values, strict=True):
        trace.scores[role] = Score(value, version)
