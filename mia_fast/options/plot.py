"""The picture of a chain's levels: gamma by strike, the gamma profile, the smile by expiry.

Needs matplotlib (the extra ``plot``), which is loaded when a picture is drawn and not before.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mia_fast.clock import NS_PER_SECOND
from mia_fast.errors import DataError
from mia_fast.options.chain import NEW_YORK
from mia_fast.options.levels import Levels, Surface
from mia_kernels import black

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CALLS, _PUTS, _NET, _INK, _FAINT, _FLIP, _TRIGGER = (
    "#2a9d6f",
    "#d1495b",
    "#1d3557",
    "#22272e",
    "#8a929c",
    "#7b3fa0",
    "#e08e0b",
)
_TENORS: Final = (0, 1, 7, 14, 30, 60, 90, 180, 365)


def plot_levels(levels: Levels, surface: Surface, path: Path) -> Path:
    """Draw ``levels`` and the surface they come from to ``path`` (PNG, SVG or PDF by its suffix).

    Parameters
    ----------
    levels
        As :meth:`mia_fast.options.LevelsEngine.update` returned it. Degraded ones are drawn with their reason and
        without what they withhold.
    surface
        ``engine.surface`` after that call.
    path
        The file; it appears whole.

    Raises
    ------
    DataError
        matplotlib is not installed, or there is no live expiry to draw.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(
            "matplotlib is not installed",
            where="levels picture",
            hint="pip install 'mia-fast[plot]'",
            then="no picture was drawn; the levels stand",
        ) from error
    from mia_fast.files import replacing

    if not np.isfinite(surface.atm).any():
        raise DataError(
            "no expiry has a volatility at the money",
            where="levels picture",
            hint="pass a chain with live quotes",
            then="no picture was drawn; the levels stand",
        )
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlesize": 11.5,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "text.color": _INK,
        "axes.grid": True,
        "grid.color": "#e6e8eb",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "svg.fonttype": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(17, 10.5), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, width_ratios=(2.05, 1), height_ratios=(1.15, 1))
        strikes = figure.add_subplot(grid[0, 0])
        profile = figure.add_subplot(grid[1, 0], sharex=strikes)
        smile = figure.add_subplot(grid[0, 1])
        facts = figure.add_subplot(grid[1, 1])
        window = _window(levels, surface)
        _by_strike(strikes, levels, surface, window)
        _profile(profile, levels, surface, window)
        _smile(smile, surface)
        _facts(facts, levels)
        figure.suptitle(_title(levels), x=0.01, ha="left", fontsize=15, fontweight="bold")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png", dpi=130)
    return path


def _title(levels: Levels) -> str:
    roots = "/".join(levels.roots)
    moment = dt.datetime.fromtimestamp((levels.market_time_ns or 0) // NS_PER_SECOND, NEW_YORK)
    verdict = levels.status if levels.status == "OK" else f"{levels.status} - {levels.reasons[0]}"
    return f"{roots} {levels.underlying_price:,.2f}   {moment:%a %d %b %Y %H:%M} New York   {verdict}"


def _window(levels: Levels, surface: Surface) -> tuple[float, float]:
    """Prices shown: two and a half monthly deviations, and at least what the marks need."""
    spot = surface.chain.spot
    width = 2.5 * float(np.nanmedian(surface.atm)) * math.sqrt(30 / 365)
    width = min(max(width, 0.03), 0.15)
    low, high = spot * (1 - width), spot * (1 + width)
    marks = [value for value in (levels.zero_gamma, levels.vol_trigger) if value is not None]
    near = [value for value in marks if abs(value / spot - 1) < 0.19]
    return min([low, *(0.99 * value for value in near)]), max([high, *(1.01 * value for value in near)])


def _unit(size: float) -> tuple[float, str]:
    return (1e9, "USD bn") if size >= 1e9 else (1e6, "USD m")


def _withheld(axes: Axes, levels: Levels) -> None:
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        "withheld\n" + "\n".join(levels.reasons),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=_PUTS,
        fontsize=12,
        fontweight="bold",
    )


