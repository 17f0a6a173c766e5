"""demo, train, resume, eval, doctor, report and chat: thin wires from parsed words to the modules that do the work."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posterior.cluster import refuse_lost
from posterior.compare_config import RECORD as COMPARISON
from posterior.config_load import ConfigError, Resolved, describe, load, parse_words
from posterior.tune_config import RECORD


def demo(args: argparse.Namespace) -> dict[str, Any]:
    return _train(load(_demo_config(), run_words(args)), args)


def train(args: argparse.Namespace) -> dict[str, Any]:
    return _train(load(args.config, run_words(args)), args)


def run_words(args: argparse.Namespace) -> list[str]:
    """The `a.b=c` words of a run, with --unsafe-local among them."""
    return [*args.words, *(["env.args.unsafe_local=true"] if args.unsafe_local else [])]


def env_args(args: argparse.Namespace) -> dict[str, Any]:
    """The environment's arguments of `eval` and `envs check`."""
    return parse_words([*args.words, *(["unsafe_local=true"] if args.unsafe_local else [])])


def _demo_config() -> Path:
    """The demo's configuration: beside the packages in a checkout."""
    path = Path(__file__).resolve().parents[2] / "tune_configs" / "demo.yaml"
    if not path.is_file():
        raise ConfigError(f"the demo's configuration {path} is missing; run from a checkout of Posterior")
    return path


def _train(resolved: Resolved, args: argparse.Namespace) -> dict[str, Any]:
    if args.dry_run:
        from posterior.warm_start import find

        warm = find(resolved.config)
        if not args.json:
            print(describe(resolved))
            if warm is not None:
                print(f"warm start {warm}")
        config = resolved.config.model_dump(mode="json")
        told = {} if warm is None else {"warm_start": {"folder": str(warm.folder), "trained": warm.trained}}
        return {"config": config, "sources": resolved.sources, "implied": resolved.implied, **told}
    refuse_lost(args.out)
    from posterior.train import train as run

    result = run(resolved, args.out, args.json)
    _show_run(result, args)
    return result


def resume(args: argparse.Namespace) -> dict[str, Any]:
    refuse_lost(args.run_dir)
    if (args.run_dir / RECORD).is_file():
        from posterior.commands.tune import resume as resume_search

        return resume_search(args.run_dir, args.json)
    if (args.run_dir / COMPARISON).is_file():
        from posterior.commands.compare import resume as resume_comparison

        return resume_comparison(args.run_dir, args.json)
    from posterior.train import resume as run

    result = run(args.run_dir)
    _show_run(result, args)
    return result


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    if args.causal:
        return _causal(args)
    if args.guided is not None:
        return _guided(args)
    from posterior.evaluate import evaluate as run

    result = run(
        args.target,
        args.env,
        env_args(args),
        split=args.split,
        tasks=args.tasks,
        samples=args.samples,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        seed=args.seed,
        checkpoint=args.checkpoint,
    )
    if not args.json:
        read = [regression(name, figures) for name, figures in result["splits"].items() if "mse" in figures]
        print("\n".join([result["target"], *read]) if read else table(result))
    return result


def _causal(args: argparse.Namespace) -> dict[str, Any]:
    if (args.samples, args.temperature, args.max_tokens) != (1, 1.0, None):
        raise ConfigError("--samples, --temperature and --max-tokens do not go with --causal: it judges given answers")
    from posterior.causal import eval_causal
    from posterior.evidence import lines

    result = eval_causal(
        args.target,
        args.env,
        env_args(args),
        split=args.split,
        tasks=args.tasks,
        seed=args.seed,
        checkpoint=args.checkpoint,
    )
    if not args.json:
        print("\n".join(lines(result)))
    return result


def _guided(args: argparse.Namespace) -> dict[str, Any]:
    if (args.samples, args.temperature) != (1, 1.0):
        raise ConfigError("--samples and --temperature do not go with --guided: it decodes the likeliest tokens")
    from posterior.guided import eval_guided

    result = eval_guided(
        args.target,
        args.env,
        env_args(args),
        args.guided,
        split=args.split,
        tasks=args.tasks,
        max_tokens=args.max_tokens,
        checkpoint=args.checkpoint,
    )
    if not args.json:
        print(table(result))
    return result


def doctor(args: argparse.Namespace) -> dict[str, Any]:
    path, first = (None, [args.config]) if isinstance(args.config, str) else (args.config, [])
    run_dir = path if path is not None and path.is_dir() else None
    resolved = load(run_dir / "config.yaml" if run_dir else path, [*first, *run_words(args)])
    if run_dir is not None and not any(word.startswith("model.path=") for word in args.words):
        from posterior.targets import open_target

        trained, _ = open_target(str(run_dir))
        resolved.config.model.path, resolved.config.model.lora = trained.model.path, None
    from posterior.doctor import doctor as run

    result = run(resolved)
    if not args.json:
        print(checks(result.get("checks", [])))
    return result


def report(args: argparse.Namespace) -> dict[str, Any]:
    runs = [_folder(run) for run in args.run_dirs]
    from posterior.report import write_report

    path = write_report(runs, args.out)
    if not args.json:
        print(path)
    return {"report": str(path)}


def chat(args: argparse.Namespace) -> dict[str, Any]:
    from posterior.chat import chat as run

    return run(args.target) or {}


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"there is no run directory {path}")
    return path.absolute()


def _show_run(result: Mapping[str, Any], args: argparse.Namespace) -> None:
    """The closing lines of a run for people: the held-out gain by split, and where the report lies."""
    if args.json:
        return
    before, after = result.get("baseline") or {}, result.get("final") or {}
    for split in after:
        if "mse" in after[split]:
            print(regression(split, after[split]))
            continue
        line = f"{split}: pass@1 {_interval(after[split])}"
        print(line + (f", before {_interval(before[split])}" if split in before else ""))
    if result.get("causal"):
        from posterior.evidence import verdict

        print(f"does it think? {verdict(result)}")
    if result.get("report"):
        print(f"report: {result['report']}")


def regression(split: str, figures: Mapping[str, Any]) -> str:
    """One line on how well a reward model knows the scores of a split."""
    names = {
        "mse": "squared error",
        "mse_mean_predictor": "mean predictor",
        "noise_floor": "raters' noise",
        "correlation": "correlation",
        "calibration_slope": "calibration slope",
        "calibration_offset": "offset",
    }
    known = [f"{told} {figures[key]:.3f}" for key, told in names.items() if figures.get(key) is not None]
    return f"{split}: {', '.join(known) or 'no item has a score'}"


def _interval(figures: Mapping[str, Any]) -> str:
    value, low, high = (100 * float(figures[key]) for key in ("pass@1", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def checks(items: Sequence[Mapping[str, Any]]) -> str:
    """One line a check: verdict, name, detail."""
    width = max((len(str(item["name"])) for item in items), default=0)
    return "\n".join(
        f"{'ok  ' if item['ok'] else 'FAIL'}  {item['name']!s:<{width}}  {item.get('detail') or ''}".rstrip()
        for item in items
    )


def table(result: Mapping[str, Any], keys: tuple[str, ...] = ()) -> str:
    """Nested figures as `key.subkey  value` lines."""
    rows: list[str] = []
    for key, value in result.items():
        here = (*keys, str(key))
        if isinstance(value, Mapping):
            rows.append(table(value, here))
        else:
            rows.append(f"{'.'.join(here)}  {value:.4g}" if isinstance(value, float) else f"{'.'.join(here)}  {value}")
    return "\n".join(row for row in rows if row)
