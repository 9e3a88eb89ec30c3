"""The picture a replay ends with: equity, drawdown against its limit, and when entries were blocked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mia_fast.files import replacing
from mia_fast.plot import check

if TYPE_CHECKING:
    import polars as pl

_GAP_NS: Final = 3 * 3_600_000_000_000  # longer than the daily break
_COLOURS: Final = {
    "EVENT": "#d98c00",
    "CALENDAR": "#d98c00",
    "SESSION": "#9a9a9a",
    "CONTRACT": "#4c78a8",
    "DAILY": "#c23b75",
    "LIMIT": "#7a5195",
    "RISK_OVERTRADING": "#7a5195",
    "RISK": "#b3261e",
}
_NAMES: Final = {
    "EVENT": "macro event",
    "CALENDAR": "calendar unusable",
    "SESSION": "market closed",
    "CONTRACT": "expiry blackout",
    "DAILY": "daily loss",
    "LIMIT": "entries of the day used up",
    "RISK_OVERTRADING": "overtrading",
    "RISK": "latched or disarmed",
}


def draw(marks: pl.DataFrame, refused: Mapping[str, int], title: str, path: Path) -> Path:
    """Write the picture.

    Parameters
    ----------
    marks
        As ``Summary.marks``: per bar, equity in USD, drawdown and its limit as fractions, and why it was closed.
    refused
        Code -> entries refused, for the line above the picture.
    title
        Above it.
    path
        File to write; its ending decides the format.
    """
    check(path)
    from matplotlib import dates
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    known = marks["known_at"].to_numpy()
    times = known.astype("datetime64[ns]")
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # A break in the bars is a break in the line, not a slope across the weekend.
    after = np.flatnonzero(np.diff(known) > _GAP_NS) + 1
    broken = np.insert(times, after, times[after - 1] if after.size else [])

    def line(axes: Any, name: str, scale: float, **style: Any) -> None:
        axes.plot(broken, np.insert(marks[name].to_numpy() * scale, after, np.nan), **style)

    line(top, "equity", 1.0, color="#1f4e79", linewidth=1.0)
    top.set_ylabel("equity, USD")
    top.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    line(bottom, "drawdown", 100.0, color="#1f4e79", linewidth=0.9, label="drawdown")
    limit = marks["drawdown_limit"].to_numpy() * 100.0
    bottom.plot(times, limit, color="#b3261e", linewidth=1.2, linestyle="--", label="limit")
    bottom.set_ylabel("drawdown, % of peak")
    bottom.set_ylim(bottom=0.0)
    bottom.invert_yaxis()
    seen: dict[str, Any] = {}
    step = np.median(np.diff(known)).astype(np.int64) if len(known) > 1 else 0
    closed = marks["closed_by"].to_list()
    for first, last, code in _stretches(closed):
        kind = code if code in _NAMES else code.partition("_")[0]
        colour = _COLOURS.get(kind, "#6b6b6b")
        # The answer at a bar stands for the time since the bar before, but not for a weekend between them.
        start = times[first] - min(step, known[first] - known[max(first - 1, 0)])
        # A market that closes stays closed until the next bar begins.
        shut = kind == "SESSION" and last + 1 < len(known)
        end = max(times[last], times[last + 1] - step) if shut else times[last]
        for axes in (top, bottom):
            axes.axvspan(start, end, color=colour, alpha=0.28, linewidth=0)
        seen[kind] = Patch(color=colour, alpha=0.28, label=f"blocked: {_NAMES.get(kind, kind.lower())}")
    figure.legend(handles=[*bottom.get_lines(), *seen.values()], loc="outside lower center", fontsize=9, ncols=4)
    note = ", ".join(f"{count:,} {code}" for code, count in refused.items()) or "none"
    top.set_title(f"{title}\nentries refused: {note}", loc="left", fontsize=10)
    axis: Any = dates  # Matplotlib's dates are not typed
    locator = axis.AutoDateLocator()
    bottom.xaxis.set_major_locator(locator)
    bottom.xaxis.set_major_formatter(axis.ConciseDateFormatter(locator))
    bottom.set_xlabel("UTC")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.margins(x=0.005)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lstrip("."))
    return path


def _stretches(codes: list[str | None]) -> list[tuple[int, int, str]]:
    """Runs of one code: first row, last row, code."""
    found: list[tuple[int, int, str]] = []
    start = 0
    for row in range(1, len(codes) + 1):
        if row == len(codes) or codes[row] != codes[start]:
            code = codes[start]
            if code is not None:
                found.append((start, row - 1, code))
            start = row
    return found
