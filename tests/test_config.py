"""Loading configurations: merging, places in errors, suggestions, and the round trip through YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from posterior.config import RunConfig
from posterior.config_load import COMMAND_LINE, DEFAULT, ConfigError, describe, dump, load, parse_words


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def fails(path: Path | None, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, words)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "c.yaml")


def test_defaults_file_and_words_win_in_that_order(write) -> None:
    path = write("name: mine\ntrain:\n  steps: 7\n  optimiser:\n    lr: 3e-4\n")
    resolved = load(path, ["train.steps=9", "train.optimiser.betas=[0.5, 0.6]"])
    assert resolved.config.train.steps == 9
    assert resolved.config.train.optimiser.lr == 3e-4
    assert resolved.config.train.optimiser.betas == (0.5, 0.6)
    assert resolved.sources["name"] == f"{path}:1"
    assert resolved.sources["train.optimiser.lr"] == f"{path}:5"
    assert resolved.sources["train.steps"] == COMMAND_LINE
    assert resolved.sources["train.batch_groups"] == DEFAULT


def test_no_file_gives_the_defaults() -> None:
    resolved = load(None, [])
    assert resolved.config == RunConfig()
    assert set(resolved.sources.values()) == {DEFAULT}


def test_empty_sections_and_files_change_nothing(write) -> None:
    assert load(write(""), []).config == RunConfig()
    assert load(write("train:\n  # steps: 3\nname: run\n"), []).config == RunConfig()


def test_free_mappings_are_taken_whole_from_the_file_and_set_key_by_key_by_words(write) -> None:
    path = write("reward: {length: 0.5}\nalgorithm:\n  group_size: 4\n")
    resolved = load(path, ["algorithm.clip_low=0.1"])
    assert resolved.config.reward == {"length": 0.5}
    assert resolved.config.algorithm == {"name": "rlvr", "group_size": 4, "clip_low": 0.1}
    assert resolved.sources["algorithm.group_size"] == f"{path}:3"
    assert load(None, ["reward.length=0.5"]).config.reward == {"env": 1.0, "length": 0.5}


def test_optional_section(write) -> None:
    lora = load(write("model:\n  lora: {}\n"), []).config.model.lora
    assert lora is not None
    assert lora.rank == 16
    resolved = load(None, ["model.lora.rank=4"])
    assert resolved.config.model.lora is not None
    assert resolved.config.model.lora.rank == 4
    assert resolved.sources["model.lora.rank"] == COMMAND_LINE
    assert load(write("model:\n  lora: {rank: 4}\n"), ["model.lora=null"]).config.model.lora is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n\n  stepz: 3\n", "c.yaml:3: train.stepz is not a known key; did you mean train.steps?"),
        ("lr: 0.1\n", "c.yaml:1: lr is not a known key; did you mean train.optimiser.lr?"),
        ("train:\n  steps: many\n", "c.yaml:2: train.steps must be a whole number, not many"),
        ("train:\n  steps: true\n", "c.yaml:2: train.steps must be a whole number, not true"),
        ("train:\n  steps: 0\n", "c.yaml:2: train.steps must be above 0, not 0"),
        ("train:\n  optimiser: {lr: .nan}\n", "c.yaml:2: train.optimiser.lr must be above 0, not .nan"),
        ("train: 3\n", "c.yaml:1: train must be a mapping of keys to values, not 3"),
        ("model:\n  dtype: fp8\n", "c.yaml:2: model.dtype must be 'float32' or 'bfloat16', not fp8"),
        (
            "model:\n  lora:\n    targets: 3\n",
            "c.yaml:3: model.lora.targets must be a list or 'all-linear', not 3",
        ),
        ("name: 12\n", "c.yaml:1: name must be text, not 12; put it in quotes"),
        ("eval:\n  splits: [test, 3]\n", "c.yaml:2: eval.splits.1 must be text, not 3; put it in quotes"),
        ("seed: 1\nseed: 2\n", "c.yaml:2: seed is given twice"),
        ("1: 2\n", "c.yaml:1: the key '1' must be text; put it in quotes"),
        ("- a\n", "c.yaml:1: a configuration is a mapping of keys to values"),
        ("a: [\n", "c.yaml:2: this is not YAML: expected the node content, but found '<stream end>'"),
        ("name: !!binary aGk=\n", "c.yaml:1: name must be text, a number, true, false, null, a list or a mapping"),
    ],
)
def test_errors_name_place_key_value_and_mend(write, text: str, message: str) -> None:
    assert fails(write(text)) == message


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.stepz=3", "command line: train.stepz is not a known key; did you mean train.steps?"),
        ("train.steps=x", "command line: train.steps must be a whole number, not x"),
        ("train", "'train' is not of the form key.subkey=value, for example train.steps=50"),
        ("=3", "'=3' is not of the form key.subkey=value, for example train.steps=50"),
        ("seed.x=3", "command line: seed is a value and has no key x"),
        ("sampling.top_p=1.5", "command line: sampling.top_p must be at most 1, not 1.5"),
        ("algorithm.group_sise=3", "algorithm.group_sise is not a known key; did you mean algorithm.group_size?"),
        ("algorithm.name=rlvf", "no algorithm is called 'rlvf'; did you mean rlvr?"),
        ("algorithm.name=3", "algorithm.name must be text, not 3"),
        ("eval={every: 0, flops: 1e9}", "eval: every is 0, which means no evaluation, also none by flops; set every to a number of steps"),
        ("eval.anchoring=3", "eval: anchoring is measured of the thoughts that are drawn: set thoughts to 3 or more"),
    ],
)  # fmt: skip
def test_errors_of_words(word: str, message: str) -> None:
    assert fails(None, word).removeprefix("command line: ") == message.removeprefix("command line: ")


def test_options_of_method_and_environment_are_checked_where_they_stand(write) -> None:
    path = write("env:\n  name: coding\n  args:\n    sede: 3\nalgorithm:\n  tis_cap: 2.0\n")
    assert fails(path).startswith("c.yaml:5: algorithm: tis_cap needs")
    path = write("env:\n  name: coding\n  args:\n    sede: 3\n")
    message = fails(path)
    assert message.startswith("c.yaml:4: ")
    assert "'sede'" in message
    assert "'seed'" in message
    assert "codign" in fails(None, "env.name=codign")


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in fails(tmp_path / "absent.yaml")


def test_dates_stay_text_and_merge_keys_work(write) -> None:
    assert load(write("name: 2026-01-01\n"), []).config.name == "2026-01-01"
    path = write("reward:\n  env: &shape {a: 1, b: 2}\n  other:\n    <<: *shape\n    b: 3\n")
    assert load(path, []).config.reward == {"env": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}}


def test_describe_lists_every_value_with_its_source(write) -> None:
    path = write("train:\n  steps: 7\n")
    lines = describe(load(path, ["seed=3"])).splitlines()
    table = {line.split()[0]: line for line in lines}
    assert table["train.steps"].split()[1:] == ["7", f"{path}:2"]
    assert table["seed"].split()[1:] == ["3", "command", "line"]
    assert table["train.optimiser.betas"].split("  ")[-1].strip() == DEFAULT
    assert "algorithm.clip_high" in table, "options of the method that nobody gave are shown too"
    starts = {line.index(line.split("  ")[-1].strip(), 20) for line in lines if line.endswith(DEFAULT)}
    assert len(starts) == 1, "the sources are aligned"


def test_parse_words() -> None:
    assert parse_words(["tasks=a.jsonl", "limits.cpu=2", "list=[1, x]", "none="]) == {
        "tasks": "a.jsonl",
        "limits": {"cpu": 2},
        "list": [1, "x"],
        "none": None,
    }


texts = st.text(st.characters(codec="utf-8"), max_size=12)
keys = texts.filter(lambda key: key not in ("<<", "="))  # both mean something else in YAML
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=texts,
    lr=st.floats(min_value=1e-300, max_value=1e300, exclude_min=True),
    steps=st.integers(1, 10**12),
    reward=st.dictionaries(keys, plain, max_size=3),
)
@example(name="0E0", lr=1e-8, steps=1, reward={"2026-01-01": "1e5", "on": "no"})
def test_a_resolved_configuration_survives_the_round_trip(tmp_path_factory, name, lr, steps, reward) -> None:
    config = RunConfig(name=name, reward=reward)
    config.train.optimiser.lr = lr
    config.train.steps = steps
    path = tmp_path_factory.mktemp("c") / "config.yaml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    assert load(path, []).config == config
