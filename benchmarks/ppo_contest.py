"""The two contestants of `benchmarks.ppo_vs_rllib`, and how they take turns.

Both get the same folder of random weights (policy and critic alike), the same tasks in every batch and the same numbers: episodes a batch,
epochs, mini-batches, clip, lambda, discount, entropy bonus, value coefficient, Adam without decay, no gradient clipping, no KL, no value
clipping, advantages whitened. What still differs:

    mini-batches   Posterior: whole episodes, the same ones in each epoch; RLlib: decisions, shuffled anew in each epoch
    whitening      RLlib takes mean and deviation over the step that it pads every episode with, too
    rows           Posterior reads an episode once, packed; RLlib reads it once for each of its decisions
    optimiser      Posterior has one for each role, RLlib one for the sum of both losses (the same for Adam, but fewer and larger calls)
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from actors.env_worker import EnvWorker
from actors.local import LocalRun
from actors.types import SamplingParams
from actors.update import OptimiserConfig
from algorithms.base import Context
from algorithms.ppo import PPO, PPOConfig
from benchmarks.ppo_worlds import World
from benchmarks.trl_peer import StepTimes
from models.loading import RoleModel

EPOCHS, MINIBATCHES = 4, 4
STAGES = ("sample", "credit", "learn", "publish", "rest")
"""credit: values of the batch, advantages, and making it a batch. rest: the trainer's own book-keeping."""


@dataclass
class Curve:
    """By batch: the mean return of its episodes, the seconds it took, and how they fell to stages."""

    returns: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def mean_return(self, last: float = 1.0) -> float:
        """Over so large a part of the batches, from the end."""
        n = max(1, round(len(self.returns) * last))
        return float(np.mean(self.returns[-n:]))

    def reached(self, bar: float, window: int = 3) -> int | None:
        """Batches until the mean return of `window` of them was at least the bar; None if it never was."""
        for at in range(window, len(self.returns) + 1):
            if np.mean(self.returns[at - window : at]) >= bar:
                return at
        return None


class Contestant(Protocol):
    name: str
    times: StepTimes

    def step(self) -> float:
        """One batch; returns the mean return of its episodes."""
        ...

    def critic(self) -> RoleModel: ...

    def close(self) -> None: ...


class Posterior:
    """PPO as the learner runs it, without Ray."""

    name = "posterior"

    def __init__(self, world: World, model: Path, lr: float, seed: int) -> None:
        options = PPOConfig(
            discount=world.discount,
            gae_lambda=0.95,
            entropy_coef=world.entropy,
            value_clip=None,
            normalise_values=False,
        )
        sampling = SamplingParams(max_tokens=world.tokens)
        method = PPO(options, Context(str(model), sampling, seed, EPOCHS * MINIBATCHES))
        adam = OptimiserConfig(lr, 0, (0.9, 0.999), 1e-8, 0.0, float("inf"))
        worker = EnvWorker(world.env, dict(world.args))
        self.run = LocalRun(method, adam, worker, [], passes=(EPOCHS, MINIBATCHES))
        self.tasks, self.times = world.tasks(), StepTimes()
        self.times.wrap(self.run, "collect", "sample")
        self.times.wrap(self.run, "score", "credit")
        self.times.wrap(method, "credit", "credit")
        self.times.wrap(self.run.updater, "update", "learn")
        self.times.wrap(self.run.engine.decoder, "renew", "publish")

    def step(self) -> float:
        return self.run.step(self.tasks)["reward/mean"]

    def critic(self) -> RoleModel:
        return self.run.models["critic"]

    def close(self) -> None:
        """Nothing to release."""


class RLlib:
    """RLlib's PPO in this process: no env runners and no learners of their own."""

    name = "rllib"

    def __init__(self, world: World, model: Path, lr: float, seed: int) -> None:
        from benchmarks.rllib_peer import build

        self.algo: Any = build(world, model, lr, seed, EPOCHS, MINIBATCHES)
        assert self.algo.learner_group is not None
        self.learner: Any = self.algo.learner_group._learner
        self.times = StepTimes()
        self.times.wrap(self.algo.env_runner, "sample", "sample")
        self.times.wrap(self.algo.learner_group, "update", "learn")
        self.times.wrap(self.learner, "_make_batch_if_necessary", "credit")
        self.times.wrap(self.algo.env_runner_group, "sync_weights", "publish")

    def step(self) -> float:
        result = self.algo.train()["env_runners"]["episode_return_mean"]
        # the batch is made inside the learner's update
        self.times.spent["learn"] -= self.times.spent["credit"]
        return float(result)

    def critic(self) -> RoleModel:
        return self.learner.module["default_policy"].critic

    def close(self) -> None:
        self.algo.stop()
        shutil.rmtree(self.algo.logdir, ignore_errors=True)


MAKERS: dict[str, Callable[[World, Path, float, int], Contestant]] = {"posterior": Posterior, "rllib": RLlib}


def compete(contestants: Sequence[Contestant], updates: int) -> list[Curve]:
    """So many batches of each, in turns; who begins changes from turn to turn."""
    curves = [Curve() for _ in contestants]
    for update in range(updates):
        order = range(len(contestants)) if update % 2 else reversed(range(len(contestants)))
        for i in order:
            contestants[i].times.take()
            began = time.perf_counter()
            curves[i].returns.append(contestants[i].step())
            curves[i].seconds.append(time.perf_counter() - began)
            spent = contestants[i].times.take()
            spent["rest"] = curves[i].seconds[-1] - sum(spent.values())
            for stage, seconds in spent.items():
                curves[i].stages[stage].append(seconds)
    return curves


@torch.no_grad()
def first_values(model: RoleModel, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """float64[N]: what a critic says of rows of equally many tokens, in its own unit."""
    token = torch.tensor(rows)
    hidden = model.base.base_model(input_ids=token, use_cache=False).last_hidden_state[:, -1]
    return model.value(hidden)[:, 0].double().numpy()


class Calls(TorchDispatchMode):
    """Counts the operators that torch is asked for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def work(contestant: Contestant) -> dict[str, float]:
    """Of one more batch: torch's operators, and the floating-point operations of the matrix products and attention among them."""
    with FlopCounterMode(display=False) as arithmetic, Calls() as calls:
        contestant.step()
    return {"operators": float(calls.count), "flops": float(arithmetic.get_total_flops())}
