"""From a configuration to running actors: checks, samplers, environment workers, scorers, collector."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from actors.collector import Collector, CollectorConfig, Neighbours
from actors.diary import Diary
from actors.env_worker import EnvWorker
from actors.latent_sampler import LatentSampler
from actors.learner import resolve_roles
from actors.monitor import PROBES, START, HackingMonitor
from actors.reward import LearnedReward, RewardScorer
from actors.sampler import CPU_HEADS, TokenSampler, sampler_environment
from actors.scorer import Scorer
from actors.types import SamplingParams
from algorithms.base import Algorithm, Context
from algorithms.registry import find as find_algorithm
from envs.base import Task
from models.feedback import has_thinker
from models.flops import head_size
from models.forward import Distribution
from models.loading import check_model_path, load_config, load_tokenizer, stop_ids
from models.roles import RoleSpec
from posterior.config import DEFAULT_LENGTH, RunConfig
from posterior.config_load import ConfigError, is_configuration
from posterior.prepare import model_path
from posterior.targets import open_target
from posterior.warm_start import trained

CALLS = 10_000
"""Concurrent calls an asyncio actor may hold; back-pressure is the buffer's business."""


def sampling_params(config: RunConfig) -> SamplingParams:
    s = config.sampling
    return SamplingParams(s.temperature, s.top_p, s.top_k, s.max_tokens, latents=s.latents, latents_from=s.latents_from)


def build_algorithm(
    options: Mapping[str, Any], model: str, sampling: SamplingParams, seed: int, updates: int
) -> Algorithm:
    """The method a run uses; called in the collector and in every learner rank."""
    cls = find_algorithm(str(options["name"]))
    return cls(cls.Config(**options), Context(model, sampling, seed, updates))


@dataclass
class Plan:
    """Everything that follows from a configuration before anything starts."""

    config: RunConfig
    model: str
    sampling: SamplingParams
    make_algorithm: Any
    roles: dict[str, RoleSpec]
    learned: LearnedReward | None = None
    plays: bool = True
    path: list[str] = field(default_factory=list)

    @cached_property
    def max_length(self) -> int:
        """Of prompt and answer together, in tokens."""
        return self.config.model.max_length or min(
            DEFAULT_LENGTH, _positions(self.config, self.model) or DEFAULT_LENGTH
        )

    @cached_property
    def distribution(self) -> Distribution:
        if self.make_algorithm().offline:
            return Distribution()  # given answers have the likelihood that the model itself gives them
        return Distribution(self.sampling.temperature, self.sampling.top_p, self.sampling.top_k)


def make_plan(config: RunConfig) -> Plan:
    """Check what can be checked without starting anything. Raises ConfigError and its kin, one sentence each."""
    longest = config.model.max_length or DEFAULT_LENGTH
    if config.sampling.max_tokens >= longest:
        raise ConfigError(
            f"sampling.max_tokens is {config.sampling.max_tokens}, which leaves no room for a prompt in model.max_length "
            f"{longest}; raise model.max_length or lower sampling.max_tokens"
        )
    check_env(config)
    model = model_path(config)  # may take a run of its own: behind what needs no model
    _check_positions(config, model)
    stop_ids(model, load_tokenizer(model, config.model.trust_remote_code))
    options = dict(config.algorithm)
    if config.train.shuffle_rewards:
        options["shuffle_rewards"] = True
    options = settled(config, options)
    updates = config.train.epochs * config.train.minibatches
    sampling = sampling_params(config)
    make = partial(build_algorithm, options, model, sampling, config.seed, updates)
    algorithm = make()
    _check_sharding(config, algorithm.roles)
    if config.sampling.latents and not has_thinker(model):
        raise ConfigError(
            f"sampling.latents is {config.sampling.latents}, but the model {config.model.path} has no thinker; "
            "set model.thinker (kind: gated)"
        )
    learned = learned_reward(config, model)
    wanted = dict(algorithm.roles)
    if learned is not None:
        if algorithm.offline or not algorithm.plays:
            raise ConfigError(f"algorithm {options['name']} earns no reward; leave reward.model out")
        wanted[START] = RoleSpec("@policy", trainable=False)
    roles = resolve_roles(wanted)
    for role, spec in roles.items():
        try:
            check_model_path(spec.weights)
        except ValueError as error:
            raise ConfigError(f"role {role}: {error}") from error
    return Plan(config, model, sampling, make, roles, learned, algorithm.plays, [os.getcwd()])


