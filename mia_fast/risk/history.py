"""What passed the gate before a restart, read back from the journal: one truth, and nothing to save beside it.

A verdict is journalled before it is returned, so every entry that may have been sent is among these rows, also
when the process was killed right after. One that was killed in between is there too, though it was never sent:
its id is used up and it counts as open until the account's report is younger. That errs on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    import polars as pl

_DAYS: Final = 2  # before the last verdict: more than a trade date, its weekend and any account report's age
# A replay names its run; a cancel may come without an account.
_LAST: Final = "SELECT max(epoch_ns(timestamp)) FROM verdicts WHERE run_id IS NULL AND (account = ? OR account IS NULL)"
_IDS: Final = (
    "SELECT client_id FROM verdicts WHERE run_id IS NULL AND account = ? AND verdict = 'allow' AND action = 'new'"
)
_PASSED: Final = (
    "SELECT epoch_ns(timestamp), action, client_id, symbol, side, quantity, price, reduce_only, stop, sequence > ("
    "SELECT coalesce(max(sequence), 0) FROM alerts WHERE code = 'RISK_NEW_ACCOUNT' AND NOT starts_with(run_id, 'run-')"
    ") FROM verdicts WHERE run_id IS NULL AND (account = ? OR account IS NULL) AND verdict = 'allow' "
    "AND epoch_ns(timestamp) >= ? ORDER BY sequence"
)


@runtime_checkable
class Readable(Protocol):
    """A journal whose rows can be read back."""

    def query(self, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
        """The result of one read-only statement over everything accepted so far."""


@dataclass(frozen=True, slots=True)
class History:
    """What a gate must know of the time before it.

    Attributes
    ----------
    ids
        Every client id that ever passed.
    last_ns
        The latest instant of any verdict, ns UTC; 0 where there is none.
    passed
        Of the last days, oldest first: instant, action, client id, symbol, side, quantity, price, reduce-only, stop.
    entries
        Instants of the entries among them, since the account began.
    """

    ids: tuple[str, ...]
    last_ns: int
    passed: tuple[tuple[Any, ...], ...]
    entries: tuple[int, ...]


def read(journal: Readable, account: str) -> History:
    """The history of an account.

    Raises
    ------
    JournalError
        The journal cannot be read.
    """
    last = journal.query(_LAST, [account]).item()
    if last is None:
        return History((), 0, (), ())
    ids = journal.query(_IDS, [account]).to_series().to_list()
    rows = journal.query(_PASSED, [account, last - _DAYS * 86_400_000_000_000]).rows()
    entries = tuple(row[0] for row in rows if row[1] == "new" and not row[7] and row[9])
    return History(tuple(ids), last, tuple(row[:9] for row in rows), entries)
