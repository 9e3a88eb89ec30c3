"""A replay over a roll: features on back-adjusted prices, levels, orders and journal on the contract's own."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mia_fast import clock
from mia_fast import journal as journals
from mia_fast.bars import back_adjust, continuous, roll_table
from mia_fast.bars.rolls import adjustment, contract_month, rolls
from mia_fast.config import market
from mia_fast.errors import DataError
from mia_fast.features.frame import generate_features
from mia_fast.live import account
from mia_fast.live.broker import SimulatedBroker
from mia_fast.live.replay import Inputs, Summary, read_inputs, replay
from mia_fast.predict import NeuralPipeline
from mia_fast.risk import Order, Side
from mia_fast.sessions import Sessions, session_open
from mia_fast.tables import read_table
from mia_fast.workspace import Workspace, shipped

SAMPLE = shipped() / "data" / "sample"
ROLL = session_open(dt.date(2025, 5, 14))
HOUR = 3_600_000_000_000
START, END = ROLL - 8 * HOUR, ROLL + 2 * HOUR
GAP = 45.25


def _place(folder: Path, old: str, new: str, day: str) -> Workspace:
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "rolls.yaml").write_text(
        f'rule: calendar\nfixed: [{{from: "{old}", to: "{new}", trade_date: {day}}}]\n', encoding="utf-8"
    )
    return Workspace(folder)


def _inputs(place: Workspace, bars: Path) -> Inputs:
    rest = {name: SAMPLE / f"{name}.parquet" for name in ("events", "cross", "chain")}
    return read_inputs(place, bars=bars, events=rest["events"], cross=rest["cross"], chain=rest["chain"])


def _features(place: Workspace, run: Summary) -> pl.DataFrame:
    return pl.concat(map(pl.read_parquet, sorted((place.data / "features" / "runs" / run.run_id).glob("*.parquet"))))


def _decisions(place: Workspace) -> pl.DataFrame:
    with journals.Journal.open(place) as journal:
        return journal.query("SELECT timestamp, decision, code, signal_score, price FROM decisions ORDER BY timestamp")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Workspace, Summary]]:
    """The sample at the later contract's prices throughout, and the same market as two contracts with a roll."""
    folder = tmp_path_factory.mktemp("rolls")
    raw = pl.read_parquet(SAMPLE / "bars.parquet")
    prices = ["open", "high", "low", "close"]
    later = raw.with_columns(pl.col(prices) + GAP)
    later.write_parquet(folder / "one.parquet")
    drop = [name for name in raw.columns if name == "symbol"]
    pl.concat(
        (
            raw.drop(drop).with_columns(symbol=pl.lit("ESM5")),
            later.drop(drop).with_columns(symbol=pl.lit("ESU25")),
        )
    ).sort("timestamp", maintain_order=True).write_parquet(folder / "two.parquet")
    found = {}
    for name in ("one", "two"):
        place = _place(folder / name, "202506", "202509", "2025-05-14")
        found[name] = (place, replay(place, _inputs(place, folder / f"{name}.parquet"), start=START, end=END))
    return found


def test_features_do_not_see_the_roll_and_decisions_are_the_same(both: dict[str, tuple[Workspace, Summary]]) -> None:
    (one_place, one), (two_place, two) = both["one"], both["two"]
    assert one.bars == two.bars == 540
    assert _features(one_place, one).equals(_features(two_place, two))
    ours, theirs = _decisions(two_place), _decisions(one_place)
    names = ["timestamp", "decision", "code", "signal_score"]
    assert ours.select(names).equals(theirs.select(names))
    assert (ours["decision"] == "buy").sum() + (ours["decision"] == "sell").sum() > 0
    # The journal has each contract's own price.
    rolled = ours["timestamp"].dt.epoch("ns") > ROLL
    assert (rolled.sum(), (~rolled).sum()) == (120, 420)
    apart = theirs["price"] - ours["price"]
    assert apart.filter(~rolled).unique().to_list() == [GAP]
    assert apart.filter(rolled).unique().to_list() == [0.0]
    # No position was carried, so the account ends where it would have.
    assert two.equity == pytest.approx(one.equity, abs=1e-6)
    assert two.trades == one.trades > 0


