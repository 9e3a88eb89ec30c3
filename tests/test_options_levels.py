"""Dealer levels on simulated chains: against the slow twin, at the edges, on disk."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_options import (
    assert_fields,
    black_price,
    call_and_put,
    naive_exposures,
    naive_fields,
    naive_levels,
    naive_wings,
)

from mia_fast.clock import from_datetime, iso
from mia_fast.errors import ConfigError, DataError, WorkspaceError
from mia_fast.options import (
    Levels,
    LevelsEngine,
    no_chain,
    on_future,
    options_config,
    prepare,
    recalculate_levels,
    save,
)
from mia_fast.options.chain import early_close, open_interest_date, settlement_ns
from mia_fast.options.levels import PRICE_LEVELS
from mia_fast.workspace import Workspace, shipped
from mia_kernels import black, gamma

NEW_YORK = ZoneInfo("America/New_York")
NOON = dt.datetime(2024, 5, 15, 12, 0, tzinfo=NEW_YORK)
SPOT = 5300.0
CONFIG = options_config(Workspace(shipped()))


def simulated(
    seed: int = 7, *, root: str = "SPXW", days: tuple[int, ...] = (0, 1, 2, 9, 23, 37, 65), tilt: float = 1.0
) -> pl.DataFrame:
    """A chain with a skewed smile, ticks, wings without bids, and open interest around round strikes."""
    rng = np.random.default_rng(seed)
    rows = []
    for day in days:
        expiry = NOON.date() + dt.timedelta(days=day)
        third_friday = day == 2
        for name, settlement in ((root, "PM"), ("SPX", "AM")) if third_friday and root == "SPXW" else ((root, "PM"),):
            hour = dt.time(9, 30) if settlement == "AM" else dt.time(16)
            years = (dt.datetime.combine(expiry, hour, NEW_YORK) - NOON).total_seconds() / 31_536_000
            discount, forward = math.exp(-0.052 * years), SPOT * math.exp(0.038 * years)
            width = 0.14 * math.sqrt(years)
            strikes = np.unique(np.round(forward * np.exp(np.linspace(-7, 5, 61) * width) / 5) * 5)
            x = np.log(strikes / forward) / math.sqrt(max(years, 1e-3))
            s = (0.14 - 0.12 * x + 0.15 * x * x).clip(0.05, 1.5) * math.sqrt(years)
            for right, kind in ((1.0, "C"), (-1.0, "P")):
                price = discount * black_price(forward, strikes, s, right)
                tick = 0.05
                bid = np.floor((price - 0.01 - 0.002 * price) / tick) * tick
                ask = np.ceil((price + 0.01 + 0.002 * price) / tick) * tick + tick
                mean = 900 * np.exp(-((np.log(strikes / SPOT) - right * 0.015) ** 2) / 0.002)
                mean *= (1 + 4 * (strikes % 50 == 0)) * (tilt if kind == "C" else 1.0)
                for k, b, a, oi in zip(strikes, bid.clip(0), ask, rng.poisson(mean), strict=True):
                    rows.append((name, settlement, expiry, float(k), kind, float(b), float(a), int(oi)))
    frame = pl.DataFrame(
        rows,
        schema=["root", "settlement", "expiry", "strike", "type", "bid", "ask", "open_interest"],
        orient="row",
    )
    return frame.with_columns(
        quote_time=pl.lit(NOON).dt.convert_time_zone("UTC").dt.cast_time_unit("ns"),
        underlying_price=pl.lit(SPOT),
        volume=pl.lit(0),
    )


def engine() -> LevelsEngine:
    return LevelsEngine(CONFIG)


def assert_agree(levels: Levels, slow: dict, *, spot: float) -> None:
    """Every level of the engine against the twin's."""
    assert levels.coverage == pytest.approx(slow["coverage"], abs=1e-12)
    assert levels.net_gamma == pytest.approx(slow["net_gamma"], rel=1e-7, abs=1e-9 * levels.call_gamma)
    assert levels.dealer_position_bias == pytest.approx(slow["dealer_position_bias"], abs=1e-8)
    assert levels.gamma_wall == slow["gamma_wall"]
    keys = [levels[f"key_strikes_{i}"] for i in range(1, 6)]
    assert keys == [*slow["key_strikes"], *[None] * (5 - len(slow["key_strikes"]))]
    assert (levels.call_wall, levels.put_wall) == (slow["call_wall"], slow["put_wall"])
    assert levels.max_pain == slow["max_pain"]
    assert levels.iv_atm == (None if slow["iv_atm"] is None else pytest.approx(slow["iv_atm"], rel=1e-7))
    assert len(levels.zero_gamma_roots) == len(slow["roots"])
    assert list(levels.zero_gamma_roots) == pytest.approx(slow["roots"], abs=1e-6 * spot)
    if slow["zero_gamma"] is None:
        assert levels.zero_gamma is None
        assert levels.zero_gamma_status == ("NO_CROSSING_POS" if slow["net_gamma"] > 0 else "NO_CROSSING_NEG")
    else:
        assert levels.zero_gamma == pytest.approx(slow["zero_gamma"], abs=1e-6 * spot)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_levels_agree_with_the_slow_twin(seed):
    frame = simulated(seed)
    worker = engine()
    levels = worker.update(frame.sample(fraction=1.0, shuffle=True, seed=seed))
    assert levels.status == "OK"
    assert levels.reasons == levels.notes == ()
    slow = naive_levels(frame.to_dicts())
    assert_agree(levels, slow, spot=SPOT)
    surface = worker.surface
    assert surface is not None
    chain = surface.chain
    for i in range(0, chain.strike.size, 7):
        key = (chain.root[chain.group[i]], chain.expiry[chain.group[i]])
        expected = slow["surface"].get(key, {}).get(chain.strike[i])
        if surface.strike_status[i] == black.OK:
            assert surface.greeks[black.SIGMA, i] == pytest.approx(expected, rel=1e-6)
        else:
            assert expected is None
            assert math.isnan(surface.greeks[black.SIGMA, i])
    for g, (f, discount, parity) in enumerate(slow["forwards"].values()):
        assert parity == (surface.source[g] == black.FROM_PARITY)
        assert surface.terms[black.FORWARD, g] == pytest.approx(f, rel=1e-9)
        assert surface.terms[black.DISCOUNT, g] == pytest.approx(discount, rel=1e-8)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_field_agrees_with_its_twin(seed):
    frame = simulated(seed).with_columns(volume=(pl.col("strike") % 7).cast(pl.Int64))
    levels = engine().update(frame)
    compared = assert_fields(levels, naive_fields(frame.to_dicts()))
    told_otherwise = {  # what the twin does not compute: what the caller gave, and what other tests compare
        "timestamp_ns",
        "status",
        "reasons",
        "notes",
        "quote_time_ns",
        "market_time_ns",
        "sign_convention",
        "zero_gamma_status",
        "vol_trigger",
        "open_interest_date",
        "open_interest_date_source",
        "buckets",
        "path",
    }
    assert compared | told_otherwise == {field.name for field in dataclasses.fields(Levels)}


