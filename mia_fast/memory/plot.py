"""The picture of ``mia-fast memory nearest``: what followed each of the nearest states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mia_fast import clock
from mia_fast.files import replacing
from mia_fast.memory.nearest import Nearest
from mia_fast.plot import check

_WON: Final = "#2e7d32"
_LOST: Final = "#b3261e"
_OTHER: Final = "#7a7a7a"


def draw(found: Nearest, path: Path) -> Path:
    """Write the picture: one small panel for each state, its distance and outcome above, the nearest first.

    Parameters
    ----------
    found
        From :func:`mia_fast.memory.nearest.nearest_to`.
    path
        File to write; its ending decides the format.

    Raises
    ------
    ConfigError
        Matplotlib is not installed, or the file's ending is none that it writes.
    """
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(zip(found.frame.iter_rows(named=True), found.followed, strict=True))
    columns = min(5, len(rows) + 1)
    lines = -(-(len(rows) + 1) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.1 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    moment = clock.to_datetime(found.at_ns)
    panels[0].set_title(f"{moment:%Y-%m-%d %H:%M} UTC\nthe moment itself", fontsize=8)
    panels[0].plot(found.own, color="#1f4e79", linewidth=1.4)
    note: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": _OTHER}
    if len(found.own) < 2:
        panels[0].text(0.5, 0.6, "nothing known yet", transform=panels[0].transAxes, **note)
    for axes, (row, followed) in zip(panels[1:], rows, strict=False):
        profit = row["profit"]
        colour = _OTHER if not profit else _WON if profit > 0 else _LOST
        seen = "no date" if row["timestamp"] is None else f"{row['timestamp']:%Y-%m-%d %H:%M}"
        outcome = "no outcome" if profit is None else f"{profit:+,.0f} USD"
        axes.set_title(f"{seen}\nd = {row['distance']:.2f}, {outcome}", fontsize=8, color=colour)
        axes.plot(followed, color=colour, linewidth=1.1)
        if len(followed) < 2:
            axes.text(0.5, 0.6, "not in these bars", transform=axes.transAxes, **note)
    used = len(rows) + 1
    for number, axes in enumerate(panels[:used]):
        axes.axhline(0.0, color="black", linewidth=0.5)
        axes.tick_params(labelsize=7, labelbottom=number + columns >= used)
        axes.grid(alpha=0.25)
    for axes in panels[used:]:
        axes.remove()
    figure.supxlabel("bars after the state", fontsize=9)
    figure.supylabel("change of the close, points", fontsize=9)
    figure.suptitle(f"What followed the {len(rows)} nearest states that were known then", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lstrip("."))
    return path