def test_levels_are_on_the_contract_that_is_traded(both: dict[str, tuple[Workspace, Summary]], tmp_path: Path) -> None:
    (_, one), (two_place, two) = both["one"], both["two"]
    assert two.future_levels is not None
    assert (two.future_levels.basis, two.future_levels) == (one.future_levels.basis, one.future_levels)
    folder = two_place.root.parent
    for end, moved in ((ROLL - 2 * HOUR, GAP), (ROLL + HOUR // 2, 0.0)):  # after the roll no new chain has come yet
        found = []
        for name in ("one", "two"):
            place = _place(tmp_path / f"{name}{end}", "202506", "202509", "2025-05-14")
            run = replay(place, _inputs(place, folder / f"{name}.parquet"), start=ROLL - 3 * HOUR, end=end)
            assert run.future_levels is not None
            found.append(run.future_levels)
        assert found[0].basis is not None
        assert found[1].basis is not None
        assert found[0].basis - found[1].basis == pytest.approx(moved, abs=1e-6)
        assert found[0].levels.timestamp_ns == found[1].levels.timestamp_ns < ROLL


class _StopError(Exception):
    """The run is stopped here."""


@pytest.mark.parametrize("stop", [300, 500])
def test_a_stopped_replay_goes_on_over_the_roll(
    both: dict[str, tuple[Workspace, Summary]], tmp_path: Path, stop: int
) -> None:
    two_place, two = both["two"]
    place = _place(tmp_path / "again", "202506", "202509", "2025-05-14")
    inputs = _inputs(place, two_place.root.parent / "two.parquet")

    def break_off(done: int, _total: int) -> None:
        if done >= stop:
            raise _StopError

    with pytest.raises(_StopError):
        replay(place, inputs, start=START, end=END, checkpoint_bars=50, progress=break_off)
    done = replay(place, inputs, start=START, end=END, checkpoint_bars=50)
    assert done.resumed_at == stop
    assert _features(place, done).equals(_features(two_place, two))
    assert _decisions(place).equals(_decisions(two_place))
    assert done.equity == two.equity


def test_the_expiries_of_2013(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "bars/es_quote_trade_1m_2013.parquet"
    with pytest.raises(DataError, match="no roll lies inside"):
        read_inputs(Workspace(tmp_path / "rule"), bars=source)
    place = _place(tmp_path / "fixed", "201312", "201403", "2013-10-08")
    inputs = read_inputs(place, bars=source)
    (roll,) = inputs.rolls
    assert (roll.old, roll.new, roll.gap) == ("201312", "201403", -6.5)
    own = read_table("bars", source, workspace=place).frame
    series = continuous(own, roll_table(own, rolls(place), Sessions.load(place, "ES")))
    assert inputs.bars.frame.equals(series)
    end = clock.from_datetime(dt.datetime(2013, 10, 8, 20, tzinfo=dt.UTC))
    run = replay(place, inputs, end=end)
    # What the live engine computed is what the batch computes on the back-adjusted copy.
    bars = read_table("bars", source, workspace=place)
    moved = back_adjust(series).drop("symbol")  # one series: with its symbols it would be two
    pipeline = NeuralPipeline(place)
    batch = generate_features(
        type(bars)("bars", moved, bars.quarantine, "series", interval_ns=bars.interval_ns),
        workspace=place,
        auxiliary=pipeline.auxiliary,
    )
    batch = pipeline.generate_predictions(batch)
    live = _features(place, run)
    shared = [name for name in live.columns if name in batch.columns and name not in account.FEATURES]
    assert len(shared) > 300
    computed = [name for name in shared if live[name].null_count() < live.height]
    assert len(computed) > 80
    assert {"predicted_volatility", "model_drift_score"} < set(computed), "the models go over the roll as well"
    same = batch.head(live.height)
    assert [name for name in computed if not live[name].equals(same[name])] == []
    # The journal, and so the orders, have the contract's own price.
    journal = _decisions(place)
    joined = journal.select("timestamp", "price").with_columns(pl.col("timestamp").dt.cast_time_unit("ns")).join(
        series.select("known_at", "close", "symbol", "timestamp"), left_on="timestamp", right_on="known_at"
    )  # fmt: skip
    assert joined.height == run.bars > 1600
    assert (joined["price"] == joined["close"]).all()
    assert set(joined["symbol"].unique()) == {"201312", "201403"}
    assert np.abs(live["momentum_10"].drop_nulls().to_numpy()).max() < 20


def test_a_position_does_not_go_over_a_roll() -> None:
    config = market(Workspace(shipped()))
    broker = SimulatedBroker(config)
    broker.submit(Order("c", "ES", Side.BUY, 1.0, None, False, stop=90.0), "t", None, "ENTRY_SIGNAL")
    broker.take_bar(100.0, 101.0, 99.0, 1)
    assert broker.position is not None
    entry, cash = broker.position.entry_price, broker.cash
    broker.submit(Order("d", "ES", Side.SELL, 1.0, None, True), "t", None, "EXIT_SIGNAL")
    trade = broker.leave(104.0, 2)
    assert trade is not None
    slip = config.account.slippage_ticks * config.instrument.tick_size
    assert (trade.reason, trade.exit_price, trade.exit_ns) == ("EXIT_ROLL", 104.0 - slip, 2)
    gross = (104.0 - slip - entry) * config.instrument.point_value
    assert broker.cash == pytest.approx(cash + gross - config.account.fee_per_side)
    assert trade.profit == pytest.approx(gross - 2 * config.account.fee_per_side)
    assert broker.position is None
    assert broker.pending is None
    assert broker.take_bar(58.0, 60.0, 50.0, 3) is None  # neither order nor stop of the old contract is left
    assert broker.leave(58.0, 4) is None


@pytest.mark.parametrize(
    ("symbol", "year", "month"),
    [
        ("201312", 2013, "201312"), ("ESZ3", 2013, "201312"), ("ESZ3", 2022, "202312"), ("ESH0", 2019, "202003"),
        ("ESZ13", 2013, "201312"), ("ESM2025", 2013, "202506"), ("ES", 2013, None), ("NQZ3", 2013, None),
        ("201313", 2013, None), ("ESA3", 2013, None),
    ],
)  # fmt: skip
def test_names_of_contracts(symbol: str, year: int, month: str | None) -> None:
    assert contract_month(symbol, "ES", year) == month


def test_the_adjustment_is_that_of_the_continuous_series(real_data: Path, tmp_path: Path) -> None:
    place = _place(tmp_path / "fixed", "201312", "201403", "2013-10-08")
    inputs = read_inputs(place, bars=real_data / "bars/es_quote_trade_1m_2013.parquet")
    frame = inputs.bars.frame
    starts = frame["timestamp"].dt.epoch("ns").to_list()
    assert [adjustment(inputs.rolls, start) for start in starts] == frame["adjustment"].to_list()