def test_what_rests_on_quotes_stands_while_only_the_price_moves():
    frame = simulated(2)
    worker = engine()
    first = worker.update(frame)
    moved = worker.update_spot(SPOT * 1.006)
    for name in (
        "call_iv_atm",
        "put_iv_atm",
        "call_put_skew",
        "atm_straddle_cost",
        "put_call_parity_deviation",
        "option_spread_cost",
        "coverage",
        "oi_concentration",
        "contracts_two_sided",
    ):
        assert moved[name] == first[name], name
    assert moved.ref_px == pytest.approx(first.ref_px * 1.006, rel=1e-12)
    assert moved.iv_atm < first.iv_atm  # along the smile: strikes keep their volatilities
    changed = frame.filter(pl.col("bid") > 1.0).with_columns(ask=pl.col("ask") * 1.01)
    assert worker.update_quotes(changed).option_spread_cost == first.option_spread_cost  # two prices side by side
    assert worker.update(frame) == first
    assert worker.update_quotes(changed).option_spread_cost > 1.5 * first.option_spread_cost


# --- buckets, exposures, wings ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_buckets_are_the_levels_of_their_expiries_alone(seed):
    frame = simulated(seed)
    levels = engine().update(frame)
    assert [bucket.name for bucket in levels.buckets] == ["0DTE", "weekly", "monthly", "all"]
    for bucket, days in zip(levels.buckets, (0, 7, 31, None), strict=True):
        slow = naive_levels(frame.to_dicts(), days=days)
        assert bucket.net_gamma == pytest.approx(slow["net_gamma"], rel=1e-6, abs=1e-9 * bucket.call_gamma)
        assert bucket.dealer_position_bias == pytest.approx(slow["dealer_position_bias"], abs=1e-8)
        assert (bucket.gamma_wall, bucket.call_wall, bucket.put_wall) == (
            slow["gamma_wall"],
            slow["call_wall"],
            slow["put_wall"],
        )
        assert list(bucket.key_strikes) == slow["key_strikes"]
        assert list(bucket.zero_gamma_roots) == pytest.approx(slow["roots"], abs=1e-6 * SPOT)
        live = frame.filter((pl.col("expiry") - NOON.date()).dt.total_days() <= (10**4 if days is None else days))
        assert bucket.open_interest == live["open_interest"].sum()
        assert bucket.last_expiry == live["expiry"].max()
    whole = levels.buckets[-1]
    assert (whole.zero_gamma, whole.net_gamma) == (levels.zero_gamma, levels.net_gamma)


def test_a_bucket_without_an_expiry_and_one_whose_quotes_are_gone():
    frame = simulated(days=(1, 9, 37)).with_columns(
        bid=pl.when(pl.col("expiry") == NOON.date() + dt.timedelta(days=1)).then(0.0).otherwise("bid")
    )
    quality = CONFIG.quality.model_copy(update={"coverage_threshold": 0.3})
    levels = LevelsEngine(CONFIG.model_copy(update={"quality": quality})).update(frame)
    today, week, month, whole = levels.buckets
    assert (today.expiries, today.last_expiry, today.gamma_wall) == (0, None, None)
    assert today.zero_gamma_status == "NO_CHAIN"
    assert (week.expiries, week.coverage_near, week.net_gamma) == (1, 0.0, None)
    assert week.zero_gamma_status == "DEGRADED"
    assert month.net_gamma is not None
    assert levels.status == "OK"
    assert whole.net_gamma == levels.net_gamma


def test_exposures_are_derivatives_of_the_book():
    frame = simulated(4)
    levels = engine().update(frame)
    slow = naive_exposures(naive_levels(frame.to_dicts()), SPOT)
    assert levels.delta_notional_call == pytest.approx(slow["delta_call"], rel=1e-5)
    assert levels.delta_notional_put == pytest.approx(slow["delta_put"], rel=1e-5)
    for name in ("vega", "theta", "rho", "vanna", "charm", "vomma"):
        scale = {"theta": 1e-3}.get(name, 1e-3) * abs(levels.delta_notional_put) * 1e-3
        assert levels[f"{name}_exposure"] == pytest.approx(slow[name], rel=2e-3, abs=scale), name
    tilt = (slow["delta_call"] + slow["delta_put"]) / (slow["delta_call"] - slow["delta_put"])
    assert levels.delta_positioning_tilt == pytest.approx(tilt, abs=1e-6)
    # speed is the change of gamma exposure, less what comes from S^2
    up, down = (naive_gex(levels, frame, SPOT * (1 + h)) for h in (1e-4, -1e-4))
    assert levels.gex_slope == pytest.approx((up - down) / 2e-4 * 0.01, rel=1e-3)
    assert levels.speed_exposure == pytest.approx(levels.gex_slope - 0.02 * levels.net_gamma, rel=1e-3)


def naive_gex(levels, frame, level):
    """Net gamma exposure at another price: second differences of the book's value, F/S and volatilities held."""
    total = 0.0
    for strikes, sigma, t, r, q, calls, puts in naive_levels(frame.to_dicts())["strips"]:
        h = 1e-4 * level
        values = [call_and_put(level + k * h, strikes, sigma, t, r, q) for k in (1, 0, -1)]
        for side, signed in ((0, calls), (1, -puts)):
            gamma_of = (values[0][side] - 2 * values[1][side] + values[2][side]) / h**2
            total += float((gamma_of * signed).sum())
    return total * 100.0 * level**2 * 0.01


