"""`posterior label RUN`."""

from __future__ import annotations

import argparse
from typing import Any

from posterior.label import label


def run(args: argparse.Namespace) -> dict[str, Any]:
    return label(args.run_dir, args.rater, args.env_scale)
