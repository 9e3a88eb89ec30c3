"""The obvious slow twin of the dealer levels: dictionaries, bisection, dense scans. Imports no kernel."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

NEW_YORK = ZoneInfo("America/New_York")
YEAR = 31_536_000.0
RATE, DIVIDENDS = 0.04, 0.014  # the shipped fallback
_erfc = np.frompyfunc(math.erfc, 1, 1)


def ncdf(z):
    return 0.5 * np.asarray(_erfc(-np.asarray(z, dtype=float) / math.sqrt(2.0)), dtype=float)


def black_price(f, k, s, right):
    """Undiscounted Black price."""
    d1 = np.log(f / k) / s + s / 2
    return right * (f * ncdf(right * d1) - k * ncdf(right * (d1 - s)))


def implied(price, f, k, t, right):
    """Volatilities by bisection on the undiscounted price, vectorised."""
    low, high = np.full_like(price, 1e-9), np.full_like(price, 60.0)
    for _ in range(80):
        mid = 0.5 * (low + high)
        above = black_price(f, k, mid, right) > price
        high, low = np.where(above, mid, high), np.where(above, low, mid)
    return 0.5 * (low + high) / np.sqrt(t)


def regression(strikes, values, half, spot):
    """Parity line through the pairs: Huber, then Tukey, by numpy's least squares. (forward, discount) or None."""
    design = np.column_stack([np.ones_like(strikes), strikes - spot])
    weight = np.ones_like(strikes)
    for turn in range(33):
        root = np.sqrt(weight) / half
        (level, slope), *_ = np.linalg.lstsq(design * root[:, None], values * root, rcond=None)
        u = np.abs(values - design @ (level, slope)) / half
        weight = np.minimum(1.0, 0.5 / np.maximum(u, 1e-300)) if turn < 8 else np.clip(1 - u * u / 4, 0, None) ** 2
        if (weight > 0).sum() < 5:
            return None
    if slope >= 0.0:
        return None
    return spot - level / slope, -slope


def settle(expiry: dt.date, settlement: str, early: frozenset[dt.date]) -> dt.datetime:
    hour = dt.time(9, 30) if settlement == "AM" else dt.time(13) if expiry in early else dt.time(16)
    return dt.datetime.combine(expiry, hour, NEW_YORK).astimezone(dt.UTC)  # Python subtracts walls in one zone


def call_and_put(spot, strikes, sigma, t, r, q):
    """Values of the calls and the puts."""
    f, discount = spot * math.exp((r - q) * t), math.exp(-r * t)
    return [discount * black_price(f, strikes, sigma * math.sqrt(t), right) for right in (1.0, -1.0)]


def difference(spot, strikes, sigma, t, r, q, steps):
    """Central differences of the values, in one or two of spot, sigma, t, r: [calls, puts]."""
    (name, h), *rest = steps.items()
    base = {"spot": spot, "sigma": sigma, "t": t, "r": r}

    def at(shift):
        moved = dict(base, **{name: base[name] + shift})
        if rest:
            return difference(moved["spot"], strikes, moved["sigma"], moved["t"], moved["r"], q, dict(rest))
        return call_and_put(moved["spot"], strikes, moved["sigma"], moved["t"], moved["r"], q)

    return [(up - down) / (2 * h) for up, down in zip(at(h), at(-h), strict=True)]


