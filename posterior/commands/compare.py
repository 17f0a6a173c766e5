"""`posterior compare`, and what `posterior resume` does with a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from posterior.cluster import refuse_lost
from posterior.commands.runs import run_words
from posterior.compare_config import ComparePlan, compute, load_comparison


def run(args: argparse.Namespace) -> dict[str, Any]:
    plan = load_comparison(args.config, run_words(args))
    if args.dry_run:
        return _show_plan(plan, args.json)
    refuse_lost(args.out)
    from posterior.compare import compare

    return _show(compare(plan, args.out), args.json)


def resume(folder: Path, as_json: bool) -> dict[str, Any]:
    from posterior.compare import resume as go_on

    return _show(go_on(folder), as_json)


def _show_plan(plan: ComparePlan, as_json: bool) -> dict[str, Any]:
    """Every arm with what it trains and until when, the sweep, and how many runs that makes."""
    config, arms = plan.config, {name: resolved.config for name, resolved in plan.arms.items()}
    runs = {"tuning": len(plan.points) * len(arms), "compared": len(config.seeds) * len(arms)}
    bound = compute(arms)
    if not as_json:
        width = max(map(len, arms))
        for name, run in arms.items():
            ends = ", ".join(
                f"{key} {value:g}" for key in ("steps", "flops", "seconds") if (value := getattr(run.train, key))
            )
            marks = [
                *(["reference"] if name == config.reference else []),
                *(["grader"] if config.arms[name].grader else []),
            ]
            print(f"{name:<{width}}  {run.algorithm['name']}, {ends}{''.join(f', {mark}' for mark in marks)}")
        for point in plan.points:
            print(f"sweep  {', '.join(f'{key}={value}' for key, value in point.items())}")
        print(f"seeds  {', '.join(map(str, config.seeds))}")
        print(f"compute matched by {bound}" if bound else "compute is not matched: no bound is the same in all arms")
        print(f"{runs['tuning'] + runs['compared']} runs: {runs['tuning']} to tune, {runs['compared']} to compare")
    return {
        "comparison": config.model_dump(mode="json"),
        "arms": {
            name: {"config": resolved.config.model_dump(mode="json"), "sources": resolved.sources}
            for name, resolved in plan.arms.items()
        },
        "points": plan.points,
        "bound": bound,
        "runs": runs,
    }


def _show(result: dict[str, Any], as_json: bool) -> dict[str, Any]:
    text = result.pop("text")
    if not as_json:
        print(text)
        if result["report"]:
            print(f"report: {result['report']}")
    return result