def test_wings_and_term_structure():
    frame = simulated(5)
    worker = engine()
    levels = worker.update(frame)
    slow = naive_levels(frame.to_dicts())
    wings = naive_wings(slow)
    chain = worker.surface.chain
    keys = list(zip(chain.root, chain.expiry, strict=True))
    for g, key in enumerate(keys):
        for side in range(2):
            expected = wings.get(key, (None, None))[side]
            found = worker.surface.wings[side, g]
            assert math.isnan(found) if expected is None else found == pytest.approx(expected, rel=1e-6)
    years = [slow["about"][key][0] for key in keys if key in slow["about"] and None not in wings[key]]
    month = 30 / 365

    def at(side):
        variance = [w[side] ** 2 * slow["about"][key][0] for key, w in wings.items() if None not in w]
        return math.sqrt(np.interp(month, years, variance) / month)

    put, call = at(0), at(1)
    assert levels.risk_reversal_25 == pytest.approx(call - put, abs=1e-7)
    assert levels.risk_reversal_25 < -0.01
    assert levels.butterfly_25 == pytest.approx((call + put) / 2 - levels.iv_atm, abs=1e-7)
    assert levels.option_skew == pytest.approx((put - call) / levels.iv_atm, rel=1e-6)
    assert levels.vol_term_structure_slope == levels.iv_atm - levels.iv_7d
    assert levels.term_structure_skew == levels.iv_60d - levels.iv_atm
    assert levels.call_iv_atm == pytest.approx(levels.iv_atm, abs=2e-3)  # parity holds to within the ticks
    assert levels.put_iv_atm == pytest.approx(levels.iv_atm, abs=2e-3)
    assert levels.call_put_skew == levels.call_iv_atm - levels.put_iv_atm
    near = slow["about"][keys[0]]
    width = levels.iv_atm_nearest * math.sqrt(near[0])
    assert levels.atm_straddle_cost == pytest.approx(width * math.sqrt(2 / math.pi), rel=0.03)
    assert levels.time_to_expiry == pytest.approx(4 / 24)
    assert levels.is_expiry_day is True


def test_open_interest_and_volume():
    frame = simulated(6).with_columns(volume=(pl.col("strike") % 7).cast(pl.Int64))
    levels = engine().update(frame)
    by_strike = frame.group_by("strike").agg(pl.col("open_interest").sum()).sort("strike")
    share = (by_strike["open_interest"] / by_strike["open_interest"].sum()).to_numpy()
    assert levels.oi_concentration == pytest.approx(float((share**2).sum()), rel=1e-12)
    assert levels.oi_concentration_ratio == pytest.approx(float(np.sort(share)[-3:].sum()), rel=1e-12)
    x = np.log(by_strike["strike"].to_numpy() / SPOT)
    x = x - share @ x
    assert levels.skewness_open_interest == pytest.approx(float(share @ x**3 / (share @ x**2) ** 1.5), rel=1e-9)
    kind = {name: part for (name,), part in frame.group_by("type")}
    ratio = kind["C"]["open_interest"].sum() / kind["P"]["open_interest"].sum()
    assert levels.call_put_oi_ratio == pytest.approx(ratio, rel=1e-12)
    assert levels.option_volume == frame["volume"].sum()
    assert levels.call_put_volume_ratio == pytest.approx(kind["C"]["volume"].sum() / kind["P"]["volume"].sum())
    near = frame.filter(pl.col("expiry") == NOON.date())
    for name, letter in (("oi_peak_call_near", "C"), ("oi_peak_put_near", "P")):
        side = near.filter(pl.col("type") == letter)
        most = side.filter(pl.col("open_interest") == side["open_interest"].max())["strike"].to_list()
        assert levels[name] in most
    assert engine().update(frame.drop("volume")).option_volume is None


def test_the_date_of_the_open_interest():
    frame = simulated()
    levels = engine().update(frame)
    assert (levels.open_interest_date, levels.open_interest_date_source) == (dt.date(2024, 5, 14), "rule")
    monday = dt.datetime(2024, 5, 28, 12, tzinfo=NEW_YORK)  # after Memorial Day
    assert open_interest_date(from_datetime(monday)) == dt.date(2024, 5, 24)
    told = engine().update(frame.with_columns(open_interest_date=pl.lit(dt.date(2024, 5, 13))))
    assert (told.open_interest_date, told.open_interest_date_source) == (dt.date(2024, 5, 13), "table")
    assert told.record()["open_interest_date"] == "2024-05-13"


@pytest.mark.parametrize("response", [-1.0, 0.0, 1.0])
def test_the_volatility_trigger_is_a_root_of_gamma_and_vanna(response):
    config = CONFIG.model_copy(
        update={"vol_trigger": CONFIG.vol_trigger.model_copy(update={"spot_response": response})}
    )
    frame = simulated(3)
    worker = LevelsEngine(config)
    levels = worker.update(frame)
    if response == 0.0:
        assert levels.vol_trigger == pytest.approx(levels.zero_gamma, rel=1e-12)
        return
    assert abs(levels.vol_trigger / levels.zero_gamma - 1) > 1e-4
    surface = worker.surface
    slope = (surface.wings[1] - surface.wings[0]) / (surface.wings[3] - surface.wings[2])
    keys = list(zip(surface.chain.root, surface.chain.expiry, strict=True))
    slow = naive_levels(frame.to_dicts())

    def hedge(level):
        """Second differences of the book's value when the volatilities follow the price."""
        total, h = 0.0, 2e-4 * level
        for key, (strikes, sigma, t, r, q, calls, puts) in zip(slow["about"], slow["strips"], strict=True):
            v = float(np.nan_to_num(response * slope[keys.index(key)]))

            def delta(spot, sigma, strikes=strikes, t=t, r=r, q=q):
                up, down = (
                    call_and_put(spot + h, strikes, sigma, t, r, q),
                    call_and_put(spot - h, strikes, sigma, t, r, q),
                )
                return [(a - b) / (2 * h) for a, b in zip(up, down, strict=True)]

            up, down = (delta(level * (1 + k * 2e-4), sigma + v * k * 2e-4) for k in (1, -1))
            for side, signed in ((0, calls), (1, -puts)):
                total += float(((up[side] - down[side]) * signed).sum())
        return total

    root = levels.vol_trigger
    assert hedge(root * 0.999) * hedge(root * 1.001) < 0


# --- between two chains -----------------------------------------------------------------------------


