"""Twins of the features over other tables: order flow, book, options, other markets, calendar, interactions.

Written from the definitions in ``config/feature_sets.yaml``, in the words of :mod:`naive`, whose tables they join.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import naive
import numpy as np
from naive import (
    NAN,
    ago,
    at_least,
    choose,
    correlation,
    deviation,
    divide,
    ema,
    lag,
    largest,
    log,
    mean,
    more,
    return_since,
    smallest,
    total,
    windowed,
)
from naive_days import (
    before_change,
    clock_deviation,
    profile_window,
    seasonal_mean,
    session_rank,
    session_sum,
    time_slope,
    time_window,
    unchanged_for,
)
from numpy.typing import NDArray

if TYPE_CHECKING:
    from naive import Twin

Floats = NDArray[np.float64]
Function = Callable[["Twin"], Floats]


def exp(x: Floats) -> Floats:
    """Exponential, row by row."""
    return np.array([NAN if math.isnan(v) else math.exp(v) for v in x])


def sign(x: Floats) -> Floats:
    """-1, 0 or 1; missing where x is."""
    return np.array([NAN if math.isnan(v) else float(v > 0) - float(v < 0) for v in x])


def share(part: Floats, rest: Floats) -> Floats:
    """part / (part + rest)."""
    return divide(part, part + rest)


def tilt(a: Floats, b: Floats) -> Floats:
    """(a - b) / (a + b)."""
    return divide(a - b, a + b)


def nearer(a: Floats, b: Floats) -> Floats:
    """The smaller of two; missing where either is."""
    return np.where(np.isnan(a) | np.isnan(b), NAN, np.fmin(a, b))


def sum_over(c: Twin, name: str, minutes: int) -> Floats:
    return time_window(c.known_at, c[name], minutes, "sum", c.bar_minutes)


def mean_over(c: Twin, name: str, minutes: int) -> Floats:
    return time_window(c.known_at, c[name], minutes, "mean", c.bar_minutes)


def trend_of_averages(x: Floats) -> Floats:
    return divide(ema(x, 5), ema(x, 20)) - 1


def second_difference(c: Twin, name: str, minutes: int) -> Floats:
    now, middle, first = c[name], ago(c[name], c.known_at, minutes), ago(c[name], c.known_at, 2 * minutes)
    return now - 2 * middle + first


def change_over(c: Twin, name: str, minutes: int) -> Floats:
    return c[name] - ago(c[name], c.known_at, minutes)


def column(name: str) -> Function:
    """An input as it is."""
    return lambda c: c[name]


def outside(close: Floats, top: Floats, bottom: Floats) -> Floats:
    """How far the close stands outside a range."""
    out = np.full(len(close), NAN)
    for i, (x, high, low) in enumerate(zip(close, top, bottom, strict=True)):
        if not (math.isnan(x) or math.isnan(high) or math.isnan(low)):
            out[i] = x - high if x > high else low - x if x < low else 0.0
            out[i] = max(out[i], 0.0)
    return out


def last_5_minutes(c: Twin, output: str) -> Floats:
    """The volume profile of the last 5 minutes."""
    bars = (c["high"], c["low"], c["volume"])
    return c.group("5 minutes", lambda: profile_window(c.known_at, *bars, 5, c.tick_size, c.bar_minutes))[output]


def footprint(c: Twin) -> Floats:
    out = np.full(len(c.known_at), NAN)
    rows = zip(c["delta_volume"], c["cumulative_delta_high"], c["cumulative_delta_low"], strict=True)
    for i, (delta, high, low) in enumerate(rows):
        if any(math.isnan(v) for v in (delta, high, low)):
            continue
        if high > low:
            out[i] = np.clip(delta / (high - low), -1.0, 1.0)
        else:
            out[i] = float(delta > 0) - float(delta < 0)
    return out


def stacked_less_pulled(c: Twin, side: str) -> Floats:
    stacked, pulled = c[f"{side}_stacked"], c[f"{side}_pulled"]
    return np.where(stacked + pulled == 0, 0.0, tilt(stacked, pulled))


def lean(c: Twin) -> Floats:
    bid, ask = c["bid_stacked"] - c["bid_pulled"], c["ask_stacked"] - c["ask_pulled"]
    moved = c["bid_stacked"] + c["bid_pulled"] + c["ask_stacked"] + c["ask_pulled"]
    return np.where(moved == 0, 0.0, divide(bid - ask, moved))


def half_life(c: Twin) -> Floats:
    out = np.full(len(c.known_at), NAN)
    for i, rho in enumerate(c["order_imbalance_persistence"]):
        if rho <= 0:
            out[i] = 0.0
        elif rho > 0 and math.log(rho) != 0:
            out[i] = math.log(0.5) / math.log(rho)
    return out


def previous(c: Twin, name: str, key: str) -> Floats:
    return before_change(c[name], c[key])


def day_change(c: Twin, name: str) -> Floats:
    return c[name] - previous(c, name, "levels_open_interest_date")


def calls_against_puts(c: Twin) -> Floats:
    calls, puts = day_change(c, "open_interest_calls"), day_change(c, "open_interest_puts")
    return divide(calls - puts, np.abs(calls) + np.abs(puts))


def acceleration(c: Twin) -> Floats:
    change = c["gex_change"] - previous(c, "gex_change", "levels_known_at")
    return divide(change, np.abs(change) + c["gex"])


def nearest_event(c: Twin, which: str) -> Floats:
    if which == "high":
        return nearer(c["minutes_to_next_high_event"], c["minutes_since_high_event"])
    return nearer(c["minutes_to_next_event"], c["minutes_since_event"])


def severity(c: Twin) -> Floats:
    ahead, behind = c["minutes_to_next_event"], c["minutes_since_event"]
    return choose(at_least(behind, ahead), c["next_event_impact"], c["last_event_impact"])


def shifted(c: Twin) -> Floats:
    return more(np.abs(c["market_regime"] - ago(c["market_regime"], c.known_at, 30)), np.float64(0.0))


RETURNS_20 = ("spx", "ndx", "rut", "gold", "oil")
CORRELATED = ("vix", "ndx", "rut", "gold", "oil")

AUXILIARY: dict[str, Function] = {
    "spread_deviation_20": lambda c: windowed(c["spread_mean"], 20, lambda part: deviation(part, 1)),
    "spread_average_20": lambda c: windowed(c["spread_mean"], 20, mean),
    "highest_5": lambda c: windowed(c["high"], 5, largest),
    "lowest_5": lambda c: windowed(c["low"], 5, smallest),
    "outside_1": lambda c: outside(c["close"], ago(c["high"], c.known_at, 1), ago(c["low"], c.known_at, 1)),
    "outside_5": lambda c: outside(c["close"], lag(c["highest_5"], 1), lag(c["lowest_5"], 1)),
    "aggressive_volume": lambda c: c["bid_volume"] + c["ask_volume"],
    "delta_ema_20": lambda c: ema(c["delta_volume"], 20),
    "aggressive_ema_20": lambda c: ema(c["aggressive_volume"], 20),
    "trade_frequency_ema_5": lambda c: ema(c["trade_frequency"], 5),
    "trade_frequency_ema_20": lambda c: ema(c["trade_frequency"], 20),
    "volume_mean_20": lambda c: windowed(c["volume"], 20, mean),
    "volume_deviation_20": lambda c: windowed(c["volume"], 20, lambda part: deviation(part, 1)),
    "volume_excess": lambda c: np.maximum(
        0.0, divide(c["volume"] - lag(c["volume_mean_20"], 1), lag(c["volume_deviation_20"], 1))
    ),
    "order_imbalance_1": lambda c: lag(c["order_imbalance"], 1),
    **{f"order_imbalance_{n}": lambda c, n=n: ago(c["order_imbalance"], c.known_at, n) for n in (5, 15, 60)},
    "depth_mean_60": lambda c: windowed(c["order_book_depth"], 60, mean),
    "spread_mean_60": lambda c: windowed(c["spread_mean"], 60, mean),
    "microprice": lambda c: divide(
        c["bid_price_1"] * c["ask_size_1"] + c["ask_price_1"] * c["bid_size_1"], c["bid_size_1"] + c["ask_size_1"]
    ),
    "microprice_return": lambda c: log(divide(c["microprice"], lag(c["microprice"], 1))),
    "gex_previous": lambda c: previous(c, "gex", "levels_known_at"),
    "gex_change_previous": lambda c: previous(c, "gex_change", "levels_known_at"),
    "side_of_zero_gamma": lambda c: sign(c["close"] - c["zero_gamma"]),
    "side_held_minutes": lambda c: unchanged_for(c.known_at, c["side_of_zero_gamma"]),
    "open_interest": lambda c: c["open_interest_calls"] + c["open_interest_puts"],
    "open_interest_before": lambda c: previous(c, "open_interest", "levels_open_interest_date"),
    "open_calls_before": lambda c: previous(c, "open_interest_calls", "levels_open_interest_date"),
    "open_puts_before": lambda c: previous(c, "open_interest_puts", "levels_open_interest_date"),
    "absolute_return_60m": lambda c: np.abs(change_over(c, "log_close", 60)),
    "qqq_return": lambda c: log(divide(c["qqq"], lag(c["qqq"], 1))),
    "spy_return": lambda c: log(divide(c["spy"], lag(c["spy"], 1))),
    "es_notional": lambda c: c["close"] * c["volume"],
    "spy_notional": lambda c: c["spy"] * c["spy_volume"],
    "es_flow_20": lambda c: windowed(c["es_notional"], 20, total),
    "spy_flow_20": lambda c: windowed(c["spy_notional"], 20, total),
    "absolute_log_return": lambda c: np.abs(c["log_return"]),
    "absolute_return_mean_30": lambda c: windowed(c["absolute_log_return"], 30, mean),
    "seasonal_mean_30": lambda c: windowed(c["seasonal_volatility_index"], 30, mean),
    "expiry_left": lambda c: c["time_to_expiry_at_chain"] + (c["levels_market_time"] - c["time"]) / 86_400,
    "log_vol_15m": lambda c: log(c["realized_vol_15m"]),
    "illiquidity_5m": lambda c: mean_over(c, "illiquidity", 5),
    "absorbed_volume": lambda c: c["absorption_delta"] * c["aggressive_volume"],
    "absorption_ema_5": lambda c: ema(c["liquidity_absorption_rate"], 5),
    "absorption_ema_20": lambda c: ema(c["liquidity_absorption_rate"], 20),
}

FEATURES: dict[str, Function] = {
    # volatility, profile, scores
    "dynamic_spread_volatility": lambda c: divide(c["spread_deviation_20"], c["spread_average_20"]),
    **{
        name: lambda c, output=output: last_5_minutes(c, output)
        for output in ("poc", "vah", "val", "volume_at_poc", "volume_at_vah", "volume_at_val")
        for name in (f"{output}_5min" if output.startswith("volume") else f"{output}_price_5min",)
    },
    "breakout_score_1min": lambda c: share(c["outside_1"], lag(c["atr_14"], 1)),
    "breakout_score_5min": lambda c: share(c["outside_5"], lag(c["atr_14"], 1)),
    "trend_exhaustion_signal_1min": lambda c: (
        np.abs(c["rsi_14"] - 50) / 50 * more(ago(c["adx_14"], c.known_at, 1), c["adx_14"])
    ),
    "intraday_vol_cluster_id": lambda c: sum(more(c["session_volatility_index"], np.float64(k)) for k in (0.5, 1, 2)),
    # order flow
    "ask_volume_total": column("ask_volume"),
    "bid_volume_total": column("bid_volume"),
    "delta_volume": lambda c: c["ask_volume"] - c["bid_volume"],
    "cumulative_delta": lambda c: session_sum(c, c["delta_volume"]),
    "delta_cumulative_5min": lambda c: sum_over(c, "delta_volume", 5),
    "bid_volume_percent": lambda c: 100 * share(c["bid_volume"], c["ask_volume"]),
    "bid_ask_ratio": lambda c: divide(c["bid_trades"], c["ask_trades"]),
    "aggressive_trade_ratio": lambda c: share(c["aggressive_volume"], c["order_book_depth"]),
    "vds": lambda c: divide(c["delta_ema_20"], c["aggressive_ema_20"]),
    "footprint_delta": footprint,
    "ask_bid_ticks_diff": lambda c: c["ask_trades"] - c["bid_trades"],
    "ofi_score_5min": lambda c: mean_over(c, "ofi_score", 5),
    "trade_size_skew_1m": column("trade_size_skew"),
    "trade_frequency_1s": column("trade_frequency"),
    "tick_imbalance_1s": column("tick_imbalance"),
    "trade_flow_acceleration": lambda c: trend_of_averages(c["trade_frequency"]),
    "volume_anomaly": lambda c: share(c["volume_excess"], np.ones(len(c.known_at))),
    # book
    "order_book_momentum": lambda c: c["bid_ask_imbalance"] - lag(c["bid_ask_imbalance"], 5),
    "order_imbalance_persistence": lambda c: correlation(c["order_imbalance"], c["order_imbalance_1"], 60),
    "order_imbalance_persistence_5min": lambda c: correlation(c["order_imbalance"], c["order_imbalance_5"], 60),
    "order_imbalance_persistence_15m": lambda c: correlation(c["order_imbalance"], c["order_imbalance_15"], 60),
    "order_imbalance_persistence_60m": lambda c: correlation(c["order_imbalance"], c["order_imbalance_60"], 60),
    "order_imbalance_decay": half_life,
    **{
        f"{side}_{what}_level_{k}": column(f"{side}_{what}_{k}")
        for side in ("bid", "ask")
        for what in ("price", "size")
        for k in (1, 2, 3)
    },
    **{f"level_{k}_size_{side}": column(f"{side}_size_{k}") for side in ("bid", "ask") for k in (4, 5)},
    "bid_stack_pull": lambda c: stacked_less_pulled(c, "bid"),
    "ask_stack_pull": lambda c: stacked_less_pulled(c, "ask"),
    "execution_aggressiveness_score": lambda c: share(c["effective_spread"], c["spread_mean"]),
    "absorption_seed_1min": column("absorption_delta"),
    "absorption_seed_5min": lambda c: mean_over(c, "absorption_delta", 5),
    "liquidity_absorption_rate": lambda c: c["absorption_strength"] * c["aggressive_volume"],
    "liquidity_score": lambda c: share(c["order_book_depth"], c["depth_mean_60"]),
    "liquidity_crunch_flag": lambda c: (
        more(0.5 * c["depth_mean_60"], c["order_book_depth"]) * more(c["spread_mean"], 1.5 * c["spread_mean_60"])
    ),
    "microstructure_volatility": lambda c: windowed(c["microprice_return"], 20, lambda part: deviation(part, 1)),
    "mm_score": lambda c: ema(c["mm_score_1min"], 20),
    "mm_score_1min": lean,
    "mm_score_5min": lambda c: mean_over(c, "mm_score_1min", 5),
    "hft_score": lambda c: ema(c["hft_score_1min"], 20),
    "hft_score_1min": lambda c: share(c["order_messages"], 20 * c["trade_count"]),
    "hft_score_5min": lambda c: mean_over(c, "hft_score_1min", 5),
    # options
    "iv_rank_30d": lambda c: session_rank(c.known_at, c["iv_atm"], 30),
    "iv_acceleration": lambda c: second_difference(c, "iv_atm", 30),
    "gex_change": lambda c: c["gex"] - c["gex_previous"],
    "gex_acceleration_score": acceleration,
    "gamma_trend_30m": lambda c: time_slope(c.known_at, c["net_gamma"], 30, c.bar_minutes),
    "gamma_peak_distance": lambda c: divide(c["gamma_wall"] - c["close"], c["close"]),
    "gamma_flip_persistence_days": lambda c: c["side_held_minutes"] / (24 * 60),
    "max_pain_strike": column("max_pain"),
    "oi_velocity": lambda c: day_change(c, "open_interest"),
    "oi_buildup_rate": lambda c: divide(day_change(c, "open_interest"), c["open_interest_before"]),
    "oi_change_call_vs_put": calls_against_puts,
    "time_to_expiry": lambda c: np.maximum(0.0, c["expiry_left"]),
    "is_expiry_day": lambda c: np.where(
        np.isnan(c["levels_nearest_expiry"]), NAN, np.where(c["levels_nearest_expiry"] == c["session_date"], 1.0, 0.0)
    ),
    "time_to_expiry_proximity": lambda c: divide(np.ones(len(c.known_at)), 1 + c["time_to_expiry"]),
    "implied_move_vs_actual_move": lambda c: divide(c["absolute_return_60m"], 0.013135264 * c["iv_atm"]),
    "implied_move_ratio": lambda c: divide(c["iv_atm"], c["vol_historical_1d"]),
    "volatility_risk_premium": lambda c: c["iv_atm"] ** 2 - c["vol_historical_5d"] ** 2,
    "volatility_premium": lambda c: c["iv_atm"] - c["vol_historical_5d"],
    "volatility_trigger_proximity": lambda c: divide(c["close"] - c["vol_trigger"], c["close"]),
    "option_activity_score": lambda c: share(c["option_volume"], c["open_interest"]),
    "gamma_pressure_score": lambda c: (
        divide(np.abs(c["net_gamma"]), c["gex"]) * exp(-100 * np.abs(c["gamma_peak_distance"]))
    ),
    # other markets
    "vix_es_correlation": column("vix_spx_correlation_20"),
    "vix_es_correlation_stress": column("vix_spx_correlation_stress"),
    "ndx_es_correlation": column("ndx_spx_correlation_20"),
    "rut_es_correlation": column("rut_spx_correlation_20"),
    "gold_correl": column("gold_spx_correlation_20"),
    "oil_correl": column("oil_spx_correlation_20"),
    "crypto_btc_correl": column("btc_spx_correlation_20"),
    "cross_asset_correlation_index": lambda c: sum(np.abs(c[f"{n}_spx_correlation_20"]) for n in CORRELATED) / 5,
    "sector_leader_correlation": lambda c: correlation(c["qqq_return"], c["log_return"], 60),
    "vix_term_3m": column("vix_3m"),
    "vix_term_6m": column("vix_6m"),
    "vix_term_1y": column("vix_1y"),
    "vol_term_slope": lambda c: c["vix_3m"] - c["vix"],
    "vol_term_curvature": lambda c: (c["vix_6m"] - c["vix_3m"]) - (c["vix_3m"] - c["vix"]),
    "vix_term_structure": lambda c: divide(c["vix_3m"], c["vix"]),
    "vix_vvix_ratio": lambda c: divide(c["vix"], c["vvix"]),
    "vol_skew_cross_index": column("skew_index"),
    "treasury_10y_yield": column("us10y"),
    "yield_spread_10y_2y": lambda c: c["us10y"] - c["us2y"],
    "bond_yield_delta": column("us10y_change"),
    "dollar_index_move": column("dxy_return_1"),
    "spy_lead_return": lambda c: c["spy_return"] - c["log_return"],
    "es_spy_volume_ratio": lambda c: divide(c["volume"], c["spy_volume"]),
    "cross_asset_flow_ratio": lambda c: share(50 * c["es_flow_20"], c["spy_flow_20"]),
    "gold_price_trend": lambda c: divide(c["gold"] - c["gold_mean_20"], c["gold_mean_20"]),
    "oil_price_trend": lambda c: divide(c["oil"] - c["oil_mean_20"], c["oil_mean_20"]),
    "btc_price_trend": lambda c: divide(c["btc"] - c["btc_mean_20"], c["btc_mean_20"]),
    "cross_asset_momentum": lambda c: sum(c[f"{n}_return_20"] for n in RETURNS_20) / 5,
    "cross_market_score": lambda c: (
        (
            sum(more(c[f"{n}_return_20"], np.float64(0.0)) for n in RETURNS_20 if n != "gold")
            + 1
            - more(c["gold_return_20"], np.float64(0.0))
        )
        / 5
    ),
    # context
    "market_open_volatility": lambda c: clock_deviation(c.known_at, c["log_return"], 570, 600, c.bar_minutes),
    "market_close_volatility": lambda c: clock_deviation(c.known_at, c["log_return"], 930, 960, c.bar_minutes),
    "seasonal_volatility_index": lambda c: seasonal_mean(c.known_at, c["absolute_log_return"], 30, 10),
    "session_volatility_index": lambda c: divide(c["absolute_return_mean_30"], c["seasonal_mean_30"]),
    "is_news_event": lambda c: 1 - more(nearest_event(c, "high"), np.float64(15.0)),
    "event_timing_proximity": lambda c: exp(-nearest_event(c, "any") / 30),
    "event_volatility_impact": lambda c: return_since(c["log_vol_15m"], c.known_at, c["last_event_at"]),
    "event_impact_duration": lambda c: (
        nearer(np.full(len(c.known_at), 240.0), c["minutes_since_high_event"])
        * more(c["event_volatility_impact"], np.float64(0.25))
    ),
    "event_volatility_trend": lambda c: (
        log(divide(c["realized_vol_5m"], c["realized_vol_15m"])) * exp(-c["minutes_since_event"] / 60)
    ),
    "macro_event_severity": severity,
    "macro_event_proximity_1h": lambda c: 1 - nearer(nearest_event(c, "high") / 60, np.ones(len(c.known_at))),
    "macro_event_frequency": column("events_last_24h"),
    "economic_calendar_weight": column("impact_next_24h"),
    "macro_event_momentum": lambda c: c["impact_next_24h"] - c["impact_last_24h"],
    "data_release": column("event_started_in_bar"),
    "market_regime_shift": shifted,
    "liquidity_trend_5m": lambda c: log(divide(ago(c["illiquidity_5m"], c.known_at, 5), c["illiquidity_5m"])),
    "volatility_context_score": lambda c: share(c["session_volatility_index"], np.ones(len(c.known_at))),
    # interactions
    "absorption_strength_delta": lambda c: c["absorption_strength"] - lag(c["absorption_strength"], 1),
    "absorption_strength_delta_cumulative": lambda c: session_sum(c, c["absorbed_volume"]),
    "gex_rsi": lambda c: c["gex"] * (c["rsi_14"] / 100),
    "gex_volatility_trend": lambda c: c["gex"] * c["volatility_trend"],
    "gamma_wall_spread": lambda c: c["net_gamma"] * (c["call_wall"] - c["put_wall"]),
    "net_gamma_flow_ratio": lambda c: divide(c["net_gamma"], c["volume_mean_20"]),
    "theta_vega_ratio": lambda c: divide(c["theta_exposure"], np.abs(c["theta_exposure"]) + np.abs(c["vega_exposure"])),
    "volume_anomaly_rsi": lambda c: c["volume_anomaly"] * c["rsi_14"],
    "iv_atm_oi_ratio": lambda c: divide(c["iv_atm"], c["call_put_oi_ratio"]),
    "option_skew_volume": lambda c: c["option_skew"] * c["volume"],
    "iv_atm_rsi_14": lambda c: c["iv_atm"] * (c["rsi_14"] / 100),
    "gex_slope_net_gamma": lambda c: divide(c["gex_slope"], c["gex"]) * divide(c["net_gamma"], c["gex"]),
    "option_skew_atr_14": lambda c: c["option_skew"] * c["atr_14"],
    "iv_atm_vwap": lambda c: c["iv_atm"] * divide(c["close"] - c["vwap"], c["vwap"]),
    "option_skew_theta_exposure": lambda c: c["option_skew"] * c["theta_exposure"],
    "iv_atm_trend": lambda c: change_over(c, "iv_atm", 60),
    "option_skew_momentum": lambda c: change_over(c, "option_skew", 60),
    "gex_slope_acceleration": lambda c: second_difference(c, "gex_slope", 30),
    "micro_vol_acceleration": lambda c: (
        c["microstructure_volatility"]
        - 2 * lag(c["microstructure_volatility"], 5)
        + lag(c["microstructure_volatility"], 10)
    ),
    "liquidity_absorption_trend": lambda c: trend_of_averages(c["liquidity_absorption_rate"]),
    "depth_imbalance_momentum": lambda c: c["depth_imbalance"] - lag(c["depth_imbalance"], 5),
    "iv_atm_spread": lambda c: c["iv_atm"] * c["option_spread_cost"],
    "gex_slope_volume_ratio": lambda c: divide(c["gex_slope"], c["volume_mean_20"]),
    "confidence_drop_rate": lambda c: -change_over(c, "prediction_confidence", 60),
    "option_skew_vix_correlation": lambda c: c["option_skew"] * c["vix_spx_correlation_20"],
}


def _near(a: Floats, b: Floats | float) -> NDArray[np.bool_]:
    return np.abs(a - b) <= 1e-9 * np.maximum(np.abs(a), np.abs(b))


UNDECIDED: dict[str, Callable[[Twin], NDArray[np.bool_]]] = {
    "intraday_vol_cluster_id": lambda c: np.any([_near(c["session_volatility_index"], k) for k in (0.5, 1, 2)], 0),
    "trend_exhaustion_signal_1min": lambda c: _near(ago(c["adx_14"], c.known_at, 1), c["adx_14"]),
    "liquidity_crunch_flag": lambda c: (
        _near(0.5 * c["depth_mean_60"], c["order_book_depth"]) | _near(c["spread_mean"], 1.5 * c["spread_mean_60"])
    ),
    "event_impact_duration": lambda c: _near(c["event_volatility_impact"], 0.25),
    **{
        name: lambda c: last_5_minutes(c, "near") > 0
        for name in ("vah_price_5min", "val_price_5min", "volume_at_vah_5min", "volume_at_val_5min")
    },
}

naive.TWINS.update(AUXILIARY | FEATURES)
naive.UNDECIDED.update(UNDECIDED)
