"""A frozen helper is one step of EM, one that is fitted on passes it: learnt on the pretrained walker, measured by enumeration."""

from __future__ import annotations

import pytest
import torch

from benchmarks.posterior_exact import base_model
from benchmarks.posterior_refit import follow
from envs.walk import Walk


@pytest.mark.slow
def test_a_frozen_helper_plateaus_and_a_refitted_one_passes_it() -> None:
    torch.set_num_threads(1)
    path = base_model(None, quick=False)
    tasks = list(Walk().tasks("train"))[:8]
    frozen = follow(path, tasks, "never", first=40, steps=150, seed=0)
    refitted = follow(path, tasks, "always", first=40, steps=150, seed=0)
    assert frozen.end > frozen.start + 0.5  # one step of EM helps
    assert abs(frozen.end - frozen.plateau) < 0.15  # and ends where theory says
    late = [value for step, value in frozen.curve if step >= 100]
    assert max(late) - min(late) < 0.1
    assert max(late) < frozen.plateau + 0.05
    assert refitted.plateau == frozen.plateau
    assert refitted.end > max(frozen.plateau, frozen.end) + 0.2