def test_a_move_of_the_price_alone_reprices_without_solving():
    frame = simulated(2)
    worker = engine()
    worker.update(frame)
    sigma = worker.surface.greeks[black.SIGMA].copy()
    moved = worker.update_spot(SPOT * 1.004)
    assert np.array_equal(sigma, worker.surface.greeks[black.SIGMA], equal_nan=True)
    net = naive_gex(moved, frame, SPOT * 1.004)
    assert moved.net_gamma == pytest.approx(net, rel=1e-4, abs=1e-6 * moved.gex)
    assert moved.underlying_price == SPOT * 1.004
    roots = engine().update(frame).zero_gamma_roots
    assert moved.zero_gamma_roots == pytest.approx(roots, rel=1e-12)  # sticky strike: the profile does not move
    far = worker.update_spot(SPOT * 1.03)  # the grid is laid around the new price
    assert far.zero_gamma_roots == pytest.approx(roots, rel=1e-12)
    assert far.net_gamma == pytest.approx(naive_gex(far, frame, SPOT * 1.03), rel=1e-4, abs=1e-6 * far.gex)
    back = worker.update_spot(SPOT)
    fresh = engine().update(frame)
    for field in dataclasses.fields(fresh):
        a, b = getattr(back, field.name), getattr(fresh, field.name)
        if isinstance(b, float):
            assert a == pytest.approx(b, rel=1e-8, abs=1e-12), field.name
        elif field.name != "buckets" and not isinstance(b, tuple):
            assert a == b, field.name


def test_changed_quotes_solve_their_own_strikes():
    frame = simulated(2)
    worker = engine()
    worker.update(frame)
    forwards = worker.surface.terms.copy()
    before = worker.surface.greeks[black.SIGMA].copy()
    changed = frame.filter(pl.col("bid") > 1.0).gather_every(97).with_columns(ask=pl.col("ask") + 0.5)
    levels = worker.update_quotes(changed)
    assert np.array_equal(forwards, worker.surface.terms)
    after = worker.surface.greeks[black.SIGMA]
    touched = ~((before == after) | (np.isnan(before) & np.isnan(after)))
    assert 0 < touched.sum() <= changed.height
    whole = frame.join(changed, on=["root", "expiry", "strike", "type"], how="anti").select(frame.columns)
    again = engine()
    again.update(pl.concat([whole, changed.select(frame.columns)]))
    chain, other = worker.surface.chain, again.surface.chain
    assert np.array_equal(chain.bid, other.bid, equal_nan=True)
    assert np.array_equal(chain.ask, other.ask, equal_nan=True)
    assert np.array_equal(worker.surface.status, again.surface.status)
    np.testing.assert_allclose(after, again.surface.greeks[black.SIGMA], rtol=2e-2)  # the forwards were fitted anew
    assert levels.net_gamma == pytest.approx(again.update(other).net_gamma, abs=1e-3 * levels.gex)
    first = worker.update(frame)
    assert first.net_gamma == engine().update(frame).net_gamma  # the table's own quotes were not written to
    gone = worker.update_quotes(changed.with_columns(bid=0.0))
    assert gone.contracts_two_sided == first.contracts_two_sided - changed.height


def test_what_cannot_be_brought_up_to_date_is_refused():
    frame = simulated()
    worker = engine()
    with pytest.raises(DataError, match="no chain to bring up to date"):
        worker.update_spot(SPOT)
    worker.update(frame)
    for price in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="update_spot"):
            worker.update_spot(price)
    with pytest.raises(DataError, match="columns missing: bid"):
        worker.update_quotes(frame.drop("bid"))
    with pytest.raises(DataError, match="is not in the chain"):
        worker.update_quotes(frame.head(1).with_columns(strike=pl.lit(1.0)))
    before = worker.update_spot(SPOT)
    with pytest.raises(DataError, match="not a number"):
        worker.update_quotes(frame.head(5).with_columns(bid=pl.lit(0.0), ask=pl.lit("1")))
    assert worker.update_spot(SPOT) == before  # nothing of it was taken


def test_the_layout_is_kept_while_the_contracts_stay():
    worker = engine()
    frame = simulated(3)
    first = worker.update(frame)
    layout = worker.surface.chain.layout
    moved = frame.with_columns(bid=pl.col("bid") * 0.5)
    again = worker.update(moved)
    assert worker.surface.chain.layout is layout
    assert again == engine().update(moved)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    assert worker.update(shuffled).net_gamma == pytest.approx(first.net_gamma, rel=1e-12)
    assert worker.surface.chain.layout is not layout


def test_third_friday_keeps_the_roots_apart():
    frame = simulated()
    surface_engine = engine()
    surface_engine.update(frame)
    chain = surface_engine.surface.chain
    friday = NOON.date() + dt.timedelta(days=2)
    both = [
        (r, s, y)
        for r, s, e, y in zip(chain.root, chain.settlement, chain.expiry, chain.years, strict=True)
        if e == friday
    ]
    assert [item[:2] for item in both] == [("SPX", "AM"), ("SPXW", "PM")]
    assert (both[1][2] - both[0][2]) * 31_536_000 == pytest.approx(6.5 * 3600)


@pytest.mark.parametrize(
    ("convention", "signs"),
    [
        ("dealers_short_calls_long_puts", (-1.0, 1.0)),
        ("dealers_short_all", (-1.0, -1.0)),
        ("dealers_long_all", (1.0, 1.0)),
    ],
)
def test_the_sign_convention_is_a_parameter(convention, signs):
    frame = simulated()
    config = CONFIG.model_copy(update={"sign_convention": convention})
    levels = LevelsEngine(config).update(frame)
    assert_agree(levels, naive_levels(frame.to_dicts(), signs=signs), spot=SPOT)
    if signs[0] == signs[1]:
        assert levels.zero_gamma is None
        assert levels.zero_gamma_status == ("NO_CROSSING_POS" if signs[0] > 0 else "NO_CROSSING_NEG")


def test_american_roots_use_the_fallback_forward():
    frame = simulated(root="SPY")
    levels = engine().update(frame)
    assert levels.status == "OK"
    assert levels.forward_fallbacks == levels.expiries_live == 7
    assert levels.notes == ("EXERCISE_AMERICAN: expiries=7 model=european",)
    assert_agree(levels, naive_levels(frame.to_dicts(), american=True), spot=SPOT)


