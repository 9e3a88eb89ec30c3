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
* ``vol_trigger`` - a proxy: the price nearest S at which the dealers' hedge of gamma and of the vanna that
  comes with it, ``sum OI (gamma + vanna d sigma/dS)``, changes sign; d sigma / d ln S is ``spot_response``
  times the slope of the expiry's smile between its 25-delta strikes (E. Derman, "Regimes of volatility", 1999).
* ``risk_reversal_25`` - sigma of the 25-delta call less that of the put, 30 days constant maturity;
  ``butterfly_25`` - their mean less ``iv_atm``; ``option_skew`` - ``-risk_reversal_25 / iv_atm``.
* ``iv_skew`` - slope of the smile d sigma / d ln K at K = F, 30 days constant maturity: of each expiry the
  least-squares parabola within one width, of the variance interpolated in T.
* ``ref_px`` - the underlying's price that the levels stand for, as put-call parity implies it: the median of
  F e^{-(r - q) T} over the European expiries of the next 30 days.

Every other field has its definition beside it. Levels come in total and by expiry bucket.

A level that cannot be had is None, never a number, and ``status`` with ``reasons`` says why:
``DEGRADED`` withholds everything that rests on gamma; ``NO_CHAIN`` means there was nothing to read.
"""

from __future__ import annotations

import bisect
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
from mia_fast.options.chain import F64, I8, I64, Chain, Layout, new_york_date, numbers, prepare
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
    "ref_px",
    "max_pain",
    "vol_trigger",
    "gamma_wall_call",
    "gamma_wall_put",
    "pinning_strike",
    "oi_peak_call_near",
    "oi_peak_put_near",
)
_BUCKET_PRICES = ("gamma_wall", "call_wall", "put_wall", "zero_gamma")
_SHARED = (
    "gamma_wall",
    "call_wall",
    "put_wall",
    "zero_gamma",
    "zero_gamma_status",
    "zero_gamma_roots",
    "net_gamma",
    "call_gamma",
    "put_gamma",
    "dealer_position_bias",
    "vanna_exposure",
    "charm_exposure",
)
"""Fields that a bucket has too."""
_DELTA = 0.25
_DAYS = 365.0
_NEAR_WIDTHS = 4.0
_KEPT = 0.01
_TAIL = 1e-9  # of the largest exposure: where all densities have died away a change of sign means nothing
_ENOUGH_EXPIRIES = 3
_NEAR_DAYS = 30.0  # expiries whose forwards tell where the underlying trades


@dataclass(frozen=True, kw_only=True)
class BucketLevels:
    """The levels of the expiries up to some days away; definitions and units as in :class:`Levels`."""

    name: str
    last_expiry: dt.date | None
    """The furthest live expiry counted; None: the bucket is empty."""
    expiries: int
    open_interest: float
    coverage_near: float | None
    """Share of the open interest within four widths (S sigma sqrt(T)) of each forward whose strike has a volatility.

    Beyond, an option near its expiry is worth nothing and has no bid. Below the desk's
    ``coverage_threshold`` what rests on gamma is withheld.
    """
    gamma_wall: float | None = None
    call_wall: float | None = None
    put_wall: float | None = None
    key_strikes: tuple[float, ...] = ()
    zero_gamma: float | None = None
    zero_gamma_status: ZeroGammaStatus = "NO_CHAIN"
    zero_gamma_roots: tuple[float, ...] = ()
    net_gamma: float | None = None
    call_gamma: float | None = None
    put_gamma: float | None = None
    dealer_position_bias: float | None = None
    vanna_exposure: float | None = None
    charm_exposure: float | None = None


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
    """As the chain's table prints it, or as :meth:`LevelsEngine.update_spot` was told."""
    ref_px: float | None = None
    """The price that parity implies; None where no European expiry within 30 days has a parity forward."""
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
    iv_7d: float | None = None
    iv_60d: float | None = None
    call_iv_atm: float | None = None
    """Volatility at K = F of the calls' own quotes, ``maturity_days``; ``put_iv_atm`` of the puts'."""
    put_iv_atm: float | None = None
    call_put_skew: float | None = None
    """``call_iv_atm - put_iv_atm``: what parity leaves open."""
    risk_reversal_25: float | None = None
    butterfly_25: float | None = None
    option_skew: float | None = None
    iv_skew: float | None = None
    """d sigma / d ln K at K = F, ``maturity_days``; negative where puts cost more."""
    short_dated_iv_slope: float | None = None
    """(iv 30 d - iv 7 d) / 23, per day."""
    vol_term_structure_slope: float | None = None
    """iv 30 d - iv 7 d."""
    term_structure_skew: float | None = None
    """iv 60 d - iv 30 d."""
    atm_straddle_cost: float | None = None
    """(call mid + put mid) at K = F over the underlying, nearest live expiry."""
    time_to_expiry: float | None = None
    """Days to the nearest live settlement."""
    is_expiry_day: bool | None = None
    """The nearest live expiry is today in New York."""
    put_call_parity_deviation: float | None = None
    """Median of |C - P - D (F - K)| / F over the two-sided pairs near the forward."""
    option_spread_cost: float | None = None
    """Median (ask - bid) / mid of the live two-sided contracts, both types, with |ln(K/F)| <= sigma_atm sqrt(T)."""
    gex: float | None = None
    """``call_gamma + put_gamma``: unsigned, USD per 1 % move."""
    gex_slope: float | None = None
    """Change of ``net_gamma`` for a rise of the underlying by 1 %, USD per 1 % move."""
    gamma_bucket_exposure: float | None = None
    """Share of ``gex`` at strikes within 10 % of the underlying."""
    spot_gamma_corridor: float | None = None
    """Share of ``gex`` at strikes within 1 % of the underlying."""
    skewed_gamma_exposure: float | None = None
    """(gex above the underlying - gex below) / gex, in [-1, 1]."""
    gamma_notional_distribution: float | None = None
    """How evenly ``gex`` lies over the m strikes that have any: -sum p ln p / ln m of their shares p.

    1 when all hold the same, 0 when one holds everything. Of gamma in USD; ``oi_concentration`` is of contracts.
    """
    gamma_peak_distance: float | None = None
    """``gamma_wall / underlying - 1``."""
    gamma_wall_call: float | None = None
    """Strike with the largest call exposure, on either side; ``gamma_wall_put`` with the largest put exposure."""
    gamma_wall_put: float | None = None
    zero_gamma_zone_width: float | None = None
    """Highest less lowest root of the profile, points; 0 with one root."""
    dealer_zones_count: int | None = None
    """Zones of one sign of the profile within the span: roots + 1."""
    vol_trigger: float | None = None
    pinning_strike: float | None = None
    """Strike of the nearest live expiry with the largest gamma exposure."""
    delta_notional_call: float | None = None
    """USD of delta that the open calls hold; ``delta_notional_put`` that the puts hold (negative)."""
    delta_notional_put: float | None = None
    delta_exposure_ratio: float | None = None
    """``delta_notional_call / |delta_notional_put|``."""
    delta_positioning_tilt: float | None = None
    """(call + put) / (|call| + |put|) of the delta notionals, in [-1, 1]."""
    vanna_exposure: float | None = None
    """With the dealers' sign, as all that follow: USD of delta per volatility point."""
    charm_exposure: float | None = None
    """USD of delta per calendar day."""
    vanna_cliff_slope: float | None = None
    """Change of ``vanna_exposure`` for a rise of the underlying by 1 %, volatilities and F/S held: how steep the
    profile of vanna is where the underlying stands. USD of delta per volatility point, per 1 %."""
    vega_exposure: float | None = None
    """USD per volatility point."""
    theta_exposure: float | None = None
    """USD per calendar day."""
    rho_exposure: float | None = None
    """USD per 1 % of rate."""
    vomma_exposure: float | None = None
    """USD of vega (per point) per volatility point."""
    speed_exposure: float | None = None
    """USD of delta per 1 % move, per 1 % move, from the change of gamma alone."""
    ultima_exposure: float | None = None
    """USD of vomma (per point squared) per volatility point."""
    vega_bucket_ratio: float | None = None
    """Share of the unsigned vega in expiries of at most 30 days."""
    open_interest_date: dt.date | None = None
    """The close that the open interest is of."""
    open_interest_date_source: Literal["table", "rule"] | None = None
    """``rule``: the trading day before the quotes' day."""
    open_interest_calls: float | None = None
    """Contracts of live expiries; ``open_interest_puts`` puts. None where nothing is open."""
    open_interest_puts: float | None = None
    call_put_oi_ratio: float | None = None
    oi_concentration: float | None = None
    """Sum over the strikes of squared shares of the live open interest (Herfindahl), 1 / strikes to 1."""
    oi_concentration_ratio: float | None = None
    """Share of the top three strikes."""
    skewness_open_interest: float | None = None
    """Skewness of ln(K / S), weighted by the live open interest."""
    oi_peak_call_near: float | None = None
    """Strike of the nearest live expiry with the most open calls; ``oi_peak_put_near`` puts."""
    oi_peak_put_near: float | None = None
    option_volume: float | None = None
    """Contracts traded today, live expiries; None where the chain has no volume."""
    call_put_volume_ratio: float | None = None
    buckets: tuple[BucketLevels, ...] = ()
    """By expiry, from the nearest to ``all``."""
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
            elif field.name == "buckets":
                out[field.name] = [_bucket_record(bucket) for bucket in value]
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


