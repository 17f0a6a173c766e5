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
from models.trace import Kind, Trace
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
        by_steps: dict[int, list[Trace]] = {}
        for trace in traces:
            by_steps.setdefault(len(trace.where(Kind.LATENT)), []).append(trace)
        found = [battery(model, same, k, config.seed) for k, same in sorted(by_steps.items())]
        names = list(dict.fromkeys(name for one in found for name in one))
        out[split] = {name: _figures([one for one in found if name in one], name) for name in names}
        most = max(by_steps)
        if most:
            out[split]["lens"] = _lens(config, plan.model, model, by_steps[most], most)
    return out


def _figures(batteries: Sequence[dict[str, Outcome]], name: str) -> dict[str, float]:
    """Over all problems that the intervention was tried on."""
    correct = np.concatenate([one[name].correct for one in batteries])
    logprob = np.concatenate([one[name].logprob for one in batteries])
    drop = np.concatenate([one["clean"].logprob for one in batteries]) - logprob
    low, high = wilson(float(correct.sum()), len(correct))
    worse, most = mean_interval(drop.tolist())
    return {
        "accuracy": float(correct.mean()),
        "low": low,
        "high": high,
        "logprob": float(logprob.mean()),
        "logprob_lost": float(drop.mean()),
        "logprob_lost_low": worse,
        "logprob_lost_high": most,
    }


def _lens(config: RunConfig, path: str, model: Any, traces: Sequence[Trace], steps: int) -> dict[str, Any]:
    lens = look(model, traces[:64], steps, config.seed)
    tokenizer = load_tokenizer(path, config.model.trust_remote_code)
    shown = [
        {
            "prompt": tokenizer.decode(trace.token[trace.kind == Kind.CONTEXT].tolist()),
            "answer": tokenizer.decode(trace.token[trace.kind == Kind.TARGET].tolist(), skip_special_tokens=True),
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