def test_flips_between_the_coarse_prices_are_found_when_an_expiry_is_near():
    years = 600 / 31_536_000  # ten minutes to go: a width of 3 points, a coarse step of 13
    rows = []
    for strike, calls, puts in ((5285, 0, 0), (5290, 0, 0), (5295, 0, 0), (5300, 30, 0), (5305, 0, 40), (5310, 30, 0)):
        for kind, right, held in (("C", 1.0, calls), ("P", -1.0, puts)):
            price = float(black_price(SPOT, np.array(float(strike)), 0.14 * math.sqrt(years), right))
            rows.append((float(strike), kind, price * 0.999, price * 1.001, held))
    frame = pl.DataFrame(rows, schema=["strike", "type", "bid", "ask", "open_interest"], orient="row").with_columns(
        root=pl.lit("SPXW"),
        settlement=pl.lit("PM"),
        expiry=pl.lit(NOON.date()),
        underlying_price=pl.lit(SPOT),
        quote_time=pl.lit(NOON.replace(hour=15, minute=50)),
    )
    levels = engine().update(frame)
    assert len(levels.zero_gamma_roots) == 2
    assert SPOT < levels.zero_gamma_roots[0] < levels.zero_gamma_roots[1] < SPOT * 1.0025
    assert_agree(levels, naive_levels(frame.to_dicts()), spot=SPOT)


def test_ties_go_to_the_strike_nearest_the_price():
    strikes = np.array([5280.0, 5290.0, 5305.0, 5310.0, 5315.0])
    out = np.empty(5)

    def ranked(values, low=0.0, high=math.inf):
        gamma.largest(np.array(values), strikes, SPOT, low, high, out)
        return out[~np.isnan(out)].tolist()

    assert ranked([3.0, 2.0, 0.0, 3.0, 3.0]) == [5310.0, 5315.0, 5280.0, 5290.0]
    assert ranked([0.0, 1.0, 0.0, 1.0, 0.0]) == [5290.0, 5310.0]
    assert ranked([3.0, 2.0, 0.0, 3.0, 3.0], low=SPOT) == [5310.0, 5315.0]
    assert ranked([3.0, 2.0, 0.0, 3.0, 3.0], high=5290.0) == [5280.0, 5290.0]


def test_the_engine_does_not_remember_the_last_chain():
    worker = engine()
    big, small = simulated(1), simulated(2, days=(1, 37))
    first, _, again = worker.update(big), worker.update(small), worker.update(big)
    assert first == again
    assert worker.update(small) == engine().update(small)


# --- edges ------------------------------------------------------------------------------------

BY_INTEREST = {"max_pain", "oi_peak_call_near", "oi_peak_put_near"}
WITHHELD = [
    *[name for name in PRICE_LEVELS if name not in {*BY_INTEREST, "ref_px"}],
    "net_gamma",
    "dealer_position_bias",
]


def test_an_empty_chain_and_no_chain():
    now = from_datetime(NOON)
    for nothing in (None, simulated().clear()):
        levels = engine().update(nothing, now)
        assert levels.status == "NO_CHAIN"
        assert levels.zero_gamma_status == "NO_CHAIN"
        assert all(levels[name] is None for name in (*WITHHELD, *BY_INTEREST, "iv_atm", "coverage"))


def test_open_interest_of_zero_gives_no_level():
    frame = simulated().with_columns(open_interest=pl.lit(0))
    levels = engine().update(frame)
    assert levels.status == "DEGRADED"
    assert levels.reasons == ("OPEN_INTEREST_ZERO: contracts=0",)
    assert all(levels[name] is None for name in (*WITHHELD, *BY_INTEREST))
    assert levels.iv_atm is not None  # needs no open interest


def test_a_chain_that_has_expired():
    levels = engine().update(
        simulated()
        .with_columns(expiry=pl.lit(dt.date(2024, 5, 14)), root=pl.lit("SPXW"), settlement=pl.lit("PM"))
        .unique(["strike", "type"])
    )
    assert levels.status == "DEGRADED"
    assert levels.reasons[0].startswith("CHAIN_EXPIRED")
    assert (levels.contracts_live, levels.expiries_live, levels.iv_atm, levels.max_pain) == (0, 0, None, None)
    assert all(levels[name] is None for name in WITHHELD)


def test_a_chain_of_one_contract():
    frame = simulated(days=(9,)).filter((pl.col("strike") == 5400) & (pl.col("type") == "C"))
    levels = engine().update(frame.with_columns(open_interest=pl.lit(10)))
    assert levels.status == "OK"
    assert levels.notes == ("FORWARD_FALLBACK: expiries=1 of=1",)
    assert (levels.gamma_wall, levels.call_wall, levels.put_wall, levels.key_strikes_2) == (5400, 5400, None, None)
    assert (levels.zero_gamma, levels.zero_gamma_status) == (None, "NO_CROSSING_POS")
    assert (levels.dealer_position_bias, levels.max_pain, levels.iv_atm) == (1.0, 5400, None)


def test_wiped_bids_are_degraded_and_yield_no_flip():
    frame = simulated().with_columns(bid=pl.when(pl.int_range(pl.len()) % 20 == 0).then("bid").otherwise(0.0))
    levels = engine().update(frame)
    assert levels.status == "DEGRADED"
    assert levels.reasons[0].startswith("COVERAGE_LOW")
    assert levels.zero_gamma_status == "DEGRADED"
    assert all(levels[name] is None for name in WITHHELD)


def test_coverage_is_weighted_by_open_interest():
    frame = simulated(days=(9, 37))
    wiped = frame.with_columns(bid=pl.when(pl.col("expiry") == frame["expiry"].max()).then(0.0).otherwise("bid"))
    levels = engine().update(wiped)
    assert levels.coverage == pytest.approx(naive_levels(wiped.to_dicts())["coverage"], abs=1e-12)
    assert levels.coverage < engine().update(frame).coverage - 0.2
    for threshold, status in ((levels.coverage - 1e-6, "OK"), (levels.coverage + 1e-6, "DEGRADED")):
        quality = CONFIG.quality.model_copy(update={"coverage_threshold": threshold})
        assert LevelsEngine(CONFIG.model_copy(update={"quality": quality})).update(wiped).status == status


def test_exposure_too_small_for_a_number_is_none():
    frame = simulated(days=(9,)).with_columns(open_interest=pl.lit(0.0))
    far = pl.col("strike") == frame["strike"].max()
    frame = frame.with_columns(
        bid=pl.when(far).then(1e-250).otherwise("bid"),
        ask=pl.when(far).then(2e-250).otherwise("ask"),
        open_interest=pl.when(far).then(1e-200).otherwise("open_interest"),
    )
    levels = engine().update(frame)
    assert levels.reasons == ("GAMMA_ZERO: exposure=0",)
    assert levels.coverage == 1.0
    assert all(levels[name] is None for name in WITHHELD)