def _check_positions(config: RunConfig, model: str) -> None:
    """Raises ConfigError where the traces that are asked for are longer than what the model can read, and ModelError where it cannot be
    loaded."""
    positions, longest = _positions(config, model), config.model.max_length
    if positions and longest and longest > positions:
        raise ConfigError(
            f"model.max_length is {longest}, but the model {config.model.path} has {positions} positions; "
            f"set model.max_length to at most {positions}, or begin from a model with more"
        )


def _positions(config: RunConfig, model: str) -> int | None:
    """How many tokens a model can read; None where its configuration sets no end, or stretches it. Raises ModelError."""
    given = load_config(model, config.model.trust_remote_code).get_text_config()
    rope = getattr(given, "rope_parameters", None) or getattr(given, "rope_scaling", None) or {}
    stretched = rope.get("rope_type", "default") != "default"
    return None if stretched else getattr(given, "max_position_embeddings", None)


def _check_sharding(config: RunConfig, roles: Mapping[str, RoleSpec]) -> None:
    """Whether a model can be sharded whose layers all ranks must gather together. What each rank reads for itself takes unequally many
    passes, so that one would wait for the others for ever; a head is saved as the share of it that one rank holds. Raises ConfigError."""
    if config.resources.sharding == "none":
        return
    why, mend = "", "set resources.sharding: none"
    for role, spec in roles.items():
        if spec.trainable and spec.head != "lm":
            why = f"the role {role} has a head of its own beside the language model"
        elif spec.trainable and spec.scores and not why:
            why = f"the role {role} scores batches as well as learns from them"
    if not why and config.eval.every and config.eval.thoughts:
        why, mend = (
            "eval.thoughts has the policy read thoughts that it does not learn from",
            f"{mend} or eval.thoughts: 0",
        )
    if why:
        raise ConfigError(
            f"resources.sharding: {config.resources.sharding} shards models that learn and do nothing else, and {why}; {mend}"
        )


def check_heads(plan: Plan) -> None:
    """Whether the run's sampler can compute the model's attention; asked before a run has a folder. Raises ConfigError."""
    config = plan.config
    if not plan.plays or has_thinker(plan.model) or config.resources.sampler_gpus:
        return
    size = head_size(load_config(plan.model, config.model.trust_remote_code).get_text_config())
    if size not in CPU_HEADS:
        raise ConfigError(
            f"the attention heads of {config.model.path} have {size} dimensions, and vLLM on a CPU takes {', '.join(map(str, CPU_HEADS))}; "
            "choose other heads or another width (for model.scratch: width / heads), or sample on a GPU (resources.sampler_gpus)"
        )


def learned_reward(config: RunConfig, model: str) -> LearnedReward | None:
    """The reward model of a run, trained now if its configuration is named and it is not there; None without one. Raises ConfigError."""
    parts = {name: float(weight) for name, weight in config.reward.items() if weight}
    if set(config.reward) - {"env", "model"} or not parts:
        raise ConfigError(
            f"reward: {config.reward} cannot be composed; its parts are env and model, and one of them must not be 0"
        )
    source = config.reward_model
    if "model" not in parts:
        if source.path is not None:
            raise ConfigError("reward_model.path is set and its score has no weight; give reward: {model: 1.0}")
        return None
    if source.path is None:
        raise ConfigError(
            "reward.model needs reward_model.path: a configuration of a reward model, the run that trained it, or its folder"
        )
    _check_monitor(config)
    folder = source.path
    if is_configuration(folder):
        own = config.model_copy(update={"model": config.model.model_copy(update={"path": folder})})
        folder = str(trained(own))
    elif (Path(folder) / "config.yaml").is_file():  # of a run
        folder = open_target(folder)[0].model.path
    found = replace(
        LearnedReward.read(folder, parts["model"], source.bound, source.sees),
        fresh=source.fresh,
        every=source.fresh_every,
        rater=config.monitor.rater,
        steps=source.fresh_steps,
        lr=source.fresh_lr,
    )
    trust = config.model.trust_remote_code
    if load_tokenizer(folder, trust).get_vocab() != load_tokenizer(model, trust).get_vocab():
        raise ConfigError(
            f"reward_model.path: {source.path} reads other tokens than the policy writes; train it on the same vocabulary"
        )
    return found


