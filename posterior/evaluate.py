"""`posterior eval`: grade a model on held-out tasks, with intervals."""

from __future__ import annotations

import time
from typing import Any

from posterior import launch
from posterior.cluster import cluster
from posterior.config import RunConfig
from posterior.config_load import ConfigError
from posterior.targets import open_target


def evaluate(
    target: str,
    env: str | None,
    args: dict[str, Any],
    *,
    split: str | None = None,
    tasks: int = 128,
    samples: int = 1,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    seed: int = 0,
    checkpoint: str = "newest",
) -> dict[str, Any]:
    """pass@k, mean grade and 95 % intervals of a run's checkpoint or of a model, by split.

    env, args: the environment, by default the run's own (args are added to its arguments), for a bare model "coding".
    split: by default every held-out split of the environment. samples: answers per task; pass@k is given for powers of two up to it.
    checkpoint: which of a run's, see `open_target`.
    """
    import ray

    config, what = open_target(target, checkpoint)
    point_at(config, env, args)
    if max_tokens is not None:
        config.sampling.max_tokens = max_tokens
    config.seed = seed
    config.eval.splits = [split] if split else held_out(config)
    config.algorithm = {"name": "rlvr"}  # evaluation plays episodes; no method takes part, and no learned reward
    config.reward, config.reward_model.path = {"env": 1.0}, None
    plan = launch.make_plan(config)
    figures: dict[str, Any] = {}
    seconds = time.perf_counter()
    with cluster(config.resources, launch.needed_resources(plan, learners=False)):
        collector = launch.start_collector(plan)
        ray.get(collector.connect.remote(launch.start_neighbours(plan, armed=True)))
        for name in config.eval.splits:
            reply = ray.get(collector.evaluate.remote(name, tasks, samples, temperature))
            figures[name] = {**reply.figures, "seconds": reply.seconds}
    return {
        "target": what,
        "model": plan.model,
        "env": config.env.name,
        "temperature": temperature,
        "splits": figures,
        "seconds": time.perf_counter() - seconds,
    }


def point_at(config: RunConfig, env: str | None, args: dict[str, Any]) -> None:
    """Ask another environment, or the run's own with some of its arguments changed."""
    if env is not None and env != config.env.name:
        config.env = config.env.model_copy(update={"name": env, "args": {}, "train_split": None})
    config.env.args = {**config.env.args, **args}


def held_out(config: RunConfig) -> list[str]:
    """The splits of an environment that are not trained on."""
    from envs.registry import make

    name = config.env.name
    splits = list(make(name, config.env.args).splits())
    if len(splits) < 2:
        raise ConfigError(
            f"environment {name} has no held-out split; name one of its splits with --split: {', '.join(splits)}"
        )
    trained = launch.train_split(config, splits)
    return [split for split in splits if split != trained]
