"""The commands. Each reads its arguments, calls one room, and shows what came back."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from mia_fast.cli import show
from mia_fast.sessions import session_open
from mia_fast.workspace import Workspace, shipped

app = typer.Typer(
    name="mia-fast",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Market data into features, dealer levels, predictions, a risk verdict and an audit trail.\n\n"
    "Start with [bold]mia-fast demo[/bold]: two simulated sessions through everything, offline.",
)
risk_app = typer.Typer(no_args_is_help=True, help="The latch: see it, set it, clear it.")
app.add_typer(risk_app, name="risk")
memory_app = typer.Typer(no_args_is_help=True, help="The market memory: what it holds, recalls and forgets.")
app.add_typer(memory_app, name="memory")
models_app = typer.Typer(no_args_is_help=True, help="Versions of the models: see them, serve one, go back.")
app.add_typer(models_app, name="models")
config_app = typer.Typer(no_args_is_help=True, help="The configuration in force: see it, copy it.")
app.add_typer(config_app, name="config")
alerts_app = typer.Typer(no_args_is_help=True, help="Who is told: the alert channels.")
app.add_typer(alerts_app, name="alerts")


def _version(asked: bool) -> None:
    if asked:
        from mia_fast import __version__

        show.say(f"mia-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        envvar="MIA_WORKSPACE",
        help="Folder with the desk's config and data; it may be empty. Default: the current directory.",
        show_default=False,
    ),
]
ChainOption = Annotated[Path | None, typer.Option(help="Option chain (Parquet), one or several snapshots.")]
LevelsOption = Annotated[
    list[Path] | None, typer.Option(help="Option chains, or rows of levels (Parquet); repeat it for several files.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace the file to write, whatever it holds; an input is never replaced.")
]
CrossOption = Annotated[
    list[Path] | None,
    typer.Option(help="Cross-asset closes with the daily VIX (Parquet or CSV); repeat it for several files."),
]


@app.command()
def demo(workspace: WorkspaceOption = None) -> None:
    """Replay two [bold]simulated[/bold] sessions through everything.

    Offline, from the sample that is shipped. Files are written to the folder [bold]demo[/bold] of the workspace, a
    workspace of its own: invented trades never stand beside a desk's.

    Example: [cyan]mia-fast demo --workspace /tmp/desk[/cyan]
    """
    import pyarrow.parquet as pq

    from mia_fast.simulate import FIRST_SESSION

    sample = shipped() / "data" / "sample"
    place = Workspace(Workspace.current(workspace).root / "demo")
    show.simulated(sample)
    show.say(f"Written to {place.root}")
    label = pq.read_schema(sample / "bars.parquet").metadata
    _replay(
        place,
        bars=sample / "bars.parquet",
        events=sample / "events.parquet",
        cross=sample / "cross.parquet",
        chain=sample / "chain.parquet",
        start=session_open(dt.date.fromisoformat(label[FIRST_SESSION.encode()].decode())),
        fresh=True,
    )


@app.command()
def run(
    bars: Annotated[Path, typer.Option(help="Bars of one symbol, or of its contracts over rolls (Parquet or CSV).")],
    events: Annotated[
        Path | None, typer.Option(help="Macro events. Default: data/macro_events.csv of the workspace.")
    ] = None,
    cross: CrossOption = None,
    chain: ChainOption = None,
    start: Annotated[
        dt.datetime | None, typer.Option(help="First trade date (YYYY-MM-DD); earlier bars warm the features.")
    ] = None,
    end: Annotated[dt.datetime | None, typer.Option(help="Last trade date (YYYY-MM-DD).")] = None,
    fresh: Annotated[bool, typer.Option(help="Begin again although a stopped run could be resumed.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of equity, drawdown and blocked times (.png, .svg, .pdf).")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Replay bars through features, prediction, policy, risk gate and journal.

    A run that was stopped goes on from its last checkpoint when it is started again with the same
    inputs. A trade date begins at 18:00 New York on the evening before.

    Example: [cyan]mia-fast run --bars es.parquet --events calendar.parquet --cross vix.parquet
    --start 2022-03-23 --end 2022-03-23 --chain spx.parquet[/cyan]
    """
    if start is not None and end is not None and end < start:
        from mia_fast.errors import ConfigError

        raise ConfigError(
            f"--end {end:%Y-%m-%d} lies before --start {start:%Y-%m-%d}",
            where="--end",
            hint="exchange the two",
            then="nothing was started",
        )
    _replay(
        Workspace.current(workspace),
        bars=bars,
        events=events,
        cross=cross,
        chain=chain,
        start=None if start is None else session_open(start.date()),
        end=None if end is None else session_open(end.date() + dt.timedelta(days=1)),
        fresh=fresh,
        plot=plot,
    )


