"""Load a run configuration: defaults, then a YAML file, then `a.b=c` words; every value knows where it came from.

Fixed sections are merged key by key. The three mappings without fixed keys (`algorithm`, `reward`, `env.args`) are
taken from the file as a whole, except that `algorithm.name` keeps its default where the file is silent; words set
single keys. Relative paths inside a configuration mean relative to the current directory, not to the file; only a warm start's
(`model.path` with the name of a configuration) is also looked for beside the file, and made absolute.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from posterior.config import RunConfig

DEFAULT = "default"
COMMAND_LINE = "command line"
FREE = (("algorithm",), ("reward",), ("env", "args"))
"""Mappings whose keys the configuration itself does not know."""

Keys = tuple[str, ...]
M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one sentence naming the place and the mend."""


@dataclass(frozen=True)
class Resolved:
    """A validated configuration.

    config: the values. sources: dotted key of every leaf to "default", "FILE:LINE" or "command line".
    implied: options of the method and of the environment that nobody gave, dotted key to value. They are shown, not
    stored: a method may tell an option that was given from one that was not.
    """

    config: RunConfig
    sources: dict[str, str]
    implied: dict[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 is a number and a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load(
    path: Path | None, words: Sequence[str] = (), settings: Mapping[str, tuple[Any, str]] | None = None
) -> Resolved:
    """Merge defaults, the file at `path` (None: no file), settings and `a.b=c` words; later ones win. Raises ConfigError.

    settings: dotted key to a value and the place that gave it.
    """
    tree: dict[str, Any] = RunConfig().model_dump(mode="json")
    given: dict[Keys, str] = {}
    if path is not None:
        _merge(tree, _read(path, given), ())
    for name, (value, place) in (settings or {}).items():
        keys = tuple(name.split("."))
        given[keys] = place
        _set(tree, keys, value, place)
    for word in words:
        _set(tree, *_parse_word(word, given))
    _refuse_unknown(RunConfig, tree, (), given)
    config = _validate(RunConfig, tree, (), given)
    config.model.path = _absolute(config.model.path, path)
    if config.reward_model.path is not None:
        config.reward_model.path = _absolute(config.reward_model.path, path)
    implied = _algorithm_options(config.algorithm, given) | _env_options(config, given)
    sources = {".".join(keys): given.get(keys, DEFAULT) for keys, _ in _leaves(config.model_dump(mode="json"))}
    return Resolved(config, sources, implied)


def is_configuration(path: str) -> bool:
    """Whether a `model.path` names a run's configuration instead of a model."""
    return path.endswith(".yaml")


def _absolute(name: str, file: Path | None) -> str:
    """A configuration's path found in the current directory, or else beside `file`; anything else as it is."""
    places = [Path(name), *([file.parent / name] if file is not None else [])] if is_configuration(name) else []
    return next((str(place.absolute()) for place in places if os.path.isfile(place)), name)


def load_as(model: type[M], path: Path, words: Sequence[str] = ()) -> tuple[M, dict[Keys, str]]:
    """A file of another kind, such as a search, with `a.b=c` words over it: its values, and the place of every key given."""
    given: dict[Keys, str] = {}
    tree = _read(path, given)
    for word in words:
        _set(tree, *_parse_word(word, given))
    _refuse_unknown(model, tree, (), given, model)
    return _validate(model, tree, (), given), given


def run_keys_in_place(path: Path, what: str, own: Sequence[str]) -> None:
    """A section of the run written beside `base` is a likely mistake with a better answer than "not a known key".

    what: the file is, such as "a search"; own: its keys. Raises ConfigError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return  # the loader says it
    for number, line in enumerate(lines, 1):
        key = re.match(r"([a-z]+)\s*:", line)
        if key and key[1] in RunConfig.model_fields and key[1] not in own:
            raise ConfigError(
                f"{path}:{number}: {key[1]} is a key of a run, not of {what}; write it under set with a dotted key, such as "
                "set: {train.steps: 50}"
            )


def dump(config: RunConfig) -> str:
    """The configuration as YAML that `load` reads back identically."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)  # not allow_unicode: some of it would read back as space


def describe(resolved: Resolved) -> str:
    """Every value with its source, one a line, in three aligned columns."""
    rows = [(".".join(keys), value) for keys, value in _leaves(resolved.config.model_dump(mode="json"))]
    order = list(RunConfig.model_fields)
    rows = sorted([*rows, *resolved.implied.items()], key=lambda row: order.index(row[0].split(".")[0]))
    table = [(key, _flow(value), resolved.sources.get(key, DEFAULT)) for key, value in rows]
    left, middle = (max(len(row[column]) for row in table) for column in (0, 1))
    middle = min(middle, 60)
    return "\n".join(f"{key:<{left}}  {value:<{middle}}  {source}" for key, value, source in table)


def _flow(value: Any) -> str:
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)  # on one line, and YAML too
    try:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    except yaml.YAMLError:  # a default of an environment's constructor may be any object
        return repr(value)
    return text.removesuffix("\n").removesuffix("\n...")


