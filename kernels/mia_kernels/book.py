"""The order book from order events, and its ten best levels.

Orders lie in an open-addressed table (linear probing, deletion by shifting back, so it never fills with
tombstones); sizes lie in a ladder indexed by tick, one per side, with a bit for each occupied tick. Both
grow with the orders that rest, never with the events that have passed.

An event that contradicts the book (an unknown order, a size of nothing, more taken than rests) is not
applied: it is reported with its code, for the caller to quarantine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.cpython.unsafe import numbers as _numbers
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.ticks import DEPTH, MARK_FLEETING, MARK_SPOOF, MESSAGE_ADD, MESSAGE_CANCEL, MESSAGE_MODIFY

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]
Bytes = NDArray[np.int8]

# --- actions of an order event (the vocabulary of Databento's market-by-order schema) ----------------------
ADD, CANCEL, MODIFY, TRADE, FILL, CLEAR = range(1, 7)

# --- marks of an event -------------------------------------------------------------------------------------
ENDS_MESSAGE, IN_SNAPSHOT = 1, 2
"""The exchange's own message ends here; the event tells of an order that rested before the stream began."""

# --- faults -------------------------------------------------------------------------------------------------
(
    FINE,
    UNKNOWN_ORDER,
    DUPLICATE_ORDER,
    SIZE_NOT_POSITIVE,
    TAKEN_EXCEEDS_RESTING,
    SEQUENCE_BACKWARD,
    SEQUENCE_GAP,
    PRICE_OFF_GRID,
    PRICE_OFF_LADDER,
    SIDE_UNKNOWN,
    ACTION_UNKNOWN,
) = range(11)

# --- an order: one cache line ---------------------------------------------------------------------------------
ORDER_ID, ORDER_TICK, ORDER_SIZE, ORDER_SIDE, ORDER_ENTERED, ORDER_FILLING, ORDER_LARGE, ORDER_TAKEN = range(8)
ORDER_FIELDS = 8

# --- parameters ---------------------------------------------------------------------------------------------------
CONTIGUOUS, HAS_SEQUENCE, FLEETING_NS, SPOOF_NS, SHOW = range(5)

# --- state, whole numbers -----------------------------------------------------------------------------------------
(
    ORDERS,
    BITS,
    FIRST_TICK,  # tick of the ladder's first rung
    BEST_BID,  # rung, -1 when the side is empty
    BEST_ASK,
    BOTTOM_BID,  # rung of the last level that was shown: deeper changes are not visible
    BOTTOM_ASK,
    DIRTY,  # sides (1 bids, 2 asks) whose ten levels have changed since they were last shown
    SEQUENCE,
    LAST_BUY,  # ns of the last aggressive buy
    LAST_SELL,
    ADDED_ORDERS,
    ADDED_SIZE,
    SUSPECT,  # a sequence gap since the last clear: the book may be wrong
    STARTED,
) = range(15)
BOOK_WHOLE = 15

SNAPSHOT_FIELDS = 6 * DEPTH
"""Of each side: prices (ticks), sizes, numbers of orders; bids first."""

_leading: Any = _numbers.leading_zeros
_trailing: Any = _numbers.trailing_zeros

TAKE_ALL, OUT_FULL, TABLE_FULL = range(3)
_HASH = np.uint64(0x9E3779B97F4A7C15)
_NEVER = 2**63 - 1
_BIDS, _ASKS, _BOTH = 1, 2, 3


@inlined
def _place_of(order_id: int, bits: int) -> Any:
    return np.int64((np.uint64(order_id) * _HASH) >> np.uint64(64 - bits))


@kernel
def find(orders: Integers, bits: int, order_id: int) -> Any:
    """Row of the order, or ``-1 - row`` of the empty place where it would go."""
    mask = (1 << bits) - 1
    at = _place_of(order_id, bits)
    while orders[at, ORDER_SIDE] != 0:
        if orders[at, ORDER_ID] == order_id:
            return at
        at = (at + 1) & mask
    return -1 - at