def _check_monitor(config: RunConfig) -> None:
    """What could never speak is refused before anything is trained. Raises ConfigError."""
    m = config.monitor
    for name, wanted in (("reward_model.fresh", config.reward_model.fresh > 0), ("monitor.stop", m.stop)):
        if wanted and m.rater is None:
            raise ConfigError(
                f"{name} needs monitor.rater: the component of the environment's grade that is a fresh rater's word"
            )
    for name, wanted in (("monitor.stop", m.stop), ("monitor.kl_budget", m.kl_budget is not None)):
        if wanted and not config.eval.every:
            raise ConfigError(
                f"{name} ends a run by what evaluations measure, and eval.every: 0 makes none; set eval.every to the steps between two"
            )


def settled(config: RunConfig, options: dict[str, Any]) -> dict[str, Any]:
    """The method's options, with those filled in that the training tasks decide."""
    from envs.registry import make

    def tasks() -> Iterable[Task]:
        env = make(config.env.name, config.env.args)
        return env.tasks(train_split(config, env.splits()))

    try:
        return find_algorithm(str(options["name"])).settle(options, tasks)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def hacking_monitor(config: RunConfig) -> HackingMonitor:
    m = config.monitor
    probes = PROBES if m.probes is None else tuple(m.probes)
    return HackingMonitor(m.rater, m.answers, m.z, m.stop, m.kl_budget, probes)


def check_env(config: RunConfig) -> None:
    """Build the environment once, here, so that a wrong name or argument is told before anything starts."""
    from envs.conform import check_splits, faultless, first_task
    from envs.registry import make

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    name = config.env.name
    env = make(name, config.env.args)
    splits = check_splits(env, name)
    for split in config.eval.splits if config.eval.every else ():
        _check_split("eval.splits", split, config, splits)
    faultless(name, "ready()", env.ready)
    first_task(env, name, train_split(config, splits))


def train_split(config: RunConfig, splits: Sequence[str]) -> str:
    """The split that is trained on, one of the environment's `splits`."""
    chosen = config.env.train_split
    if chosen is None:
        return splits[0]
    _check_split("env.train_split", chosen, config, splits)
    return chosen


def _check_split(key: str, split: str, config: RunConfig, splits: Sequence[str]) -> None:
    if split not in splits:
        near = difflib.get_close_matches(split, splits, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(splits)}"
        raise ConfigError(f"{key}: environment {config.env.name} has no split {split!r}; {hint}")


RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def kill_workers() -> None:
    """SIGKILL the actors of the Ray that this process started: one that hangs would outlive the shutdown.

    Not its agents: the raylet goes with them, and this process with the raylet.
    """
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = "".join(process.cmdline()).strip("\0 ")
            if title.startswith("ray::") and not title.startswith(RAY_AGENTS):
                process.kill()


def needed_resources(plan: Plan, *, learners: bool) -> dict[str, float]:
    """CPUs and GPUs that the plan's actors reserve."""
    r = plan.config.resources
    train = r.learners if learners else 0
    samplers = r.samplers if plan.plays else 0
    return {
        "CPU": samplers * r.sampler_cpus + train * r.learner_cpus,
        "GPU": samplers * r.sampler_gpus + train * r.learner_gpus,
    }