def _bucket_record(bucket: BucketLevels) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, dt.date) else list(value) if isinstance(value, tuple) else value
        for name, value in vars(bucket).items()
    }


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
    greeks: F64  # [black.N_GREEKS, n], the call's; after update_spot its first three rows: sigma, delta, gamma
    sums: F64  # [g, 2, black.N_SUMS] of greeks times open interest as black.smile gives them
    atm: F64  # [g] volatility at K = F
    wings: F64  # [4, g] sigma of the 25-delta put and call, their ln(K/F)
    bucket_groups: tuple[int, ...]  # [b] so many of the expiries belong to the bucket; the last is all of them
    bucket_exposure: F64  # [b, 2, m] gamma exposure of calls and puts by distinct strike
    totals: F64  # [b + 1, 2, black.N_SUMS] as gamma.exposures gives them; the last: the expiries of the next 30 days
    profile_table: F64  # [gamma.N_PROFILE, n], the first profile_size of them
    bucket_rows: tuple[int, ...]  # [b] so many of its rows belong to the bucket
    log_grid: F64  # [p] ln of the prices
    bucket_profile: F64  # [b, 2, p] net gamma exposure there; the same tilted by vanna

    @property
    def exposure(self) -> F64:
        """[2, m] gamma exposure of calls and puts by distinct strike, all expiries."""
        whole: F64 = self.bucket_exposure[-1]
        return whole

    @property
    def profile_size(self) -> int:
        """Rows of ``profile_table`` that are in use."""
        return self.bucket_rows[-1]

    @property
    def profile(self) -> F64:
        """[p] net gamma exposure on ``log_grid``, all expiries."""
        whole: F64 = self.bucket_profile[-1, 0]
        return whole


@dataclass(frozen=True)
class _Counts:
    """What stands between two chains: the open interest in all, where there is a volatility, up to each expiry, ..."""

    held: float
    solved: float
    by_group: list[float]  # [g] running sums
    first: int | None  # the nearest live expiry
    near: int | None  # the nearest of them that has open interest
    parity: tuple[int, int]  # European expiries of the next 30 days, and those with a parity forward
    levels: dict[str, Any]  # and the fields that follow from the chain alone