def naive_exposures(slow, spot, *, multiplier=100.0, signs=(1.0, -1.0)):
    """Dealers' exposures by central differences of prices. Theta and charm hold F/S's rates."""
    units = {
        "vega": ({"sigma": 1e-4}, 0.01),
        "theta": ({"t": 1e-6}, -1 / 365),
        "rho": ({"r": 1e-5}, 0.01),
        "vanna": ({"spot": 0.5, "sigma": 1e-3}, 0.01 * spot),
        "charm": ({"spot": 0.5, "t": 1e-6}, -spot / 365),
        "vomma": ({}, 1e-4),
    }
    out = dict.fromkeys(units, 0.0) | {"delta_call": 0.0, "delta_put": 0.0}
    for strikes, sigma, t, r, q, *interest in slow["strips"]:
        for name, (steps, unit) in units.items():
            if name == "vomma":
                h = 1e-3
                up, mid, down = (call_and_put(spot, strikes, sigma + k * h, t, r, q) for k in (1, 0, -1))
                found = [(a - 2 * b + c) / h**2 for a, b, c in zip(up, mid, down, strict=True)]
            else:
                found = difference(spot, strikes, sigma, t, r, q, steps)
            for side in range(2):
                out[name] += unit * signs[side] * multiplier * float((found[side] * interest[side]).sum())
        delta = difference(spot, strikes, sigma, t, r, q, {"spot": 0.05})
        for side, name in enumerate(("delta_call", "delta_put")):
            out[name] += spot * multiplier * float((delta[side] * interest[side]).sum())
    return out


def naive_wings(slow):
    """{(root, expiry): (sigma of the 25-delta put, of the call)} by bisection on the line between two strikes."""
    out = {}
    for key, smile in slow["surface"].items():
        t, f, carry = slow["about"][key]
        found = []
        for put in (True, False):
            side = sorted((k for k in smile if (k < f) == put), reverse=put)
            deltas = []
            for k in side:
                s = smile[k] * math.sqrt(t)
                d1 = math.log(f / k) / s + s / 2
                deltas.append(carry * float(ncdf(-d1 if put else d1)))
            value = None
            for a, b, da, db in zip(side, side[1:], deltas, deltas[1:], strict=False):
                if da >= 0.25 >= db:
                    if da - db <= 0.25:
                        share = (da - 0.25) / (da - db)
                        value = math.sqrt(smile[a] ** 2 * (1 - share) + smile[b] ** 2 * share)
                    break
            found.append(value)
        out[key] = tuple(found)
    return out


