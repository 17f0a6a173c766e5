"""`posterior label`, driven through a pseudo-terminal as a person would."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.reward import without_thought
from actors.types import Group, SamplingParams
from algorithms.base import Context
from algorithms.reward_model import RewardModel, RewardModelConfig
from envs.base import Prompt, Task
from envs.graded import Graded
from models.chat import ChatFormat
from models.loading import load_tokenizer
from models.scratch import write_model
from models.trace import Kind, Trace
from posterior.embedded import path as embedded
from posterior.label import Labels, read_items
from posterior.recorder import Recorder

ROOT = Path(__file__).resolve().parent.parent
CONTEXT, THOUGHT, ACTION = 0, 1, 3


def trace(episode: str, answer: str) -> dict[str, Any]:
    return {
        "episode": episode,
        "answer": answer,
        "tokens": ["prompt", "<think>", "secret-thought", "</think>", answer, " end"],
        "kind": [CONTEXT, THOUGHT, THOUGHT, THOUGHT, ACTION, ACTION],
        "reward": 0.87654,
        "components": {"tests": 0.87654},
        "note": "secret-note",
        "passed": True,
        "outcome": "ok",
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    traces = tmp_path / "run" / "traces"
    traces.mkdir(parents=True)
    for step in range(2):
        group = {
            "step": step,
            "task": f"task{step}",
            "prompt": f"Question {step}?",
            "traces": [trace(f"e{step}{i}", f"answer-{step}{i}\u2028") for i in range(2)],
        }
        (traces / f"step_{step:06}.jsonl").write_text(json.dumps(group, ensure_ascii=False) + "\n")
    return tmp_path / "run"


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.main, child = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "posterior", "label", *words],
            cwd=ROOT,
            stdin=child,
            stdout=child,
            stderr=child,
            close_fds=True,
            start_new_session=True,
        )
        os.close(child)
        self.shown = ""

    def expect(self, text: str) -> str:
        """Read until `text` is shown; returns what was shown since the last time."""
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.main], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.main, 65536).decode()
                except OSError:  # the program has closed its side
                    break
        assert text in self.shown, self.shown
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def press(self, key: str) -> str:
        """Wait for the prompt, press a key; returns the page it answered."""
        page = self.expect("q quit > ")
        os.write(self.main, key.encode())
        return page

    def end(self) -> int:
        self.expect(".jsonl")
        code = self.process.wait(10)
        os.close(self.main)
        return code


def rows(run_dir: Path, rater: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "labels" / f"{rater}.jsonl").read_text().splitlines()]


def test_a_person_grades_skips_undoes_quits_and_goes_on(run_dir: Path) -> None:
    terminal = Terminal(str(run_dir), "--rater", "ada")
    pages = [terminal.press("x4")]  # x means nothing and is ignored
    pages.append(terminal.press("2"))
    assert "1 of 4 graded" in pages[1]
    again = terminal.press("u")  # takes the 2 back: the second answer is shown again
    assert "2 of 4 graded" in again
    assert body(terminal.press("5")) == body(pages[1])
    assert body(terminal.press("s")) == body(again)
    pages.append(terminal.press("q"))
    assert terminal.end() == 0
    first = rows(run_dir, "ada")
    assert [row["score"] for row in first] == [4, 5]
    assert set(first[0]) == {"task", "episode", "prompt", "answer", "score", "rater", "time"}
    assert first[0]["rater"] == "ada"
    for page in pages:
        assert "Question" in page
        assert "answer-" in page
        for hidden in ("secret", "0.87654", "step_", "passed"):
            assert hidden not in page

    terminal = Terminal(str(run_dir), "--rater", "ada")
    assert "2 of 4 graded" in terminal.press("1")
    terminal.press("3")
    assert terminal.end() == 0
    final = rows(run_dir, "ada")
    assert final[:2] == first
    assert {row["episode"] for row in final} == {"e00", "e01", "e10", "e11"}
    answers = {row["episode"]: row["answer"] for row in final}
    assert answers["e01"] == "answer-01\u2028"


def body(page: str) -> str:
    return page.split("graded", 1)[1]


def test_raters_get_orders_of_their_own(run_dir: Path) -> None:
    orders = set()
    for rater in ("ada", "bob", "cyd", "dan", "eve"):
        terminal = Terminal(str(run_dir), "--rater", rater, "--env-scale", "0..1")
        for _ in range(4):
            terminal.press("1")
        assert terminal.end() == 0
        orders.add(tuple(row["episode"] for row in rows(run_dir, rater)))
    assert len(orders) > 1


def test_hostile_answers_do_not_steer_the_terminal(run_dir: Path) -> None:
    group = {"task": "t", "prompt": "p", "traces": [trace("e", "\x1b[2Jclear\x07")]}
    for path in (run_dir / "traces").iterdir():
        path.unlink()
    (run_dir / "traces" / "step_000000.jsonl").write_text(json.dumps(group) + "\n")
    terminal = Terminal(str(run_dir), "--rater", "ada")
    page = terminal.press("q")
    terminal.end()
    assert "\x1b" not in page
    assert "\x07" not in page
    assert "clear" in page


def test_a_line_that_is_still_being_written_is_left_out(run_dir: Path) -> None:
    path = run_dir / "traces" / "step_000001.jsonl"
    path.write_text(path.read_text() + '{"task": "cut')
    assert len(list(read_items(run_dir / "traces"))) == 4
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match=r"step_000001\.jsonl:2: not a group of traces"):
        list(read_items(run_dir / "traces"))


# ---- from the run to the reward model


def sampled(chat: ChatFormat, prompt: Prompt, turns: list[str], episode: str, thought: str = "") -> Trace:
    """An episode that says these answers, each ended, with an observation between them."""
    parts = [(chat.prompt_ids(prompt).tolist(), Kind.CONTEXT, 0)]
    for i, text in enumerate(turns):
        parts += [(chat.turn_ids("a", True).tolist(), Kind.CONTEXT, i)] if i else []
        parts += [(chat.ids(thought), Kind.THOUGHT, i), (chat.emission_ids((), text).tolist(), Kind.ACTION, i)]
    token = [one for ids, _, _ in parts for one in ids]
    kind = np.array([kind for ids, kind, _ in parts for _ in ids])
    turn = [turn for ids, _, turn in parts for _ in ids]
    logprob = np.where(kind == Kind.CONTEXT, np.nan, -0.5)
    return Trace(np.array(token), kind, logprob, np.zeros(len(kind)), np.array(turn), "t", "g", episode)


@pytest.mark.parametrize("model", ["words", "embedded"])
def test_a_reward_model_reads_a_graded_answer_as_it_was_sampled(tmp_path: Path, model: str) -> None:
    """Recorder, label, `graded`, reward model: prompt, answer and end come back token for token."""
    if model == "words":
        folder = write_model(tmp_path / "m", ["a", "wing", "awakening", "?"], layers=1, width=16, heads=1, length=16)
        prompt: Prompt = "a wing ?"
        answer, thought = "wing awakening ?", "a a"
    else:
        folder = embedded()
        prompt = [{"role": "user", "content": "Double it. ☃"}, {"role": "assistant", "content": "def"}]
        prompt = [*prompt, {"role": "user", "content": "Go on."}]
        answer, thought = "def f(n):\n    return 2 * n  # ☃ é", "<think>double it</think>"
    chat = ChatFormat(load_tokenizer(str(folder)))
    said = sampled(chat, prompt, [answer], "e0", thought)
    lost, given = sampled(chat, prompt, [], "e1"), Trace.from_target([4], [5], "e2")
    lost.outcome = "infra"
    talk = sampled(chat, prompt, [answer, "a"], "e3", thought)
    run = tmp_path / "run"
    run.mkdir()
    recorder = Recorder(run, "run", str(folder))
    recorder.traces("step_000000", 0, [Group(Task("t", prompt), [said, lost, given, talk])])

    items = list(read_items(run / "traces"))
    assert [(item.episode, item.prompt, item.answer) for item in items] == [
        ("e0", prompt, answer),
        ("e3", prompt, f"{answer}\na"),
    ]
    labels = Labels(run / "labels" / "ada.jsonl", "ada")
    labels.add(items[0], 4)
    env = Graded(str(run / "labels"))
    (task,) = env.items
    assert task.prompt == prompt
    assert env.grade(Task("again", prompt), answer).note == "1 grades"
    method = RewardModel(
        RewardModelConfig(name="reward_model", mean=0.0, std=1.0), Context(str(folder), SamplingParams(), 0)
    )
    example = method.example(task, 0, 0)
    assert example.token.tolist() == said.token[without_thought(said)[0]].tolist()
    assert example.meta["scores"] == [4.0]


def test_traces_of_an_older_version_are_refused(run_dir: Path) -> None:
    path = run_dir / "traces" / "step_000000.jsonl"
    path.write_text(path.read_text().replace('"answer": ', '"other": '))
    with pytest.raises(ValueError, match="an older version wrote it, without the text of the answers"):
        list(read_items(run_dir / "traces"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env-scale", "5..1"], "the scale '5..1' must be LOW..HIGH"),
        (["--rater", "../x"], "the rater's name '../x' must be"),
        ([], "needs a terminal"),
    ],
)
def test_misuse_is_one_sentence(run_dir: Path, words: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "posterior", "label", str(run_dir), *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
