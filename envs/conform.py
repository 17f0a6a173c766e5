"""What a user's environment must return, checked where it returns it: one sentence that names environment, method and mend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from envs.base import Env, Grade, Observation, Step, Task

T = TypeVar("T")


class EnvFault(RuntimeError):
    """The environment's own code raised or broke the interface: a bug to mend, not an answer to grade."""


def faultless(name: str, what: str, call: Callable[[], T]) -> T:
    """The result of `call`, a method of the environment `name`; EnvFault if it raises.

    With ValueError, RuntimeError and OSError an environment says in its own words what it was given or lacks.
    """
    try:
        return call()
    except EnvFault:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise EnvFault(f"environment {name}, {what}: {error or type(error).__name__}") from error
    except Exception as error:
        raise raised(name, what, error) from error


def raised(name: str, what: str, error: BaseException) -> EnvFault:
    return EnvFault(f"environment {name} raised {type(error).__name__} in {what}: {error}")


def check_splits(env: Env, name: str) -> list[str]:
    """The names of its splits, at least one."""
    splits = faultless(name, "splits()", env.splits)
    if isinstance(splits, str) or not isinstance(splits, Sequence) or not splits:
        raise EnvFault(f'environment {name}: splits() must return names such as ("train", "test"), not {splits!r:.100}')
    return [str(split) for split in splits]


def check_tasks(tasks: Any, name: str, split: str) -> Iterable[Task]:
    if not isinstance(tasks, Iterable):
        raise EnvFault(
            f"environment {name}: tasks({split!r}) must return a list or another iterable of Task, not {_shown(tasks)}"
        )
    return tasks


def check_task(task: Any, name: str, split: str) -> Task:
    if not isinstance(task, Task):
        raise EnvFault(f"environment {name}: tasks({split!r}) must hold envs.base.Task, not {_shown(task)}")
    chat = not isinstance(task.prompt, str)
    if not isinstance(task.id, str) or (chat and not all(_is_message(message) for message in _listed(task.prompt))):
        raise EnvFault(
            f"environment {name}: the task {task.id!r:.100} of tasks({split!r}) needs an id that is text, and a prompt that is text "
            'or messages {"role": ..., "content": ...}'
        )
    return task


def first_task(env: Env, name: str, split: str) -> Task:
    """The first task of a split: the cheapest proof that there is one."""

    def first() -> Any:
        return next(iter(check_tasks(env.tasks(split), name, split)), None)

    task = faultless(name, f"tasks({split!r})", first)
    if task is None:
        raise EnvFault(f"environment {name}: the split {split!r} has no tasks")
    return check_task(task, name, split)


def check_observation(value: Any, name: str) -> Observation:
    if not isinstance(value, Observation):
        raise EnvFault(f"environment {name}: reset() must return envs.base.Observation, not {_shown(value)}")
    return value


def check_grade(value: Any, name: str) -> Grade:
    if not isinstance(value, Grade):
        raise EnvFault(f"environment {name}: grade() must return envs.base.Grade, not {_shown(value)}")
    if not _finite(value.value):
        raise EnvFault(f"environment {name}: grade() must return a finite value, not {value.value!r:.100}")
    return value


def check_step(value: Any, name: str) -> Step:
    if not isinstance(value, Step):
        raise EnvFault(f"environment {name}: step() must return envs.base.Step, not {_shown(value)}")
    if value.grade is not None:
        check_grade(value.grade, name)
    if not _finite(value.reward) or not isinstance(value.observation, str):
        raise EnvFault(
            f"environment {name}: step() must return a text and a finite reward, not {value.observation!r:.60} "
            f"and {value.reward!r:.60}"
        )
    return value


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and value else (None,)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _shown(value: Any) -> str:
    return f"{type(value).__name__} ({value!r:.60})"
