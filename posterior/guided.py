"""`posterior eval RUN --guided HINT`: thoughts decoded towards what a second prompt asks for (CoT-Flow), without training.

The hint is a template with {prompt} and without the answer, such as "{prompt} Think in the way that leads to the right answer." (the
published "latent label"). Three ways to write the thought, each followed by the likeliest answer behind the plain prompt:

    greedy    the likeliest token behind the plain prompt
    hinted    the likeliest token behind the hint
    guided    the token that the hint raises most (`models.lockstep`)

With {answer} in the template the answer is in sight, and the figures say how well the model explains, not how well it solves.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.stats import summarise
from algorithms.thoughts import Thoughts, answer_of, hinted
from envs.base import Grade, SingleTurnEnv, Task
from envs.registry import make
from models.loading import load_role, load_tokenizer
from models.lockstep import greedy, guided, lockstep
from posterior import launch
from posterior.config_load import ConfigError
from posterior.evaluate import held_out, point_at
from posterior.progress import Bar
from posterior.targets import open_target

AT_ONCE = 64
"""Tasks decoded together."""


def eval_guided(
    target: str,
    env: str | None,
    args: dict[str, Any],
    hint: str,
    *,
    split: str | None,
    tasks: int,
    max_tokens: int | None,
    checkpoint: str | None,
) -> dict[str, Any]:
    """pass@1 with 95 % intervals and mean length of each way, by split. Other arguments: see `posterior.evaluate.evaluate`."""
    if "{prompt}" not in hint:
        raise ConfigError(
            f'--guided needs a template with {{prompt}} in it, such as "{{prompt}} Think well.", not {hint!r}'
        )
    config, what = open_target(target, checkpoint)
    point_at(config, env, args)
    if config.sampling.latents:
        raise ConfigError(f"{target} thinks in latents; --guided decodes written thoughts")
    plan = launch.make_plan(config)
    model = load_role(plan.model, trust_remote_code=config.model.trust_remote_code).eval()
    thoughts = Thoughts(load_tokenizer(plan.model, config.model.trust_remote_code))
    world = make(config.env.name, config.env.args)
    if not isinstance(world, SingleTurnEnv):
        raise ConfigError(f"environment {config.env.name} has several turns; --guided judges one answer a task")
    most = max_tokens or config.sampling.max_tokens
    splits = [split] if split else held_out(config)
    asked = {name: list(itertools.islice(world.tasks(name), tasks)) for name in splits}
    written: dict[tuple[str, str], list[tuple[int, str]]] = {}
    with Bar("tasks", sum(map(len, asked.values())), "decoding") as bar:
        done = 0
        for name, own in asked.items():
            for first in range(0, len(own), AT_ONCE):
                some = own[first : first + AT_ONCE]
                for way, rows in _decode(thoughts, model, some, hint, most).items():
                    written.setdefault((name, way), []).extend(rows)
                done += len(some)
                bar.draw(done, name)
    graded = asyncio.run(_grade(world, {key: (asked[key[0]], rows) for key, rows in written.items()}))
    figures: dict[str, dict[str, Any]] = {name: {} for name in splits}
    for (name, way), grades in graded.items():
        figures[name][way] = {
            **summarise([[grade.solved] for grade in grades], [[grade.value] for grade in grades]),
            "thought_length": float(np.mean([length for length, _ in written[name, way]])),
        }
    return {"target": what, "env": config.env.name, "hint": hint, "sees_answer": "{answer}" in hint, "splits": figures}


def _decode(
    thoughts: Thoughts, model: Any, tasks: Sequence[Task], hint: str, most: int
) -> dict[str, list[tuple[int, str]]]:
    """Way -> (length of the thought, answer) of each task."""
    chat = thoughts.chat
    plain = [chat.prompt_ids(task.prompt) for task in tasks]
    shown = [
        chat.prompt_ids(hinted(task.prompt, hint, answer_of(task) if "{answer}" in hint else "")) for task in tasks
    ]
    ends = {thoughts.close, thoughts.end}
    out = {}
    for way, prompts, choose in (
        ("greedy", [plain], greedy),
        ("hinted", [shown], greedy),
        ("guided", [plain, shown], guided),
    ):
        written = lockstep(model, prompts, choose, ends, most)
        closed = [
            [*x, *z, *([] if len(z) and z[-1] == thoughts.close else [thoughts.close])]
            for x, z in zip(plain, written, strict=True)
        ]
        answers = lockstep(model, [[np.array(row) for row in closed]], greedy, {thoughts.end}, most)
        out[way] = [(len(z), chat.decode(y).strip()) for z, y in zip(written, answers, strict=True)]
    return out


async def _grade(
    env: SingleTurnEnv, written: Mapping[tuple[str, str], tuple[Sequence[Task], Sequence[tuple[int, str]]]]
) -> dict[tuple[str, str], list[Grade]]:
    out: dict[tuple[str, str], list[Grade]] = {}
    for key, (tasks, rows) in written.items():
        for task, (_, text) in zip(tasks, rows, strict=True):
            found = env.grade(task, text)
            out.setdefault(key, []).append(await found if inspect.isawaitable(found) else found)
    await env.close()
    return out
