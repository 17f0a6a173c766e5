"""Generated adventures: worlds that can be solved, games that say so themselves, rewards, limits, snapshots, hostile commands."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.adventures import worlds
from envs.adventures.base import Adventure, Record, Rewards, rewards_of
from envs.adventures.inform import Inform
from envs.adventures.machine import command_of, missing
from envs.base import Step, Task
from envs.check import check_env

WITHOUT = " and ".join([*(["inform6"] if shutil.which("inform6") is None else []), *missing()])
engine = pytest.mark.skipif(bool(WITHOUT), reason=f"generated adventures need {WITHOUT}")
HARD = {
    "rooms": [5, 9],
    "treasures": [1, 4],
    "doors": [0, 3],
    "chests": [0, 3],
    "dark": [0, 3],
    "scored_rooms": [1, 3],
    "loops": [0, 2],
}
SMALL = {"rooms": 4, "treasures": 2, "doors": 1, "chests": 1, "dark": 1, "scored_rooms": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all tests of a session, empty at its start."""
    folder = tmp_path_factory.getbasetemp() / "adventures"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def play(env: Adventure, task: Task, actions: Sequence[str], seed: int = 0) -> list[Step]:
    async def all_of_it() -> list[Step]:
        await env.reset(task, seed)
        steps = []
        for action in actions:
            steps.append(await env.step(action))
            if steps[-1].terminated or steps[-1].truncated:
                break
        return steps

    return asyncio.run(all_of_it())


def way(task: Task) -> list[str]:
    assert task.walkthrough
    return [move.action for move in task.walkthrough]


# Worlds


def obeys(world: worlds.World, commands: Sequence[str]) -> tuple[set[str], set[str]]:
    """Follow commands by the rules, independently of the planner: (things held, rooms seen). Raises AssertionError at a wrong one."""
    at, held, unlocked, opened, lit = world.rooms[0], set(), set(), set(), False
    seen = {at}
    for command in commands:
        bright = lit or at not in world.dark
        verb, *rest = command.split()
        if command in worlds.WAYS:
            other = world.exits(at)[command]
            assert not world.door(at, other) or world.door(at, other) in unlocked
            at = other
            if lit or at not in world.dark:
                seen.add(at)
        elif verb == "unlock":
            assert bright
            assert f"{rest[0]} key" in held
            assert rest[0] in {world.door(at, other) for other in world.exits(at).values()}
            unlocked.add(rest[0])
        elif verb == "open":
            assert bright
            assert world.chests[rest[0]] == at
            opened.add(rest[0])
        elif verb == "turn":
            assert worlds.LAMP in held
            lit = True
        else:
            thing = " ".join(rest)
            place = world.places[thing]
            assert verb == "take"
            assert bright
            assert world.room_of(thing) == at
            assert place not in world.chests or place in opened
            held.add(thing)
    return held, seen


def test_every_world_is_solved_by_its_plan() -> None:
    difficulty = worlds.Difficulty(**HARD)
    used = set()
    for seed in range(400):
        world = worlds.draw(difficulty, np.random.default_rng(seed))
        stages = worlds.plan(world)
        held, seen = obeys(world, [stage.command for stage in stages])
        assert set(world.treasures) <= held
        assert set(world.scored) <= seen
        assert (stages[-1].things, stages[-1].rooms) == (len(world.treasures), len(world.scored))
        used |= {stage.command.split()[0] for stage in stages}
    assert used == {"north", "east", "south", "west", "take", "turn", "open", "unlock"}


def test_a_plan_by_hand() -> None:
    world = worlds.World(
        rooms=("hall", "attic", "den"),
        corridors=(("hall", "north", "attic"), ("hall", "east", "den")),
        doors={("hall", "attic"): "red"},
        chests={"box": "hall"},
        places={"lamp": "box", "red key": "den", "ruby": "attic"},
        dark=("den",),
        scored=("den",),
        treasures=("ruby",),
    )
    told = "open box, take lamp, turn on lamp, east, take red key, west, unlock red door, north, take ruby"
    assert [stage.command for stage in worlds.plan(world)] == told.split(", ")
    assert [(stage.things, stage.rooms) for stage in worlds.plan(world)] == [*[(0, 0)] * 3, *[(0, 1)] * 5, (1, 1)]


