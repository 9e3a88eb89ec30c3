"""The whole house on the simulated sample: what a replay leaves behind, and that kill -9 changes none of it."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mia_fast
from mia_fast import journal as journals
from mia_fast import memory
from mia_fast.errors import ConfigError, DataError, StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.live import account
from mia_fast.live.engine import Bar, Engine
from mia_fast.live.replay import Inputs, Summary, read_inputs, replay
from mia_fast.plot import check
from mia_fast.risk import config as risk_config
from mia_fast.risk.overtrading import TradeRate
from mia_fast.sessions import session_open
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = shipped() / "data" / "sample"
START = session_open(dt.date(2025, 5, 13))
BARS = 2760
WARMUP = 6 * 1380


def _inputs(place: Workspace, **changed: Path | None) -> Inputs:
    paths: dict[str, Path | None] = {
        "events": SAMPLE / "events.parquet",
        "cross": SAMPLE / "cross.parquet",
        "chain": SAMPLE / "chain.parquet",
        **changed,
    }
    return read_inputs(place, bars=SAMPLE / "bars.parquet", **paths)


def _run(place: Workspace, inputs: Inputs, **options: Any) -> Summary:
    return replay(place, inputs, **{"start": START, **options})


def _features(place: Workspace, run_id: str) -> pl.DataFrame:
    return pl.concat(
        [pl.read_parquet(path) for path in sorted((place.data / "features" / "runs" / run_id).glob("*.parquet"))]
    )


def _rows(place: Workspace, table: str, then_by: str = "trade_id") -> pl.DataFrame:
    with journals.Journal.open(place) as journal:
        return journal.query(f"SELECT * EXCLUDE (sequence) FROM {table} ORDER BY timestamp, {then_by}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Summary]:
    """One undisturbed replay."""
    place = Workspace(tmp_path_factory.mktemp("whole"))
    return place, _run(place, _inputs(place), checkpoint_bars=500)


def test_every_bar_is_decided_and_every_decision_is_logged(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    assert done.bars == BARS
    assert sum(done.tally.actions.values()) == BARS
    log = pl.read_csv(place.data / "logs" / "trading" / "decision_log.csv")
    assert log.columns == ["timestamp", "trade_id", "decision", "signal_score", "regime_probs"]
    assert log.height == BARS
    assert log["trade_id"].n_unique() == BARS
    assert log["timestamp"].is_sorted()
    assert set(log["decision"]) <= {"buy", "sell", "exit", "hold"}
    probs = json.loads(log["regime_probs"].drop_nulls()[0])
    assert set(probs) == {"trend", "range", "defensive"}
    assert done.trades > 0, "the sample must exercise entries and exits"
    trades = pl.read_csv(place.data / "trades" / "trades_simulated.csv")
    assert trades.columns == ["trade_id", "timestamp", "entry_price", "profit", "regime_probs"]
    assert trades.height == done.trades
    assert trades["profit"].sum() == pytest.approx(done.equity - done.starting_equity)


def test_every_order_has_its_verdict_in_the_journal(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    with journals.Journal.open(place) as journal:
        verdicts = journal.query("SELECT * FROM verdicts ORDER BY timestamp")
        decisions = journal.query("SELECT * FROM decisions WHERE decision <> 'hold' ORDER BY timestamp")
    assert verdicts["timestamp"].equals(decisions["timestamp"])
    assert verdicts["verdict"].equals(decisions["verdict"])
    entries = verdicts.filter(~pl.col("reduce_only"))
    assert entries["stop"].is_not_null().all(), "an entry names its protective stop"
    assert ((entries["reference"] - entries["stop"]).sign() == (entries["side"] == "buy").cast(pl.Int8) * 2 - 1).all()
    refused = verdicts.filter(pl.col("verdict") == "deny")["code"].value_counts()
    assert dict(refused.iter_rows()) == dict(done.tally.blocks)


def test_marks_say_at_each_bar_whether_an_entry_could_pass(whole: tuple[Workspace, Summary]) -> None:
    _, done = whole
    marks = done.marks
    assert marks.height == BARS
    assert marks["known_at"].is_sorted()
    assert marks["equity"][-1] == done.equity
    peak = marks["equity"].cum_max()
    np.testing.assert_array_equal(marks["drawdown"].to_numpy(), ((peak - marks["equity"]) / peak).to_numpy())
    assert marks["drawdown"].max() == pytest.approx(done.tally.max_drawdown)
    closed = marks.filter(pl.col("closed_by") == "EVENT_WINDOW").height
    assert closed > done.tally.blocks["EVENT_WINDOW"] > 0
    first, last = done.tally.block_spans["EVENT_WINDOW"]
    assert done.first <= first <= last <= done.last


def test_the_picture_of_a_run(whole: tuple[Workspace, Summary], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mia_fast.live import plot

    _, done = whole
    for ending, head in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = plot.draw(done.marks, done.tally.blocks, "a <title> & more", tmp_path / f"run{ending}")
        assert path.read_bytes().startswith(head)
    assert plot._stretches([None, "A", "A", None, "B"]) == [(1, 2, "A"), (4, 4, "B")]
    assert plot._stretches([]) == []
    with pytest.raises(ConfigError, match=r"\.txt"):
        check(tmp_path / "run.txt")
    plot.draw(done.marks.head(1), {}, "one bar", tmp_path / "one.png")


def test_without_matplotlib_the_run_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match="not installed"):
        check(tmp_path / "run.png")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The sample's frame, from its first bar on, with the models' columns."""
    place = Workspace(tmp_path_factory.mktemp("batch"))
    pipeline = mia_fast.NeuralPipeline(place)
    frame = mia_fast.generate_features(
        SAMPLE / "bars.parquet",
        cross=SAMPLE / "cross.parquet",
        levels=SAMPLE / "chain.parquet",
        events=SAMPLE / "events.parquet",
        auxiliary=pipeline.auxiliary,
        workspace=place,
    )
    return pipeline.generate_predictions(frame)


