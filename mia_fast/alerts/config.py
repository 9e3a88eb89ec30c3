"""``config/alerts.yaml``."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from mia_fast import config as configs
from mia_fast.config import Model
from mia_fast.workspace import Workspace

SENT_FROM: Final = 3
"""Alerts of this priority and above go out (contract)."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class AlertsConfig(Model):
    """``config/alerts.yaml``."""

    channels: list[Name] = Field(description="names; the address comes from MIA_ALERT_<NAME>")
    replays: bool = Field(description="send the alerts of replays too")
    deduplicate_seconds: int = Field(ge=0, description="span in which alerts that differ only in numbers are one")
    per_minute: int = Field(ge=1, description="messages per channel and minute")
    burst: int = Field(ge=1, description="messages that may go out at once")
    retry_max_seconds: int = Field(ge=2, description="longest wait between two tries of a failing channel")
    expire_hours: float = Field(gt=0, description="age at which an unsent alert is given up")

    @field_validator("channels")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the channel {name!r} stands twice")
        return names


def alerts_config(workspace: Workspace) -> AlertsConfig:
    """The workspace's ``alerts.yaml``.

    Raises
    ------
    ConfigError
        It is present but invalid.
    """
    return configs.load(AlertsConfig, workspace.config("alerts.yaml"))
