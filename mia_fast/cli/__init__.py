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
    except OSError as error:
        from mia_fast.cli.show import fault
        from mia_fast.errors import WorkspaceError

        place = ", ".join(str(name) for name in (error.filename, error.filename2) if name)
        fault(
            WorkspaceError(
                error.strerror or str(error),
                where=place or None,
                hint="check the path, its permissions and the free space",
                then="the command stopped; files that were there before are as they were",
            )
        )
        sys.exit(2)