def naive_levels(
    rows: list[dict[str, Any]],
    *,
    multiplier: float = 100.0,
    american: bool = False,
    signs: tuple[float, float] = (1.0, -1.0),
    early: frozenset[dt.date] = frozenset(),
    days: int | None = None,
) -> dict[str, Any]:
    """Levels of one snapshot given as row dictionaries; only the expiries up to ``days`` away where that is given."""
    today = (rows[0].get("market_time") or rows[0]["quote_time"]).astimezone(NEW_YORK).date()
    if days is not None:
        rows = [row for row in rows if (row["expiry"] - today).days <= days]
        if not rows:
            return {}
    spot = rows[0]["underlying_price"]
    market = rows[0].get("market_time") or rows[0]["quote_time"]
    groups: dict[tuple[str, dt.date], dict[float, dict[str, dict[str, Any]]]] = {}
    half: dict[tuple[str, dt.date], str] = {}
    for row in rows:
        key = (row["root"], row["expiry"])
        half[key] = row["settlement"]
        groups.setdefault(key, {}).setdefault(row["strike"], {})[row["type"]] = row
    call_gex: dict[float, float] = {}
    put_gex: dict[float, float] = {}
    held = solved_held = 0.0
    strips = []
    surface = {}
    forwards = {}
    atm = []
    pains = []
    bare = []
    about = {}
    for key, strikes in sorted(groups.items(), key=lambda item: (settle(item[0][1], half[item[0]], early), item[0][0])):
        seconds = (settle(key[1], half[key], early) - market).total_seconds()
        if seconds <= 0:
            continue
        t = max(seconds, 60.0) / YEAR
        sides = [(k, sides["C"], sides["P"]) for k, sides in strikes.items() if len(sides) == 2]
        pairs = [
            (k, c, p)
            for k, c, p in sides
            if abs(k / spot - 1) < 0.06 and all(q["bid"] > 0 and q["ask"] > q["bid"] for q in (c, p))
        ]
        found = None
        if len(pairs) >= 5 and not american:
            found = regression(
                np.array([k for k, *_ in pairs]),
                np.array([(c["bid"] + c["ask"] - p["bid"] - p["ask"]) / 2 for _, c, p in pairs]),
                np.array([(c["ask"] - c["bid"] + p["ask"] - p["bid"]) / 2 for _, c, p in pairs]),
                spot,
            )
            if found is not None:
                limit = 0.02 + 0.25 * t
                if abs(math.log(found[1])) > limit or abs(math.log(found[0] / spot)) > limit:
                    found = None
        f, discount = found or (spot * math.exp((RATE - DIVIDENDS) * t), math.exp(-RATE * t))
        forwards[key] = (f, discount, found is not None)
        oi = {k: [s[x]["open_interest"] if x in s else 0.0 for x in "CP"] for k, s in strikes.items()}
        held += sum(map(sum, oi.values()))
        if sum(map(sum, oi.values())) > 0:
            pain = {
                level: sum(c * max(level - k, 0) + p * max(k - level, 0) for k, (c, p) in oi.items()) for level in oi
            }
            pains.append(min(sorted(pain), key=lambda level: pain[level]))
        quotes = []
        for k, s in strikes.items():
            quote = s.get("P" if k < f else "C")
            if quote and quote["bid"] > 0 and quote["ask"] > quote["bid"]:
                value = (quote["bid"] + quote["ask"]) / 2 / discount
                if value < min(f, k):
                    quotes.append((k, value, -1.0 if k < f else 1.0))
        if not quotes:
            continue
        quotes.sort()
        ks, values, rights = (np.array(column) for column in zip(*quotes, strict=True))
        sigma = implied(values, f, ks, t, rights)
        surface[key] = dict(zip(ks.tolist(), sigma.tolist(), strict=True))
        s = sigma * math.sqrt(t)
        d1 = np.log(f / ks) / s + s / 2
        gamma = discount * f / spot * np.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi) / (spot * s)
        c_oi, p_oi = (np.array([oi[k][x] for k in ks.tolist()]) for x in range(2))
        solved_held += float((c_oi + p_oi).sum())
        for k, g, c, p in zip(ks.tolist(), gamma, c_oi, p_oi, strict=True):
            unit = g * multiplier * spot**2 * 0.01
            call_gex[k] = call_gex.get(k, 0.0) + unit * c
            put_gex[k] = put_gex.get(k, 0.0) + unit * p
        rate = -math.log(discount) / t
        bare.append((ks, sigma, t, rate, rate - math.log(f / spot) / t, c_oi, p_oi))
        about[key] = (t, f, discount * f / spot)
        strips.append((ks, s, f / spot, discount * f / spot, signs[0] * c_oi + signs[1] * p_oi))
        near = np.abs(ks / f - 1) < 0.06
        x, w = np.log(ks[near] / f), sigma[near] ** 2
        if x.size and x[0] <= 0 <= x[-1]:
            atm.append((t, float(np.interp(0.0, x, w))))

    def net(level: float) -> float:
        total = 0.0
        for ks, s, ratio, carry, signed in strips:
            d1 = np.log(level * ratio / ks) / s + s / 2
            g = carry * np.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi) / (level * s)
            total += float((signed * g).sum())
        return total * multiplier * level**2 * 0.01

    grid = spot * (1 + np.arange(-200, 201) * 0.001)
    if strips:
        grid = np.union1d(grid, spot * (1 + np.arange(-100, 101) * 0.0001))
    values = [net(level) for level in grid]
    roots = []
    peak = max(map(abs, values))
    sized = [(level, value) for level, value in zip(grid, values, strict=True) if abs(value) > 1e-9 * peak]
    for (a, va), (b, vb) in itertools.pairwise(sized):
        if va * vb < 0:
            low, high = a, b
            for _ in range(60):
                mid = 0.5 * (low + high)
                low, high = (mid, high) if (net(mid) > 0) == (va > 0) else (low, mid)
            roots.append(0.5 * (low + high))
    calls, puts = sum(call_gex.values()), sum(put_gex.values())
    both = {k: call_gex[k] + put_gex[k] for k in call_gex}
    ranked = sorted((k for k in both if both[k] > 0), key=lambda k: (-both[k], abs(k - spot), k))
    upper = [k for k in call_gex if k >= spot and call_gex[k] > 0]
    lower = [k for k in put_gex if k <= spot and put_gex[k] > 0]
    target = 30 * 86400 / YEAR
    iv_atm = None
    if atm and atm[0][0] <= target <= atm[-1][0]:
        iv_atm = math.sqrt(float(np.interp(target, [t for t, _ in atm], [t * w for t, w in atm])) / target)
    return {
        "gamma_wall": ranked[0] if ranked else None,
        "key_strikes": ranked[:5],
        "call_wall": min(upper, key=lambda k: (-call_gex[k], abs(k - spot))) if upper else None,
        "put_wall": min(lower, key=lambda k: (-put_gex[k], abs(k - spot))) if lower else None,
        "net_gamma": signs[0] * calls + signs[1] * puts,
        "dealer_position_bias": (calls - puts) / (calls + puts) if calls + puts > 0 else None,
        "zero_gamma": min(roots, key=lambda r: abs(r - spot)) if roots else None,
        "roots": roots,
        "iv_atm": iv_atm,
        "max_pain": pains[0] if pains else None,
        "coverage": solved_held / held if held else None,
        "surface": surface,
        "forwards": forwards,
        "strips": bare,
        "about": about,
        "call_gex": call_gex,
        "put_gex": put_gex,
    }


