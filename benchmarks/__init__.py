"""Programs that measure; `python -m benchmarks.NAME` refuses to start where a user's folder hides one of our packages."""

from posterior.cli import UsageError, check_own_packages

try:
    check_own_packages()
except UsageError as error:
    raise SystemExit(f"benchmarks: error: {error}") from None
