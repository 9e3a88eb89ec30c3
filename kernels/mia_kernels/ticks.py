"""Trades, book snapshots and order messages into bars: one resumable pass, any block size, the same bits.

The three streams are merged by time; at one instant trades come first, then order messages, then
snapshots, because a snapshot shows the book *after* what happened at its instant. A bar is therefore
decided by the events alone and never by how they were cut into blocks.

Everything that lasts between two calls lies in three arrays (``whole``, ``real``, ``pending``), so a
restart is a copy of them. No list grows: memory does not depend on how many events have passed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.memory import bytes_at, floats_at, integers_at

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bytes = NDArray[np.int8]

NS_PER_SECOND = 1_000_000_000

# --- parameters (int64) -----------------------------------------------------------------------------
(
    BY_VOLUME,  # 0: bars of time, 1: bars of volume
    LENGTH,  # ns of a time bar
    LEVELS,  # levels of the snapshots, 0 without a book
    HAS_ORDERS,  # 1 when order messages are fed
    HORIZON,  # ns from a trade to the middle price that its realised spread is measured against
) = range(5)
PARAMETERS = 5
DEPTH = 10
NEAR = 5
"""Levels that the near-touch columns look at (``bid_ask_imbalance``, stacking and pulling)."""

# --- state, whole numbers -----------------------------------------------------------------------------
(
    BAR_START,
    BAR_END,
    SESSION_OPEN,
    SESSION_CLOSE,
    SESSION_DAY,
    IN_BAR,  # 1 once an event has placed the clock inside a bar's interval
    FIRST_TIME,
    LAST_TIME,  # last trade
    WEIGHED_TO,  # time-weighted averages are summed up to here
    BOOK_VALID,
    SLOT_END,
    SLOT_HEAD,
    SLOT_COUNT,
    SECOND,
    OUTSIDE,  # trades outside every session
    CROSSED,  # snapshots crossed, locked or without a touch
) = range(16)
WHOLE = 16

# --- state, real numbers: what a bar gathers, set back at its end --------------------------------------
(
    OPEN,
    HIGH,
    LOW,
    CLOSE,
    VOLUME,
    COUNT,
    BID_VOLUME,
    ASK_VOLUME,
    BID_COUNT,
    ASK_COUNT,
    NOTIONAL,
    SIZE_2,
    SIZE_3,
    LARGEST,
    UP,
    DOWN,
    DELTA_LOW,
    DELTA_HIGH,
    EFFECTIVE,
    EFFECTIVE_VOLUME,
    REALISED,
    REALISED_VOLUME,
    FLOW,
    FLOW_ABSOLUTE,
    FLOW_NEAR,
    SNAPSHOTS,
    WEIGHT,
    SPREAD_TIME,
    DEPTH_TIME,
    SKEW_TIME,
    BID_STACKED,
    BID_PULLED,
    ASK_STACKED,
    ASK_PULLED,
    HIT,
    BID_ABSORBED,
    ASK_ABSORBED,
    HIDDEN,
    MESSAGES,
    ADDED_BID,
    ADDED_ASK,
    CANCELLED_BID,
    CANCELLED_ASK,
    CANCELS,
    FLEETING,
    SPOOFED,
    PEAK,
    IN_SECOND,
) = range(48)
PER_BAR = 48
# What outlives a bar.
LAST_PRICE = 48
CUMULATIVE = 49
BOUGHT_SINCE = 50  # aggressive volume since the last snapshot
SOLD_SINCE = 51
MIDDLE = 52
SPREAD = 53
DEPTH_NOW = 54
SKEW_NOW = 55
BOOK = 56  # bid prices, bid sizes, ask prices, ask sizes: DEPTH of each
REAL = BOOK + 4 * DEPTH

SLOTS = 64
"""Trades wait for their realised spread in slots of 1/32 of the horizon: at most 34 are in use."""
PER_SLOT = 3  # signed notional, signed volume, volume

# --- results ---------------------------------------------------------------------------------------------
(
    OUT_OPEN,
    OUT_HIGH,
    OUT_LOW,
    OUT_CLOSE,
    OUT_VOLUME,
    OUT_TRADE_COUNT,
    OUT_BID_VOLUME,
    OUT_ASK_VOLUME,
    OUT_NEUTRAL_VOLUME,
    OUT_BID_TRADES,
    OUT_ASK_TRADES,
    OUT_VWAP,
    OUT_DELTA,
    OUT_CUMULATIVE,
    OUT_DELTA_LOW,
    OUT_DELTA_HIGH,
    OUT_AGGRESSIVE,
    OUT_VARIANCE,
    OUT_SKEWNESS,
    OUT_LARGEST,
    OUT_FREQUENCY,
    OUT_TICKS,
    OUT_SNAPSHOTS,
    OUT_OFI,
    OUT_OFI_SCORE,
    OUT_OFI_5,
    OUT_EFFECTIVE,
    OUT_REALISED,
    OUT_SPREAD,
    OUT_SPREAD_MEAN,
    OUT_DEPTH,
    OUT_DEPTH_IMBALANCE,
    OUT_IMBALANCE_1,
    OUT_IMBALANCE_5,
    OUT_SKEW_10,
    OUT_BID_STACKED,
    OUT_BID_PULLED,
    OUT_ASK_STACKED,
    OUT_ASK_PULLED,
    OUT_ABSORPTION,
    OUT_ABSORPTION_DELTA,
    OUT_HIDDEN,
    OUT_MESSAGES,
    OUT_ADDED_BID,
    OUT_ADDED_ASK,
    OUT_CANCELLED_BID,
    OUT_CANCELLED_ASK,
    OUT_CANCELLATION,
    OUT_SPOOFING,
    OUT_STUFFING_RATIO,
    OUT_STUFFING,
) = range(51)
OUT_BOOK = 51  # then bid prices, bid sizes, ask prices, ask sizes: DEPTH of each
COLUMNS = OUT_BOOK + 4 * DEPTH
FIRST_BOOK_COLUMN, FIRST_ORDER_COLUMN = OUT_SNAPSHOTS, OUT_MESSAGES
STUFFING_DEVIATIONS = 20.0
"""Standard deviations that make a second's traffic extraordinary (Egginton, Van Ness and Van Ness 2016)."""