def at_maturity(points, days):
    """Volatility from (years, sigma) points: total variance linear in T; None outside them."""
    target = days * 86400 / YEAR
    points = sorted(points)
    if not points or not points[0][0] <= target <= points[-1][0]:
        return None
    years, sigma = np.array(points).T
    return math.sqrt(float(np.interp(target, years, sigma**2 * years)) / target)


def between(points, f):
    """Volatility at K = F from (K, sigma) points within 6 % of F: variance linear in ln K."""
    points = sorted((k, sigma) for k, sigma in points if abs(k / f - 1) < 0.06)
    if not points or not points[0][0] <= f <= points[-1][0]:
        return None
    k, sigma = np.array(points).T
    return math.sqrt(float(np.interp(0.0, np.log(k / f), sigma**2)))


def naive_skew(slow, atm, days=30):
    """d sigma / d ln K at the money at a fixed maturity."""
    points = []
    for key, smile in slow["surface"].items():
        t, f, _ = slow["about"][key]
        if atm.get(key) is None:
            continue
        width = atm[key] * math.sqrt(t)
        x = np.array([math.log(k / f) for k in smile])
        y = np.array(list(smile.values()))
        near = np.abs(x) <= width
        if near.sum() >= 5 and (x[near] < 0).any() and (x[near] > 0).any():
            slope = float(np.polyfit(x[near] / width, y[near], 2)[1]) / width
            points.append((t, atm[key], slope))
    target = days * 86400 / YEAR
    if not points or not points[0][0] <= target <= points[-1][0]:
        return None
    t, sigma, slope = np.array(sorted(points)).T
    variance = float(np.interp(target, t, sigma**2 * t))
    change = float(np.interp(target, t, 2 * sigma * t * slope))
    return change / (2 * math.sqrt(variance / target) * target)