@pytest.mark.parametrize(
    ("difficulty", "says"),
    [
        ({"rooms": 1}, "rooms must be 2 to 26, or .* not 1"),
        ({"rooms": [5, 3]}, "rooms must be 2 to 26, .* not \\[5, 3\\]"),
        ({"doors": "two"}, "doors must be a whole number or \\[least, most\\], not 'two'"),
        ({"rooms": 3, "doors": 3}, "doors must be fewer than rooms"),
        ({"treasures": 0, "scored_rooms": 0}, "needs something that scores"),
        ({"dragons": 1}, "unexpected keyword argument 'dragons'"),
    ],
)
def test_bad_difficulties_are_told(difficulty: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"inform: difficulty: .*{says}"):
        Inform(difficulty=difficulty)


# Rewards


def test_weights_are_shares_of_one() -> None:
    rewards = rewards_of({"score": 2, "win": 1, "items": {"lamp": 0.5}, "rooms": {"den": 0.5}})
    assert rewards.value(Record(), 10) == 0.0
    assert rewards.value(Record(score=5), 10) == 0.25
    assert rewards.value(Record(score=-50), 10) == -0.5
    assert rewards.value(Record(score=10, won=True, items={"lamp"}, rooms={"den"}), 10) == 1.0
    assert rewards_of({"items": {"lamp": 3}}) == Rewards(score=0.0, items={"lamp": 3})
    assert rewards_of(None) == Rewards()
    for bad, says in (
        ({"score": 0}, "not all 0"),
        ({"win": -1}, "at least 0"),
        ({"gold": 1}, "has the parts"),
        ({"pay": "late"}, "pay is"),
    ):
        with pytest.raises(ValueError, match=says):
            rewards_of(bad)


@engine
def test_items_and_rooms_are_paid_at_the_step_that_earns_them() -> None:
    env = Inform(difficulty=SMALL, rewards={"items": {"lamp": 1.0}, "rooms": {}, "win": 3.0})
    task = env.tasks("train")[0]
    steps = play(env, task, way(task))
    paid = {action: step.reward for action, step in zip(way(task), steps, strict=True) if step.reward}
    assert paid == {"take lamp": 0.25, way(task)[-1]: 0.75}
    assert steps[-1].grade is not None
    assert steps[-1].grade.components["item lamp"] == 1.0

    world, stages = env.world("train", 0)
    room = next(stage.room for stage in stages if stage.room != world.rooms[0])
    first = next(i for i, stage in enumerate(stages) if stage.room == room)
    env = Inform(difficulty=SMALL, rewards={"rooms": {room: 1.0}})
    steps = play(env, task, way(task))
    assert [step.reward for step in steps] == [0.0] * first + [1.0]
    assert steps[-1].terminated  # nothing is left to earn

    late = Inform(difficulty=SMALL, rewards={"score": 1.0, "pay": "end"})
    assert [step.reward for step in play(late, task, way(task))] == [0.0] * (len(stages) - 1) + [1.0]


# Games

QUESTIONS = (
    "sing",
    "take",
    "take key",
    "take red",
    "unlock door",
    "open",
    "put lamp in box",
    "examine me",
    "version",
    "wait",
    "z z z",
)


@engine
@pytest.mark.parametrize("style", ["terse", "prose"])
def test_every_game_gives_its_walkthrough_the_full_score(style: str) -> None:
    env = Inform(difficulty=HARD, style=style)
    for split in ("train", "test"):
        for task in env.tasks(split)[:6]:
            steps = play(env, task, way(task))
            assert len(steps) == len(way(task))
            assert steps[-1].terminated
            assert steps[-1].grade is not None
            assert steps[-1].grade.solved
            assert sum(step.reward for step in steps) == pytest.approx(1.0)
            assert steps[-1].grade.components["score"] == task.meta["top"]
            told = [move.observation for move in task.walkthrough or ()]
            assert [step.observation for step in steps[:-1]] == told[:-1]