def test_expiries_without_parity_leave_the_price_unconfirmed():
    rng = np.random.default_rng(1)
    frame = simulated()
    frame = frame.with_columns(
        shift=pl.Series(rng.uniform(0, 60, frame.height)) * (pl.col("type") == "C")
    ).with_columns(bid=pl.col("bid") + pl.col("shift"), ask=pl.col("ask") + pl.col("shift"))
    levels = engine().update(frame)
    assert levels.status == "DEGRADED"
    assert any(reason.startswith("UNDERLYING_UNCONFIRMED: parity=") for reason in levels.reasons)
    assert levels.forward_fallbacks > 3


def test_age_gap_and_missing_interest_are_reported():
    frame = simulated()
    now = from_datetime(NOON)
    hour = 3600 * 10**9
    assert engine().update(frame, now + 23 * hour).status == "OK"
    old = engine().update(frame, now + 25 * hour)
    assert (old.status, old.zero_gamma) == ("DEGRADED", None)
    assert old.reasons == ("CHAIN_STALE: age_seconds=90000 limit=86400",)
    assert old["timestamp"] == iso(now + 25 * hour)
    moved = engine().update(frame.with_columns(underlying_price=pl.lit(SPOT * 0.985)))
    assert moved.status == "DEGRADED"
    assert moved.reasons[0].startswith("UNDERLYING_GAP: gap=+0.01")
    partly = frame.with_columns(open_interest=pl.when(pl.int_range(pl.len()) < 3).then(None).otherwise("open_interest"))
    assert engine().update(partly).notes == ("OPEN_INTEREST_MISSING: contracts=3 counted_as=0",)


# --- the chain ----------------------------------------------------------------------------------


def test_of_several_snapshots_the_last_known_one_counts():
    early = simulated(1)
    late = simulated(2).with_columns(quote_time=pl.col("quote_time").dt.offset_by("30m"))
    both = pl.concat([late, early])
    now = from_datetime(NOON)
    assert engine().update(both, now + 60 * 10**9) == engine().update(early, now + 60 * 10**9)
    assert engine().update(both).gamma_wall == engine().update(late).gamma_wall
    assert engine().update(both, now - 1).status == "NO_CHAIN"
    chain = prepare(late, CONFIG)
    with pytest.raises(DataError, match="after now"):
        engine().update(chain, now)


def test_a_contract_quoted_long_before_the_rest_is_stale():
    frame = simulated().with_row_index()
    lag = pl.when(pl.col("index") % 10 == 0).then(pl.duration(minutes=16)).otherwise(pl.duration(minutes=14))
    frame = frame.with_columns(
        quote_time=pl.when(pl.col("index") % 5 == 0).then(pl.col("quote_time") - lag).otherwise("quote_time")
    )
    worker = engine()
    worker.update(frame)
    assert int((worker.surface.status == black.STALE).sum()) == math.ceil(frame.height / 10)


def test_time_is_measured_from_the_market_time():
    frame = simulated().with_columns(market_time=pl.col("quote_time") - pl.duration(minutes=15))
    chain = prepare(frame, CONFIG)
    assert chain.quote_time_ns - chain.market_time_ns == 15 * 60 * 10**9
    assert chain.years[0] * 31_536_000 == pytest.approx(4.25 * 3600)
    last = prepare(simulated().with_columns(quote_time=pl.lit(NOON.replace(hour=15, minute=59, second=30))), CONFIG)
    assert last.years[0] * 31_536_000 == pytest.approx(60)  # the floor
    over = prepare(simulated().with_columns(quote_time=pl.lit(NOON.replace(hour=16))), CONFIG)
    assert over.years[0] == 0.0


@pytest.mark.filterwarnings("ignore")  # pandas, inside the referee
def test_early_closes_follow_the_exchange_calendar():
    xcals = pytest.importorskip("exchange_calendars")
    calendar = xcals.get_calendar("XNYS", start="2013-01-01", end="2026-12-31")
    theirs = {day.date() for day in calendar.early_closes}
    sessions = [day.date() for day in calendar.sessions]
    assert {day for day in sessions if early_close(day)} == theirs


def test_settlement_hours():
    def hour(day, kind, config=CONFIG):
        return dt.datetime.fromtimestamp(settlement_ns(day, kind, config) / 1e9, NEW_YORK).time()

    assert hour(dt.date(2024, 5, 17), "AM") == dt.time(9, 30)
    assert hour(dt.date(2024, 5, 17), "PM") == dt.time(16)
    assert hour(dt.date(2024, 11, 29), "PM") == dt.time(13)
    listed = CONFIG.model_copy(
        update={"time": CONFIG.time.model_copy(update={"early_closes": (dt.date(2024, 5, 17),)})}
    )
    assert hour(dt.date(2024, 5, 17), "PM", listed) == dt.time(13)
    none = CONFIG.model_copy(update={"time": CONFIG.time.model_copy(update={"early_close_rule": "none"})})
    assert hour(dt.date(2024, 11, 29), "PM", none) == dt.time(16)