@app.command()
def features(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="IN... [OUT]",
            help="Bars: files (Parquet, CSV), globs, folders. Last, with two or more: where to write, a folder for a "
            "history, or one .parquet file for one file of bars.",
            show_default=False,
        ),
    ],
    cross: CrossOption = None,
    levels: LevelsOption = None,
    events: Annotated[Path | None, typer.Option(help="Macro events (Parquet or CSV).")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="List every feature by family, and what it lacks.")] = False,
    symbol: Annotated[
        str | None, typer.Option(help="Symbol of files that name none. Default: the instrument's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    compression: Annotated[str, typer.Option(help="zstd, lz4 or uncompressed.")] = "zstd",
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part at most; it bounds the memory.")] = 32_768,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and the expected size; write nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Begin again although a stopped run could go on.")] = False,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Compute the features of bars, or show which of them can be computed.

    A history is written as symbol=.../month=.../part-000.parquet with a manifest.json; DuckDB and Polars read it in
    place. Files may hold several symbols and be named in any order. A run that was stopped, however, goes on when the
    same command is given again. With bars alone, nothing is written.

    Example: [cyan]mia-fast features "bars/es_1m_*.parquet" history --cross vix.parquet --events calendar.csv
    [/cyan]
    """
    place = Workspace.current(workspace)
    ins, out = (paths, None) if len(paths) == 1 else (paths[:-1], Path(paths[-1]))
    tables = (cross, levels, events)
    if out is not None and out.suffix.lower() in (".parquet", ".pq") and not out.is_dir():
        _features_file(place, ins, out, tables, dry_run, plan, force)
    else:
        _features_history(place, ins, out, tables, symbol, (dtype, compression, part_rows), dry_run, fresh, plan)


def _features_file(
    place: Workspace,
    ins: list[str],
    out: Path,
    beside: tuple[list[Path] | None, list[Path] | None, Path | None],
    dry_run: bool,
    whole: bool,
    force: bool,
) -> None:
    """One file of bars into one file of features."""
    import time

    from mia_fast.cli import target
    from mia_fast.errors import DataError
    from mia_fast.features.frame import feature_availability, generate_features, read_cross
    from mia_fast.features.levels import read_levels
    from mia_fast.files import fill
    from mia_fast.histories import expand
    from mia_fast.tables import read_table

    files = expand(ins)
    if len(files) > 1:
        raise DataError(
            f"{len(files)} files of bars do not make one file of features",
            where=str(out),
            hint="the last name is where to write: give a folder for a history, or another file for one file of bars",
            then="nothing was computed",
        )
    cross, levels, events = beside
    if out is not None:
        inputs = [*files, *(cross or ()), *(levels or ()), *([] if events is None else [events])]
        target.check(out, "features", inputs, force=force)
    table = read_table("bars", files[0], workspace=place)
    others = read_cross(cross, place) if cross else None
    known = read_levels(levels, place) if levels else None
    calendar = None if events is None else read_table("events", events, workspace=place)
    show.table_report(table, place)
    show.availability(
        feature_availability(table, cross=others, levels=known, events=calendar, workspace=place), whole=whole
    )
    if dry_run:
        return
    began = time.perf_counter()
    with show.progress("rows") as advance:
        frame = generate_features(table, cross=others, levels=known, events=calendar, workspace=place, progress=advance)
    computed = time.perf_counter()
    with show.working("writing"):
        fill(out, lambda part: frame.write_parquet(part, metadata=target.label("features")))
    show.features_written(out, frame, computed - began, time.perf_counter() - computed)


@app.command("check-features")
def check_features(
    bars: Annotated[
        Path | None, typer.Argument(help="Bars of your own (Parquet or CSV), checked beside the simulated ones.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="A feature_sets.yaml. Default: the workspace's.", show_default=False)
    ] = None,
    cross: CrossOption = None,
    levels: LevelsOption = None,
    events: Annotated[Path | None, typer.Option(help="Macro events (Parquet or CSV).")] = None,
    feature: Annotated[str | None, typer.Option(help="Only this feature, and what it rests on.")] = None,
    seed: Annotated[int, typer.Option(help="Of the simulated values and the random cuts.")] = 1,
    workspace: WorkspaceOption = None,
) -> None:
    """Check every feature of a catalogue: look-ahead, blocks, warm-up, range, missing values, units, twins.

    Simulated values of every declared input are made for it, so that no feature is left out for want of data. With
    BARS, look-ahead, blocks and ranges are checked on those too. Ends with status 1 if anything is found.

    A feature that cannot keep a rule says why in its row: waivers: {scaling: "the reason"}. Look-ahead and a value
    that depends on how rows are cut cannot be waived. If the catalogue names a file under kernels_from, that file is
    executed.

    Example: [cyan]mia-fast check-features es.parquet --catalogue mine.yaml --feature my_gap[/cyan]
    """
    from mia_fast.features import catalogue as catalogues
    from mia_fast.features.checks import check_features as check
    from mia_fast.features.frame import one_symbol, sample_of

    place = Workspace.current(workspace)
    declared = catalogues.read(place) if catalogue is None else catalogues.read_file(catalogue)
    data = None
    if bars is not None:
        from mia_fast.tables import read_table

        table = read_table("bars", bars, workspace=place)
        show.table_report(table, place)
        one_symbol(table)
        data = sample_of(declared, table, workspace=place, cross=cross or None, levels=levels or None, events=events)
    with show.progress("checks") as advance:
        report = check(declared, data=data, only=feature, seed=seed, progress=advance)
    show.feature_checks(report)
    if report.findings:
        raise typer.Exit(1)


def _features_history(
    place: Workspace,
    ins: list[str],
    out: Path | None,
    tables: tuple[list[Path] | None, list[Path] | None, Path | None],
    symbol: str | None,
    written: tuple[str, str, int],
    dry_run: bool,
    fresh: bool,
    whole: bool,
) -> None:
    """Any number of bars into a folder of features; or only the plan."""
    from mia_fast import histories
    from mia_fast.features import catalogue as catalogues
    from mia_fast.histories.inputs import Beside

    dtype, compression, part_rows = written
    settings = histories.Settings(dtype, compression, part_rows)  # type: ignore[arg-type]  # checked by Settings
    files = histories.expand(ins)
    cross, levels, events = tables
    beside = Beside(place, cross=cross or (), levels=levels or (), events=events)
    with show.progress("bytes read") as advance:
        found = histories.survey(files, workspace=place, symbol=symbol, progress=advance)
    for table in beside.reports:
        show.table_report(table, place)
    show.levels_read(beside.levels)
    if out is None or dry_run:
        previewed = histories.preview(found, beside, workspace=place, settings=settings)
        show.history_preview(previewed, settings, catalogues.read(place), whole=whole)
        show.levels_unmoved(beside.unmoved)
        return
    show.survey(found)
    try:
        with show.progress("rows") as advance:
            outcome = histories.write_history(
                found,
                out,
                beside,
                workspace=place,
                settings=settings,
                fresh=fresh,
                progress=advance,
            )
    except KeyboardInterrupt:
        show.warn("Stopped. The finished parts stay; the same command goes on behind them.")
        raise typer.Exit(130) from None
    show.history_written(outcome)
    show.levels_unmoved(beside.unmoved)


HistoryArgument = Annotated[
    Path, typer.Argument(help="A history's folder that mia-fast features wrote, or one Parquet file of features.")
]
SymbolOption = Annotated[str | None, typer.Option(help="Which symbol, when the history holds several.")]
ReportOption = Annotated[Path | None, typer.Option(help="One HTML page with pictures and tables (extra plot).")]


@app.command()
def select(
    history: HistoryArgument,
    target: Annotated[
        str | None, typer.Option(help="What the features are to explain, or a column. Default: selection.yaml.")
    ] = None,
    bars: Annotated[Path | None, typer.Option(help="The bars, if the features hold no prices.")] = None,
    cross: CrossOption = None,
    symbol: SymbolOption = None,
    since: Annotated[dt.datetime | None, typer.Option(help="First day (YYYY-MM-DD, UTC).")] = None,
    until: Annotated[
        dt.datetime | None, typer.Option(help="The day behind the last (UTC); keep what the networks are judged on.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Choose the 150 features by their SHAP values, out of sample (needs the extra [bold]select[/bold]).

    Writes data/features/feature_importance.csv and selection.json, the manifest that networks and memory read.

    Example: [cyan]mia-fast select history --target cnn_pressure --until 2022-01-01[/cyan]
    """
    from mia_fast.selection import select_features

    place = Workspace.current(workspace)
    with show.progress("folds") as advance:
        chosen, _ = select_features(
            history,
            target,
            bars=bars,
            cross=cross,
            workspace=place,
            symbol=symbol,
            since=_utc_day(since),
            until=_utc_day(until),
            progress=advance,
        )
    show.selection(chosen)
    folder = place.data / "features"
    show.files([folder / "feature_importance.csv", folder / "selection.json"], place)


