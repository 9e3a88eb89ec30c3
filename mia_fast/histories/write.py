"""From files of bars to a history of features, part by part."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from mia_fast import config
from mia_fast.errors import DataError, WorkspaceError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.engine import FeatureEngine, Floats, room, room_size
from mia_fast.features.frame import feature_frame
from mia_fast.features.plan import Plan
from mia_fast.files import replacing, sha256
from mia_fast.histories.dataset import Dataset, Manifest, Part, part_path
from mia_fast.histories.inputs import Beside
from mia_fast.histories.sources import Survey, bars_of
from mia_fast.loading import definitions
from mia_fast.telemetry import operation
from mia_fast.version import VERSION
from mia_fast.workspace import Workspace
from mia_kernels.compile import source_digest

Progress = Callable[[int, int], None]

PART_ROWS: Final = 1 << 15
"""Rows of a part at most: a month of minute bars (31,740 in 23 sessions) is one file; of features, 92 MB."""

_SAMPLE_ROWS: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Settings:
    """How a history is written."""

    dtype: Literal["float64", "float32"] = "float64"
    compression: Literal["zstd", "lz4", "uncompressed"] = "zstd"
    part_rows: int = PART_ROWS
    """Rows of a part at most, and of a row group: it bounds the memory."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, ("float64", "float32")),
            ("compression", self.compression, ("zstd", "lz4", "uncompressed")),
        ):
            if value not in known:
                raise DataError(f"{name} {value!r} is not known", where="features", hint=f"choose {' or '.join(known)}")
        if self.part_rows < 1:
            raise DataError(f"parts of {self.part_rows} rows cannot be", where="features", hint="say 1 or more")


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do."""

    survey: Survey
    plans: dict[str, Plan]
    bytes_per_row: float
    """Of a part, measured on the first rows."""
    sample_rows: int
    null_shares: dict[str, float]
    """Computable features that were null in more than half of the sample, after their warm-up."""

    @property
    def bytes(self) -> int:
        """Expected size of the history."""
        return int(self.bytes_per_row * self.survey.total)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did."""

    manifest: Manifest
    folder: Path
    rows: int
    """Rows computed now, without those of an earlier run that was stopped."""
    reading: float
    """Seconds to read the bars, the survey's pass included, and to gather inputs."""
    computing: float
    """Seconds inside the feature engine."""
    writing: float
    """Seconds to build columns, encode, compress, hash and put them on disk."""
    complete_before: bool = False


