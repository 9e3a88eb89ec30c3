"""The picture of the levels, and the command that draws it."""

from __future__ import annotations

import struct

import polars as pl
import pytest
from test_options_levels import CONFIG, simulated
from test_options_readers import cboe_csv, cboe_json
from typer.testing import CliRunner

from mia_fast.cli.commands import app
from mia_fast.errors import DataError
from mia_fast.options import LevelsEngine
from mia_fast.options.plot import plot_levels

pytest.importorskip("matplotlib")


def test_the_marks_are_where_the_levels_are(tmp_path):
    engine = LevelsEngine(CONFIG)
    levels = engine.update(simulated(1))
    path = plot_levels(levels, engine.surface, tmp_path / "levels.svg")
    text = path.read_text()
    for mark in (
        f"zero gamma {levels.zero_gamma:,.1f}",
        f"vol trigger {levels.vol_trigger:,.1f}",
        "put wall",
        f" {levels.put_wall:,.0f}",
        f" {levels.call_wall:,.0f}",
        "SPX/SPXW 5,300.00",
        "Smile by expiry",
        f"{levels.open_interest_date:%d %b %Y}",
    ):
        assert mark in text, mark


def test_a_degraded_chain_is_drawn_with_its_reason_and_no_level(tmp_path):
    frame = simulated(1).with_columns(
        bid=pl.when(pl.col("expiry") == simulated()["expiry"].max()).then("bid").otherwise(0.0)
    )
    engine = LevelsEngine(CONFIG)
    levels = engine.update(frame)
    assert levels.status == "DEGRADED"
    text = plot_levels(levels, engine.surface, tmp_path / "levels.svg").read_text()
    assert "COVERAGE_LOW" in text
    assert "put wall 5" not in text
    assert "zero gamma 5" not in text


def test_nothing_to_draw_is_said(tmp_path):
    engine = LevelsEngine(CONFIG)
    levels = engine.update(simulated().with_columns(bid=pl.lit(0.0)))
    with pytest.raises(DataError, match="no expiry has a volatility"):
        plot_levels(levels, engine.surface, tmp_path / "levels.png")
    assert not list(tmp_path.iterdir())


def test_the_command_draws(workspace, tmp_path):
    simulated(2).write_parquet(tmp_path / "chain.parquet")
    picture = tmp_path / "levels.png"
    done = CliRunner().invoke(app, ["levels", str(tmp_path / "chain.parquet"), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (2210, 1365)
    assert "By expiry" in done.output
    assert "> 0: puts dearer" in done.output


def test_the_command_reads_what_people_have_and_names_the_file(workspace, tmp_path):
    chain = simulated(2)
    (tmp_path / "quotes.json").write_text(cboe_json(chain, stamp="2024-05-15 16:15:00"))
    (tmp_path / "quotes.csv").write_text(cboe_csv(chain))
    for name in ("quotes.json", "quotes.csv"):
        done = CliRunner().invoke(app, ["levels", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert "Dealer levels  OK" in done.output
        assert f"{name}:" in "".join(done.output.split("\n"))
        assert "DataFrame" not in done.output


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        (None, None, 2, "Missing argument 'chain'"),
        ("absent.parquet", None, 2, "does not exist"),
        ("", None, 2, "is a directory"),
        ("empty.parquet", b"", 1, "cannot be read"),
        ("bars.csv", b"timestamp,close\n2024-05-15T12:00:00Z,5300\n", 1, "quote_time"),
        ("chain.json", b"{}", 1, "is not Cboe's JSON"),
        ("notes.md", b"hello", 1, "is not a format that is read"),
    ],
)
def test_a_file_that_is_no_chain_is_refused(workspace, tmp_path, name, content, code, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = CliRunner().invoke(app, ["levels", *([] if name is None else [str(tmp_path / name)])])
    said = " ".join(f"{done.output} {done.exception or ''}".replace("│", " ").split())
    assert message in said
    assert done.exit_code == code
    assert not (workspace.data / "options_snapshots").exists()