@app.command()
def audit(
    history: HistoryArgument,
    symbol: SymbolOption = None,
    reference_until: Annotated[
        dt.datetime | None,
        typer.Option(help="Rows before this day (UTC) are the reference. Default: the first quarter."),
    ] = None,
    report: ReportOption = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for the pictures as PNG (extra plot).")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Audit features: empty values, outliers, drift, SHAP values.

    Writes data/logs/market/features_audit_final.csv.

    Example: [cyan]mia-fast audit history --report audit.html[/cyan]
    """
    from mia_fast.selection import audited
    from mia_fast.selection import plot as pictures

    place = Workspace.current(workspace)
    if report is not None or plot is not None:
        pictures.check()
    with show.working("auditing"):
        found = audited(history, workspace=place, symbol=symbol, reference_until=_utc_day(reference_until))
    show.audit(found)
    paths = [place.data / "logs" / "market" / "features_audit_final.csv"]
    with show.working("drawing"):
        if plot is not None:
            paths += pictures.draw(found, plot)
        if report is not None:
            paths.append(pictures.write_page(found, report, f"Features of {history.name}"))
    show.files(paths, place)


@app.command("filter")
def filter_command(
    history: HistoryArgument,
    out: Annotated[Path | None, typer.Argument(help="Parquet file for all filtered rows.")] = None,
    symbol: SymbolOption = None,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Leave out empty, constant and repeated features, clip outliers, and say what was done.

    Writes data/features/features_latest_filtered.csv. Chosen features always stay; what speaks against them is listed.

    Example: [cyan]mia-fast filter history filtered.parquet[/cyan]
    """
    from mia_fast.cli import target
    from mia_fast.files import fill
    from mia_fast.selection import filtered

    place = Workspace.current(workspace)
    if out is not None:
        target.check(out, "filtered features", [history], force=force)
    with show.working("filtering"):
        result = filtered(history, workspace=place, symbol=symbol)
    show.filtered(result)
    paths = [place.data / "features" / "features_latest_filtered.csv"]
    if out is not None:
        fill(out, lambda part: result.frame.write_parquet(part, metadata=target.label("filtered features")))
        paths.append(out)
    show.files(paths, place)


def _utc_day(day: dt.datetime | None) -> int | None:
    return None if day is None else int(day.replace(tzinfo=dt.UTC).timestamp()) * 1_000_000_000


@app.command()
def bars(
    ticks: Annotated[Path, typer.Argument(help="Trades, or single order events (Parquet or CSV).")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    interval: Annotated[str | None, typer.Option(help="Length of a time bar: 250ms, 1s, 1m, 4h. Default: 1m.")] = None,
    volume: Annotated[
        float | None, typer.Option(min=1, help="Contracts of a volume bar, instead of an interval.")
    ] = None,
    book: Annotated[Path | None, typer.Option(help="Book snapshots: order flow, spreads, depth.")] = None,
    product: Annotated[
        str | None, typer.Option(help="Root symbol of the session table (ES). Without it the market never closes.")
    ] = None,
    symbol: Annotated[str | None, typer.Option(help="Which symbol, when the file holds several.")] = None,
    tick: Annotated[float | None, typer.Option(help="Price step of order events. Default: market_config.yaml.")] = None,
    infer_side: Annotated[bool, typer.Option(help="Fill missing aggressors: Lee-Ready, or the tick rule.")] = False,
    picture: Annotated[Path | None, typer.Option("--plot", help="PNG or SVG of the last bars (extra plot).")] = None,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Turn a tick file into bars with order flow, book and spread columns.

    Reads block by block: a file may be longer than the memory. Gaps are listed with their cause.

    Example: [cyan]mia-fast bars es_trades.parquet es_1m.parquet --book es_book.parquet --product ES
    --plot es.png[/cyan]
    """
    from mia_fast import config
    from mia_fast.bars.plot import draw
    from mia_fast.bars.stream import is_orders, make_bars
    from mia_fast.cli import target
    from mia_fast.plot import check
    from mia_fast.sessions import Sessions
    from mia_fast.tables.mapping import interval_of

    if picture is not None:
        check(picture)
    place = Workspace.current(workspace)
    target.check(out, "bars", [ticks] if book is None else [ticks, book], force=force)
    hours = None if product is None else Sessions.load(place, product)
    single = is_orders(ticks)
    length = None if volume is not None and interval is None else interval_of(interval or "1m")
    with show.progress("rows") as advance:
        report = make_bars(
            out,
            trades=None if single else ticks,
            orders=ticks if single else None,
            book=book,
            workspace=place,
            interval_ns=length,
            volume=volume,
            sessions=hours,
            tick=tick if tick is not None else config.market(place).instrument.tick_size,
            symbol=symbol,
            infer_sides=infer_side,
            metadata=target.label("bars"),
            progress=advance,
        )
    show.bars(report)
    if picture is not None and report.tail is not None:
        draw(report.tail, picture, f"{ticks.name}: {report.tail.height:,} bars of {interval or (volume or '1m')}")
        show.say(f"  {picture}")


@app.command()
def levels(
    chain: Annotated[
        Path,
        typer.Argument(
            help="Option chain: Parquet, CSV, or Cboe's delayed quotes (CSV, JSON).", exists=True, dir_okay=False
        ),
    ],
    workspace: WorkspaceOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the levels to this file (PNG, SVG or PDF).")] = None,
) -> None:
    """Dealer levels of an option chain: walls, flip, volatility, positioning.

    Of a file with several snapshots the latest is taken. Writes data/options_snapshots/levels_*.json.

    Example: [cyan]mia-fast levels spx.parquet --plot levels.png[/cyan]
    """
    from mia_fast.options import LevelsEngine, options_config, read_chain, recalculate_levels
    from mia_fast.plot import check
    from mia_fast.tables import read_table

    if plot is not None:
        check(plot)
    place = Workspace.current(workspace)
    known = chain.suffix.lower() in {".json", ".csv"}
    table = read_table("chain", read_chain(chain, workspace=place) if known else chain, workspace=place)
    latest = table.frame.filter(table.frame["quote_time"] == table.frame["quote_time"].max())
    at = int(latest["quote_time"].dt.epoch("ns")[0])
    show.table_report(dataclasses.replace(table, source=str(chain)), place)
    found = recalculate_levels(latest, workspace=place, now_ns=at)
    show.levels(found, place)
    if plot is not None:
        from mia_fast.options.plot import plot_levels

        engine = LevelsEngine(options_config(place))
        engine.update(latest, at)
        assert engine.surface is not None
        show.files([plot_levels(found, engine.surface, plot)], place)


@app.command()
def export(
    table: Annotated[list[str] | None, typer.Option(help="Only this table (repeat the option).")] = None,
    parquet: Annotated[bool, typer.Option(help="Parquet instead: every column, one file per table and day.")] = False,
    whole: Annotated[bool, typer.Option(help="Write everything again, not only days with new rows.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the CSV files of the audit trail from the journal; also while an engine runs.

    Example: [cyan]mia-fast export --workspace /tmp/desk[/cyan]
    """
    from mia_fast import journal

    place = Workspace.current(workspace)
    with show.working("exporting"):
        paths = journal.export(place, table, parquet=parquet, whole=whole)
    show.files(paths, place)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT, DESCRIBE, SHOW or EXPLAIN.")],
    out: Annotated[Path | None, typer.Option(help="Write the result to this .csv or .parquet file.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 40,
    record: Annotated[
        bool, typer.Option("--record", help="One row below the other, a line for each column: for SELECT *.")
    ] = False,
    force: ForceOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask the journal in SQL, read-only; also while an engine runs.

    Example: [cyan]mia-fast query "SELECT code, count(*) FROM decisions GROUP BY code"[/cyan]
    """
    from mia_fast import journal
    from mia_fast.cli import target
    from mia_fast.errors import DataError
    from mia_fast.files import fill

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise DataError(
            "is neither .csv nor .parquet", where=str(out), hint="choose one of the two", then="nothing was run"
        )
    if out is not None:
        target.check(out, "rows of the journal", (), force=force)
    frame = journal.query(Workspace.current(workspace), sql)
    if out is None:
        (show.records if record else show.rows)(frame, rows)
        return
    if out.suffix == ".csv":
        fill(out, frame.write_csv)
    else:
        fill(out, lambda part: frame.write_parquet(part, metadata=target.label("rows of the journal")))
    show.say(f"{frame.height:,} rows to {out}")


@app.command()
def explain(
    trade_id: Annotated[str, typer.Argument(help="As in the decision log.")],
    run: Annotated[str | None, typer.Option(help="Only the decision of this run.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show why a decision was made: reason, versions, the features seen, levels, risk, what came of it.

    Example: [cyan]mia-fast explain ES-20250513T140000_000000Z[/cyan]
    """
    from mia_fast.journal.explain import explain as find

    for found in find(Workspace.current(workspace), trade_id, run):
        show.explanation(found)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write the simulated market to.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 7,
    start: Annotated[dt.datetime, typer.Option(help="First trade date (YYYY-MM-DD).")] = dt.datetime(2025, 5, 13),
    sessions: Annotated[int, typer.Option(min=1, help="How many sessions.")] = 2,
    warmup_sessions: Annotated[
        int, typer.Option(min=0, help="Earlier sessions with bars and cross-asset closes only.")
    ] = 0,
    book_seconds: Annotated[int, typer.Option(help="Seconds between book snapshots; a divisor of 60.")] = 10,
    only: Annotated[list[str] | None, typer.Option(help="Only these tables (repeat the option).")] = None,
) -> None:
    """Make a simulated market: bars, trades, book, chain, cross, events.

    Everything it writes is labelled as simulated.

    Example: [cyan]mia-fast simulate /tmp/market --sessions 60 --only bars --only events[/cyan]
    """
    from mia_fast.simulate import simulate as make

    with show.progress("sessions") as advance:
        paths = make(
            out,
            seed=seed,
            start=start.date(),
            sessions=sessions,
            warmup_sessions=warmup_sessions,
            tables=only,
            book_seconds=book_seconds,
            progress=lambda _what, done, total: advance(done, total),
        )
    show.simulated_files(paths)


@app.command()
def warmup() -> None:
    """Compile the kernels, or check that they are compiled.

    Cold this takes under a minute; afterwards every process loads them in a fraction of a second.
    """
    from mia_fast.warmup import STEPS
    from mia_fast.warmup import warmup as compile_all

    with show.progress("kernels") as advance:
        seconds, where = compile_all(lambda done, _name: advance(done, len(STEPS)))
    show.warm(seconds, where)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Model to train: networks, or predicted_vix.")],
    bars: Annotated[list[Path], typer.Option(help="Minute bars of ES, 2019 to 2022H1 (repeat the option).")],
    vix: Annotated[Path, typer.Option(help="Daily closes with the symbol VIX, from 2004 on.")],
    index: Annotated[Path, typer.Option(help="Daily closes with the symbol SPX, from 2004 on.")],
    cross: Annotated[
        list[Path] | None, typer.Option(help="Further daily closes that chosen features need (repeat the option).")
    ] = None,
    events: Annotated[Path | None, typer.Option(help="Macro events, for the networks.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for graph, manifest and card. Default: data/models.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a model again and judge it against its baselines (needs the extra [bold]train[/bold]).

    A model in data/models of the workspace is served in place of the shipped one.

    Example: [cyan]mia-fast train predicted_vix --bars es_2019.parquet --bars es_2020.parquet --bars es_2021.parquet
    --bars es_2022h1.parquet --vix vix.parquet --index daily.parquet[/cyan]
    """
    from mia_fast.errors import ConfigError
    from mia_fast.training import train_networks, train_predicted_vix

    place = Workspace.current(workspace)
    target = out if out is not None else place.data / "models"
    if name == "predicted_vix":
        manifest = train_predicted_vix(bars, vix, index, target, workspace=place, progress=show.say)
    elif name == "networks":
        manifest = train_networks(
            bars, vix, index, target, cross=cross or (), events=events, workspace=place, progress=show.say
        )
    else:
        raise ConfigError(
            f"there is no model {name!r} to train", where="NAME", hint="networks, or predicted_vix", then="no change"
        )
    show.trained(manifest, target)


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="File or folder to search for retired names.")] = Path(),
    workspace: WorkspaceOption = None,
) -> None:
    """Check a tree for retired names, and the workspace's configuration.

    Ends with status 1 if anything is found. Example: [cyan]mia-fast validate ../old-scripts[/cyan]
    """
    from mia_fast import validate as checks

    names, files = checks.retired_names(path)
    faults, configs = checks.configuration(Workspace.current(workspace))
    show.findings(names + faults, files, configs)
    if names or faults:
        raise typer.Exit(1)


@config_app.command("show")
def config_show(
    name: Annotated[str | None, typer.Argument(help="A file, for instance risk.yaml. Default: the list.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """List the configuration files and where each is read from, or print one.

    Example: [cyan]mia-fast config show market_config.yaml[/cyan]
    """
    place = Workspace.current(workspace)
    if name is None:
        show.config_files([(one, place.config(one), place.config(one) == _own(place, one)) for one in _configs()])
        return
    typer.echo(place.config(_config(name)).read_text(encoding="utf-8"), nl=False)


@config_app.command("init")
def config_init(
    names: Annotated[list[str] | None, typer.Argument(help="Files to copy. Default: all.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Copy shipped configuration files into the workspace's config, to be edited there.

    A file in the workspace applies whole, so a limit is changed in a copy of its file. Files that are there already
    stay as they are.

    Example: [cyan]mia-fast config init market_config.yaml risk.yaml[/cyan]
    """
    from mia_fast.files import replacing

    place = Workspace.current(workspace)
    chosen = [_config(name) for name in names] if names else _configs()
    kept = [name for name in chosen if _own(place, name).exists()]
    made = [_own(place, name) for name in chosen if name not in kept]
    for path in made:
        with replacing(path) as temporary:
            temporary.write_bytes((shipped() / "config" / path.name).read_bytes())
    if made:
        show.files(made, place)
    if kept:
        show.say(f"There already, and left as they are: {', '.join(kept)}")


def _configs() -> list[str]:
    return sorted(path.name for path in (shipped() / "config").iterdir() if path.suffix in (".yaml", ".csv"))


def _own(place: Workspace, name: str) -> Path:
    return place.root / "config" / name


def _config(name: str) -> str:
    import difflib

    from mia_fast.errors import ConfigError

    known = _configs()
    for one in (name, f"{name}.yaml"):
        if one in known:
            return one
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise ConfigError(
        f"there is no configuration file {name!r}",
        where="NAME",
        hint=f"did you mean {near[0]!r}?" if near else f"the files are {', '.join(known)}",
        then="nothing was copied",
    )


@alerts_app.command("status")
def alerts_status(workspace: WorkspaceOption = None) -> None:
    """Show the channels, without their credentials, and what waits for each."""
    from mia_fast.alerts import alerts_config, open_channels
    from mia_fast.alerts.outbox import peek

    place = Workspace.current(workspace)
    config = alerts_config(place)
    show.channels(list(zip(config.channels, open_channels(config.channels), strict=True)), peek(place.data))


@alerts_app.command("test")
def alerts_test(workspace: WorkspaceOption = None) -> None:
    """Send one test message through every channel, now. Ends with status 1 if one does not take it."""
    from mia_fast.alerts import Channel, alerts_config, open_channels

    names = alerts_config(Workspace.current(workspace)).channels
    if not names:
        show.channels([], {})
    bad = 0
    for channel in open_channels(names):
        if isinstance(channel, Channel):
            reason = channel.send("[1] ALERT_TEST", "A test of this channel by mia-fast. Nothing has happened.", 1)
            show.say(f"{channel.name}: {'sent' if reason is None else reason}")
            bad += reason is not None
        else:
            show.fault(channel)
            bad += 1
    if bad:
        raise typer.Exit(1)


@app.command()
def acknowledge(
    reason: Annotated[str, typer.Option(help="Who looked and what was found; it is journalled.")],
    workspace: WorkspaceOption = None,
) -> None:
    """Close the journal's incidents after a loss was looked at, so that entries may pass again.

    A damaged or missing store keeps the gate closed until a person has seen what was lost; what was put aside lies
    in data/quarantine.

    Example: [cyan]mia-fast acknowledge --reason "A. Smith: disk replaced, last export compared"[/cyan]
    """
    from mia_fast import journal

    store = journal.of(_existing(workspace))
    before = store.health()
    store.acknowledge(reason)
    show.say(f"Was: {before}\nIs: {store.health()}")


@risk_app.command("status")
def risk_status(workspace: WorkspaceOption = None) -> None:
    """Show the desk's risk state: latch, drawdown, limit, calendar."""
    from mia_fast import clock
    from mia_fast.risk import desk

    here = desk(_existing(workspace))
    show.risk(here, clock.now_ns())


@risk_app.command("halt")
def risk_halt(
    reason: Annotated[str, typer.Option(help="Who decided what; it is journalled.")],
    workspace: WorkspaceOption = None,
) -> None:
    """Stop trading now: entries are blocked in every process of the workspace until a reset.

    It closes no position: exits continue. A replay goes on: its account and its latch are its own. While another
    process holds the journal, the reason is left for that process.

    Example: [cyan]mia-fast risk halt --reason "A. Smith: venue trouble"[/cyan]
    """
    from mia_fast.risk import desk

    here = desk(Workspace.current(workspace))
    here.controller.halt(reason)
    show.say("halted: entries are blocked until a reset, exits continue; no position was closed")
    show.left(here)


@risk_app.command("reset")
def risk_reset(
    reason: Annotated[str, typer.Option(help="Who decided what; it is journalled.")],
    workspace: WorkspaceOption = None,
) -> None:
    """Clear the latch. Says what it cleared; the gate stays disarmed.

    Example: [cyan]mia-fast risk reset --reason "A. Smith: feed fault, positions flat"[/cyan]
    """
    from mia_fast.risk import desk

    here = desk(Workspace.current(workspace))
    show.say(str(here.controller.reset(reason)))
    show.left(here)


@memory_app.command("status")
def memory_status(workspace: WorkspaceOption = None) -> None:
    """Show what the market memory holds, and by which features it compares."""
    from mia_fast import memory

    place = _existing(workspace)
    show.memory(memory.of(place), place)


@memory_app.command("nearest")
def memory_nearest(
    bars: Annotated[
        Path, typer.Option(help="Bars that hold the moment and what followed the states (Parquet or CSV).")
    ],
    at: Annotated[
        dt.datetime | None, typer.Option(help="The moment, UTC (YYYY-MM-DD HH:MM:SS). Default: the last bar.")
    ] = None,
    k: Annotated[int, typer.Option("--count", "-k", min=1, help="How many states.")] = 10,
    outcome: Annotated[str, typer.Option(help="winning, losing, closed or all.")] = "closed",
    minutes: Annotated[int, typer.Option(min=2, help="How many bars to look at after each state.")] = 60,
    cross: CrossOption = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of what followed each state (.png, .svg, .pdf).")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show the stored states nearest to a moment in time, and what followed each.

    Only outcomes that were known at that moment are recalled.

    Example: [cyan]mia-fast memory nearest --bars es.parquet --at "2022-03-23 15:00:00" --plot nearest.png[/cyan]
    """
    from mia_fast.memory import plot as pictures
    from mia_fast.memory.nearest import nearest_to
    from mia_fast.plot import check

    if plot is not None:
        check(plot)
    place = _existing(workspace)
    moment = None if at is None else at.replace(tzinfo=at.tzinfo or dt.UTC)
    with show.working("recalling"):
        found = nearest_to(place, bars, at=moment, k=k, outcome=outcome, minutes=minutes, cross=cross)
    show.nearest(found)
    if plot is not None:
        show.files([pictures.draw(found, plot)], place)


@memory_app.command("purge")
def memory_purge(
    days: Annotated[int | None, typer.Option(min=1, help="Keep so many days. Default: memory.yaml, 30.")] = None,
    vacuum: Annotated[
        bool | None, typer.Option(help="Give free room back now. Default: only while the market is closed.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove the states that are too old, and check the file.

    Example: [cyan]mia-fast memory purge --days 90[/cyan]
    """
    from mia_fast import memory

    show.purged(memory.purge_old_data(days, workspace=_existing(workspace), vacuum=vacuum))


@memory_app.command("check")
def memory_check(
    renew: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Put the memory aside into data/quarantine and begin an empty one."),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Check the market memory's file, tables and rows. Ends with status 1 if anything is wrong.

    Example: [cyan]mia-fast memory check --renew "A. Smith: disk replaced, no backup"[/cyan]
    """
    from mia_fast import memory

    place = _existing(workspace)
    if renew is not None:
        show.files(memory.renew(place, renew), place)
    found = memory.of(place).check()
    show.memory_check(found)
    if found.faults:
        raise typer.Exit(1)


@models_app.command("list")
def models_list(
    name: Annotated[str, typer.Argument(help="predicted_vix, or networks.")] = "predicted_vix",
    workspace: WorkspaceOption = None,
) -> None:
    """Show the versions of a model, and which one is served."""
    from mia_fast import registry

    show.versions(name, registry.versions(Workspace.current(workspace), _model(name)))


@models_app.command("promote")
def models_promote(
    version: Annotated[str, typer.Argument(help="shipped, own, or the beginning of an ID.")],
    reason: Annotated[str, typer.Option(help="Who decided it and why; it is journalled.")],
    name: Annotated[str, typer.Option(help="predicted_vix, or networks.")] = "predicted_vix",
    workspace: WorkspaceOption = None,
) -> None:
    """Serve this version from now on. Processes that run keep the one they have loaded.

    Example: [cyan]mia-fast models promote 3fa9c1 --reason "A. Smith: better in the last quarter"[/cyan]
    """
    from mia_fast import registry

    place = Workspace.current(workspace)
    before = registry.promote(place, _model(name), version, reason=reason)
    show.say(f"{name}: {before} -> {registry.served(place, name)}; mia-fast models rollback goes back")


@models_app.command("rollback")
def models_rollback(
    reason: Annotated[str, typer.Option(help="Who decided it and why; it is journalled.")],
    name: Annotated[str, typer.Option(help="predicted_vix, or networks.")] = "predicted_vix",
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the version that was served before."""
    from mia_fast import registry

    now, before = registry.rollback(Workspace.current(workspace), _model(name), reason=reason)
    show.say(f"{name}: {before} -> {now}")


@models_app.command("propose")
def models_propose(
    features: Annotated[
        Path | None, typer.Option(help="Recent features (Parquet or CSV): have they drifted from the reference?")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Features of a normal time: keep their distribution as the reference.")
    ] = None,
    name: Annotated[str, typer.Option(help="Model.")] = "predicted_vix",
    workspace: WorkspaceOption = None,
) -> None:
    """Say whether to train a model again, by drift and schedule; journalled, and nothing is trained.

    Example: [cyan]mia-fast models propose --features data/features/features_latest.csv[/cyan]
    """
    from mia_fast import registry
    from mia_fast.memory.learner import AdaptiveLearner

    place = _existing(workspace)
    served = next(one for one in registry.versions(place, _model(name)) if one.served)
    trained = None if served.fault is not None else dt.date.fromisoformat(served.trained_to)
    learner = AdaptiveLearner(place)
    if reference is not None:
        show.files([learner.set_reference(reference)], place)
    show.proposal(name, learner.propose(features, trained=trained, name=name))


def _model(name: str) -> str:
    from mia_fast.errors import ConfigError
    from mia_fast.registry import MODELS

    if name not in MODELS:
        raise ConfigError(f"there is no model {name!r}", where="NAME", hint=", ".join(MODELS), then="no change")
    return name


def _existing(workspace: Path | None) -> Workspace:
    """A workspace that is there: asking about one must not create it."""
    from mia_fast.errors import WorkspaceError

    place = Workspace.current(workspace)
    if not place.root.is_dir():
        raise WorkspaceError(
            "there is no such folder",
            where=str(place.root),
            hint="check the path; a command that writes, such as mia-fast config init, creates it",
            then="nothing was changed",
        )
    return place


def _replay(
    place: Workspace,
    *,
    bars: Path,
    events: Path | None,
    cross: Path | list[Path] | None,
    chain: Path | None,
    start: int | None = None,
    end: int | None = None,
    fresh: bool = False,
    plot: Path | None = None,
) -> None:
    from mia_fast.live import plot as pictures
    from mia_fast.live.replay import read_inputs, replay
    from mia_fast.plot import check

    if plot is not None:
        check(plot)
    with show.working("reading"):
        inputs = read_inputs(place, bars=bars, events=events, cross=cross, chain=chain)
    for table in (inputs.bars, inputs.cross, inputs.chain):
        if table is not None:
            show.table_report(table, place)
    try:
        with show.progress("bars") as advance:
            summary = replay(place, inputs, start=start, end=end, fresh=fresh, progress=advance)
    except KeyboardInterrupt:
        show.warn("Stopped. Every decision so far is in the journal; the same command resumes the run.")
        raise typer.Exit(130) from None
    show.summary(summary, place)
    if plot is not None:
        title = f"{bars.stem}, {summary.bars:,} bars, {summary.run_id}"
        show.files([pictures.draw(summary.marks, summary.tally.blocks, title, plot)], place)
