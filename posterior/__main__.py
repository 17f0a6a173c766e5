"""`python -m posterior`: the same program as `posterior`."""

from posterior.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
