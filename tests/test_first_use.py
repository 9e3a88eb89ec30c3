"""What a newcomer tries: paths as workspaces, wrong endings, empty lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

import mia_fast
from mia_fast import config, journal
from mia_fast.cli import show
from mia_fast.cli.commands import app
from mia_fast.errors import ConfigError, DataError, MarketMemoryError
from mia_fast.live.replay import Summary, read_inputs, replay
from mia_fast.options import on_future
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


def test_the_configuration_can_be_seen_and_copied_and_a_copy_applies(tmp_path: Path) -> None:
    desk = ("--workspace", tmp_path)
    listed = run("config", "show", *desk)
    for path in (shipped() / "config").iterdir():
        assert path.name in listed
    text = (shipped() / "config" / "market_config.yaml").read_text()
    assert run("config", "show", "market_config", *desk) == text
    with pytest.raises(ConfigError, match="no configuration file") as caught:
        run("config", "show", "markt_config.yaml", *desk)
    assert "market_config.yaml" in str(caught.value.hint)
    with pytest.raises(ConfigError):
        run("config", "init", "market_config.yaml", "none.yaml", *desk)
    assert not (tmp_path / "config").exists()
    run("config", "init", "market_config.yaml", *desk)
    own = tmp_path / "config" / "market_config.yaml"
    assert own.read_text() == text
    own.write_text(text.replace("max_drawdown: 0.05", "max_drawdown: 0.03"))
    assert config.market(mia_fast.Workspace.current(tmp_path)).max_drawdown == 0.03
    assert "left as they are: market_config.yaml" in " ".join(run("config", "init", *desk).split())
    assert "0.03" in own.read_text()
    assert {path.name for path in own.parent.iterdir()} == {path.name for path in (shipped() / "config").iterdir()}
    own.write_text("max_drawdown: 0.03\n")
    with pytest.raises(ConfigError) as missing:
        config.market(mia_fast.Workspace.current(tmp_path))
    assert str(shipped() / "config" / "market_config.yaml") in str(missing.value.hint)


@pytest.fixture(scope="module")
def without_vix(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, mia_fast.Workspace]:
    """A replay of the last sample bars with a chain and without cross-asset closes."""
    place = mia_fast.Workspace.current(tmp_path_factory.mktemp("desk"))
    inputs = read_inputs(
        place, bars=SAMPLE / "bars.parquet", events=SAMPLE / "events.parquet", chain=SAMPLE / "chain.parquet"
    )
    start = int(inputs.bars.frame["timestamp"].dt.epoch("ns")[-300])
    return replay(place, inputs, start=start), place


def shown(done: Summary, place: mia_fast.Workspace, monkeypatch: pytest.MonkeyPatch) -> str:
    console = Console(width=200, highlight=False)
    monkeypatch.setattr(show, "out", console)
    with console.capture() as captured:
        show.summary(done, place)
    return captured.get()


def test_a_run_that_cannot_trade_says_what_to_give(
    without_vix: tuple[Summary, mia_fast.Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, place = without_vix
    text = shown(done, place, monkeypatch)
    line = next(line for line in text.splitlines() if line.strip().startswith("Idle"))
    assert "vix_term_1m needs" in line
    assert "VIX" in line
    assert "--cross" in line
    inputs = read_inputs(
        place, bars=SAMPLE / "bars.parquet", events=SAMPLE / "events.parquet", cross=SAMPLE / "cross.parquet"
    )
    early = int(inputs.bars.frame["timestamp"].dt.epoch("ns")[1000])
    end = int(inputs.bars.frame["timestamp"].dt.epoch("ns")[1200])
    cold = shown(replay(place, inputs, start=early, end=end), place, monkeypatch)
    line = next(line for line in cold.splitlines() if line.strip().startswith("Idle"))
    assert "warm-up was not over" in line
    assert "earlier sessions" in line


def test_the_summary_names_the_limit_that_stopped_a_run(
    without_vix: tuple[Summary, mia_fast.Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, place = without_vix
    assert "max_drawdown" not in shown(done, place, monkeypatch)  # nothing to explain
    at = done.marks["known_at"][100]
    tally = replace(done.tally, latched_at=at, max_drawdown=0.0287)
    tight = done.marks.with_columns(
        drawdown_limit=pl.when(pl.col("known_at") == at).then(0.0285).otherwise(pl.col("drawdown_limit"))
    )
    stopped = shown(replace(done, tally=tally, marks=tight), place, monkeypatch)
    assert "limit 2.85% at that bar: max_drawdown 5.00%, tightened by the market memory" in stopped
    assert "limit 5.00% (max_drawdown)" in shown(replace(done, tally=tally), place, monkeypatch)


def test_a_basis_beyond_a_quarters_carry_is_told(
    without_vix: tuple[Summary, mia_fast.Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, place = without_vix
    assert done.levels is not None
    assert done.levels.underlying_price is not None
    spot = done.levels.underlying_price
    for basis, told in ((0.004, False), (0.018, True)):
        moved = on_future(done.levels, spot * (1 + basis), spot, limit=0.02)
        assert moved.status == "OK"
        text = shown(replace(done, future_levels=moved), place, monkeypatch)
        assert ("are the bars back-adjusted?" in text) is told


def test_a_wide_row_can_be_read_as_a_record_and_a_model_has_its_name(tmp_path: Path) -> None:
    mia_fast.log_decision("T7", "buy", 0.5, {"trend": 0.25}, workspace=tmp_path)
    place = mia_fast.Workspace.current(tmp_path)
    journal.of(place).close()
    text = run("query", "SELECT * FROM decisions", "--record", "--workspace", tmp_path)
    assert [line.split() for line in text.splitlines() if "trade_id" in line] == [["trade_id", "T7"]]
    assert max(len(line) for line in text.splitlines()) < 120
    assert "null" not in text
    assert "Versions of predicted_vix" in run("models", "list", "--workspace", tmp_path)


def test_wording_of_common_slips(tmp_path: Path) -> None:
    desk = ("--workspace", tmp_path / "desk")
    frame = pl.read_parquet(SAMPLE / "bars.parquet").head(50)

    def told(error: type[Exception], call: Callable[[], object]) -> str:
        with pytest.raises(error) as caught:
            call()
        return str(caught.value)

    def features(data: object = frame, **inputs: object) -> pl.DataFrame:
        return mia_fast.generate_features(data, workspace=tmp_path, **inputs)  # type: ignore[arg-type]

    assert "check the path" in told(DataError, lambda: features(cross=tmp_path / "none.parquet"))
    assert "check the path" in told(DataError, lambda: features(events=tmp_path / "none.csv"))
    assert ".collect()" in told(DataError, lambda: features(frame.lazy()))
    assert "polars.DataFrame(data)" in told(DataError, lambda: features({"close": [1.0]}))
    assert "is this a file of chain at all?" in told(DataError, lambda: run("levels", SAMPLE / "bars.parquet", *desk))
    assert features(auxiliary="vix_mean_5").columns[-1] == "vix_mean_5"
    bars = ("--bars", SAMPLE / "bars.parquet")
    late = told(ConfigError, lambda: run("run", *bars, "--start", "2025-05-14", "--end", "2025-05-13", *desk))
    assert "--end 2025-05-13 lies before --start 2025-05-14" in late
    for profit in ("x", True, "100", None, float("nan")):
        text = told(MarketMemoryError, lambda: mia_fast.store_pattern(frame[:1], profit, workspace=tmp_path))  # type: ignore[arg-type]  # noqa: B023
        assert f"profit = {profit!r} is not" in text
    refused = CliRunner().invoke(
        app, ["bars", str(SAMPLE / "trades.parquet"), str(tmp_path / "b.parquet"), "--volume", "-3"]
    )
    assert refused.exit_code == 2
    assert "--volume" in refused.output
    (tmp_path / "data" / "macro_events.csv").write_text("start_time,typ,impact\n2030-01-01T00:00:00Z,FOMC,0.9\n")
    assert "the column 'type' is missing" in run("risk", "status", "--workspace", tmp_path)
    detach(mia_fast.Workspace.current(tmp_path))
    if journal.is_open(mia_fast.Workspace.current(tmp_path)):
        journal.of(mia_fast.Workspace.current(tmp_path)).close()


def test_a_feature_of_another_length_is_no_slip_of_a_name(tmp_path: Path) -> None:
    from mia_models.session import missing_features

    manifest = mia_fast.NeuralPipeline(mia_fast.Workspace.current(tmp_path)).model.manifest
    assert "names" not in str(missing_features(manifest, ["rsi_21"], ["rsi_14"]))
    assert "'rsi_14' for 'rsi_14_'" in str(missing_features(manifest, ["rsi_14_"], ["rsi_14"]))