# --- order messages ------------------------------------------------------------------------------------------
MESSAGE_ADD, MESSAGE_CANCEL, MESSAGE_MODIFY = 1, 2, 3
MARK_FLEETING, MARK_SPOOF = 1, 2

# --- the blocks of a call: addresses, then how many ----------------------------------------------------------
(
    TRADES,
    TRADE_TIME,
    TRADE_PRICE,
    TRADE_SIZE,
    TRADE_SIDE,
    SNAPSHOT_ROWS,
    SNAPSHOT_TIME,
    SNAPSHOT_COLUMNS,
    MESSAGE_ROWS,
    MESSAGE_TIME,
    MESSAGE_ACTION,
    MESSAGE_SIDE,
    MESSAGE_SIZE,
    MESSAGE_MARKS,
) = range(14)
BLOCKS = 14

# --- positions in the blocks ------------------------------------------------------------------------------------
TRADE, SNAPSHOT, MESSAGE = range(3)

_NEVER = 2**63 - 1


@kernel
def reset(whole: Integers, real: Floats) -> None:
    """Set ``whole`` (WHOLE,) and ``real`` (REAL,) to the state before the first event."""
    for i in range(WHOLE):
        whole[i] = 0
    whole[BAR_END] = -_NEVER
    whole[SESSION_CLOSE] = -_NEVER
    whole[SESSION_DAY] = -_NEVER
    for i in range(REAL):
        real[i] = 0.0
    real[LAST_PRICE] = math.nan
    _empty(real)


@kernel
def _empty(real: Floats) -> None:
    for i in range(PER_BAR):
        real[i] = 0.0


@kernel
def _forget_book(whole: Integers, real: Floats) -> None:
    whole[BOOK_VALID] = 0
    whole[SLOT_COUNT] = 0
    whole[SLOT_END] = -_NEVER
    real[BOUGHT_SINCE], real[SOLD_SINCE] = 0.0, 0.0


@kernel
def _weigh(whole: Integers, real: Floats, instant: int) -> None:
    """Extend the time-weighted averages of the book that stands, up to ``instant``."""
    if whole[BOOK_VALID] != 0 and instant > whole[WEIGHED_TO]:
        elapsed = float(instant - whole[WEIGHED_TO])
        real[WEIGHT] += elapsed
        real[SPREAD_TIME] += elapsed * real[SPREAD]
        real[DEPTH_TIME] += elapsed * real[DEPTH_NOW]
        real[SKEW_TIME] += elapsed * real[SKEW_NOW]
    whole[WEIGHED_TO] = max(whole[WEIGHED_TO], instant)


