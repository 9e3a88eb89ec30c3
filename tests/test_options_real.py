"""Dealer levels on real exchange chains, against the slow twin and the vendor's own figures."""

from __future__ import annotations

import polars as pl
import pytest
from naive_options import assert_fields, naive_fields, naive_levels
from test_options_levels import CONFIG, assert_agree

from mia_fast.options import LevelsEngine, recalculate_levels
from mia_kernels import black

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["spx_20220323_1011", "spx_20230914", "spx_20230904_gth", "spy_20230914"])
def test_levels_of_a_real_chain(real_data, name):
    frame = pl.read_parquet(real_data / "options" / f"{name}.parquet")
    levels = LevelsEngine(CONFIG).update(frame)
    assert levels.status == "OK"
    assert levels.contracts == frame.height
    assert levels.coverage > 0.85
    slow = naive_levels(frame.to_dicts(), american=name.startswith("spy"))
    assert_agree(levels, slow, spot=levels.underlying_price)
    if name.startswith("spx"):  # an American root has no parity forward by design
        assert levels.forward_fallbacks <= 3


@pytest.mark.parametrize("name", ["spx_20220323_1011", "spx_20230914", "spx_20230904_gth", "spy_20230914"])
def test_every_field_of_a_real_chain(real_data, name):
    frame = pl.read_parquet(real_data / "options" / f"{name}.parquet")
    levels = LevelsEngine(CONFIG).update(frame)
    assert_fields(levels, naive_fields(frame.to_dicts(), american=name.startswith("spy")))


def test_the_degraded_chain_yields_no_flip(real_data):
    levels = LevelsEngine(CONFIG).update(pl.read_parquet(real_data / "options" / "spx_20221212.parquet"))
    assert levels.status == "DEGRADED"
    assert levels.reasons == (
        "COVERAGE_LOW: coverage=0.0359 threshold=0.6",
        "UNDERLYING_UNCONFIRMED: parity=0 of=21",
    )
    assert levels.zero_gamma is None
    assert levels.zero_gamma_status == "DEGRADED"
    assert levels.gamma_wall is levels.dealer_position_bias is levels.net_gamma is None


def test_the_vendor_agrees(real_data):
    frame = pl.read_parquet(real_data / "options" / "spx_20220323_1011.parquet")
    engine = LevelsEngine(CONFIG)
    engine.update(frame)
    surface = engine.surface
    chain = surface.chain
    ours = pl.DataFrame(
        {
            "root": [chain.root[g] for g in chain.group],
            "expiry": [chain.expiry[g] for g in chain.group],
            "strike": chain.strike,
            "forward": surface.terms[black.FORWARD, chain.group],
            "years": chain.years[chain.group],
            "our_iv": surface.greeks[black.SIGMA],
            "our_gamma": surface.greeks[black.GAMMA],
        }
    )
    both = frame.join(ours, on=["root", "expiry", "strike"]).filter(
        pl.col("our_iv").is_not_nan()
        & (pl.col("iv") > 0)
        & ((pl.col("type") == "P") == (pl.col("strike") < pl.col("forward")))
        & ((pl.col("strike") / pl.col("forward") - 1).abs() < 0.1)
        & pl.col("years").is_between(7 / 365, 1)
    )
    assert both.height > 3000
    gap = (both["our_iv"] - both["iv"]).abs()  # the vendor rounds to 4 decimals and uses its own forward
    assert gap.median() < 5e-4
    assert gap.quantile(0.95) < 1e-3
    assert (both["our_gamma"] - both["gamma"]).abs().max() < 1e-4


def test_the_file_as_it_is_through_the_convenience(real_data, workspace):
    levels = recalculate_levels(real_data / "options" / "spx_20220323_1011.parquet")
    assert levels.path.exists()
    assert levels.zero_gamma == pytest.approx(4488.2613, abs=1e-3)
    assert (levels.gamma_wall, levels.call_wall, levels.put_wall) == (4500, 4500, 4400)
