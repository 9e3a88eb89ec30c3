"""What a newcomer tries: paths as workspaces, wrong endings, empty lists."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import mia_fast
from mia_fast import journal
from mia_fast.cli.commands import app
from mia_fast.errors import ConfigError, DataError
from mia_fast.risk import detach
from mia_fast.workspace import shipped

SAMPLE = shipped() / "data" / "sample"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_workspace_may_be_given_as_a_path(tmp_path: Path) -> None:
    place = mia_fast.Workspace.current(tmp_path)
    assert mia_fast.Workspace.current(place) is place
    frame = pl.read_parquet(SAMPLE / "bars.parquet").head(50)
    for given in (str(tmp_path), tmp_path, place):
        assert mia_fast.generate_features(frame, workspace=given).height == 50
        assert mia_fast.stop_trading(0.01, workspace=given) is False
        assert mia_fast.block_trade(True, workspace=given) is True
        assert mia_fast.log_decision("T1", "buy", 0.5, None, workspace=given) > 0
        mia_fast.flush(given)
    assert (tmp_path / "data" / "logs" / "trading" / "decision_log.csv").read_text().count(",T1,") == 3
    detach(place)
    journal.of(place).close()


def test_a_picture_of_unknown_ending_is_refused_before_the_work(tmp_path: Path) -> None:
    desk = ("--workspace", tmp_path / "desk")
    with pytest.raises(ConfigError, match=r"written as \.xyz"):
        run("bars", SAMPLE / "trades.parquet", tmp_path / "b.parquet", "--plot", tmp_path / "b.xyz", *desk)
    with pytest.raises(ConfigError, match=r"written as \.xyz"):
        run("levels", SAMPLE / "chain.parquet", "--plot", tmp_path / "lv.xyz", *desk)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_of_cross_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no table") as caught:
        mia_fast.generate_features(pl.read_parquet(SAMPLE / "bars.parquet").head(5), cross=[], workspace=tmp_path)
    assert caught.value.where == "cross"