def naive_fields(rows, *, american=False, multiplier=100.0, early=frozenset()):
    """Every field of the levels of one snapshot, by the definitions in words."""
    slow = naive_levels(rows, american=american, multiplier=multiplier, early=early)
    spot = rows[0]["underlying_price"]
    market = (rows[0].get("market_time") or rows[0]["quote_time"]).astimezone(NEW_YORK)
    live = [row for row in rows if (row["root"], row["expiry"]) in slow["forwards"]]
    half = {(row["root"], row["expiry"]): row["settlement"] for row in live}
    first = min(half, key=lambda key: (settle(key[1], half[key], early), key[0]))
    seconds = {key: max((settle(key[1], half[key], early) - market).total_seconds(), 60.0) for key in half}

    def usable(row):
        f, discount, _ = slow["forwards"][row["root"], row["expiry"]]
        k, right = row["strike"], 1 if row["type"] == "C" else -1
        if not (row["bid"] > 0 and row["ask"] > row["bid"]):
            return False
        value = (row["bid"] + row["ask"]) / 2 / discount
        return max(right * (f - k), 0.0) < value < (f if right > 0 else k)

    quoted = [row for row in live if usable(row)]
    by_key = {key: [row for row in quoted if (row["root"], row["expiry"]) == key] for key in half}
    # volatilities
    atm = {key: between(smile.items(), slow["about"][key][1]) for key, smile in slow["surface"].items()}
    known = [(seconds[key] / YEAR, sigma) for key, sigma in atm.items() if sigma is not None]
    iv = {days: at_maturity(known, days) for days in (7, 30, 60)}
    sides = {}
    for kind, right in (("C", 1.0), ("P", -1.0)):
        points = []
        for key, part in by_key.items():
            f, discount, _ = slow["forwards"][key]
            mine = [row for row in part if row["type"] == kind and abs(row["strike"] / f - 1) < 0.06]
            if mine:
                ks = np.array([row["strike"] for row in mine])
                mids = np.array([(row["bid"] + row["ask"]) / 2 for row in mine])
                sigma = between(zip(ks, implied(mids / discount, f, ks, seconds[key] / YEAR, right), strict=True), f)
                if sigma is not None:
                    points.append((seconds[key] / YEAR, sigma))
        sides[kind] = at_maturity(points, 30)
    wings = naive_wings(slow)
    put25, call25 = (
        at_maturity([(seconds[key] / YEAR, pair[side]) for key, pair in wings.items() if pair[side] is not None], 30)
        for side in range(2)
    )
    f, discount, _ = slow["forwards"][first]
    straddle = 0.0
    for kind in "CP":
        mine = sorted(
            (row["strike"], (row["bid"] + row["ask"]) / 2)
            for row in by_key[first]
            if row["type"] == kind and abs(row["strike"] / f - 1) < 0.06
        )
        ks = [k for k, _ in mine]
        inside = bool(ks) and ks[0] <= f <= ks[-1]
        straddle += float(np.interp(f, ks, [mid for _, mid in mine])) if inside else math.nan
    gaps, spreads = [], []
    for key, part in by_key.items():
        f, discount, parity = slow["forwards"][key]
        mids = {(row["strike"], row["type"]): (row["bid"] + row["ask"]) / 2 for row in part}
        for k, kind in mids:
            if parity and kind == "C" and (k, "P") in mids and abs(k / f - 1) < 0.06:
                gaps.append(abs(mids[k, "C"] - mids[k, "P"] - discount * (f - k)) / f)
    for row in live:
        key = row["root"], row["expiry"]
        width = None if atm.get(key) is None else atm[key] * math.sqrt(seconds[key] / YEAR)
        near = width is not None and abs(math.log(row["strike"] / slow["forwards"][key][0])) <= width
        if near and row["bid"] > 0 and row["ask"] > row["bid"]:
            spreads.append(2 * (row["ask"] - row["bid"]) / (row["ask"] + row["bid"]))
    implied_spot = [
        f * math.exp(-(RATE - DIVIDENDS) * seconds[key] / YEAR)
        for key, (f, _, parity) in slow["forwards"].items()
        if parity and seconds[key] / YEAR < 30 / 365
    ]
    # open interest and volume
    held = {kind: float(sum(row["open_interest"] for row in live if row["type"] == kind)) for kind in "CP"}
    by_strike: dict[float, float] = {}
    for row in live:
        by_strike[row["strike"]] = by_strike.get(row["strike"], 0.0) + row["open_interest"]
    share = np.array(list(by_strike.values())) / sum(held.values())
    x = np.log(np.array(list(by_strike)) / spot)
    x = x - share @ x
    traded = {kind: float(sum(row["volume"] or 0 for row in live if row["type"] == kind)) for kind in "CP"}
    with_interest = [key for key in half if any(row["open_interest"] for row in live if _key(row) == key)]
    near_key = min(with_interest, key=lambda key: (settle(key[1], half[key], early), key[0]))

    def top(values):
        best = [k for k, value in values.items() if value == max(values.values()) and value > 0]
        return min(best, key=lambda k: (abs(k - spot), k)) if best else None

    peaks = {
        kind: top(
            {row["strike"]: row["open_interest"] for row in live if _key(row) == near_key and row["type"] == kind}
        )
        for kind in "CP"
    }
    # gamma and the other greeks
    calls, puts = slow["call_gex"], slow["put_gex"]
    both = {k: calls[k] + puts[k] for k in calls}
    gex = sum(both.values())
    weights = np.array([value for value in both.values() if value > 0]) / gex
    sums = dict.fromkeys(("call_delta", "put_delta", "vega", "near_vega", "theta", "rho", "charm", "speed"), 0.0)

    def vanna(level):
        total = 0.0
        for ks, sigma, t, r, q, c, p in slow["strips"]:
            s = sigma * math.sqrt(t)
            d1 = np.log(level / ks) / s + (r - q) * math.sqrt(t) / sigma + s / 2
            total += float((-math.exp(-q * t) * _n(d1) * (d1 - s) / sigma * (c - p)).sum())
        return total * multiplier * level * 0.01

    def vega_at(shift, signed=True):
        total = 0.0
        for ks, sigma, t, r, q, c, p in slow["strips"]:
            s = (sigma + shift) * math.sqrt(t)
            d1 = (np.log(spot / ks) + (r - q) * t) / s + s / 2
            total += float((spot * math.exp(-q * t) * _n(d1) * math.sqrt(t) * (c - p if signed else c + p)).sum())
        return total * multiplier

    for ks, sigma, t, r, q, c, p in slow["strips"]:
        s = sigma * math.sqrt(t)
        carry, paid = math.exp(-q * t), ks * math.exp(-r * t)
        d1 = (np.log(spot / ks) + (r - q) * t) / s + s / 2
        d2 = d1 - s
        decay = -spot * carry * _n(d1) * sigma / 2 / math.sqrt(t)
        vega = spot * carry * _n(d1) * math.sqrt(t)
        sums["call_delta"] += float((carry * ncdf(d1) * c).sum())
        sums["put_delta"] -= float((carry * ncdf(-d1) * p).sum())
        sums["vega"] += float((vega * (c + p)).sum())
        sums["near_vega"] += float((vega * (c + p)).sum()) if t <= 30 / 365 else 0.0
        for right, held_by in ((1.0, c), (-1.0, -p)):
            theta = decay - right * r * paid * ncdf(right * d2) + right * q * spot * carry * ncdf(right * d1)
            drift = (r - q) / (sigma * math.sqrt(t)) - d2 / (2 * t)
            sums["theta"] += float((theta * held_by).sum())
            sums["rho"] += float((right * t * paid * ncdf(right * d2) * held_by).sum())
            sums["charm"] += float(((right * q * carry * ncdf(right * d1) - carry * _n(d1) * drift) * held_by).sum())
        speed = -carry * _n(d1) / (spot**2 * s) * (d1 / s + 1)
        sums["speed"] += float((speed * (c - p)).sum())
    delta_call, delta_put = (sums[f"{side}_delta"] * spot * multiplier for side in ("call", "put"))
    pin = {}
    t, f, carry = slow["about"].get(first, (1.0, spot, 1.0))
    for k, sigma in slow["surface"].get(first, {}).items():
        s = sigma * math.sqrt(t)
        d1 = math.log(f / k) / s + s / 2
        pin[k] = _n(d1) / s * sum(row["open_interest"] for row in live if _key(row) == first and row["strike"] == k)
    roots = slow["roots"]
    h = 2e-6
    net = {shift: _net(slow["strips"], spot * (1 + shift), multiplier) for shift in (-h, 0.0, h)}
    return {
        "roots": tuple(sorted({row["root"] for row in rows})),
        "underlying_price": spot,
        "ref_px": float(np.median(implied_spot)) if implied_spot else None,
        "gamma_wall": slow["gamma_wall"],
        "call_wall": slow["call_wall"],
        "put_wall": slow["put_wall"],
        **{f"key_strikes_{i + 1}": k for i, k in enumerate(slow["key_strikes"])},
        "zero_gamma": slow["zero_gamma"],
        "zero_gamma_roots": tuple(roots),
        "net_gamma": net[0.0],
        "call_gamma": sum(calls.values()),
        "put_gamma": sum(puts.values()),
        "dealer_position_bias": slow["dealer_position_bias"],
        "iv_atm": iv[30],
        "iv_atm_nearest": atm.get(first),
        "nearest_expiry": first[1],
        "iv_7d": iv[7],
        "iv_60d": iv[60],
        "call_iv_atm": sides["C"],
        "put_iv_atm": sides["P"],
        "call_put_skew": _minus(sides["C"], sides["P"]),
        "risk_reversal_25": _minus(call25, put25),
        "butterfly_25": None if None in (call25, put25, iv[30]) else (call25 + put25) / 2 - iv[30],
        "option_skew": None if None in (call25, put25, iv[30]) else (put25 - call25) / iv[30],
        "iv_skew": naive_skew(slow, atm),
        "short_dated_iv_slope": None if _minus(iv[30], iv[7]) is None else _minus(iv[30], iv[7]) / 23,
        "vol_term_structure_slope": _minus(iv[30], iv[7]),
        "term_structure_skew": _minus(iv[60], iv[30]),
        "atm_straddle_cost": None if math.isnan(straddle) else straddle / spot,
        "time_to_expiry": (settle(first[1], half[first], early) - market).total_seconds() / 86400,
        "is_expiry_day": first[1] == market.date(),
        "put_call_parity_deviation": float(np.median(gaps)) if gaps else None,
        "option_spread_cost": float(np.median(spreads)) if spreads else None,
        "gex": gex,
        "gex_slope": (net[h] - net[-h]) / (2 * h) * 0.01,
        "gamma_bucket_exposure": sum(v for k, v in both.items() if abs(k / spot - 1) <= 0.1) / gex,
        "spot_gamma_corridor": sum(v for k, v in both.items() if abs(k / spot - 1) <= 0.01) / gex,
        "skewed_gamma_exposure": sum(v * ((k > spot) - (k < spot)) for k, v in both.items()) / gex,
        "gamma_notional_distribution": float(-(weights * np.log(weights)).sum() / math.log(weights.size)),
        "gamma_peak_distance": slow["gamma_wall"] / spot - 1,
        "gamma_wall_call": top(calls),
        "gamma_wall_put": top(puts),
        "zero_gamma_zone_width": roots[-1] - roots[0] if roots else None,
        "dealer_zones_count": len(roots) + 1,
        "pinning_strike": top(pin) if pin else None,
        "delta_notional_call": delta_call,
        "delta_notional_put": delta_put,
        "delta_exposure_ratio": delta_call / -delta_put,
        "delta_positioning_tilt": (delta_call + delta_put) / (delta_call - delta_put),
        "vanna_exposure": vanna(spot),
        "vanna_cliff_slope": (vanna(spot * (1 + h)) - vanna(spot * (1 - h))) / (2 * h) * 0.01,
        "charm_exposure": sums["charm"] * multiplier * spot / 365,
        "vega_exposure": vega_at(0.0) * 0.01,
        "theta_exposure": sums["theta"] * multiplier / 365,
        "rho_exposure": sums["rho"] * multiplier * 0.01,
        "vomma_exposure": (vega_at(1e-5) - vega_at(-1e-5)) / 2e-5 * 1e-4,
        "speed_exposure": sums["speed"] * multiplier * spot**3 * 1e-4,
        "ultima_exposure": (vega_at(2e-5) - 2 * vega_at(0.0) + vega_at(-2e-5)) / 4e-10 * 1e-6,
        "vega_bucket_ratio": sums["near_vega"] / sums["vega"],
        "open_interest_calls": held["C"],
        "open_interest_puts": held["P"],
        "call_put_oi_ratio": held["C"] / held["P"],
        "oi_concentration": float((share**2).sum()),
        "oi_concentration_ratio": float(np.sort(share)[-3:].sum()),
        "skewness_open_interest": float(share @ x**3 / (share @ x**2) ** 1.5),
        "oi_peak_call_near": peaks["C"],
        "oi_peak_put_near": peaks["P"],
        "option_volume": traded["C"] + traded["P"],
        "call_put_volume_ratio": traded["C"] / traded["P"] if traded["P"] else None,
        "max_pain": slow["max_pain"],
        "max_pain_expiry": near_key[1],
        "coverage": slow["coverage"],
        "contracts": len(rows),
        "contracts_live": len(live),
        "contracts_two_sided": len(quoted),
        "expiries_live": len(half),
        "forward_fallbacks": sum(not parity for *_, parity in slow["forwards"].values()),
    }


