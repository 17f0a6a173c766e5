"""The coding environment: write a Python function, graded by unit tests in a sandbox."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from envs.base import Grade, SingleTurnEnv, Task
from envs.coding import datasets, procedural
from envs.coding.grader import grade_program
from envs.coding.sandbox import Limits, SandboxPool, require_sandbox


class CodingEnv(SingleTurnEnv):
    """Write a Python function; the grade is whether it passes its unit tests.

    tasks: "procedural" (generated, unlimited, seeded), a .json or .jsonl file in MBPP, HumanEval or generic layout, the
        folder of a saved dataset, or hf:NAME[:SPLIT].
    seed: of the procedural tasks.
    train_share: how much of a file without splits of its own is for training (by a hash of the task id).
    partial: grade by the share of tests passed instead of all or nothing.
    performance: grade work counts too, where a task asks for it.
    unsafe_local: run candidates WITHOUT a sandbox, as plain processes of this user.
    cpu_seconds, wall_seconds, memory_mb, output_bytes: limits of one candidate. Short, because training needs quick
        verdicts on runaway programs; `posterior envs check` names the tasks whose own solutions need longer.
    Other options go to the task generator (`envs.coding.procedural.tasks`): families, difficulties, size, ...

    Construction reads nothing and starts nothing; a file is read once and the sandbox pool shared per process.
    Raises ValueError, in one sentence, for an unknown option or a value out of range.
    """

    description: ClassVar[str] = (
        "Python functions graded by unit tests in a sandbox (generated tasks, MBPP, HumanEval, your own)"
    )

    def __init__(
        self,
        tasks: str = "procedural",
        *,
        seed: int = 0,
        train_share: float = 0.8,
        partial: bool = False,
        performance: bool = True,
        unsafe_local: bool = False,
        cpu_seconds: float = 0.75,
        wall_seconds: float = 5.0,
        memory_mb: int = 256,
        output_bytes: int = 1 << 20,
        **options: Any,
    ) -> None:
        limits = {
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory_mb": memory_mb,
            "output_bytes": output_bytes,
        }
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"coding: {name} must be a positive number, not {value!r}")
        for name, value in (("partial", partial), ("performance", performance), ("unsafe_local", unsafe_local)):
            if not isinstance(value, bool):
                raise ValueError(f"coding: {name} must be true or false, not {value!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"coding: seed must be a whole number, not {seed!r}")
        if isinstance(train_share, bool) or not isinstance(train_share, int | float) or not 0 <= train_share <= 1:
            raise ValueError(f"coding: train_share must lie between 0 and 1, not {train_share!r}")
        if not isinstance(tasks, str):
            raise ValueError(f'coding: tasks must be "procedural", a file or hf:NAME, not {tasks!r}')
        self._check_options(tasks, options)
        self.source = tasks
        self.seed = seed
        self.train_share = float(train_share)
        self.partial = partial
        self.performance = performance
        self.unsafe_local = unsafe_local
        self.limits = Limits(cpu_seconds, wall_seconds, memory_mb, output_bytes)
        self.options = options

    @property
    def is_procedural(self) -> bool:
        return self.source == "procedural"

    @staticmethod
    def _check_options(source: str, options: dict[str, Any]) -> None:
        if not options:
            return
        generator = list(inspect.signature(procedural.tasks).parameters)[2:]
        if source != "procedural":
            name = next(iter(options))
            if name in generator:
                raise ValueError(f"coding: option {name!r} is for generated tasks only; drop it or tasks={source!r}")
            generator = []
        known = [name for name in inspect.signature(CodingEnv).parameters if name != "options"] + generator
        for name in options:
            if name not in generator:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
                raise ValueError(f"coding: unknown option {name!r}{hint}")

    def ready(self) -> None:
        if not self.unsafe_local:
            require_sandbox()

    def splits(self) -> Sequence[str]:
        """The generator's splits, or those of the file; "all" (not listed) holds every task of a file."""
        return tuple(procedural.SPLITS) if self.is_procedural else tuple(self._dataset().splits)

    def tasks(self, split: str) -> Iterable[Task]:
        if self.is_procedural:
            return procedural.tasks(split, self.seed, **self.options)
        dataset = self._dataset()
        if split == "all":
            return dataset.all
        if split not in dataset.splits:
            have = ", ".join(f"{name} ({len(tasks)})" for name, tasks in dataset.splits.items())
            raise ValueError(f"{self.source}: no tasks in split {split!r}; there are: {have}, all ({len(dataset.all)})")
        return dataset.splits[split]

    def _dataset(self) -> datasets.Dataset:
        return datasets.load(self.source, self.train_share)

    @property
    def pool(self) -> SandboxPool:
        return SandboxPool.shared(self.unsafe_local)

    async def grade(self, task: Task, text: str) -> Grade:
        return await grade_program(
            task, text, self.pool, limits=self.limits, partial=self.partial, performance=self.performance
        )

    async def extra_checks(self, samples: int) -> dict[str, Any]:
        """What `posterior envs check coding` adds: reference solutions and the attack list (see envs/check.py)."""
        from envs.coding.audit import audit

        return await audit(self, samples)
