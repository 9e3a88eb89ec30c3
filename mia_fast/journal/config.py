"""``config/journal.yaml``."""

from __future__ import annotations

import difflib

from pydantic import Field, field_validator

from mia_fast import config as configs
from mia_fast.config import Model
from mia_fast.journal.schema import TABLES
from mia_fast.workspace import Workspace


class Compaction(Model):
    """When the database file is written anew."""

    free_fraction: float = Field(gt=0, le=1, description="share of free blocks above which it is done")
    min_mib: int = Field(ge=0, description="smaller files are left alone, MiB")


class JournalConfig(Model):
    """``config/journal.yaml``."""

    interval_seconds: float = Field(gt=0, le=60, description="between two drains when little happens")
    queue_rows: int = Field(ge=2, description="accepted rows that may wait for DuckDB")
    batch_rows: int = Field(ge=1, description="rows in one transaction")
    segment_mib: int = Field(ge=1, le=1024, description="size at which a segment is sealed, MiB")
    retention_days: dict[str, int | None] = Field(description="days by table; null or absent: for ever")
    compaction: Compaction
    metrics_port: int | None = Field(ge=1, le=65535, description="loopback port of the Prometheus endpoint; null: off")

    @field_validator("retention_days")
    @classmethod
    def _known(cls, days: dict[str, int | None]) -> dict[str, int | None]:
        for name, kept in days.items():
            if name not in TABLES:
                near = difflib.get_close_matches(name, TABLES, n=1)
                raise ValueError(
                    f"there is no table {name!r}; "
                    + (f"did you mean {near[0]!r}?" if near else f"the tables are {', '.join(TABLES)}")
                )
            if kept is not None and kept < 1:
                raise ValueError(f"{name}: keep at least 1 day, or null for ever")
        return days


def journal_config(workspace: Workspace) -> JournalConfig:
    """The workspace's ``journal.yaml``.

    Raises
    ------
    ConfigError
        It is present but invalid.
    """
    return configs.load(JournalConfig, workspace.config("journal.yaml"))
