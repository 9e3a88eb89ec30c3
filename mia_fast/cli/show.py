"""How results look on a terminal."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mia_fast.clock import iso
from mia_fast.workspace import Workspace
from mia_kernels.errors import MiaError

if TYPE_CHECKING:
    import polars as pl

    from mia_fast.alerts import Channel
    from mia_fast.bars.stream import BarsReport
    from mia_fast.features.catalogue import Catalogue
    from mia_fast.features.checks import Report
    from mia_fast.histories import Outcome, Preview, Settings, Survey
    from mia_fast.journal.explain import Explanation
    from mia_fast.live.replay import Summary
    from mia_fast.memory import Check, MemoryStore, Purged
    from mia_fast.memory.learner import Proposal
    from mia_fast.memory.nearest import Nearest
    from mia_fast.options import Levels
    from mia_fast.registry import Version
    from mia_fast.risk import Desk
    from mia_fast.selection import Audit, Filtered, Selection
    from mia_fast.tables import Table as InputTable
    from mia_fast.validate import Finding
    from mia_models.manifest import Manifest

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_NOT_SHOWN = ("sequence", "trade_id", "run_id", "event_id", "detail", "regime_probs")
_FINDINGS_SHOWN = 60
_REASONS_SHOWN = 6
_EXAMPLES = 3
_LEFT_OUT = {"empty": "that are mostly empty", "one value": "of one value", "correlates": "that repeat others"}
_CARRY = 0.0125  # of the price: three months at 5 % a year, the farthest that the traded quarter lies ahead
_PRICE_LEVELS = ("gamma_wall", "call_wall", "put_wall", "zero_gamma")


def say(text: str) -> None:
    """One line for the reader."""
    out.print(escape(text))


def warn(text: str) -> None:
    """One line beside the results."""
    err.print(escape(text), style="yellow")


def fault(error: MiaError) -> None:
    """A known error: what, where, what to do, what happens next."""
    text = Text(f"{error.where}\n" if error.where else "", style="bold")
    text.append(error.what, style="default")
    if error.hint:
        text.append(f"\n\nWhat to do  {error.hint}", style="green")
    if error.then:
        text.append(f"\nNext        {error.then}", style="dim")
    err.print(Panel(text, title=type(error).__name__, title_align="left", border_style="red"))


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner while something short runs."""
    with err.status(what):
        yield


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="cyan")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rows per second; yields ``advance(done, total)``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def simulated(sample: Path) -> None:
    """Say loudly that the demo's market never existed."""
    notice = (sample / "README.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    out.print(Panel(escape(notice), style="yellow", title="SIMULATED DATA", title_align="left"))


def table_report(table: InputTable, place: Workspace) -> None:
    """What an input brought, and what was taken out of it; the rows themselves go to a file."""
    from mia_fast.tables import left_out

    out.print(escape(table.report()), style="dim")
    path = left_out.write(table, place)
    if path is not None:
        warn(
            f"  {table.quarantine.height:,} rows were left out: {_relative(path, place)} lists them with value and hint"
        )


_COLUMNS_SHOWN = 8


def availability(found: pl.DataFrame, *, whole: bool = False) -> None:
    """How many features can be computed, by family, and what the others lack; ``whole`` lists each feature."""
    out.print(f"[bold]{found['available'].sum()}[/bold] of {found.height} features can be computed")
    table = Table(box=None, padding=(0, 2))
    for title in ("Family", "Computed", "Null"):
        table.add_column(title, justify="left" if title == "Family" else "right")
    for (family,), part in found.group_by("family", maintain_order=True):
        count = part["available"].sum()
        table.add_row(str(family), str(count), str(part.height - count))
    out.print(table)
    _wanting(found)
    if not whole:
        return
    listed = Table(box=None, padding=(0, 2))
    for title in ("Feature", "Family", "Stage", "Null for want of", "From"):
        listed.add_column(title, overflow="fold")
    for name, family, stage, available, lacks, wanted in found.iter_rows():
        why = "[green]computed[/green]" if available else f"[yellow]{escape(', '.join(lacks))}[/yellow]"
        listed.add_row(name, family, str(stage), why, escape("; ".join(wanted)))
    out.print(listed)


def _wanting(found: pl.DataFrame) -> None:
    """For each table that is missing in part or whole: what it would have to bring, and to how many features."""
    columns: dict[str, dict[str, None]] = {}
    features: dict[str, set[str]] = {}
    for name, _, _, available, lacks, wanted in found.iter_rows():
        for origin in () if available else wanted or ["bars"]:
            table, _, series = origin.partition(": ")
            columns.setdefault(table, {}).update(dict.fromkeys(series.split(", ") if series else lacks))
            features.setdefault(table, set()).add(name)
    for table, names in columns.items():
        shown = list(names)[:_COLUMNS_SHOWN]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        out.print(
            f"  null for want of [yellow]{escape(table)}[/yellow] ({escape(', '.join(shown))}{more}): "
            f"{len(features[table])} feature{'s' * (len(features[table]) > 1)}"
        )


def feature_checks(report: Report) -> None:
    """The rules, over how many features each was run, and what was found."""
    from mia_fast.features.checks import CHECKS

    broken = [finding.check for finding in report.findings]
    waived = [check for _, check in report.waived]
    table = Table(title=f"Checks of {report.features:,} features", title_justify="left")
    for name, side in (
        ("check", "left"),
        ("rule", "left"),
        ("findings", "right"),
        ("waived", "right"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for name, rule in CHECKS.items():
        said = (rule.__doc__ or "").splitlines()[0]
        count = broken.count(name)
        found = f"[red]{count:,}[/red]" if count else "[green]0[/green]"
        table.add_row(name, said, found, f"{waived.count(name):,}" if name in waived else "")
    out.print(table)
    for over in report.over:
        out.print(f"  over {escape(over)}", style="dim")
    if report.findings:
        listed = Table(title="Findings", title_justify="left", show_lines=True)
        for name in ("feature", "check", "what was seen", "where", "how to repair it"):
            listed.add_column(name, overflow="fold")
        for finding in report.findings[:_FINDINGS_SHOWN]:
            listed.add_row(*map(escape, (finding.feature, finding.check, finding.saw, finding.where, finding.repair)))
        out.print(listed)
        more = len(report.findings) - _FINDINGS_SHOWN
        if more > 0:
            out.print(f"and {more:,} more; --feature NAME shows one feature's")
    for (feature, check), reason in report.waived.items():
        out.print(f"  waived: {escape(feature)}, {check}: {escape(reason)}", style="dim")


def features_written(path: Path, frame: pl.DataFrame, computing: float, writing: float) -> None:
    """Rows, columns, and where the time went."""
    out.print(
        f"{frame.height:,} rows x {frame.width - 1} features to [bold]{escape(str(path))}[/bold]: "
        f"computed in {computing:.2f} s ({frame.height / computing:,.0f} rows/s), written in {writing:.2f} s"
    )


def levels_read(found: list[Levels]) -> None:
    """Of how many snapshots levels are known, and what they are worth."""
    if found:
        grades = Counter(one.status for one in found)
        shown = ", ".join(f"{count:,} {grade}" for grade, count in grades.items())
        out.print(f"levels of {len(found):,} snapshots ({shown})", style="dim")


def levels_unmoved(found: Mapping[str, Sequence[str]]) -> None:
    """Of which levels the prices are null for a symbol, and why."""
    for symbol, reasons in found.items():
        for reason in reasons[:_EXAMPLES]:
            warn(f"{symbol}: no price levels from {reason}")
        if len(reasons) > _EXAMPLES:
            warn(f"{symbol}: nor from {len(reasons) - _EXAMPLES} more snapshots")


def survey(found: Survey) -> None:
    """What the files of a history hold."""
    told: set[str] = set()
    for source in found.sources:
        faults = sum(source.quarantine.values())
        rules = ", ".join(f"{rule} {count:,}" for rule, count in source.quarantine.items())
        quarantined = f"; quarantined {faults:,} ({rules})" if faults else ""
        out.print(escape(f"bars from {source.path}: {source.rows:,} rows{quarantined}"), style="dim")
        for note in source.notes:
            if note not in told:
                out.print(escape(f"  {note}"), style="dim")
        told.update(source.notes)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("symbol", "bars", "length", "first", "last", "months", "files"):
        table.add_column(name, justify="right" if name in ("bars", "months", "files") else "left", no_wrap=True)
    for name, own in found.symbols.items():
        table.add_row(
            name,
            f"{found.rows(name):,}",
            f"{found.interval_ns(name) / 1e9:g} s",
            _minute(own[0].spans[name].first),
            _minute(own[-1].spans[name].last),
            f"{len(found.months(name)):,}",
            f"{len(own):,}",
        )
    out.print(table)
    for name in found.symbols:
        for column, files_without in found.partial(name).items():
            some = ", ".join(files_without[:3]) + (", ..." if len(files_without) > 3 else "")
            out.print(f"  {escape(name)}: [yellow]{escape(column)}[/yellow] is missing in {escape(some)}: null there")


def history_preview(found: Preview, settings: Settings, declared: Catalogue, *, whole: bool = False) -> None:
    """What a run would compute and write."""
    from mia_fast.features.frame import availability as features_of

    survey(found.survey)
    seen: dict[str, list[str]] = {}
    for name, own in found.plans.items():
        seen.setdefault(own.digest, []).append(name)
    for names in seen.values():
        if len(seen) > 1:
            out.print(f"[bold]{escape(', '.join(names))}[/bold]")
        availability(features_of(declared, [found.plans[names[0]]]), whole=whole)
    empty: dict[str, list[str]] = {}
    for column, share in found.null_shares.items():
        empty.setdefault(f"{share:.0%}", []).append(column)
    for much, columns in empty.items():
        few = columns if whole else columns[:6]
        more = f" and {len(columns) - len(few)} more (--plan lists them)" if len(columns) > len(few) else ""
        out.print(f"  null in {much} of the rows looked at: [yellow]{escape(', '.join(few))}[/yellow]{more}")
    out.print(
        f"Expected size: [bold]{_size(found.bytes)}[/bold] ({found.survey.total:,} rows x "
        f"{found.bytes_per_row:,.0f} bytes as {settings.dtype}, {settings.compression}; "
        f"measured on the first {found.sample_rows:,} rows). "
        "Nothing was written."
    )


def history_written(done: Outcome) -> None:
    """Rows, parts, size, and where the time went."""
    manifest = done.manifest
    what = (
        f"{manifest.rows:,} rows x {len(manifest.features)} features in {len(manifest.parts):,} parts, "
        f"{_size(manifest.bytes)}, in [bold]{escape(str(done.folder))}[/bold]"
    )
    if done.complete_before:
        out.print(f"{what}\nThis history was complete already: every part was checked, nothing was computed again.")
        return
    earlier = manifest.rows - done.rows
    resumed = f", {earlier:,} of them before this run" if earlier else ""
    total = done.reading + done.computing + done.writing
    shares = ", ".join(
        f"{name} {spent:.2f} s ({spent / max(total, 1e-9):.0%})"
        for name, spent in (("reading", done.reading), ("computing", done.computing), ("writing", done.writing))
    )
    speed = f"{done.rows / max(total, 1e-9):,.0f} rows/s" if done.rows else "nothing was left to compute"
    out.print(f"{what}{resumed}\n{shares}: {speed}", soft_wrap=True)


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def selection(chosen: Selection) -> None:
    """Which features were chosen, and how sure the choice is."""
    table = Table(
        title=f"Choice for {chosen.target}", title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    taken = "; all candidates were taken, there are fewer than asked for" if chosen.all_taken else ""
    table.add_row(
        "Chosen", f"{len(chosen.names)} of {chosen.candidates} candidates ({chosen.features} in the catalogue){taken}"
    )
    table.add_row("Period", f"{chosen.period[0][:16]} to {chosen.period[1][:16]}: {chosen.rows:,} rows")
    table.add_row("Used", f"{chosen.rows_used:,} rows, {sum(fold.shap_rows for fold in chosen.folds):,} explained")
    table.add_row("Skill by fold", ", ".join(f"{fold.skill:+.4f}" for fold in chosen.folds))
    agree = ", ".join(f"best {k}: {share:.0%}" for k, share in chosen.stability.overlap.items())
    table.add_row("Two folds share", f"{agree}; rank correlation {chosen.stability.rank_correlation:.2f}")
    table.add_row("First", ", ".join(chosen.names[:10]))
    table.add_row("Digest", chosen.digest)
    out.print(table)
    poor = sum(fold.skill <= 0 for fold in chosen.folds)
    if 2 * poor >= len(chosen.folds):
        warn(
            f"{poor} of {len(chosen.folds)} folds predict no better than the mean of their training rows: "
            "this order is that of fitted noise."
        )
    why: dict[str, list[str]] = {}
    for name, reason in chosen.not_candidates.items():
        why.setdefault(reason.split()[0], []).append(name)
    for reason, names in why.items():
        some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        out.print(escape(f"  no candidates ({reason}): {some}"))


def audit(found: Audit) -> None:
    """The features that drift most, and those with most empty values."""
    frame = found.frame
    table = Table(title=f"{frame.height} features, {found.rows:,} rows: the largest drift", title_justify="left")
    for name in ("feature", "empty", "outliers", "|SHAP|", "drift", "at worst", "in"):
        table.add_column(name, justify="left" if name in ("feature", "in") else "right", no_wrap=name == "feature")
    for row in frame.sort("drift", descending=True, nulls_last=True).head(12).iter_rows(named=True):
        table.add_row(
            row["feature"],
            f"{row['nan_ratio']:.2%}",
            f"{row['outlier_count']:,}",
            "-" if row["shap_value"] is None else f"{row['shap_value']:.5f}",
            "-" if row["drift"] is None else f"{row['drift']:.2f}",
            "-" if row["drift_worst"] is None else f"{row['drift_worst']:.2f}",
            row["drift_month"] or "-",
        )
    out.print(table)
    shifted = int((frame["drift"] > 0.25).sum())
    empty = int((frame["nan_ratio"] > 0.4).sum())
    out.print(
        f"{shifted} features drift by more than 0.25 against {found.reference[0][:10]} to {found.reference[1][:10]}; "
        f"{empty} are empty in more than 40 % of the rows"
    )


def filtered(done: Filtered) -> None:
    """What was left out, kept in spite of a rule, and clipped."""
    out.print(f"[bold]{done.frame.height:,}[/bold] rows x {done.frame.width - 1} features")
    kinds: dict[str, dict[str, str]] = {}
    for name, why in done.dropped.items():
        kind = next((said for word, said in _LEFT_OUT.items() if word in why), "for other reasons")
        kinds.setdefault(kind, {})[name] = why
    for kind, own in kinds.items():
        if len(own) > _REASONS_SHOWN:
            out.print(escape(f"  left out {len(own)} {kind}: {', '.join(own)}"))
        else:
            for name, why in own.items():
                out.print(escape(f"  left out {name}: {why}"))
    for name, why in done.kept.items():
        out.print(f"  [yellow]kept[/yellow] {escape(f'{name}, it was chosen: {why}')}")
    out.print(
        f"  clipped {sum(done.clipped.values()):,} values of {len(done.clipped)} features; "
        f"left out {done.rows_dropped:,} rows that were mostly empty"
    )


def summary(done: Summary, place: Workspace) -> None:
    """The table a replay ends with."""
    table = Table(title=f"Replay {done.run_id}", title_justify="left", show_header=False, box=None, padding=(0, 2))
    resumed = f", of which {done.resumed_at:,} before it was resumed" if done.resumed_at else ""
    table.add_row("Bars", f"{done.bars:,} from {_minute(done.first)} to {_minute(done.last)}{resumed}")
    lacking = "; mia-fast features BARS --plan says what the others lack" if done.null_features else ""
    table.add_row("Features", f"{done.features} of {done.features + len(done.null_features)} computed{lacking}")
    actions = ", ".join(f"{done.tally.actions[name]:,} {name}" for name in ("buy", "sell", "exit", "hold"))
    blocked = sum(done.tally.blocks.values())
    table.add_row("Decisions", actions + (f"; {blocked:,} of them blocked" if blocked else ""))
    table.add_row("Reasons", _counts(done.tally.reasons))
    if (idle := _idle(done, place)) is not None:
        table.add_row("[yellow]Idle[/yellow]", f"[yellow]{escape(idle)}[/yellow]")
    profit = done.equity - done.starting_equity
    table.add_row("Trades", f"{done.trades:,}, {done.wins:,} winners; result {profit:+,.2f} USD")
    latched = f", [red]latched at {_minute(done.tally.latched_at)}[/red]" if done.tally.latched_at else ""
    table.add_row("Largest drawdown", f"{done.tally.max_drawdown:.2%}{latched}{_limit(done, place)}")
    table.add_row("Levels", _levels_line(done))
    table.add_row("Memory", done.memory)
    here = done.bars - done.resumed_at
    if here:
        table.add_row("Time", f"{done.seconds:.1f} s for {here:,} bars: {here / done.seconds:,.0f} bars/s")
    out.print(table)
    if not here:
        out.print("This run was complete already; nothing was computed again. --fresh runs it from its first bar.")
        files(done.files, place)
        return
    out.print(_blocks(done))
    spread = Table(title="Latency per bar, microseconds", title_justify="left")
    spread.add_column("stage")
    spread.add_column("p50", justify="right")
    spread.add_column("p99", justify="right")
    for stage, (middle, high) in done.latency_us.items():
        spread.add_row(stage, f"{middle:,.1f}", f"{high:,.1f}", style="bold" if stage == "whole bar" else "")
    out.print(spread)
    files(done.files, place)


def _limit(done: Summary, place: Workspace) -> str:
    """The limit in force, where it was tightened or trading was stopped."""
    import polars as pl

    from mia_fast import config

    most = config.market(place).max_drawdown
    limits = done.marks.select("known_at", "drawdown_limit").filter(pl.col("drawdown_limit").is_finite())
    at = done.tally.latched_at
    seen = limits if at is None else limits.filter(pl.col("known_at") <= at).tail(1)
    if seen.is_empty():
        return ""
    low = float(seen["drawdown_limit"].min())  # type: ignore[arg-type]  # the column is Float64 and not empty
    if low < most:
        what = "at its lowest" if at is None else "at that bar"
        return f"\nlimit {low:.2%} {what}: max_drawdown {most:.2%}, tightened by the market memory's losing states"
    return "" if at is None else f"\nlimit {most:.2%} (max_drawdown)"


_CAUSE: Final = re.compile(r"(?:FEATURE_MISSING|MODEL_INPUT_NOT_FINITE)\w*: (?:feature=)?(\w+)")


def _idle(done: Summary, place: Workspace) -> str | None:
    """Why a run could not trade at most of its bars, and what would help; None where it could."""
    from mia_fast.features import catalogue

    causes = {match[1]: count for text, count in done.tally.reasons.items() if (match := _CAUSE.search(text))}
    if 2 * sum(causes.values()) < done.bars:
        return None
    name = max(causes, key=lambda one: causes[one])
    lacks = done.null_features.get(name)
    if lacks is None:
        return (
            f"{name} had no value at {causes[name]:,} bars: its warm-up was not over. "
            "Give bars of earlier sessions and begin with --start behind them (docs/features.md: warm-up)"
        )
    origins = {column.name: column.origin for column in catalogue.read(place).inputs}
    wanted = ", ".join(dict.fromkeys(origins[column] for column in lacks if column in origins)) or ", ".join(lacks)
    tables = {column.name: column.table for column in catalogue.read(place).inputs}
    options = {"daily": "--cross", "minute": "--cross", "levels": "--chain", "events": "--events"}
    given = ", ".join(dict.fromkeys(options[tables[c]] for c in lacks if tables.get(c) in options))
    return f"{name} needs {wanted}" + (f": give it with {given}" if given else "")


def bars(report: BarsReport) -> None:
    """What ticks became: bars, rows taken out, trades outside the sessions, gaps by cause."""
    out.print(f"{report.trades:,} trades ({report.events:,} events) to [bold]{report.bars:,} bars[/bold]")
    for rule, count in report.quarantine.items():
        row, column, value, _, hint = next(line for line in report.examples if line[3] == rule)
        out.print(f"  [yellow]quarantined {count:,}: {rule}[/yellow] (first: row {row}, {escape(f'{column} {value}')})")
        out.print(f"    {escape(hint)}", style="green")
    if report.suspect:
        out.print("  [red]a sequence gap: the book after it is suspect until it is cleared[/red]")
    if report.outside:
        out.print(f"  [yellow]{report.outside:,} trades outside every session: used in no bar[/yellow]")
    if report.crossed:
        out.print(f"  {report.crossed:,} snapshots crossed, locked or one-sided (auctions): no order flow from them")
    if report.without_side:
        out.print(f"  {report.without_side:,} trades without an aggressor (auctions, or not told)")
    if report.gaps is not None:
        for cause, events, missing in report.gaps.sql(
            "SELECT cause, COUNT(*), SUM(bars) FROM self GROUP BY cause ORDER BY cause"
        ).rows():
            out.print(f"  gaps, {cause}: {events:,} with {missing:,} bars that are not there")
    out.print(f"[bold]Written[/bold]\n  {escape(str(report.path))}")


_MONEY: Final = frozenset({"net_gamma", "vanna_exposure", "vanna_cliff_slope", "charm_exposure"})
_COUNTS: Final = frozenset(
    {"open_interest", "open_interest_calls", "open_interest_puts", "contracts", "contracts_live"}
)
_LEVELS: Final = {
    "quote_time": "",
    "market_time": "",
    "underlying_price": "",
    "ref_px": "by parity",
    "gamma_wall": "",
    "call_wall": "",
    "put_wall": "",
    "zero_gamma": "",
    "zero_gamma_status": "",
    "key_strikes_1": "",
    "key_strikes_2": "",
    "key_strikes_3": "",
    "key_strikes_4": "",
    "key_strikes_5": "",
    "max_pain": "nearest expiry",
    "vol_trigger": "a proxy",
    "net_gamma": "USD per 1 %",
    "dealer_position_bias": "-1 .. 1",
    "gamma_notional_distribution": "0 .. 1 (even)",
    "vanna_exposure": "USD per vol pt",
    "vanna_cliff_slope": "the same, 1 % up",
    "charm_exposure": "USD per day",
    "iv_atm": "30 days",
    "iv_atm_nearest": "",
    "risk_reversal_25": "call - put",
    "butterfly_25": "",
    "option_skew": "> 0: puts dearer",
    "iv_skew": "< 0: puts dearer",
    "atm_straddle_cost": "of the price",
    "option_spread_cost": "median, at money",
    "oi_concentration": "",
    "open_interest_calls": "",
    "open_interest_puts": "",
    "open_interest_date": "",
    "coverage": "",
    "contracts": "",
    "contracts_live": "",
}


def levels(found: Levels, place: Workspace) -> None:
    """Dealer levels as a table."""
    record = found.record()
    colour = {"OK": "green", "DEGRADED": "yellow"}.get(found.status, "red")
    table = Table(title=f"Dealer levels  [{colour}]{found.status}[/{colour}]", title_justify="left", show_header=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    for name, meaning in _LEVELS.items():
        value = record[name]
        if name in _MONEY:
            text = _money(value)
        elif name in _COUNTS and value is not None:
            text = f"{value:,.0f}"
        else:
            text = _value(value)
        table.add_row(name, text, f"[dim]{meaning}[/dim]")
    out.print(table)
    for reason in found.reasons:
        out.print(f"  reason  [yellow]{escape(reason)}[/yellow]", soft_wrap=True)
    for note in found.notes:
        out.print(f"  note    {escape(note)}", soft_wrap=True)
    if found.buckets:
        _buckets(found)
    if found.path is not None:
        files([found.path], place)


def _buckets(found: Levels) -> None:
    """The levels by expiry, side by side."""
    table = Table(title="By expiry", title_justify="left")
    table.add_column("", no_wrap=True)
    for bucket in found.buckets:
        table.add_column(f"{bucket.name} ({bucket.expiries})", justify="right")
    for name in (
        "last_expiry",
        "open_interest",
        "zero_gamma",
        "gamma_wall",
        "call_wall",
        "put_wall",
        "net_gamma",
        "dealer_position_bias",
        "vanna_exposure",
        "charm_exposure",
        "coverage_near",
    ):
        if name in _COUNTS:
            texts = [f"{getattr(bucket, name):,.0f}" for bucket in found.buckets]
        else:
            shown = _money if name in _MONEY else _value
            texts = [shown(getattr(bucket, name)) for bucket in found.buckets]
        table.add_row(name, *texts)
    out.print(table)


def files(paths: Sequence[Path], place: Workspace) -> None:
    """Files that were written, relative to the workspace where they lie in it."""
    out.print("[bold]Written[/bold]")
    for path in paths:
        shown = path.relative_to(place.root) if path.is_relative_to(place.root) else path
        out.print(f"  {escape(str(shown))}", soft_wrap=True)


def simulated_files(paths: Mapping[str, Path]) -> None:
    """Files of a simulated market."""
    for name, path in paths.items():
        out.print(f"  {name:<13} {path.stat().st_size / 1e3:>9,.0f} kB  {escape(str(path))}", soft_wrap=True)


def warm(seconds: Mapping[str, float], where: Path) -> None:
    """Seconds by step, and where the machine code is."""
    steps = ", ".join(f"{name} {spent:.2f} s" for name, spent in seconds.items())
    out.print(f"Kernels are ready: {steps}\n  {escape(str(where))}", soft_wrap=True)


def trained(manifest: Manifest, folder: Path) -> None:
    """Errors out of sample against the best baseline of each row."""
    table = Table(title=f"{manifest.name} {manifest.version}: mean error out of sample", title_justify="left")
    words = ("output", "period", "view", "served", "best baseline")
    for name in (*words, "error", "baseline's", "gain", "95 %"):
        table.add_column(name, justify="left" if name in words else "right")
    for row in manifest.metrics:
        table.add_row(
            row.output,
            row.period,
            row.view,
            row.model,
            row.best_baseline,
            f"{row.errors[row.model]:.4g}",
            f"{row.errors[row.best_baseline]:.4g}",
            f"{row.gain:+.1%}",
            f"{row.gain_low:+.1%} to {row.gain_high:+.1%}",
            style="" if row.gain > 0 else "yellow",
        )
    out.print(table)
    out.print(f"Model card: {escape(str(folder / manifest.name))}.md", soft_wrap=True)


def config_files(found: Sequence[tuple[str, Path, bool]]) -> None:
    """The configuration files by name, where each is read from."""
    table = Table(title="Configuration", title_justify="left", box=None, padding=(0, 2))
    for column in ("file", "from", "path"):
        table.add_column(column, overflow="fold")
    for name, path, own in found:
        table.add_row(name, "[green]workspace[/green]" if own else "shipped", escape(str(path)))
    out.print(table)


def findings(found: Sequence[Finding], scanned: int, configs: int) -> None:
    """What validation found."""
    for item in found:
        place = f"{item.path}:{item.line}" if item.line else str(item.path)
        out.print(f"[red]{escape(place)}[/red] {escape(item.what)}", soft_wrap=True)
        if item.hint:
            out.print(f"    {escape(item.hint)}", style="green")
    verdict = f"[red]{len(found)} findings[/red]" if found else "[green]nothing found[/green]"
    out.print(f"{verdict} in {scanned:,} files and {configs} configuration files")


def risk(here: Desk, now_ns: int) -> None:
    """The desk's risk state."""
    controller = here.controller
    table = Table(title="Risk", title_justify="left", show_header=False)
    table.add_row("state", controller.state.name)
    latch = controller.latch
    if latch is not None:
        table.add_row("latched", f"[red]{latch.cause}[/red] since {iso(latch.at_ns)}")
        table.add_row("to clear it", 'mia-fast risk reset --reason "..."')
    table.add_row("drawdown limit", _value(controller.limit))
    table.add_row("peak equity", _value(controller.peak if math.isfinite(controller.peak) else None))
    if controller.day_denial is not None:
        table.add_row("trade date", f"[red]{escape(str(controller.day_denial))}[/red]")
    table.add_row("entries in the trade date", str(controller.entries))
    table.add_row("overtrade_risk_score", _value(controller.overtrade_risk_score()))
    windows = here.windows()
    for name, blocked in (
        ("event calendar", windows.calendar.blocked(now_ns)),
        ("trading hours", windows.closed(now_ns)),
        ("closures and expiry", windows.blackout(now_ns)),
    ):
        table.add_row(name, "open" if blocked is None else f"[yellow]{escape(blocked.told())}[/yellow]")
    table.add_row("journal", here.journal.health())
    out.print(table)


def left(here: Desk) -> None:
    """Say so where the journal's rows wait for another process."""
    from mia_fast.risk.desk import WorkspaceJournal

    if isinstance(here.journal, WorkspaceJournal) and here.journal.left is not None:
        say(f"{here.journal.left}: the journal's lines wait in data/journal/outbox, that process takes them")


def _blocks(done: Summary) -> Table:
    """Entries refused and bars closed to entries, by code."""
    closed = {code: (size, first, last) for code, size, first, last in _closed(done.marks)}
    refused = done.tally.blocks
    table = Table(title="Blocked, by code: entries refused, and bars at which none could pass", title_justify="left")
    table.add_column("code", no_wrap=True)
    table.add_column("entries", justify="right")
    table.add_column("bars", justify="right")
    table.add_column("first", no_wrap=True)
    table.add_column("last", no_wrap=True)
    for code in sorted({*closed, *refused}, key=lambda code: (-refused[code], -closed.get(code, (0,))[0], code)):
        size, first, last = closed.get(code, (0, *done.tally.block_spans.get(code, (None, None))))
        table.add_row(code, f"{refused[code]:,}", f"{size:,}", _minute(first), _minute(last))
    if not table.row_count:
        table.add_row("none", "0", "0", "-", "-")
    return table


def _closed(marks: pl.DataFrame) -> list[tuple[str, int, int, int]]:
    """Code, bars, first and last instant of what closed the gate by itself."""
    import polars as pl

    groups = marks.filter(pl.col("closed_by").is_not_null()).group_by("closed_by", maintain_order=True)
    at = pl.col("known_at")
    return groups.agg(pl.len(), at.min().alias("first"), at.max().alias("last")).rows()


def rows(frame: pl.DataFrame, most: int) -> None:
    """The result of a query."""
    table = Table(show_edge=False)
    for name, kind in frame.schema.items():
        table.add_column(escape(name), justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in frame.head(most).iter_rows():
        table.add_row(*(_cell(value) for value in row))
    out.print(table)
    more = f", the first {most:,} shown" if frame.height > most else ""
    out.print(f"{frame.height:,} rows{more}", style="dim")


def records(frame: pl.DataFrame, most: int) -> None:
    """The result of a query, one row below the other: a line for each column that holds anything."""
    width = max((len(name) for name in frame.columns), default=0)
    for number, row in enumerate(frame.head(most).iter_rows(named=True), 1):
        out.print(f"[bold]row {number:,}[/bold]")
        for name, value in row.items():
            if value is not None:
                out.print(f"  {escape(name):<{width}}  {_cell(value)}", soft_wrap=True)
    more = f", the first {most:,} shown" if frame.height > most else ""
    out.print(f"{frame.height:,} rows{more}; columns without a value are left out", style="dim")


def explanation(found: Explanation) -> None:
    """A decision with everything that belongs to it."""
    decision = found.decision
    title = f"{decision['trade_id']}: {decision['decision']}, {decision['verdict'] or 'not gated'}"
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in decision.items():
        if name not in ("trade_id", "decision", "verdict") and value is not None:
            table.add_row(name, _cell(value))
    for name, row in (("levels", found.levels), ("risk", found.risk), ("trade", found.trade)):
        if row is not None:
            held = {key: value for key, value in row.items() if value is not None and key not in _NOT_SHOWN}
            table.add_row(name, ", ".join(f"{key} {_cell(value)}" for key, value in held.items()))
    for alert in found.alerts:
        table.add_row(f"alert {alert['priority']}", escape(alert["message"]))
    out.print(table)
    if found.features:
        seen = Table(title=f"Features seen: {len(found.features)}", title_justify="left", show_header=False, box=None)
        pairs = [(escape(name), f"{value:.6g}") for name, value in found.features.items()]
        half = -(-len(pairs) // 2)
        for k in range(half):
            seen.add_row(*(text for pair in pairs[k::half] for text in pair))
        out.print(seen)


def channels(found: Sequence[tuple[str, Channel | MiaError]], counts: Mapping[str, Mapping[str, int]]) -> None:
    """The alert channels and what waits for them."""
    if not found:
        out.print("No channel is configured: alerts stay in the journal (config/alerts.yaml).")
        return
    table = Table(title="Alert channels", title_justify="left")
    for name in ("channel", "service", "waiting", "sent (7 days)", "given up"):
        table.add_column(name)
    for name, channel in found:
        service = f"[red]{escape(channel.what)}[/red]" if isinstance(channel, MiaError) else escape(channel.service)
        held = counts.get(name, {})
        table.add_row(name, service, *(f"{held.get(state, 0):,}" for state in ("waiting", "sent", "expired")))
    out.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return "null" if value is None else escape(repr(value) if isinstance(value, float) else str(value))


def _levels_line(done: Summary) -> str:
    levels = done.levels
    if levels is None:
        return "none"
    if levels.status == "NO_CHAIN":
        return f"NO_CHAIN: every level is null ({escape(levels.reasons[0]) if levels.reasons else 'no chain'})"
    text = f"{levels.status}, {done.snapshots} snapshot{'s' * (done.snapshots > 1)}; "
    text += ", ".join(f"{name} {_value(getattr(levels, name))}" for name in _PRICE_LEVELS)
    moved = done.future_levels
    if moved is not None and moved.basis is not None and moved.status == "OK":
        text += f"\non the future (basis {moved.basis:+.2f}): "
        text += ", ".join(f"{name} {_value(getattr(moved.levels, name))}" for name in _PRICE_LEVELS)
        share = abs(moved.basis) / levels.underlying_price if levels.underlying_price else 0.0
        if share > _CARRY:
            text += (
                f"\n[yellow]the basis is {share:.1%} of the price, more than a quarter's carry at 5 % a year: "
                "are the bars back-adjusted?[/yellow]"
            )
    elif moved is not None:
        text += f"\non the future: {escape(moved.reason or moved.status)}"
    return text


def _counts(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{count:,} {code}" for code, count in sorted(counts.items(), key=lambda pair: -pair[1]))


def _minute(ns: int | None) -> str:
    return "-" if ns is None else iso(ns)[:16].replace("T", " ") + "Z"


def _money(value: float | None) -> str:
    return "null" if value is None else f"{value / 1e6:,.1f} m"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "unknown"
        return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"
    return escape(str(value))


def memory(store: MemoryStore, place: Workspace) -> None:
    """What the memory holds."""
    counts, (first, last) = store.counts(), store.span()
    manifest = store.manifest
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("Memory", escape(str(_relative(store.path, place))))
    table.add_row("States", f"{counts.stored:,}" + (f" from {first} to {last} UTC" if counts.stored else ""))
    table.add_row("Compared", f"{counts.compared:,}: {counts.winning:,} winners, {counts.losing:,} losers")
    source = "data/features/selection.json" if manifest.source == "selection" else "the catalogue's bar features"
    table.add_row("By", f"{len(manifest.names)} features: {source}, manifest {manifest.digest}")
    for count, what in (
        (counts.other_manifest, "stored under another list of features"),
        (counts.incomplete, "too many features missing"),
        (counts.unreadable, "cannot be read as a state"),
    ):
        if count:
            table.add_row("Not compared", f"[yellow]{count:,}[/yellow] {what}")
    out.print(table)


def memory_check(found: Check) -> None:
    """Faults in red, what is not used in yellow."""
    for text in found.faults:
        out.print(f"[red]{escape(text)}[/red]")
    for text in found.notes:
        out.print(f"[yellow]{escape(text)}[/yellow]")
    if not found.faults:
        out.print(f"[green]sound[/green]: {found.counts.stored:,} states, {found.counts.compared:,} of them compared")


def purged(done: Purged) -> None:
    """What a purge removed and kept."""
    out.print(f"{done.removed:,} states older than {done.before} UTC removed, {done.kept:,} kept; the file is sound")
    if done.undated:
        out.print(f"[yellow]{done.undated:,} have no timestamp that can be read, and are kept[/yellow]")
    if done.freed_bytes:
        out.print(f"{done.freed_bytes / 2**20:,.1f} MiB given back")


def nearest(found: Nearest) -> None:
    """The neighbours of a moment, with the points that the price moved after each and a line of its way."""
    table = Table(title=f"Nearest to {_minute(found.at_ns)}", title_justify="left", box=None, padding=(0, 2))
    for name in ("state, UTC", "distance", "USD", f"{found.minutes} bars on", ""):
        table.add_column(name, justify="left" if name in ("state, UTC", "") else "right", no_wrap=True)
    for row, path in zip(found.frame.iter_rows(named=True), found.followed, strict=True):
        colour = "green" if (row["profit"] or 0.0) > 0 else "red" if (row["profit"] or 0.0) < 0 else "dim"
        profit = "-" if row["profit"] is None else f"[{colour}]{row['profit']:+,.2f}[/{colour}]"
        moment = "-" if row["timestamp"] is None else f"{row['timestamp']:%Y-%m-%d %H:%M}"
        after = "not there" if len(path) < 2 else f"{path[-1]:+.2f}"
        table.add_row(moment, f"{row['distance']:.2f}", profit, after, _sparks(path))
    out.print(table)
    if found.frame.is_empty():
        out.print("[yellow]Nothing that was known by then can be compared.[/yellow]")


def _sparks(path: Sequence[float], width: int = 16) -> str:
    """A line of blocks: the path sampled, from its lowest to its highest point."""
    if len(path) < 2:
        return ""
    chosen = [path[round(k * (len(path) - 1) / (width - 1))] for k in range(width)]
    low, high = min(path), max(path)
    return "".join("▁▂▃▄▅▆▇█"[int(7 * (x - low) / (high - low)) if high > low else 0] for x in chosen)


def versions(name: str, found: Sequence[Version]) -> None:
    """Versions of a model."""
    table = Table(title=f"Versions of {name}", title_justify="left", box=None, padding=(0, 2))
    for column in ("", "version", "trained to", "gain over its champion", "note"):
        table.add_column(column)
    for one in found:
        gain = "-" if one.gain is None else f"{one.gain:+.1%}"
        mark = "[green]served[/green]" if one.served else ""
        table.add_row(mark, one.version, one.trained_to, gain, escape(one.fault or ""))
    out.print(table)


def proposal(name: str, found: Proposal) -> None:
    """Whether to train again: why, and the features that moved most."""
    for reason in found.reasons:
        warn(reason)
    say(f"{name}: {'train a challenger: mia_fast.retrain_model' if found else 'nothing asks for a new training'}")
    if found.psi:
        table = Table(box=None, padding=(0, 2))
        table.add_column("feature")
        table.add_column("stability index", justify="right")
        for feature in sorted(found.psi, key=lambda one: -found.psi[one])[:10]:
            table.add_row(feature, f"{found.psi[feature]:.3f}")
        out.print(table)


def _relative(path: Path, place: Workspace) -> Path:
    return path.relative_to(place.root) if path.is_relative_to(place.root) else path