@kernel
def _settle(whole: Integers, real: Floats, pending: Floats, ends: Integers, horizon: int, instant: int) -> None:
    """Measure the trades whose horizon has passed against the middle price that stands."""
    while whole[SLOT_COUNT] > 0:
        head = whole[SLOT_HEAD]
        if ends[head] + horizon > instant:
            break
        if whole[BOOK_VALID] != 0:
            real[REALISED] += 2.0 * (pending[head, 0] - pending[head, 1] * real[MIDDLE])
            real[REALISED_VOLUME] += pending[head, 2]
        whole[SLOT_HEAD] = (head + 1) % SLOTS
        whole[SLOT_COUNT] -= 1


@kernel
def _close_bar(
    parameters: Integers, whole: Integers, real: Floats, end: int, out_times: Integers, out: Floats, at: int
) -> None:
    """Write the bar that ends at ``end`` into column ``at``."""
    start = whole[FIRST_TIME] if parameters[BY_VOLUME] != 0 else whole[BAR_START]
    out_times[0, at], out_times[1, at], out_times[2, at] = start, end, whole[SESSION_DAY]
    volume, count = real[VOLUME], real[COUNT]
    sided = real[BID_VOLUME] + real[ASK_VOLUME]
    seconds = (end - start) / NS_PER_SECOND
    out[OUT_OPEN, at], out[OUT_HIGH, at], out[OUT_LOW, at] = real[OPEN], real[HIGH], real[LOW]
    out[OUT_CLOSE, at], out[OUT_VOLUME, at], out[OUT_TRADE_COUNT, at] = real[CLOSE], volume, count
    out[OUT_BID_VOLUME, at], out[OUT_ASK_VOLUME, at] = real[BID_VOLUME], real[ASK_VOLUME]
    out[OUT_NEUTRAL_VOLUME, at] = volume - sided
    out[OUT_BID_TRADES, at], out[OUT_ASK_TRADES, at] = real[BID_COUNT], real[ASK_COUNT]
    out[OUT_VWAP, at] = real[NOTIONAL] / volume
    out[OUT_DELTA, at] = real[ASK_VOLUME] - real[BID_VOLUME]
    out[OUT_CUMULATIVE, at] = real[CUMULATIVE]
    out[OUT_DELTA_LOW, at], out[OUT_DELTA_HIGH, at] = real[DELTA_LOW], real[DELTA_HIGH]
    out[OUT_AGGRESSIVE, at] = (real[BID_COUNT] + real[ASK_COUNT]) / count
    mean = volume / count
    second = real[SIZE_2] / count - mean * mean
    third = real[SIZE_3] / count - 3.0 * mean * (real[SIZE_2] / count) + 2.0 * mean * mean * mean
    varied = count > 1.0 and second > 1e-12 * mean * mean
    out[OUT_VARIANCE, at] = max(second, 0.0)
    out[OUT_SKEWNESS, at] = third / (second * math.sqrt(second)) if varied else math.nan
    out[OUT_LARGEST, at] = real[LARGEST]
    out[OUT_FREQUENCY, at] = count / seconds if seconds > 0.0 else math.nan
    moves = real[UP] + real[DOWN]
    out[OUT_TICKS, at] = (real[UP] - real[DOWN]) / moves if moves > 0.0 else 0.0

    for k in range(FIRST_BOOK_COLUMN, COLUMNS):
        out[k, at] = math.nan
    if parameters[LEVELS] > 0:
        out[OUT_SNAPSHOTS, at] = real[SNAPSHOTS]
        if real[SNAPSHOTS] > 0.0 or real[WEIGHT] > 0.0:
            out[OUT_OFI, at], out[OUT_OFI_5, at] = real[FLOW], real[FLOW_NEAR]
            out[OUT_OFI_SCORE, at] = real[FLOW] / real[FLOW_ABSOLUTE] if real[FLOW_ABSOLUTE] > 0.0 else 0.0
            out[OUT_BID_STACKED, at], out[OUT_BID_PULLED, at] = real[BID_STACKED], real[BID_PULLED]
            out[OUT_ASK_STACKED, at], out[OUT_ASK_PULLED, at] = real[ASK_STACKED], real[ASK_PULLED]
        if real[EFFECTIVE_VOLUME] > 0.0:
            out[OUT_EFFECTIVE, at] = real[EFFECTIVE] / real[EFFECTIVE_VOLUME]
        if real[REALISED_VOLUME] > 0.0:
            out[OUT_REALISED, at] = real[REALISED] / real[REALISED_VOLUME]
        if real[WEIGHT] > 0.0:
            out[OUT_SPREAD_MEAN, at] = real[SPREAD_TIME] / real[WEIGHT]
            out[OUT_DEPTH, at] = real[DEPTH_TIME] / real[WEIGHT]
            out[OUT_DEPTH_IMBALANCE, at] = real[SKEW_TIME] / real[WEIGHT]
        if real[HIT] > 0.0:
            out[OUT_ABSORPTION, at] = (real[BID_ABSORBED] + real[ASK_ABSORBED]) / real[HIT]
            out[OUT_ABSORPTION_DELTA, at] = (real[BID_ABSORBED] - real[ASK_ABSORBED]) / real[HIT]
            out[OUT_HIDDEN, at] = real[HIDDEN] / real[HIT]
        if whole[BOOK_VALID] != 0:
            levels = min(parameters[LEVELS], DEPTH)
            out[OUT_SPREAD, at] = real[SPREAD]
            out[OUT_IMBALANCE_1, at] = _imbalance(real, 1)
            out[OUT_IMBALANCE_5, at] = _imbalance(real, min(levels, NEAR))
            out[OUT_SKEW_10, at] = real[SKEW_NOW]
            for k in range(4):
                for level in range(levels):
                    out[OUT_BOOK + k * DEPTH + level, at] = real[BOOK + k * DEPTH + level]

    if parameters[HAS_ORDERS] != 0:
        out[OUT_MESSAGES, at] = real[MESSAGES]
        out[OUT_ADDED_BID, at], out[OUT_ADDED_ASK, at] = real[ADDED_BID], real[ADDED_ASK]
        out[OUT_CANCELLED_BID, at], out[OUT_CANCELLED_ASK, at] = real[CANCELLED_BID], real[CANCELLED_ASK]
        cancelled = real[CANCELLED_BID] + real[CANCELLED_ASK]
        changed = cancelled + real[ADDED_BID] + real[ADDED_ASK]
        out[OUT_CANCELLATION, at] = cancelled / changed if changed > 0.0 else 0.0
        out[OUT_SPOOFING, at] = real[SPOOFED] / cancelled if cancelled > 0.0 else 0.0
        out[OUT_STUFFING_RATIO, at] = real[FLEETING] / real[CANCELS] if real[CANCELS] > 0.0 else 0.0
        rate = real[MESSAGES] / seconds if seconds > 1.0 else real[MESSAGES]
        excess = (max(real[PEAK], real[IN_SECOND]) - rate) / math.sqrt(rate) if rate > 0.0 else 0.0
        out[OUT_STUFFING, at] = excess / (excess + STUFFING_DEVIATIONS) if excess > 0.0 else 0.0


