"""`posterior envs list | check`."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from posterior.commands.runs import checks, env_args, table


def show(args: argparse.Namespace) -> dict[str, Any]:
    from envs import listing

    rows = listing.rows(args.speed)
    if not args.json:
        print(listing.shown(rows, args.speed))
    return {"envs": rows}


def check(args: argparse.Namespace) -> dict[str, Any]:
    from envs.check import check_env

    result = asyncio.run(check_env(args.name, env_args(args)))
    if not args.json:
        print(checks(result.get("checks", [])))
        print(table({key: value for key, value in result.items() if not isinstance(value, list | dict)}))
    return result
