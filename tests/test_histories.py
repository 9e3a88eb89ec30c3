"""Histories of features: the same numbers as in one piece, whole after any kill, and clear words for bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mia_fast.cli.commands import app
from mia_fast.errors import DataError, StateError, WorkspaceError
from mia_fast.features.frame import generate_features
from mia_fast.features.levels import read_levels
from mia_fast.histories import Settings, expand, preview, read_manifest, survey, write_history
from mia_fast.histories.dataset import Dataset, part_path
from mia_fast.histories.inputs import Beside
from mia_fast.histories.write import Outcome, typed
from mia_fast.selection.data import Features
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = shipped() / "data" / "sample"
CROSS = SAMPLE / "cross.parquet"
CHAIN = SAMPLE / "chain.parquet"
EVENTS = SAMPLE / "events.parquet"
TABLES: dict[str, Path] = {"cross": CROSS, "levels": CHAIN, "events": EVENTS}
MINUTE = 60_000_000_000
ROUNDS = int(os.environ.get("MIA_TORTURE_ROUNDS", "1"))


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    """Eight simulated sessions: 11,040 bars."""
    return pl.read_parquet(SAMPLE / "bars.parquet")


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def _split(bars: pl.DataFrame, folder: Path, *ends: int) -> list[Path]:
    """The bars in files that end at these rows, and the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, start = [], 0
    for number, end in enumerate((*ends, bars.height)):
        path = folder / f"bars_{number}.parquet"
        bars[start:end].write_parquet(path, row_group_size=1000)
        paths.append(path)
        start = end
    return paths


def _beside(place: Workspace, tables: dict[str, Path]) -> Beside:
    return Beside(
        place,
        cross=[tables[name] for name in ("cross",) if name in tables],
        levels=[tables[name] for name in ("levels",) if name in tables],
        events=tables.get("events"),
    )


def _write(
    inputs: list[Path | str] | Path,
    out: Path,
    place: Workspace,
    *,
    tables: dict[str, Path] = TABLES,
    fresh: bool = False,
    **settings: object,
) -> Outcome:
    given = inputs if isinstance(inputs, list) else [inputs]
    found = survey(expand(given), workspace=place)
    chosen = Settings(**settings)  # type: ignore[arg-type]
    return write_history(found, out, _beside(place, tables), workspace=place, settings=chosen, fresh=fresh)


def _tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and the digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _read(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "**" / "*.parquet", hive_partitioning=True).sort("symbol", "timestamp")


def _moved(bars: pl.DataFrame, days: int) -> pl.DataFrame:
    return bars.with_columns((pl.col("timestamp") + pl.duration(days=days)).cast(bars.schema["timestamp"]))


@pytest.mark.parametrize("cuts", [(), (1,), (3000, 3001, 9239, 9390), (9240, 11_039)])
@pytest.mark.parametrize("part_rows", [700, 32_768])
def test_the_same_bits_as_in_one_piece(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path, cuts: tuple[int, ...], part_rows: int
) -> None:
    """However files and parts are cut, the values are those of generate_features over the whole."""
    whole = generate_features(bars, **TABLES, workspace=place)
    _split(bars, tmp_path / "in", *cuts)
    done = _write(tmp_path / "in", tmp_path / "out", place, part_rows=part_rows)
    found = _read(tmp_path / "out").drop("symbol", "month")
    assert found.equals(whole)
    assert done.manifest.rows == done.rows == bars.height
    assert max(part.rows for part in done.manifest.parts) <= part_rows


def _level_rows(path: Path) -> Path:
    """The sample's levels as rows that were known 40 minutes after the market time they stand for."""
    rows = [
        {
            field.name: getattr(one, field.name)
            for field in dataclasses.fields(one)
            if isinstance(getattr(one, field.name), float | int) and not field.name.endswith("_ns")
        }
        | {"status": one.status, "timestamp": one.timestamp_ns, "market_time": one.timestamp_ns - 40 * MINUTE}
        for one in read_levels(CHAIN, Workspace(path.parent))
    ]
    pl.DataFrame(rows).with_columns(pl.col("timestamp", "market_time").cast(pl.Datetime("ns", "UTC"))).write_parquet(
        path
    )
    return path