@kernel
def _imbalance(real: Floats, levels: int) -> float:
    bid, ask = 0.0, 0.0
    for level in range(levels):
        b, a = real[BOOK + DEPTH + level], real[BOOK + 3 * DEPTH + level]
        bid += b if b == b else 0.0  # noqa: PLR0124 - a level that is not there
        ask += a if a == a else 0.0  # noqa: PLR0124
    return (bid - ask) / (bid + ask) if bid + ask > 0.0 else 0.0


@kernel
def _end(
    parameters: Integers,
    whole: Integers,
    real: Floats,
    pending: Floats,
    ends: Integers,
    end: int,
    out_times: Integers,
    out: Floats,
    at: int,
) -> int:
    """End the bar that is open at ``end``; returns 1 when it held a trade and was written."""
    written = 0
    _settle(whole, real, pending, ends, parameters[HORIZON], end)
    _weigh(whole, real, end)
    if real[COUNT] > 0.0:
        _close_bar(parameters, whole, real, end, out_times, out, at)
        written = 1
    _empty(real)
    real[DELTA_LOW], real[DELTA_HIGH] = real[CUMULATIVE], real[CUMULATIVE]
    return written


@kernel
def _place(parameters: Integers, sessions: Integers, whole: Integers, real: Floats, instant: int) -> bool:
    """Open the bar interval that holds ``instant``; False when no session does.

    ``sessions`` (m, 3) int64: open, close (ns, half-open) and trade date (days since 1970), ascending;
    m = 0 is a market that never closes, whose trade date is the UTC day.
    """
    length = parameters[LENGTH]
    if sessions.shape[0] == 0:
        day = instant // (86_400 * NS_PER_SECOND)
        if day != whole[SESSION_DAY]:
            real[CUMULATIVE] = 0.0
            real[DELTA_LOW], real[DELTA_HIGH] = 0.0, 0.0
        whole[SESSION_DAY] = day
        whole[SESSION_OPEN] = day * 86_400 * NS_PER_SECOND
        whole[SESSION_CLOSE] = whole[SESSION_OPEN] + 86_400 * NS_PER_SECOND
    elif not whole[SESSION_OPEN] <= instant < whole[SESSION_CLOSE]:
        low, high = 0, sessions.shape[0]
        while low < high:
            middle = (low + high) // 2
            if sessions[middle, 0] <= instant:
                low = middle + 1
            else:
                high = middle
        if low == 0 or instant >= sessions[low - 1, 1]:
            return False
        whole[SESSION_OPEN], whole[SESSION_CLOSE] = sessions[low - 1, 0], sessions[low - 1, 1]
        whole[SESSION_DAY] = sessions[low - 1, 2]
        real[CUMULATIVE] = 0.0
        real[DELTA_LOW], real[DELTA_HIGH] = 0.0, 0.0
        _forget_book(whole, real)
    opened = whole[SESSION_OPEN]
    if parameters[BY_VOLUME] != 0:
        whole[BAR_START] = max(whole[BAR_END], opened)
        whole[BAR_END] = whole[SESSION_CLOSE]
    else:
        whole[BAR_START] = opened + (instant - opened) // length * length
        whole[BAR_END] = min(whole[BAR_START] + length, whole[SESSION_CLOSE])
    whole[WEIGHED_TO] = max(whole[WEIGHED_TO], whole[BAR_START])
    whole[IN_BAR] = 1
    return True


