"""What the order gate is asked, and what it answers: orders, the market and the account as they are known, verdicts."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mia_fast.risk.codes import Denial


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class Action(Enum):
    NEW = "new"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Order:
    """What is about to be sent.

    Attributes
    ----------
    client_id
        From :func:`client_id`. For a cancel: of the order to cancel.
    symbol
        Root symbol of the instrument.
    side
        Buy or sell.
    quantity
        Contracts, a positive whole number.
    price
        Limit price in index points; None for a market order.
    reduce_only
        The order may only bring the position nearer to zero, here and at the venue. Exits must
        carry it: an order without it is an entry.
    action
        A cancel takes an order back; it always passes.
    stop
        Protective stop of an entry, index points: where the position is given up. The loss there is capped.
    """

    client_id: str
    symbol: str
    side: Side
    quantity: float
    price: float | None = None
    reduce_only: bool = False
    action: Action = Action.NEW
    stop: float | None = None


@dataclass(frozen=True, slots=True)
class Market:
    """What is known of the market and the model when the order is about to be sent.

    What is left out counts as unknown, and unknown refuses an entry.

    Attributes
    ----------
    known_at_ns
        When the last bar became known (its close), ns UTC.
    price
        The last price, index points: the reference.
    prediction_finite
        Every model output behind the order is there and finite.
    prediction
        The model output that ``model`` of the configuration gives a range for.
    model_sha256
        Of the graph that made it.
    features_ready
        Every feature behind the decision is finite.
    halted
        The venue has halted trading.
    streams
        Name -> when its last value became known, ns UTC.
    """

    known_at_ns: int
    price: float
    prediction_finite: bool
    prediction: float = math.nan
    model_sha256: str | None = None
    features_ready: bool = False
    halted: bool | None = None
    streams: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """The account as the venue or the simulator reports it.

    What is left out counts as unknown, and unknown refuses an entry.

    Attributes
    ----------
    known_at_ns
        When it was marked, ns UTC.
    equity
        USD, realised plus open.
    position
        Contracts, signed: long is positive.
    name
        Which account.
    reconciled
        Position and orders agree with the venue's word.
    working
        Orders at the venue that may still fill, without protective stops that end with the position.
    """

    known_at_ns: int
    equity: float
    position: float
    name: str = ""
    reconciled: bool = False
    working: tuple[Order, ...] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allowed, or every reason why not. True in a condition only when the order may be sent."""

    denials: tuple[Denial, ...] = ()

    @property
    def allowed(self) -> bool:
        return not self.denials

    @property
    def code(self) -> str | None:
        """The first code, for the ``code`` column of the decision log."""
        return self.denials[0].code.name if self.denials else None

    def __bool__(self) -> bool:
        return not self.denials

    def __str__(self) -> str:
        return "; ".join(map(str, self.denials)) or "ALLOW"


ALLOW = Verdict()


def client_id(account: str, symbol: str, side: Side, decided_at_ns: int, leg: str) -> str:
    """The same decision gives the same id, so that a repeat after a crash or a time-out is recognised.

    Parameters
    ----------
    account, symbol, side
        Who trades what.
    decided_at_ns
        The bar the decision was made on, ns UTC.
    leg
        Which order of that decision: "entry", "stop", "exit", ...

    Returns
    -------
    str
        20 characters, what a CME ClOrdID (FIX tag 11) holds: "M" and 76 bits of SHA-256 in hex.
    """
    text = "\x1f".join((account, symbol, side.value, str(operator.index(decided_at_ns)), leg))
    return "M" + hashlib.sha256(text.encode()).hexdigest()[:19]