def _key(row):
    return row["root"], row["expiry"]


def _minus(a, b):
    return None if a is None or b is None else a - b


def _n(d):
    return np.exp(-d * d / 2) / math.sqrt(2 * math.pi)


def _net(strips, level, multiplier):
    total = 0.0
    for ks, sigma, t, r, q, c, p in strips:
        s = sigma * math.sqrt(t)
        d1 = (np.log(level / ks) + (r - q) * t) / s + s / 2
        total += float((math.exp(-q * t) * _n(d1) / (level * s) * (c - p)).sum())
    return total * multiplier * level**2 * 0.01


# Where a sum of signed terms may be small, the size that its rounding has: another field.
_SCALES = {
    "net_gamma": "gex",
    "gex_slope": "gex",
    "speed_exposure": "gex",
    "vanna_exposure": "vega_exposure",
    "vomma_exposure": "vega_exposure",
}
_TOLERANCE = {"gex_slope": 1e-5, "vanna_cliff_slope": 1e-5, "vomma_exposure": 1e-5, "ultima_exposure": 3e-3}


def assert_fields(levels, slow):
    """Every field of the levels that the twin computes; returns their names."""
    names = set(slow)
    for name in sorted(names):
        found, wanted = getattr(levels, name), slow[name]
        if isinstance(wanted, float) or (isinstance(found, float) and wanted is not None):
            scale = abs(slow[_SCALES[name]]) if name in _SCALES else 0.0
            room = _TOLERANCE.get(name, 1e-6) * max(abs(wanted), scale, 1e-6)
            assert found is not None, (name, found, wanted)
            assert abs(found - wanted) <= room, (name, found, wanted)
        elif isinstance(wanted, tuple) and wanted and isinstance(wanted[0], float):
            assert len(found) == len(wanted), (name, found, wanted)
            assert np.allclose(found, wanted, rtol=1e-6), (name, found, wanted)
        else:
            assert found == wanted, (name, found, wanted)
    return names
