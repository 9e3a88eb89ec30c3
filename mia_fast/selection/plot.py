"""Pictures of a choice and an audit: PNG files, and one page that holds all of it."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import ConfigError
from mia_fast.files import replacing, write_text
from mia_fast.selection.audit import Audit
from mia_fast.selection.data import Floats
from mia_fast.selection.manifest import Selection

PICTURES: Final = ("importance", "drift", "correlation")

_SHOWN: Final = 50
_STABLE, _SHIFTED = 0.1, 0.25
_INK: Final = "#1f2933"
_BAR: Final = "#4c78a8"
_DOT: Final = "#c2410c"
_LINE: Final = "#cbd5e1"
_NOTHING: Final = "#e2e8f0"


def check() -> None:
    """Fail before long work rather than after it.

    Raises
    ------
    ConfigError
        Matplotlib or SciPy is not installed.
    """
    try:
        import matplotlib
        import scipy
    except ImportError as error:
        raise ConfigError(
            f"pictures need {error.name}, which is not installed",
            where="--report",
            hint="pip install 'mia-fast[plot,select]'",
            then="nothing was started",
        ) from error
    del matplotlib, scipy


def draw(audit: Audit, folder: Path) -> list[Path]:
    """Write ``importance.png`` (where features were chosen), ``drift.png`` and ``correlation.png`` to a folder."""
    check()
    paths = []
    for name, picture in _pictures(audit):
        paths.append(folder / f"{name}.png")
        with replacing(paths[-1]) as temporary:
            temporary.write_bytes(picture())
    return paths


def write_page(audit: Audit, path: Path, title: str) -> Path:
    """Write one HTML page with the pictures and the tables in it: it needs no other file and no network."""
    check()
    pictures = {name: base64.b64encode(picture()).decode() for name, picture in _pictures(audit)}
    write_text(path, _page(audit, pictures, title))
    return path


def _pictures(audit: Audit) -> list[tuple[str, Callable[[], bytes]]]:
    chosen = audit.selection
    found: list[tuple[str, Callable[[], bytes]]] = []
    if chosen is not None:
        found.append(("importance", lambda: _importance(chosen)))
    return [*found, ("drift", lambda: _drift(audit)), ("correlation", lambda: _correlation(audit))]


def order_of(correlation: Floats) -> NDArray[np.int64]:
    """The rows of a correlation matrix so that like stands by like: leaves of average linkage on ``1 - |r|``.

    A pair without a correlation is as far apart as one of 0.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = np.clip(1.0 - np.abs(np.nan_to_num(correlation)), 0.0, 1.0)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    flat = squareform(distance, checks=False)
    leaves: NDArray[np.int64] = leaves_list(optimal_leaf_ordering(linkage(flat, "average"), flat)).astype(np.int64)
    return leaves


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)
    return figure, axes