def test_live_features_equal_batch_bit_for_bit(whole: tuple[Workspace, Summary], batch: pl.DataFrame) -> None:
    """Stage 2 too: the models caught up with the bars before the start, and a frame carries them from its first row on.

    All but what a frame has only from its caller: account and market memory.
    """
    place, done = whole
    live = _features(place, done.run_id)
    wanted = batch[WARMUP:]
    names = live.columns[1:]
    assert [name for name in batch.columns if name in names] == names
    assert live["timestamp"].equals(wanted["timestamp"])
    assert done.features == sum(1 for name in names if name not in done.null_features)
    late = {feature.name for feature in catalogues.read(place).features if feature.stage == 3}
    assert late == {*memory.FEATURES, *account.FEATURES}
    for name in late:
        assert wanted[name].null_count() == BARS, name
    second = [feature.name for feature in catalogues.read(place).features if feature.stage == 2]
    assert len(second) == 22
    few = {"prediction_confidence", "error_rolling_std", "confidence_drop_rate"}  # errors of the VIX, in eight sessions
    assert {name for name in second if live[name].null_count()} == few
    assert not set(second) & set(done.null_features)
    for name in (name for name in names if name not in late):
        assert live[name].is_null().equals(wanted[name].is_null()), name
        a, b = (np.asarray(frame[name].fill_null(0.0)).view(np.int64) for frame in (live, wanted))
        assert np.array_equal(a, b), name


def test_a_decision_names_the_regimes_that_the_networks_see(
    whole: tuple[Workspace, Summary], batch: pl.DataFrame
) -> None:
    place, _ = whole
    said = _rows(place, "decisions").filter(pl.col("regime_probs").is_not_null())
    assert said.height == BARS
    named = pl.DataFrame([json.loads(text) for text in said["regime_probs"]]).select("trend", "range", "defensive")
    wanted = batch[WARMUP:].select(f"regime_prob_{name}" for name in named.columns)
    np.testing.assert_array_equal(named.to_numpy(), wanted.to_numpy())
    networks = mia_fast.NeuralPipeline(place).networks.manifest.graph_sha256
    assert said["model_sha256"].unique().to_list() == [networks]