def test_a_missing_settlement_comes_from_the_root():
    frame = simulated()
    without = frame.with_columns(settlement=pl.lit(None, dtype=pl.String))
    assert engine().update(without) == engine().update(frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("bid", "expiry"), "columns missing: expiry, bid"),
        (lambda f: f.with_columns(type=pl.lit("X")), "'X' is not C or P"),
        (lambda f: f.with_columns(root=pl.lit("ABC")), "root 'ABC' is unknown"),
        (lambda f: f.with_columns(settlement=pl.lit("noon")), "is not AM or PM"),
        (lambda f: f.with_columns(strike=pl.lit(-5.0)), "is not a positive multiple"),
        (lambda f: f.with_columns(strike=pl.lit(None, dtype=pl.Float64)), "None is not a positive multiple"),
        (lambda f: f.with_columns(strike=pl.lit("5000")), "not a number"),
        (lambda f: f.with_columns(open_interest=pl.lit(-1)), "-1 is not contracts"),
        (lambda f: f.with_columns(expiry=pl.lit("2024-05-17")), "not a date"),
        (lambda f: f.with_columns(expiry=pl.lit(None, dtype=pl.Date)), "None is not a date"),
        (lambda f: f.with_columns(quote_time=pl.lit(NOON.replace(tzinfo=None))), "not an instant with a time zone"),
        (lambda f: f.with_columns(quote_time=pl.lit(None, dtype=pl.Datetime("ns", "UTC"))), "is null"),
        (lambda f: f.with_columns(underlying_price=pl.col("strike")), "one finite positive price"),
        (lambda f: f.with_columns(underlying_price=pl.lit(float("nan"))), "one finite positive price"),
        (lambda f: f.with_columns(ticker=pl.col("type")), "several underlyings: C, P"),
        (lambda f: pl.concat([f, f.tail(1)]), "stands twice"),
        (
            lambda f: f.with_columns(root=pl.lit("SPXW"), strike=pl.int_range(1, pl.len() + 1).cast(pl.Float64)),
            "both AM and PM",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(change, message):
    with pytest.raises(DataError, match=message) as caught:
        engine().update(change(simulated()))
    assert caught.value.where
    assert caught.value.hint
    assert caught.value.then


# --- gamma kernels --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(0, 30)),
        min_size=1,
        max_size=25,
        unique_by=lambda r: r[0],
    )
)
def test_max_pain_is_the_cheapest_listed_strike(rows):
    rows.sort()
    strike = 100.0 + 5.0 * np.array([row[0] for row in rows])
    interest = np.array([[row[1] for row in rows], [row[2] for row in rows]], dtype=float)
    out = np.empty(1)
    gamma.max_pain(strike, np.array([0, strike.size]), interest, out)
    pain = [
        float((interest[0] * np.maximum(k - strike, 0) + interest[1] * np.maximum(strike - k, 0)).sum()) for k in strike
    ]
    if interest.sum() == 0:
        assert math.isnan(out[0])
    else:
        assert out[0] == strike[int(np.argmin(pain))]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(4200, 6400), st.floats(0.004, 0.3), st.floats(-1, 1).filter(lambda w: abs(w) > 1e-3)),
        min_size=1,
        max_size=40,
    )
)
def test_profile_and_its_roots(rows):
    strike, width, weight = (np.array(column) for column in zip(*rows, strict=True))
    table = np.ascontiguousarray([np.log(strike), 1 / width, weight, np.zeros_like(width), np.ones_like(width)])
    grid = np.log(SPOT * (1 + np.arange(-80, 81) * 0.0025))
    values, places = np.empty(161), np.empty(161)
    gamma.profile(table, strike.size, grid, values)
    d = (grid[:, None] - table[0]) * table[1]
    terms = weight * np.exp(-d * d / 2) / math.sqrt(2 * math.pi) * np.exp(grid)[:, None]
    size = np.abs(terms).sum(axis=1)
    np.testing.assert_allclose(values, terms.sum(axis=1), atol=1e-13 * size.max(), rtol=0)
    count = gamma.sign_changes(table, strike.size, grid, values, False, places)
    sign = np.sign(values[values != 0])
    assert count == int((sign[1:] != sign[:-1]).sum())
    assert (np.diff(places[:count]) > 0).all()

    def net(x):
        d = (x - table[0]) * table[1]
        return float((weight * np.exp(-d * d / 2)).sum())

    for root in np.log(places[:count]):
        below, above = net(root - 1e-12), net(root + 1e-12)
        assert below * above <= 0 or min(abs(below), abs(above)) <= 1e-14 * np.abs(weight).sum()


# --- the future's scale -----------------------------------------------------------------------------


def test_levels_move_with_the_basis():
    levels = engine().update(simulated())
    moved = on_future(levels, SPOT + 12.25, SPOT)
    assert (moved.status, moved.basis, moved.reason) == ("OK", 12.25, None)
    for name in PRICE_LEVELS:
        assert moved.levels[name] == levels[name] + 12.25
    assert moved.levels.zero_gamma_roots == tuple(root + 12.25 for root in levels.zero_gamma_roots)
    assert (moved.levels.net_gamma, moved.levels.iv_atm) == (levels.net_gamma, levels.iv_atm)
    wide = LevelsEngine(CONFIG.model_copy(update={"basis_limit": 0.05}))
    assert wide.on_future(levels, SPOT * 1.04, SPOT).status == "OK"
    missing = on_future(no_chain(0, "CHAIN_MISSING: rows=0"), SPOT, SPOT)
    assert (missing.status, missing.levels.gamma_wall) == ("OK", None)


@pytest.mark.parametrize(
    ("future", "underlying", "status"),
    [
        (SPOT * 1.0201, SPOT, "BASIS_REFUSED"),
        (SPOT * 0.9799, SPOT, "BASIS_REFUSED"),
        (math.nan, SPOT, "PRICE_MISSING"),
        (SPOT, math.inf, "PRICE_MISSING"),
        (SPOT, 0.0, "PRICE_MISSING"),
    ],
)
def test_a_basis_that_cannot_be_right_is_refused(future, underlying, status):
    levels = engine().update(simulated())
    refused = on_future(levels, future, underlying)
    assert refused.status == status
    assert refused.reason.startswith(status)
    assert all(refused.levels[name] is None for name in PRICE_LEVELS)
    assert refused.levels.zero_gamma_roots == ()
    assert refused.levels.iv_atm == levels.iv_atm


# --- snapshots and the convenience ----------------------------------------------------------------


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_snapshot_holds_exactly_the_contract_keys(workspace):
    now = 1_747_144_800_123_456_000
    levels = recalculate_levels(
        simulated()
        .with_columns(expiry=pl.col("expiry") + pl.duration(days=363))
        .with_columns(quote_time=pl.lit(dt.datetime(2025, 5, 13, 14, tzinfo=dt.UTC))),
        now_ns=now,
    )
    assert levels.path == workspace.data / "options_snapshots" / "levels_20250513T140000_123456Z.json"
    saved = content(levels.path)
    assert list(saved) == ["timestamp", "gamma_wall", "iv_atm", "dealer_position_bias"]
    assert saved == {key: levels[key] for key in saved}
    assert saved["timestamp"] == "2025-05-13T14:00:00.123456Z"
    assert saved["gamma_wall"] is not None
    json.dumps(levels.record(), allow_nan=False)
    assert dict(levels) == levels.record()
    assert len(levels) == len(levels.record())


def test_two_snapshots_of_one_instant_both_stay(workspace):
    one, two = (no_chain(1_000_000_000_000_000, "CHAIN_MISSING: rows=0", iv_atm=iv) for iv in (0.1, 0.2))
    first, second = save(one, workspace), save(two, workspace)
    assert first.path != second.path
    assert content(first.path)["iv_atm"] == 0.1
    assert content(second.path) == {
        "timestamp": second["timestamp"],
        "gamma_wall": None,
        "iv_atm": 0.2,
        "dealer_position_bias": None,
    }
    assert second.timestamp_ns == first.timestamp_ns + 1000
    assert save(one, workspace).path not in (first.path, second.path)
    assert len(list(first.path.parent.iterdir())) == 3  # no claim is left behind


