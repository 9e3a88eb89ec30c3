"""``config/memory.yaml``."""

from __future__ import annotations

from pydantic import Field

from mia_fast import config as configs
from mia_fast.config import Model
from mia_fast.workspace import Workspace


class Vacuum(Model):
    """When a purge gives room back to the disk."""

    free_fraction: float = Field(gt=0, le=1, description="share of free pages above which it is done")
    min_mib: float = Field(ge=0, description="smaller files are left alone, MiB")


class Tightening(Model):
    """The memory's say in the drawdown limit."""

    stale_seconds: float = Field(gt=0, description="largest lag of the answer behind the last bar")
    replays: bool = Field(description="trades of replays count for a live limit")


class Learning(Model):
    """Drift, schedule and judgement."""

    clusters: int = Field(ge=2)
    seed: int = Field(ge=0)
    psi: float = Field(gt=0, description="population stability index from which a feature has drifted")
    drifted_share: float = Field(gt=0, le=1, description="share of drifted features above which learning is proposed")
    error_ratio: float = Field(gt=1, description="recent over judged mean absolute error above which it is proposed")
    schedule_days: int = Field(ge=1, description="days since the last training after which it is proposed")
    window_sessions: int = Field(ge=60, description="sessions a challenger is trained on")
    judged_sessions: int = Field(ge=10, description="last sessions, that it is judged on")


class Retraining(Model):
    """Files of ``retrain_model``."""

    bars: tuple[str, ...] = Field(description="paths or patterns below the workspace")
    vix: str | None
    index: str | None


class MemoryConfig(Model):
    """``config/memory.yaml``."""

    retention_days: int = Field(ge=1)
    busy_seconds: float = Field(ge=0, le=60)
    vacuum: Vacuum
    max_missing: float = Field(ge=0, lt=1, description="largest share of missing features in a state that is compared")
    tightening: Tightening
    learning: Learning
    retraining: Retraining


def memory_config(workspace: Workspace) -> MemoryConfig:
    """The workspace's ``memory.yaml``.

    Raises
    ------
    ConfigError
        It is present but invalid.
    """
    return configs.load(MemoryConfig, workspace.config("memory.yaml"))