def test_the_accounts_features_are_their_definitions(whole: tuple[Workspace, Summary]) -> None:
    """The obvious twin: from the trades, the verdicts and the bars of the run, each bar looked at by itself."""
    place, done = whole
    live = _features(place, done.run_id)
    bars = pl.read_parquet(SAMPLE / "bars.parquet")[WARMUP:]
    trades = _rows(place, "trades").with_columns(pl.col("timestamp", "exit_timestamp").dt.epoch("ns"))
    stops = {
        row["timestamp"].replace(tzinfo=None): row["stop"]
        for row in _rows(place, "verdicts", "client_id").iter_rows(named=True)
    }
    known = done.marks["known_at"].to_numpy()
    equity = done.marks["equity"].to_numpy()
    limits = risk_config.risk(place).limits
    rate = TradeRate(risk_config.risk(place).overtrading)
    fills = sorted(trades["exit_timestamp"].to_list())
    got = live.select(account.FEATURES).fill_null(np.nan).to_numpy()
    checked = 0
    for k in range(BARS):
        now = int(known[k])
        last = trades.filter(pl.col("exit_timestamp") <= now).tail(3)["profit"].to_list()
        held = trades.filter((pl.col("timestamp") <= now) & (pl.col("exit_timestamp") > now))
        for at in fills:
            if at == now:
                rate.trade(at)
        rate.tick(now)
        drawdown = (equity[: k + 1].max() - equity[k]) / equity[: k + 1].max()
        size, worst, best, at_risk, exposure = 0, 0.0, 0.0, 0.0, 0.0
        if held.height:
            trade = held.row(0, named=True)
            checked += 1
            size = trade["quantity"]
            sign = 1 if trade["side"] == "buy" else -1
            since = int(np.searchsorted(known, trade["timestamp"]))
            lows, highs = bars["low"][since : k + 1], bars["high"][since : k + 1]
            moves = [sign * (price - trade["entry_price"]) * size * 50.0 for price in (lows.min(), highs.max())]
            worst, best = min(0.0, *moves), max(0.0, *moves)
            stop = stops[_naive(known[since - 1])]
            at_risk = max(0.0, sign * (bars["close"][k] - stop)) * size * 50.0 / (limits.max_trade_risk * equity[k])
            exposure = size * 50.0 * live["atr_14"][k] / equity[k]
        scores = [
            rate.score(),
            min(1.0, size * limits.margin_per_contract / equity[k]),
            min(1.0, at_risk),
            min(1.0, drawdown / done.marks["drawdown_limit"][k]),
        ]
        want = {
            "drawdown_ratio": drawdown,
            "position_size_ratio": size / limits.max_position,
            "mae": worst,
            "mfe": best,
            "overtrade_risk_score": scores[0],
            "margin_risk_score": scores[1],
            "position_risk_score": scores[2],
            "drawdown_risk_score": scores[3],
            "portfolio_risk_score": max(scores),
            "last_3_trades_success_rate": sum(profit > 0 for profit in last) / 3 if len(last) == 3 else np.nan,
            "trade_volatility_exposure": exposure,
        }
        np.testing.assert_allclose(got[k], [want[name] for name in account.FEATURES], rtol=1e-12, atol=1e-12)
    assert checked > 100
    assert (got[:, account.FEATURES.index("mae")] < 0).any()
    assert (got[:, account.FEATURES.index("mfe")] > 0).any()


def _naive(instant_ns: int) -> dt.datetime:
    """As the journal's readers give instants."""
    return dt.datetime.fromtimestamp(int(instant_ns) / 1e9, dt.UTC).replace(tzinfo=None)