def start_samplers(plan: Plan, *, armed: bool, path: str | None = None) -> list[Any]:
    """Sampler actors; not yet awaited. A model with a thinker is sampled in torch, any other by vLLM."""
    import ray

    config, r = plan.config, plan.config.resources
    tokenizer = load_tokenizer(plan.model, config.model.trust_remote_code)
    common: dict[str, Any] = {
        "dtype": config.model.dtype,
        "max_length": plan.max_length,
        "stop_ids": stop_ids(plan.model, tokenizer),
        "trust_remote_code": config.model.trust_remote_code,
        "armed": armed,
    }
    if has_thinker(plan.model):
        actor: Any = ray.remote(LatentSampler)
        common["threads"] = r.sampler_threads
    else:
        actor = ray.remote(TokenSampler)
        common["gpu_memory_utilization"] = 0.9 * r.sampler_gpus if 0 < r.sampler_gpus < 1 else 0.85
    return [
        actor.options(
            num_cpus=r.sampler_cpus,
            num_gpus=r.sampler_gpus,
            max_restarts=r.max_restarts,
            max_task_retries=0,
            max_concurrency=CALLS,
            runtime_env={"env_vars": sampler_environment(r.sampler_threads)},
        ).remote(path or plan.model, **common)
        for _ in range(r.samplers)
    ]


def start_envs(plan: Plan, diary: Diary | None = None) -> list[Any]:
    """Environment worker actors."""
    import ray

    config = plan.config
    return [
        ray.remote(EnvWorker)
        .options(num_cpus=0, max_restarts=config.resources.max_restarts, max_concurrency=CALLS)
        .remote(config.env.name, config.env.args, plan.path, number, diary)
        for number in range(config.env.workers)
    ]


def start_scorers(plan: Plan) -> dict[str, Any]:
    """Scorer actors for the frozen roles."""
    import ray

    config, r = plan.config, plan.config.resources
    played = Distribution(config.eval.temperature or 1.0)  # the start reads held-out answers, which nothing truncates
    return {
        role: ray.remote(Scorer)
        .options(num_cpus=0, max_restarts=r.max_restarts, max_task_retries=1)
        .remote(
            spec,
            config.model.dtype,
            played if role == START else plan.distribution,
            r.learner_threads,
            config.model.trust_remote_code,
        )
        for role, spec in plan.roles.items()
        if not spec.trainable
    }


def start_reward(plan: Plan) -> Any:
    """The reward model's actor; None without one."""
    import ray

    config, r = plan.config, plan.config.resources
    if plan.learned is None:
        return None
    return (
        ray.remote(RewardScorer)
        .options(num_cpus=0, max_restarts=r.max_restarts, max_task_retries=1)
        .remote(plan.learned, config.model.dtype, r.learner_threads, config.model.trust_remote_code)
    )


def start_neighbours(plan: Plan, *, armed: bool, diary: Diary | None = None) -> Neighbours:
    """Everything a collector works with, starting in parallel. armed: the samplers need not wait for a learner's weights.
    diary: of the run directory, if there is one."""
    samplers = start_samplers(plan, armed=armed) if plan.plays else []
    return Neighbours(samplers, start_envs(plan, diary), start_scorers(plan), start_reward(plan))


def start_collector(plan: Plan, diary: Diary | None = None) -> Any:
    """The collector actor, not yet connected."""
    import ray

    from envs.registry import make

    config, r = plan.config, plan.config.resources
    settings = CollectorConfig(
        model_path=plan.model,
        seed=config.seed,
        batch_groups=config.train.batch_groups,
        staleness=config.train.staleness,
        sampling=plan.sampling,
        max_length=plan.max_length,
        train_split=train_split(config, make(config.env.name, config.env.args).splits()),
        reward_weight=float(config.reward.get("env", 0.0)),
        learned=plan.learned,
        monitor=hacking_monitor(config),
        trust_remote_code=config.model.trust_remote_code,
    )
    return (
        ray.remote(Collector)
        .options(num_cpus=0, max_restarts=r.max_restarts, max_concurrency=CALLS)
        .remote(settings, plan.make_algorithm, r.max_restarts + 1, diary)
    )
