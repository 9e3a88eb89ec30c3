"""The command line: ``mia-fast``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: run the command; a known error is shown with its hint and ends with status 2."""
    from mia_fast.cli.commands import app
    from mia_kernels.errors import MiaError

    try:
        app()
    except MiaError as error:
        from mia_fast.cli.show import fault

        fault(error)
        sys.exit(2)
