"""One question, one answer: what time is it some hours later?"""

from envs.base import Grade, SingleTurnEnv, Task

HOURS = [f"h{hour}" for hour in range(12)]


class Clock(SingleTurnEnv):
    description = "what time is it n hours later? (single-turn, exact)"

    def tasks(self, split):
        if split not in self.splits():
            raise ValueError(f"clock has no split {split!r}; there are: train, test")
        pairs = [(a, b) for a in range(12) for b in range(12) if ((5 * a + b) % 6 == 0) == (split == "test")]
        return [Task(f"{a}+{b}", f"{HOURS[a]} plus {HOURS[b]}", answer=HOURS[(a + b) % 12]) for a, b in pairs]

    def words(self):
        return [*HOURS, "plus"]

    def grade(self, task, text):
        return Grade(float(text.strip() == task.answer))
