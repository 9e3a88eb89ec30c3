"""The command ``mia-fast bars``: files in, bars, report and picture out."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from mia_fast.bars import make_bars, page
from mia_fast.bars.plot import draw
from mia_fast.cli.commands import app
from mia_fast.errors import ConfigError, DataError
from mia_fast.workspace import Workspace, shipped

SAMPLE = shipped() / "data" / "sample"


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["bars", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_bars_with_book_session_and_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "bars.parquet", tmp_path / "bars.png"
    said = _run(
        SAMPLE / "trades.parquet", out, "--book", SAMPLE / "book.parquet", "--interval", "15m", "--product", "ES",
        "--plot", picture, "--workspace", tmp_path,
    )  # fmt: skip
    found = pl.read_parquet(out)
    assert f"{found.height:,} bars" in said
    assert found["ofi_score"].is_between(-1, 1).all()
    assert found["trade_date"].n_unique() == 2
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000


def test_order_events_with_faults_are_reported(tmp_path: Path):
    source = tmp_path / "orders.csv"
    rows = ["ts,action,side,price,size,order_id"]
    rows += [f"2025-05-13T14:00:{k:02d}Z,A,B,{100 - k / 4},2,{k}" for k in range(30)]
    rows += ["2025-05-13T14:00:40Z,A,A,101,2,77", "2025-05-13T14:00:41Z,C,B,100,1,9999"]
    rows += ["2025-05-13T14:00:42Z,T,B,101,1,500", "2025-05-13T14:00:43Z,A,B,100,-4,600"]
    source.write_text("\n".join(rows) + "\n")
    said = _run(source, tmp_path / "bars.parquet", "--workspace", tmp_path)
    assert "quarantined 1: order_unknown (first: row 31, order_id 9999)" in said
    assert "quarantined 1: size_not_positive" in said
    assert pl.read_parquet(tmp_path / "bars.parquet")["volume"].to_list() == [1.0]


def test_quarantined_rows_carry_the_files_numbers(tmp_path: Path):
    """The reader drops a row before the book sees, and refuses, others."""
    rows = ["ts,action,side,price,size,order_id"]
    rows += [f"2025-05-13T14:00:{k:02d}Z,A,B,{100 - k / 4},2,{k}" for k in range(50)]
    rows[4] = "2025-05-13T14:00:03Z,A,B,nan,2,3"
    rows[11] = "2025-05-13T14:00:10Z,A,Q,97.5,2,10"
    rows += ["2025-05-13T14:00:51Z,C,B,100,1,9999", "2025-05-13T14:00:52Z,T,B,101,1,500"]
    (tmp_path / "orders.csv").write_text("\n".join(rows) + "\n")
    report = make_bars(
        tmp_path / "b.parquet", orders=tmp_path / "orders.csv", workspace=Workspace(tmp_path), interval_ns=60 * 10**9
    )
    assert [(row, value) for row, _, value, _, _ in report.examples] == [(10, "Q"), (3, "None"), (50, "9999")]
    assert [rows[1 + row].split(",")[-1] for row, *_ in report.examples] == ["10", "3", "9999"]


def test_volume_bars_of_trades_without_a_side(tmp_path: Path):
    trades = pl.read_parquet(SAMPLE / "trades.parquet").head(3000).with_columns(side=pl.lit("N"))
    trades.write_parquet(tmp_path / "t.parquet")
    said = _run(tmp_path / "t.parquet", tmp_path / "b.parquet", "--volume", "500", "--infer-side", "-w", tmp_path)
    found = pl.read_parquet(tmp_path / "b.parquet")
    ended_by_the_day = pl.col("trade_date") != pl.col("trade_date").shift(-1, fill_value=None)
    assert (found.filter(~ended_by_the_day.fill_null(True))["volume"] >= 500).all()
    assert found.height > 20
    assert found["delta_volume"].abs().sum() > 0
    assert "trades without an aggressor" in said


def test_faults_leave_no_file(tmp_path: Path):
    trades = pl.read_parquet(SAMPLE / "trades.parquet").head(3000)
    pl.concat((trades.tail(10), trades.head(10))).write_parquet(tmp_path / "back.parquet")
    for source in ("back.parquet", "absent.parquet"):
        with pytest.raises(DataError):
            _run(tmp_path / source, tmp_path / "b.parquet", "--workspace", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["back.parquet"]


def test_a_picture_says_what_it_needs(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match="Matplotlib"):
        draw(pl.DataFrame(), tmp_path / "x.png", "")
    with pytest.raises(ConfigError, match="Matplotlib"):  # before the bars are made
        _run(SAMPLE / "trades.parquet", tmp_path / "b.parquet", "--plot", tmp_path / "x.png", "--workspace", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_is_the_declaration():
    assert (shipped() / "docs/bars.md").read_text(encoding="utf-8") == page.markdown()
