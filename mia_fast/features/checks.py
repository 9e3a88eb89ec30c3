"""One suite of checks, run over every feature of a catalogue; a finding is data.

Each check is a rule that every feature must keep whatever it computes, so the suite needs no
knowledge of the feature: what comes later changes nothing; how rows are cut changes nothing; the
warm-up, the range, the unit and the policy on missing values are as declared; and no feature is
constant or another one again. A feature that cannot keep a rule carries the written reason in its
row (``waivers``); look-ahead and dependence on cuts cannot be waived.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import ConfigError, StateError
from mia_fast.features import kernels
from mia_fast.features.builder import CALENDAR
from mia_fast.features.catalogue import Catalogue, Feature
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.expression import Expression, parse
from mia_fast.features.kernels import FORGETS, HOLDS, KEEPS, POINTWISE, SKIPS
from mia_fast.features.plan import Plan, make_plan
from mia_fast.features.rows import Column
from mia_fast.features.sample import SESSION_ROWS, Sample, is_foreign, simulate
from mia_kernels import opcodes as op

Floats = NDArray[np.float64]
Engine = Callable[[Plan], FeatureEngine]
Progress = Callable[[int, int], None]

SIZES: Final = (1, 2, 3, 7, 64, 255, 256, 257)
"""Rows of the blocks that the block check cuts."""

_LONGEST: Final = 40
"""Sessions of memory that the simulated sample can hold up to the light."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a feature breaks."""

    feature: str
    check: str
    saw: str
    where: str
    repair: str


@dataclass(slots=True)
class Report:
    """What was checked and what was found."""

    features: int
    findings: list[Finding] = field(default_factory=list)
    waived: dict[tuple[str, str], str] = field(default_factory=dict)
    """(feature, check) -> the written reason, where a rule was broken with one."""
    over: list[str] = field(default_factory=list)
    """The data that was used."""


def check_features(
    catalogue: Catalogue,
    *,
    data: Sample | None = None,
    only: str | None = None,
    seed: int = 1,
    make_engine: Engine = FeatureEngine,
    progress: Progress | None = None,
) -> Report:
    """Run every check over every feature of a catalogue.

    Parameters
    ----------
    catalogue
        Its features, on simulated values of all its inputs (:mod:`mia_fast.features.sample`).
    data
        Bars of the user's own: look-ahead, blocks and ranges are checked on them too.
    only
        The name of one feature, to check it alone (and what it rests on).
    seed
        Of the simulated values and of the random cuts.
    make_engine
        Makes the engine under test.
    progress
        Called with (checks done, checks).

    Raises
    ------
    ConfigError
        The catalogue cannot be planned, or has no feature of that name.
    """
    if only is not None:
        chosen = tuple(feature for feature in catalogue.features if feature.name == only)
        if not chosen:
            raise ConfigError(
                f"there is no feature {only!r}", where="feature_sets.yaml", hint="mia-fast features lists them"
            )
        catalogue = _reduced(catalogue, chosen)
    bench = Bench(catalogue, seed, make_engine)
    report = Report(len(catalogue.features), over=[bench.clean.what, bench.wild.what])
    work: list[tuple[str, Iterator[Finding]]] = [(name, rule(bench)) for name, rule in CHECKS.items()]
    if data is not None:
        lacking = _plan_of(bench, data).null_features
        computed = len(catalogue.features) - len(lacking)
        report.over.append(
            f"{data.what} ({', '.join(ON_DATA)}; {computed} of {len(catalogue.features)} can be computed)"
        )
        work += [(name, rule(bench, data)) for name, rule in ON_DATA.items()]
    declared = {feature.name: feature for feature in catalogue.features}
    used: set[tuple[str, str]] = set()
    seen: set[tuple[str, str, str]] = set()
    for done, (name, found) in enumerate(work):
        if progress is not None:
            progress(done, len(work))
        for finding in found:
            reason = declared[finding.feature].waivers.get(finding.check) if name not in UNWAIVABLE else None
            if reason is not None:
                report.waived[finding.feature, finding.check] = reason
                used.add((finding.feature, finding.check))
            elif (finding.feature, finding.check, finding.where) not in seen:
                seen.add((finding.feature, finding.check, finding.where))
                report.findings.append(finding)
    report.findings += _idle_waivers(catalogue, used, alone=only is not None)
    if progress is not None:
        progress(len(work), len(work))
    return report


