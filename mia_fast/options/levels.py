"""Dealer levels: what the open interest, priced by its own volatilities, says about the underlying.

Definitions follow the desk's usage; where published tools contradict one another the choice is a
named parameter of ``config/options.yaml``. With gamma exposure GEX = gamma OI multiplier S^2 0.01 (USD
per 1 % move), unsigned unless said otherwise:

* ``gamma_wall`` - strike with the largest call + put exposure; ``key_strikes_1..5`` - its top five.
* ``call_wall`` - largest call exposure at K >= S; ``put_wall`` - largest put exposure at K <= S.
* ``net_gamma`` - the sum with the dealers' sign; ``zero_gamma`` - the price nearest S at which it
  would be zero, with every strike's volatility and each F/S held.
* ``dealer_position_bias`` - (calls - puts) / (calls + puts), in [-1, 1].
* ``iv_atm`` - volatility at K = F, 30 days constant maturity, total variance linear in T;
  ``iv_atm_nearest`` - the same of the nearest live expiry.
* ``max_pain`` - strike of the nearest expiry with open interest at which it would pay out least.

A level that cannot be had is None, never a number, and ``status`` with ``reasons`` says why:
``DEGRADED`` withholds everything that rests on gamma; ``NO_CHAIN`` means there was nothing to read.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from mia_fast.clock import NS_PER_SECOND, iso
from mia_fast.errors import DataError
from mia_fast.options.chain import F64, I8, I64, Chain, prepare
from mia_fast.options.config import SIGNS, OptionsConfig
from mia_kernels import black, gamma

Status = Literal["OK", "DEGRADED", "NO_CHAIN"]
ZeroGammaStatus = Literal["OK", "NO_CROSSING_POS", "NO_CROSSING_NEG", "DEGRADED", "NO_CHAIN"]

PRICE_LEVELS = (
    "gamma_wall",
    "call_wall",
    "put_wall",
    "key_strikes_1",
    "key_strikes_2",
    "key_strikes_3",
    "key_strikes_4",
    "key_strikes_5",
    "zero_gamma",
    "max_pain",
)
_NEAR_DAYS = 30.0  # expiries whose forwards tell where the underlying trades


@dataclass(frozen=True, kw_only=True)
class Levels(Mapping[str, Any]):
    """The levels of one chain at one instant; also a mapping of its JSON-safe record.

    Prices in the underlying's unit, exposures in USD per 1 % move, volatilities per year as fractions.
    """

    timestamp_ns: int | None
    """The instant the levels stand for: the caller's now, or when the chain was known; None without either."""
    status: Status
    reasons: tuple[str, ...] = ()
    """Why ``status`` is not OK, as ``CATEGORY_CONDITION: key=value``."""
    notes: tuple[str, ...] = ()
    """What a reader should know although the levels stand."""
    quote_time_ns: int | None = None
    market_time_ns: int | None = None
    roots: tuple[str, ...] = ()
    underlying_price: float | None = None
    sign_convention: str | None = None
    gamma_wall: float | None = None
    call_wall: float | None = None
    put_wall: float | None = None
    key_strikes_1: float | None = None
    key_strikes_2: float | None = None
    key_strikes_3: float | None = None
    key_strikes_4: float | None = None
    key_strikes_5: float | None = None
    zero_gamma: float | None = None
    zero_gamma_status: ZeroGammaStatus = "NO_CHAIN"
    zero_gamma_roots: tuple[float, ...] = ()
    net_gamma: float | None = None
    call_gamma: float | None = None
    put_gamma: float | None = None
    dealer_position_bias: float | None = None
    iv_atm: float | None = None
    iv_atm_nearest: float | None = None
    nearest_expiry: dt.date | None = None
    option_skew: float | None = None
    max_pain: float | None = None
    max_pain_expiry: dt.date | None = None
    coverage: float | None = None
    """Share of the live open interest whose strike has a volatility."""
    contracts: int = 0
    contracts_live: int = 0
    contracts_two_sided: int = 0
    expiries_live: int = 0
    forward_fallbacks: int = 0
    path: Path | None = None
    """The snapshot file, once written."""

    def record(self) -> dict[str, Any]:
        """Every field as JSON-safe values: instants and dates as ISO-8601 text, tuples as lists."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_ns"):
                out[field.name.removesuffix("_ns")] = None if value is None else iso(value)
            elif isinstance(value, tuple):
                out[field.name] = list(value)
            elif isinstance(value, dt.date):
                out[field.name] = value.isoformat()
            elif isinstance(value, Path):
                out[field.name] = str(value)
            else:
                out[field.name] = value
        return out

    def __getitem__(self, key: str) -> Any:
        return self.record()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.record())

    def __len__(self) -> int:
        return len(dataclasses.fields(self))


def no_chain(
    timestamp_ns: int | None, reason: str, *, iv_atm: float | None = None, option_skew: float | None = None
) -> Levels:
    """Levels without a chain: all that need one are None."""
    return Levels(
        timestamp_ns=timestamp_ns, status="NO_CHAIN", reasons=(reason,), iv_atm=iv_atm, option_skew=option_skew
    )


@dataclass(frozen=True)
class Surface:
    """What the last update computed, strike by strike: views of the engine's buffers, valid until the next.

    For n strikes, g expiries, m distinct strikes and a grid of p prices.
    """

    chain: Chain
    terms: F64  # [black.N_TERMS, g]
    source: I8  # [g] black.FROM_PARITY, FROM_RATES or NO_FORWARD
    pairs: I64  # [g] parity pairs used
    status: I8  # [2, n] of each contract's own quote, calls first
    strike_status: I8  # [n] of the strike's volatility
    greeks: F64  # [black.N_GREEKS, n], the call's
    atm: F64  # [g] volatility at K = F
    exposure: F64  # [2, m] calls, puts
    profile_table: F64  # [gamma.N_PROFILE, n], the first profile_size of them
    profile_size: int
    log_grid: F64  # [p] ln of the prices
    profile: F64  # [p] net gamma exposure there


class LevelsEngine:
    """Computes levels over and over with buffers that grow to the largest chain seen.

    Not for use by two threads at once.
    """

    def __init__(self, config: OptionsConfig) -> None:
        self.config = config
        self.surface: Surface | None = None
        self._buffers: dict[str, npt.NDArray[Any]] = {}

    def update(self, chain: Chain | pl.DataFrame | None, now_ns: int | None = None) -> Levels:
        """The levels of ``chain`` as of ``now_ns`` (UTC nanoseconds).

        Parameters
        ----------
        chain
            A prepared chain, a table as :func:`mia_fast.options.chain.prepare` takes it, or None.
        now_ns
            What is quoted later is unknown, and a chain older than the configured age is DEGRADED.
            None: the chain's own time, without a check of its age.

        Raises
        ------
        DataError
            The table cannot be read as a chain, or a prepared chain lies after ``now_ns``.
        """
        if isinstance(chain, pl.DataFrame):
            chain = prepare(chain, self.config, now_ns)
        if chain is None:
            self.surface = None
            return no_chain(now_ns, "CHAIN_MISSING: rows=0")
        if now_ns is not None and chain.quote_time_ns > now_ns:
            raise DataError(
                f"is quoted at {iso(chain.quote_time_ns)}, after now = {iso(now_ns)}",
                where="chain.quote_time",
                hint="pass the last chain known at that instant",
                then="no levels were computed",
            )
        surface = self._price(chain)
        self.surface = surface
        return self._levels(surface, now_ns)

    def on_future(self, levels: Levels, future_price: float, underlying_price_at_market_time: float) -> FutureLevels:
        """:func:`on_future` with the desk's ``basis_limit``."""
        return on_future(levels, future_price, underlying_price_at_market_time, limit=self.config.basis_limit)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type = np.float64) -> npt.NDArray[Any]:
        size = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.size < size:
            held = self._buffers[name] = np.empty(size + size // 4, dtype)
        return held[:size].reshape(shape)

    def _price(self, chain: Chain) -> Surface:
        n, g, m = chain.strike.size, len(chain.root), chain.levels.size
        config = self.config
        terms = self._buffer("terms", (black.N_TERMS, g))
        source = self._buffer("source", (g,), np.int8)
        pairs = self._buffer("pairs", (g,), np.int64)
        black.expiry_terms(
            chain.bid,
            chain.ask,
            chain.stale,
            chain.strike,
            chain.start,
            chain.years,
            chain.european,
            chain.spot,
            chain.rate,
            chain.dividend_yield,
            config.forward.moneyness_band,
            config.forward.min_pairs,
            terms,
            source,
            pairs,
        )
        status = self._buffer("status", (2, n), np.int8)
        strike_status = self._buffer("strike_status", (n,), np.int8)
        price = self._buffer("price", (n,))
        black.otm_prices(
            chain.bid,
            chain.ask,
            chain.listed,
            chain.stale,
            chain.strike,
            chain.group,
            terms,
            status,
            price,
            strike_status,
        )
        greeks = self._buffer("greeks", (black.N_GREEKS, n))
        black.smile(price, chain.strike, chain.group, terms, chain.spot, greeks, strike_status)
        sigma = greeks[black.SIGMA]
        atm = self._buffer("atm", (g,))
        black.atm_volatility(sigma, strike_status, chain.strike, chain.start, terms, config.forward.moneyness_band, atm)
        exposure = self._buffer("exposure", (2, m))
        scale = chain.multiplier * (chain.spot * chain.spot * 0.01)
        gamma.exposure_by_strike(
            greeks[black.GAMMA], strike_status, chain.group, chain.level, chain.interest, scale, exposure
        )
        call_sign, put_sign = SIGNS[config.sign_convention]
        table = self._buffer("table", (gamma.N_PROFILE, n))
        used = gamma.profile_terms(
            sigma,
            strike_status,
            chain.strike,
            chain.group,
            chain.interest,
            terms,
            chain.multiplier,
            chain.spot,
            call_sign,
            put_sign,
            table,
        )
        grid = self._grid(chain, atm)
        profile = self._buffer("profile", (grid.size,))
        gamma.profile(table, used, grid, profile)
        return Surface(
            chain, terms, source, pairs, status, strike_status, greeks, atm, exposure, table, used, grid, profile
        )

    def _grid(self, chain: Chain, atm: F64) -> F64:
        """ln of the prices at which the profile is evaluated: finer around S when an expiry is near."""
        about = self.config.profile
        half = round(about.span / about.step)
        relative = np.arange(-half, half + 1) * about.step
        known = np.flatnonzero((chain.years > 0.0) & np.isfinite(atm))
        if known.size:
            nearest = int(known[0])
            step = 0.5 * float(atm[nearest]) * math.sqrt(float(chain.years[nearest]))
            if step < about.step:
                count = math.ceil(2.0 * about.near_widths)
                relative = np.union1d(relative, np.arange(-count, count + 1) * step)
        grid: F64 = np.log(chain.spot * (1.0 + relative))
        return grid

    def _levels(self, surface: Surface, now_ns: int | None) -> Levels:
        chain, config = surface.chain, self.config
        live = chain.years > 0.0
        live_row = live[chain.group]
        interest = chain.interest.sum(axis=0)
        solved = surface.strike_status == black.OK
        held = float(interest[live_row].sum())
        coverage = float(interest[solved].sum()) / held if held > 0.0 else None
        reasons = self._reasons(surface, now_ns, live, held, coverage)
        notes = self._notes(surface, live)
        iv_atm = _constant_maturity(
            chain.years, surface.atm, config.volatility.maturity_days * 86400.0 / config.time.seconds_per_year
        )
        nearest = int(np.flatnonzero(live)[0]) if live.any() else None
        pain = self._buffer("pain", (len(chain.root),))
        gamma.max_pain(chain.strike, chain.start, chain.interest, pain)
        paid = np.flatnonzero(live & np.isfinite(pain))
        common: dict[str, Any] = {
            "timestamp_ns": chain.quote_time_ns if now_ns is None else now_ns,
            "notes": notes,
            "quote_time_ns": chain.quote_time_ns,
            "market_time_ns": chain.market_time_ns,
            "roots": tuple(sorted(set(chain.root))),
            "underlying_price": chain.spot,
            "sign_convention": config.sign_convention,
            "iv_atm": iv_atm,
            "iv_atm_nearest": None if nearest is None else _number(surface.atm[nearest]),
            "nearest_expiry": None if nearest is None else chain.expiry[nearest],
            "max_pain": float(pain[paid[0]]) if paid.size else None,
            "max_pain_expiry": chain.expiry[int(paid[0])] if paid.size else None,
            "coverage": coverage,
            "contracts": int(chain.listed.sum()),
            "contracts_live": int(chain.listed[:, live_row].sum()),
            "contracts_two_sided": int((surface.status == black.OK).sum()),
            "expiries_live": int(live.sum()),
            "forward_fallbacks": int((surface.source == black.FROM_RATES).sum()),
        }
        if reasons:
            return Levels(status="DEGRADED", reasons=reasons, zero_gamma_status="DEGRADED", **common)
        return Levels(status="OK", **common, **self._gamma_levels(surface))

    def _gamma_levels(self, surface: Surface) -> dict[str, Any]:
        chain = surface.chain
        calls, puts = surface.exposure
        both = calls + puts
        total_calls, total_puts = float(calls.sum()), float(puts.sum())
        call_sign, put_sign = SIGNS[self.config.sign_convention]
        net = call_sign * total_calls + put_sign * total_puts
        ranked = _ranked(both, chain.levels, chain.spot)[:5]
        keys = [*ranked, *[None] * (5 - len(ranked))]
        upper, lower = chain.levels >= chain.spot, chain.levels <= chain.spot
        places = self._buffer("roots", (surface.log_grid.size,))
        count = gamma.sign_changes(
            surface.profile_table, surface.profile_size, surface.log_grid, surface.profile, places
        )
        roots = tuple(float(root) for root in places[:count])
        status: ZeroGammaStatus = "OK"
        if not roots:
            status = "NO_CROSSING_POS" if net > 0.0 else "NO_CROSSING_NEG"
        return {
            "gamma_wall": keys[0],
            "call_wall": _first(_ranked(calls[upper], chain.levels[upper], chain.spot)),
            "put_wall": _first(_ranked(puts[lower], chain.levels[lower], chain.spot)),
            **{f"key_strikes_{index + 1}": strike for index, strike in enumerate(keys)},
            "zero_gamma": min(roots, key=lambda root: (abs(root - chain.spot), root)) if roots else None,
            "zero_gamma_status": status,
            "zero_gamma_roots": roots,
            "net_gamma": net,
            "call_gamma": total_calls,
            "put_gamma": total_puts,
            "dealer_position_bias": (total_calls - total_puts) / (total_calls + total_puts),
        }

    def _reasons(
        self, surface: Surface, now_ns: int | None, live: npt.NDArray[np.bool_], held: float, coverage: float | None
    ) -> tuple[str, ...]:
        """Why the levels that rest on gamma are withheld."""
        chain, limits = surface.chain, self.config.quality
        found = []
        if not live.any():
            found.append(f"CHAIN_EXPIRED: market_time={iso(chain.market_time_ns)}")
        elif coverage is None or held <= 0.0:
            found.append("OPEN_INTEREST_ZERO: contracts=0")
        elif coverage < limits.coverage_threshold:
            found.append(f"COVERAGE_LOW: coverage={coverage:.4f} threshold={limits.coverage_threshold:g}")
        elif not surface.exposure.sum() > 0.0:
            found.append("GAMMA_ZERO: exposure=0")
        if now_ns is not None:
            age = (now_ns - chain.market_time_ns) / NS_PER_SECOND
            if age > limits.max_chain_age_seconds:
                found.append(f"CHAIN_STALE: age_seconds={age:.0f} limit={limits.max_chain_age_seconds:g}")
        gap = self._underlying_gap(surface)
        if gap is not None and abs(gap) > limits.max_underlying_gap:
            found.append(f"UNDERLYING_GAP: gap={gap:+.4f} limit={limits.max_underlying_gap:g}")
        return tuple(found)

    def _underlying_gap(self, surface: Surface) -> float | None:
        """Median over near expiries of the underlying that parity implies, over the printed one, less 1."""
        chain = surface.chain
        near = (surface.source == black.FROM_PARITY) & (chain.years < _NEAR_DAYS / 365.0)
        if not near.any():
            return None
        drift = (chain.rate - chain.dividend_yield)[near] * chain.years[near]
        implied = surface.terms[black.FORWARD, near] * np.exp(-drift)
        return float(np.median(implied)) / chain.spot - 1.0

    def _notes(self, surface: Surface, live: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        chain = surface.chain
        found = []
        fallback = surface.source == black.FROM_RATES
        european = int((fallback & (chain.european == 1)).sum())
        american = int((fallback & (chain.european == 0)).sum())
        if european:
            found.append(f"FORWARD_FALLBACK: expiries={european} of={int(live.sum())}")
        if american:
            found.append(f"EXERCISE_AMERICAN: expiries={american} model=european")
        if chain.interest_missing:
            found.append(f"OPEN_INTEREST_MISSING: contracts={chain.interest_missing} counted_as=0")
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class FutureLevels:
    """Levels on the future's price scale, or the reason why there are none."""

    levels: Levels
    basis: float | None
    """Future minus underlying at the chain's market time, points."""
    status: Literal["OK", "BASIS_REFUSED", "PRICE_MISSING"]
    reason: str | None = None


def on_future(
    levels: Levels, future_price: float, underlying_price_at_market_time: float, *, limit: float = 0.02
) -> FutureLevels:
    """Move every price level by the basis: the future minus the underlying at the chain's market time.

    A basis above ``limit`` (fraction of the underlying) is no carry but a series of another kind, for
    instance one that is back-adjusted over the rolls; then, or when a price is not a finite positive
    number, the price levels are None and ``reason`` says why. Volatilities, exposures and the bias
    do not depend on the price scale and stay.
    """
    nothing: dict[str, Any] = dict.fromkeys(PRICE_LEVELS)
    withheld = dataclasses.replace(levels, zero_gamma_roots=(), **nothing)
    prices = (future_price, underlying_price_at_market_time)
    if not all(math.isfinite(price) and price > 0.0 for price in prices):
        return FutureLevels(
            levels=withheld,
            basis=None,
            status="PRICE_MISSING",
            reason=f"PRICE_MISSING: future={future_price} underlying={underlying_price_at_market_time}",
        )
    basis = future_price - underlying_price_at_market_time
    share = basis / underlying_price_at_market_time
    if abs(share) > limit:
        return FutureLevels(
            levels=withheld,
            basis=basis,
            status="BASIS_REFUSED",
            reason=f"BASIS_REFUSED: basis={basis:+.2f} share={share:+.4f} limit={limit:g}",
        )
    moved: dict[str, Any] = {
        name: None if (value := getattr(levels, name)) is None else value + basis for name in PRICE_LEVELS
    }
    roots = tuple(root + basis for root in levels.zero_gamma_roots)
    return FutureLevels(levels=dataclasses.replace(levels, zero_gamma_roots=roots, **moved), basis=basis, status="OK")


def _constant_maturity(years: F64, atm: F64, target: float) -> float | None:
    """Volatility at T = target, total variance linear in T; None outside the listed expiries."""
    good = (years > 0.0) & np.isfinite(atm)
    t, variance = years[good], atm[good] ** 2 * years[good]
    after = int(np.searchsorted(t, target))
    if after == t.size or (after == 0 and t[0] != target):
        return None
    if t[after] == target:
        return float(np.sqrt(variance[after] / target))
    share = (target - t[after - 1]) / (t[after] - t[after - 1])
    return float(np.sqrt((variance[after - 1] * (1.0 - share) + variance[after] * share) / target))


def _ranked(exposure: F64, strikes: F64, spot: float) -> list[float]:
    """Strikes with exposure, the largest first; ties nearest to S, then the lower one."""
    order = np.lexsort((strikes, np.abs(strikes - spot), -exposure))
    return [float(strikes[index]) for index in order if exposure[index] > 0.0]


def _first(strikes: list[float]) -> float | None:
    return strikes[0] if strikes else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
