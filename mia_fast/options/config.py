"""``config/options.yaml``: conventions and limits of the dealer levels."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import Field, field_validator

from mia_fast.config import Model, load
from mia_fast.workspace import Workspace

SIGNS: dict[str, tuple[float, float]] = {
    "dealers_long_calls_short_puts": (1.0, -1.0),
    "dealers_short_calls_long_puts": (-1.0, 1.0),
    "dealers_short_all": (-1.0, -1.0),
    "dealers_long_all": (1.0, 1.0),
}


class Time(Model):
    """Day count and settlement."""

    seconds_per_year: float = Field(gt=0, description="T = seconds to settlement / this")
    floor_seconds: float = Field(gt=0, description="least T of a live contract, s")
    early_close_rule: Literal["us_equity", "none"] = Field(description="rule for PM settlement at 13:00 New York")
    early_closes: tuple[dt.date, ...] = Field(description="further days with PM settlement at 13:00 New York")


class Forward(Model):
    """Put-call parity and what stands in for it."""

    rate: float = Field(ge=-0.2, le=1, description="r of the fallback, continuously compounded per year")
    dividend_yield: float = Field(ge=-0.2, le=1, description="q of the fallback, continuously compounded per year")
    moneyness_band: float = Field(gt=0, lt=1, description="pairs with |K/S - 1| below this are used")
    min_pairs: int = Field(ge=3, description="fewest pairs per (root, expiry)")


class Quality(Model):
    """When a chain is too poor, too old or too inconsistent to take levels from."""

    coverage_threshold: float = Field(ge=0, le=1, description="least share of open interest with a volatility")
    stale_quote_seconds: float = Field(gt=0, description="lag behind the chain that makes a contract STALE, s")
    max_chain_age_seconds: float = Field(gt=0, description="oldest usable chain, s")
    max_underlying_gap: float = Field(gt=0, lt=1, description="|price implied by parity / printed price - 1|")


class Profile(Model):
    """The grid on which the gamma profile is evaluated."""

    span: float = Field(gt=0, lt=1, description="half-width, fraction of S")
    step: float = Field(gt=0, lt=0.1, description="fraction of S")
    near_widths: float = Field(gt=0, le=20, description="half-width of the fine zone, in S sigma sqrt(T_min)")


class Volatility(Model):
    """At-the-money volatility."""

    maturity_days: float = Field(gt=0, description="constant maturity of iv_atm, calendar days")


class VolTrigger(Model):
    """The volatility trigger, a proxy: how volatilities are assumed to follow the underlying."""

    spot_response: float = Field(
        ge=-3, le=3, description="d sigma(K) / d ln S over the smile's slope: 0 sticky strike, 1 implied tree"
    )


class Root(Model):
    """What the root of an option symbol implies."""

    multiplier: float = Field(gt=0, description="USD per point and contract")
    settlement: Literal["AM", "PM"] = Field(description="where the chain does not say")
    exercise: Literal["european", "american"]
    carry: Literal["spot", "future"] = Field(default="spot", description="future: F = S in the fallback")


class OptionsConfig(Model):
    """``config/options.yaml``."""

    sign_convention: Literal[
        "dealers_long_calls_short_puts", "dealers_short_calls_long_puts", "dealers_short_all", "dealers_long_all"
    ]
    time: Time
    forward: Forward
    quality: Quality
    profile: Profile
    volatility: Volatility
    vol_trigger: VolTrigger
    buckets: dict[str, int] = Field(description="name: days to expiry up to which an expiry is counted")
    basis_limit: float = Field(gt=0, lt=1, description="largest |future / underlying - 1| that levels are moved by")
    roots: dict[str, Root]

    @field_validator("buckets")
    @classmethod
    def _widening(cls, value: dict[str, int]) -> dict[str, int]:
        days = list(value.values())
        if "all" in value or any(day < 0 for day in days) or sorted(set(days)) != days:
            raise ValueError("name the buckets from the nearest to the furthest, days from 0 up; 'all' is always there")
        return value


def options_config(workspace: Workspace) -> OptionsConfig:
    """The desk's ``options.yaml``."""
    return load(OptionsConfig, workspace.config("options.yaml"))