@engine
def test_terse_games_speak_few_words_and_say_what_happens() -> None:
    env = Inform(difficulty=HARD)
    words = set(env.words())
    rng = np.random.default_rng(0)
    for task in env.tasks("train")[:6]:
        assert set(str(task.prompt).split()) <= words
        verbs = [
            *task.meta["candidates"],
            "look",
            "inventory",
            "drop lamp",
            "close box",
            "turn off lamp",
            "take all",
            *QUESTIONS,
        ]
        actions = [verbs[int(rng.integers(len(verbs)))] for _ in range(50)]
        for action, step in zip(actions, play(env, task, actions), strict=False):
            if not (step.terminated or step.truncated):
                said = step.observation.replace(":", "") if action == "take all" else step.observation
                assert set(said.split()) <= words, (action, step.observation)


@engine
def test_worlds_that_open_alike_belong_to_one_split() -> None:
    tiny = {"rooms": 2, "treasures": 1, "doors": 0, "chests": 0, "scored_rooms": 0}
    env = Inform(difficulty=tiny)
    openings = {split: {env.world(split, i)[0].opening() for i in range(300)} for split in ("train", "test")}
    assert len(openings["train"]) < 300  # so small that openings repeat
    assert not openings["train"] & openings["test"]


@engine
def test_games_are_the_same_everywhere_and_made_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Inform(difficulty=SMALL).tasks("test")
    assert len(tasks) == 200
    first = tasks[3]
    assert tasks[3] == first == Inform(difficulty=SMALL).tasks("test")[3]
    made = sorted(path.name for path in (cache / "posterior/adventures/inform").iterdir())
    assert f"{first.meta['key']}.z5" in made
    assert not [name for name in made if name.startswith(".")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # a worker elsewhere, with no cache
    env = Inform(difficulty=SMALL)
    assert play(env, pickle.loads(pickle.dumps(first)), way(first))[-1].grade.solved  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "posterior")
    with pytest.raises(ValueError, match="was made with other arguments"):
        play(Inform(difficulty=HARD), first, ["look"])


@engine
def test_conformance() -> None:
    report = asyncio.run(check_env("inform", {"difficulty": SMALL}, samples=6, graded=3))
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]


# Limits


@engine
def test_an_episode_is_cut_and_says_so() -> None:
    env = Inform(difficulty=SMALL, slack=1.0)
    task = env.tasks("train")[0]
    steps = play(env, task, ["look"] * 50)
    assert len(steps) == len(way(task))
    assert steps[-1].truncated
    assert not steps[-1].terminated
    assert steps[-1].grade is not None
    assert steps[-1].grade.note == f"cut after {len(steps)} steps"
    assert not steps[-1].grade.solved

    env = Inform(difficulty=SMALL, context_chars=200)
    steps = play(env, task, ["look"] * 50)
    prompt = len(str(task.prompt))
    shown = [
        prompt + sum(len("look") + len(step.observation) for step in steps[:n]) for n in (len(steps) - 1, len(steps))
    ]
    assert shown[0] < 200 <= shown[1]
    assert steps[-1].truncated
    assert "characters of context" in steps[-1].grade.note  # type: ignore[union-attr]

    env = Inform(difficulty=SMALL, style="prose", observation_chars=40, slack=1.0)
    steps = play(env, env.tasks("train")[0], ["look"] * 50)
    assert {len(step.observation) for step in steps} == {40}
    assert steps[0].observation.endswith(" [...]")
    assert steps[-1].grade.components["observations cut"] == len(steps)  # type: ignore[union-attr]


