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