# Reading


def _read(path: Path, given: dict[Keys, str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    node = _compose(text, str(path))
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: a configuration is a mapping of keys to values")
    value = _construct(node, (), given, f"{path}:{{}}")
    assert isinstance(value, dict)
    return value


def _compose(text: str, place: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{place}{line}: this is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: this is not YAML: {str(error).splitlines()[0]}") from None


def _construct(node: yaml.Node, keys: Keys, given: dict[Keys, str], place: str) -> Any:
    """The plain value of a node; records the place of every key below it. place: text with {} for the line number."""
    at = place.format(node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, _ in node.value:
            here = place.format(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.rpartition(":")[2] not in ("str", "merge"):
                raise ConfigError(f"{here}: the key {key_node.value!r} must be text; put it in quotes")
            if key_node.value in seen:
                raise ConfigError(f"{here}: {'.'.join((*keys, key_node.value))} is given twice")
            seen.add(key_node.value)
        _Loader("").flatten_mapping(node)  # merge keys: "<<: *anchor"
        value: dict[str, Any] = {}
        for key_node, value_node in node.value:
            given[*keys, key_node.value] = place.format(key_node.start_mark.line + 1)
            value[key_node.value] = _construct(value_node, (*keys, key_node.value), given, place)
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*keys, str(i)), {}, place) for i, item in enumerate(node.value)]
    loader = _Loader("")
    try:
        value_of = loader.construct_object(node)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{at}: {'.'.join(keys)} cannot be read as {node.tag.rpartition(':')[2]}") from None
    if not isinstance(value_of, str | int | float | bool | None):
        raise ConfigError(f"{at}: {'.'.join(keys)} must be text, a number, true, false, null, a list or a mapping")
    return value_of


def _parse_word(word: str, given: dict[Keys, str]) -> tuple[Keys, Any]:
    name, equals, text = word.partition("=")
    keys = tuple(name.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{word!r} is not of the form key.subkey=value, for example train.steps=50")
    given[keys] = COMMAND_LINE
    node = _compose(text, f"{COMMAND_LINE}: {word}")
    return keys, None if node is None else _construct(node, keys, given, COMMAND_LINE)


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` words as a plain nested dict (for environment arguments). Raises ConfigError."""
    tree: dict[str, Any] = {}
    for word in words:
        _set(tree, *_parse_word(word, {}))
    return tree


# Merging


def _merge(base: dict[str, Any], new: Mapping[str, Any], keys: Keys) -> None:
    for key, value in new.items():
        here = (*keys, key)
        old = base.get(key)
        if here in FREE and isinstance(value, dict):
            base[key] = {"name": old["name"], **value} if key == "algorithm" and old else value
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, here)
        elif isinstance(old, dict) and value is None:
            continue  # a section whose keys are all commented out
        else:
            base[key] = value


def _set(tree: dict[str, Any], keys: Keys, value: Any, place: str = COMMAND_LINE) -> None:
    for i, key in enumerate(keys[:-1]):
        if tree.get(key) is None:
            tree[key] = {}
        if not isinstance(tree[key], dict):
            raise ConfigError(f"{place}: {'.'.join(keys[: i + 1])} is a value and has no key {keys[i + 1]}")
        tree = tree[key]
    if isinstance(tree.get(keys[-1]), dict) and isinstance(value, dict):
        _merge(tree[keys[-1]], value, ("", *keys))
    else:
        tree[keys[-1]] = value


# Checking


def _leaves(tree: Mapping[str, Any], keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*keys, key))
        else:
            yield (*keys, key), value


def _place(keys: Keys, given: Mapping[Keys, str]) -> str:
    """The place of the nearest written key at or above `keys`, as a prefix of a message."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in given:
            return f"{given[keys[:length]]}: "
    return ""


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _refuse_unknown(
    model: type[BaseModel],
    tree: Mapping[str, Any],
    keys: Keys,
    given: Mapping[Keys, str],
    root: type[BaseModel] = RunConfig,
) -> None:
    """root: where else in the file a key of that name may belong."""
    for key, value in tree.items():
        here = (*keys, key)
        if key not in model.model_fields:
            raise ConfigError(
                f"{_place(here, given)}{'.'.join(here)} is not a known key{_suggest(here, model, keys, root)}"
            )
        annotation = model.model_fields[key].annotation
        section = _section_of(annotation)
        if section is None or not isinstance(value, dict):
            continue
        for name, entry in value.items() if get_origin(annotation) is dict else [("", value)]:
            if isinstance(entry, dict):
                _refuse_unknown(section, entry, (*here, name) if name else here, given, root)


def _suggest(unknown: Keys, model: type[BaseModel], parent: Keys, root: type[BaseModel]) -> str:
    near = difflib.get_close_matches(unknown[-1], model.model_fields, n=1)
    if near:
        return f"; did you mean {'.'.join((*parent, near[0]))}?"
    elsewhere = {keys[-1]: keys for keys in reversed(list(_known(root)))}
    near = difflib.get_close_matches(unknown[-1], elsewhere, n=1, cutoff=0.8)
    if near:
        return f"; did you mean {'.'.join(elsewhere[near[0]])}?"
    inside = f"{'.'.join(parent)} knows" if parent else "the keys are"
    return f"; {inside} {', '.join(model.model_fields)}"


def _known(model: type[BaseModel], keys: Keys = ()) -> Iterator[Keys]:
    for name, info in model.model_fields.items():
        yield (*keys, name)
        section = _section_of(info.annotation)
        if section is not None and get_origin(info.annotation) is not dict:
            yield from _known(section, (*keys, name))


def _validate(model: type[M], tree: Mapping[str, Any], keys: Keys, given: Mapping[Keys, str]) -> M:
    try:
        # Strict, so that "12" or true is no number; from JSON, so that a list may stand for a tuple.
        return model.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True)
    where, value = _locate(tree, problems[0]["loc"])
    wanted = [_wanted(p) for p in problems if _locate(tree, p["loc"])[0] == where]
    here = (*keys, *where)
    if "" in wanted:  # a check of the model itself, whose message is a sentence
        message = problems[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{_place(here, given)}{'.'.join(here)}: {message}") from None
    hint = "; put it in quotes" if wanted == ["text"] and not isinstance(value, dict | list | None) else ""
    raise ConfigError(
        f"{_place(here, given)}{'.'.join(here)} must be {' or '.join(dict.fromkeys(wanted))}, not {_flow(value)}{hint}"
    )


def _locate(tree: Any, loc: Sequence[int | str]) -> tuple[Keys, Any]:
    """The part of a validation error's location that exists in the tree (pydantic appends names of union members)."""
    where: list[str] = []
    for key in loc:
        keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        if key not in keys:
            break
        tree = tree[key]
        where.append(str(key))
    return tuple(where), tree


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "none": "null",
}


def _wanted(problem: Mapping[str, Any]) -> str:
    """What a pydantic error asks for, in words; empty where the error carries its own sentence."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    match kind:
        case "greater_than":
            return f"above {context['gt']:g}"
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "less_than":
            return f"below {context['lt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "literal_error" | "enum":
            return f"one of {context['expected']}" if ", " in context["expected"] else context["expected"]
        case "missing" if problem["loc"]:
            return f"given {problem['loc'][-1]}"
        case "value_error" | "assertion_error":
            return ""
        case "too_long" | "too_short":
            return str(problem["msg"])[0].lower() + str(problem["msg"])[1:]
    return _WANTED.get(kind.split("_")[0], str(problem["msg"]).removeprefix("Input should be "))


# What the method and the environment know of their own options


def _algorithm_options(options: dict[str, Any], given: Mapping[Keys, str]) -> dict[str, Any]:
    """Check the options against the method's own class; return those left at their default."""
    from algorithms import registry

    keys = ("algorithm",)
    name = options.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{_place((*keys, 'name'), given)}algorithm.name must be text, not {_flow(name)}")
    try:
        model = registry.find(name).Config
    except ValueError as error:
        raise ConfigError(f"{_place((*keys, 'name'), given)}{error}") from error
    _refuse_unknown(model, options, keys, given)
    config = _validate(model, options, keys, given)
    chosen = {k for k, _ in _leaves(options, keys)}
    every = _leaves(config.model_dump(mode="json"), keys)
    return {".".join(k): value for k, value in every if k not in chosen}


def _env_options(config: RunConfig, given: Mapping[Keys, str]) -> dict[str, Any]:
    """Build the environment once, which checks its arguments and starts nothing; return those left at their default."""
    from envs import registry

    name, args = config.env.name, config.env.args
    try:
        env = registry.find(name)
    except ValueError as error:
        raise ConfigError(f"{_place(('env', 'name'), given)}{error}") from error
    try:
        registry.make(name, args)
    except (ValueError, TypeError) as error:
        named = [key for key in args if re.search(rf"\b{re.escape(key)}\b", str(error))]
        raise ConfigError(f"{_place(('env', 'args', *named[:1]), given)}{error}") from error
    return {
        f"env.args.{key}": parameter.default
        for key, parameter in inspect.signature(env).parameters.items()
        if key not in args and parameter.default is not parameter.empty
    }