@inlined
def _side_change(
    old_price: Floats, old_size: Floats, new_price: Floats, new_size: Floats, levels: int, sign: float, result: Floats
) -> None:
    """Sizes added and removed between two snapshots of one side, price by price.

    Only prices inside both windows count, so that a level which scrolls out of view is not a
    cancellation. ``sign`` 1 for bids (descending), -1 for asks. ``result`` (2,): added, removed.
    """
    i, j = 0, 0
    added, removed = 0.0, 0.0
    while i < levels and j < levels:
        old, new = sign * old_price[i], sign * new_price[j]
        if not (old == old and new == new):  # noqa: PLR0124 - a level that is not there
            break
        if old == new:
            change = new_size[j] - old_size[i]
            added += change if change > 0.0 else 0.0
            removed -= change if change < 0.0 else 0.0
            i += 1
            j += 1
        elif new > old:
            added += new_size[j]
            j += 1
        else:
            removed += old_size[i]
            i += 1
    result[0], result[1] = added, removed


@inlined
def _flow(
    bid: float, bid_size: float, ask: float, ask_size: float, b0: float, q0: float, a0: float, r0: float
) -> float:
    """Contribution of one change of a level: Cont, Kukanov and Stoikov (2014), equation 2.1."""
    e = 0.0
    if bid >= b0:
        e += bid_size
    if bid <= b0:
        e -= q0
    if ask <= a0:
        e -= ask_size
    if ask >= a0:
        e += r0
    return e


