"""Reward model: a scalar head on a language model, trained by mean squared error on the scores that people gave.

    prompt, answer, end ──► last hidden state ──► E heads ──► score of each member, in units of the training scores' spread

A task is one graded answer: `Task.answer`, and in `Task.meta` "scores", what each rater said (or "written": a correct answer that somebody
wrote and nobody graded). The mean of the scores is the target; how far raters disagree sets the floor of the error. Members of an ensemble
see their own bootstrap samples of the items, so that they disagree where data are scarce; they share the trunk or have their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from actors.types import Actors, Group, ProbePlan
from algorithms.base import Algorithm, AlgorithmConfig, Context
from envs.base import Task
from models.chat import ChatFormat
from models.roles import REWARD_NOTES, RoleSpec
from models.terms import Batch, Forward, Term
from models.trace import Trace

MOST = 200_000
"""Graded answers that the scale is taken from."""


class RewardModelConfig(AlgorithmConfig):
    """Options of the reward model."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = "reward_model"
    group_size: Literal[1] = 1
    """One trace a graded answer."""
    members: PositiveInt = 4
    """Members of the ensemble."""
    trunk: Literal["shared", "separate"] = "shared"
    """Whether members are heads on one language model, or models of their own."""
    bootstrap: bool = True
    """Each member sees every item Poisson(1) times, not once (with several members)."""
    written: bool = False
    """Read the thought that led to an answer (`Task.steps`) before it, for policies whose thoughts the model is to see
    (reward_model.sees: trace)."""
    weigh: Literal["equal", "raters"] = "equal"
    """How items count: alike, or by the inverse variance of their mean score, n / (n between + within), from how far raters and items
    differ over the training data."""
    written_score: float | None = None
    """Score of answers that were written and not graded; null for the best score in the training data."""
    written_weight: NonNegativeFloat = 1.0
    """Weight of such answers."""
    mean: float | None = None
    """Of the training scores; null takes it from the data."""
    std: PositiveFloat | None = None
    """Of the training scores, over items; null takes it from the data."""
    within: NonNegativeFloat | None = None
    """Variance of raters on one item; null takes it from the data."""

    @model_validator(mode="after")
    def _members_differ(self) -> RewardModelConfig:
        if self.members > 1 and not self.bootstrap:
            raise ValueError(
                f"without bootstrap the {self.members} members begin alike, see the same items and stay one; "
                "set members to 1 or bootstrap to true"
            )
        return self