@engine
def test_admissible_commands_are_those_that_do_something() -> None:
    env = Inform(difficulty=SMALL, admissible=True)
    task = env.tasks("train")[0]
    before = play(Inform(difficulty=SMALL), task, way(task))
    steps = play(env, task, way(task))
    for i, step in enumerate(steps[:-1]):
        listed = step.info["admissible"]
        assert way(task)[i + 1] in listed
        assert step.observation.split("\n") == [before[i].observation, f"commands : {' , '.join(listed)}"]
    task = env.tasks("train")[0]  # what is learnt from a walkthrough reads the same
    assert [move.observation for move in task.walkthrough or ()][:-1] == [step.observation for step in steps[:-1]]
    assert str(task.prompt).split("\n")[1].startswith("commands : ")
    for command in steps[0].info["admissible"]:
        assert play(Inform(difficulty=SMALL), task, [way(task)[0], command])[-1].observation != "no"
    assert set(" ".join(step.observation for step in steps[:-1]).split()) <= set(env.words())


# Snapshots


@engine
@pytest.mark.parametrize("style", ["terse", "prose"])
def test_branches_from_a_snapshot_are_whole_episodes(style: str) -> None:
    env = Inform(difficulty=HARD, style=style, rewards={"score": 1.0, "items": {"lamp": 0.5}})
    task, other = env.tasks("train")[:2]
    actions = way(task)
    whole = play(env, task, actions)

    async def branch() -> None:
        for at in (0, 3, len(actions) - 1):
            await env.reset(task, 0)
            for action in actions[:at]:
                await env.step(action)
            state = env.snapshot()
            for action in actions[at:]:  # to the end, and back again
                await env.step(action)
            elsewhere = Inform(difficulty=HARD, style=style, rewards={"score": 1.0, "items": {"lamp": 0.5}})
            await elsewhere.reset(other, 0)
            await elsewhere.step("look")
            for instance in (
                env,
                elsewhere,
                Inform(difficulty=HARD, style=style, rewards={"score": 1.0, "items": {"lamp": 0.5}}),
            ):
                instance.restore(state)
                assert [await instance.step(action) for action in actions[at:]] == whole[at:]
                instance.restore(state)
                assert (await instance.step("look")).reward == 0.0

    asyncio.run(branch())
    with pytest.raises(RuntimeError, match="before reset"):
        Inform().snapshot()


# Hostile commands


def test_one_command_reaches_the_game() -> None:
    assert command_of("  Take Lamp \n north") == "take lamp"
    assert command_of("take lamp. north. take ruby") == "take lamp"
    assert command_of("take lamp then north") == "take lamp"
    assert command_of("\n\n> look") == "look"
    assert command_of("unlock chest with brass key") == "unlock chest with brass key"
    assert command_of("take lamp, ruby") == "take lamp, ruby"
    assert command_of("$verify #record \x00\ud800") == ""
    assert len(command_of("a " * 100_000)) <= 120
    for forbidden in ("save", "RESTORE", "quit", "restart", " script", "undo", "Q", "#restore", ".save", "replay"):
        assert command_of(forbidden) == ""


@engine
def test_nothing_reaches_past_the_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = Inform(difficulty=SMALL)
    task = env.tasks("train")[0]
    before = [step.observation for step in play(env, task, ["look"])]
    for text in (
        "save\nx\n",
        "script",
        "#restore",
        "quit",
        "restart",
        "undo",
        "save game. look",
        "say save",
        "oops",
        "again",
        "x" * 9999,
    ):
        steps = play(env, task, [text, "y", "look"])
        assert steps[-1].observation == before[0], text
        assert not any(step.terminated or step.reward for step in steps)
    assert list(tmp_path.iterdir()) == []


@engine
def test_ready_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Inform().ready()
    real: Callable[..., str | None] = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "inform6" else real(name))
    with pytest.raises(
        RuntimeError, match=r"inform needs inform6 \(apt-get install inform6-compiler inform6-library\)$"
    ):
        Inform().ready()


@pytest.mark.slow
@engine
def test_a_sample_of_the_five_thousand() -> None:
    """`python -m benchmarks.adventures --games 5000` plays them all."""
    from benchmarks.adventures import LEVELS, prove

    for level in LEVELS:
        figures = prove(level, 60)
        assert figures.solved == figures.games == 60
        assert figures.shared_openings == 0