@kernel
def _snapshot(parameters: Integers, whole: Integers, real: Floats, row: Floats, change: Floats) -> None:
    """Take one snapshot. ``row`` (4, DEPTH): bid prices, bid sizes, ask prices, ask sizes; NaN beyond the last
    level.
    """
    levels = min(parameters[LEVELS], DEPTH)
    near = min(levels, NEAR)
    bid, ask = row[0, 0], row[2, 0]
    if not bid < ask:  # crossed, locked, or one side empty: an auction, or a fault of the feed
        whole[CROSSED] += 1
        whole[BOOK_VALID] = 0
        real[BOUGHT_SINCE], real[SOLD_SINCE] = 0.0, 0.0
        return
    old_bid, old_bid_size = real[BOOK : BOOK + DEPTH], real[BOOK + DEPTH : BOOK + 2 * DEPTH]
    old_ask, old_ask_size = real[BOOK + 2 * DEPTH : BOOK + 3 * DEPTH], real[BOOK + 3 * DEPTH : BOOK + 4 * DEPTH]
    if whole[BOOK_VALID] != 0:
        e = _flow(bid, row[1, 0], ask, row[3, 0], old_bid[0], old_bid_size[0], old_ask[0], old_ask_size[0])
        real[FLOW] += e
        real[FLOW_ABSOLUTE] += abs(e)
        deep = e
        for k in range(1, near):
            step = _flow(
                row[0, k], row[1, k], row[2, k], row[3, k], old_bid[k], old_bid_size[k], old_ask[k], old_ask_size[k]
            )
            deep += step if step - step == 0.0 else 0.0
        real[FLOW_NEAR] += deep
        sold, bought = real[SOLD_SINCE], real[BOUGHT_SINCE]
        _side_change(old_bid, old_bid_size, row[0], row[1], near, 1.0, change)
        real[BID_STACKED] += change[0]
        real[BID_PULLED] += max(change[1] - sold, 0.0)
        _side_change(old_ask, old_ask_size, row[2], row[3], near, -1.0, change)
        real[ASK_STACKED] += change[0]
        real[ASK_PULLED] += max(change[1] - bought, 0.0)
        real[HIT] += sold + bought
        if bid >= old_bid[0]:
            real[BID_ABSORBED] += sold
            real[HIDDEN] += max(sold - old_bid_size[0], 0.0)
        if ask <= old_ask[0]:
            real[ASK_ABSORBED] += bought
            real[HIDDEN] += max(bought - old_ask_size[0], 0.0)
    real[SNAPSHOTS] += 1.0
    total_bid, total_ask = 0.0, 0.0
    for k in range(levels):
        old_bid[k], old_bid_size[k], old_ask[k], old_ask_size[k] = row[0, k], row[1, k], row[2, k], row[3, k]
        total_bid += row[1, k] if row[1, k] == row[1, k] else 0.0
        total_ask += row[3, k] if row[3, k] == row[3, k] else 0.0
    total = total_bid + total_ask
    real[MIDDLE] = 0.5 * (bid + ask)
    real[SPREAD] = ask - bid
    real[DEPTH_NOW] = total
    real[SKEW_NOW] = (total_bid - total_ask) / total if total > 0.0 else 0.0
    real[SOLD_SINCE], real[BOUGHT_SINCE] = 0.0, 0.0
    whole[BOOK_VALID] = 1


@kernel
def _message(whole: Integers, real: Floats, instant: int, action: int, side: int, size: float, marks: int) -> None:
    second = instant // NS_PER_SECOND
    if second != whole[SECOND]:
        real[PEAK] = max(real[PEAK], real[IN_SECOND])
        real[IN_SECOND] = 0.0
        whole[SECOND] = second
    real[IN_SECOND] += 1.0
    real[MESSAGES] += 1.0
    if action == MESSAGE_ADD:
        if side > 0:
            real[ADDED_BID] += size
        else:
            real[ADDED_ASK] += size
    elif action == MESSAGE_CANCEL:
        real[CANCELS] += 1.0
        if side > 0:
            real[CANCELLED_BID] += size
        else:
            real[CANCELLED_ASK] += size
        if marks & MARK_FLEETING:
            real[FLEETING] += 1.0
        if marks & MARK_SPOOF:
            real[SPOOFED] += size


