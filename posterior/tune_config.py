"""The configuration of a search, and its trials: the base run, what is fixed, what is searched, how.

    name: my_search
    base: rlvr_coding.yaml                     # a run's configuration, relative to this file
    set: {train.steps: 50}                     # dotted keys of the run, over the base
    space:                                     # dotted keys of the run, one way to choose each
      train.optimiser.lr: {loguniform: [1e-4, 1e-3]}
      algorithm.preset: {grid: [grpo, dapo]}
    search: {trials: 4, scheduler: asha}       # 4 draws of lr for each preset: 8 trials

Every trial's configuration is loaded here by the same loader as `posterior train`, before anything starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from posterior.config import RunConfig, Section
from posterior.config_load import COMMAND_LINE, ConfigError, Keys, Resolved, load, load_as, run_keys_in_place

RECORD = "search.json"
"""The file that makes a folder one of a search."""
DRAWS = 8
"""Trials of a search with random keys that does not say how many."""
DIGITS = 4
"""Significant digits of a drawn number: enough for any knob, and short enough to read and to write down."""
OWN = ("name", "search")
"""First parts of the keys of a search that words of the command line may set; all others belong to the run."""


class Space(Section):
    choice: list[Any] | None = Field(None, min_length=1)
    """One of these, at random."""
    grid: list[Any] | None = Field(None, min_length=1)
    """Each of these; several grids are combined with one another."""
    uniform: tuple[float, float] | None = None
    """A number from low to high."""
    loguniform: tuple[float, float] | None = None
    """A number from low to high whose logarithm is uniform."""
    randint: tuple[int, int] | None = None
    """A whole number from low to high - 1."""

    @model_validator(mode="after")
    def _one_way(self) -> Space:
        ways = [way for way in type(self).model_fields if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}, not {' and '.join(ways) or 'none'}")
        for way in ("uniform", "loguniform", "randint"):
            ends = getattr(self, way)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"the first number of {way} must be below the second")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("the numbers of loguniform must be above 0")
        return self


class Search(Section):
    trials: PositiveInt | None = None
    """Random draws, each combined with every point of the grids (default: 8, or 1 where only grids are searched)."""
    seed: NonNegativeInt = 0
    """Seed of the draws."""
    metric: str | None = None
    """Column of the evaluations in metrics.jsonl that ranks trials (default: eval/SPLIT/pass@1 of the first split)."""
    mode: Literal["max", "min"] = "max"
    """Whether more of the metric is better, or less."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops a trial whose metric is not among the best 1/reduction_factor of those that came as far."""
    grace_period: PositiveInt | None = None
    """Steps before which asha stops nothing (default: eval.every)."""
    reduction_factor: int = Field(2, ge=2)
    """asha decides at grace_period times each power of this."""
    concurrent: PositiveInt | None = None
    """Trials at once (default: as many as fit into the cluster's CPUs and GPUs)."""


class TuneConfig(Section):
    name: str = "search"
    """Name of the search, part of its folder's name."""
    base: str
    """A run's configuration, relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values over the base, by dotted key."""
    space: dict[str, Space] = Field(min_length=1)
    """What is searched: dotted key to one way to choose its value."""
    search: Search = Field(default_factory=Search)
    """How it is searched."""


@dataclass(frozen=True)
class TrialPlan:
    """One trial before it starts. values: of the searched keys."""

    name: str
    values: dict[str, Any]
    resolved: Resolved

    @property
    def config(self) -> RunConfig:
        return self.resolved.config


@dataclass(frozen=True)
class SearchPlan:
    """A search whose every trial is known to be valid. `metric`, `grace_period` and `trials` of config.search are filled in."""

    config: TuneConfig
    trials: list[TrialPlan]
    repeated: int = 0
    """Draws left out because they equal an earlier one: with the same seed they would be the same run."""


