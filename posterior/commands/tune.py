"""`posterior tune`, and what `posterior resume` does with a search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from posterior.cluster import refuse_lost
from posterior.commands.runs import run_words
from posterior.config_load import describe
from posterior.tune_config import SearchPlan, load_search


def run(args: argparse.Namespace) -> dict[str, Any]:
    plan = load_search(args.config, run_words(args))
    if args.dry_run:
        return _show_plan(plan, args.json)
    refuse_lost(args.out)
    from posterior.tune import search

    return _show(search(plan, args.out), args.json)


def resume(folder: Path, as_json: bool) -> dict[str, Any]:
    from posterior.tune import resume as go_on

    return _show(go_on(folder), as_json)


def _show_plan(plan: SearchPlan, as_json: bool) -> dict[str, Any]:
    """The first trial with the source of every value, and the searched values of all."""
    first = plan.trials[0].resolved
    if not as_json:
        print(describe(first))
        print()
        for trial in plan.trials:
            print(f"{trial.name}  {', '.join(f'{key}={value}' for key, value in trial.values.items())}")
    return {
        "search": plan.config.model_dump(mode="json"),
        "trials": [{"name": trial.name, "values": trial.values} for trial in plan.trials],
        "config": first.config.model_dump(mode="json"),
        "sources": first.sources,
    }


def _show(result: dict[str, Any], as_json: bool) -> dict[str, Any]:
    table = result.pop("text")
    if not as_json:
        print(table)
        best = result["best"]
        if best is not None:
            print(f"best: {best['name']}; train it with `posterior train {best['config']}`")
        if "report" in result:
            print(f"report: {result['report']}")
    return result