def test_files_of_the_contract(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    latest = pl.read_csv(place.data / "features" / "features_latest.csv")
    assert latest.height == 1440
    assert latest.columns[0] == "timestamp"
    assert latest.columns[1:] == _features(place, done.run_id).columns[1:]
    levels = sorted((place.data / "options_snapshots").glob("levels_*.json"))
    assert len(levels) == done.snapshots > 0
    content = json.loads(levels[0].read_text())
    assert list(content) == ["timestamp", "gamma_wall", "iv_atm", "dealer_position_bias"]
    assert (
        levels[0].name == "levels_" + content["timestamp"].replace("-", "").replace(":", "").replace(".", "_") + ".json"
    )
    risk = json.loads(next((place.data / "risk_snapshots").glob("risk_*.json")).read_text())
    assert list(risk) == ["timestamp", "drawdown", "overtrade_risk_score", "penalty_active"]
    penalties = (place.data / "logs" / "trading" / "penalty_log.csv").read_text().splitlines()
    assert penalties[0] == "timestamp,penalty_active,overtrade_risk_score"
    for component in ("neural_pipeline", "risk", "decision_log"):
        header = (place.data / "logs" / f"{component}_performance.csv").read_text().splitlines()[0]
        assert header == "timestamp,operation,latency,success,memory_usage_mb,cpu_percent"


def test_entries_are_blocked_inside_event_windows(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    with journals.Journal.open(place) as journal:
        rows = journal.query("SELECT * FROM decisions WHERE decision IN ('buy', 'sell') ORDER BY timestamp")
    events = pl.read_parquet(SAMPLE / "events.parquet").filter(pl.col("impact") > 0.7)
    for event in events["start_time"].to_list():
        near = rows.filter(
            ((pl.col("timestamp").dt.replace_time_zone("UTC") - event).dt.total_minutes()).is_between(-15, 29)
        )
        assert (near["verdict"] == "deny").all()
    assert done.tally.blocks["EVENT_WINDOW"] == rows.filter(pl.col("code") == "EVENT_WINDOW").height


def test_every_decision_can_be_explained(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    with journals.Journal.open(place) as journal:
        row = journal.query("SELECT * FROM decisions WHERE verdict = 'allow' AND decision <> 'hold' LIMIT 1").row(
            0, named=True
        )
    assert row["run_id"] == done.run_id
    assert len(row["model_sha256"]) == 64
    assert len(row["config_digest"]) == 16
    assert len(row["input_hash"]) == 64
    seen = np.frombuffer(row["context"], dtype="<f8")
    features = _features(place, done.run_id)
    at = features["timestamp"].dt.replace_time_zone(None).dt.offset_by("1m").index_of(row["timestamp"])
    assert at is not None
    stored = np.array([np.nan if x is None else x for x in features.row(at)[1:]])
    assert np.array_equal(seen, stored, equal_nan=True)


def test_the_same_run_again_changes_nothing(whole: tuple[Workspace, Summary], tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    first = _run(place, _inputs(place), checkpoint_bars=1000)
    log = place.data / "logs" / "trading" / "decision_log.csv"
    before = log.read_bytes()
    snapshots = sorted(path.name for path in (place.data / "options_snapshots").iterdir())
    again = _run(place, _inputs(place), checkpoint_bars=777, fresh=True)
    assert again.run_id == first.run_id == whole[1].run_id
    assert log.read_bytes() == before
    assert sorted(path.name for path in (place.data / "options_snapshots").iterdir()) == snapshots
    assert again.equity == first.equity
    with journals.Journal.open(place) as journal:
        assert journal.query("SELECT count(*) FROM alerts WHERE priority >= 3").item() == 0


def _memory(place: Workspace) -> list[memory.Row]:
    """The states that a replay left in the desk's memory, by their keys."""
    (run,) = (path.name for path in (place.data / "runs").iterdir())
    return memory.of(place).rows(run)


def test_every_closed_trade_is_in_the_memory_with_the_state_of_its_entry(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    held = _memory(place)
    trades = _rows(place, "trades")
    assert [row.trade_id for row in held] == trades["trade_id"].to_list()
    assert [row.profit for row in held] == trades["profit"].to_list()
    assert [row.known_ns for row in held] == trades["exit_timestamp"].dt.epoch("ns").to_list()
    assert all(json.loads(row.features) for row in held)
    features = _features(place, done.run_id)
    names = memory.memory_features(place).names
    known = features["timestamp"].dt.epoch("ns") + 60_000_000_000
    for row in held:
        at = _entered_ns(row)
        (expected,) = features.filter(known == at).select(names).fill_null(float("nan")).rows()
        np.testing.assert_array_equal(np.frombuffer(row.state), expected)
        assert (row.recalled is not None) == (sum(other.known_ns <= at for other in held) >= 20)


def test_a_bar_knows_what_the_memory_says_of_the_bar_before(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    features = _features(place, done.run_id)
    held = _memory(place)
    known = (features["timestamp"].dt.epoch("ns") + 60_000_000_000).to_list()
    score, distance = features["pattern_replay_score"], features["cluster_score_distance"]
    assert score[0] is None
    for row, before in enumerate(known[:-1], start=1):
        enough = sum(trade.known_ns <= before for trade in held) >= 20
        assert (score[row] is not None) == (distance[row] is not None) == enough, row
    recalled = [row for row in held if row.recalled is not None]
    assert len(recalled) > 3
    for trade in recalled:  # what was recalled for an entry is what the next bar knows
        assert score[known.index(_entered_ns(trade)) + 1] == trade.recalled


def _entered_ns(row: memory.Row) -> int:
    (stamp,) = re.findall(r"\d{8}T\d{6}", row.trade_id or "")
    return int(dt.datetime.strptime(f"{stamp}Z", "%Y%m%dT%H%M%S%z").timestamp()) * 1_000_000_000


def test_the_limit_is_tightened_by_what_is_known_from_the_twentieth_trade_on(whole: tuple[Workspace, Summary]) -> None:
    place, done = whole
    closed = sorted(row.known_ns for row in _memory(place))
    limits = dict(done.marks.select("known_at", "drawdown_limit").rows())
    before = [limit for at, limit in limits.items() if at <= closed[19]]
    after = [limit for at, limit in limits.items() if at > closed[19]]
    assert set(before) == {0.05}
    assert min(after) < 0.05
    assert all(0.025 <= limit <= 0.05 for limit in after)


def _remember(place: Workspace, count: int, at: int, profit: float) -> None:
    store = memory.of(place)
    for number in range(count):
        store.store(np.sin(np.arange(len(store.manifest.names)) + number), profit, at_ns=at - number * 60_000_000_000)


def test_a_replay_knows_the_desks_memory_as_it_was_and_no_other_replay(tmp_path: Path) -> None:
    place, end = Workspace(tmp_path), START + 3_600_000_000_000
    plain = _run(place, _inputs(place), end=end)
    assert set(plain.marks["drawdown_limit"]) == {0.05}
    _remember(place, 25, START + 60_000_000_000 * 10, -1.0)
    young = _run(place, _inputs(place), end=end)
    assert young.run_id != plain.run_id
    assert set(young.marks["drawdown_limit"]) == {0.05}, "of the 25, some lie after the start"
    _remember(place, 20, START - 86_400_000_000_000, -1.0)
    tight = _run(place, _inputs(place), end=end)
    assert set(tight.marks["drawdown_limit"]) == {0.025}, "all of the nearest lost"
    again = _run(place, _inputs(place), end=end, fresh=True)
    assert again.run_id == tight.run_id
    assert again.marks.equals(tight.marks)
    memory.forget(place)


def test_a_resume_without_the_runs_own_memory_is_refused(tmp_path: Path) -> None:
    place, end = Workspace(tmp_path), START + 3_600_000_000_000
    done = _run(place, _inputs(place), end=end)
    (place.data / "runs" / done.run_id / memory.FILE).unlink()
    with pytest.raises(StateError, match="own memory"):
        _run(place, _inputs(place), end=end)
    assert _run(place, _inputs(place), end=end, fresh=True).equity == done.equity
    memory.forget(place)


def test_a_replay_whose_memory_is_gone_enters_nothing(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    mia_fast.setup_database(place).unlink()
    done = _run(place, _inputs(place), end=START + 8 * 3_600_000_000_000)
    assert done.trades == 0
    assert set(done.tally.blocks) == {"RISK_MEMORY"}
    assert "gone" in done.memory
    assert done.marks["drawdown_limit"].is_nan().all()
    memory.forget(place)


@pytest.mark.parametrize("kill_after", [1, 4])
def test_a_killed_replay_resumes_to_the_same_end(
    whole: tuple[Workspace, Summary], tmp_path: Path, kill_after: int
) -> None:
    undisturbed, expected = whole
    place = Workspace(tmp_path)
    places = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "crash_replay.py"), str(SAMPLE), str(tmp_path), "400"],
        env={**os.environ, "PYTHONPATH": places},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        for _ in range(kill_after):
            done = int(child.stdout.readline())
        time.sleep(0.02)  # into the bars after the checkpoint
        child.kill()
    assert done == 400 * kill_after
    # What was acknowledged before the kill is there before anything is resumed.
    acknowledged = _rows(place, "decisions")
    assert acknowledged.height >= done
    resumed = _run(place, _inputs(place), checkpoint_bars=400)
    assert resumed.resumed_at >= done
    assert resumed.run_id == expected.run_id
    assert _features(place, resumed.run_id).equals(_features(undisturbed, expected.run_id))
    assert _rows(place, "decisions").equals(_rows(undisturbed, "decisions"))
    assert _rows(place, "trades").equals(_rows(undisturbed, "trades"))
    assert _rows(place, "verdicts", "client_id").equals(_rows(undisturbed, "verdicts", "client_id"))
    assert resumed.marks.equals(expected.marks)
    for name in ("logs/trading/decision_log.csv", "trades/trades_simulated.csv", "logs/trading/penalty_log.csv"):
        assert (place.data / name).read_bytes() == (undisturbed.data / name).read_bytes(), name
    assert resumed.tally == expected.tally
    assert resumed.equity == expected.equity
    assert _memory(place) == _memory(undisturbed)
    with journals.Journal.open(place) as journal:
        assert journal.query("SELECT count(*) FROM alerts WHERE priority >= 3").item() == 0


def test_without_a_chain_the_levels_are_null_and_say_so(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    done = _run(place, _inputs(place, chain=None), checkpoint_bars=3000)
    assert done.levels is not None
    assert done.levels.status == "NO_CHAIN"
    content = json.loads(next((place.data / "options_snapshots").glob("*.json")).read_text())
    assert content["gamma_wall"] is None


def test_without_a_calendar_no_entry_passes(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    done = _run(place, _inputs(place, events=None), checkpoint_bars=3000)
    assert done.trades == 0
    assert set(done.tally.blocks) == {"CALENDAR_MISSING"}


def test_without_vix_there_is_no_forecast_and_no_entry(whole: tuple[Workspace, Summary], tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    done = _run(place, _inputs(place, cross=None), checkpoint_bars=3000)
    assert done.trades == 0
    assert done.tally.actions["hold"] == BARS
    lost = {name: lacks for name, lacks in done.null_features.items() if name not in whole[1].null_features}
    assert {"vix_term_1m", "vix_rolling_mean", "vix_rolling_std"} < set(lost)
    tables = {column.name: column.table for column in catalogues.read(place).inputs}
    assert all({tables[name] for name in lacks} & {"daily", "minute"} for lacks in lost.values())
    found = _features(place, done.run_id)
    gone = ("predicted_vix", "prediction_confidence", "error_rolling_std", "confidence_drop_rate")
    assert set(gone) <= set(lost), "the run says what the forecast lacks"
    assert found.select(gone).null_count().row(0) == (BARS,) * 4
    # The networks stand on bars alone.
    assert found.select("predicted_volatility", "neural_regime", "model_drift_score").null_count().row(0) == (0, 0, 0)


def test_a_breach_latches_the_run_but_not_the_desk(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    (tmp_path / "config").mkdir()
    market = (shipped() / "config" / "market_config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config" / "market_config.yaml").write_text(
        market.replace("max_drawdown: 0.05", "max_drawdown: 0.0005"), encoding="utf-8"
    )
    done = _run(place, _inputs(place), checkpoint_bars=1000)
    assert done.tally.latched_at is not None
    assert done.tally.blocks["RISK_LATCHED"] > 0
    penalties = pl.read_csv(place.data / "logs" / "trading" / "penalty_log.csv")
    assert penalties["penalty_active"].to_list() == [True]
    after = pl.read_csv(place.data / "logs" / "trading" / "decision_log.csv")
    assert after.height == BARS
    assert mia_fast.stop_trading(0.0, workspace=place) is False, "a replay is a simulation: the desk is not latched"


def test_a_damaged_checkpoint_is_refused_and_fresh_begins_again(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    first = _run(place, _inputs(place), checkpoint_bars=2000)
    path = place.data / "runs" / first.run_id / "checkpoint"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match="--fresh"):
        _run(place, _inputs(place))
    assert _run(place, _inputs(place), fresh=True, checkpoint_bars=2000).equity == first.equity


def test_a_period_without_bars_is_refused(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with pytest.raises(DataError, match="no bar in the period"):
        _run(place, _inputs(place), start=2_000_000_000_000_000_000)
    with pytest.raises(DataError):
        read_inputs(place, bars=tmp_path / "none.parquet")


def test_the_bars_before_the_start_warm_the_features(whole: tuple[Workspace, Summary], tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    inputs = _inputs(place)
    known = inputs.bars.frame["known_at"].dt.epoch("ns")
    first = WARMUP + 1380
    done = replay(place, inputs, start=int(known[first - 1]), end=int(known[first + 119]), checkpoint_bars=100)
    assert done.bars == 120
    part = _features(whole[0], whole[1].run_id)[1380:1500]
    # The account begins anew, all else is as if the bars before had been decided.
    assert _features(place, done.run_id).drop(account.FEATURES).equals(part.drop(account.FEATURES))
    # Three chains are older than the run: the last one is in force when it begins.
    assert len(list((place.data / "options_snapshots").glob("levels_*.json"))) == 1
    with journals.Journal.open(place) as journal:
        assert journal.query("SELECT count(*) FROM levels").item() == 1
        assert journal.query("SELECT count(*) FROM alerts WHERE priority >= 3").item() == 0


def test_a_stale_vix_is_missing_and_blocks(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    old = pl.read_parquet(SAMPLE / "cross.parquet").filter(pl.col("timestamp") < dt.datetime(2025, 5, 9, tzinfo=dt.UTC))
    old.write_parquet(tmp_path / "old.parquet")
    done = _run(place, _inputs(place, cross=tmp_path / "old.parquet"), checkpoint_bars=3000)
    assert done.tally.reasons["FEATURE_MISSING: feature=vix_term_1m"] > 1300
    stale = pl.col("timestamp").dt.replace_time_zone("UTC") > dt.datetime(2025, 5, 13, 20, 15, tzinfo=dt.UTC)
    rows = _rows(place, "decisions").filter(stale)
    assert rows.height > 1300
    assert set(rows["decision"]) <= {"hold", "exit"}
    last = _features(place, done.run_id)["vix_term_1m"]
    assert last[0] is not None
    assert last[-1] is None


def test_bars_of_another_instrument_are_refused(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    frame = pl.read_parquet(SAMPLE / "bars.parquet").with_columns(symbol=pl.lit("NQ"))
    frame.write_parquet(tmp_path / "nq.parquet")
    with pytest.raises(DataError, match="the bars are of 'NQ', the configured instrument is 'ES'"):
        read_inputs(place, bars=tmp_path / "nq.parquet")
    frame.with_columns(symbol=pl.lit("ESM5")).write_parquet(tmp_path / "esm5.parquet")
    assert read_inputs(place, bars=tmp_path / "esm5.parquet").bars.frame.height == frame.height


def test_a_finished_run_that_is_started_again_tells_nothing_new(whole: tuple[Workspace, Summary]) -> None:
    place, expected = whole
    snapshots = sorted((place.data / "risk_snapshots").iterdir())
    log = (place.data / "logs" / "trading" / "decision_log.csv").read_bytes()
    again = _run(place, _inputs(place), checkpoint_bars=500)
    assert again.resumed_at == BARS
    assert again.equity == expected.equity
    assert sorted((place.data / "risk_snapshots").iterdir()) == snapshots
    assert (place.data / "logs" / "trading" / "decision_log.csv").read_bytes() == log


def test_two_runs_in_one_workspace_share_no_trade_id(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for end in (START + 3_600_000_000_000, START + 7_200_000_000_000):
        _run(place, _inputs(place), end=end)
    log = pl.read_csv(place.data / "logs" / "trading" / "decision_log.csv")
    assert log.height == 60 + 120
    assert log["trade_id"].n_unique() == log.height


def test_a_chain_older_than_the_run_is_stale(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    old = pl.read_parquet(SAMPLE / "chain.parquet").with_columns(
        pl.col("quote_time").dt.offset_by("-5d"), pl.col("market_time").dt.offset_by("-5d")
    )
    old.write_parquet(tmp_path / "old.parquet")
    done = _run(place, _inputs(place, chain=tmp_path / "old.parquet"), checkpoint_bars=3000)
    assert done.levels is not None
    assert done.levels.status == "DEGRADED"
    assert any(reason.startswith("CHAIN_STALE") for reason in done.levels.reasons)


def test_bad_live_bars_are_held_named_and_change_nothing(
    whole: tuple[Workspace, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between good bars the feed sends rubbish; what follows is what an undisturbed run has."""
    bad = ({"high": float("nan")}, {"low": -1.0}, {"volume": -5.0}, {"high": 1.0}, {"close": float("inf")}, {})
    original, seen = Engine.on_bar, []

    def disturbed(self: Engine, bar: Bar, account: Any, position: Any) -> Any:
        if len(seen) < 300 and self.features.rows > WARMUP:
            wrong = bar._replace(known_at=bar.known_at - 30_000_000_000, **bad[len(seen) % len(bad)])
            decision = original(self, wrong, account, position)
            seen.append(decision)
            assert decision.action == "hold"
            assert decision.order is None
            assert decision.code.startswith("BAR_"), decision
        return original(self, bar, account, position)

    monkeypatch.setattr(Engine, "on_bar", disturbed)
    place = Workspace(tmp_path)
    done = _run(place, _inputs(place), checkpoint_bars=3000)
    assert len({decision.code for decision in seen}) >= 5
    assert done.equity == whole[1].equity
    assert done.tally == whole[1].tally
    again, undisturbed = (_features(*run) for run in ((place, done.run_id), (whole[0], whole[1].run_id)))
    # The account is marked between the bars as well: half a minute more of a history to measure trades against.
    marked = ["overtrade_risk_score", "portfolio_risk_score"]
    assert again.drop(marked).equals(undisturbed.drop(marked))
    np.testing.assert_allclose(again.select(marked), undisturbed.select(marked), rtol=1e-3)
    log = pl.read_csv(place.data / "logs" / "trading" / "decision_log.csv")
    assert log.height == BARS + len(seen), "every refused bar is in the audit trail"


def test_a_bad_bar_does_not_hide_a_breach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, latched = Engine.on_bar, []

    def ruined(self: Engine, bar: Bar, account: Any, position: Any) -> Any:
        if self.features.rows == WARMUP + 10:
            half = replace(account, equity=account.equity / 2)
            original(self, bar._replace(known_at=bar.known_at - 30_000_000_000, high=float("nan")), half, position)
            latched.append(self.desk.controller.latch is not None)
        return original(self, bar, account, position)

    monkeypatch.setattr(Engine, "on_bar", ruined)
    place = Workspace(tmp_path)
    _run(place, _inputs(place), end=START + 3_600_000_000_000)
    assert latched == [True]
