"""How results look on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from mia_fast.features.plan import Plan
    from mia_fast.journal.explain import Explanation
    from mia_fast.live.replay import Summary
    from mia_fast.options import Levels
    from mia_fast.risk import Desk
    from mia_fast.tables import Table as InputTable
    from mia_fast.validate import Finding

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_NOT_SHOWN = ("sequence", "trade_id", "run_id", "event_id", "detail", "regime_probs")
_PRICE_LEVELS = ("gamma_wall", "call_wall", "put_wall", "zero_gamma")


def say(text: str) -> None:
    """One line for the reader."""
    out.print(escape(text))


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


def table_report(table: InputTable) -> None:
    """What an input brought, and what was taken out of it."""
    out.print(escape(table.report()), style="dim")


def plan(found: Plan) -> None:
    """How many features can be computed, and what the others lack."""
    computed = len(found.features) - len(found.missing)
    out.print(f"[bold]{computed}[/bold] of {len(found.features)} features can be computed")
    lacking: dict[tuple[str, ...], list[str]] = {}
    for name, columns in found.missing.items():
        lacking.setdefault(columns, []).append(name)
    for columns, names in lacking.items():
        out.print(f"  null for want of [yellow]{', '.join(columns)}[/yellow]: {', '.join(names)}")


def features_written(path: Path, frame: pl.DataFrame, computing: float, writing: float) -> None:
    """Rows, columns, and where the time went."""
    out.print(
        f"{frame.height:,} rows x {frame.width - 1} features to [bold]{escape(str(path))}[/bold]: "
        f"computed in {computing:.2f} s ({frame.height / computing:,.0f} rows/s), written in {writing:.2f} s"
    )


def summary(done: Summary, place: Workspace) -> None:
    """The table a replay ends with."""
    table = Table(title=f"Replay {done.run_id}", title_justify="left", show_header=False, box=None, padding=(0, 2))
    resumed = f", of which {done.resumed_at:,} before it was resumed" if done.resumed_at else ""
    table.add_row("Bars", f"{done.bars:,} from {_minute(done.first)} to {_minute(done.last)}{resumed}")
    table.add_row("Features", f"{done.features} computed, {len(done.null_features)} null")
    actions = ", ".join(f"{done.tally.actions[name]:,} {name}" for name in ("buy", "sell", "exit", "hold"))
    table.add_row("Decisions", actions)
    table.add_row("Entries blocked", _counts(done.tally.blocks) or "none")
    table.add_row("Reasons", _counts(done.tally.reasons))
    profit = done.equity - done.starting_equity
    table.add_row("Trades", f"{done.trades:,}, {done.wins:,} winners; result {profit:+,.2f} USD")
    latched = f", [red]latched at {_minute(done.tally.latched_at)}[/red]" if done.tally.latched_at else ""
    table.add_row("Largest drawdown", f"{done.tally.max_drawdown:.2%}{latched}")
    table.add_row("Levels", _levels_line(done))
    table.add_row("Time", f"{done.seconds:.1f} s, {(done.bars - done.resumed_at) / done.seconds:,.0f} bars/s")
    out.print(table)
    spread = Table(title="Latency per bar, microseconds", title_justify="left")
    spread.add_column("stage")
    spread.add_column("p50", justify="right")
    spread.add_column("p99", justify="right")
    for stage, (middle, high) in done.latency_us.items():
        spread.add_row(stage, f"{middle:,.1f}", f"{high:,.1f}", style="bold" if stage == "whole bar" else "")
    out.print(spread)
    files(done.files, place)


def levels(found: Levels, place: Workspace) -> None:
    """Dealer levels as a table."""
    record = found.record()
    colour = {"OK": "green", "DEGRADED": "yellow"}.get(found.status, "red")
    table = Table(title=f"Dealer levels  [{colour}]{found.status}[/{colour}]", title_justify="left", show_header=False)
    for reason in found.reasons:
        table.add_row("reason", f"[yellow]{escape(reason)}[/yellow]")
    for name in (
        "quote_time",
        "market_time",
        "underlying_price",
        *_PRICE_LEVELS,
        "zero_gamma_status",
        "key_strikes_1",
        "key_strikes_2",
        "key_strikes_3",
        "key_strikes_4",
        "key_strikes_5",
        "max_pain",
        "net_gamma",
        "dealer_position_bias",
        "iv_atm",
        "iv_atm_nearest",
        "option_skew",
        "coverage",
        "contracts",
        "contracts_live",
    ):
        table.add_row(name, _value(record[name]))
    for note in found.notes:
        table.add_row("note", escape(note))
    out.print(table)
    if found.path is not None:
        files([found.path], place)


def files(paths: Sequence[Path], place: Workspace) -> None:
    """Files that were written, relative to the workspace where they lie in it."""
    out.print("[bold]Written[/bold]")
    for path in paths:
        shown = path.relative_to(place.root) if path.is_relative_to(place.root) else path
        out.print(f"  {escape(str(shown))}")


def simulated_files(paths: Mapping[str, Path]) -> None:
    """Files of a simulated market."""
    for name, path in paths.items():
        out.print(f"  {name:<13} {path.stat().st_size / 1e3:>9,.0f} kB  {escape(str(path))}")


def warm(seconds: Mapping[str, float], where: Path) -> None:
    """Seconds by step, and where the machine code is."""
    steps = ", ".join(f"{name} {spent:.2f} s" for name, spent in seconds.items())
    out.print(f"Kernels are ready: {steps}\n  {escape(str(where))}")


def findings(found: Sequence[Finding], scanned: int, configs: int) -> None:
    """What validation found."""
    for item in found:
        place = f"{item.path}:{item.line}" if item.line else str(item.path)
        out.print(f"[red]{escape(place)}[/red] {escape(item.what)}")
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
    table.add_row("peak equity", _value(controller.peak))
    table.add_row("overtrade_risk_score", _value(controller.overtrade_risk_score()))
    blocked = here.calendar.blocked(now_ns)
    table.add_row("event calendar", "open" if blocked is None else f"[yellow]{escape(str(blocked))}[/yellow]")
    table.add_row("journal", here.journal.health())
    out.print(table)


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
    elif moved is not None:
        text += f"\non the future: {escape(moved.reason or moved.status)}"
    return text


def _counts(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{count:,} {code}" for code, count in sorted(counts.items(), key=lambda pair: -pair[1]))


def _minute(ns: int | None) -> str:
    return "-" if ns is None else iso(ns)[:16].replace("T", " ") + "Z"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"
    return escape(str(value))