@kernel
def advance(
    parameters: Integers,
    volume_per_bar: float,
    sessions: Integers,
    blocks: Integers,
    until: int,
    whole: Integers,
    real: Floats,
    pending: Floats,
    ends: Integers,
    done: Integers,
    out_times: Integers,
    out: Floats,
) -> int:
    """Take the events before ``until`` and write the bars that they end.

    Parameters
    ----------
    parameters, volume_per_bar
        (PARAMETERS,) int64, see the constants; the volume of a volume bar (contracts).
    sessions
        (m, 3) int64, see :func:`_place`.
    blocks
        (BLOCKS,) numbers of rows and addresses: TRADES rows of time (int64 ns UTC, ascending), price, size
        (float64) and aggressor (int8: 1, -1 or 0); SNAPSHOT_ROWS of time and, at SNAPSHOT_COLUMNS, the
        addresses of 4 * LEVELS float64 columns (bid prices, bid sizes, ask prices, ask sizes, level by
        level); MESSAGE_ROWS of time, MESSAGE_*, side of the order, size and MARK_*.
    until
        Events at or after this instant are left for the next call, and a time bar that ends at or
        before it is ended although no event has come. 2**63 - 1: take all, end none without an event.
    whole, real, pending, ends
        The state, advanced in place: (WHOLE,) int64, (REAL,), (SLOTS, 3), (SLOTS,) int64.
    done
        (3,) int64: how many trades, snapshots and messages of these blocks have been taken; advanced.
    out_times, out
        (3, c) int64 start, end, trade date; (COLUMNS, c). When c bars are full the call returns early.

    Returns
    -------
    int
        Bars written. ``c`` means: empty ``out`` and call again with the same ``done``.
    """
    capacity = out.shape[1]
    bars = 0
    levels = min(parameters[LEVELS], DEPTH)
    by_volume = parameters[BY_VOLUME] != 0
    horizon = parameters[HORIZON]
    slot_length = max(horizon // 32, 1)
    row = np.full((4, DEPTH), math.nan)
    change = np.zeros(2)
    i, j, k = done[TRADE], done[SNAPSHOT], done[MESSAGE]
    trades, snapshots, messages = blocks[TRADES], blocks[SNAPSHOT_ROWS], blocks[MESSAGE_ROWS]
    trade_time, trade_side = integers_at(blocks[TRADE_TIME], trades), bytes_at(blocks[TRADE_SIDE], trades)
    trade_price, trade_size = floats_at(blocks[TRADE_PRICE], trades), floats_at(blocks[TRADE_SIZE], trades)
    book_time = integers_at(blocks[SNAPSHOT_TIME], snapshots)
    book_columns = integers_at(blocks[SNAPSHOT_COLUMNS], 4 * levels)
    message_time, message_size = integers_at(blocks[MESSAGE_TIME], messages), floats_at(blocks[MESSAGE_SIZE], messages)
    message_action, message_side = bytes_at(blocks[MESSAGE_ACTION], messages), bytes_at(blocks[MESSAGE_SIDE], messages)
    message_marks = bytes_at(blocks[MESSAGE_MARKS], messages)
    next_book = book_time[j] if j < snapshots else _NEVER
    next_message = message_time[k] if k < messages else _NEVER
    next_trade = trade_time[i] if i < trades else _NEVER
    while True:
        instant = min(next_trade, next_message, next_book)
        if instant >= until:
            break
        if instant >= whole[BAR_END] or (by_volume and real[VOLUME] >= volume_per_bar and instant > whole[LAST_TIME]):
            if whole[IN_BAR] != 0:
                if bars == capacity:
                    break
                end = whole[BAR_END]
                if by_volume and real[COUNT] > 0.0:
                    end = whole[LAST_TIME]
                bars += _end(parameters, whole, real, pending, ends, end, out_times, out, bars)
                if by_volume:
                    whole[BAR_END] = end
            if not _place(parameters, sessions, whole, real, instant):
                whole[IN_BAR] = 0
                whole[BAR_END] = -_NEVER
                if instant == next_trade:
                    whole[OUTSIDE] += 1
                    i += 1
                    next_trade = trade_time[i] if i < trades else _NEVER
                elif instant == next_message:
                    k += 1
                    next_message = message_time[k] if k < messages else _NEVER
                else:
                    j += 1
                    next_book = book_time[j] if j < snapshots else _NEVER
                continue
        if instant == next_trade:
            # The run of trades that nothing interrupts.
            limit = min(next_message, next_book, until - 1, whole[BAR_END] - 1)
            while next_trade <= limit:
                if by_volume and real[VOLUME] >= volume_per_bar and next_trade > whole[LAST_TIME]:
                    break
                price, size, side = trade_price[i], trade_size[i], trade_side[i]
                if real[COUNT] == 0.0:
                    real[OPEN], real[HIGH], real[LOW] = price, price, price
                    whole[FIRST_TIME] = next_trade
                real[HIGH] = max(real[HIGH], price)
                real[LOW] = min(real[LOW], price)
                real[CLOSE] = price
                real[COUNT] += 1.0
                real[VOLUME] += size
                real[NOTIONAL] += price * size
                real[SIZE_2] += size * size
                real[SIZE_3] += size * size * size
                real[LARGEST] = max(real[LARGEST], size)
                bought = size if side > 0 else 0.0
                sold = size if side < 0 else 0.0
                real[ASK_VOLUME] += bought
                real[BID_VOLUME] += sold
                real[ASK_COUNT] += 1.0 if side > 0 else 0.0
                real[BID_COUNT] += 1.0 if side < 0 else 0.0
                delta = real[CUMULATIVE] + (bought - sold)
                real[CUMULATIVE] = delta
                real[DELTA_LOW] = min(real[DELTA_LOW], delta)
                real[DELTA_HIGH] = max(real[DELTA_HIGH], delta)
                real[UP] += 1.0 if price > real[LAST_PRICE] else 0.0
                real[DOWN] += 1.0 if price < real[LAST_PRICE] else 0.0
                real[LAST_PRICE] = price
                whole[LAST_TIME] = next_trade
                if levels > 0:
                    real[BOUGHT_SINCE] += bought
                    real[SOLD_SINCE] += sold
                    if whole[BOOK_VALID] != 0:
                        real[EFFECTIVE] += 2.0 * abs(price - real[MIDDLE]) * size
                        real[EFFECTIVE_VOLUME] += size
                        if side != 0:
                            if next_trade >= whole[SLOT_END]:
                                _settle(whole, real, pending, ends, horizon, next_trade)
                                whole[SLOT_END] = (next_trade // slot_length + 1) * slot_length
                                slot = (whole[SLOT_HEAD] + whole[SLOT_COUNT]) % SLOTS
                                whole[SLOT_COUNT] += 1
                                ends[slot] = whole[SLOT_END]
                                pending[slot, 0], pending[slot, 1], pending[slot, 2] = 0.0, 0.0, 0.0
                            slot = (whole[SLOT_HEAD] + whole[SLOT_COUNT] - 1) % SLOTS
                            pending[slot, 0] += side * size * price
                            pending[slot, 1] += side * size
                            pending[slot, 2] += size
                i += 1
                next_trade = trade_time[i] if i < trades else _NEVER
        elif instant == next_message:
            _message(whole, real, instant, message_action[k], message_side[k], message_size[k], message_marks[k])
            k += 1
            next_message = message_time[k] if k < messages else _NEVER
        else:
            _settle(whole, real, pending, ends, horizon, instant)
            _weigh(whole, real, instant)
            for side in range(4):
                for level in range(levels):
                    row[side, level] = floats_at(book_columns[side * levels + level], snapshots)[j]
            _snapshot(parameters, whole, real, row, change)
            j += 1
            next_book = book_time[j] if j < snapshots else _NEVER
    done[TRADE], done[SNAPSHOT], done[MESSAGE] = i, j, k
    # A time bar that is over although nothing has come after it.
    if (
        bars < capacity
        and whole[IN_BAR] != 0
        and whole[BAR_END] <= until
        and until != _NEVER
        and min(next_trade, next_message, next_book) >= until
    ):
        end = whole[BAR_END]
        if by_volume and real[COUNT] > 0.0:
            end = whole[LAST_TIME]
        bars += _end(parameters, whole, real, pending, ends, end, out_times, out, bars)
        whole[IN_BAR] = 0
        whole[BAR_END] = -_NEVER
    return bars


@kernel
def infer_sides(
    price: Floats,
    trade_time: Integers,
    quote_time: Integers,
    quote_bid: Floats,
    quote_ask: Floats,
    lag: int,
    quotes: int,
    side: Bytes,
    state: Floats,
) -> int:
    """Fill the sides that are 0 by Lee and Ready (1991), or by the tick rule where no quote stands.

    A trade above the middle of the quote that stood ``lag`` ns before it was bought, below it sold; at
    the middle, and where no quote is known, the tick rule decides: up from the last different price is
    bought, down is sold. Before the first price change the side stays 0.

    Parameters
    ----------
    price, trade_time
        (n,) prices; ns UTC ascending.
    quote_time, quote_bid, quote_ask
        (k,) ns UTC ascending; the touch. A quote of the trade's own instant does not count.
    lag
        ns that quotes are reported late (negative) or that trades are (positive); Lee and Ready used 5 s, today 0.
    quotes
        Quotes of this block that may be used (the rest belongs to later trades).
    side
        (n,) int8, filled in place where 0.
    state
        (4,): last price, direction of the last change, bid and ask that stand; NaN, 0, NaN, NaN at the start.

    Returns
    -------
    int
        Quotes that were taken.
    """
    j = 0
    for i in range(price.size):
        p = price[i]
        while j < quotes and quote_time[j] < trade_time[i] - lag:
            state[2], state[3] = quote_bid[j], quote_ask[j]
            j += 1
        if p > state[0]:
            state[1] = 1.0
        elif p < state[0]:
            state[1] = -1.0
        state[0] = p
        if side[i] == 0:
            middle = 0.5 * (state[2] + state[3]) if state[2] < state[3] else math.nan
            if p > middle:
                side[i] = 1
            elif p < middle:
                side[i] = -1
            else:
                side[i] = np.int8(state[1])
    return j
