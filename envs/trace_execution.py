"""Trace execution: what does a small stack program leave behind? The scratchpad is free text; the answer may be long.

    push 3 push 4 swap sub ->  <think> push 3 . push 4 3 . swap 3 4 . sub 1 . </think> 1

The prompt is a straight-line program over the digits (`envs.stack_programs`), the written steps are the stack after every instruction,
and the answer is the top of the stack, or all of it, read from the top. How well are thoughts learnt from good answers alone?
To ask that, the answers can be made like people's: in one of four paraphrases (`paraphrases`), and some of them wrong (`corrupt`). The
grade sees through both, and is for evaluation.

"pretrain" is for a base model that writes scratchpads well and gets them right now and then: its scratchpads are a mixture (see
`MIXTURE`), its answers are right whatever the scratchpad says. Some of its prompts show the answer, in the format `GIVEN`, before a right
scratchpad; and a few ask, in the format `SKELETON`, to plan before: a row of tags without any value, the word "reason", the scratchpad.

    push 3 push 4 add given 7             <think> push 3 . push 4 3 . add 7 . </think> 7
    push 3 push 4 add given 7 skeleton    <think> PUSH PUSH ARITH reason push 3 . push 4 3 . add 7 . </think> 7
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from random import Random
from typing import ClassVar

from envs import stack_programs as stack
from envs.base import Grade, SingleTurnEnv, Task

GIVEN = "{prompt} given {answer}"
"""The prompt that shows the answer: what a prompted posterior q(z | x, y) reads."""
SKELETON = "{prompt} given {answer} skeleton"
"""The same, asking for a plan without values first (structured self-reconstruction)."""
REASON = "reason"
"""Stands between the plan and the scratchpad."""
MARKS = ("<think>", "</think>")
SPLITS = ("train", "test", "longer", "pretrain")
MIXTURE = {"right": 0.34, "noisy": 0.18, "truncated": 0.16, "irrelevant": 0.14, "empty": 0.18}
"""Scratchpads of "pretrain": right, with a slip that is carried on, the beginning only, another program's, none."""
GIVEN_SHARE, SKELETON_SHARE = 0.1, 0.04
"""Shares of "pretrain" whose prompt shows the answer, without and with the plan."""
LONGEST_ANSWER = 16