def load_search(path: Path, words: Sequence[str] = ()) -> SearchPlan:
    """Read a search and work out every trial. words: `a.b=c` of the run, or of `search`. Raises ConfigError."""
    own = [word for word in words if word.split("=")[0].split(".")[0] in OWN]
    of_run = [word for word in words if word not in own]
    run_keys_in_place(path, "a search", tuple(TuneConfig.model_fields))
    config, given = load_as(TuneConfig, path, own)
    base = path.parent / config.base
    if not base.is_file():
        raise ConfigError(
            f"{given['base',]}: base: there is no configuration {base}; its path is relative to the search's file"
        )
    for key in config.space:
        _free_to_choose(key, config, of_run, given)
    if config.search.trials is None:
        only_grids = all(space.grid is not None for space in config.space.values())
        config.search.trials = 1 if only_grids else DRAWS
    fixed = {key: (value, given["set", key]) for key, value in config.set.items()}
    drawn = draw(config)
    points = list({repr(point): point for point in drawn}.values())
    trials = []
    for number, point in enumerate(points):
        name = _name(number, point)
        searched = {key: (value, given["space", key]) for key, value in point.items()}
        resolved = load(base, of_run, {**fixed, **searched, "name": (name, given["space",])})
        trials.append(TrialPlan(name, point, resolved))
    _fill_in(config, trials[0].config, given)
    for trial in trials:
        _check_metric(config, trial, given)
    return SearchPlan(config, trials, len(drawn) - len(points))


def draw(config: TuneConfig) -> list[dict[str, Any]]:
    """The values of every trial in order, as Ray Tune draws and combines them; the same for the same seed."""
    import numpy as np
    from ray import tune
    from ray.tune.search.variant_generator import generate_variants

    def domain(space: Space) -> Any:
        if space.grid is not None:
            return tune.grid_search(list(range(len(space.grid))))  # places, so that a value may be anything
        if space.choice is not None:
            return tune.choice(list(range(len(space.choice))))
        for way in ("uniform", "loguniform", "randint"):
            if getattr(space, way) is not None:
                return getattr(tune, way)(*getattr(space, way))

    def value(space: Space, drawn: Any) -> Any:
        options = space.grid or space.choice
        if options is not None:
            return options[int(drawn)]
        ends = space.uniform or space.loguniform
        return int(drawn) if ends is None else min(max(float(f"{drawn:.{DIGITS}g}"), ends[0]), ends[1])

    keys = list(config.space)
    domains = {str(place): domain(config.space[key]) for place, key in enumerate(keys)}
    random = np.random.RandomState(config.search.seed % 2**32)
    return [
        {key: value(config.space[key], drawn[str(place)]) for place, key in enumerate(keys)}
        for _ in range(config.search.trials or 1)
        for _, drawn in generate_variants(domains, random_state=random)
    ]


def _free_to_choose(key: str, config: TuneConfig, words: Sequence[str], given: Mapping[Keys, str]) -> None:
    place = given["space", key]
    if key == "name":
        raise ConfigError(f"{place}: space.name cannot be searched: every trial gets a name of its own")
    others = {other: given["set", other] for other in config.set}
    others |= {word.split("=")[0]: COMMAND_LINE for word in words}
    for other, where in others.items():
        if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
            raise ConfigError(f"{place}: {key} is searched here but {where} sets {other}; remove one of the two")


def _name(number: int, values: Mapping[str, Any]) -> str:
    """A folder's name that says what is different here: 03_lr=0.0003,preset=dapo."""
    last = [key.split(".")[-1] for key in values]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(values, last, strict=True)}
    told = ",".join(f"{short[key]}={value}" for key, value in values.items())
    return f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.,=+-]+', '-', told)[:60]}"


def _fill_in(config: TuneConfig, run: RunConfig, given: Mapping[Keys, str]) -> None:
    search = config.search
    if search.metric is None:
        search.metric = f"eval/{run.eval.splits[0]}/pass@1" if run.eval.splits else "eval/?/pass@1"
    if search.grace_period is None:
        search.grace_period = run.eval.every or 1


def _check_metric(config: TuneConfig, trial: TrialPlan, given: Mapping[Keys, str]) -> None:
    """The metric must be one that every trial writes, at evaluations that the trial makes."""
    run, metric = trial.config.eval, str(config.search.metric)
    place = f"{given['search', 'metric']}: " if ("search", "metric") in given else ""
    if not run.every:
        raise ConfigError(f"{place}a search ranks trials by their evaluations, but eval.every is 0 in {trial.name}")
    powers = [f"pass@{2**k}" for k in range(run.samples.bit_length())]
    known = [f"eval/{split}/{figure}" for split in run.splits for figure in (*powers, "mean_grade")]
    if metric not in known:
        raise ConfigError(f"{place}search.metric {metric!r} is not measured; the evaluations have: {', '.join(known)}")
