"""The command line: `posterior COMMAND ...`.

This module parses words and reports results; it imports nothing heavy, so that help is instant. What a command does
lives in `posterior/commands/` and is imported when it runs: a function of the parsed arguments that returns a
JSON-able dict. A result with `"ok": false` makes the exit code 1.

With --json, standard output carries exactly one object: everything else that the process or its children print there is
sent to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OURS = ("envs", "models", "actors", "algorithms")
"""Top-level packages with common names, which a folder of the user's may shadow."""

DEBUG = "POSTERIOR_DEBUG"
USAGE_ERROR = 2
INTERRUPTED = 130

Handler = Callable[[argparse.Namespace], dict[str, Any]]

UNSAFE_HELP = "run candidate programs without a sandbox, with all your rights (same as env.args.unsafe_local=true)"
WORDS_HELP = "values that override the file, for example train.steps=50 model.path=./my-model"


class Parser(argparse.ArgumentParser):
    """Keeps the layout of help texts and reports usage errors as one sentence."""

    intermix = False
    """Let options stand anywhere between the words; argparse alone loses words after an option."""

    def __init__(self, **more: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self.intermix:
            return super().parse_known_args(args, namespace)
        self.intermix = False  # parse_known_intermixed_args itself calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermix = True


class UsageError(ValueError):
    """The words on the command line do not make a command."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Every command sets `run` ("module:function") and has --json."""
    parser = Parser(
        prog="posterior",
        description="Train language models to reason, by every route, and compare the routes fairly.",
        epilog="Start with `posterior demo`. Each command explains itself: posterior train --help",
    )
    parser.add_argument("--version", action="version", version=f"posterior {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, run: str, examples: str, to: Any = commands) -> argparse.ArgumentParser:
        command: Parser = to.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=examples)
        command.intermix = True
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        command.set_defaults(run=f"posterior.commands.{run}")
        return command

    def add_run_options(command: argparse.ArgumentParser) -> None:
        command.add_argument("words", nargs="*", metavar="a.b=c", help=WORDS_HELP)
        command.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME-TIME)")
        command.add_argument("--dry-run", action="store_true", help="print every value with its source, and stop")
        add_unsafe(command)

    def add_unsafe(command: argparse.ArgumentParser) -> None:
        command.add_argument("--unsafe-local", action="store_true", help=UNSAFE_HELP)

    demo = add(
        "demo",
        "train the embedded toy model on the coding tasks, then print where the report is",
        "runs:demo",
        "examples:\n  posterior demo\n  posterior demo seed=1 --out runs/demo-1",
    )
    add_run_options(demo)

    train = add(
        "train",
        "train a model as a configuration says",
        "runs:train",
        "examples:\n"
        "  posterior train tune_configs/demo.yaml\n"
        "  posterior train my.yaml train.steps=50 model.path=./my-model --out runs/first\n"
        "  posterior train my.yaml env.name=my_pkg.my_env:MyEnv --dry-run",
    )
    train.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run's configuration")
    add_run_options(train)

    resume = add(
        "resume",
        "continue a stopped run from its newest checkpoint, or a stopped search or comparison",
        "runs:resume",
        "example:\n  posterior resume runs/demo-20260101-120000",
    )
    resume.add_argument(
        "run_dir", type=Path, metavar="RUN", help="run directory, or the folder of a search or comparison"
    )

    tune = add(
        "tune",
        "search a configuration's values with Ray Tune: random, grid, ASHA",
        "tune:run",
        "A search's file names a base configuration and what to vary; every trial is a whole run in OUT/trials.\n"
        "Continue a stopped search with `posterior resume OUT`.\n\n"
        "examples:\n"
        "  posterior tune tune_configs/tune_rlvr_coding.yaml\n"
        "  posterior tune my_search.yaml search.trials=12 train.steps=50 --out runs/search\n"
        "  posterior tune my_search.yaml --dry-run\n"
        "  posterior train runs/search/best.yaml",
    )
    tune.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the search")
    add_run_options(tune)

    compare = add(
        "compare",
        "train several methods on the same tasks, seeds and compute, and compare them with intervals",
        "compare:run",
        "A comparison's file names a base configuration, the arms, the seeds and what is tuned; every run is a whole run in\n"
        "OUT/runs. Continue a stopped comparison with `posterior resume OUT`, or with the same command and --out.\n\n"
        "examples:\n"
        "  posterior compare tune_configs/compare_posterior.yaml --dry-run\n"
        "  posterior compare tune_configs/compare_posterior.yaml seeds='[0,1]' train.seconds=30 --out runs/compared",
    )
    compare.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the comparison")
    add_run_options(compare)

    evaluate = add(
        "eval",
        "grade a run's newest checkpoint, or a model, on held-out tasks: pass@k, mean grade, 95 %% intervals",
        "runs:evaluate",
        "With --causal a latent thinker's latents are replaced (zero, mean, noise, shuffle, transplant, truncation)\n"
        "and its answers judged again, beside the run's controls; RUN/result.json keeps the figures for reports.\n"
        "A reward model's run is not played: it reads graded answers, and the figures say how well it knows the scores.\n\n"
        "examples:\n"
        "  posterior eval runs/first\n"
        "  posterior eval runs/thinker --causal --tasks 256\n"
        "  posterior eval runs/writer --guided '{prompt} Think as one who knows the answer.'\n"
        "  posterior eval ./my-model --env coding tasks=mbpp.jsonl --samples 8 --json",
    )
    evaluate.add_argument("target", metavar="RUN|MODEL", help="run directory, model folder, hub id, or `embedded`")
    evaluate.add_argument("--env", metavar="NAME", help="environment (default: the run's own; for a model: coding)")
    evaluate.add_argument("words", nargs="*", metavar="a=b", help="arguments of the environment")
    evaluate.add_argument("--split", metavar="NAME", help="split of the environment (default: its held-out splits)")
    evaluate.add_argument("--tasks", type=_positive, default=128, metavar="N", help="tasks of each split (default 128)")
    evaluate.add_argument("--samples", type=_positive, default=1, metavar="K", help="answers per task (default 1)")
    evaluate.add_argument("--temperature", type=_at_least_0, default=1.0, metavar="T", help="0 is greedy (default 1)")
    evaluate.add_argument("--max-tokens", type=_positive, metavar="N", help="longest answer in tokens")
    evaluate.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling (default 0)")
    evaluate.add_argument("--causal", action="store_true", help="replace a latent thinker's latents instead (of a run)")
    evaluate.add_argument(
        "--guided",
        metavar="HINT",
        help="decode each thought towards what a second prompt makes likelier (CoT-Flow); a template with {prompt}",
    )
    evaluate.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="of a run: newest (default; of a reward model best), best held-out, or a step",
    )

    add_unsafe(evaluate)

    doctor = add(
        "doctor",
        "check installation, devices, sandbox, and that sampler and learner agree",
        "runs:doctor",
        "examples:\n"
        "  posterior doctor\n"
        "  posterior doctor my.yaml resources.sampler_gpus=1\n"
        "  posterior doctor runs/first",
    )
    doctor.add_argument(
        "config",
        type=_config_or_word,
        nargs="?",
        metavar="CONFIG.yaml|RUN",
        help="a run's configuration, or a run, whose newest checkpoint is checked",
    )
    doctor.add_argument("words", nargs="*", metavar="a.b=c", help=WORDS_HELP)

    add_unsafe(doctor)

    report = add(
        "report",
        "write one self-contained HTML file about one or more runs",
        "runs:report",
        "examples:\n  posterior report runs/first\n  posterior report runs/seed0 runs/seed1 runs/seed2 --out all.html",
    )
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="run directories")
    report.add_argument("--out", type=Path, metavar="FILE", help="HTML file (default: report.html in the first run)")

    envs = commands.add_parser(
        "envs",
        help="list environments, or check one",
        description="List environments, or check one.",
        epilog="examples:\n  posterior envs list\n  posterior envs check coding tasks=sanitized-mbpp.json --json",
    )
    of_envs = envs.add_subparsers(dest="what", metavar="list|check", required=True)
    listed = add(
        "list",
        "list the environments that can be named: kind, grading, turns, tasks, and what hinders those that cannot be used",
        "envs:show",
        "examples:\n  posterior envs list\n  posterior envs list --speed --json",
        of_envs,
    )
    listed.add_argument("--speed", action="store_true", help="play each for a second and count its steps per second")
    check = add(
        "check",
        "run the conformance and red-team suite on an environment, also on your own",
        "envs:check",
        "examples:\n"
        "  posterior envs check coding tasks=sanitized-mbpp.json --json\n"
        "  posterior envs check my_pkg.my_env:MyEnv difficulty=2",
        of_envs,
    )
    check.add_argument("name", metavar="NAME", help="registered name, or import path such as my_pkg.my_env:MyEnv")
    check.add_argument("words", nargs="*", metavar="a=b", help="arguments of the environment")

    add_unsafe(check)

    label = add(
        "label",
        "grade a run's sampled answers yourself, blind to the method and to the grader's verdict",
        "label:run",
        "keys: a digit grades the answer, s skips it, u takes the last grade back, q stops (start again to go on)\n\n"
        "examples:\n  posterior label runs/first --rater ada\n  posterior label runs/first --env-scale 0..1",
    )
    label.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    label.add_argument("--rater", default=os.environ.get("USER") or "me", metavar="NAME", help="who grades")
    label.add_argument("--env-scale", default="1..5", metavar="LOW..HIGH", help="grades, one digit each (default 1..5)")

    chat = add(
        "chat",
        "talk to a checkpoint and see its thoughts",
        "runs:chat",
        "examples:\n  posterior chat runs/first\n  posterior chat embedded",
    )
    chat.add_argument("target", metavar="RUN|MODEL", help="run directory, model folder, hub id, or `embedded`")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _at_least_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _config_or_word(text: str) -> Path | str:
    """`doctor` takes words without a file: the first argument is one if it has an equals sign and is no file."""
    return text if "=" in text and not Path(text).exists() else Path(text)