@kernel
def _delete(orders: Integers, bits: int, at: int) -> None:
    """Empty a row and shift the chain behind it back."""
    mask = (1 << bits) - 1
    hole = at
    probe = at
    while True:
        probe = (probe + 1) & mask
        if orders[probe, ORDER_SIDE] == 0:
            break
        home = _place_of(orders[probe, ORDER_ID], bits)
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            for k in range(ORDER_FIELDS):
                orders[hole, k] = orders[probe, k]
            hole = probe
    orders[hole, ORDER_SIDE] = 0


@kernel
def regrow(old: Integers, new: Integers, bits: int) -> None:
    """Move every order of ``old`` into the empty table ``new`` of 2**bits rows."""
    for at in range(old.shape[0]):
        if old[at, ORDER_SIDE] != 0:
            place = -1 - find(new, bits, old[at, ORDER_ID])
            for k in range(ORDER_FIELDS):
                new[place, k] = old[at, k]


@kernel
def start(whole: Integers, orders: Integers, bits: int, ladder: Integers, words: Words) -> None:
    """An empty book."""
    for k in range(BOOK_WHOLE):
        whole[k] = 0
    whole[BITS] = bits
    whole[SEQUENCE] = -_NEVER
    whole[LAST_BUY], whole[LAST_SELL] = -_NEVER, -_NEVER
    _clear(whole, orders, ladder, words)


@kernel
def _clear(whole: Integers, orders: Integers, ladder: Integers, words: Words) -> None:
    whole[ORDERS] = 0
    whole[BEST_BID], whole[BEST_ASK] = -1, -1
    whole[BOTTOM_BID], whole[BOTTOM_ASK] = -1, _NEVER
    whole[DIRTY] = _BOTH
    whole[SUSPECT] = 0
    for at in range(orders.shape[0]):
        orders[at, ORDER_SIDE] = 0
    for side in range(2):
        for rung in range(ladder.shape[1]):
            ladder[side, rung, 0], ladder[side, rung, 1] = 0, 0
        for word in range(words.shape[1]):
            words[side, word] = np.uint64(0)


@kernel
def _below(words: Words, rung: int) -> Any:
    """Highest occupied rung at or below ``rung``, -1 if there is none."""
    if rung < 0:
        return -1
    word = rung >> 6
    kept = words[word] << np.uint64(63 - (rung & 63))
    if kept != 0:
        return rung - np.int64(_leading(kept))
    word -= 1
    while word >= 0:
        if words[word] != 0:
            return (word << 6) + 63 - np.int64(_leading(words[word]))
        word -= 1
    return -1


@kernel
def _above(words: Words, rung: int) -> Any:
    """Lowest occupied rung at or above ``rung``, -1 if there is none."""
    word = rung >> 6
    if word >= words.size:
        return -1
    kept = words[word] >> np.uint64(rung & 63)
    if kept != 0:
        return rung + np.int64(_trailing(kept))
    word += 1
    while word < words.size:
        if words[word] != 0:
            return (word << 6) + np.int64(_trailing(words[word]))
        word += 1
    return -1


@kernel
def _change(whole: Integers, ladder: Integers, words: Words, side: int, rung: int, size: int, orders: int) -> None:
    """Add ``size`` and ``orders`` (both may be negative) to a level and keep the best prices."""
    s = 0 if side > 0 else 1
    level = ladder[s, rung]
    level[0] += size
    level[1] += orders
    bit = np.uint64(1) << np.uint64(rung & 63)
    if side > 0:
        if rung >= whole[BOTTOM_BID]:
            whole[DIRTY] |= _BIDS
        if level[1] > 0:
            words[0, rung >> 6] |= bit
            whole[BEST_BID] = max(whole[BEST_BID], rung)
        else:
            words[0, rung >> 6] &= ~bit
            if rung == whole[BEST_BID]:
                whole[BEST_BID] = _below(words[0], rung)
    else:
        if rung <= whole[BOTTOM_ASK]:
            whole[DIRTY] |= _ASKS
        if level[1] > 0:
            words[1, rung >> 6] |= bit
            if whole[BEST_ASK] < 0 or rung < whole[BEST_ASK]:
                whole[BEST_ASK] = rung
        else:
            words[1, rung >> 6] &= ~bit
            if rung == whole[BEST_ASK]:
                whole[BEST_ASK] = _above(words[1], rung)