def test_a_name_that_another_process_claims_is_left_alone(workspace):
    levels = no_chain(1_000_000_000_000_000, "CHAIN_MISSING: rows=0")
    folder = workspace.data / "options_snapshots"
    folder.mkdir(parents=True)
    claim = folder / ".levels_19700112T134640_000000Z.json.claim"
    claim.touch()
    assert save(levels, workspace).path.name == "levels_19700112T134640_000001Z.json"
    assert claim.exists()


def test_a_workspace_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        save(no_chain(0, "CHAIN_MISSING: rows=0"), Workspace(tmp_path))
    with pytest.raises(DataError, match="no instant"):
        save(no_chain(None, "CHAIN_MISSING: rows=0"), Workspace(tmp_path))


def test_the_old_programs_call(workspace):
    levels = recalculate_levels({"call_iv_atm": [0.25], "option_skew": [0.05]})
    assert (levels["iv_atm"], levels["option_skew"], levels["status"]) == (0.25, 0.05, "NO_CHAIN")
    assert all(levels[name] is None for name in PRICE_LEVELS)
    assert content(levels.path)["iv_atm"] == 0.25
    only = recalculate_levels(pl.DataFrame({"call_iv_atm": [0.2, math.nan]}))
    assert (only.iv_atm, only.option_skew) == (None, None)


def test_no_chain_is_written_too(workspace):
    levels = recalculate_levels(None, now_ns=1_000_000)
    assert (levels.status, levels["timestamp"]) == ("NO_CHAIN", "1970-01-01T00:00:00.001000Z")
    assert content(levels.path)["gamma_wall"] is None
    assert recalculate_levels(simulated().clear()).status == "NO_CHAIN"


def test_any_arrow_table_a_path_or_a_prepared_chain(workspace, tmp_path):
    frame = simulated()
    path = tmp_path / "chain.parquet"
    frame.write_parquet(path)
    expected = recalculate_levels(frame, now_ns=from_datetime(NOON))
    pandas = frame.to_pandas()
    for data in (frame.to_arrow(), pandas, path, str(path), prepare(frame, CONFIG)):
        found = recalculate_levels(data, workspace=tmp_path / "other", now_ns=from_datetime(NOON))
        assert found.path.is_relative_to(tmp_path / "other")
        assert found.gamma_wall == expected.gamma_wall
        assert found.zero_gamma == expected.zero_gamma


@pytest.mark.parametrize("data", [42, "absent.parquet", object()])
def test_what_is_no_table_is_refused(workspace, data):
    with pytest.raises(DataError):
        recalculate_levels(data)


def test_an_invalid_configuration_is_an_error_and_a_changed_one_is_read(workspace):
    frame = simulated()
    usual = recalculate_levels(frame)
    text = (shipped() / "config" / "options.yaml").read_text()
    own = workspace.root / "config" / "options.yaml"
    own.parent.mkdir()
    own.write_text(text.replace("sign_convention: dealers_long_calls_short_puts", "sign_convention: dealers_short_all"))
    assert recalculate_levels(frame).net_gamma == pytest.approx(-usual.call_gamma - usual.put_gamma)
    own.write_text(text + "basis_limits: 0.02\n")
    with pytest.raises(ConfigError, match="did you mean 'basis_limit'"):
        recalculate_levels(frame)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(4200, 6400), st.floats(2e-4, 0.5), st.floats(-1, 1), st.floats(-0.5, 0.5)),
        min_size=1,
        max_size=80,
    ),
    st.sampled_from([16, 48, 176]),
    st.floats(2e-4, 0.004),
)
def test_the_recurrence_agrees_with_the_sum(rows, size, step):
    strike, width, weight, skew = (np.array(column) for column in zip(*rows, strict=True))
    table = np.ascontiguousarray([np.log(strike), 1 / width, weight, skew, 1 - skew * width])
    origin = math.log(SPOT) - step * size / 2
    out = np.empty((2, size))
    gamma.profiles(table, 0, strike.size, origin, step, out)
    x = origin + step * np.arange(size)
    d = (x[:, None] - table[0]) * table[1]
    terms = weight * np.exp(-d * d / 2) / math.sqrt(2 * math.pi) * np.exp(x)[:, None]
    bound = 2e-12 * np.abs(weight).sum() * float(np.exp(x[-1]))
    np.testing.assert_allclose(out[0], terms.sum(axis=1), atol=bound, rtol=0)
    tilted = (terms * (1 + skew * (d - width))).sum(axis=1)
    np.testing.assert_allclose(out[1], tilted, atol=8 * bound, rtol=0)


def test_the_convenience_call_leaves_a_row_in_the_journal(workspace):
    from mia_fast import journal
    from mia_fast.options import recalculate_levels

    recalculate_levels(pl.DataFrame({"call_iv_atm": [0.25], "option_skew": [0.05]}), workspace=workspace, now_ns=10**18)
    rows = journal.of(workspace).query("SELECT * FROM levels")
    assert rows["status"].to_list() == ["NO_CHAIN"]
    assert rows["iv_atm"].to_list() == [0.25]
    detail = json.loads(rows["detail"][0])
    assert detail["schema_version"] == 1
    assert detail["option_skew"] == 0.05
    journal.of(workspace).close()


def test_a_volatility_that_is_none_is_not_echoed(workspace):
    from mia_fast import journal
    from mia_fast.options import recalculate_levels

    for value in (-1.0, 0.0, 5.01, 25.0):  # the last a percent
        found = recalculate_levels(pl.DataFrame({"call_iv_atm": [value]}), workspace=workspace, now_ns=10**18)
        assert found.iv_atm is None
        assert f"IV_INVALID: call_iv_atm={value}" in found.reasons[0]
    journal.of(workspace).close()


@pytest.mark.real
@pytest.mark.parametrize("factor", [0.5, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 2.0])
def test_a_wrong_underlying_is_never_ok(real_data, factor):
    from mia_fast.options import LevelsEngine, options_config
    from mia_fast.workspace import Workspace, shipped

    chain = pl.read_parquet(real_data / "options" / "spx_20230914.parquet")
    wrong = chain.with_columns(pl.col("underlying_price") * factor)
    engine = LevelsEngine(options_config(Workspace(shipped())))
    assert engine.update(chain).status == "OK"
    found = engine.update(wrong)
    assert found.status == "DEGRADED"
    assert any(reason.startswith("UNDERLYING") for reason in found.reasons)
