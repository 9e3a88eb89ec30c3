"""Errors by the room they come from. Each says what, where, what to do and what happens next."""

from __future__ import annotations

from mia_kernels.errors import MiaError, StateError

__all__ = [
    "ConfigError",
    "DataError",
    "JournalError",
    "MiaError",
    "RiskError",
    "StateError",
    "WorkspaceError",
]


class ConfigError(MiaError):
    """A configuration file that is present but invalid."""


class DataError(MiaError):
    """Input data that cannot be used as it is."""


class JournalError(MiaError):
    """The audit trail cannot take or give back a row."""


class RiskError(MiaError):
    """The risk state cannot be read, written or changed as asked."""


class WorkspaceError(MiaError):
    """The workspace cannot be created, written or locked."""
