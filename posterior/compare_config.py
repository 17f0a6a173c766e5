"""The configuration of a comparison, and every run it will make: several methods on the same tasks, seeds and compute.

    name: my_comparison
    base: helper.yaml                          # a run's configuration, relative to this file
    set: {train.flops: 1e13}                   # dotted keys of every run: the same compute for all
    arms:                                      # what is compared; the first is what the others are compared with
      sft: {config: answer_sft.yaml}           # a configuration of its own in place of base
      plain: {set: {algorithm.credit: sequence}, label: "helper, plain"}
      rlvr: {config: rlvr.yaml, grader: true}
    seeds: [0, 1, 2, 3, 4]
    tuning: {set: {train.optimiser.lr: [1e-4, 3e-4, 1e-3]}, seed: 100}

Every arm is loaded here by the same loader as `posterior train`, at every point of its sweep, before anything starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from posterior.config import RunConfig, Section
from posterior.config_load import COMMAND_LINE, ConfigError, Keys, Resolved, load, load_as, run_keys_in_place

RECORD = "compare.json"
"""The file that makes a folder one of a comparison."""
PLAYED = ("pass@1", "mean_grade")
"""Measured of every held-out task; all other metrics come from its probes (eval.thoughts)."""
OURS = ("name", "seed")
"""Keys of a run that the comparison itself gives."""
SAME = (("env.name", "env.args"), ("eval.tasks", "eval.samples", "eval.temperature"))
"""Keys in which arms may not differ: what is asked, and how it is judged."""

Settings = dict[str, tuple[Any, str]]


class Arm(Section):
    config: str | None = None
    """A configuration of its own, relative to this file (null: the base)."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values over that, by dotted key."""
    grader: bool = False
    """Whether the method sees grades while it trains: marked in the table."""
    label: str = ""
    """How the table calls it (default: its name)."""


class Tuning(Section):
    set: dict[str, list[Any]] | None = None
    """The same sweep for every arm: dotted key to the values to try, several keys combined; null: no sweep."""
    seed: NonNegativeInt = 1000
    """Training seed of the sweep, none of `seeds`."""
    metric: str | None = None
    """What chooses, more is better (default: the first of `metrics`)."""
    split: str | None = None
    """On which split (default: `split`); choosing there makes all arms look a little better than they are."""

    @model_validator(mode="after")
    def _something_to_try(self) -> Tuning:
        for key, values in (self.set or {}).items():
            if not values:
                raise ValueError(f"{key} has no value to try; give one or more, or leave the key out")
        return self


class CompareConfig(Section):
    name: str = "comparison"
    """Name of the comparison, part of its folder's name."""
    base: str
    """A run's configuration, relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values over every arm's configuration, by dotted key."""
    arms: dict[str, Arm] = Field(min_length=2)
    """What is compared, by name."""
    seeds: list[NonNegativeInt] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1)
    """Training seeds, the same for every arm."""
    reference: str | None = None
    """The arm that the others are compared with (default: the first)."""
    split: str | None = None
    """Held-out split of the tables (default: the base's first)."""
    metrics: list[str] = Field(default_factory=lambda: ["pass@1", "logp_answer"], min_length=1)
    """What is compared, task by task: pass@1, mean_grade, and with eval.thoughts logp_answer, thought_gain, ..."""
    tuning: Tuning = Field(default_factory=Tuning)
    """A sweep before the comparison."""
    strata: list[float] = Field(default_factory=lambda: [0.0, 0.02, 0.1, 0.3, 1.0], min_length=2)
    """Edges of p_0(y*|x), how likely the good answer was before training, between which gains are told apart."""
    bootstrap: PositiveInt = 2000
    """Draws of the intervals."""
    concurrent: PositiveInt = 1
    """Runs at once, of one machine's processors; more than one only where compute is matched by train.flops, not by a clock."""

    @model_validator(mode="after")
    def _in_order(self) -> CompareConfig:
        if list(self.strata) != sorted(set(self.strata)):
            raise ValueError("strata: the edges must rise")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is given twice")
        return self


@dataclass(frozen=True)
class ComparePlan:
    """A comparison whose every run is known to be valid. `reference`, `split`, and tuning's metric and split are filled in.

    arms: each with the first seed. points: of the sweep, [] without one; every arm tries all.
    """

    config: CompareConfig
    arms: dict[str, Resolved]
    points: list[dict[str, Any]]


def load_comparison(path: Path, words: Sequence[str] = ()) -> ComparePlan:
    """Read a comparison and work out every run. words: `a.b=c` of all runs, or of the comparison. Raises ConfigError."""
    own = [word for word in words if word.split("=")[0].split(".")[0] in CompareConfig.model_fields]
    of_runs = [word for word in words if word not in own]
    run_keys_in_place(path, "a comparison", (*CompareConfig.model_fields, *OURS))
    config, given = load_as(CompareConfig, path, own)
    points = sweep(config.tuning)
    fixed: Settings = {key: (value, _place(given, "set", key)) for key, value in config.set.items()}
    arms = {}
    for name, arm in config.arms.items():
        place = _place(given, "arms", name)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
            raise ConfigError(f"{place}: arm {name!r}: a name is a folder's: letters, digits, _ . + and - only")
        file = path.parent / (arm.config or config.base)
        if not file.is_file():
            where = _place(given, *(("arms", name, "config") if arm.config else ("base",)))
            raise ConfigError(f"{where}: there is no configuration {file}; paths are relative to the comparison's file")
        settings = fixed | {key: (value, _place(given, "arms", name, "set", key)) for key, value in arm.set.items()}
        _free(config.tuning, settings, of_runs, given)
        try:
            for point in points:
                tried = {key: (value, _place(given, "tuning", "set", key)) for key, value in point.items()}
                load(file, of_runs, {**settings, **tried})
            arms[name] = load(file, of_runs, {**settings, "name": (name, place), "seed": (config.seeds[0], place)})
        except ConfigError as error:
            raise ConfigError(f"arm {name}: {error}") from error
    _fill_in(config, arms, given)
    _check(config, {name: resolved.config for name, resolved in arms.items()}, given)
    return ComparePlan(config, arms, points)