def _by_strike(axes: Axes, levels: Levels, surface: Surface, window: tuple[float, float]) -> None:
    axes.set_title("Gamma exposure by strike, all expiries (puts drawn below)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if levels.status != "OK":
        axes.set_xlim(*window)
        _withheld(axes, levels)
        return
    strike = surface.chain.levels
    shown = (strike >= window[0]) & (strike <= window[1])
    strike = strike[shown]
    calls, puts = surface.exposure[0, shown], surface.exposure[1, shown]
    scale, unit = _unit(float(max(calls.max(initial=0.0), puts.max(initial=0.0))))
    gap = float(np.median(np.diff(strike))) if strike.size > 1 else 1.0
    # strikes lie closer near the price: a bar is as wide as the commonest gap, and never a hair
    width = max(0.82 * gap, (window[1] - window[0]) / 330)
    axes.bar(strike, calls / scale, width=width, color=_CALLS, label="calls")
    axes.bar(strike, -puts / scale, width=width, color=_PUTS, label="puts")
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_ylabel(f"{unit} per 1 % move")
    top = float(calls.max(initial=0.0)) / scale
    bottom = -float(puts.max(initial=0.0)) / scale
    if top == bottom:
        top, bottom = 1.0, -1.0
    axes.set_ylim(bottom * 1.12, top + 0.40 * (top - bottom))
    axes.set_xlim(*window)
    _marks(axes, levels, named=True)
    axes.legend(loc="lower left", frameon=False, ncols=2)


def _marks(axes: Axes, levels: Levels, *, named: bool) -> None:
    """Vertical lines of the levels, with their names on two staggered rows."""
    found: list[tuple[float, str, str, str]] = []
    for value, name, colour, dash in (
        (levels.put_wall, "put wall", _PUTS, "--"),
        (levels.call_wall, "call wall", _CALLS, "--"),
        (levels.gamma_wall, "gamma wall", _NET, "--"),
        (levels.zero_gamma, "zero gamma", _FLIP, "-."),
        (levels.vol_trigger, "vol trigger", _TRIGGER, ":"),
        (levels.underlying_price, "spot", _INK, "-"),
    ):
        if value is None:
            continue
        same = next((k for k, item in enumerate(found) if item[0] == value), None)
        if same is None:
            found.append((value, name, colour, dash))
        else:
            found[same] = (value, f"{found[same][1]}, {name}", _NET, "--")
    low, high = axes.get_xlim()
    spot = levels.underlying_price or 0.0
    rows: dict[bool, list[float]] = {True: [], False: []}  # how far from the price each row of labels is taken
    for value, name, colour, dash in sorted(found, key=lambda item: abs(item[0] - spot)):
        if not low <= value <= high:
            continue
        axes.axvline(value, color=colour, linestyle=dash, linewidth=1.6 if name == "spot" else 1.3, zorder=3)
        if not named:
            continue
        below = value < spot
        taken = rows[below]
        distance = abs(value - spot)
        row = next((k for k, end in enumerate(taken) if end < distance), len(taken))
        text = f"{name} {value:,.0f}" if float(value).is_integer() else f"{name} {value:,.1f}"
        length = (high - low) * 0.0105 * (len(text) + 2)  # of the label in prices, at this size of figure
        taken[row : row + 1] = [distance + length]
        axes.annotate(
            text,
            (value, 0.985 - 0.055 * row),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-5 if below else 5, 0),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
            fontsize=9.5,
            va="top",
            ha="right" if below else "left",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
            zorder=6,
        )


def _profile(axes: Axes, levels: Levels, surface: Surface, window: tuple[float, float]) -> None:
    price = np.exp(surface.log_grid)
    shown = (price >= window[0] * 0.995) & (price <= window[1] * 1.005)
    price = price[shown]
    whole = surface.profile[shown]
    scale, unit = _unit(float(np.abs(whole).max(initial=0.0)))
    if levels.status == "OK":
        axes.fill_between(price, whole / scale, 0, where=whole > 0, color=_CALLS, alpha=0.16, interpolate=True)
        axes.fill_between(price, whole / scale, 0, where=whole < 0, color=_PUTS, alpha=0.16, interpolate=True)
        styles: Sequence[Any] = ((0, (1, 1.2)), (0, (4, 2)), (0, (6, 1.5, 1, 1.5)))
        for index, bucket in enumerate(levels.buckets[:-1]):
            if bucket.net_gamma is not None:
                axes.plot(
                    price,
                    surface.bucket_profile[index, 0, shown] / scale,
                    color="#5b6770",
                    linewidth=1.2,
                    linestyle=styles[index % len(styles)],
                    label=f"{bucket.name} ({bucket.expiries})",
                )
        axes.plot(price, whole / scale, color=_NET, linewidth=2.2, label=f"all expiries ({levels.expiries_live})")
        axes.legend(loc="upper left", frameon=False, title="expiries up to", alignment="left")
        for root in levels.zero_gamma_roots:
            if window[0] <= root <= window[1]:
                axes.plot([root], [0], marker="o", color=_FLIP, markersize=7, zorder=5)
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.set_ylabel(f"{unit} per 1 % move")
    else:
        _withheld(axes, levels)
    axes.set_title("Dealers' net gamma if the underlying stood there (volatilities held by strike)")
    axes.set_xlabel("underlying")
    axes.set_xlim(*window)
    if levels.status == "OK":
        _marks(axes, levels, named=False)


