"""`posterior eval --causal`, and the last part of a latent thinker's training: which answers need their thought."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.stats import mean_interval, wilson
from envs.base import Task
from models.causal import Outcome, battery
from models.lens import look
from models.loading import load_role, load_tokenizer
from models.trace import Trace
from posterior import launch
from posterior.config import RunConfig


def causal(config: RunConfig, splits: Sequence[str], tasks: int = 256) -> dict[str, Any]:
    """By split: accuracy and log-probability of the good answer under every intervention, with 95 % intervals; and the lens."""
    from envs.registry import make

    plan = launch.make_plan(config)
    algorithm = plan.make_algorithm()
    model = load_role(plan.model, trust_remote_code=config.model.trust_remote_code).eval()
    env = make(config.env.name, config.env.args)
    out: dict[str, Any] = {}
    for split in splits:
        asked: list[Task] = list(itertools.islice(env.tasks(split), tasks))
        traces: list[Trace] = [algorithm.example(task, i, 1 << 30) for i, task in enumerate(asked)]
        found = battery(model, traces, config.sampling.latents, config.seed)
        out[split] = {name: _figures(outcome, found["clean"]) for name, outcome in found.items()}
        if config.sampling.latents:
            out[split]["lens"] = _lens(config, plan.model, model, traces)
    return out


def _figures(outcome: Outcome, clean: Outcome) -> dict[str, float]:
    low, high = wilson(float(outcome.correct.sum()), len(outcome.correct))
    drop = clean.logprob - outcome.logprob
    worse, most = mean_interval(drop.tolist())
    return {
        "accuracy": float(outcome.correct.mean()),
        "low": low,
        "high": high,
        "logprob": float(outcome.logprob.mean()),
        "logprob_lost": float(drop.mean()),
        "logprob_lost_low": worse,
        "logprob_lost_high": most,
    }


def _lens(config: RunConfig, path: str, model: Any, traces: Sequence[Trace]) -> dict[str, Any]:
    lens = look(model, traces[:64], config.sampling.latents, config.seed)
    tokenizer = load_tokenizer(path, config.model.trust_remote_code)
    shown = [
        {
            "prompt": tokenizer.decode(trace.token[trace.kind == 0].tolist()),
            "answer": tokenizer.decode(trace.token[trace.kind == 4].tolist(), skip_special_tokens=True),
            "steps": [
                [
                    [word, round(float(p), 4)]
                    for word, p in zip(tokenizer.batch_decode([[w] for w in words]), shares, strict=True)
                ]
                for words, shares in zip(lens.words_NK5[i].tolist(), lens.share_NK5[i], strict=True)
            ],
        }
        for i, trace in enumerate(traces[:8])
    ]
    figures = {name: np.round(getattr(lens, f"{name}_{axis}"), 4).tolist() for name, axis in _AXES}
    return {**figures, "problems": shown}


_AXES = (("norm", "K"), ("rank", "K"), ("cosine", "KK"), ("gain", "K"))
