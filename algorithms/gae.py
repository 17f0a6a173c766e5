"""PPO's arithmetic beside the policy loss: advantages from values, the value loss, scales that move (numpy, float64; losses torch).

Sources: generalised advantage estimation, Schulman et al. 2016 (arXiv 1506.02438, eq. 16); value clipping and the adaptive KL coefficient,
Schulman et al. 2017 (1707.06347) and Ziegler et al. 2019 (1909.08593, sec. 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EPS = 1e-8


def gae(
    reward_N: np.ndarray, value_N: np.ndarray, last: float, discount: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """(advantages float64[N], returns float64[N]) of one episode's N decisions.

    reward_N: earned from a decision to the next one. value_N: of the state before each decision. last: value of the state behind the
    last one; 0 if the episode ended by itself. discount: gamma. decay: lambda; 1 gives returns minus values, 0 one-step differences.
    """
    reward, value = np.asarray(reward_N, np.float64), np.asarray(value_N, np.float64)
    error = reward + discount * np.append(value[1:], last) - value
    advantage = np.zeros(len(reward))
    ahead = 0.0
    for t in range(len(reward) - 1, -1, -1):
        ahead = error[t] + discount * decay * ahead
        advantage[t] = ahead
    return advantage, advantage + value


def value_loss(value_BT: Tensor, target_BT: Tensor, old_BT: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, [B, T]; with a clip the larger one of it and that of the value held within +-clip of the old one."""
    plain = (value_BT - target_BT).square()
    if clip is None:
        return plain / 2
    held = old_BT + (value_BT - old_BT).clamp(-clip, clip)
    return torch.maximum(plain, (held - target_BT).square()) / 2


def explained_variance(predicted: np.ndarray, target: np.ndarray) -> float:
    """1 - Var(target - predicted) / Var(target): 1 exact, 0 no better than a constant; 0 where the target does not vary."""
    spread = float(np.var(target))
    return 1.0 - float(np.var(np.asarray(target) - predicted)) / spread if spread > EPS else 0.0


@dataclass
class RunningScale:
    """Mean and spread of what has been seen, batch after batch, recent batches counting more. memory: share kept at each batch.

    With it a critic learns (return - mean) / std, so that its loss does not depend on the rewards' unit. A fresh scale (count 0) changes
    nothing.
    """

    memory: float = 0.95
    mean: float = 0.0
    square: float = 0.0
    count: float = 0.0

    @property
    def std(self) -> float:
        return max(float(np.sqrt(max(self.square - self.mean**2, 0.0))), 1e-4) if self.count else 1.0

    def update(self, values: np.ndarray) -> None:
        values = np.asarray(values, np.float64)
        if len(values) == 0:
            return
        # a mean over batches with weights memory^age: the first batches are not drawn to 0
        new = self.memory * self.count + 1.0
        share = 1.0 / new
        self.mean += share * (float(values.mean()) - self.mean)
        self.square += share * (float((values**2).mean()) - self.square)
        self.count = new

    def normalise(self, values: np.ndarray) -> np.ndarray:
        return (np.asarray(values, np.float64) - self.mean) / self.std

    def restore(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `normalise`."""
        return np.asarray(values, np.float64) * self.std + self.mean


@dataclass
class KLController:
    """The strength of the KL penalty: fixed, or (with a target) raised while the KL is above it and lowered while below.

    target: nats an episode. horizon: over so many episodes the strength changes by a factor of about e^error; the relative error is cut to
    +-0.2, as published.
    """

    coef: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, episodes: int) -> None:
        if self.target is not None:
            error = float(np.clip(kl / self.target - 1.0, -0.2, 0.2))
            self.coef *= 1.0 + error * episodes / self.horizon


def whitened(values: np.ndarray, *, centre: bool = True) -> np.ndarray:
    """Divided by their standard deviation, and centred unless told otherwise; unchanged where they hardly vary."""
    values = np.asarray(values, np.float64)
    std = float(values.std())
    moved = values - values.mean() if centre else values
    return moved / std if std > EPS else moved
