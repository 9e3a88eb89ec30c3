"""A live engine from a workspace and the bars before the first one: what a replay assembles, for a feed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mia_fast import clock as clocks
from mia_fast import config as configs
from mia_fast import journal as journals
from mia_fast import memory as memories
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Steps
from mia_fast.features.frame import (
    brought,
    event_source,
    input_arrays,
    market_sources,
    one_symbol,
    plan_for,
    read_cross,
)
from mia_fast.features.levels import CLOSES_KEPT, level_inputs
from mia_fast.live.account import HELD as ACCOUNT_HELD
from mia_fast.live.account import TABLE as ACCOUNT_TABLE
from mia_fast.live.engine import MINUTE, Engine
from mia_fast.live.forecast import TABLE as FORECAST_TABLE
from mia_fast.live.forecast import models_digest
from mia_fast.live.policy import Policy
from mia_fast.options.config import options_config
from mia_fast.options.levels import LevelsEngine
from mia_fast.predict import NeuralPipeline
from mia_fast.risk import Desk, attach
from mia_fast.risk import config as risk_config
from mia_fast.risk.calendar import load_calendar
from mia_fast.tables import Table, read_table
from mia_fast.workspace import AnyWorkspace, Workspace
from mia_models.drift import OUTPUTS as JUDGED

Floats = NDArray[np.float64]

_FILES = ("market_config.yaml", "risk.yaml", "policy.yaml", "options.yaml", "inputs.yaml", "feature_sets.yaml")


def open_engine(
    history: Any,
    *,
    account: str,
    cross: Any = None,
    events: Path | None = None,
    workspace: AnyWorkspace | None = None,
    clock: Callable[[], int] = clocks.now_ns,
    journal: journals.Journal | None = None,
) -> Engine:
    """An engine that has seen ``history`` and waits for the next bar, its gate disarmed.

    The desk's own risk state, journal and market memory are used, so a latch from before stands. From here on
    ``stop_trading``, ``block_trade`` and the rest of this process work on the engine's own desk.

    Parameters
    ----------
    history
        Bars of one symbol up to the last one that is closed: a path, or any table. The next bar must follow it. Six
        sessions fill every warm-up of the shipped catalogue that the forecast needs.
    account
        The account's name at the venue.
    cross
        Daily and minute closes of other markets (VIX among them), as for :func:`mia_fast.generate_features`. Without
        VIX there is no forecast, and no entry passes.
    events
        The macro calendar; by default ``data/macro_events.csv`` of the workspace.
    workspace
        Configuration and data; by default the current one.
    clock
        The engine's clock, ns UTC. A recording is played with the bar's time.
    journal
        By default the workspace's own, which no other process may hold.

    Raises
    ------
    DataError, ConfigError, JournalError
        An input, a configuration file or the journal cannot be used.
    """
    place = Workspace.current(workspace)
    bars = history if isinstance(history, Table) else read_table("bars", history, workspace=place)
    one_symbol(bars)
    assert bars.interval_ns is not None
    catalogue, pipeline = catalogues.read(place), NeuralPipeline(place)
    drift = pipeline.drift()
    calendar_path = events if events is not None else place.data / "macro_events.csv"
    calendar = load_calendar(place, risk_config.risk(place).events, calendar_path)
    sources: tuple[Steps, ...] = (
        *(() if cross is None else market_sources(read_cross(cross, place).frame, place)),
        *event_source(calendar, place, bars.interval_ns),
        *made_by_engine(catalogue, levels=True, judged=drift is not None),
    )
    plan = plan_for(bars, workspace=place, sources=sources, auxiliary=(MINUTE, *pipeline.auxiliary))
    memory = memories.watch(place, plan.outputs)
    own = journal if journal is not None else journals.of(place)
    desk = Desk(place, journal=own, clock=clock, events=calendar_path, losing_share=memory.losing_share)
    attach(desk)
    engine = Engine(
        plan=plan,
        inputs=catalogue.inputs,
        sources=sources,
        brought=brought(bars.frame),
        models=pipeline.served,
        drift=drift,
        policy=Policy.open(place),
        desk=desk,
        gate=desk.gate(account=account, model_sha256=models_digest(pipeline.served)),
        journal=own,
        levels=LevelsEngine(options_config(place)),
        account_name=account,
        interval_ns=bars.interval_ns,
        run_id=None,
        config_digest=configs.digest(*(place.config(name) for name in _FILES)),
        memory=memory,
    )
    known_at, columns = input_arrays(plan, bars, sources)
    matrix = warm(engine, known_at, columns)
    memory.observe(int(known_at[-1]), np.ascontiguousarray(matrix[:, -1]))
    closes = bars.frame["close"].tail(CLOSES_KEPT).to_list()
    engine.restore_closes(list(zip(known_at[-CLOSES_KEPT:].tolist(), closes, strict=True)))
    if engine.jumps is not None:
        engine.jumps.take(int(known_at[-1]) - bars.interval_ns, closes[-1])
    engine.journal_features(int(known_at[-1]))
    return engine


def made_by_engine(catalogue: catalogues.Catalogue, *, levels: bool, judged: bool) -> tuple[Steps, ...]:
    """The inputs that an engine makes bar by bar, nothing known of them yet, for the plan to count on.

    Parameters
    ----------
    levels
        Option chains will come.
    judged
        The models say what errors to expect, so their forecasts are judged.
    """
    made = (
        ("levels", [column.name for column in level_inputs(catalogue.inputs)] if levels else []),
        ("memory", memories.FEATURES),
        (FORECAST_TABLE, JUDGED if judged else ()),
        (ACCOUNT_TABLE, ACCOUNT_HELD),
    )
    declared = {column.name: column.table for column in catalogue.inputs}
    return tuple(
        Steps.nothing(table, known)
        for table, names in made
        if (known := [name for name in names if declared.get(name) == table])
    )


def warm(engine: Engine, known_at: NDArray[np.int64], columns: dict[str, Floats]) -> Floats:
    """Run the bars before the first one through features and models; their rows, (outputs, n).

    What the catalogue derives from the errors of the models' forecasts needs those first, so the features run twice.
    """
    forecasts, features = engine.forecasts, engine.features
    matrix = features.batch(known_at, columns)
    unknown = np.full(len(known_at), np.nan)
    vix, vix_known_at = (columns.get(name, unknown) for name in ("vix", "vix_known_at"))
    judged = forecasts.catch_up(matrix, columns["close"], vix, vix_known_at)
    if len(judged):
        features.reset()
        features.batch(known_at, {**columns, **dict(zip(forecasts.judged, judged, strict=True))}, out=matrix)
    forecasts.write(matrix[:, -1])
    return matrix