@kernel
def _show_bids(whole: Integers, ladder: Integers, words: Words, row: Integers) -> None:
    """Write the ten best bids into the first half of ``row`` (SNAPSHOT_FIELDS,); 0 orders where there is no level."""
    rung = whole[BEST_BID]
    whole[BOTTOM_BID] = -1
    for k in range(DEPTH):
        if rung < 0:
            row[k], row[DEPTH + k], row[2 * DEPTH + k] = 0, 0, 0
            continue
        row[k] = whole[FIRST_TICK] + rung
        row[DEPTH + k], row[2 * DEPTH + k] = ladder[0, rung, 0], ladder[0, rung, 1]
        if k == DEPTH - 1:
            whole[BOTTOM_BID] = rung
        else:
            rung = _below(words[0], rung - 1)


@kernel
def _show_asks(whole: Integers, ladder: Integers, words: Words, row: Integers) -> None:
    """The ten best asks into the second half."""
    rung = whole[BEST_ASK]
    whole[BOTTOM_ASK] = _NEVER
    for k in range(DEPTH):
        if rung < 0:
            row[3 * DEPTH + k], row[4 * DEPTH + k], row[5 * DEPTH + k] = 0, 0, 0
            continue
        row[3 * DEPTH + k] = whole[FIRST_TICK] + rung
        row[4 * DEPTH + k], row[5 * DEPTH + k] = ladder[1, rung, 0], ladder[1, rung, 1]
        if k == DEPTH - 1:
            whole[BOTTOM_ASK] = rung
        else:
            rung = _above(words[1], rung + 1)


@kernel
def _show(whole: Integers, ladder: Integers, words: Words, shown: Integers, count: int) -> None:
    """Write the ten best levels into row ``count`` of ``shown``; a side without change is that of the row before."""
    row = shown[count]
    if count == 0 or whole[DIRTY] & _BIDS != 0:
        _show_bids(whole, ladder, words, row)
    else:
        for k in range(3 * DEPTH):
            row[k] = shown[count - 1, k]
    if count == 0 or whole[DIRTY] & _ASKS != 0:
        _show_asks(whole, ladder, words, row)
    else:
        for k in range(3 * DEPTH, 6 * DEPTH):
            row[k] = shown[count - 1, k]
    whole[DIRTY] = 0


@inlined
def _whole_size(size: float) -> Any:
    """The size as a whole number, 0 when it is none."""
    return np.int64(size) if 0.0 < size < 9e15 and size == math.floor(size) else 0


