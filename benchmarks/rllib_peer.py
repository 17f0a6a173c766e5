"""RLlib's PPO (new API stack, unmodified) on our environments: every token is one step of a gymnasium environment whose observation is
the row of tokens so far, and the network is the very model that Posterior trains, loaded from the same folder.

RLlib asks the network about one observation at a time, so every decision reads the whole row again, in sampling and in learning; a row of
its own for each decision is how its batches are made.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
from torch import Tensor

from benchmarks.ppo_worlds import World
from envs.base import Env, Task
from models.chat import ChatFormat
from models.loading import load_role, load_tokenizer


class TokenEnv(gym.Env[np.ndarray, int]):
    """One of our environments, played token by token, always with the same task.

    Observation: int64[length + 1], the tokens so far and zeros after them, and last how many there are. tokens: of a turn. turns: after
    which the episode is cut. length: the longest row.
    """

    def __init__(self, env: Env, task: Task, chat: ChatFormat, turns: int, tokens: int, length: int) -> None:
        self.env, self.task, self.chat, self.turns, self.tokens, self.length = env, task, chat, turns, tokens, length
        vocabulary = len(chat.tokenizer)
        self.action_space = gym.spaces.Discrete(vocabulary)
        self.observation_space = gym.spaces.Box(0, max(vocabulary, length), (length + 1,), np.int64)
        self.row: list[int] = []
        self.turn, self.emitted = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        opening = _result(self.env.reset(self.task, 0 if seed is None else seed))
        prompt = opening.prompt if opening.prompt is not None else self.task.prompt
        self.row, self.turn, self.emitted = self.chat.prompt_ids(prompt).tolist(), 0, 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.row.append(int(action))
        self.emitted += 1
        if self.emitted < self.tokens:
            return self._observation(), 0.0, False, False, {}
        step = _result(self.env.step(self.chat.decode(self.row[-self.emitted :]).strip()))
        self.turn, self.emitted = self.turn + 1, 0
        if not step.terminated:
            self.row += self.chat.turn_ids(step.observation, False).tolist()
        cut = not step.terminated and (step.truncated or self.turn == self.turns)
        return self._observation(), float(step.reward), step.terminated, cut, {}

    def _observation(self) -> np.ndarray:
        row = np.zeros(self.length + 1, np.int64)
        row[: len(self.row)], row[-1] = self.row, len(self.row)
        return row


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("this environment waits for something; RLlib's loop is synchronous")


class TokenModule(TorchRLModule, InferenceOnlyAPI, ValueFunctionAPI):
    """A causal language model as policy and another with a value head as critic, from the folder model_config["path"]."""

    def setup(self) -> None:
        assert isinstance(self.model_config, dict)
        path = self.model_config["path"]
        self.policy = load_role(path)
        if not self.inference_only:
            self.critic = load_role(path, head="value")

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic"]

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy.logits(self._hidden(self.policy, batch[Columns.OBS]))}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        return self.critic.value(self._hidden(self.critic, batch[Columns.OBS]))[:, 0]

    @staticmethod
    def _hidden(model: Any, obs_BL: Tensor) -> Tensor:
        """[B, D] at the last token of each row; rows are padded to the longest one only, and need no mask."""
        length_B = obs_BL[:, -1]
        token_BT = obs_BL[:, : int(length_B.max())]
        hidden_BTD = model.base.base_model(input_ids=token_BT, use_cache=False).last_hidden_state
        return hidden_BTD[torch.arange(len(token_BT)), length_B - 1]


def row_length(world: World, chat: ChatFormat) -> int:
    """The longest row of tokens an episode of a world can have."""
    prompt = max(len(chat.prompt_ids(task.prompt)) for task in world.tasks())
    between = max(len(chat.turn_ids(word, False)) for word in world.make().words()) if world.turns > 1 else 0
    return prompt + world.decisions + world.turns * between


class Cast:
    """Makes the environments of a batch: one for each of its tasks, in order, and again from the first."""

    def __init__(self, world: World, model: Path) -> None:
        self.world, self.chat, self.made = world, ChatFormat(load_tokenizer(str(model))), 0
        self.tasks, self.length = world.tasks(), row_length(world, self.chat)

    def __call__(self, _: Any = None) -> TokenEnv:
        task = self.tasks[self.made % len(self.tasks)]
        self.made += 1
        return TokenEnv(self.world.make(), task, self.chat, self.world.turns, self.world.tokens, self.length)


def build(world: World, model: Path, lr: float, seed: int, epochs: int, minibatches: int) -> Algorithm:
    """The algorithm, everything in this process: a batch is one whole episode of each of `world.episodes` environments."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    # gymnasium warns that a second algorithm replaces the first one's environment, which it may
    gym.logger.min_level = gym.logger.ERROR
    register_env(f"tokens_{world.name}", Cast(world, model))
    samples = world.episodes * world.decisions
    # RLlib adds one masked step to every episode, and counts it where it cuts mini-batches
    padded = world.episodes * (world.decisions + 1)
    config = (
        PPOConfig()
        .environment(f"tokens_{world.name}", disable_env_checking=True)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=world.episodes, rollout_fragment_length=world.decisions)
        .learners(num_learners=0, num_gpus_per_learner=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TokenModule, model_config={"path": str(model)}))
        .training(
            lr=lr,
            gamma=world.discount,
            lambda_=0.95,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.5,
            entropy_coeff=world.entropy,
            use_kl_loss=False,
            kl_coeff=0.0,
            grad_clip=None,
            train_batch_size_per_learner=samples,
            minibatch_size=padded // minibatches,
            num_epochs=epochs,
        )
        .reporting(metrics_num_episodes_for_smoothing=world.episodes)
        .debugging(seed=seed, log_level="ERROR")
    )
    return config.build_algo()
