"""Errors by the room they come from. Each says what, where, what to do and what happens next."""

from __future__ import annotations

from mia_kernels.errors import MiaError, StateError

__all__ = [
    "ConfigError",
    "DataError",
    "JournalError",
    "MarketMemoryError",
    "MiaError",
    "QuarantineWarning",
    "RiskError",
    "StateError",
    "WorkspaceError",
]


class ConfigError(MiaError):
    """A configuration file that is present but invalid."""


class DataError(MiaError):
    """Input data that cannot be used as it is.

    Parameters
    ----------
    reason
        One word for programs, where the reader of tables refused: ``empty``, ``unreadable``, a rule's name.
        The other parameters are those of :class:`MiaError`.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        then: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.reason = reason
        super().__init__(what, where=where, hint=hint, then=then)


class QuarantineWarning(UserWarning):
    """Rows of an input were left out because they break a rule; a file lists them. Make it an error to refuse them."""


class JournalError(MiaError):
    """The audit trail cannot take or give back a row."""


class MarketMemoryError(MiaError):
    """The market memory cannot be opened, read or written.

    Parameters
    ----------
    reason
        One word for programs: ``gone``, ``locked``, ``damaged``, ``read_only``, ``full``, ``newer``, ``input``, ``io``.
        The other parameters are those of :class:`MiaError`.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        then: str | None = None,
        reason: str = "io",
    ) -> None:
        self.reason = reason
        super().__init__(what, where=where, hint=hint, then=then)


class RiskError(MiaError):
    """The risk state cannot be read, written or changed as asked."""


class WorkspaceError(MiaError):
    """The workspace cannot be created, written or locked."""