@kernel
def apply(
    parameters: Integers,
    tick: float,
    instants: Integers,
    action: Bytes,
    side: Bytes,
    price: Floats,
    size: Floats,
    order_id: Integers,
    last: Bytes,
    sequence: Integers,
    whole: Integers,
    orders: Integers,
    ladder: Integers,
    words: Words,
    begin: int,
    faults: Bytes,
    shown: Integers,
    shown_row: Integers,
    message: Bytes,
    message_size: Floats,
    marks: Bytes,
    result: Integers,
) -> int:
    """Apply order events from row ``begin`` on and show the ten levels after each group that changed them.

    Parameters
    ----------
    parameters, tick
        (5,): whether sequence numbers leave no gap, whether there are any, the longest life
        of a fleeting order (ns), the window of the spoofing pattern (ns), and what is shown: 0
        groups that touched the levels, 1 every group, 2 none; the price step.
    instants, action, side, price, size, order_id, last, sequence
        (n,) the events: ns UTC; ADD .. CLEAR; 1 bid, -1 ask (of a trade: the aggressor), 0 none; price;
        whole contracts; order; ENDS_MESSAGE and IN_SNAPSHOT; sequence number.
    whole, orders, ladder, words
        The book: (BOOK_WHOLE,), (2**bits, ORDER_FIELDS), (2, rungs, 2) size and number of orders,
        (2, rungs / 64).
    faults
        (n,) a code per event, FINE where it was applied.
    shown, shown_row
        (c, SNAPSHOT_FIELDS) and (c,): levels, and the row after which they stood.
    message, message_size, marks
        (n,) what the event was to the flow of orders: MESSAGE_ADD, MESSAGE_CANCEL, MESSAGE_MODIFY or 0 (an execution or
        no change), the size, and MARK_FLEETING / MARK_SPOOF.
    result
        (2,): rows taken up to, snapshots shown.

    Returns
    -------
    int
        TAKE_ALL; OUT_FULL: empty ``shown`` and go on; TABLE_FULL: regrow the orders and go on.
    """
    rungs = ladder.shape[1]
    capacity = shown_row.size
    bits = whole[BITS]
    room = (1 << bits) // 2
    count = 0
    status = TAKE_ALL
    show = parameters[SHOW]
    i = begin
    while i < instants.size:
        if count == capacity:
            status = OUT_FULL
            break
        if whole[ORDERS] >= room:
            status = TABLE_FULL
            break
        act, now, side_i = action[i], instants[i], side[i]
        fault = FINE
        gap = False
        message[i], marks[i], message_size[i] = 0, 0, 0.0
        if parameters[HAS_SEQUENCE] != 0 and last[i] & IN_SNAPSHOT == 0:
            number = sequence[i]
            if number < whole[SEQUENCE]:
                fault = SEQUENCE_BACKWARD
            else:
                gap = parameters[CONTIGUOUS] != 0 and whole[SEQUENCE] != -_NEVER and number > whole[SEQUENCE] + 1
                if gap:
                    whole[SUSPECT] = 1
                whole[SEQUENCE] = number
        amount = _whole_size(size[i])
        if fault == FINE:
            if act == CLEAR:
                _clear(whole, orders, ladder, words)
            elif act == TRADE:
                if amount <= 0:
                    fault = SIZE_NOT_POSITIVE
                elif side_i > 0:
                    whole[LAST_BUY] = now
                elif side_i < 0:
                    whole[LAST_SELL] = now
            elif act == FILL:
                at = find(orders, bits, order_id[i])
                if amount <= 0:
                    fault = SIZE_NOT_POSITIVE
                elif at >= 0:
                    orders[at, ORDER_FILLING] += amount
                    orders[at, ORDER_TAKEN] += amount
                # A fill of an order that is not in the book: the aggressor's own side. It changes nothing.
            elif act == ADD or act == MODIFY:  # noqa: SIM109, PLR1714
                at = find(orders, bits, order_id[i])
                ticks = price[i] / tick
                near = math.floor(ticks + 0.5)
                if amount <= 0:
                    fault = SIZE_NOT_POSITIVE
                elif side_i == 0:
                    fault = SIDE_UNKNOWN
                elif act == ADD and at >= 0:
                    fault = DUPLICATE_ORDER
                elif act == MODIFY and at < 0:
                    fault = UNKNOWN_ORDER
                elif not abs(ticks - near) < 1e-6 * max(1.0, abs(near) * 1e-6):
                    fault = PRICE_OFF_GRID
                elif act == MODIFY and orders[at, ORDER_SIDE] != side_i:
                    fault = SIDE_UNKNOWN
                else:
                    if whole[STARTED] == 0:
                        whole[FIRST_TICK] = np.int64(near) - rungs // 2
                        whole[STARTED] = 1
                    rung = np.int64(near) - whole[FIRST_TICK] if abs(near) < 1e15 else -1
                    if not 0 <= rung < rungs:
                        fault = PRICE_OFF_LADDER
                    elif act == ADD:
                        at = -1 - at
                        orders[at, ORDER_ID], orders[at, ORDER_TICK] = order_id[i], rung
                        orders[at, ORDER_SIZE], orders[at, ORDER_SIDE] = amount, side_i
                        orders[at, ORDER_ENTERED] = now
                        orders[at, ORDER_FILLING], orders[at, ORDER_TAKEN] = 0, 0
                        # Twice the mean size of the orders before it (Lee, Eom and Park 2013).
                        large = amount * whole[ADDED_ORDERS] >= 2 * whole[ADDED_SIZE] and whole[ADDED_ORDERS] > 0
                        orders[at, ORDER_LARGE] = 1 if large else 0
                        whole[ADDED_ORDERS] += 1
                        whole[ADDED_SIZE] += amount
                        whole[ORDERS] += 1
                        _change(whole, ladder, words, side_i, rung, amount, 1)
                        message[i], message_size[i] = MESSAGE_ADD, amount
                    else:
                        before, from_rung = orders[at, ORDER_SIZE], orders[at, ORDER_TICK]
                        executed = rung == from_rung and orders[at, ORDER_FILLING] > 0
                        _change(whole, ladder, words, side_i, from_rung, -before, -1)
                        _change(whole, ladder, words, side_i, rung, amount, 1)
                        orders[at, ORDER_TICK], orders[at, ORDER_SIZE] = rung, amount
                        orders[at, ORDER_FILLING] = 0
                        if not executed:
                            message[i], message_size[i] = MESSAGE_MODIFY, amount
            elif act == CANCEL:
                at = find(orders, bits, order_id[i])
                if amount <= 0:
                    fault = SIZE_NOT_POSITIVE
                elif at < 0:
                    fault = UNKNOWN_ORDER
                elif amount > orders[at, ORDER_SIZE]:
                    fault = TAKEN_EXCEEDS_RESTING
                else:
                    rung, own = orders[at, ORDER_TICK], orders[at, ORDER_SIDE]
                    gone = amount == orders[at, ORDER_SIZE]
                    _change(whole, ladder, words, own, rung, -amount, -1 if gone else 0)
                    filling = orders[at, ORDER_FILLING]
                    withdrawn = amount - min(amount, filling)
                    orders[at, ORDER_FILLING] = max(filling - amount, 0)
                    if withdrawn > 0:
                        message[i], message_size[i] = MESSAGE_CANCEL, withdrawn
                        entered = orders[at, ORDER_ENTERED]
                        life = now - entered
                        untouched = gone and orders[at, ORDER_TAKEN] == 0
                        if untouched and life <= parameters[FLEETING_NS]:
                            marks[i] |= MARK_FLEETING
                        # The order behind a spoofed bid is an offer: aggressive buyers fill it meanwhile.
                        profited = whole[LAST_BUY] if own > 0 else whole[LAST_SELL]
                        if (
                            untouched
                            and orders[at, ORDER_LARGE] != 0
                            and life <= parameters[SPOOF_NS]
                            and profited >= entered
                        ):
                            marks[i] |= MARK_SPOOF
                    if gone:
                        _delete(orders, bits, at)
                        whole[ORDERS] -= 1
                    else:
                        orders[at, ORDER_SIZE] -= amount
            else:
                fault = ACTION_UNKNOWN
        faults[i] = SEQUENCE_GAP if gap and fault == FINE else fault
        if last[i] & ENDS_MESSAGE and show != 2 and (whole[DIRTY] != 0 or show == 1):
            _show(whole, ladder, words, shown, count)
            shown_row[count] = i
            count += 1
        i += 1
    result[0], result[1] = i, count
    return status
