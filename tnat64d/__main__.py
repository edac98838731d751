"""`python -m tnat64d`, and what the installed command calls."""

from __future__ import annotations

from tnat64d.cli.main import main


def run() -> None:
    """The command's entry point: exits with its code."""
    raise SystemExit(main())


if __name__ == "__main__":
    run()
