"""A useful environment in 30 lines: count the letters of a word. Train on it from this folder's parent:

posterior train ../tune_configs/my_env.yaml
"""

import random

from envs.base import Grade, SingleTurnEnv, Task

LETTERS = "abcdefgh"


class MyEnv(SingleTurnEnv):
    description = "How often does a letter stand in a word?"

    def __init__(self, length: int = 6) -> None:
        self.length = length

    def tasks(self, split):
        draw = random.Random(split)  # a stream of its own for each split, the same in every run
        words = ["".join(draw.choices(LETTERS, k=self.length)) for _ in range(1000)]
        return [self._task(f"{split}-{i}", word, draw.choice(LETTERS)) for i, word in enumerate(words)]

    def _task(self, name, word, letter):
        question = f"How often does {letter} stand in {word}? Answer with a digit."
        return Task(id=name, prompt=[{"role": "user", "content": question}], answer=str(word.count(letter)))

    def grade(self, task, text):
        right = text.strip() == task.answer
        a_digit = text.strip().isdigit()
        return Grade(value=1.0 if right else 0.1 * a_digit, components={"right": right, "a_digit": a_digit})
