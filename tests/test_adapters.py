"""gymnasium both ways and TRL: real environments played through the adapters, and hostile or wrong input."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check

from envs import registry
from envs.adapters.gymnasium import AsGymnasium, Gymnasium
from envs.adapters.trl import OVER, Episodes, Rewards, answer_of
from envs.base import Grade, InfraError, SingleTurnEnv, Task
from envs.check import check_env
from envs.key_door import KeyDoor
from envs.pointer_chase import PointerChase


class Say(gymnasium.Env[str, str]):
    """Text in, text out: say the word that is shown, within three moves."""

    observation_space = spaces.Text(40, charset="abcdefgh :")
    action_space = spaces.Text(8, charset="abcdefgh")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abcdefgh"), 5))
        return f"say: {self.word}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action == self.word
        return "no", float(right), right, False, {}


class Picture(Say):
    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


class Reach(Picture):
    observation_space = spaces.Dict({"at": spaces.Box(-1, 1, (2,)), "n": spaces.Discrete(9)})  # type: ignore[assignment]
    action_space = spaces.Box(-1, 1, (2,))  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def registered() -> None:
    for name in ("Say", "Picture", "Reach"):
        if f"Posterior{name}-v0" not in gymnasium.registry:
            gymnasium.register(f"Posterior{name}-v0", f"{__name__}:{name}", max_episode_steps=3)


def failed(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [check for check in report["checks"] if not check["ok"]]


@pytest.mark.parametrize("args", [{"id": "PosteriorSay-v0"}, {"id": "Taxi-v3", "scale": 0.01, "max_turns": 20}])
def test_a_gymnasium_environment_passes_the_whole_suite(args: dict[str, Any]) -> None:
    report = asyncio.run(check_env("gymnasium", args, samples=24))
    assert failed(report) == []
    assert report["tasks"] == {"train": 24, "test": 24}


def test_a_gymnasium_episode_in_words() -> None:
    async def play(*actions: str) -> list[Any]:
        env = Gymnasium("PosteriorSay-v0", instructions="Repeat.")
        task = next(iter(env.tasks("train")))
        await env.reset(task, 5)
        word = str(task.prompt[-1]["content"]).removeprefix("Repeat.\n\nsay: ")  # type: ignore[index]
        return [await env.step(action.format(word=word)) for action in actions]

    steps = asyncio.run(play("{word}"))
    assert (steps[0].reward, steps[0].terminated, steps[0].grade.solved) == (1.0, True, True)
    steps = asyncio.run(play("not a word!", "abc", "\ud800"))
    assert [step.observation for step in steps] == ["That is no action here.", "no", "That is no action here."]
    assert (steps[-1].truncated, steps[-1].grade.solved) == (True, False)


def test_numbered_actions_have_names() -> None:
    env = Gymnasium("Taxi-v3", actions=["south", "north", "east", "west", "pickup", "dropoff"])
    task = next(iter(env.tasks("test")))
    assert "Actions: south, north, east, west, pickup, dropoff." in task.prompt[0]["content"]  # type: ignore[index]

    async def play() -> list[str]:
        await env.reset(task, 0)
        return [(await env.step(action)).observation for action in ("west", "fly", "0")]

    seen = asyncio.run(play())
    assert seen[0].isdigit()
    assert seen[1] == seen[2] == "That is no action here."


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"id": "Taxi-v4711"}, "gymnasium has no environment 'Taxi-v4711'"),
        ({"id": "no_such_module:Env-v0"}, "gymnasium has no environment"),
        ({"id": "PosteriorPicture-v0"}, "observations of Box.* are not text; wrap it"),
        ({"id": "PosteriorReach-v0"}, "actions of Box.* are not text; wrap it"),
        ({"id": "Taxi-v3", "actions": ["up", "down"]}, "has 6 actions, but actions names 2"),
        ({"id": "Taxi-v3", "kwargs": {"colour": 1}}, "Taxi-v3 cannot be made: TypeError"),
    ],
)
def test_what_gymnasium_cannot_give_is_one_sentence(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        registry.make("gymnasium", args).ready()


def test_a_world_that_opens_one_way_has_nothing_to_hold_out() -> None:
    env = Gymnasium("FrozenLake-v1", actions=["left", "down", "right", "up"])
    assert sorted(len(list(env.tasks(split))) for split in env.splits()) == [0, 1]


def test_ours_is_a_gymnasium_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(AsGymnasium("key_door", tasks=8), skip_render_check=True)
    env = AsGymnasium("key_door", tasks=8)
    said, info = env.reset(seed=3)
    task = env.tasks[3]
    assert (said, info["task"]) == (task.prompt, task.id)
    for move in task.walkthrough or ():
        _, reward, terminated, truncated, info = env.step(move.action)
    assert (reward, terminated, truncated, info["solved"]) == (1.0, True, False, True)
    assert env.reset()[1]["task"] == env.tasks[4].id
    assert env.reset(options={"task": 6})[1]["task"] == env.tasks[6].id
    env.reset(seed=0)
    outcomes = [env.step("\x00")[2:4] for _ in range(6)]
    assert outcomes == [(False, False)] * 5 + [(False, True)]
    env.close()


# TRL


class Lost(SingleTurnEnv):
    def tasks(self, split: str) -> list[Task]:
        return [Task("one", [{"role": "user", "content": "?"}])]

    def grade(self, task: Task, text: str) -> Grade:
        if text == "lost":
            raise InfraError("the machinery lost it")
        return Grade(0.5)


def test_rewards_are_the_grades_of_answers() -> None:
    rewards = Rewards("pointer_chase", tasks=5)
    rows = rewards.rows()
    tasks = list(rewards.tasks.values())
    answer = str(tasks[0].answer)
    said = [
        answer,
        f"<think> {answer} no </think> {answer}",
        f"<think> {answer}",
        "",
        [{"role": "assistant", "content": answer}],
    ]
    assert rewards(completions=said, task=[rows[0]["task"]] * 5, prompts=[], other=1) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert PointerChase().grade(tasks[0], answer).solved
    assert rewards.__name__ == "pointer_chase"
    with pytest.raises(ValueError, match="was given no task 'x'; use its rows"):
        rewards(completions=["a"], task=["x"])
    with pytest.raises(ValueError, match=r"several turns; use envs\.adapters\.trl\.Episodes"):
        Rewards("key_door")


def test_what_our_machinery_lost_is_left_out() -> None:
    rewards = Rewards(f"{__name__}:Lost")
    assert rewards(completions=["lost", "fine"], task=["one", "one"]) == [None, 0.5]


def test_answers_of_completions() -> None:
    assert answer_of("a</think>b</think> c ") == "c"
    assert answer_of([{"role": "assistant", "content": None}]) == ""


def test_an_episode_is_played_by_the_tool() -> None:
    episodes = Episodes("key_door", tasks=4)
    row, episode = episodes.rows()[2], episodes()
    task: Task = episodes.tasks[row["task"]]
    assert row["prompt"] == [{"role": "user", "content": ""}]
    assert episode.reset(**row) == task.prompt
    moves = task.walkthrough or ()
    said = [episode.act(move.action) for move in moves]
    assert said[:-1] == [move.observation for move in moves[:-1]]
    assert said[-1].endswith(OVER)
    assert episode.get_reward() == 1.0
    assert episode.act("a") == OVER
    episode.reset(**row)
    assert episode.get_reward() == 0.0
    assert KeyDoor().max_turns == len(moves)


def grpo(model: Path, folder: Path, rows: list[dict[str, Any]], template: str | None = None, **more: Any) -> Any:
    """A GRPOTrainer that has trained for two steps."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.chat_template = template or tokenizer.chat_template
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=GRPOConfig(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **more,
    )
    trainer.train()
    return trainer


@pytest.mark.slow
def test_trl_trains_on_our_rewards(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    rewards = Rewards("pointer_chase", tasks=20)
    trainer = grpo(tiny_model(), tmp_path, rewards.rows(), reward_funcs=rewards)
    assert len([row for row in trainer.state.log_history if "rewards/pointer_chase/mean" in row]) == 2


@pytest.mark.slow
def test_trl_plays_our_episodes(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    episodes = Episodes("key_door", tasks=20)
    trainer = grpo(tiny_model(), tmp_path, episodes.rows(), template, environment_factory=episodes)
    assert [tool.__name__ for tool in trainer.tools] == ["act"]
    assert len([row for row in trainer.state.log_history if row.get("rewards/Episode/mean") == 0.0]) == 2