def _smile(axes: Axes, surface: Surface) -> None:
    from matplotlib import colormaps

    chain = surface.chain
    days = chain.years * 365.0
    usable = np.flatnonzero((chain.years > 0.0) & np.isfinite(surface.atm))
    chosen: list[int] = []
    for tenor in _TENORS:
        nearest = int(usable[np.argmin(np.abs(days[usable] - tenor))])
        if nearest not in chosen and abs(days[nearest] - tenor) <= max(1.0, 0.35 * tenor):
            chosen.append(nearest)
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(chosen)))
    least, most = math.inf, 0.0
    for group, colour in zip(chosen, colours, strict=True):
        rows = slice(int(chain.start[group]), int(chain.start[group + 1]))
        good = surface.strike_status[rows] == black.OK
        forward = float(surface.terms[black.FORWARD, group])
        x = chain.strike[rows][good] / forward - 1.0
        y = surface.greeks[black.SIGMA, rows][good]
        reach = 4.0 * float(surface.atm[group]) * math.sqrt(float(chain.years[group]))
        near = (np.abs(x) <= 0.15) & (np.abs(x) <= reach)
        if near.any():
            least, most = min(least, float(y[near].min())), max(most, float(y[near].max()))
        when = f"{chain.expiry[group]:%d %b %y}"
        kind = chain.settlement[group] if list(chain.expiry).count(chain.expiry[group]) > 1 else ""
        axes.plot(100 * x[near], 100 * y[near], color=colour, linewidth=1.6, label=f"{when} {kind}".rstrip())
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_title("Smile by expiry")
    axes.set_xlabel("strike from the forward, %")
    axes.set_ylabel("implied volatility, %")
    if most > 0.0:
        axes.set_ylim(max(0.0, 100 * least - 3), 100 * most + 3)
        axes.legend(loc="upper right", frameon=False, fontsize=9)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no volatility near the money", transform=axes.transAxes, ha="center", color=_PUTS)


def _facts(axes: Axes, levels: Levels) -> None:
    """The numbers, by bucket and in total."""
    from matplotlib.transforms import Bbox

    axes.axis("off")

    digits = 0 if (levels.underlying_price or 0.0) >= 1000.0 else 1

    def count(value: float) -> str:
        return f"{value:,.0f}"

    def price(value: float | None) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    def money(value: float | None) -> str:
        if value is None:
            return "-"
        scale, unit = (1e9, "bn") if abs(value) >= 1e9 else (1e6, "m")
        return f"{value / scale:+,.2f} {unit}"

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    rows = [["", *(bucket.name for bucket in levels.buckets)]]
    for name, field, show in (
        ("zero gamma", "zero_gamma", price),
        ("gamma wall", "gamma_wall", price),
        ("call wall", "call_wall", price),
        ("put wall", "put_wall", price),
        ("net gamma, USD/1 %", "net_gamma", money),
        ("vanna, USD/vol pt", "vanna_exposure", money),
        ("charm, USD/day", "charm_exposure", money),
        ("open interest", "open_interest", count),
    ):
        rows.append([name, *(show(getattr(bucket, field)) for bucket in levels.buckets)])
    columns = len(rows[0])
    widths = [0.33, *[0.67 / (columns - 1)] * (columns - 1)]
    table = axes.table(
        rows, bbox=Bbox.from_bounds(0, 0.42, 1, 0.58), edges="horizontal", cellLoc="right", colWidths=widths
    )
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#d9dde1")
        cell.set_text_props(fontsize=9.3, fontweight="bold" if row == 0 or column == 0 else "normal")
        cell.PAD = 0.0
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
    dated = "-" if levels.open_interest_date is None else f"{levels.open_interest_date:%d %b %Y}"
    skew = "-" if levels.option_skew is None else f"{levels.option_skew:.2f}"
    slope = "-" if levels.iv_skew is None else f"{10 * levels.iv_skew:+.1f} %"
    straddle = "-" if levels.atm_straddle_cost is None else f"{100 * levels.atm_straddle_cost:.2f} % of spot"
    bias = "-" if levels.dealer_position_bias is None else f"{levels.dealer_position_bias:+.3f}"
    pairs = [
        ("vol trigger (proxy)", price(levels.vol_trigger)),
        ("dealer bias", bias),
        ("IV 7 / 30 / 60 days", " / ".join(share(v) for v in (levels.iv_7d, levels.iv_atm, levels.iv_60d))),
        ("25-delta risk reversal", share(levels.risk_reversal_25)),
        ("25-delta butterfly", share(levels.butterfly_25)),
        ("option skew (-reversal / IV 30)", skew),
        ("smile slope per 10 % of strike", slope),
        ("nearest straddle", straddle),
        ("median spread near the money", share(levels.option_spread_cost)),
        ("max pain", f"{price(levels.max_pain)} ({levels.max_pain_expiry:%d %b})" if levels.max_pain_expiry else "-"),
        ("coverage", share(levels.coverage)),
        ("open interest of", dated),
    ]
    for index, (name, value) in enumerate(pairs):
        y = 0.37 - 0.0335 * index
        axes.text(0.0, y, name, transform=axes.transAxes, va="center", fontsize=9.3, fontweight="bold")
        axes.text(1.0, y, value, transform=axes.transAxes, va="center", ha="right", fontsize=9.3)
    convention = (levels.sign_convention or "").replace("_", " ")
    said = "\n".join((f"assumed: {convention}", *levels.notes))
    axes.text(0, -0.03, said, transform=axes.transAxes, color=_FAINT, fontsize=8.5, va="top")