@pytest.mark.parametrize("cuts", [(), (9200, 9239), (9199, 9201, 9240, 9550)])
def test_levels_move_by_a_price_of_another_file(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """The market time of levels may lie in a file before the one in which they are known; each symbol has its basis."""
    rows = _level_rows(tmp_path / "levels.parquet")
    other = bars.with_columns(pl.col("open", "high", "low", "close") + 1.25, symbol=pl.lit("MES"))
    far = bars.with_columns(pl.col("open", "high", "low", "close") * 4, symbol=pl.lit("NQ"))
    for name, own in (("es", bars), ("mes", other), ("nq", far)):
        _split(own, tmp_path / "in" / name, *cuts)
    tables = TABLES | {"levels": rows}
    _write(tmp_path / "in", tmp_path / "out", place, tables=tables, part_rows=3000)
    found = _read(tmp_path / "out")
    values = {}
    for own in (bars, other, far):
        symbol = own["symbol"][0]
        wanted = generate_features(own, **tables, workspace=place)
        mine = found.filter(pl.col("symbol") == symbol).drop("symbol", "month")
        assert mine.equals(wanted)
        values[symbol] = mine["call_wall"]
    assert values["ES"].count() > 1000
    gap = (values["MES"] - values["ES"]).drop_nulls()
    assert gap.to_list() == pytest.approx([1.25] * len(gap))
    assert values["NQ"].count() == 0  # four times the index is no basis
    found_bars = survey(expand([tmp_path / "in"]), workspace=place)
    beside = _beside(place, tables)
    for symbol in found_bars.symbols:
        beside.plan(found_bars, symbol)
    assert {symbol: len(reasons) for symbol, reasons in beside.unmoved.items()} == {"ES": 0, "MES": 0, "NQ": 6}
    assert all("BASIS_REFUSED" in reason for reason in beside.unmoved["NQ"])


def test_a_column_of_the_bars_comes_before_a_table_in_every_part(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path
) -> None:
    """Bars that bring the VIX for a time are not filled up with the daily one, however the parts are cut."""
    own = bars.with_columns(vix=pl.when(pl.int_range(pl.len()) < 4000).then(20.0))
    whole = generate_features(own, **TABLES, workspace=place)
    assert 0 < whole["vix_term_1m"].null_count() < bars.height
    _split(own, tmp_path / "in", 5000)
    for part_rows in (700, 32_768):
        out = tmp_path / str(part_rows)
        _write(tmp_path / "in", out, place, part_rows=part_rows)
        assert _read(out).drop("symbol", "month").equals(whole)


def test_what_was_computed_by_other_rows_of_the_catalogue_is_not_chosen_from(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path
) -> None:
    _write(_split(bars[:3000], tmp_path / "in")[0], tmp_path / "out", place)
    assert len(Features(tmp_path / "out", place)) == 3000
    text = (shipped() / "config" / "feature_sets.yaml").read_text(encoding="utf-8")
    (place.root / "config").mkdir(parents=True)
    changed = text.replace("max(atr_14, 0.0001 * close)", "max(atr_14, 0.0002 * close)")
    (place.root / "config" / "feature_sets.yaml").write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=r"of its features were computed otherwise .*volume_atr_ratio"):
        Features(tmp_path / "out", place)


