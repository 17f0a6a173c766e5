"""`posterior envs list | check`."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from posterior.commands.runs import checks, env_args, table


def show(args: argparse.Namespace) -> dict[str, Any]:
    from envs import registry

    known = registry.known()
    if not args.json:
        width = max((len(name) for name in known), default=0)
        for name, about in known.items():
            print(f"{name:<{width}}  {about}")
    return {"envs": known}


def check(args: argparse.Namespace) -> dict[str, Any]:
    from envs.check import check_env

    result = asyncio.run(check_env(args.name, env_args(args)))
    if not args.json:
        print(checks(result.get("checks", [])))
        print(table({key: value for key, value in result.items() if not isinstance(value, list | dict)}))
    return result