def preview(found: Survey, beside: Beside, *, workspace: Workspace, settings: Settings) -> Preview:
    """Plan a run without writing anything.

    The size is that of the first rows of the first symbol, encoded in memory.
    """
    plans = {name: beside.plan(found, name) for name in found.symbols}
    name = next(iter(found.symbols))
    plan = plans[name]
    engine = FeatureEngine(plan)
    for pending in _pending(found, name, plan, workspace, None):
        frame = pending[:_SAMPLE_ROWS]
        known_at, columns = beside.arrays(plan, frame, found, name)
        features = typed(feature_frame(frame["timestamp"], engine.block(known_at, columns)), settings)
        later = features[frame.height // 2 :]
        whole, half = (_encoded_size(part, settings) for part in (later, later[: later.height // 2]))
        per_row = (whole - half) / max(1, later.height - later.height // 2)
        footer = whole - per_row * later.height  # of a part, however long it is
        per_row += footer / max(1, min(settings.part_rows, found.total))
        nulls = {
            column: share
            for column, share in zip(later.columns, (later.null_count() / later.height).row(0), strict=True)
            if share > 0.5 and column not in plan.missing
        }
        return Preview(found, plans, per_row, frame.height, nulls)
    raise AssertionError("a survey holds at least one bar of each symbol")


def _encoded_size(frame: pl.DataFrame, settings: Settings) -> int:
    buffer = io.BytesIO()
    _encode(frame, buffer, settings, {})
    return buffer.tell()


@operation("feature_engine", "write_history")
def write_history(
    found: Survey,
    out: Path,
    beside: Beside,
    *,
    workspace: Workspace,
    settings: Settings | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Compute the features of a survey's bars and write them below ``out``.

    One symbol after the other, one part after the other: at any time the memory holds a block of bars, the features of
    one part and the state of one engine. A part counts when it, the engine's state after it and the list of parts
    are on disk, in this order; a run that was killed goes on behind the last part that counts, and leaves the same
    bytes as one that was not.

    Parameters
    ----------
    found
        The files, from :func:`mia_fast.histories.survey`.
    out
        New or empty folder, or that of a run of the same inputs that was stopped.
    beside
        The tables beside the bars.
    workspace
        Whose catalogue and configuration apply. Nothing is written to it.
    settings
        Type, compression and size of the parts.
    fresh
        Remove what an earlier run wrote to ``out``, and begin again.
    progress
        Called with (rows done, rows); what is finished stays when it raises.

    Raises
    ------
    StateError
        ``out`` holds a history of something else, or a damaged one.
    WorkspaceError
        ``out`` cannot be written, holds other things, or is in use.
    DataError
        The bars cannot be used.
    """
    settings = settings or Settings()
    plans = {name: beside.plan(found, name) for name in sorted(found.symbols)}
    manifest = Manifest(
        _identity(found, beside, plans, settings, workspace),
        catalogues.read(workspace).names,
        {name: {f: list(lacks) for f, lacks in plan.null_features.items()} for name, plan in plans.items()},
    )
    try:
        with Dataset(out) as dataset:
            if fresh:
                dataset.clear()
            manifest = dataset.begin(manifest)
            if dataset.is_whole():
                dataset.tidy()
                return Outcome(manifest, out, 0, 0.0, 0.0, 0.0, complete_before=True)
            run = _Run(found, dataset, beside, workspace, settings, manifest, progress)
            for name, plan in plans.items():
                run.symbol(name, plan)
            dataset.finish(manifest)
    except OSError as error:
        raise WorkspaceError(
            f"the history cannot be written ({error})",
            where=str(out),
            hint="check the permissions and the free space; the same command goes on from the last finished part",
            then="what is finished stays",
        ) from error
    return Outcome(manifest, out, run.done - run.before, run.reading, run.computing, run.writing)


def _identity(
    found: Survey, beside: Beside, plans: dict[str, Plan], settings: Settings, workspace: Workspace
) -> dict[str, Any]:
    catalogue = catalogues.read(workspace)
    return {
        "mia_fast": VERSION,
        "kernels": source_digest(),
        "polars": pl.__version__,
        "catalogue": catalogue.digest,
        "definitions": definitions(catalogue, catalogue.names),
        "plans": {name: plan.digest for name, plan in plans.items()},
        "dtype": settings.dtype,
        "compression": settings.compression,
        "part_rows": settings.part_rows,
        "mapping": config.digest(workspace.config("inputs.yaml")),
        "inputs": [
            {"name": source.path.name, "bytes": source.size, "sha256": source.sha256}
            for source in sorted(found.sources, key=lambda source: (source.path.name, source.sha256))
        ],
        "tables": beside.digests(),
    }


class _Run:
    """One run at work: where it stands and where its time goes."""

    def __init__(
        self,
        found: Survey,
        dataset: Dataset,
        beside: Beside,
        workspace: Workspace,
        settings: Settings,
        manifest: Manifest,
        progress: Progress | None,
    ) -> None:
        self.found, self.dataset, self.beside, self.workspace = found, dataset, beside, workspace
        self.settings, self.manifest = settings, manifest
        self.progress = progress
        self.before = self.done = manifest.rows
        self.reading, self.computing, self.writing = found.seconds, 0.0, 0.0
        self._memory: Floats = np.empty(0)
        self._advance()

    def symbol(self, name: str, plan: Plan) -> None:
        """Compute and write the parts of a symbol that are not finished."""
        finished = [part for part in self.manifest.parts if part.symbol == name]
        if sum(part.rows for part in finished) == self.found.rows(name):
            return
        engine = FeatureEngine(plan)
        after = None
        if finished:
            engine.restore(self.dataset.state(name, len(finished)))
            after = finished[-1].last
        in_month: dict[str, int] = {}
        for part in finished:
            in_month[part.month] = in_month.get(part.month, 0) + 1
        clock = time.perf_counter()
        blocks = _pending(self.found, name, plan, self.workspace, after)
        for month, frame in _parts(blocks, self.settings.part_rows):
            self.reading += time.perf_counter() - clock
            number = in_month.get(month, 0)
            in_month[month] = number + 1
            self._part(engine, name, month, number, frame)
            clock = time.perf_counter()
        self.reading += time.perf_counter() - clock

    def _part(self, engine: FeatureEngine, name: str, month: str, number: int, frame: pl.DataFrame) -> None:
        plan = engine.plan
        began = time.perf_counter()
        known_at, columns = self.beside.arrays(plan, frame, self.found, name)
        shape = len(plan.outputs), len(known_at)
        if self._memory.size < room_size(*shape):
            self._memory = np.empty(room_size(*shape))
        out = room(*shape, self._memory)
        gathered = time.perf_counter()
        block = engine.block(known_at, columns, out=out, threads=2)
        computed = time.perf_counter()
        features = typed(feature_frame(frame["timestamp"], block), self.settings)
        path = part_path(name, month, number)
        with replacing(self.dataset.folder / path, durable=True) as temporary:
            _encode(features, temporary, self.settings, {"mia_fast.catalogue": self.manifest.identity["catalogue"]})
            size = temporary.stat().st_size
            digest = sha256(temporary)
        stamps = frame["timestamp"].dt.epoch("ns")
        self.manifest.parts.append(Part(path, name, month, frame.height, int(stamps[0]), int(stamps[-1]), size, digest))
        self.dataset.commit(self.manifest, engine.save())
        self.reading += gathered - began
        self.computing += computed - gathered
        self.writing += time.perf_counter() - computed
        self.done += frame.height
        self._advance()

    def _advance(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.found.total)


def _pending(found: Survey, name: str, plan: Plan, workspace: Workspace, after: int | None) -> Iterator[pl.DataFrame]:
    """Blocks of a symbol's timestamps, closes and inputs in order of time, behind the timestamp ``after``."""
    for source in found.symbols[name]:
        if after is None or source.spans[name].last > after:
            for frame in bars_of(source, name, workspace=workspace, default=found.default, after=after):
                inputs = [pl.col(column).cast(pl.Float64) for column in plan.inputs if column in frame.columns]
                yield frame.select("timestamp", "known_at", *inputs)


def _parts(blocks: Iterator[pl.DataFrame], part_rows: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """(month, bars): runs of bars of one UTC month, ``part_rows`` at most; the same however the blocks are cut."""
    held: list[pl.DataFrame] = []
    month = ""
    for block in blocks:
        months = block["timestamp"].dt.strftime("%Y-%m")
        for own in months.unique(maintain_order=True).to_list():
            rows = block.filter(months == own)
            if own != month and held:
                yield month, _joined(held)
                held = []
            month = own
            held.append(rows)
            while (height := sum(map(len, held))) >= part_rows:
                whole = _joined(held)
                yield month, whole[:part_rows]
                held = [whole[part_rows:]] if height > part_rows else []
    if held:
        yield month, _joined(held)


def _joined(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames, how="diagonal", rechunk=True)


def typed(frame: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The features in the type asked for; a number that float32 cannot hold is an error, not an infinity."""
    if settings.dtype == "float64":
        return frame
    names = frame.columns[1:]
    single = frame.with_columns(pl.col(names).cast(pl.Float32))
    beyond = single.select(pl.col(names).is_infinite().any()).row(0)
    lost = [name for name, bad in zip(names, beyond, strict=True) if bad and not frame[name].is_infinite().any()]
    if lost:
        raise DataError(
            f"{', '.join(lost)}: values beyond the range of float32",
            where="features",
            hint="write float64",
            then="the run stopped; no part with these rows was added",
        )
    return single


def _encode(frame: pl.DataFrame, target: Any, settings: Settings, metadata: dict[str, str]) -> None:
    """One row group, without statistics: the folders say the month, and 350 columns of them cost a pass each."""
    frame.write_parquet(
        target,
        compression=settings.compression,
        compression_level=1 if settings.compression == "zstd" else None,
        statistics=False,
        row_group_size=settings.part_rows,
        metadata=metadata,
    )