def test_symbols_months_and_the_order_of_files(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    """Two symbols interleaved in one file, one of them going on in another: each has its own state."""
    own = bars.drop("symbol") if "symbol" in bars.columns else bars
    later = _moved(own, 20)
    mixed = pl.concat(
        [own.with_columns(symbol=pl.lit("ES")), own.with_columns(pl.col("close") + 0.0, symbol=pl.lit("N/Q 1"))]
    ).sort("timestamp", "symbol")
    folder = tmp_path / "in"
    folder.mkdir()
    mixed.write_parquet(folder / "z.parquet", row_group_size=777)
    later.with_columns(symbol=pl.lit("ES")).write_parquet(folder / "a.parquet")
    done = _write([folder / "a.parquet", folder / "z.parquet"], tmp_path / "out", place, part_rows=5000)
    found = _read(tmp_path / "out")
    assert found["symbol"].unique().sort().to_list() == ["ES", "N/Q 1"]
    both = generate_features(pl.concat([own, later]), **TABLES, workspace=place)
    one = generate_features(own, **TABLES, workspace=place)
    assert found.filter(pl.col("symbol") == "ES").drop("symbol", "month").equals(both)
    assert found.filter(pl.col("symbol") == "N/Q 1").drop("symbol", "month").equals(one)
    for part in done.manifest.parts:
        frame = pl.read_parquet(tmp_path / "out" / part.path, hive_partitioning=False)
        assert frame["timestamp"].dt.strftime("%Y-%m").unique().to_list() == [part.month]
        assert (frame.height, frame.width) == (part.rows, 1 + len(done.manifest.features))


def test_manifest_says_what_it_was_made_of(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    paths = _split(bars, tmp_path / "in", 4000)
    _write(tmp_path / "in", tmp_path / "out", place, tables={})
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for entry, path in zip(content["inputs"], paths, strict=True):
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for part in content["parts"]:
        path = tmp_path / "out" / part["path"]
        assert part["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert part["bytes"] == path.stat().st_size
        assert part["rows"] == pq.ParquetFile(path).metadata.num_rows
    assert content["null_features"]["ES"]["vix_term_1m"] == ["vix"]
    assert content["rows"] == bars.height
    assert not (tmp_path / "out" / ".progress").exists()
    assert read_manifest(tmp_path / "out").content() == content


def test_duckdb_and_polars_read_it_in_place(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _write(_split(bars, tmp_path / "in")[0], out, place, part_rows=3000)
    ours = generate_features(bars, **TABLES, workspace=place)
    glob = (out / "**" / "*.parquet").as_posix()
    with duckdb.connect() as connection:
        rows, symbol, mean = connection.execute(
            "SELECT count(*), any_value(symbol), avg(rsi_14) FROM read_parquet(?, hive_partitioning=true) "
            "WHERE month = ?",
            [glob, bars["timestamp"][0].strftime("%Y-%m")],
        ).fetchone()
        nulls = connection.execute("SELECT count(*) - count(rsi_14) FROM read_parquet(?)", [glob]).fetchone()
    inside = ours.filter(pl.col("timestamp").dt.strftime("%Y-%m") == bars["timestamp"][0].strftime("%Y-%m"))
    assert (rows, symbol) == (inside.height, "ES")
    assert mean == pytest.approx(inside["rsi_14"].mean(), rel=1e-12)
    assert nulls == (ours["rsi_14"].null_count(),)
    lazy = pl.scan_parquet(glob, hive_partitioning=True).filter(pl.col("symbol") == "ES").select("rsi_14").collect()
    assert lazy.height == bars.height


def test_float32_and_compressions(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    source = _split(bars, tmp_path / "in")[0]
    whole = generate_features(bars, **TABLES, workspace=place)
    _write(source, tmp_path / "single", place, dtype="float32", compression="lz4")
    single = _read(tmp_path / "single").drop("symbol", "month")
    assert set(single.dtypes[1:]) == {pl.Float32}
    assert single.equals(whole.with_columns(pl.col(whole.columns[1:]).cast(pl.Float32)))
    for compression in ("zstd", "uncompressed"):
        done = _write(source, tmp_path / compression, place, compression=compression)
        column = pq.ParquetFile(tmp_path / compression / done.manifest.parts[0].path).metadata.row_group(0).column(20)
        assert column.compression == compression.upper()


def test_float32_refuses_what_it_cannot_hold() -> None:
    stamps = pl.Series("timestamp", [0, 60], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC"))
    frame = pl.DataFrame({"timestamp": stamps, "a": [1.0, None], "b": [1e39, 0.0]})
    with pytest.raises(DataError, match="b: values beyond the range of float32"):
        typed(frame, Settings(dtype="float32"))
    assert typed(frame.drop("b"), Settings(dtype="float32")).dtypes[1:] == [pl.Float32]


def test_a_complete_history_is_checked_and_not_computed_again(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path
) -> None:
    source = _split(bars, tmp_path / "in")[0]
    _write(source, tmp_path / "out", place)
    before = _tree(tmp_path / "out")
    again = _write(source, tmp_path / "out", place)
    assert again.complete_before
    assert again.rows == 0
    assert _tree(tmp_path / "out") == before
    part = tmp_path / "out" / again.manifest.parts[0].path
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(StateError, match="was changed"):
        _write(source, tmp_path / "out", place)
    part.unlink()
    with pytest.raises(StateError, match="is gone"):
        _write(source, tmp_path / "out", place)
    _write(source, tmp_path / "out", place, fresh=True)
    assert _tree(tmp_path / "out") == before


class _StoppedError(Exception):
    pass


def _stop_after(parts: int, source: Path, out: Path, place: Workspace, part_rows: int = 2000) -> None:
    """A run that ends, as if killed between two parts, after so many of them."""
    found = survey(expand([source]), workspace=place)

    def progress(done: int, _total: int) -> None:
        if done >= parts * part_rows:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        write_history(
            found,
            out,
            _beside(place, TABLES),
            workspace=place,
            settings=Settings(part_rows=part_rows),
            progress=progress,
        )


def test_a_stopped_run_goes_on_behind_its_last_part(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    _split(bars, tmp_path / "in", 3500)
    source = tmp_path / "in"
    _write(source, tmp_path / "whole", place, part_rows=2000)
    _stop_after(2, source, tmp_path / "out", place)
    with pytest.raises(DataError, match="was stopped"):
        read_manifest(tmp_path / "out")
    done = _write(source, tmp_path / "out", place, part_rows=2000)
    assert done.rows == bars.height - 4000
    assert _tree(tmp_path / "out") == _tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("input", r"the input bars_0\.parquet changed since this history was begun"),
        ("added", r"the input bars_9\.parquet was added"),
        ("catalogue", "the catalogue changed"),
        ("tables", "the plans changed"),
        ("chain", r"the table levels \(chain\.parquet\) changed"),
        ("options", r"the table options \(options\.yaml\) changed"),
        ("dtype", 'the dtype changed .was "float64", is "float32".'),
        ("state", "feature state is damaged"),
        ("list", "cannot be read"),
    ],
)
def test_a_stopped_run_refuses_what_it_was_not_begun_with(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path, change: str, message: str
) -> None:
    source = tmp_path / "in"
    paths = _split(bars, source)
    _stop_after(2, source, tmp_path / "out", place)
    options: dict[str, object] = {"part_rows": 2000}
    if change == "input":
        bars.with_columns(pl.col("volume") + 1).write_parquet(paths[0])
    elif change == "added":
        _moved(bars, 30).write_parquet(source / "bars_9.parquet")
    elif change == "catalogue":
        config = place.root / "config"
        config.mkdir(parents=True)
        text = (shipped() / "config" / "feature_sets.yaml").read_text(encoding="utf-8")
        assert 'expression: "volume / max(atr_14, 0.0001 * close)"' in text
        changed = text.replace("max(atr_14, 0.0001 * close)", "max(atr_14, 0.0002 * close)")
        (config / "feature_sets.yaml").write_text(changed, encoding="utf-8")
    elif change == "tables":
        options["tables"] = {"cross": CROSS, "events": EVENTS}
    elif change == "chain":
        chain = pl.read_parquet(CHAIN)
        chain.with_columns(pl.col("open_interest") * 2).write_parquet(tmp_path / CHAIN.name)
        options["tables"] = TABLES | {"levels": tmp_path / CHAIN.name}
    elif change == "options":
        text = (shipped() / "config" / "options.yaml").read_text(encoding="utf-8")
        (place.root / "config").mkdir(parents=True)
        (place.root / "config" / "options.yaml").write_text(text.replace("rate: 0.04", "rate: 0.05"), encoding="utf-8")
    elif change == "dtype":
        options["dtype"] = "float32"
    elif change == "state":
        state = next((tmp_path / "out" / ".progress").glob("*.state"))
        state.write_bytes(state.read_bytes()[:-8] + b"12345678")
    else:
        (tmp_path / "out" / ".progress" / "run.json").write_text("{")
    with pytest.raises(StateError, match=message) as caught:
        _write(source, tmp_path / "out", place, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    assert (tmp_path / "out" / ".progress").exists()


def test_kill_9_at_random_moments_leaves_the_same_bytes(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    """Real kills of a real process, again and again, until a run ends: every byte as if nothing had happened."""
    source = tmp_path / "in"
    _split(bars, source, 5000)
    _write(source, tmp_path / "whole", place, part_rows=400)
    wanted = _tree(tmp_path / "whole")
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    command = [sys.executable, str(ROOT / "tests" / "kill_history.py"), str(source)]
    chance = random.Random(11)
    kills = 0
    for round_ in range(ROUNDS):
        out = tmp_path / f"out_{round_}"
        for attempt in range(40):
            process = subprocess.Popen(
                [*command, str(out), *map(str, TABLES.values())],
                env={**os.environ, "PYTHONPATH": paths},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"surveyed\n"
            if attempt < 2:  # otherwise let it end
                time.sleep(chance.uniform(0.0, 0.5))
                process.kill()
            _, errors = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -9, errors.decode()
            kills += 1
            for path in out.glob("symbol=*/month=*/*.parquet"):  # what a reader may find is whole
                assert pq.read_table(path).num_rows
        assert _tree(out) == wanted
        shutil.rmtree(out)
    assert kills


def test_two_processes_do_not_write_one_history(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    source = _split(bars, tmp_path / "in")[0]
    with Dataset(tmp_path / "out"), pytest.raises(WorkspaceError, match="another process"):
        _write(source, tmp_path / "out", place)


def test_what_else_lies_in_the_folder_is_safe(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    source = _split(bars, tmp_path / "in")[0]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(WorkspaceError, match="not empty"):
        _write(source, tmp_path / "full", place, fresh=True)
    with pytest.raises(WorkspaceError, match="is a file"):
        _write(source, tmp_path / "full" / "thesis.txt", place)
    _write(source, tmp_path / "out", place)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    _write(source, tmp_path / "out", place, fresh=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_overlapping_files(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    bars[:5000].write_parquet(folder / "a.parquet")
    bars[4999:].write_parquet(folder / "b.parquet")
    with pytest.raises(DataError, match=r"overlap: a\.parquet ends with .*, b\.parquet begins"):
        survey(expand([folder]), workspace=place)
    bars[:5000].write_parquet(folder / "b.parquet")
    with pytest.raises(DataError, match="the files have the same content"):
        survey(expand([folder]), workspace=place)


def test_bars_out_of_order_inside_a_file(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    pl.concat([bars[6000:], bars[:6000]]).write_parquet(path, row_group_size=6000)
    with pytest.raises(DataError, match="comes after"):
        survey([path], workspace=place)


def test_other_lengths_of_bars(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    bars[:5000].write_parquet(folder / "a.parquet")
    start = pl.col("timestamp").first() + pl.duration(days=60)
    seconds = bars[:2000].with_columns(timestamp=start + pl.duration(seconds=pl.int_range(pl.len())))
    seconds.write_parquet(folder / "b.parquet")
    with pytest.raises(DataError, match=r"60 s long in a\.parquet and 1 s in b\.parquet"):
        survey(expand([folder]), workspace=place)
    only = survey([folder / "b.parquet"], workspace=place)
    assert only.interval_ns("ES") == 1_000_000_000


def test_duplicates_over_the_seam_of_two_blocks_are_quarantined(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "bars.parquet"
    pl.concat([bars[:1000], bars[999:]]).write_parquet(path, row_group_size=1000)
    found = survey([path], workspace=place)
    assert found.sources[0].quarantine == {"timestamp_duplicate": 1}
    done = _write(path, tmp_path / "out", place)
    assert done.manifest.rows == bars.height


def test_faulty_rows_are_judged_for_the_file_not_for_a_block(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "bars.parquet"
    spoilt = bars.with_columns(high=pl.when(pl.int_range(pl.len()) < 300).then(0.0).otherwise("high"))
    spoilt.write_parquet(path, row_group_size=400)  # three quarters of a block, 2.7 % of the file
    assert sum(survey([path], workspace=place).sources[0].quarantine.values()) == 300
    worse = bars.with_columns(high=pl.when(pl.int_range(pl.len()) < 900).then(0.0).otherwise("high"))
    worse.write_parquet(path, row_group_size=400)
    with pytest.raises(DataError, match=r"900 of 11,040 rows are faulty, 8\.2%"):
        survey([path], workspace=place)


def test_columns_that_only_some_files_bring(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    """They are null where they are missing, and said to be."""
    folder = tmp_path / "in"
    folder.mkdir()
    bars[:5000].with_columns(vix=pl.lit(20.0)).write_parquet(folder / "a.parquet")
    bars[5000:].write_parquet(folder / "b.parquet")
    found = survey(expand([folder]), workspace=place)
    assert found.partial("ES")["vix"] == ["b.parquet"]
    _write(folder, tmp_path / "out", place, tables={})
    values = _read(tmp_path / "out")["vix_term_1m"]
    assert values[:5000].null_count() == 0
    assert values[5000:].null_count() == bars.height - 5000


def test_a_column_without_any_value_is_absent(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    source = _split(bars.with_columns(vix=pl.lit(None, dtype=pl.Float64)), tmp_path / "in")[0]
    found = survey([source], workspace=place)
    assert "vix" not in found.columns("ES")
    done = _write(source, tmp_path / "out", place, tables={})
    assert done.manifest.null_features["ES"]["vix_term_1m"] == ["vix"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.parquet", "rows", "no rows"),
        ("broken.parquet", b"PAR1 and then nothing", "cannot be read"),
        ("notes.txt", b"hello", "not a format"),
        ("odd.csv", b"a,b\n1,2\n", "missing"),
        ("none.csv", b"", "cannot be read"),
    ],
)
def test_files_that_are_no_bars(
    bars: pl.DataFrame, place: Workspace, tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        bars[:0].write_parquet(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        survey(expand([path]), workspace=place)
    assert str(tmp_path) in (caught.value.where or "")


def test_names_globs_and_folders(bars: pl.DataFrame, tmp_path: Path, place: Workspace) -> None:
    paths = _split(bars, tmp_path / "in", 3000, 6000)
    (tmp_path / "in" / ".hidden.parquet").write_bytes(b"")
    (tmp_path / "in" / "readme.md").write_text("no bars")
    assert list(expand([tmp_path / "in"])) == paths
    assert list(expand([str(tmp_path / "in" / "bars_*.parquet"), paths[0]])) == paths
    for pattern, message in ((tmp_path / "nothing.parquet", "no such file"), (tmp_path / "x*.csv", "no file matches")):
        with pytest.raises(DataError, match=message):
            expand([pattern])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="holds no Parquet"):
        expand([tmp_path / "hollow"])
    _write(paths[0], tmp_path / "out", place)
    with pytest.raises(DataError, match="history of features, not of bars"):
        expand([tmp_path / "out"])


def test_csv_as_parquet(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    source = _split(bars, tmp_path / "in")[0]
    bars.write_csv(tmp_path / "bars.csv")
    _write(source, tmp_path / "a", place)
    _write(tmp_path / "bars.csv", tmp_path / "b", place)
    assert _read(tmp_path / "a").equals(_read(tmp_path / "b"))


def test_preview_tells_the_size(bars: pl.DataFrame, place: Workspace, tmp_path: Path) -> None:
    source = _split(bars, tmp_path / "in")[0]
    found = survey([source], workspace=place)
    seen = preview(found, _beside(place, TABLES), workspace=place, settings=Settings())
    done = _write(source, tmp_path / "out", place)
    assert seen.bytes == pytest.approx(done.manifest.bytes, rel=0.2)


@pytest.mark.parametrize("bad", [{"dtype": "float16"}, {"compression": "rar"}, {"part_rows": 0}])
def test_settings_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Settings(**bad)  # type: ignore[arg-type]


def test_paths_of_odd_symbols() -> None:
    assert part_path("ES", "2024-01", 3) == "symbol=ES/month=2024-01/part-003.parquet"
    assert part_path("../x=é", "2024-01", 0).count("/") == 2
    assert part_path("..", "2024-01", 0).startswith("symbol=%2E%2E/")


def _cli(*arguments: object, code: int = 0) -> str:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    result = runner.invoke(app, [str(part) for part in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_the_command(bars: pl.DataFrame, tmp_path: Path) -> None:
    _split(bars, tmp_path / "in", 4000)
    common = [part for name, path in TABLES.items() for part in (f"--{name}", path)] + [
        "--workspace",
        tmp_path / "desk",
    ]
    out = tmp_path / "out"
    text = _cli("features", tmp_path / "in", out, "--dry-run", *common)
    assert "levels of 6 snapshots" in text
    assert "of 350 features can be computed" in text
    assert "Expected size" in text
    assert not out.exists()
    text = _cli("features", tmp_path / "in" / "*.parquet", out, *common)
    assert "11,040 rows x 350 features" in text
    assert "computing" in text
    assert "complete already" in _cli("features", tmp_path / "in", out, *common)
    text = _cli("features", tmp_path / "in", *common)
    assert "Nothing was written" in text
    assert not (tmp_path / "desk").exists()


def test_the_command_does_not_write_over_bars(bars: pl.DataFrame, tmp_path: Path) -> None:
    paths = _split(bars, tmp_path / "in", 4000)
    before = _tree(tmp_path / "in")
    for arguments in ((paths[0], paths[0]), (*paths, paths[0])):
        result = CliRunner().invoke(app, ["features", *map(str, arguments), "-w", str(tmp_path / "desk")])
        assert isinstance(result.exception, DataError)
    assert _tree(tmp_path / "in") == before


@pytest.mark.real
def test_real_bars_of_an_index_with_symbols_per_file(real_data: Path, place: Workspace, tmp_path: Path) -> None:
    """Fourteen symbols in one file, with gaps: each as if alone."""
    path = real_data / "bars" / "xasset_1m_20190211_15.parquet"
    done = _write(path, tmp_path / "out", place, tables={})
    frame = pl.read_parquet(path)
    assert done.manifest.rows == frame.height
    for symbol in ("SPY", "GLD"):
        alone = generate_features(frame.filter(pl.col("symbol") == symbol), workspace=place)
        found = _read(tmp_path / "out").filter(pl.col("symbol") == symbol).drop("symbol", "month")
        assert np.array_equal(found.to_numpy(), alone.to_numpy(), equal_nan=True) or found.equals(alone)
