"""The engines behind text adventures: the Z-machine reader, story files of anybody's, TextWorld and TextWorld-Express."""

from __future__ import annotations

import asyncio
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_adventures import SMALL, engine, play, way

from envs.adventures import machine, store
from envs.adventures.express import TextWorldExpress
from envs.adventures.inform import Inform
from envs.adventures.machine import Machine, clean, seed_of
from envs.adventures.story import Story
from envs.adventures.textworld import TextWorld
from envs.adventures.zcode import Story as StoryFile
from envs.check import check_env

ZORK = Path(os.environ.get("POSTERIOR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "games/zork1/zork1.z3"
zork = pytest.mark.skipif(not ZORK.exists(), reason=f"there is no story file {ZORK}")
jericho = pytest.mark.skipif(bool(machine.missing()), reason="needs jericho")
textworld = pytest.mark.skipif(
    bool(machine.missing()) or find_spec("textworld") is None, reason="needs textworld and jericho"
)
express = pytest.mark.skipif(
    shutil.which("java") is None or find_spec("textworld_express") is None, reason="needs Java and textworld-express"
)
INTO_THE_CELLAR = [
    *(
        "north",
        "east",
        "open window",
        "west",
        "west",
        "take lamp",
        "move rug",
        "open trap door",
        "turn on lamp",
        "down",
    ),
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "adventures"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def generated(cache: Path) -> dict[str, Any]:
    """One of our own games as if it were anybody's story file."""
    task = Inform(difficulty=SMALL, style="prose").tasks("train")[0]
    path = cache / "posterior/adventures/inform" / f"{task.meta['key']}.z5"
    return {"path": str(path), "goal": task.meta["top"], "walkthrough": way(task)}


# The Z-machine


def test_answers_without_prompt_and_status_line() -> None:
    assert clean("\nTaken.\n\n>        Hall        Score: 4  Moves: 7") == "Taken."
    assert clean(">\nYou  are\n\n here. \n>") == "You are\nhere."
    assert clean("West of House   Score: 0        Moves: 0\n\nHello") == "Hello"
    assert clean("\n\n>") == ""


def test_what_is_no_story_is_told(tmp_path: Path) -> None:
    for content in (b"", b"\x05" + bytes(20), b"MZ" + bytes(100), b"\x06" + bytes(100)):
        with pytest.raises(ValueError, match="is not a Z-machine story of version 3, 4, 5, 7 or 8"):
            StoryFile(content)
    StoryFile(b"\x05" + bytes(100))  # empty tables do not raise
    with pytest.raises(ValueError, match=r"story: there is no file .*nowhere\.z5"):
        list(Story(path=str(tmp_path / "nowhere.z5")).tasks("train"))


@engine
def test_names_and_places_of_objects(generated: dict[str, Any]) -> None:
    game = Machine()
    game.load(Path(generated["path"]), seed_of(0))
    names = [game.name(i) for i in range(1, game.story.objects + 1)]
    assert {"lamp", "(self object)"} <= set(names)
    assert game.name(0) == game.name(9999) == ""
    assert game.inside("(self object)") == []
    game.send("take lamp")
    assert game.inside("(self object)") == ["lamp"]
    assert game.story.knows("lamp")
    assert not game.story.knows("xyzzyx")


@engine
def test_machines_in_one_process_do_not_disturb_one_another(generated: dict[str, Any]) -> None:
    story = Path(generated["path"])
    alone = Machine()
    alone.load(story, seed_of(0))
    expected = [alone.send(command) for command in generated["walkthrough"]]
    machines = [Machine() for _ in range(20)]
    for game in machines:
        game.load(story, seed_of(0))
    for i, command in enumerate(generated["walkthrough"]):
        for late, game in enumerate(machines):  # each is a move behind the one before it
            if i >= late:
                assert game.send(generated["walkthrough"][i - late]) == expected[i - late], command
    del machines[::2]  # whose libraries are unloaded
    for game in machines:
        game.load(story, seed_of(0))
        assert [game.send(command) for command in generated["walkthrough"]] == expected


@engine
def test_playing_many_games_keeps_no_memory() -> None:
    env = Inform(difficulty=SMALL)
    tasks = env.tasks("train")[:4]
    me = psutil.Process()
    for _ in range(50):
        play(env, tasks[0], ["look"])
    before = me.memory_info().rss
    for i in range(400):
        play(env, tasks[i % 4], ["look"])
    assert me.memory_info().rss - before < 4 * 2**20


@engine
def test_a_restored_game_goes_on_after_its_end(generated: dict[str, Any]) -> None:
    game = Machine()
    game.load(Path(generated["path"]), seed_of(0))
    for command in generated["walkthrough"][:-1]:
        game.send(command)
    state = game.state()
    end = game.send(generated["walkthrough"][-1])
    game.restore(state)
    assert game.send(generated["walkthrough"][-1]) == end
    other = Machine()
    other.load(Path(generated["path"]), seed_of(5))
    other.restore(state)
    assert other.send(generated["walkthrough"][-1]) == end


# Story files


@engine
def test_a_game_of_our_own_as_a_story_file(generated: dict[str, Any]) -> None:
    env = Story(**generated)
    env.ready()
    task = env.tasks("train")[0]
    steps = play(env, task, way(task))
    assert steps[-1].terminated
    assert steps[-1].grade is not None
    assert steps[-1].grade.solved
    assert asyncio.run(check_env("story", generated, samples=2, graded=2))["ok"]
    assert Story(path=generated["path"]).tasks("train")[0].meta["top"] == generated["goal"]  # "out of a possible ..."
    assert env.splits() == ("train",)
    assert Story(path=generated["path"], test=[generated["path"]]).splits() == ("train", "test")


@engine
def test_a_story_whose_counters_cannot_be_read_is_refused(generated: dict[str, Any], tmp_path: Path) -> None:
    content = bytearray(Path(generated["path"]).read_bytes())
    content[0x0C:0x0E] = (int.from_bytes(content[0x0C:0x0E], "big") + 60).to_bytes(
        2, "big"
    )  # what we read, and what the game does
    moved = tmp_path / "moved.z5"
    moved.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"story: .*moved.z5: room, score and moves were not found"):
        Story(path=str(moved)).ready()


def test_bad_arguments_of_story() -> None:
    for args, says in (
        ({"path": []}, "give path"),
        ({"path": "a.z5", "goal": 0}, "goal must be at least 1"),
        ({"path": ["a.z5", "b.z5"], "walkthrough": ["look"]}, "belongs to one file"),
        ({"path": "a.z5", "max_steps": 0}, "max_steps of at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            Story(**args)


@jericho
@zork
def test_zork_by_its_memory() -> None:
    env = Story(
        path=str(ZORK),
        goal=35,
        walkthrough=INTO_THE_CELLAR,
        rewards={"score": 1, "items": {"lantern": 1}, "rooms": {"cellar": 2}},
    )
    env.ready()
    task = env.tasks("train")[0]
    assert "West of House" in str(task.prompt)
    assert "Copyright" not in str(task.prompt)
    steps = play(env, task, INTO_THE_CELLAR)
    gained = {command: step.reward for command, step in zip(INTO_THE_CELLAR, steps, strict=True) if step.reward}
    assert gained["west"] == pytest.approx(10 / 35 / 4)  # the kitchen is worth 10 points
    assert gained["take lamp"] == pytest.approx(1 / 4)
    assert gained["down"] == pytest.approx(25 / 35 / 4 + 2 / 4)
    assert steps[-1].grade is not None
    assert steps[-1].grade.components["score"] == 35
    assert steps[-1].terminated
    assert Story(path=str(ZORK)).tasks("train")[0].meta["top"] == 350


@jericho
@zork
def test_zork_is_the_same_at_the_same_seed_and_another_at_another() -> None:
    env = Story(path=str(ZORK))
    task = env.tasks("train")[0]
    fight = [*INTO_THE_CELLAR[:5], "take sword", *INTO_THE_CELLAR[5:], "north", *["kill troll with sword"] * 6]
    first, same, *others = ([step.observation for step in play(env, task, fight, seed)] for seed in (7, 7, 1, 2, 3))
    assert first == same
    assert any(first != other for other in others)


@jericho
@zork
def test_zork_tells_what_can_be_done() -> None:
    env = Story(path=str(ZORK), admissible=True)
    task = env.tasks("train")[0]
    plain = play(Story(path=str(ZORK)), task, INTO_THE_CELLAR)
    steps = play(env, task, INTO_THE_CELLAR)
    assert [step.observation.rsplit("\n", 1)[0] for step in steps] == [step.observation for step in plain]
    assert {"east", "take elvish", "open trophy"} <= set(steps[4].info["admissible"])
    assert "down" in steps[8].info["admissible"]
    assert "down" not in steps[5].info["admissible"]


# TextWorld


def test_bad_arguments_of_the_generators() -> None:
    for cls, args, says in (
        (TextWorld, {"kind": "chess"}, "kind is one of quest, .* not 'chess'"),
        (TextWorld, {"settings": {"levels": 3}}, "treasure_hunter has no setting 'levels'; it takes level"),
        (TextWorld, {"games": {"train": 0}}, "at least 1"),
        (TextWorldExpress, {"kind": "chess"}, "kind is one of cookingworld, .* not 'chess'"),
        (TextWorldExpress, {"slack": 0.5}, "slack is at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            cls(**args)


def test_what_is_missing_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("envs.adventures.textworld", "envs.adventures.express", "envs.adventures.machine"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for env, says in (
        (TextWorld(), "textworld needs jericho .*build-essential.* and textworld .pip install textworld==1.7.0.$"),
        (
            TextWorldExpress(),
            "textworld_express needs Java .apt-get install openjdk-17-jre-headless. and textworld-express .pip",
        ),
        (Story(path="a.z5"), "story needs jericho .pip install jericho==3.3.1"),
        (Inform(), "inform needs inform6 .* and jericho"),
    ):
        with pytest.raises(RuntimeError, match=says):
            env.ready()


@pytest.mark.slow
@textworld
@pytest.mark.parametrize(
    ("kind", "settings"), [("treasure_hunter", {"level": 3}), ("cooking", {}), ("quest", {"quest_length": 3})]
)
def test_textworld_games(kind: str, settings: dict[str, int]) -> None:
    args: dict[str, Any] = {"kind": kind, "settings": settings, "games": {"train": 2, "test": 2}}
    env = TextWorld(**args)
    env.ready()
    train, test = list(env.tasks("train")), list(env.tasks("test"))
    assert not {str(task.prompt) for task in train} & {str(task.prompt) for task in test}
    listing = TextWorld(**args, admissible=True)
    for task in [*train, *test]:
        steps = play(env, task, way(task))
        assert steps[-1].terminated
        assert steps[-1].grade is not None
        assert steps[-1].grade.solved
        assert [step.observation for step in steps[:-1]] == [move.observation for move in task.walkthrough or ()][:-1]
        for step, following in zip(play(listing, task, way(task)), way(task)[1:], strict=False):
            assert following in step.info["admissible"]

    async def branch() -> None:
        task = train[0]
        for source in (env, listing):
            await source.reset(task, 0)
            await source.step(way(task)[0])
            state = source.snapshot()
            rest = [await source.step(action) for action in way(task)[1:]]
            source.restore(state)
            assert [await source.step(action) for action in way(task)[1:]] == rest

    asyncio.run(branch())
    files = [path.suffix for path in store.folder("textworld").iterdir()]
    assert files.count(".z8") == files.count(".proof") == files.count(".json")
    assert asyncio.run(check_env("textworld", args, samples=2, graded=2))["ok"]


@express
def test_express_games() -> None:
    args: dict[str, Any] = {"kind": "coin", "settings": {"numLocations": 3}, "games": {"train": 6, "test": 6}}
    env = TextWorldExpress(**args, admissible=True)
    env.ready()
    task = env.tasks("test")[0]
    steps = play(env, task, way(task))
    assert steps[-1].terminated
    assert steps[-1].grade is not None
    assert steps[-1].grade.solved
    assert way(task)[1] in steps[0].info["admissible"]
    assert play(env, task, ["dance"] * 50)[-1].truncated

    async def branch() -> None:
        await env.reset(task, 0)
        await env.step(way(task)[0])
        state = env.snapshot()
        rest = [await env.step(action) for action in way(task)[1:]]
        other = TextWorldExpress(**args, admissible=True)
        for instance in (env, other):
            instance.restore(state)
            assert [await instance.step(action) for action in way(task)[1:]] == rest

    asyncio.run(branch())
    with pytest.raises(ValueError, match="textworld_express: "):
        TextWorldExpress(settings={"numDragons": 3}).ready()


@pytest.mark.slow
@express
@pytest.mark.parametrize(
    "kind", ["cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder"]
)
def test_every_kind_of_express_game_conforms(kind: str) -> None:
    report = asyncio.run(
        check_env("textworld_express", {"kind": kind, "games": {"train": 10, "test": 10}}, samples=10, graded=4)
    )
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
