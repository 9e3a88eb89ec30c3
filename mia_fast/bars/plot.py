"""A picture of bars: price, volume, order-flow imbalance, sessions shaded. Needs the extra ``plot``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mia_fast.files import replacing
from mia_fast.plot import check

_UP, _DOWN, _INK = "#2a7f62", "#b5413b", "#30343b"


def draw(frame: pl.DataFrame, path: Path, title: str) -> None:
    """Draw bars to a file whose ending decides the format.

    Gaps take no room: bars stand side by side, labelled with their time (UTC); every second session is shaded.

    Parameters
    ----------
    frame
        Bars as :class:`mia_fast.bars.BarBuilder` makes them.

    Raises
    ------
    ConfigError
        Matplotlib is not installed, or the file's ending is none that it writes.
    """
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x = np.arange(frame.height)
    rising = (frame["close"] >= frame["open"]).to_numpy()
    colours = np.where(rising, _UP, _DOWN)
    flow, label = _flow(frame)
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1.3])
    price, volume, imbalance = axes
    dates = frame["trade_date"].rle_id().to_numpy()
    edges = np.flatnonzero(np.diff(dates, prepend=dates[:1] - 1, append=dates[-1:] + 1))
    for axis in axes:
        for k, (a, b) in enumerate(itertools.pairwise(edges)):
            if k % 2:
                axis.axvspan(a - 0.5, b - 0.5, color="#e9edf3", lw=0, zorder=0)
        axis.grid(axis="y", color="#d9dce2", lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.005)
    price.vlines(x, frame["low"], frame["high"], color=colours, lw=max(0.4, min(1.2, 600 / frame.height)))
    price.plot(x, frame["close"], color=_INK, lw=0.6)
    price.set_ylabel("price")
    price.set_title(title, loc="left", fontsize=11)
    for a in edges[:-1].tolist():
        price.annotate(
            str(frame["trade_date"][a]), (a, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
            textcoords="offset points", fontsize=7, color="#6a707a",
        )  # fmt: skip
    volume.bar(x, frame["volume"], width=0.9, color=colours)
    volume.set_ylabel("volume")
    imbalance.bar(x, flow, width=0.9, color=np.where(np.nan_to_num(flow) >= 0, _UP, _DOWN))
    imbalance.axhline(0, color=_INK, lw=0.6)
    imbalance.set_ylabel(label)
    places = np.unique(np.linspace(0, frame.height - 1, min(8, frame.height)).astype(int))
    imbalance.set_xticks(places, [f"{frame['timestamp'][int(p)]:%m-%d %H:%M}" for p in places])
    imbalance.set_xlabel("UTC")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".").lower() or "png")


def _flow(frame: pl.DataFrame) -> tuple[np.ndarray, str]:
    """Order-flow imbalance where a book was there, else the aggressors' volume."""
    if "ofi" in frame.columns and frame["ofi"].null_count() < frame.height:
        return frame["ofi"].to_numpy(), "order-flow imbalance"
    return frame["delta_volume"].to_numpy(), "ask - bid volume"
