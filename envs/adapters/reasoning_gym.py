"""reasoning-gym's generated tasks: those that its audit lets through (envs/adapters/reasoning_gym_audit.py).

posterior envs check reasoning_gym names='[leg_counting, word_sorting]'
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any, ClassVar

from envs.base import Grade, SingleTurnEnv, Task

VERSION = "0.1.25"
"""The release that was audited."""
SPLITS = ("train", "test")
EVERY = 8
"""One question in so many is held out."""
PATIENCE = 200
"""Questions in a row that were asked before, after which a task is exhausted."""
CHUNK = 500
"""Items that one seed of a task's generator gives."""
HOW = "Answer with nothing but the answer."

_WHITELIST = """
ab advanced_geometry arc_1d arc_agi base_conversion basic_arithmetic bf caesar_cipher calendar_arithmetic
chain_sum circuit_logic codeio color_cube_rotation count_bits count_primes course_schedule cryptarithm
decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships fraction_simplification
group_anagrams gsm_symbolic isomorphic_strings jugs kakurasu knights_knaves largest_island lcm leg_counting
letter_counting mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack number_filtering
number_format number_sequence palindrome_generation palindrome_partitioning path_star polynomial_equations
pool_matrix power_function products ransom_note rearc rectangle_count rotate_matrix rotten_oranges
self_reference sentence_reordering shortest_path simple_equations simple_geometry string_manipulation
string_splitting string_synthesis sudoku survo syllogism time_intervals tower_of_hanoi tsumego word_ladder
word_sequence_reversal word_sorting zebra_puzzles
"""
WHITELIST = tuple(_WHITELIST.split())
"""Tasks that passed the audit."""

_EVALUATES = """
binary_matrix bitwise_arithmetic countdown intermediate_integration n_queens number_sorting
polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion
"""
EVALUATES = tuple(_EVALUATES.split())
"""Tasks whose grader evaluates text as a program of the grading process: a hostile answer could do anything there."""


class ReasoningGym(SingleTurnEnv):
    """names: tasks of reasoning-gym, asked in turns; "whitelist" is all that passed the audit. options: name -> its configuration.

    partial: keep grades between 0 and 1, which for many tasks pay a little for text that merely holds the answer; without it only
    a full score counts. unaudited: allow names outside the whitelist. unsafe_local: allow those whose grader evaluates text as
    a program, with all your rights. seed: of the generators. Splits are endless unless a task runs out of questions; one question in
    eight is held out, by its text.
    """

    description: ClassVar[str] = "reasoning-gym's generated tasks that passed our audit (names=...)"

    def __init__(
        self,
        names: str | Sequence[str] = "whitelist",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        partial: bool = False,
        unaudited: bool = False,
        unsafe_local: bool = False,
        seed: int = 0,
    ) -> None:
        self.names = list(WHITELIST) if names == "whitelist" else [names] if isinstance(names, str) else list(names)
        self.options = {name: dict(more) for name, more in (options or {}).items()}
        self.partial, self.seed = bool(partial), int(seed)
        if not self.names:
            raise ValueError("reasoning_gym: names is empty")
        for name in self.names:
            if name in WHITELIST:
                continue
            if name in EVALUATES and not unsafe_local:
                raise ValueError(
                    f"reasoning_gym: the grader of {name!r} evaluates text as a program, so that a hostile answer may run with all "
                    "your rights; "
                    "say --unsafe-local (env.args.unsafe_local=true) if you want that"
                )
            if name not in EVALUATES and not unaudited:
                near = difflib.get_close_matches(name, WHITELIST, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(
                    f"reasoning_gym: {name!r} is not among the {len(WHITELIST)} tasks that passed the audit; {hint}"
                    "say env.args.unaudited=true to train on it all the same"
                )
        for name in self.options:
            if name not in self.names:
                raise ValueError(f"reasoning_gym: options has {name!r}, which is not among the names")

    def ready(self) -> None:
        """Raises ValueError if the package is missing, a name is unknown to it or an option does not suit it."""
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ValueError(
                f"reasoning_gym needs the package reasoning-gym; run: pip install 'posterior[reasoning-gym]' (reasoning-gym=={VERSION})"
            )
        for name in self.names if self.options or len(self.names) < 10 else self.names[:1]:
            self._data(name)

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Iterable[Task]:
        if split not in SPLITS:
            raise ValueError(f"reasoning_gym has no split {split!r}; there are: {', '.join(SPLITS)}")
        self.ready()
        return self._in_turns([self._stream(name, split) for name in self.names])

    def grade(self, task: Task, text: str) -> Grade:
        """The task's own score; 0 with a note where its grader raises."""
        name, entry = task.meta["name"], task.meta["entry"]
        try:
            score = float(self._data(name).score_answer(answer=text.strip(), entry=entry))
        except Exception as error:  # on a text that it cannot read
            return Grade(0.0, {name: 0.0}, note=f"grader raised {type(error).__name__}: {error}"[:200])
        value = min(max(score, 0.0), 1.0) if self.partial else float(score >= 1.0)
        return Grade(value, {name: score}, passed=score >= 1.0)

    def _data(self, name: str, chunk: int = 0) -> Any:
        return _dataset(name, json.dumps(self.options.get(name, {}), sort_keys=True), self.seed + chunk)

    def _in_turns(self, streams: list[Iterator[Task]]) -> Iterator[Task]:
        while streams:
            for stream in list(streams):
                task = next(stream, None)
                if task is None:
                    streams.remove(stream)
                else:
                    yield task

    def _stream(self, name: str, split: str) -> Iterator[Task]:
        seen: set[str] = set()
        stale = 0
        for i in itertools.count():
            with redirect_stdout(StringIO()):  # some tasks print
                entry = self._data(name, i // CHUNK)[i % CHUNK]
            question = str(entry["question"])
            mark = zlib.crc32(question.encode())
            stale += 1
            if question not in seen and (mark % EVERY == 0) == (split == "test"):
                seen.add(question)
                stale = 0
                prompt = [{"role": "user", "content": f"{question}\n\n{HOW}"}]
                yield Task(f"{split}-{name}-{i}", prompt, str(entry["answer"]), meta={"name": name, "entry": entry})
            elif stale > PATIENCE:
                return


@lru_cache(maxsize=512)
def _dataset(name: str, options: str, seed: int) -> Any:
    from reasoning_gym.factory import create_dataset

    try:
        return create_dataset(name, seed=seed, size=CHUNK, **json.loads(options))
    except Exception as error:  # its configurations assert, and name no option
        raise ValueError(
            f"reasoning_gym: {name} with {options} cannot be made: {type(error).__name__}: {error}"
        ) from error