def _idle_waivers(catalogue: Catalogue, used: set[tuple[str, str]], *, alone: bool) -> Iterator[Finding]:
    for feature in catalogue.features:
        for check in feature.waivers:
            if check not in CHECKS or check in UNWAIVABLE:
                known = ", ".join(name for name in CHECKS if name not in UNWAIVABLE)
                yield Finding(feature.name, "waiver", f"waives {check!r}", "feature_sets.yaml", f"one of: {known}")
            elif (feature.name, check) not in used and not (alone and check == "duplicate"):
                yield Finding(
                    feature.name,
                    "waiver",
                    f"waives {check!r}, which it passes",
                    "feature_sets.yaml",
                    "remove the waiver",
                )


def _reduced(catalogue: Catalogue, chosen: tuple[Feature, ...]) -> Catalogue:
    """The catalogue with some features and what they rest on; the other features become auxiliary columns."""
    names = {feature.name for feature in chosen}
    inputs = {column.name for column in catalogue.inputs}
    others = [
        Column(**row.model_dump(include=set(Column.model_fields)))
        for row in catalogue.features
        if row.name not in names and row.name not in inputs
    ]
    made = Catalogue(
        kernels_from=catalogue.kernels_from,
        inputs=catalogue.inputs,
        auxiliary=(*catalogue.auxiliary, *others),
        features=chosen,
    )
    return made.with_kernels(catalogue.own)


# --- the bench ----------------------------------------------------------------------------------------


