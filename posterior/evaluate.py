"""`posterior eval`: grade a model on held-out tasks, with intervals; of a reward model, how well it knows the scores."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from actors.learner import resolve_roles
from actors.scorer import Scorer, write_scores
from actors.types import ProbePlan
from algorithms.base import Algorithm
from envs.base import Env
from models.forward import Distribution
from models.roles import REWARD_NOTES
from posterior import launch
from posterior.cluster import cluster
from posterior.config import RunConfig
from posterior.config_load import ConfigError
from posterior.prepare import model_path
from posterior.rundir import plain
from posterior.targets import open_target, plays


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
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """pass@k, mean grade and 95 % intervals of a run's checkpoint or of a model, by split; of a reward model's run what its training
    reports of held-out items.

    env, args: the environment, by default the run's own (args are added to its arguments), for a bare model "coding".
    split: by default every held-out split of the environment, of those that a reward model can read. samples: answers per task; pass@k is
    given for powers of two up to it.
    checkpoint: which of a run's, see `open_target`.
    """
    import ray

    config, what = open_target(target, checkpoint)
    point_at(config, env, args)
    if not plays(config):
        if (samples, temperature, max_tokens) != (1, 1.0, None):
            raise ConfigError("a reward model reads given answers: leave out --samples, --temperature and --max-tokens")
        return {"target": what, "model": config.model.path, "env": config.env.name, **_read(config, split, tasks)}
    if (Path(config.model.path) / REWARD_NOTES).is_file():
        raise ConfigError(f"{target} holds a reward model, which answers nothing; give the run that trained it")
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


def _read(config: RunConfig, split: str | None, tasks: int) -> dict[str, Any]:
    """Figures by split of a method that plays nothing, from a checkpoint of its run: held-out tasks are read as in training, without a
    sampler."""
    from envs.registry import make

    seconds = time.perf_counter()
    config.eval.splits, config.eval.every = [split] if split else [], 1
    launch.check_env(config)
    model = Path(model_path(config))
    algorithm = launch.build_algorithm(
        _options(config, model), str(model), launch.sampling_params(config), config.seed, 1
    )
    env = make(config.env.name, config.env.args)
    asked = {name: list(islice(env.tasks(name), tasks)) for name in _readable(config, algorithm, env, split)}
    plan = ProbePlan(config.eval.thoughts, config.eval.anchoring, config.eval.step_mark)
    groups = {name: asyncio.run(algorithm.probe(own, [], plan)) for name, own in asked.items()}
    for role, spec in resolve_roles(algorithm.roles).items():
        if not (spec.scores or spec.trainable):
            continue
        folder = model.parent / role  # a checkpoint's roles lie side by side
        spec = replace(spec, weights=str(folder)) if spec.trainable else spec
        scorer = Scorer(
            spec,
            config.model.dtype,
            Distribution(),
            config.resources.learner_threads,
            config.model.trust_remote_code,
        )
        for found in groups.values():
            traces = [trace for group in found for trace in group.traces]
            write_scores(role, 0, traces, scorer.score(traces))
    figures = {name: algorithm.diagnose(found, algorithm.by_task(found)) for name, found in groups.items()}
    return {"splits": plain(figures), "seconds": time.perf_counter() - seconds}


def _options(config: RunConfig, model: Path) -> dict[str, Any]:
    """The method's options as in training: a reward model's scale is kept with its weights, for its data may have grown since."""
    notes = model / REWARD_NOTES
    if not notes.is_file():
        return launch.settled(config, dict(config.algorithm))
    kept = json.loads(notes.read_text())
    return {**config.algorithm, "mean": kept["mean"], "std": kept["std"]}


def _readable(config: RunConfig, algorithm: Algorithm, env: Env, split: str | None) -> Sequence[str]:
    """The split that was asked for; by default the held-out ones whose tasks say something to the method."""
    if split is not None:
        return [split]
    found = []
    for name in held_out(config):
        try:
            algorithm.example(next(iter(env.tasks(name))), 0, 0)
        except (ValueError, StopIteration):
            continue
        found.append(name)
    if not found:
        raise ConfigError(
            f"no held-out split of environment {config.env.name} holds what {algorithm.config.name} reads"
        )
    return found


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
