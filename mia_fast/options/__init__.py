"""Dealer levels from an option chain."""

from __future__ import annotations

from mia_fast.options.chain import Chain, prepare
from mia_fast.options.config import OptionsConfig, options_config
from mia_fast.options.levels import BucketLevels, FutureLevels, Levels, LevelsEngine, Surface, no_chain, on_future
from mia_fast.options.readers import read_chain
from mia_fast.options.snapshot import recalculate_levels, save

__all__ = [
    "BucketLevels",
    "Chain",
    "FutureLevels",
    "Levels",
    "LevelsEngine",
    "OptionsConfig",
    "Surface",
    "no_chain",
    "on_future",
    "options_config",
    "prepare",
    "read_chain",
    "recalculate_levels",
    "save",
]