class Bench:
    """A catalogue on simulated data, and what the checks share: its graph, its values, its engine."""

    def __init__(self, catalogue: Catalogue, seed: int, make_engine: Engine) -> None:
        self.catalogue, self.seed, self.make_engine = catalogue, seed, make_engine
        self.names = catalogue.names
        self.features = {feature.name: feature for feature in catalogue.features}
        self.inputs = {column.name: column for column in catalogue.inputs}
        self.columns: dict[str, Column] = {
            c.name: c for c in (*catalogue.auxiliary, *catalogue.features) if c.name not in self.inputs
        }
        self.plan = self.plan_for(tuple(self.inputs))
        self._ancestors: dict[str, frozenset[str]] = {}
        self._parsed: dict[str, Expression] = {}
        self._reaches: dict[str, frozenset[str]] = {}
        self.sessions = 5 + min(_LONGEST, max((self.remembers(name) for name in self.names), default=0))

    def plan_for(self, available: Sequence[str], tick_size: float = 0.25) -> Plan:
        """The plan of this catalogue over these inputs."""
        return make_plan(self.catalogue, available, bar_minutes=1.0, tick_size=tick_size)

    def run(self, sample: Sample, plan: Plan | None = None) -> Floats:
        """(features, n) of a fresh engine in one call."""
        return self.make_engine(plan or self.plan).batch(sample.known_at, sample.columns)

    @cached_property
    def clean(self) -> Sample:
        """Whole sessions, every input present from the first row on."""
        return simulate(self.catalogue, self.sessions, seed=self.seed)

    @cached_property
    def wild(self) -> Sample:
        """The same with what markets do at their worst."""
        return simulate(self.catalogue, self.sessions, seed=self.seed, wild=True)

    @cached_property
    def short(self) -> Sample:
        """Three sessions and a part of the next, for what needs many runs; a third of its minutes are irregular."""
        rows = self.wild.rows(slice(0, 3 * SESSION_ROWS + 300))
        keep = np.random.default_rng(self.seed).random(len(rows)) > 0.03
        keep[SESSION_ROWS + 200 : SESSION_ROWS + 290] = False
        keep[0] = True
        return rows.rows(keep)

    @cached_property
    def values(self) -> Floats:
        """The features on :attr:`clean`."""
        return self.run(self.clean)

    @cached_property
    def year(self) -> tuple[Sample, Floats]:
        """A sparse year and more, for what rests on the calendar alone: every 601 minutes; and its features."""
        known_at = self.clean.known_at[0] + 601 * 60_000_000_000 * np.arange(1000, dtype=np.int64)
        empty = np.full(len(known_at), math.nan)
        sample = Sample(known_at, dict.fromkeys(self.inputs, empty), what="a simulated year")
        return sample, self.run(sample)

    def telling(self, name: str) -> tuple[Sample, Floats]:
        """Data on which a feature shows what it is: the sample's last sessions, or a year of dates."""
        sample, values = (self.clean, self.values) if self.raw(name) else self.year
        return sample, values[self.names.index(name)]

    def sources(self, name: str) -> tuple[str, ...]:
        """The columns that a computed column reads."""
        row = self.columns[name]
        return row.inputs if row.expression is None else self.formula(name).columns

    def formula(self, name: str) -> Expression:
        """The parsed formula of a column that has one."""
        if name not in self._parsed:
            self._parsed[name] = parse(str(self.columns[name].expression), name)
        return self._parsed[name]

    def ancestors(self, name: str) -> frozenset[str]:
        """Every column that a column rests on, itself included: computed, declared and calendar."""
        if name not in self._ancestors:
            found = {name}
            if name in self.columns:
                for source in self.sources(name):
                    found |= self.ancestors(source)
            self._ancestors[name] = frozenset(found)
        return self._ancestors[name]

    def raw(self, name: str) -> frozenset[str]:
        """The declared inputs that a feature rests on."""
        return self.ancestors(name) & self.inputs.keys()

    def remembers(self, name: str) -> int:
        """How many whole sessions a feature looks back at most, by its warm-up and its parameters."""
        spans = [self.columns[part].params for part in self.ancestors(name) if part in self.columns]
        longest = max((max(p.get("span", 0.0), p.get("sessions", 0.0)) for p in spans), default=0.0)
        return self.plan.warmups[name].sessions + int(longest)

    def looks_ago(self, name: str) -> bool:
        """True when a column rests on a formula with ago()."""
        return any(
            part in self.columns and self.columns[part].expression is not None and self._own_minutes(part)
            for part in self.ancestors(name)
        )

    def _own_minutes(self, name: str) -> bool:
        row = self.columns[name]
        if row.expression is not None:
            return any(token.minutes for token in self.formula(name).tokens)
        return "minutes" in row.params

    def keeps(self, name: str) -> bool:
        """True for what rests on a kernel that keeps its value: it need not be null where an input is missing."""
        rows = (self.columns[part] for part in self.ancestors(name) if part in self.columns)
        found = (kernels.find(row.kernel, self.catalogue.own) for row in rows)
        return any(kernel is not None and kernel.missing == KEEPS for kernel in found)

    def reaches(self, name: str) -> frozenset[str]:
        """How a column looks back: ``bars``, ``clock``, ``session``; ``calendar`` if it reads the clock itself."""
        if name not in self._reaches:
            self._reaches[name] = self._looks_back(name)
        return self._reaches[name]

    def _looks_back(self, name: str) -> frozenset[str]:
        if name in CALENDAR:
            return frozenset({"calendar"})
        if name not in self.columns:
            return frozenset()
        row = self.columns[name]
        found: frozenset[str] = frozenset()
        for source in self.sources(name):
            found |= self.reaches(source)
        if row.expression is not None:
            tokens = self.formula(name).tokens
            found |= {"bars"} if any(token.bars for token in tokens) else frozenset()
            return found | ({"clock"} if any(token.minutes for token in tokens) else frozenset())
        if row.kernel == "column":
            return found
        kernel = kernels.find(row.kernel, self.catalogue.own)
        assert kernel is not None
        if kernel.missing not in (POINTWISE, FORGETS, HOLDS) or kernel.warmup(row).sessions:
            return found - {"bars"} | {"session"}
        if "minutes" in row.params:
            # A window of returns takes one only when both of its closes lie inside.
            returns = all(self.columns[s].kernel == "log_return" for s in row.inputs if s in self.columns)
            return (found - {"bars"} if returns else found) | {"clock"}
        return found | {"bars"}


