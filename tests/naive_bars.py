"""The obvious slow twins of the tick kernels: plain Python, lists and dictionaries."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

SECOND = 1_000_000_000


def time_bars(trades, book, messages, length, horizon):
    """Bars of a market that never closes, by their definitions.

    ``trades`` (time, price, size, side); ``book`` (time, bid prices, bid sizes, ask prices, ask sizes); ``messages``
    (time, action, side, size, marks). Returns {start: {column: value}} of bars with a trade.
    """
    events = [(t[0], 0, k) for k, t in enumerate(trades)] + [(m[0], 1, k) for k, m in enumerate(messages)]
    events = sorted(events + [(b[0], 2, k) for k, b in enumerate(book)])
    intervals = defaultdict(lambda: {"trades": [], "messages": [], "book": []})
    for time, kind, k in events:
        intervals[time // length * length][("trades", "messages", "book")[kind]].append(k)
    valid = [b[1][0] < b[3][0] for b in book]

    def standing(instant):  # the snapshot that stood just before an instant
        before = [k for k, b in enumerate(book) if b[0] < instant]
        return before[-1] if before and valid[before[-1]] else None

    day_delta = defaultdict(float)
    starts = sorted(intervals)
    realised = defaultdict(lambda: [0.0, 0.0])
    slot = horizon // 32
    for time, price, size, side in trades:
        if side == 0 or standing(time) is None:
            continue
        due = (time // slot + 1) * slot + horizon
        where = [s for s in starts if s + length >= due]
        quote = standing(due)
        if where and quote is not None:
            middle = (book[quote][1][0] + book[quote][3][0]) / 2
            realised[where[0]][0] += 2 * side * (price - middle) * size
            realised[where[0]][1] += size
    bars = {}
    last_price = None
    for start in starts:
        here = intervals[start]
        end = start + length
        deals = [trades[k] for k in here["trades"]]
        day = start // (86_400 * SECOND)
        low = high = day_delta[day]
        up = down = 0
        for _, price, size, side in deals:
            day_delta[day] += side * size
            low, high = min(low, day_delta[day]), max(high, day_delta[day])
            if last_price is not None:
                up, down = up + (price > last_price), down + (price < last_price)
            last_price = price
        if not deals:
            continue
        sizes = [d[2] for d in deals]
        count, volume = len(deals), sum(sizes)
        mean = volume / count
        bar = {
            "open": deals[0][1], "high": max(d[1] for d in deals), "low": min(d[1] for d in deals),
            "close": deals[-1][1], "volume": volume, "trade_count": count,
            "bid_volume": sum(d[2] for d in deals if d[3] < 0), "ask_volume": sum(d[2] for d in deals if d[3] > 0),
            "neutral_volume": sum(d[2] for d in deals if d[3] == 0),
            "bid_trades": sum(d[3] < 0 for d in deals), "ask_trades": sum(d[3] > 0 for d in deals),
            "trade_vwap": sum(d[1] * d[2] for d in deals) / volume,
            "delta_volume": sum(d[2] * d[3] for d in deals), "cumulative_delta": day_delta[day],
            "cumulative_delta_low": low, "cumulative_delta_high": high,
            "aggressive_trade_ratio": sum(d[3] != 0 for d in deals) / count,
            "trade_size_variance": sum((s - mean) ** 2 for s in sizes) / count,
            "largest_trade": max(sizes), "trade_frequency": count / (length / SECOND),
            "tick_imbalance": (up - down) / (up + down) if up + down else 0.0,
        }  # fmt: skip
        spread = sum((s - mean) ** 2 for s in sizes) / count
        third = sum((s - mean) ** 3 for s in sizes) / count
        bar["trade_size_skew"] = third / spread**1.5 if len(set(sizes)) > 1 else None
        bar |= _book_part(book, valid, here["book"], deals, standing, start, end, realised[start], trades)
        bar |= _order_part([messages[k] for k in here["messages"]], length)
        bars[start] = bar
    return bars


def _order_part(messages, length):
    if not messages:
        return {}
    added = [sum(m[3] for m in messages if m[1] == 1 and m[2] == s) for s in (1, -1)]
    cancelled = [sum(m[3] for m in messages if m[1] == 2 and m[2] == s) for s in (1, -1)]
    cancels = [m for m in messages if m[1] == 2]
    seconds = defaultdict(int)
    for m in messages:
        seconds[m[0] // SECOND] += 1
    rate = len(messages) / (length / SECOND)
    z = (max(seconds.values()) - rate) / math.sqrt(rate)
    return {
        "order_messages": len(messages), "bid_added": added[0], "ask_added": added[1],
        "bid_cancelled": cancelled[0], "ask_cancelled": cancelled[1],
        "order_cancellation_ratio": sum(cancelled) / (sum(cancelled) + sum(added)) if cancels or sum(added) else 0.0,
        "spoofing_score": sum(m[3] for m in cancels if m[4] & 2) / sum(cancelled) if cancels else 0.0,
        "quote_stuffing_ratio": sum(bool(m[4] & 1) for m in cancels) / len(cancels) if cancels else 0.0,
        "quote_stuffing_intensity": z / (z + 20) if z > 0 else 0.0,
    }  # fmt: skip


def _near_change(old_prices, old_sizes, new_prices, new_sizes, sign):
    old = {p: s for p, s in zip(old_prices[:5], old_sizes[:5], strict=True) if not math.isnan(p)}
    new = {p: s for p, s in zip(new_prices[:5], new_sizes[:5], strict=True) if not math.isnan(p)}
    floor = max(min(sign * p for p in old), min(sign * p for p in new))
    added = removed = 0.0
    for price in set(old) | set(new):
        if sign * price >= floor:
            change = new.get(price, 0.0) - old.get(price, 0.0)
            added, removed = added + max(change, 0), removed + max(-change, 0)
    return added, removed


def _book_part(book, valid, here, deals, standing, start, end, realised, trades):
    if not book:
        return {}
    bar = {"snapshots": sum(valid[k] for k in here)}
    flow, absolute, stacked, absorbed, hit, hidden = [0.0] * 5, 0.0, [0.0] * 4, [0.0, 0.0], 0.0, 0.0
    for k in here:
        if not (valid[k] and k and valid[k - 1]):
            continue
        (t0, b0, q0, a0, r0), (t1, b1, q1, a1, r1) = book[k - 1], book[k]
        for level in range(5):
            e = (b1[level] >= b0[level]) * q1[level] - (b1[level] <= b0[level]) * q0[level]
            e += (a1[level] >= a0[level]) * r0[level] - (a1[level] <= a0[level]) * r1[level]
            flow[level] += 0.0 if math.isnan(e) else e
            absolute += abs(e) if level == 0 else 0.0
        # At one instant trades come before snapshots.
        between = [t for t in trades if t0 < t[0] <= t1]
        sold, bought = (sum(t[2] for t in between if t[3] == s) for s in (-1, 1))
        added, removed = _near_change(b0, q0, b1, q1, 1)
        stacked[0], stacked[1] = stacked[0] + added, stacked[1] + max(removed - sold, 0)
        added, removed = _near_change(a0, r0, a1, r1, -1)
        stacked[2], stacked[3] = stacked[2] + added, stacked[3] + max(removed - bought, 0)
        hit += sold + bought
        if b1[0] >= b0[0]:
            absorbed[0] += sold
            hidden += max(sold - q0[0], 0)
        if a1[0] <= a0[0]:
            absorbed[1] += bought
            hidden += max(bought - r0[0], 0)
    quotes = [(d, standing(d[0])) for d in deals]
    effective = [(2 * abs(d[1] - (book[q][1][0] + book[q][3][0]) / 2) * d[2], d[2]) for d, q in quotes if q is not None]
    edges = [start, *(book[k][0] for k in here), end]
    weights = [(b - a, standing(b)) for a, b in itertools.pairwise(edges)]
    weights = [(w, q) for w, q in weights if q is not None and w]
    total = sum(w for w, _ in weights)

    def sums(k, levels):
        return tuple(sum(x for x in book[k][c][:levels] if not math.isnan(x)) for c in (2, 4))

    def skew(k, levels=10):
        bid, ask = sums(k, levels)
        return (bid - ask) / (bid + ask)

    if bar["snapshots"] or total:
        bar |= {"ofi": flow[0], "ofi_5": sum(flow), "ofi_score": flow[0] / absolute if absolute else 0.0}
        bar |= dict(zip(("bid_stacked", "bid_pulled", "ask_stacked", "ask_pulled"), stacked, strict=True))
    bar["effective_spread"] = sum(e for e, _ in effective) / sum(v for _, v in effective) if effective else None
    bar["realized_spread"] = realised[0] / realised[1] if realised[1] else None
    if total:
        bar["spread_mean"] = sum(w * (book[q][3][0] - book[q][1][0]) for w, q in weights) / total
        bar["order_book_depth"] = sum(w * sum(sums(q, 10)) for w, q in weights) / total
        bar["depth_imbalance"] = sum(w * skew(q) for w, q in weights) / total
    if hit:
        bar["absorption_strength"], bar["absorption_delta"] = sum(absorbed) / hit, (absorbed[0] - absorbed[1]) / hit
        bar["hidden_liquidity_ratio"] = hidden / hit
    now = standing(end)
    if now is not None:
        bar["spread"] = book[now][3][0] - book[now][1][0]
        bar |= {"order_imbalance": skew(now, 1), "bid_ask_imbalance": skew(now, 5), "order_book_skew_10": skew(now)}
        for c, name in ((1, "bid_price"), (2, "bid_size"), (3, "ask_price"), (4, "ask_size")):
            bar |= {f"{name}_{n + 1}": (None if math.isnan(x) else x) for n, x in enumerate(book[now][c])}
    return bar


class Book:
    """An order book of dictionaries; ``apply`` returns the name of a fault or None."""

    def __init__(self):
        self.orders = {}

    def apply(self, action, side, price, size, order_id):
        if action == "R":
            self.orders.clear()
        elif action in "TF":
            return None if size > 0 else "size_not_positive"
        elif size <= 0:
            return "size_not_positive"
        elif action == "A":
            if order_id in self.orders:
                return "order_duplicate"
            self.orders[order_id] = [side, price, size]
        elif order_id not in self.orders:
            return "order_unknown"
        elif action == "M":
            if self.orders[order_id][0] != side:
                return "side_unknown"
            self.orders[order_id] = [side, price, size]
        else:
            order = self.orders[order_id]
            if size > order[2]:
                return "taken_exceeds_resting"
            order[2] -= size
            if not order[2]:
                del self.orders[order_id]
        return None

    def levels(self, side):
        """The ten best (price, size, orders) of a side."""
        found = defaultdict(lambda: [0, 0])
        for own, price, size in self.orders.values():
            if own == side:
                found[price][0] += size
                found[price][1] += 1
        return [(p, *found[p]) for p in sorted(found, reverse=side > 0)[:10]]