def sweep(tuning: Tuning) -> list[dict[str, Any]]:
    """The points of the sweep in order; [] without one."""
    if not tuning.set:
        return []
    return [dict(zip(tuning.set, values, strict=True)) for values in itertools.product(*tuning.set.values())]


def compute(arms: Mapping[str, RunConfig]) -> str | None:
    """What bounds the training of all arms alike: "flops", "seconds" or "steps", the first of them; None if nothing does."""
    for bound in ("flops", "seconds", "steps"):
        values = {getattr(run.train, bound) for run in arms.values()}
        if len(values) == 1 and values != {None}:
            return bound
    return None


def _place(given: Mapping[Keys, str], *keys: str) -> str:
    """Where a key, or the nearest one above it, was written."""
    return next((given[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in given), COMMAND_LINE)


def _free(tuning: Tuning, settings: Settings, words: Sequence[str], given: Mapping[Keys, str]) -> None:
    """What the comparison or its sweep gives, nobody else may set."""
    others = {key: place for key, (_, place) in settings.items()}
    others |= {word.split("=")[0]: COMMAND_LINE for word in words}
    for key, place in others.items():
        if key in OURS:
            raise ConfigError(f"{place}: {key} is the comparison's own: every run gets it from `arms` and `seeds`")
        for swept in tuning.set or {}:
            if f"{key}.".startswith(f"{swept}.") or f"{swept}.".startswith(f"{key}."):
                where = _place(given, "tuning", "set", swept)
                raise ConfigError(
                    f"{where}: {swept} is tuned here but {place} sets {key} for an arm; remove one of the two"
                )


def _fill_in(config: CompareConfig, arms: Mapping[str, Resolved], given: Mapping[Keys, str]) -> None:
    config.reference = config.reference or next(iter(config.arms))
    if config.reference not in config.arms:
        raise ConfigError(
            f"{_place(given, 'reference')}: reference {config.reference!r} is no arm; there are: {', '.join(config.arms)}"
        )
    splits = arms[config.reference].config.eval.splits
    if config.split is None and not splits:
        raise ConfigError("split: eval.splits is empty, so nothing is held out; name a split there")
    config.split = config.split or splits[0]
    tuning = config.tuning
    tuning.metric, tuning.split = tuning.metric or config.metrics[0], tuning.split or config.split
    if tuning.set and tuning.seed in config.seeds:
        raise ConfigError(
            f"{_place(given, 'tuning', 'seed')}: tuning.seed {tuning.seed} is one of seeds, so what is chosen by it would be compared "
            "too; take another"
        )


def _check(config: CompareConfig, arms: Mapping[str, RunConfig], given: Mapping[Keys, str]) -> None:
    """All arms are asked and judged alike, and measure what is compared."""
    first_name, first = next(iter(arms.items()))
    for name, run in arms.items():
        for key in itertools.chain(*SAME):
            mine, theirs = (_value(of, key) for of in (run, first))
            if mine != theirs:
                raise ConfigError(
                    f"{_place(given, 'arms', name)}: arm {name} has {key} {mine!r} and {first_name} {theirs!r}, which cannot be compared; "
                    "give both the same under set"
                )
        if not run.eval.every:
            raise ConfigError(
                f"arm {name}: eval.every is 0, so nothing is measured; any other number is enough, the last version "
                "is always evaluated"
            )
        for key, split in (("split", config.split), ("tuning.split", config.tuning.split)):
            if split not in run.eval.splits:
                raise ConfigError(
                    f"{_place(given, *key.split('.'))}: arm {name} is not evaluated on {key} {split!r}; its eval.splits are: "
                    f"{', '.join(run.eval.splits)}"
                )
        if config.tuning.set and config.tuning.metric not in PLAYED and not run.eval.thoughts:
            raise ConfigError(f"arm {name}: tuning.metric {config.tuning.metric} needs eval.thoughts, which is 0")
    if config.concurrent > 1 and any(run.train.seconds for run in arms.values()):
        raise ConfigError(
            f"{_place(given, 'concurrent')}: with concurrent {config.concurrent} a run's train.seconds would count the time that others "
            "take from it; match compute by train.flops (train.seconds=null), or leave concurrent at 1"
        )
    for metric in config.metrics if ("metrics",) in given else ():
        if metric not in PLAYED and not any(run.eval.thoughts for run in arms.values()):
            raise ConfigError(
                f"{_place(given, 'metrics')}: nothing measures {metric}: without eval.thoughts there are {', '.join(PLAYED)}"
            )


def _value(run: RunConfig, key: str) -> Any:
    value: Any = run
    for part in key.split("."):
        value = getattr(value, part)
    return value
