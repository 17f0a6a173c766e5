"""Find an environment by name: registered here, offered by an installed package, or given as an import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from envs.base import Env, SingleTurnEnv

GROUP = "posterior.envs"
"""Entry-point group in which installed packages offer environments: name = "package.module:Class"."""

BUILTIN: dict[str, str] = {
    "answers": "envs.answers:Answers",
    "coding": "envs.coding.env:CodingEnv",
    "graded": "envs.graded:Graded",
    "graph_reach": "envs.graph_reach:GraphReach",
    "gymnasium": "envs.adapters.gymnasium:Gymnasium",
    "openenv": "envs.adapters.openenv:OpenEnv",
    "inform": "envs.adventures.inform:Inform",
    "noisy_raters": "envs.noisy_raters:NoisyRaters",
    "key_door": "envs.key_door:KeyDoor",
    "proof_steps": "envs.proofs.env:ProofSteps",
    "proofs": "envs.proofs.env:Proofs",
    "permutations": "envs.permutations:Permutations",
    "punchline": "envs.punchline:Punchline",
    "pointer_chase": "envs.pointer_chase:PointerChase",
    "reasoning_gym": "envs.adapters.reasoning_gym:ReasoningGym",
    "story": "envs.adventures.story:Story",
    "textworld": "envs.adventures.textworld:TextWorld",
    "textworld_express": "envs.adventures.express:TextWorldExpress",
    "trace_execution": "envs.trace_execution:TraceExecution",
    "verifiers": "envs.adapters.verifiers:Verifiers",
    "walk": "envs.walk:Walk",
}
"""Environments of this project; they are found in a plain checkout too, where nothing is installed."""

_METHODS: dict[str, tuple[str, ...]] = {
    "tasks": ("split",),
    "splits": (),
    "reset": ("task", "seed"),
    "step": ("action",),
}
_ASYNC = ("reset", "step", "close")


def known() -> dict[str, str]:
    """Name -> one-line description of every environment that has a name; what is wrong with it, where it does not load."""
    return {name: _describe(name) for name in paths()}


def _describe(name: str) -> str:
    try:
        cls = find(name)
    except ValueError as error:
        return f"unusable: {error}"
    return cls.description or (inspect.getdoc(cls) or cls.__name__).split("\n")[0]


def paths() -> dict[str, str]:
    """Name -> import path of every environment that has a name: built in, or offered by an installed package."""
    return dict(sorted({**_offered(), **BUILTIN}.items()))


@cache
def _offered() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


def find(name: str) -> type[Env]:
    """The environment class called `name`, or at the import path `my_pkg.my_env:MyEnv` (current folder included).

    Raises ValueError, in one sentence, if there is none, it does not import, or it does not obey the interface.
    """
    names = paths()
    path = names.get(name, name)
    if ":" not in path:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        raise ValueError(
            f"no environment is called {name!r}; {hint} (or give an import path such as my_pkg.my_env:MyEnv)"
        )
    module_name, _, class_name = path.partition(":")
    module = _import(module_name, path)
    if not hasattr(module, class_name):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Env)]
        classes = [key for key in classes if key not in ("Env", "SingleTurnEnv")]
        near = difflib.get_close_matches(class_name, classes, n=1) or classes
        hint = f"; did you mean {near[0]!r}?" if near else ", and no environment class at all"
        raise ValueError(f"{path}: module {module_name} has no {class_name!r}{hint}")
    return check_class(getattr(module, class_name), path)


def make(name: str, args: Mapping[str, Any] | None = None) -> Env:
    """An instance of the environment `name` with keyword arguments `args`.

    Raises ValueError, in one sentence, for what `find` refuses, an unknown or missing argument, or a constructor that
    fails.
    """
    cls = find(name)
    args = dict(args or {})
    _check_arguments(cls, name, args)
    try:
        return cls(**args)
    except ValueError:
        raise
    except Exception as error:  # a user's constructor may raise anything
        raise ValueError(f"environment {name}: {cls.__name__}(...) failed: {type(error).__name__}: {error}") from error


def check_class(cls: Any, path: str) -> type[Env]:
    """`cls` itself if it obeys the interface of envs/base.py; otherwise ValueError naming the class and the fault."""
    if not inspect.isclass(cls):
        raise ValueError(f"{path}: is a {type(cls).__name__}, not a class; name the environment class after the colon")
    if not issubclass(cls, Env):
        raise ValueError(
            f"{path}: class {cls.__name__} must subclass envs.base.SingleTurnEnv (one question, one answer) "
            "or envs.base.Env"
        )
    missing = sorted(cls.__abstractmethods__)
    if missing:
        calls = " and ".join(_spell(cls, name) for name in missing)
        raise ValueError(f"{path}: class {cls.__name__} lacks the method{'s' * (len(missing) > 1)} {calls}")
    methods = dict(_METHODS)
    if issubclass(cls, SingleTurnEnv):
        methods["grade"] = ("task", "text")
    for name, parameters in methods.items():
        method = getattr(cls, name)
        try:
            inspect.signature(method).bind(None, *parameters)
        except TypeError as error:
            wanted = _spell(cls, name)
            raise ValueError(f"{path}: method {name} of class {cls.__name__} must accept {wanted}: {error}") from error
        except ValueError:
            continue  # a method written in C has no signature to check
    for name in _ASYNC:
        if not inspect.iscoroutinefunction(getattr(cls, name)):
            raise ValueError(
                f"{path}: method {name} of class {cls.__name__} must be a coroutine; write `async def {name}`"
            )
    return cls


def _spell(cls: type[Env], name: str) -> str:
    parameters = {**_METHODS, "grade": ("task", "text")}.get(name, ())
    prefix = "async " if name in _ASYNC else ""
    return f"{prefix}{name}({', '.join(('self', *parameters))})"


def _import(module_name: str, path: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ValueError(
                f"{path}: there is no module {missing!r} in the current folder ({here}) or among the installed packages"
            ) from error
        raise ValueError(
            f"{path}: importing {module_name} needs the module {missing!r}, which is not installed"
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"{path}: importing {module_name} failed: {type(error).__name__}: {error}") from error


def _check_arguments(cls: type[Env], name: str, args: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in args:
        if key not in named and not takes_any:
            near = difflib.get_close_matches(key, named, n=1)
            have = f"it takes: {', '.join(named)}" if named else "it takes no arguments"
            raise ValueError(
                f"environment {name} has no argument {key!r}; " + (f"did you mean {near[0]!r}?" if near else have)
            )
    for parameter in parameters.values():
        if parameter.name in named and parameter.default is parameter.empty and parameter.name not in args:
            raise ValueError(
                f"environment {name} needs the argument {parameter.name!r}; write env.args.{parameter.name}=..."
            )