class RewardModel(Algorithm):
    """Regression on graded answers. Trainable roles: "policy", the first model, and "member1", "member2", .. of separate trunks."""

    Config: ClassVar[type[AlgorithmConfig]] = RewardModelConfig
    offline: ClassVar[bool] = True
    plays: ClassVar[bool] = False
    config: RewardModelConfig

    def __init__(self, config: RewardModelConfig, context: Context) -> None:
        super().__init__(config, context)
        self._chat: ChatFormat | None = None

    @classmethod
    def settle(cls, options: Mapping[str, Any], tasks: Callable[[], Iterable[Task]]) -> dict[str, Any]:
        """Mean and spread of the scores, what written answers are worth, and how far raters disagree."""
        given = RewardModelConfig(**options)
        rows = [np.array(t.meta["scores"], float) for t in islice(tasks(), MOST) if len(t.meta.get("scores", ()))]
        if not rows:
            raise ValueError(
                "not one training task carries scores (Task.meta['scores']): a reward model needs graded answers"
            )
        means = np.array([row.mean() for row in rows])
        several = [row.var(ddof=1) for row in rows if len(row) > 1]
        found = {
            "mean": float(means.mean()),
            "std": max(float(means.std()), 1e-6),
            "written_score": float(means.max()),
            "within": float(np.mean(several)) if several else 0.0,
        }
        return {**options, **found, **given.model_dump(include=set(found), exclude_none=True)}

    @property
    def roles(self) -> Mapping[str, RoleSpec]:
        c = self.config
        shared = c.trunk == "shared"
        spec = RoleSpec(self.context.model_path, trainable=True, head="scalar", outputs=c.members if shared else 1)
        others = {} if shared else {f"member{e}": spec for e in range(1, c.members)}
        return {"policy": spec, **others}

    def example(self, task: Task, index: int, version: int) -> Trace:
        """prompt, (thought,) answer, end. Raises ValueError naming a task that is not a graded answer."""
        if self._chat is None:
            self._chat = ChatFormat(self.context.tokenizer)
        scores = task.meta.get("scores", ())
        if task.answer is None or not (len(scores) or task.meta.get("written")):
            raise ValueError(f"task {task.id} is no graded answer: give it an answer, and scores or written: true")
        prompt, written = self._chat.prompt_ids(task.prompt), self.config.written
        opened = written and self._chat.opens(prompt)
        told = self._chat.emission_ids(task.steps or () if written else (), task.answer, written, opened)
        trace = Trace.from_target(prompt.tolist(), told.tolist(), task.id)
        trace.group, trace.episode = str(index), f"{index}/0"
        trace.meta["scores"] = [float(s) for s in scores]
        return trace

    def credit(self, groups: Sequence[Group]) -> dict[str, float]:
        """Writes at the last position of every trace "target", the scaled score, and "member0", "member1", .., how often a member sees
        it."""
        c = self.config
        targets = []
        for group in groups:
            for trace in group.live:
                scores = trace.meta["scores"]
                target = (np.mean(scores) if scores else float(c.written_score or 0.0)) - float(c.mean or 0.0)
                targets.append(target / float(c.std or 1.0))
                _at_end(trace, "target", targets[-1])
                for member, times in enumerate(self._times(group.task.id)):
                    _at_end(trace, f"member{member}", times * self._weight(scores))
        return {"target/mean": float(np.mean(targets)), "target/std": float(np.std(targets))}

    def terms(self, role: str, forward: Forward, batch: Batch) -> dict[str, Term]:
        c = self.config
        own = 0 if role == "policy" else int(role.removeprefix("member"))
        members = range(c.members) if c.trunk == "shared" else [own]
        out = {}
        for place, member in enumerate(members):
            error = (forward.outputs_BTE[..., place] - batch["target"]).square()
            out[f"mse{member}"] = Term(error, f"member{member}", "traces")
        return out

    def notes(self, role: str) -> dict[str, Any]:
        """What turns the heads' outputs into scores."""
        c = self.config
        if role != "policy":
            return {}
        shared = c.trunk == "shared"
        others = [] if shared else [f"member{e}" for e in range(1, c.members)]
        found = {"mean": c.mean, "std": c.std, "outputs": c.members if shared else 1, "members": others}
        return {REWARD_NOTES: found}

    # ---- held-out items

    async def probe(self, tasks: Sequence[Task], actors: Sequence[Actors], plan: ProbePlan) -> list[Group]:
        return [Group(task, [self.example(task, i, 0)], i) for i, task in enumerate(tasks)]

    def by_task(self, groups: Sequence[Group]) -> dict[str, list[float]]:
        said_NE = np.array([self.members_of(group.traces[0]) for group in groups])
        score = np.array([np.mean(group.traces[0].meta["scores"] or [np.nan]) for group in groups])
        predicted = said_NE.mean(1)
        return {
            "predicted": predicted.tolist(),
            "score": score.tolist(),
            "squared_error": ((predicted - score) ** 2).tolist(),
            "spread": said_NE.std(1).tolist(),
        }

    def diagnose(self, groups: Sequence[Group], each: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Squared error beside what a constant and what a perfect judge would reach, and how well calibrated scores and spread are."""
        raters = [np.array(group.traces[0].meta["scores"]) for group in groups]
        return regression_figures(
            np.array(each["predicted"]),
            np.array(each["score"]),
            np.array(each["spread"]),
            raters,
            float(self.config.mean or 0.0),
        )

    def members_of(self, trace: Trace) -> np.ndarray:
        """float64[E]: what each member said of a trace, on the people's scale."""
        roles = [
            name for name in ("policy", *(f"member{e}" for e in range(1, self.config.members))) if name in trace.scores
        ]
        said = np.concatenate([np.atleast_1d(trace.scores[role].values[-1]) for role in roles])
        return said.astype(np.float64) * float(self.config.std or 1.0) + float(self.config.mean or 0.0)

    def _times(self, item: str) -> np.ndarray:
        """int[E]: how often each member sees an item, in every epoch alike."""
        c = self.config
        if c.members == 1 or not c.bootstrap:
            return np.ones(c.members)
        return np.random.default_rng([self.context.seed, zlib.crc32(item.encode())]).poisson(1.0, c.members)

    def _weight(self, scores: Sequence[float]) -> float:
        c = self.config
        if not scores:
            return c.written_weight
        if c.weigh == "equal":
            return 1.0
        noise = float(c.within or 0.0) / len(scores)
        between = max(float(c.std or 1.0) ** 2 - noise, 1e-6)
        return between / (between + noise)


def regression_figures(
    predicted_N: np.ndarray, score_N: np.ndarray, spread_N: np.ndarray, raters: Sequence[np.ndarray], mean: float
) -> dict[str, float]:
    """Of predictions of held-out mean scores. mean: of the training scores, which the mean predictor says.

    "noise_floor": the squared error of one who knows what raters say on average, sum of within-item variance / raters over items (items of
    one rater tell nothing of it). "calibration_slope", "calibration_offset": of the regression of scores on predictions (1 and 0).
    """
    known = np.isfinite(score_N)
    p, y, s = predicted_N[known], score_N[known], spread_N[known]
    error = (p - y) ** 2
    floors = [row.var(ddof=1) / len(row) for row, k in zip(raters, known, strict=True) if k and len(row) > 1]
    out = {
        "mse": float(error.mean()),
        "mse_mean_predictor": float(((y - mean) ** 2).mean()),
        "ensemble_spread": float(s.mean()),
        "items": float(len(y)),
    }
    if floors:
        out["noise_floor"] = float(np.mean(floors))
    if len(y) > 2 and p.std() > 0 and y.std() > 0:
        slope, offset = np.polyfit(p, y, 1)
        out |= {
            "correlation": float(np.corrcoef(p, y)[0, 1]),
            "calibration_slope": float(slope),
            "calibration_offset": float(offset),
        }
        if s.std() > 0:
            out["spread_tells_error"] = float(np.corrcoef(s, np.sqrt(error))[0, 1])
    return out


def _at_end(trace: Trace, name: str, value: float) -> None:
    field = np.zeros(len(trace), np.float32)
    field[-1] = value
    trace.weights[name] = field