class LevelsEngine:
    """Computes levels over and over with buffers that grow to the largest chain seen.

    Live use, one instance for one underlying::

        engine = LevelsEngine(options_config(workspace))
        levels = engine.update(chain, now_ns)             # a whole chain: forwards, volatilities, everything
        levels = engine.update_quotes(changes, now_ns)    # some contracts: their strikes are solved again
        levels = engine.update_spot(price, now_ns)        # the underlying alone: nothing is solved
        moved = engine.on_future(levels, future, price)   # on the future's scale, or the reason why not

    Each returns :class:`Levels` of their own, which later calls do not touch; ``surface`` are views that the next
    call overwrites. An error leaves the engine as it was before the call. Between two chains ``timestamp`` is
    ``now_ns`` while ``quote_time`` and ``market_time`` stay the chain's, so a chain that has grown old becomes
    DEGRADED by itself. Not for use by two threads at once.
    """

    def __init__(self, config: OptionsConfig) -> None:
        self.config = config
        self.surface: Surface | None = None
        self._layout: Layout | None = None
        self._owned = False  # bid and ask are this engine's copies
        self._centre = math.nan  # the price that the profile's grid lies around
        self._held_roots: dict[tuple[int, bool], tuple[float, ...]] = {}
        self._counts: _Counts | None = None  # what the open interest says, whatever the price
        self._quoted: dict[str, float | None] = {}  # what the quotes say at the price they were made at
        self._quoted_spot = math.nan
        self._gap: float | None = math.nan  # the underlying that parity implies over the printed one, less 1
        self._buffers: dict[str, npt.NDArray[Any]] = {}

    def update(self, chain: Chain | pl.DataFrame | None, now_ns: int | None = None) -> Levels:
        """The levels of ``chain`` as of ``now_ns`` (UTC nanoseconds).

        Parameters
        ----------
        chain
            A prepared chain, a table as :func:`mia_fast.options.chain.prepare` takes it, or None. The
            layout of a table is kept: the next one with the same contracts in the same rows is read faster.
        now_ns
            What is quoted later is unknown, and a chain older than the configured age is DEGRADED.
            None: the chain's own time, without a check of its age.

        Raises
        ------
        DataError
            The table cannot be read as a chain, or a prepared chain lies after ``now_ns``.
        """
        if isinstance(chain, pl.DataFrame):
            chain = prepare(chain, self.config, now_ns, self._layout)
            if chain is not None and chain.layout is not None:
                self._layout = chain.layout
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
        self._owned = False
        self._counts = None
        self._gap = math.nan
        self._quoted = {}
        self._quoted_spot = chain.spot
        self.surface = self._measure(self._solve(chain))
        return self._levels(self.surface, now_ns)

    def update_spot(self, spot: float, now_ns: int | None = None) -> Levels:
        """The levels after a move of the underlying alone; no volatility is solved again.

        Every strike keeps its volatility, every expiry its F/S, discount and time to settlement. So the profile and
        its roots stay where they are; they are computed anew, on a grid around the new price, once that is 1 %
        away from the middle of the grid. What the quotes alone say was true at the price they were made at and stands
        as it was until the next chain: ``call_iv_atm``, ``put_iv_atm``, ``call_put_skew``, ``atm_straddle_cost``,
        ``put_call_parity_deviation``, ``option_spread_cost``, and all that counts contracts.

        Parameters
        ----------
        spot
            The underlying's price on the chain's own scale (a future's price less the basis).
        now_ns
            As in :meth:`update`; the times to settlement stay those of the chain's market time.

        Raises
        ------
        DataError
            There is no chain yet, or the price is not finite and positive.
        """
        held = self._held()
        if not (math.isfinite(spot) and spot > 0.0):
            raise DataError(
                f"is {spot}",
                where="update_spot(spot)",
                hint="pass the price of the chain's underlying",
                then="the levels stand as they were",
            )
        held.terms[black.FORWARD] *= spot / held.chain.spot
        chain = dataclasses.replace(held.chain, spot=spot)
        held = self._reprice(held, chain, rows=black.GAMMA + 1)
        kept = abs(spot / self._centre - 1.0) <= _KEPT
        self.surface = self._measure(held, same_profile=kept)
        return self._levels(self.surface, now_ns)

    def update_quotes(self, changes: pl.DataFrame, now_ns: int | None = None) -> Levels:
        """The levels after new quotes for some contracts: only their strikes are solved again.

        Forwards, discounts and times to settlement stand as the last whole chain gave them, the forwards moved with
        :meth:`update_spot`; the next :meth:`update` fits them anew. Where the price has moved since the whole chain,
        quotes of two prices lie side by side, and what rests on them stands as :meth:`update_spot` says.

        Parameters
        ----------
        changes
            ``root``, ``expiry``, ``strike``, ``type``, ``bid``, ``ask``: one row per contract of the chain.
        now_ns
            As in :meth:`update`.

        Raises
        ------
        DataError
            There is no chain yet, a column is missing, or a contract is not in the chain.
        """
        held = self._held()
        chain = held.chain
        side, row = self._locate(chain, changes)
        bid, ask = numbers(changes, "bid"), numbers(changes, "ask")
        if not self._owned:
            chain = dataclasses.replace(chain, bid=chain.bid.copy(), ask=chain.ask.copy(), stale=chain.stale.copy())
            self._owned = True
        chain.bid[side, row] = bid
        chain.ask[side, row] = ask
        chain.stale[side, row] = 0
        rows = np.unique(row)
        strike, group = chain.strike[rows], chain.group[rows]
        status = np.empty((2, rows.size), np.int8)
        strike_status = np.empty(rows.size, np.int8)
        price = np.empty(rows.size)
        greeks = np.empty((black.N_GREEKS, rows.size))
        black.otm_prices(
            np.ascontiguousarray(chain.bid[:, rows]),
            np.ascontiguousarray(chain.ask[:, rows]),
            np.ascontiguousarray(chain.listed[:, rows]),
            np.ascontiguousarray(chain.stale[:, rows]),
            strike,
            group,
            held.terms,
            status,
            price,
            strike_status,
        )
        black.smile(
            price,
            strike,
            group,
            held.terms,
            chain.spot,
            greeks,
            strike_status,
            np.empty((2, 0)),
            np.empty((len(chain.root), 2, black.N_SUMS)),
        )
        held.status[:, rows] = status
        held.strike_status[rows] = strike_status
        held.greeks[black.SIGMA, rows] = greeks[black.SIGMA]
        held = self._reprice(held, chain, rows=black.N_GREEKS)
        self._counts = None
        if chain.spot == self._quoted_spot:
            self._quoted = {}
        self.surface = self._measure(held)
        return self._levels(self.surface, now_ns)

    def on_future(self, levels: Levels, future_price: float, underlying_price_at_market_time: float) -> FutureLevels:
        """:func:`on_future` with the desk's ``basis_limit``."""
        return on_future(levels, future_price, underlying_price_at_market_time, limit=self.config.basis_limit)

    def _reprice(self, held: Surface, chain: Chain, *, rows: int) -> Surface:
        """The first rows of the greeks, and the sums of all, at the volatilities that are known."""
        greeks = self._buffer("greeks", (black.N_GREEKS, chain.strike.size))[:rows]
        sigma, sums = held.greeks[black.SIGMA], held.sums
        black.reprice(sigma, chain.strike, chain.group, held.terms, chain.spot, greeks, chain.interest, sums)
        return dataclasses.replace(held, chain=chain, greeks=greeks)

    def _held(self) -> Surface:
        if self.surface is None:
            raise DataError(
                "there is no chain to bring up to date",
                where="levels engine",
                hint="call update with a whole chain first",
                then="no levels were computed",
            )
        return self.surface

    def _locate(self, chain: Chain, changes: pl.DataFrame) -> tuple[I64, I64]:
        """Side and row of each changed contract."""
        wanted = ("root", "expiry", "strike", "type", "bid", "ask")
        missing = [name for name in wanted if name not in changes.columns]
        if missing or chain.layout is None:
            raise DataError(
                f"columns missing: {', '.join(missing)}" if missing else "the chain held several snapshots",
                where="update_quotes(changes)",
                hint=f"pass {', '.join(wanted)}, after a chain of one snapshot",
                then="the levels stand as they were",
            )
        index = chain.layout.index
        milli = np.rint(numbers(changes, "strike") * 1000.0).tolist()
        keys = zip(
            changes["root"].to_list(), changes["expiry"].to_list(), milli, changes["type"].to_list(), strict=True
        )
        found = [index.get(key) for key in keys]
        if None in found:
            unknown = changes.row(found.index(None), named=True)
            raise DataError(
                f"{unknown['root']} {unknown['expiry']} {unknown['strike']:g} {unknown['type']} is not in the chain",
                where=f"update_quotes(changes) row {found.index(None)}",
                hint="a contract enters with the next whole chain",
                then="the levels stand as they were",
            )
        places = np.array(found, dtype=np.int64).reshape(-1, 2)
        return places[:, 0], places[:, 1]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type = np.float64) -> npt.NDArray[Any]:
        size = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.size < size:
            held = self._buffers[name] = np.empty(size + size // 4, dtype)
        return held[:size].reshape(shape)

    def _solve(self, chain: Chain) -> Surface:
        """Forwards, discounts, volatilities and greeks."""
        n, g = chain.strike.size, len(chain.root)
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
        sums = self._buffer("sums", (g, 2, black.N_SUMS))
        black.smile(price, chain.strike, chain.group, terms, chain.spot, greeks, strike_status, chain.interest, sums)
        nothing = greeks[0, :0]
        return Surface(
            chain=chain,
            terms=terms,
            source=source,
            pairs=pairs,
            status=status,
            strike_status=strike_status,
            greeks=greeks,
            sums=sums,
            atm=nothing,
            wings=nothing,
            bucket_groups=(),
            bucket_exposure=nothing,
            totals=nothing,
            profile_table=nothing,
            bucket_rows=(),
            log_grid=nothing,
            bucket_profile=nothing,
        )

    def _measure(self, found: Surface, *, same_profile: bool = False) -> Surface:
        """All that follows from the volatilities and the underlying's price."""
        chain, config, terms = found.chain, self.config, found.terms
        n, g, m = chain.strike.size, len(chain.root), chain.levels.size
        sigma = found.greeks[black.SIGMA]
        atm = self._buffer("atm", (g,))
        black.atm_volatility(
            sigma, found.strike_status, chain.strike, chain.start, terms, config.forward.moneyness_band, atm
        )
        wings = self._buffer("wings", (4, g))
        black.wings(found.greeks, found.strike_status, chain.strike, chain.start, terms, _DELTA, wings)
        groups = found.bucket_groups or self._bucket_groups(chain)
        month = int(np.searchsorted(chain.years, _NEAR_DAYS / 365.0, side="right"))
        totals = self._buffer("totals", (len(groups) + 1, 2, black.N_SUMS))
        gamma.exposures(found.sums, terms, chain.multiplier, np.array((*groups, month)), chain.spot, totals)
        exposure = self._buffer("exposure", (len(groups), 2, m))
        scale = chain.multiplier * (chain.spot * chain.spot * 0.01)
        gamma.exposure_by_strike(
            found.greeks[black.GAMMA],
            found.strike_status,
            chain.level,
            chain.start,
            np.array(groups),
            chain.interest,
            scale,
            exposure,
        )
        if same_profile:
            return dataclasses.replace(
                found, atm=atm, wings=wings, bucket_groups=groups, bucket_exposure=exposure, totals=totals
            )
        slope = (wings[1] - wings[0]) / (wings[3] - wings[2])
        response = np.nan_to_num(slope * config.vol_trigger.spot_response)
        call_sign, put_sign = SIGNS[config.sign_convention]
        table = self._buffer("table", (gamma.N_PROFILE, n))
        ends = self._buffer("ends", (g,), np.int64)
        gamma.profile_terms(
            sigma,
            found.strike_status,
            chain.strike,
            chain.group,
            chain.interest,
            terms,
            chain.multiplier,
            chain.spot,
            call_sign,
            put_sign,
            response,
            table,
            ends,
        )
        rows = tuple(int(ends[count - 1]) if count else 0 for count in groups)
        grid, profile = self._profiles(chain, atm, table, rows)
        self._centre = chain.spot
        self._held_roots.clear()
        return dataclasses.replace(
            found,
            atm=atm,
            wings=wings,
            bucket_groups=groups,
            bucket_exposure=exposure,
            totals=totals,
            profile_table=table,
            bucket_rows=rows,
            log_grid=grid,
            bucket_profile=profile,
        )

    def _bucket_groups(self, chain: Chain) -> tuple[int, ...]:
        """How many expiries each bucket holds: they are in order of settlement, so a bucket is the first so many."""
        today = new_york_date(chain.market_time_ns)
        days = [(expiry - today).days for expiry in chain.expiry]
        counts = [bisect.bisect_right(days, limit) for limit in self.config.buckets.values()]
        return (*counts, len(days))

    def _profiles(self, chain: Chain, atm: F64, table: F64, rows: tuple[int, ...]) -> tuple[F64, F64]:
        """The grid in ln L, finer around S when an expiry is near, and each bucket's two profiles on it."""
        about = self.config.profile
        step = math.log1p(about.step)
        low, high = math.log1p(-about.span), math.log1p(about.span)
        below, above = math.floor(-low / step), math.floor(high / step)
        parts = [(-below * step, step, below + above + 1)]
        known = np.flatnonzero((chain.years > 0.0) & np.isfinite(atm))
        if known.size:
            nearest = int(known[0])
            fine = 0.5 * float(atm[nearest]) * math.sqrt(float(chain.years[nearest]))
            if fine < step:
                count = math.ceil(2.0 * about.near_widths)
                parts.append((-(count - 0.5) * fine, fine, 2 * count))
        middle = math.log(chain.spot)
        size = sum(count for *_, count in parts)
        grid = np.empty(size)
        profile = np.zeros((len(rows), 2, size))
        at = 0
        for offset, width, count in parts:
            whole = np.empty((2, -(-count // 16) * 16))
            first = 0
            for index, last in enumerate(rows):
                if last > first:
                    gamma.profiles(table, first, last, middle + offset, width, whole)
                    profile[index:, :, at : at + count] += whole[:, :count]
                first = last
            grid[at : at + count] = middle + offset + width * np.arange(count)
            at += count
        if len(parts) > 1:
            order = np.argsort(grid, kind="stable")
            return grid[order], profile[:, :, order]
        return grid, profile

    def _levels(self, surface: Surface, now_ns: int | None) -> Levels:
        chain = surface.chain
        live = chain.years > 0.0
        if self._counts is None:
            self._counts = self._counted(surface, live)
        counted = self._counts
        coverage = counted.solved / counted.held if counted.held > 0.0 else None
        if self._gap is not None and math.isnan(self._gap):
            self._gap = self._underlying_gap(surface)
        walls = self._walls(surface)
        reasons = self._reasons(surface, now_ns, counted, coverage, walls[-1][gamma.CALLS] + walls[-1][gamma.PUTS])
        first = counted.first
        common: dict[str, Any] = {
            "timestamp_ns": chain.quote_time_ns if now_ns is None else now_ns,
            "underlying_price": chain.spot,
            "coverage": coverage,
            "ref_px": None if self._gap is None else chain.spot * (1.0 + self._gap),
            **counted.levels,
            **self._peaks(chain, counted.near),
            **self._volatility_levels(surface, first),
        }
        buckets = self._buckets(surface, live, counted, walls, withheld=bool(reasons))
        if reasons:
            return Levels(status="DEGRADED", reasons=reasons, zero_gamma_status="DEGRADED", buckets=buckets, **common)
        on_gamma = self._gamma_levels(surface, buckets[-1], walls[-1], first)
        return Levels(status="OK", buckets=buckets, **common, **on_gamma)

    def _counted(self, surface: Surface, live: npt.NDArray[np.bool_]) -> _Counts:
        """What open interest and volume alone say, over the live expiries; no price enters but the quotes' status."""
        chain = surface.chain
        g, m = len(chain.root), chain.levels.size
        figures = self._buffer("counted", (g, 6))
        by_strike = self._buffer("interest_by_strike", (m,))
        gamma.count_contracts(
            chain.interest,
            chain.interest if chain.volume is None else chain.volume,
            chain.listed,
            surface.status,
            surface.strike_status,
            chain.start,
            chain.level,
            chain.years,
            figures,
            by_strike,
        )
        calls, puts, solved, listed, quoted, traded_calls = figures[live].sum(axis=0).tolist()
        held = calls + puts
        first = int(np.argmax(live)) if live.any() else None
        seconds = None if first is None else float(chain.settle_ns[first] - chain.market_time_ns) / NS_PER_SECOND
        levels: dict[str, Any] = {
            "notes": self._notes(surface, live),
            "quote_time_ns": chain.quote_time_ns,
            "market_time_ns": chain.market_time_ns,
            "roots": tuple(sorted(set(chain.root))),
            "sign_convention": self.config.sign_convention,
            "nearest_expiry": None if first is None else chain.expiry[first],
            "expiries_live": int(live.sum()),
            "forward_fallbacks": int((surface.source == black.FROM_RATES).sum()),
            "open_interest_date": chain.interest_date,
            "open_interest_date_source": "table" if chain.interest_dated else "rule",
            "time_to_expiry": None if seconds is None else seconds / 86400.0,
            "is_expiry_day": None if first is None else chain.expiry[first] == new_york_date(chain.market_time_ns),
            "contracts": round(float(figures[:, 3].sum())),
            "contracts_live": round(listed),
            "contracts_two_sided": round(quoted),
            "open_interest_calls": calls,
            "open_interest_puts": puts,
            "call_put_oi_ratio": _ratio(calls, puts),
        }
        if held > 0.0:
            levels["open_interest_calls"], levels["open_interest_puts"] = calls, puts
            share = by_strike / held
            top = np.partition(share, -3)[-3:] if m > 3 else share
            x = np.log(chain.levels / chain.spot)
            x = x - float(share @ x)
            square = x * x
            spread = float(share @ square)
            levels["oi_concentration"] = float(share @ share)
            levels["oi_concentration_ratio"] = float(top.sum())
            levels["skewness_open_interest"] = float(share @ (square * x)) / spread**1.5 if spread > 1e-18 else None
        if chain.volume is not None:
            traded = float(chain.volume[:, live[chain.group]].sum()) if not live.all() else float(chain.volume.sum())
            levels["option_volume"] = traded
            levels["call_put_volume_ratio"] = _ratio(traded_calls, traded - traded_calls)
        near = np.flatnonzero(live & (figures[:, 0] + figures[:, 1] > 0.0))
        if near.size:
            group = int(near[0])
            rows = slice(int(chain.start[group]), int(chain.start[group + 1]))
            pain = np.empty(1)
            interest = np.ascontiguousarray(chain.interest[:, rows])
            gamma.max_pain(chain.strike[rows], np.array([0, interest.shape[1]]), interest, pain)
            levels["max_pain"] = _number(pain[0])
            levels["max_pain_expiry"] = chain.expiry[group]
        by_group = np.cumsum(np.where(live, figures[:, 0] + figures[:, 1], 0.0)).tolist()
        european = (chain.european == 1) & (chain.years < _NEAR_DAYS / 365.0) & live
        parity = int(european.sum()), int((european & (surface.source == black.FROM_PARITY)).sum())
        return _Counts(held, solved, by_group, first, int(near[0]) if near.size else None, parity, levels)

    def _peaks(self, chain: Chain, near: int | None) -> dict[str, float | None]:
        """Where the nearest expiry's open interest is largest; a tie goes to the strike nearest the price."""
        if near is None:
            return {}
        rows = slice(int(chain.start[near]), int(chain.start[near + 1]))
        return {
            name: _largest(chain.interest[side, rows], chain.strike[rows], chain.spot)
            for side, name in enumerate(("oi_peak_call_near", "oi_peak_put_near"))
        }

    def _quote_levels(self, surface: Surface, first: int | None, target: float) -> dict[str, float | None]:
        """What the quotes of calls and puts say at the price they were made at."""
        chain = surface.chain
        g, n = len(chain.root), chain.strike.size
        band = self.config.forward.moneyness_band
        sides = self._buffer("sides", (2, g))
        straddle = self._buffer("straddle", (g,))
        black.atm_sides(
            chain.bid, chain.ask, surface.status, chain.strike, chain.start, surface.terms, band, sides, straddle
        )
        values = self._buffer("values", (2 * n,))
        count = black.parity_deviation(
            chain.bid, chain.ask, surface.status, chain.strike, chain.start, surface.terms, surface.source, band, values
        )
        deviation = _median(values[:count])
        count = black.relative_spreads(
            chain.bid, chain.ask, chain.stale, chain.strike, chain.start, surface.terms, surface.atm, values
        )
        found = np.empty((2, 1))
        black.constant_maturity(chain.years, sides, np.array([target]), found)
        call, put = _number(found[0, 0]), _number(found[1, 0])
        cost = None if first is None else _number(straddle[first])
        return {
            "call_iv_atm": call,
            "put_iv_atm": put,
            "call_put_skew": _difference(call, put),
            "atm_straddle_cost": None if cost is None else cost / chain.spot,
            "put_call_parity_deviation": deviation,
            "option_spread_cost": _median(values[:count]),
        }

    def _volatility_levels(self, surface: Surface, first: int | None) -> dict[str, Any]:
        """What the volatilities alone say."""
        chain, config = surface.chain, self.config
        days = np.array([config.volatility.maturity_days, 7.0, 30.0, 60.0])
        targets = days * 86400.0 / config.time.seconds_per_year
        if not self._quoted:
            self._quoted = self._quote_levels(surface, first, float(targets[0]))
        skew = black.smile_slope(
            surface.greeks[black.SIGMA],
            surface.strike_status,
            chain.strike,
            chain.start,
            surface.terms,
            surface.atm,
            float(targets[0]),
            np.empty(2),
        )
        curves = self._buffer("curves", (3, surface.atm.size))
        curves[0] = surface.atm
        curves[1:] = surface.wings[:2]
        found = np.empty((3, 4))
        black.constant_maturity(chain.years, curves, targets, found)
        table = [[None if math.isnan(value) else value for value in row] for row in found.tolist()]
        atm, week, month, two = table[0]
        put, call = (row[0] for row in table[1:])
        reversal = _difference(call, put)
        return {
            **self._quoted,
            "iv_atm": atm,
            "iv_atm_nearest": None if first is None else _number(surface.atm[first]),
            "iv_7d": week,
            "iv_60d": two,
            "risk_reversal_25": reversal,
            "butterfly_25": None if atm is None or call is None or put is None else 0.5 * (call + put) - atm,
            "option_skew": None if reversal is None or atm is None else -reversal / atm,
            "iv_skew": _number(skew),
            "short_dated_iv_slope": None if month is None or week is None else (month - week) / 23.0,
            "vol_term_structure_slope": _difference(month, week),
            "term_structure_skew": _difference(two, month),
        }

    def _walls(self, surface: Surface) -> list[list[float]]:
        """Of each bucket the places that :func:`mia_kernels.gamma.walls` fills."""
        out = np.empty((len(surface.bucket_groups), gamma.N_WALLS))
        gamma.walls(surface.bucket_exposure, surface.chain.levels, surface.chain.spot, out)
        found: list[list[float]] = out.tolist()
        return found

    def _buckets(
        self,
        surface: Surface,
        live: npt.NDArray[np.bool_],
        counted: _Counts,
        walls: list[list[float]],
        *,
        withheld: bool,
    ) -> tuple[BucketLevels, ...]:
        """Each bucket's levels; those that rest on gamma only where ``withheld`` is not set."""
        chain, spot = surface.chain, surface.chain.spot
        found = []
        width = surface.atm * surface.terms[black.ROOT_YEARS]
        reach = np.where(np.isfinite(width), _NEAR_WIDTHS * width, math.inf)
        covered_near = self._buffer("near", (live.size, 2))
        gamma.count_near(
            chain.interest,
            surface.strike_status,
            chain.strike,
            chain.start,
            chain.years,
            surface.terms[black.FORWARD],
            reach,
            covered_near,
        )
        sums = np.cumsum(covered_near, axis=0).tolist()
        signs = SIGNS[self.config.sign_convention]
        for index, name in enumerate((*self.config.buckets, "all")):
            groups = surface.bucket_groups[index]
            placed = walls[index]
            inside = np.flatnonzero(live[:groups])
            held = counted.by_group[groups - 1] if groups else 0.0
            near, near_solved = sums[groups - 1] if groups else (0.0, 0.0)
            about: dict[str, Any] = {
                "name": name,
                "last_expiry": chain.expiry[int(inside[-1])] if inside.size else None,
                "expiries": int(inside.size),
                "open_interest": held,
                "coverage_near": near_solved / near if near > 0.0 else None,
            }
            call_gamma, put_gamma = placed[gamma.CALLS], placed[gamma.PUTS]
            gross = call_gamma + put_gamma
            covered = near > 0.0 and near_solved / near >= self.config.quality.coverage_threshold
            if withheld or not covered or not gross > 0.0:
                found.append(BucketLevels(zero_gamma_status="DEGRADED" if held > 0.0 else "NO_CHAIN", **about))
                continue
            net = signs[0] * call_gamma + signs[1] * put_gamma
            roots = self._roots(surface, index, tilted=False)
            status: ZeroGammaStatus = "OK"
            if not roots:
                status = "NO_CROSSING_POS" if net > 0.0 else "NO_CROSSING_NEG"
            keys = [key for key in placed[gamma.KEYS : gamma.KEYS + 5] if not math.isnan(key)]
            calls, puts = surface.totals[index].tolist()
            found.append(
                BucketLevels(
                    gamma_wall=keys[0],
                    call_wall=_number(placed[gamma.CALL_WALL]),
                    put_wall=_number(placed[gamma.PUT_WALL]),
                    key_strikes=tuple(keys),
                    zero_gamma=_nearest(roots, spot),
                    zero_gamma_status=status,
                    zero_gamma_roots=roots,
                    net_gamma=net,
                    call_gamma=call_gamma,
                    put_gamma=put_gamma,
                    dealer_position_bias=(call_gamma - put_gamma) / gross,
                    vanna_exposure=(signs[0] * calls[black.VANNA] + signs[1] * puts[black.VANNA]) * spot * 0.01,
                    charm_exposure=(signs[0] * calls[black.CHARM] + signs[1] * puts[black.CHARM]) * spot / _DAYS,
                    **about,
                )
            )
        return tuple(found)

    def _gamma_levels(
        self, surface: Surface, whole: BucketLevels, placed: list[float], first: int | None
    ) -> dict[str, Any]:
        """What rests on gamma and the other greeks, over all expiries; ``whole`` is the last bucket."""
        chain, spot = surface.chain, surface.chain.spot
        gross = placed[gamma.CALLS] + placed[gamma.PUTS]
        keys = [*whole.key_strikes, *[None] * (5 - len(whole.key_strikes))]
        signs = SIGNS[self.config.sign_convention]
        calls, puts = surface.totals[-2].tolist()
        near_calls, near_puts = surface.totals[-1].tolist()
        signed = [signs[0] * call + signs[1] * put for call, put in zip(calls, puts, strict=True)]
        delta_call, delta_put = calls[black.DELTA] * spot, puts[black.DELTA] * spot
        sums = np.empty(2)
        gamma.net_at(surface.profile_table, surface.profile_size, math.log(spot), sums)
        pin = None
        if first is not None:
            rows = slice(int(chain.start[first]), int(chain.start[first + 1]))
            solved = surface.strike_status[rows] == black.OK
            held = chain.interest[0, rows] + chain.interest[1, rows]
            weight = np.where(solved, surface.greeks[black.GAMMA, rows], 0.0) * held
            pin = _largest(weight, chain.strike[rows], spot)
        roots = whole.zero_gamma_roots
        return {
            **{name: getattr(whole, name) for name in _SHARED},
            **{f"key_strikes_{index + 1}": strike for index, strike in enumerate(keys)},
            "zero_gamma_zone_width": roots[-1] - roots[0] if roots else None,
            "dealer_zones_count": len(roots) + 1,
            "vol_trigger": _nearest(self._roots(surface, -1, tilted=True), spot),
            "gex": gross,
            "gex_slope": float(sums[1]) * 0.01,
            "gamma_bucket_exposure": placed[gamma.WITHIN_10] / gross,
            "spot_gamma_corridor": placed[gamma.WITHIN_1] / gross,
            "gamma_notional_distribution": _number(gamma.evenness(surface.exposure)),
            "skewed_gamma_exposure": (placed[gamma.ABOVE] - placed[gamma.BELOW]) / gross,
            "gamma_peak_distance": None if whole.gamma_wall is None else whole.gamma_wall / spot - 1.0,
            "gamma_wall_call": _number(placed[gamma.CALL_PEAK]),
            "gamma_wall_put": _number(placed[gamma.PUT_PEAK]),
            "pinning_strike": pin,
            "delta_notional_call": delta_call,
            "delta_notional_put": delta_put,
            "delta_exposure_ratio": _ratio(delta_call, abs(delta_put)),
            "delta_positioning_tilt": _ratio(delta_call + delta_put, abs(delta_call) + abs(delta_put)),
            "vanna_cliff_slope": (signed[black.VANNA] * spot + signed[black.VANNA_SLOPE]) * 1e-4,
            "vega_exposure": signed[black.VEGA] * 0.01,
            "theta_exposure": signed[black.THETA] / _DAYS,
            "rho_exposure": signed[black.RHO] * 0.01,
            "vomma_exposure": signed[black.VOMMA] * 1e-4,
            "speed_exposure": signed[black.SPEED] * spot**3 * 1e-4,
            "ultima_exposure": signed[black.ULTIMA] * 1e-6,
            "vega_bucket_ratio": _ratio(
                near_calls[black.VEGA] + near_puts[black.VEGA], calls[black.VEGA] + puts[black.VEGA]
            ),
        }

    def _roots(self, surface: Surface, bucket: int, *, tilted: bool) -> tuple[float, ...]:
        held = self._held_roots.get((bucket, tilted))
        if held is not None:
            return held
        places = self._buffer("roots", (surface.log_grid.size,))
        values = surface.bucket_profile[bucket, int(tilted)]
        size = np.abs(values)
        values = np.where(size > _TAIL * size.max(), values, 0.0)
        count = gamma.sign_changes(
            surface.profile_table, surface.bucket_rows[bucket], surface.log_grid, values, tilted, places
        )
        roots = self._held_roots[bucket, tilted] = tuple(places[:count].tolist())
        return roots

    def _reasons(
        self,
        surface: Surface,
        now_ns: int | None,
        counted: _Counts,
        coverage: float | None,
        gross: float,
    ) -> tuple[str, ...]:
        """Why the levels that rest on gamma are withheld."""
        chain, limits = surface.chain, self.config.quality
        found = []
        if counted.first is None:
            found.append(f"CHAIN_EXPIRED: market_time={iso(chain.market_time_ns)}")
        elif coverage is None:
            found.append("OPEN_INTEREST_ZERO: contracts=0")
        elif coverage < limits.coverage_threshold:
            found.append(f"COVERAGE_LOW: coverage={coverage:.4f} threshold={limits.coverage_threshold:g}")
        elif not gross > 0.0:
            found.append("GAMMA_ZERO: exposure=0")
        if now_ns is not None:
            age = (now_ns - chain.market_time_ns) / NS_PER_SECOND
            if age > limits.max_chain_age_seconds:
                found.append(f"CHAIN_STALE: age_seconds={age:.0f} limit={limits.max_chain_age_seconds:g}")
        gap = self._gap
        if gap is not None and abs(gap) > limits.max_underlying_gap:
            found.append(f"UNDERLYING_GAP: gap={gap:+.4f} limit={limits.max_underlying_gap:g}")
        quoted, confirmed = counted.parity
        if quoted >= _ENOUGH_EXPIRIES and 2 * confirmed < quoted:
            # Parity fails on many expiries at once when the printed underlying is far off: no gap can then be measured.
            found.append(f"UNDERLYING_UNCONFIRMED: parity={confirmed} of={quoted}")
        return tuple(found)

    def _underlying_gap(self, surface: Surface) -> float | None:
        """Median over near expiries of the underlying that parity implies, over the printed one, less 1."""
        chain = surface.chain
        near = (surface.source == black.FROM_PARITY) & (chain.years < _NEAR_DAYS / 365.0)
        drift = (chain.rate - chain.dividend_yield)[near] * chain.years[near]
        implied = _median(surface.terms[black.FORWARD, near] * np.exp(-drift))
        return None if implied is None else implied / chain.spot - 1.0

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
    unpriced: dict[str, Any] = dict.fromkeys(_BUCKET_PRICES)
    withheld = dataclasses.replace(
        levels,
        zero_gamma_roots=(),
        buckets=tuple(
            dataclasses.replace(bucket, key_strikes=(), zero_gamma_roots=(), **unpriced) for bucket in levels.buckets
        ),
        **nothing,
    )
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

    def shifted(held: Levels | BucketLevels, names: tuple[str, ...]) -> dict[str, Any]:
        moved: dict[str, Any] = {
            name: None if (value := getattr(held, name)) is None else value + basis for name in names
        }
        moved["zero_gamma_roots"] = tuple(root + basis for root in held.zero_gamma_roots)
        return moved

    buckets = tuple(
        dataclasses.replace(
            bucket,
            key_strikes=tuple(key + basis for key in bucket.key_strikes),
            **shifted(bucket, _BUCKET_PRICES),
        )
        for bucket in levels.buckets
    )
    moved = dataclasses.replace(levels, buckets=buckets, **shifted(levels, PRICE_LEVELS))
    return FutureLevels(levels=moved, basis=basis, status="OK")


def _largest(values: F64, strikes: F64, spot: float) -> float | None:
    """The strike with the largest positive value."""
    out = np.empty(1)
    gamma.largest(values, strikes, spot, 0.0, math.inf, out)
    return _number(out[0])


def _median(values: F64) -> float | None:
    """The middle value, None of none; ``values`` may be reordered."""
    n = values.size
    if n == 0:
        return None
    values.partition((n - 1) // 2)
    lower = float(values[(n - 1) // 2])
    return lower if n % 2 else 0.5 * (lower + float(values[n // 2 :].min()))


def _nearest(roots: tuple[float, ...], spot: float) -> float | None:
    return min(roots, key=lambda root: (abs(root - spot), root)) if roots else None


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0.0 else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