def _differ(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Where two matrices differ in any bit; NaN equals NaN."""
    bits: NDArray[np.bool_] = np.ascontiguousarray(a).view(np.int64) != np.ascontiguousarray(b).view(np.int64)
    return bits & ~(np.isnan(a) & np.isnan(b))


def _each_difference(
    bench: Bench, check: str, got: Floats, want: Floats, where: str, saw: str, repair: str, first_row: int = 0
) -> Iterator[Finding]:
    different = _differ(got, want)
    for k in np.flatnonzero(different.any(axis=1)):
        row = int(np.argmax(different[k]))
        yield Finding(
            bench.names[k],
            check,
            f"{saw}: {float(got[k, row])!r} instead of {float(want[k, row])!r} in {int(different[k].sum()):,} rows",
            f"{where}, row {first_row + row:,}",
            repair,
        )


# --- the rules ------------------------------------------------------------------------------------------


def prefix(bench: Bench, data: Sample | None = None) -> Iterator[Finding]:
    """What comes after a row changes nothing up to it: neither other bars nor none."""
    data = data or bench.short
    plan = _plan_of(bench, data)
    whole = bench.run(data, plan)
    rng = np.random.default_rng(bench.seed)
    n = len(data)
    ends = sorted({e for e in (1, 2, 255, 256, 257, n - 1, *rng.integers(1, n, 4).tolist()) if 0 < e < n})
    repair = "let it read nothing after its own row: no negative lag, no centred window, no value of a later bar"
    for end in ends:
        future = {
            name: np.concatenate([values[:end], (values[end:] * rng.uniform(1.2, 3.0))[::-1]])
            for name, values in data.columns.items()
        }
        got = bench.run(data.altered(future), plan)[:, :end]
        yield from _each_difference(
            bench, "prefix", got, whole[:, :end], data.what, f"another future after row {end:,} changes it", repair
        )
        got = bench.run(data.rows(slice(0, end)), plan)
        yield from _each_difference(
            bench, "prefix", got, whole[:, :end], data.what, f"no future after row {end:,} changes it", repair
        )


def blocks(bench: Bench, data: Sample | None = None) -> Iterator[Finding]:
    """However rows are cut, live or in batch, resumed or not, on one thread or two: 0 differing bits."""
    data = data or bench.short
    plan = _plan_of(bench, data)
    whole = bench.run(data, plan)
    engine = bench.make_engine(plan)
    rng = np.random.default_rng(bench.seed + 1)
    repair = "let its state be all that it carries from row to row, and reserve and save all of it"

    def cut(ends: Sequence[int], rows: int, *, resume: bool) -> Floats:
        nonlocal engine
        engine.reset()
        out = np.empty((len(plan.outputs), rows))
        start = 0
        for end in (*ends, rows):
            if end > start:
                part = data.rows(slice(start, end))
                out[:, start:end] = engine.batch(part.known_at, part.columns)
            if resume and end < rows:
                saved = engine.save()
                engine = bench.make_engine(plan)
                engine.restore(saved)
            start = end
        return out

    for size in SIZES:
        rows = min(len(data), 1500 if size < 64 else len(data))
        got = cut(range(size, rows, size), rows, resume=False)
        where = f"{data.what}, blocks of {size}"
        yield from _each_difference(bench, "blocks", got, whole[:, :rows], where, "cuts change it", repair)
    for _ in range(2):
        ends = sorted(rng.integers(1, len(data), 12).tolist())
        try:
            got = cut(ends, len(data), resume=True)
        except StateError as error:
            for name in bench.names:
                yield Finding(name, "blocks", f"its state cannot be resumed: {error.what}", data.what, repair)
            break
        where = f"{data.what}, resumed at rows {', '.join(map(str, ends[:4]))}, ..."
        yield from _each_difference(bench, "blocks", got, whole, where, "resuming from its state changes it", repair)
    rows = min(len(data), 1000)
    engine.reset()
    live = np.empty((len(plan.outputs), rows))
    bars = _listed(data, plan.bar_inputs, rows)
    slow = {table: _listed(data, names, rows) for table, names in plan.held.items()}
    for k, (instant, bar) in enumerate(zip(data.known_at[:rows].tolist(), bars, strict=True)):
        for table, values in slow.items():
            if k == 0 or values[k] != values[k - 1]:  # what a slow table brings stands until it is set anew
                engine.hold(table, values[k])
        live[:, k] = engine.update(instant, bar)
    yield from _each_difference(
        bench, "blocks", live, whole[:, :rows], f"{data.what}, live", "bar by bar it is another", repair
    )
    if "threads" in inspect.signature(engine.batch).parameters:
        engine.reset()
        got = engine.batch(data.known_at, data.columns, threads=2)  # type: ignore[call-arg, unused-ignore]
        yield from _each_difference(
            bench, "blocks", got, whole, f"{data.what}, two threads", "the number of threads changes it", repair
        )


def _listed(data: Sample, names: Sequence[str], rows: int) -> list[list[float]]:
    """The first rows of some columns, each as a list."""
    listed: list[list[float]] = np.column_stack(
        [data.columns[name][:rows] for name in names] or [np.empty((rows, 0))]
    ).tolist()
    return listed


def warmup(bench: Bench) -> Iterator[Finding]:
    """Null for exactly as long as declared, on bars without a gap from a session's open on."""
    for name, values in zip(bench.names, bench.values, strict=True):
        declared = bench.plan.warmups[name]
        present = ~np.isnan(values)
        first = int(np.argmax(present)) if present.any() else len(values)
        low = high = max(declared.rows, declared.sessions * SESSION_ROWS)
        if declared.sessions and any(bench.inputs[raw].unit == "s UTC" for raw in bench.raw(name)):
            low, high = 1, declared.sessions * SESSION_ROWS  # the next daily value arrives inside the session
        elif declared.sessions:  # a window over what takes sessions fills in the session that follows
            low, high = declared.sessions * SESSION_ROWS, declared.sessions * SESSION_ROWS + declared.rows
        if not low <= first <= high:
            saw = f"its first value is at row {first:,}" if present.any() else "it never has a value"
            yield Finding(
                name,
                "warmup",
                f"{saw}, its declared warm-up of {declared} means {low:,}" + (f" to {high:,}" if high > low else ""),
                bench.clean.what,
                "declare the warm-up that the kernel really needs",
            )


def in_range(bench: Bench, data: Sample | None = None) -> Iterator[Finding]:
    """Every value lies in the declared closed range and is finite, on wild data as well."""
    for sample in (bench.clean, bench.wild) if data is None else (data,):
        plan = _plan_of(bench, sample)
        for name, values in zip(bench.names, bench.run(sample, plan), strict=True):
            low, high = bench.features[name].range
            outside = np.isinf(values)
            outside |= values < (-math.inf if low is None else low)
            outside |= values > (math.inf if high is None else high)
            if outside.any():
                row = int(np.argmax(outside))
                yield Finding(
                    name,
                    "range",
                    f"{float(values[row])!r} is outside {_bounds(low, high)}, in {int(outside.sum()):,} rows",
                    f"{sample.what}, row {row:,}",
                    "bound the formula, or declare the range that it has",
                )
        if data is None:
            engine = bench.make_engine(plan)
            engine.batch(sample.known_at, sample.columns)
            for name, count in engine.failures.items():
                for feature in bench.names:
                    if name in bench.ancestors(feature):
                        yield Finding(
                            feature,
                            "range",
                            f"the function behind {name!r} raised in {count:,} rows, whose values are missing",
                            sample.what,
                            "an index out of bounds is the usual cause: x has look_back + 1 rows",
                        )


def _bounds(low: float | None, high: float | None) -> str:
    return f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"


def missing(bench: Bench) -> Iterator[Finding]:
    """A missing input is felt as the derived policy says, and only by what rests on that input."""
    fault = SESSION_ROWS + 500
    forgotten = {name: _forgotten(bench, name, fault) for name in bench.names}
    repair = "give its kernel the policy that it keeps, or let it keep the one it has"
    for group in _apart(bench):
        # As far as the longest memory that rests on the group reaches, and a session more: five at least.
        until = max((forgotten[name] for name in bench.names if bench.raw(name) & set(group)), default=0)
        data = bench.clean.rows(slice(0, max(until, 4 * SESSION_ROWS) + SESSION_ROWS))
        n = len(data)
        clean = bench.values[:, :n]
        changed = {raw: data.columns[raw].copy() for raw in group}
        for values in changed.values():
            values[fault] = math.nan
        bad = bench.run(data.altered(changed))
        different = _differ(bad, clean)
        empty = np.isnan(bad)
        for k, name in enumerate(bench.names):
            raw = next((raw for raw in group if raw in bench.raw(name)), None)
            if raw is None and not different[k].any():
                continue
            policy, rows = bench.plan.policies[name], bench.plan.warmups[name].rows
            felt, null = different[k], empty[k] & ~np.isnan(clean[k])
            after, end = min(n, fault + rows + 2), forgotten[name]
            saw = None
            if np.isinf(bad[k]).any():
                saw = f"it is infinite at row {int(np.argmax(np.isinf(bad[k]))):,}"
            elif raw is None:
                saw = "it rests on none of these inputs, yet it changes"
            elif felt[:fault].any():
                saw = f"it changes already at row {int(np.argmax(felt)):,}"
            elif policy in (POINTWISE, FORGETS) and felt[after:].any() and not _since(bench, name):
                saw = f"it still differs at row {after + int(np.argmax(felt[after:])):,}, but its policy is to forget"
            elif policy == POINTWISE and (felt & ~empty[k]).any() and not _since(bench, name):
                saw = "it has another value where it should have none"
            elif policy in (HOLDS, SKIPS) and not (null[fault:after].any() or bench.keeps(name)) and felt.any():
                saw = "it has another value, but its policy is to be null at such a bar"
            elif policy == KEEPS and null[fault]:
                saw = "it is null at such a bar, but its policy is to keep its value"
            elif null[end:].any():
                saw = f"one missing value still empties it at row {end + int(np.argmax(null[end:])):,}"
            if saw is not None:
                where = f"{data.what}, {raw or ', '.join(group)} missing at row {fault:,}"
                yield Finding(name, "missing", f"{saw} (its policy: {policy})", where, repair)


def _forgotten(bench: Bench, name: str, fault: int) -> int:
    """The row from which a value that was missing at ``fault`` must not empty a feature any more."""
    warmup = bench.plan.warmups[name]
    if warmup.sessions or "session" in bench.reaches(name):
        return (3 + warmup.sessions) * SESSION_ROWS
    return fault + warmup.rows + 2


def _apart(bench: Bench) -> list[list[str]]:
    """The inputs in groups of which no feature rests on two: one run serves a whole group."""
    resting = {raw: {name for name in bench.names if raw in bench.raw(name)} for raw in bench.inputs}
    groups: list[tuple[list[str], set[str]]] = []
    for raw in sorted(resting, key=lambda raw: -len(resting[raw])):
        for members, taken in groups:
            if not taken & resting[raw]:
                members.append(raw)
                taken.update(resting[raw])
                break
        else:
            groups.append(([raw], set(resting[raw])))
    return [members for members, _ in groups]


def _since(bench: Bench, name: str) -> bool:
    """True for what is measured since an instant: it remembers the value of that instant by definition."""
    return any(bench.inputs[raw].unit == "s UTC" for raw in bench.raw(name))


def gaps(bench: Bench) -> Iterator[Finding]:
    """Bar windows reach over a hole in time, time windows do not, and what is long past is forgotten."""
    data = bench.clean
    want = bench.values
    reach = {name: bench.reaches(name) for name in bench.names}
    # The same bars with a later clock: to count bars is not to look at it.
    at = SESSION_ROWS + 400
    moved = data.known_at.copy()
    moved[at:] += 41 * 60_000_000_000
    later = Sample(moved, data.columns, data.tick_size, data.what)
    different = _differ(bench.run(later), want)
    for k, name in enumerate(bench.names):
        if reach[name] <= {"bars"} and different[k].any():
            yield Finding(
                name,
                "gaps",
                "it counts bars, yet a hole of 41 minutes between the same bars changes it",
                f"{data.what}, row {int(np.argmax(different[k])):,}",
                "count bars alone, or use a kernel or ago() that counts minutes",
            )
    # Another past before a hole that is longer than any window in minutes.
    keep = np.ones(len(data), dtype=bool)
    keep[at : at + 5 * 60] = False
    holed = data.rows(keep)
    first = bench.run(holed)
    past = {name: np.where(np.arange(len(holed)) < at, 2.0 * v, v) for name, v in holed.columns.items()}
    different = _differ(bench.run(holed.altered(past)), first)[:, at:]
    for k, name in enumerate(bench.names):
        # The last value known 30 minutes ago is that before the hole, until 30 minutes have passed.
        different[k, : bench.plan.warmups[name].rows if bench.looks_ago(name) else 0] = False
        if reach[name] <= {"clock", "calendar"} and different[k].any():
            yield Finding(
                name,
                "gaps",
                "its time windows reach over a hole of five hours",
                f"{data.what}, row {at + int(np.argmax(different[k])):,} after the hole",
                "use kernels that compare the bars' times",
            )
    # Another first session: nothing may remember it for ever.
    old = {name: np.where(np.arange(len(data)) < SESSION_ROWS, 1.5 * v, v) for name, v in data.columns.items()}
    known = {name: data.columns[name] for name in data.columns if bench.inputs[name].unit == "s UTC"}
    got = bench.run(data.altered(old | known))
    for k, name in enumerate(bench.names):
        if bench.remembers(name) > _LONGEST:
            yield Finding(
                name,
                "gaps",
                f"it looks back {bench.remembers(name)} sessions; that it forgets them is checked up to {_LONGEST}",
                data.what,
                "waive it with the reason for so long a memory",
            )
            continue
        start = (3 + bench.remembers(name)) * SESSION_ROWS
        a, b = got[k, start:], want[k, start:]
        allowed = 1e-9 * float(np.max(np.abs(b), initial=0.0, where=~np.isnan(b)))
        if bench.remembers(name) > bench.plan.warmups[name].sessions:
            # An average over days fades by its span: half of what the past did must be gone after one.
            change = np.abs(got[k, SESSION_ROWS:start] - want[k, SESSION_ROWS:start])
            allowed = max(allowed, 0.5 * float(np.max(change, initial=0.0, where=~np.isnan(change))))
        apart = (np.isnan(a) != np.isnan(b)) | (np.abs(a - b) > allowed)
        if apart.any():
            yield Finding(
                name,
                "gaps",
                "it still remembers the first session: "
                f"{float(a[np.argmax(apart)])!r} instead of {float(b[np.argmax(apart)])!r}",
                f"{data.what}, row {start + int(np.argmax(apart)):,}",
                "let its state fade, or start it again at each session",
            )


_BASES: Final[dict[str, tuple[int, int]]] = {
    **dict.fromkeys(("index points", "index point", "points", "point", "price", "usd", "tick value"), (1, 0)),
    "squared point": (2, 0),
    "cubed point": (3, 0),
    **dict.fromkeys(("contracts", "contract"), (0, 1)),
    **dict.fromkeys(
        (
            "", "-", "percent", "%", "fraction", "flag", "score", "ratio", "atr", "annualised fraction", "share",
            "shares", "trades", "trade", "orders", "order", "messages", "rows", "row", "bar", "bars", "session",
            "sessions", "s", "s utc", "ms", "second", "seconds", "minute", "minutes", "hour", "hours", "day", "days",
            "year", "years", "count", "events", "event", "levels", "strikes", "number", "1", "volatility",
            "volatility points", "vol point", "vol points", "z", "standard deviations", "sd", "correlation", "bits",
            "nats", "rank", "probability", "turns", "ticks", "1 % move", "1 % of rate", "volatility point", "zones",
            "annualised variance", "log return", "log ratio", "releases", "impact", "days since 1970", "ounce",
            "percentage points",
            "barrel", "expiries",
        ),
        (0, 0),
    ),
}  # fmt: skip
"""By a unit's word: the powers of price and of volume that it scales with."""


def degrees(unit: str) -> tuple[int, int] | None:
    """The powers of price and of volume in a unit such as ``contracts per index point``; None if it is unknown."""
    text = unit.lower().strip()
    if re.match(r"-?\d+(\.\d+)?\s*(\.\.|,|\s[a-z])", text) and not text.startswith("1 %"):
        return (0, 0)  # bounds (0..1), or categories (0 trend, 1 range)
    total = [0, 0]
    for place, part in enumerate(re.split(r"(?:^|\s)per\s|\s*/\s*", text)):
        for factor in re.split(r"\s+[*x]\s+|\*", part.strip()):
            word, _, power = factor.strip().partition("^")
            base = _BASES.get(word.strip())
            if base is None or (power and not power.lstrip("-").isdigit()):
                return None
            sign = (int(power) if power else 1) * (1 if place == 0 else -1)
            total[0] += sign * base[0]
            total[1] += sign * base[1]
    return total[0], total[1]


def scaling(bench: Bench) -> Iterator[Finding]:
    """In other units of price or volume a feature is the same, times what its unit says."""
    for column in bench.inputs.values():
        if degrees(column.unit) is None:
            for name in bench.names:
                if column.name in bench.raw(name):
                    yield Finding(
                        name,
                        "scaling",
                        f"rests on {column.name!r}, whose unit {column.unit!r} is not known",
                        "feature_sets.yaml",
                        "write the unit with words that the table in checks.py knows: contracts per index point",
                    )
    for law, (which, factor) in {"price": (0, 2.0), "volume": (1, 4.0)}.items():
        scaled = {}
        for name, values in bench.clean.columns.items():
            power = 0 if is_foreign(bench.inputs[name]) else (degrees(bench.inputs[name].unit) or (0, 0))[which]
            scaled[name] = values * factor**power
        tick = bench.clean.tick_size * (factor if law == "price" else 1.0)
        got = bench.run(bench.clean.altered(scaled), bench.plan_for(tuple(bench.inputs), tick))
        for k, name in enumerate(bench.names):
            powers = degrees(bench.features[name].unit)
            where = f"{bench.clean.what}, {law} times {factor:g}"
            if powers is None:
                yield Finding(
                    name,
                    "scaling",
                    f"its unit {bench.features[name].unit!r} is not known",
                    "feature_sets.yaml",
                    "write the unit with words that the table in checks.py knows: contracts per index point",
                )
                continue
            own = [raw for raw in bench.raw(name) if not is_foreign(bench.inputs[raw])]
            power = powers[which] if any((degrees(bench.inputs[raw].unit) or (0, 0))[which] for raw in own) else 0
            want = bench.values[k] * factor**power
            size = np.maximum(np.abs(want), np.nanmax(np.abs(want), initial=0.0) * 1e-3)
            apart = (np.isnan(got[k]) != np.isnan(want)) | (np.abs(got[k] - want) > 1e-9 * size)
            if apart.any():
                row = int(np.argmax(apart))
                yield Finding(
                    name,
                    "scaling",
                    f"{float(got[k, row])!r} instead of {float(want[row])!r}: its unit "
                    f"{bench.features[name].unit!r} means a factor of {factor**power:g}",
                    f"{where}, row {row:,}",
                    "correct the unit, or take the constant with a dimension out of the formula",
                )


def constant(bench: Bench) -> Iterator[Finding]:
    """A feature moves."""
    for name in bench.names:
        sample, values = bench.telling(name)
        present = values[~np.isnan(values)]
        if len(present) and (present == present[0]).all():
            yield Finding(
                name,
                "constant",
                f"it is {float(present[0])!r} in all {len(present):,} rows",
                sample.what,
                "a column that never moves says nothing: remove it",
            )


def duplicate(bench: Bench) -> Iterator[Finding]:
    """No feature is another one again, nor that times a number plus a number."""
    dated = [name for name in bench.names if not bench.raw(name)]
    yield from _alike(bench, [name for name in bench.names if bench.raw(name)], bench.clean, bench.values)
    yield from _alike(bench, dated, *bench.year) if dated else ()


def _alike(bench: Bench, names: Sequence[str], sample: Sample, values: Floats) -> Iterator[Finding]:
    rows = [bench.names.index(name) for name in names]
    tail = values[rows, -4 * SESSION_ROWS :]
    present = ~np.isnan(tail)
    mean = np.where(present, tail, 0.0).sum(axis=1, keepdims=True) / np.maximum(present.sum(axis=1, keepdims=True), 1)
    centred = np.where(present, tail - mean, 0.0)
    norm = np.sqrt((centred * centred).sum(axis=1, keepdims=True))
    unit = centred / np.where(norm > 0.0, norm, 1.0)
    for first, second in np.argwhere(np.triu(np.abs(unit @ unit.T) > 1.0 - 1e-7, k=1)):
        both = present[first] & present[second]
        a, b = tail[first, both], tail[second, both]
        if len(a) < 3 or np.ptp(a) == 0.0:
            continue
        slope, offset = np.polyfit(a, b, 1)
        if np.max(np.abs(slope * a + offset - b)) > 1e-9 * max(float(np.max(np.abs(b))), float(np.ptp(b))):
            continue
        one, other = names[first], names[second]
        if "duplicate" in bench.features[one].waivers:
            one, other = other, one
        same = bool((a == b).all())
        yield Finding(
            other,
            "duplicate",
            f"it is {one!r}" if same else f"it is {slope:.6g} times {one!r} plus {offset:.6g}",
            sample.what,
            "keep one of the two, or say in its waivers why both are wanted",
        )


def _plan_of(bench: Bench, data: Sample) -> Plan:
    available = tuple(name for name in bench.inputs if name in data.columns)
    if data.bar_minutes == 1.0 and available == bench.plan.inputs and data.tick_size == 0.25:
        return bench.plan
    return make_plan(bench.catalogue, available, bar_minutes=data.bar_minutes, tick_size=data.tick_size)


CHECKS: Final[dict[str, Callable[[Bench], Iterator[Finding]]]] = {
    "prefix": prefix,
    "blocks": blocks,
    "warmup": warmup,
    "range": in_range,
    "missing": missing,
    "gaps": gaps,
    "scaling": scaling,
    "constant": constant,
    "duplicate": duplicate,
}
"""Every check, over the simulated sample."""

ON_DATA: Final[dict[str, Callable[[Bench, Sample], Iterator[Finding]]]] = {
    "prefix": prefix,
    "blocks": blocks,
    "range": in_range,
}
"""The checks that hold on any data, the user's own as well."""

UNWAIVABLE: Final = ("prefix", "blocks")
"""No reason excuses these."""

assert op.HISTORY < 5 * 60, "the hole of the gap check must be longer than any window in minutes"
