"""``mia-fast memory``: status, nearest, purge, check."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import mia_fast
from mia_fast import journal as journals
from mia_fast import memory
from mia_fast.cli.commands import app
from mia_fast.errors import DataError, MarketMemoryError
from mia_fast.features.frame import generate_features
from mia_fast.memory import plot as pictures
from mia_fast.memory.nearest import nearest_to
from mia_fast.workspace import Workspace, shipped

SAMPLE = shipped() / "data" / "sample" / "bars.parquet"
ROWS = 400


@pytest.fixture(autouse=True)
def _closed(workspace: Workspace) -> Iterator[None]:
    yield
    memory.forget(workspace)
    if journals.is_open(workspace):
        journals.of(workspace).close()


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    """The first bars of the sample."""
    path = tmp_path / "bars.parquet"
    pl.read_parquet(SAMPLE).head(ROWS).write_parquet(path)
    return path


@pytest.fixture
def stored(workspace: Workspace, bars: Path) -> pl.DataFrame:
    """Every tenth state from the hundredth bar on, won and lost in turn; the features by when they are known."""
    features = generate_features(bars, workspace=workspace)
    known = features.with_columns(pl.col("timestamp").dt.offset_by("1m"))
    for number, row in enumerate(range(100, 300, 10)):
        mia_fast.store_pattern(known[row], 50.0 if number % 2 else -25.0)
    return known


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["memory", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return f"{done.exit_code}\n{done.output}"


def test_nearest_recalls_the_state_itself_and_what_followed_it(
    workspace: Workspace, bars: Path, stored: pl.DataFrame
) -> None:
    moment = stored["timestamp"][200]
    found = nearest_to(workspace, bars, at=moment, k=5)
    assert found.frame["timestamp"][0] == moment.replace(microsecond=0)
    assert found.frame["distance"][0] == 0.0
    assert (found.frame["timestamp"] <= moment).all(), "nothing that lay ahead"
    closes = pl.read_parquet(bars)["close"].to_numpy()
    np.testing.assert_array_equal(found.followed[0], closes[200:261] - closes[200])
    assert found.own == found.followed[0]
    again = nearest_to(workspace, bars, at=moment + dt.timedelta(seconds=30), k=5)
    assert again.frame.equals(found.frame), "between two bars the earlier one is the present"
    late = nearest_to(workspace, bars, k=5, outcome="winning")
    assert late.own == [0.0]
    assert (late.frame["profit"] > 0).all()
    with pytest.raises(DataError, match="no bar is known"):
        nearest_to(workspace, bars, at=dt.datetime(2001, 1, 1, tzinfo=dt.UTC))
    with pytest.raises(DataError, match="the bars end before"):
        nearest_to(workspace, bars, at=moment + dt.timedelta(days=1098))
    with pytest.raises(DataError, match="outcome"):
        nearest_to(workspace, bars, outcome="best")
    with pytest.raises(MarketMemoryError, match="are missing"):
        nearest_to(workspace, bars, at=stored["timestamp"][0])


def test_the_commands(workspace: Workspace, bars: Path, stored: pl.DataFrame, tmp_path: Path) -> None:
    assert "20" in run("status")
    told = run("nearest", "--bars", bars, "--at", f"{stored['timestamp'][200]:%Y-%m-%d %H:%M:%S}", "-k", 3)
    assert told.startswith("0\n")
    assert "-25.00" in told
    assert "▁" in told
    assert "sound" in run("check")
    purged = run("purge", "--days", 1)
    assert "20 states older than" in purged
    assert "Nothing that was known by then" in run("nearest", "--bars", bars)


def test_the_picture(workspace: Workspace, bars: Path, stored: pl.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for count, moment in ((1, None), (9, stored["timestamp"][250])):
        found = nearest_to(workspace, bars, at=moment, k=count)
        for ending, head in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
            assert pictures.draw(found, tmp_path / f"n{count}{ending}").read_bytes().startswith(head)
    elsewhere = tmp_path / "elsewhere.parquet"
    pl.read_parquet(bars).tail(90).write_parquet(elsewhere)
    with pytest.raises(MarketMemoryError):
        nearest_to(workspace, elsewhere, at=pl.read_parquet(elsewhere)["timestamp"][2])


def test_a_broken_memory_is_reported_and_can_be_begun_anew(workspace: Workspace) -> None:
    path = mia_fast.setup_database()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE outcomes")
    db.commit()
    db.close()
    assert run("check").startswith("1\n")
    memory.forget(workspace)
    with pytest.raises(MarketMemoryError, match="outcomes is missing"):
        run("check")
    told = run("check", "--renew", "a drill")
    assert told.startswith("0\n")
    assert "quarantine" in told
    assert "sound" in told


def test_asking_about_a_folder_that_is_not_there_creates_none(tmp_path: Path) -> None:
    for command in ("status", "check", "purge"):
        with pytest.raises(Exception, match="no such folder"):
            run(command, "--workspace", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
