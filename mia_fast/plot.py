"""Whether a picture can be drawn: every room that draws asks here. Needs the extra ``plot``."""

from __future__ import annotations

from pathlib import Path

from mia_fast.errors import ConfigError


def check(path: Path) -> None:
    """Fail before a long run rather than after it.

    Raises
    ------
    ConfigError
        Matplotlib is not installed, or the file's ending is none that it writes.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ConfigError(
            "pictures need Matplotlib, which is not installed",
            where="--plot",
            hint="pip install 'mia-fast[plot]'",
            then="nothing was started",
        ) from error
    ending = path.suffix.lstrip(".")
    if ending not in FigureCanvasAgg.filetypes:
        raise ConfigError(
            f"a picture cannot be written as {path.suffix or 'a file without an ending'}",
            where="--plot",
            hint="end the file's name in .png, .svg or .pdf",
            then="nothing was started",
        )