def version() -> str:
    """Version of this installation, or of this checkout when it was never installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("posterior")
    except PackageNotFoundError:
        return "(checkout)"


def check_own_packages() -> None:
    """Refuse to start when a folder of the user's hides one of our packages. Raises UsageError."""
    home = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise UsageError(f"the package {name} is missing from {home}; install Posterior again")
        found = Path(next(iter(spec.submodule_search_locations or [spec.origin or "?"]))).resolve()
        if found != home / name:
            raise UsageError(f"{found} hides Posterior's own package {name}; rename it, or start from another folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 success, 1 failure, 2 usage, 130 interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    out = _claim_stdout() if as_json else sys.stdout
    try:
        args = build_parser().parse_args(words)
        check_own_packages()
        result = _handler(args.run)(args)
    except KeyboardInterrupt:
        code, result = INTERRUPTED, {"ok": False, "error": "interrupted"}
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        code = USAGE_ERROR if isinstance(error, UsageError) else 1
        result = {"ok": False, "error": sentence(error)}
    else:
        result = {"ok": result.get("status") != "interrupted", **result}
        code = INTERRUPTED if result.get("status") == "interrupted" else 0 if result["ok"] else 1
    if "error" in result:
        print(f"posterior: error: {result['error']}", file=sys.stderr)
    if as_json:
        print(json.dumps(result, default=str), file=out, flush=True)
    return code


def _handler(path: str) -> Handler:
    module, _, function = path.partition(":")
    handler: Handler = getattr(importlib.import_module(module), function)
    return handler


def sentence(error: Exception) -> str:
    """An error for people: its message on one line; for errors that are not ours, with its type and how to see more."""
    message = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in (*OURS, "posterior"):
            return f"{error.name} is not part of this checkout of Posterior; update or install it again"
        return f"the package {package} is not installed; run `make setup`, or pip install -e '.[cpu]' in the checkout"
    ours = type(error).__module__.partition(".")[0] in (*OURS, "posterior")
    if message and (ours or isinstance(error, ValueError | OSError | TypeError)):
        return message
    return f"{type(error).__name__}: {message or 'no message'} ({DEBUG}=1 shows where)"


def _claim_stdout() -> Any:
    """Keep the real standard output for the one JSON object; send file descriptor 1 to standard error from now on."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out