class TraceExecution(SingleTurnEnv):
    """lengths: fewest and most instructions. answer: how many digits from the top of the stack it is (1 to 16); 0 for the whole stack.
    paraphrases: write answers in one of four grammars, drawn for each task. corrupt: share of training tasks whose answer is wrong.
    literal: grade training tasks word for word against their given answer, as whoever has no canonicaliser must; held-out tasks are
    graded by what the answer means in any case. train_tasks: how many training tasks there are, to be seen again and again; 0 for no end.

    Splits: "train", "test", "longer" (one or two instructions more than `lengths` allows) and "pretrain", all endless. Of all programs
    one in sixteen is test's, eight are pretrain's and the others train's. The programs do not depend on paraphrases and corrupt.
    """

    description: ClassVar[str] = (
        "run a stack program on a scratchpad; long, paraphrased or partly wrong answers (exact)"
    )

    def __init__(
        self,
        lengths: Sequence[int] = (4, 6),
        answer: int = 2,
        paraphrases: bool = False,
        corrupt: float = 0.0,
        literal: bool = False,
        train_tasks: int = 0,
    ) -> None:
        if not 0 <= answer <= LONGEST_ANSWER or not 0.0 <= corrupt <= 1.0:
            raise ValueError(
                f"trace_execution needs an answer of 0 (the whole stack) to {LONGEST_ANSWER} digits and corrupt of 0 to 1, "
                f"not {answer} and {corrupt}"
            )
        if len(lengths) != 2 or not max(1, answer) + 2 <= lengths[0] <= lengths[1] <= 64:
            raise ValueError(
                "trace_execution needs lengths: [fewest, most] in order, of at least 3 instructions, two more than the answer has digits, "
                f"at most 64, not {list(lengths)} with an answer of {answer}"
            )
        if train_tasks < 0:
            raise ValueError(f"trace_execution needs train_tasks of 0 (endless) or more, not {train_tasks}")
        self.shortest, self.longest = lengths
        self.train_tasks = train_tasks
        self.answer, self.paraphrases, self.corrupt, self.literal = answer, paraphrases, corrupt, literal

    def splits(self) -> Sequence[str]:
        return SPLITS

    def words(self) -> Sequence[str]:
        """The same for all arguments: one base model serves them all."""
        digits = map(str, range(stack.BASE))
        tags = dict.fromkeys(stack.TAGS.values())
        return (
            *(*digits, *stack.SHARES, stack.STOP, "bottom", "holds", "then", *stack.NAMES),
            *("given", "skeleton", *tags, REASON, *MARKS),
        )

    def tasks(self, split: str) -> Iterable[Task]:
        if split not in SPLITS:
            raise ValueError(f"trace_execution has no split {split!r}; there are: {', '.join(SPLITS)}")
        if split == "train" and self.train_tasks:
            return [self.task(split, index) for index in range(self.train_tasks)]
        return (self.task(split, index) for index in itertools.count())

    def task(self, split: str, index: int) -> Task:
        """The task at one place of a split."""
        seed = f"{self.shortest} {self.longest} {self.answer} {split} {index}"
        program = self._program(Random(f"program {seed}"), split)
        state = self._final(stack.run(program))
        rng = Random(f"words {seed}")
        grammar = int(rng.random() * stack.GRAMMARS) if self.paraphrases else 0
        luck = rng.random()
        told = stack.wrong_digit(state, rng) if split == "train" and luck < self.corrupt else state
        answer, prompt = stack.write(told, grammar), " ".join(program)
        meta = {"program": program, "state": state, "grammar": grammar, "kind": "right", "corrupt": told != state}
        if split == "pretrain":
            prompt, steps, meta["kind"] = self._pretraining(program, prompt, answer, rng)
        else:
            steps = stack.scratchpad(program, stack.run(program))
        meta["literal"] = self.literal and split == "train"
        return Task(f"{split}-{index}", prompt, answer=answer, steps=steps, meta=meta)

    def solution(self, task: Task) -> list[str]:
        """For the conformance suite: what the program leaves behind, also where the task's own answer is wrong."""
        return [str(task.answer) if task.meta["literal"] else stack.write(task.meta["state"])]

    def grade(self, task: Task, text: str) -> Grade:
        """1 if the answer means what the program leaves behind. Components: "exact", word for word the given answer, and
        "canonical", the right meaning."""
        exact = text.split() == str(task.answer).split()
        canonical = stack.read(text) == tuple(task.meta["state"])
        value = exact if task.meta["literal"] else canonical
        return Grade(float(value), {"exact": float(exact), "canonical": float(canonical)})

    def _program(self, rng: Random, split: str) -> stack.Program:
        low, high = (self.longest + 1, self.longest + 2) if split == "longer" else (self.shortest, self.longest)
        while True:
            program = stack.draw(rng, low + int(rng.random() * (high + 1 - low)), max(1, self.answer))
            if split == "longer" or _owner(program) == split:
                return program

    def _final(self, states: Sequence[stack.State]) -> stack.State:
        return states[-1][-self.answer :] if self.answer else states[-1]

    def _pretraining(
        self, program: stack.Program, prompt: str, answer: str, rng: Random
    ) -> tuple[str, tuple[str, ...], str]:
        """(prompt, steps, kind) of one task of "pretrain"."""
        right, luck = stack.scratchpad(program, stack.run(program)), rng.random()
        if luck < SKELETON_SHARE:
            steps = (stack.skeleton(program), REASON, *right)
            return SKELETON.format(prompt=prompt, answer=answer), steps, "skeleton"
        if luck < SKELETON_SHARE + GIVEN_SHARE:
            return GIVEN.format(prompt=prompt, answer=answer), right, "given"
        kind = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        if kind == "noisy":
            return prompt, stack.scratchpad(program, stack.run_with_a_slip(program, rng)), kind
        if kind == "truncated":
            return prompt, right[: 1 + int(rng.random() * (len(right) - 1))], kind
        if kind == "irrelevant":
            other = self._program(rng, "pretrain")
            return prompt, stack.scratchpad(other, stack.run(other)), kind
        return prompt, right if kind == "right" else (), kind


def _owner(program: stack.Program) -> str:
    """Which split a program belongs to."""
    place = stack.place(program, 16)
    return "test" if place == 0 else "train" if place < 8 else "pretrain"
