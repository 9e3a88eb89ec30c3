"""What a command may write to: never its input, and no other file of the user's unless told to."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from mia_fast.cli.commands import app
from mia_fast.errors import DataError
from mia_fast.workspace import shipped

SAMPLE = shipped() / "data" / "sample"


def run(tmp_path: Path, *arguments: object) -> str:
    words = [*map(str, arguments), "--workspace", str(tmp_path / "desk")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    path = tmp_path / "x" / "a.parquet"
    path.parent.mkdir()
    pl.read_parquet(SAMPLE / "bars.parquet").head(200).write_parquet(path)
    return path


@pytest.fixture
def trades(tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    pl.read_parquet(SAMPLE / "trades.parquet").head(500).write_parquet(path)
    return path


def test_two_bar_files_of_a_glob_are_no_input_and_output(tmp_path: Path, bars: Path) -> None:
    second = bars.with_name("b.parquet")
    shutil.copy(bars, second)
    before = second.read_bytes()
    with pytest.raises(DataError, match="no file of features that mia-fast wrote") as caught:
        run(tmp_path, "features", *sorted(bars.parent.glob("*.parquet")))
    assert "--force" in str(caught.value.hint)
    assert second.read_bytes() == before


def test_features_replace_features_but_nothing_else(tmp_path: Path, bars: Path, trades: Path) -> None:
    out = tmp_path / "f.parquet"
    run(tmp_path, "features", bars, out)
    first = out.read_bytes()
    run(tmp_path, "features", bars, out)
    assert out.read_bytes() == first
    made = tmp_path / "made.parquet"
    run(tmp_path, "bars", trades, made)
    with pytest.raises(DataError, match="no file of features"):  # bars that mia-fast made are bars all the same
        run(tmp_path, "features", bars, made)
    run(tmp_path, "features", bars, made, "--force")
    assert "rsi_14" in pl.read_parquet_schema(made)


def test_an_input_is_never_replaced_also_by_force_or_another_name(tmp_path: Path, bars: Path, trades: Path) -> None:
    book = tmp_path / "book.parquet"
    shutil.copy(SAMPLE / "book.parquet", book)
    link = tmp_path / "link.parquet"
    link.symlink_to(trades)
    features = tmp_path / "f.parquet"
    run(tmp_path, "features", bars, features)
    kept = {path: path.read_bytes() for path in (bars, trades, book, features)}
    for words in (
        ("bars", trades, trades),
        ("bars", trades, link),
        ("bars", trades, book, "--book", book),
        ("features", bars, bars),
        ("features", bars, book, "--cross", book),
        ("filter", features, features),
    ):
        for force in ((), ("--force",)):
            with pytest.raises(DataError, match="is also an input"):
                run(tmp_path, *words, *force)
    assert {path: path.read_bytes() for path in kept} == kept


def test_bars_filter_and_query_ask_before_they_replace(tmp_path: Path, trades: Path, bars: Path) -> None:
    own = tmp_path / "own.parquet"
    pl.DataFrame({"mine": [1]}).write_parquet(own)
    features = tmp_path / "f.parquet"
    run(tmp_path, "features", bars, features)
    for words in (("bars", trades, own), ("filter", features, own), ("query", "SELECT 1 AS one", "--out", own)):
        with pytest.raises(DataError, match="exists, and is no file of"):
            run(tmp_path, *words)
    assert pl.read_parquet(own).columns == ["mine"]
    made = tmp_path / "made.parquet"
    for _ in range(2):
        run(tmp_path, "bars", trades, made)
    table = pl.read_parquet(made)
    run(tmp_path, "bars", trades, own, "--force")
    assert pl.read_parquet(own).equals(table)
