"""Pictures of a choice and an audit: PNG files, and one page that holds all of it."""

from __future__ import annotations

import base64
import html
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
    """The rows of a correlation matrix so that like stands by like: leaves of average linkage on ``1 - |r|``."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = np.clip(1.0 - np.abs(correlation), 0.0, 1.0)
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
    """A bar for the median, a dot for every fold."""
    count = min(_SHOWN, len(selection.names))
    figure, axes = _figure(9.5, 1.6 + 0.19 * count)
    rows = np.arange(count)
    folds = np.array(selection.shap_folds)[:, :count]
    axes.barh(rows, selection.shap_values[:count], height=0.72, color=_BAR, label="median of the folds")
    for k, fold in enumerate(folds):
        axes.plot(fold, rows, ".", color=_DOT, markersize=4.5, alpha=0.75, label="a fold" if k == 0 else None)
    axes.set_yticks(rows, selection.names[:count])
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"mean |SHAP value| on test rows ({selection.target}, {selection.target_unit})", fontsize=9)
    more = f", {count} best" if count < len(selection.names) else ""
    axes.set_title(f"Importance of {len(selection.names)} features{more}: {selection.target}", loc="left", fontsize=11)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _bytes(figure)


def _drift(audit: Audit) -> bytes:
    """Features by their worst month, months from left to right; colours change at the customary marks."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    worst = np.where(np.isnan(audit.drift).all(axis=1), -1.0, np.nanmax(np.nan_to_num(audit.drift, nan=-1.0), axis=1))
    order = np.argsort(-worst, kind="stable")[:_SHOWN]
    names = audit.frame["feature"].to_list()
    figure, axes = _figure(max(7.5, 2.6 + 0.19 * len(audit.months)), 1.9 + 0.19 * len(order))
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
    axes.set_ylim(len(order) - 0.5, -0.5)
    step = max(1, len(audit.months) // 14)
    axes.set_xticks(np.arange(0, len(audit.months), step), audit.months[::step], rotation=60, ha="right")
    shown = f"the {len(order)} that drift most" if len(order) < len(names) else "all features"
    axes.set_title(
        f"Drift by month against {audit.reference[0][:10]} .. {audit.reference[1][:10]}: {shown}",
        loc="left",
        fontsize=11,
    )
    bar = figure.colorbar(mesh, ax=axes, ticks=marks[:-1], fraction=0.035, pad=0.02, extend="max")
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"population stability index (below {_STABLE} stable, above {_SHIFTED} shifted)", fontsize=8)
    return _bytes(figure)


def _correlation(audit: Audit) -> bytes:
    """The correlation matrix with like by like."""
    order = order_of(audit.correlation)
    names = audit.frame["feature"].to_list()
    size = float(np.clip(2.6 + 0.115 * len(order), 7.0, 16.0))
    figure, axes = _figure(size + 1.2, size)
    mesh = axes.imshow(audit.correlation[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    step = max(1, len(order) // 110)
    ticks = np.arange(0, len(order), step)
    labels = [names[order[k]] for k in ticks]
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels)
    axes.tick_params(labelsize=6.5, length=2)
    every = "" if step == 1 else f" (every {step}th is named)"
    axes.set_title(f"Correlation of {len(order)} features, like by like{every}", loc="left", fontsize=11)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.015)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("Pearson correlation", fontsize=8)
    return _bytes(figure)


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th { position: sticky; top: 0; background: #f1f5f9; text-align: left; }
th, td { padding: 3px 8px; border-bottom: 1px solid #e4e7eb; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.box { max-height: 480px; overflow: auto; border: 1px solid #e4e7eb; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 1rem; } dt { color: #52606d; } dd { margin: 0; }
"""


def _page(audit: Audit, pictures: dict[str, str], title: str) -> str:
    captions = {
        "importance": "Bars: median over the folds of the mean absolute SHAP value on rows the fold's model had not "
        "seen. Dots: the folds. A bar whose dots lie far apart was important for a time only.",
        "drift": "Population stability index of each month against the reference. Prices and levels of volatility "
        "shift by nature; a ratio or a score that does so deserves a look.",
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
            parts.append(f"<h2>{name.capitalize()}</h2><p>{captions[name]}</p>")
            parts.append(f'<img alt="{name}" src="data:image/png;base64,{pictures[name]}">')
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


def _chosen(selection: Selection) -> str:
    spread = np.array(selection.shap_folds).std(axis=0)
    rows = [
        (str(k + 1), name, f"{mean:.6g}", f"{wide:.2g}", f"{folds} of {len(selection.folds)}", f"{share:.1%}")
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
    rows = []
    for row in audit.frame.sort("drift_worst", descending=True, nulls_last=True).iter_rows(named=True):
        rows.append(
            (
                row["feature"],
                f"{row['nan_ratio']:.2%}",
                f"{row['outlier_count']:,}",
                "" if row["shap_value"] is None else f"{row['shap_value']:.6g}",
                "" if row["drift"] is None else f"{row['drift']:.3f}",
                "" if row["drift_worst"] is None else f"{row['drift_worst']:.3f}",
                row["drift_month"] or "",
            )
        )
    return _table(("feature", "empty", "outliers", "mean |SHAP|", "drift", "worst month's", "month"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td{_numeric(cell)}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numeric(cell: str) -> str:
    return ' class="n"' if cell[:1].isdigit() or cell[:1] in "+-" else ""