def _bytes(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _importance(selection: Selection) -> bytes:
    """The median as a bar's end, a dot for every fold, a line over their spread; sizes lie far apart, hence logs."""
    count = min(_SHOWN, len(selection.names))
    figure, axes = _figure(9.5, 1.9 + 0.2 * count)
    rows = np.arange(count)
    folds = np.array(selection.shap_folds)[:, :count]
    median = np.array(selection.shap_values[:count])
    positive = median[median > 0]
    left = float(positive.min()) / 10 if len(positive) else 1e-12
    folds, median = np.maximum(folds, left), np.maximum(median, left)
    axes.hlines(rows, folds.min(axis=0), folds.max(axis=0), color=_LINE, linewidth=3.2, label="lowest to highest fold")
    for k, fold in enumerate(folds):
        axes.plot(fold, rows, ".", color=_DOT, markersize=5, alpha=0.8, label="a fold" if k == 0 else None)
    axes.plot(median, rows, "|", color=_BAR, markersize=11, markeredgewidth=2.6, label="median of the folds")
    axes.set_xscale("log")
    axes.set_xlim(left=left)
    axes.set_yticks(rows, selection.names[:count])
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel(
        f"mean |SHAP value| on test rows ({selection.target}, {selection.target_unit}); "
        "logarithmic, at the left edge: that or less",
        fontsize=9,
    )
    axes.tick_params(axis="x", top=True, labeltop=True)
    what = (
        f"the best {count} of {len(selection.names)} features" if count < len(selection.names) else f"{count} features"
    )
    skill = ", ".join(f"{fold.skill:+.2f}" for fold in selection.folds)
    axes.set_title(f"Importance for {selection.target}: {what}\nskill of the folds {skill}", loc="left", fontsize=11)
    axes.grid(axis="both", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _bytes(figure)


def drift_order(audit: Audit) -> list[int]:
    """The features with a drift, family by family as in the catalogue, in each the larger first."""
    found = audit.frame["drift"].to_list()
    place = {family: k for k, family in enumerate(dict.fromkeys(audit.families))}
    there = [k for k, drift in enumerate(found) if drift is not None]
    return sorted(there, key=lambda k: (place[audit.families[k]], -found[k]))


def _drift(audit: Audit) -> bytes:
    """Months from left to right; colours change at the customary marks."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    order = drift_order(audit)
    names = audit.frame["feature"].to_list()
    figure, axes = _figure(max(8.5, 3.4 + 0.19 * len(audit.months)), 2.2 + 0.155 * max(len(order), 8))
    marks = [0.0, _STABLE, _SHIFTED, 0.5, 1.0, 2.0, 4.0, 50.0]
    colours = ["#f1f5f9", "#fde9c8", "#fbc98a", "#f49b55", "#dd6a38", "#b23a2a", "#701c1f"]
    mesh = axes.pcolormesh(
        np.arange(len(audit.months) + 1) - 0.5,
        np.arange(len(order) + 1) - 0.5,
        np.ma.masked_invalid(audit.drift[order]),
        cmap=ListedColormap(colours),
        norm=BoundaryNorm(marks, len(colours)),
    )
    axes.set_yticks(np.arange(len(order)), [names[k] for k in order])
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_ylim(len(order) - 0.5, -0.5)
    families = [audit.families[k] for k in order]
    for row, family in enumerate(families):
        if row == 0 or families[row - 1] != family:
            axes.axhline(row - 0.5, color=_INK, linewidth=1.1)
            last = row + families[row:].count(family)
            axes.text(
                1.012,
                1.0 - (row + last) / 2 / len(order),
                family,
                transform=axes.transAxes,
                fontsize=8.5,
                color=_INK,
                va="center",
            )
    step = max(1, len(audit.months) // 14)
    ticks = np.arange(0, len(audit.months), step)
    axes.set_xticks(ticks, audit.months[::step], rotation=60, ha="right")
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(ticks, audit.months[::step], rotation=60, ha="left")
    upper.tick_params(colors=_INK, labelsize=8)
    without = len(names) - len(order)
    bare = f" ({without} have no value in the reference)" if without else ""
    axes.set_title(
        f"Drift of {len(order)} features by month{bare}\n"
        f"against {audit.reference[0][:10]} to {audit.reference[1][:10]}, in each family the largest over all first",
        loc="left",
        fontsize=11,
    )
    bar = figure.colorbar(
        mesh, ax=axes, ticks=marks[:-1], location="bottom", aspect=40, shrink=0.8, pad=0.01, extend="max"
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"population stability index (below {_STABLE} stable, above {_SHIFTED} shifted)", fontsize=8)
    return _bytes(figure)


def _correlation(audit: Audit) -> bytes:
    """The correlation matrix with like by like; every feature that has correlations is named."""
    there = np.flatnonzero(np.isfinite(np.diagonal(audit.correlation)))
    own = audit.correlation[np.ix_(there, there)]
    order = order_of(own)
    names = audit.frame["feature"].to_list()
    size = float(np.clip(3.2 + 0.105 * len(order), 7.0, 42.0))
    figure, axes = _figure(size + 1.0, size + 0.6)
    axes.set_facecolor(_NOTHING)
    mesh = axes.imshow(
        np.ma.masked_invalid(own[np.ix_(order, order)]), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
    )
    step = -(-len(order) // 400) or 1
    ticks = np.arange(0, len(order), step)
    labels = [names[there[order[k]]] for k in ticks]
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels)
    axes.tick_params(labelsize=6.5, length=2)
    axes.tick_params(labelright=True, right=True, labeltop=True, top=True)
    axes.tick_params(axis="x", rotation=90)
    without = len(names) - len(there)
    bare = f" ({without} others are constant or have too few values)" if without else ""
    every = "" if step == 1 else f"; every {_ordinal(step)} is named"
    axes.set_title(f"Correlation of {len(there)} features{bare}, like by like{every}", loc="left", fontsize=11)
    bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=40, shrink=0.6, fraction=0.03, pad=0.015)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("Pearson correlation on the rows where both have a value; grey: too few", fontsize=8)
    return _bytes(figure)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; display: block; }
.picture { overflow: auto; } input:checked ~ .picture img { max-width: none; }
section > label { font-size: 13px; color: #52606d; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th { position: sticky; top: 0; background: #f1f5f9; text-align: left; }
th, td { padding: 3px 8px; border-bottom: 1px solid #e4e7eb; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.box { max-height: 480px; overflow: auto; border: 1px solid #e4e7eb; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 1rem; } dt { color: #52606d; } dd { margin: 0; }
"""


def _page(audit: Audit, pictures: dict[str, str], title: str) -> str:
    captions = {
        "importance": "Mark: median over the folds of the mean absolute SHAP value on rows the fold's model had not "
        "seen. Dots: the folds. A feature whose dots lie far apart was important for a time only. Skill is 1 less the "
        "model's error by that of the mean: where it is not above 0, the order is that of fitted noise.",
        "drift": "Population stability index of each month against the reference. Prices, levels of volatility and "
        "the calendar shift by nature; a ratio or a score that does so deserves a look. Empty values count as a value "
        "of their own: a feature that is there in the reference only shifts in every month.",
        "correlation": "Red: rise together; blue: move against each other. Blocks on the diagonal say the same thing "
        "several times.",
    }
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        _facts(audit),
    ]
    for name in PICTURES:
        if name in pictures:
            parts.append(f"<section><h2>{name.capitalize()}</h2><p>{captions[name]}</p>")
            parts.append(
                f'<input type="checkbox" id="{name}"><label for="{name}">full size</label><div class="picture">'
                f'<img alt="{name}" src="data:image/png;base64,{pictures[name]}"></div></section>'
            )
    if audit.selection is not None:
        parts += ["<h2>The chosen features, in order</h2>", _chosen(audit.selection)]
        parts += ["<h2>Folds</h2>", _folds(audit.selection)]
    parts += ["<h2>Audit, by drift</h2>", _audited(audit), "</body></html>", ""]
    return "\n".join(parts)


def _facts(audit: Audit) -> str:
    facts = [("Rows", f"{audit.rows:,}"), ("Reference of the drift", " to ".join(audit.reference))]
    chosen = audit.selection
    if chosen is not None:
        taken = " (all candidates: there are fewer than asked for)" if chosen.all_taken else ""
        agree = ", ".join(f"best {k}: {share:.0%}" for k, share in chosen.stability.overlap.items())
        facts += [
            (
                "Chosen",
                f"{len(chosen.names)} of {chosen.candidates} candidates{taken}, {chosen.features} in the catalogue",
            ),
            ("Target", f"{chosen.target} ({chosen.target_unit})"),
            ("Period of the choice", f"{chosen.period[0]} to {chosen.period[1]}, {chosen.rows:,} rows"),
            ("Rank correlation of the folds", f"{chosen.stability.rank_correlation:.2f}"),
            ("What two folds have in common", agree),
            ("Digests", f"selection {chosen.digest}, catalogue {chosen.catalogue}"),
        ]
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _decimals(values: Sequence[float]) -> int:
    """So many that the largest shows five digits."""
    largest = max(values, default=0.0)
    return max(0, 4 - math.floor(math.log10(largest))) if largest > 0 else 1


def _chosen(selection: Selection) -> str:
    digits = _decimals(selection.shap_values)
    spread = np.array(selection.shap_folds).std(axis=0)
    rows = [
        (
            str(k + 1),
            name,
            f"{mean:.{digits}f}",
            f"{wide:.{digits}f}",
            f"{folds} of {len(selection.folds)}",
            f"{share:.1%}",
        )
        for k, (name, mean, wide, folds, share) in enumerate(
            zip(
                selection.names,
                selection.shap_values,
                spread.tolist(),
                selection.stability.folds_selected,
                selection.coverage,
                strict=True,
            )
        )
    ]
    heads = ("", "feature", "|SHAP|, median of folds", "deviation over folds", "chosen in folds", "coverage")
    return _table(heads, rows)


def _folds(selection: Selection) -> str:
    rows = [
        (
            str(k + 1),
            f"{fold.train_rows:,}",
            fold.train_end[:16],
            f"{fold.test_first[:16]} to {fold.test_last[:16]}",
            f"{fold.test_rows:,}",
            f"{fold.skill:+.4f}",
        )
        for k, fold in enumerate(selection.folds)
    ]
    return _table(("", "rows to train", "their targets end", "test block", "rows", "skill against the mean"), rows)


def _audited(audit: Audit) -> str:
    digits = _decimals(audit.frame["shap_value"].drop_nulls().to_list())
    rows = []
    for row in audit.frame.sort("drift", descending=True, nulls_last=True).iter_rows(named=True):
        rows.append(
            (
                row["feature"],
                f"{row['nan_ratio']:.2%}",
                f"{row['outlier_count']:,}",
                "" if row["shap_value"] is None else f"{row['shap_value']:.{digits}f}",
                "" if row["drift"] is None else f"{row['drift']:.3f}",
                "" if row["drift_worst"] is None else f"{row['drift_worst']:.3f}",
                row["drift_month"] or "",
            )
        )
    return _table(("feature", "empty", "outliers", "mean |SHAP|", "drift", "worst month's", "month"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kinds = [_numeric(cell) for cell in rows[0]] if rows else [""] * len(heads)
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(heads, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{_numeric(cell)}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numeric(cell: str) -> str:
    return ' class="n"' if cell[:1].isdigit() or cell[:1] in "+-" else ""
