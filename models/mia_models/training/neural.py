"""Trains, judges and exports the networks: one graph, ``networks.onnx``, with its manifest and card."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from mia_models.errors import ModelError
from mia_models.manifest import (
    FORMAT,
    INPUT_NAME,
    OUTPUT_NAME,
    Blanked,
    Calibration,
    Chosen,
    DataFile,
    Input,
    Manifest,
    MapQuality,
    Memory,
    Metric,
    Output,
    Parity,
    SelfTest,
    Training,
    graph_path,
    manifest_path,
    schema_sha256,
)
from mia_models.training import export, graph, judge, latent, networks, neural_card, prepare
from mia_models.training.response import INPUTS, UNITS
from mia_models.training.rows import LONG, REGIME, REGIMES, SHORT, TARGETS, VIX, Floats, Mask, Rows, instant

NAME = "networks"
VERSION = "1.1.0"
BARS, VIX_GROUP = "bars", "vix"
SETTLED = 1e-3
"""Settled is what differs by no more than this share of each output's range, wherever the state began from zeros."""
_SETTLE_STARTS, _SETTLE_LONGEST, _SETTLE_STEP = 24, 8192, 256
REQUIRED_COVERAGE = 0.999
"""A feature of bars alone that is there in so many of the training rows is required; the others may be missing."""
PARITY = 1e-5
"""The graph against PyTorch, in units of each output's scale."""
_LATENT_STEPS, _LATENT_BATCH = 600, 512
_COMPARED = 2000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Declared:
    """What the catalogue says of a feature: its unit, the digest of its rows, whether bars alone give it."""

    unit: str
    definition: str
    from_bars: bool


def train(
    rows: Rows,
    prior: Floats,
    out: Path,
    *,
    declared: Mapping[str, Declared],
    chosen: Chosen,
    data: tuple[DataFile, ...] = (),
    settings: networks.Settings | None = None,
    folds: tuple[judge.Fold, ...] = judge.FOLDS,
    latent_steps: int = _LATENT_STEPS,
    latent_batch: int = _LATENT_BATCH,
    compared: int = _COMPARED,
    progress: Progress = lambda _message: None,
) -> Manifest:
    """Judge every method walk-forward, choose what is served by that, fit it on all rows before the hold-out, export.

    Parameters
    ----------
    rows
        Bars with the chosen features and all targets, in the order of time, reaching into the last of ``folds``.
    prior
        float64 (9,), for the VIX regression: :func:`mia_models.training.prior.from_daily`.
    out
        Folder of ``networks.onnx``, ``.manifest.json``, ``.md`` and of the checkpoints (``checkpoints/*.safetensors``),
        from which a stopped training goes on.
    declared
        By feature, and for the inputs of the regression.
    chosen
        How the features came to be chosen.
    folds
        In order; the last is the hold-out, which decides nothing, nor may the features have been chosen on it.
    latent_steps, latent_batch, compared
        Steps of the map's training and rows in each; rows of the hold-out on which it is compared with others.

    Raises
    ------
    ModelError
        The rows cannot be used, the features were chosen on the hold-out or nobody knows on what, a checkpoint is of
        another training, or the graph does not compute what was trained.
    """
    settings = settings or networks.Settings()
    _chosen_before(chosen, folds[-1])
    if rows.known_at[-1] < instant(folds[-1].first) or rows.known_at[0] >= instant(folds[0].first):
        raise ModelError(
            f"the rows do not reach from before {folds[0].first} into the hold-out from {folds[-1].first}",
            where="rows",
            hint="give the minute bars of 2019, 2020, 2021 and the first half of 2022",
            then="nothing was trained",
        )
    optional = _optional(rows, declared, instant(folds[0].first))
    scores: dict[str, list[judge.Scores]] = {name: [] for name in TARGETS}
    judged: list[tuple[judge.Fold, slice, judge.Predictions]] = []
    for fold in folds:
        fitted, learned = judge.fit(
            rows,
            fold.first,
            prior,
            optional,
            settings,
            checkpoint=out / "checkpoints" / f"{NAME}_{fold.period}.safetensors",
            progress=lambda line, fold=fold: progress(f"{fold.period}: {line}"),  # type: ignore[misc]
        )
        test = rows.between(instant(fold.first), instant(fold.last))
        found = judge.predictions(fitted, rows, test)
        judged.append((fold, test, found))
        if fold is folds[-1]:
            break
        for name in TARGETS:
            score = judge.scores(name, rows, test, found)
            if score is None:
                raise ModelError(
                    f"no bar of {fold.period} has a value of {name} and of all that is measured against it",
                    where="rows",
                    hint="give whole years of bars and the VIX of those years",
                    then="nothing was written",
                )
            scores[name].append(score)
    served = {name: judge.winner(name, scores[name], settings.seed) for name in TARGETS}
    progress("served: " + ", ".join(f"{name} by {method}" for name, method in served.items()))
    metrics = [
        metric
        for name in TARGETS
        for fold, test, found in judged
        for metric in judge.metrics(name, served[name], fold.period, rows, test, found, settings.seed)
    ]
    fold, test, found = judged[-1]
    raw = rows.matrix[learned]
    raw = raw[:: max(1, len(raw) // 60_000)]
    from_bars = np.array([declared[name].from_bars for name in rows.names])
    view = latent.view(rows.names, raw, from_bars, fitted.preparation.kind == prepare.LEVEL)
    placed = latent.fit(raw, view, steps=latent_steps, batch=latent_batch, seed=settings.seed, progress=progress)
    progress("comparing the map")
    behind = np.linspace(test.start, test.stop - 1, min(compared, test.stop - test.start)).astype(np.int64)
    maps = latent.compare(
        placed,
        raw[:: max(1, len(raw) // (3 * compared))],
        rows.matrix[behind],
        rows.targets[REGIME][behind],
        seed=settings.seed,
    )
    needed_by_vix = np.isin(rows.names, INPUTS)
    blanked = [
        part
        for inputs, missing in (
            ("all that bars alone do not give", ~from_bars),
            ("all that no output requires", optional & ~needed_by_vix),
            ("besides, what `predicted_vix` alone requires", optional),
        )
        for part in _blanked(fitted, rows, test, found, served, inputs, missing)
    ]
    rates = {name: float(np.nanmean(rows.targets[name][: fitted.rows])) for name in (LONG, SHORT)}
    calibration = []
    for name in (LONG, SHORT):
        calibration.append(
            judge.calibration(name, name, fold.period, found[name][served[name]], rows.targets[name][test])
        )
    known = np.isfinite(rows.targets[REGIME][test])
    for k, regime in enumerate(REGIMES):
        came = np.where(known, rows.targets[REGIME][test] == k, np.nan)
        calibration.append(judge.calibration(REGIME, regime, fold.period, found[REGIME][served[REGIME]][:, k], came))
    manifest = write(
        out,
        rows,
        fitted,
        placed,
        served,
        rates,
        optional,
        declared=declared,
        chosen=chosen,
        data=data,
        settings=settings,
        metrics=tuple(metrics),
        calibration=tuple(calibration),
        maps=maps,
        blanked=tuple(blanked),
        remarks=tuple(fold.seen for fold in folds if fold.seen),
    )
    (out / f"{NAME}.md").write_text(neural_card.render(manifest), encoding="utf-8")
    progress(f"wrote {NAME} to {out}")
    return manifest


def write(
    out: Path,
    rows: Rows,
    fitted: judge.Fitted,
    placed: latent.Map,
    served: Mapping[str, str],
    rates: Mapping[str, float],
    optional: Mask,
    *,
    declared: Mapping[str, Declared],
    chosen: Chosen,
    data: tuple[DataFile, ...],
    settings: networks.Settings,
    metrics: tuple[Metric, ...],
    calibration: tuple[Calibration, ...],
    maps: tuple[MapQuality, ...],
    blanked: tuple[Blanked, ...] = (),
    remarks: tuple[str, ...] = (),
) -> Manifest:
    """Build the graph, hold it against PyTorch, measure when it settles, write it and after it the manifest."""
    extra = tuple(name for name in INPUTS if name not in rows.names)
    names = (*rows.names, *extra)
    content = graph.build(fitted.preparation, fitted.networks, placed, fitted.regression, served, rates, names)
    tested = slice(max(0, fitted.rows - 4000), fitted.rows)
    matrix = raw_inputs(rows, names, tested)
    parity = compare(run(content, matrix), expected(fitted, placed, served, rates, matrix, names))
    settle_rows, settle_starts = settle(content, rows, names, slice(0, fitted.rows), optional)
    p = fitted.preparation
    inputs = [
        Input(
            name=name,
            unit=declared[name].unit,
            median=float(p.median[k]),
            low=float(p.low[k]),
            high=float(p.high[k]),
            minimum=float(p.minimum[k]),
            maximum=float(p.maximum[k]),
            groups=tuple([VIX_GROUP] * (name in INPUTS) + [BARS] * (not optional[k])),
            definition=declared[name].definition,
        )
        for k, name in enumerate(rows.names)
    ]
    for name in extra:
        values = rows.extra[name][: fitted.rows]
        values = values[np.isfinite(values)]
        median, least, most = (float(v) for v in np.quantile(values, [0.5, 0.01, 0.99]))
        inputs.append(
            Input(
                name=name,
                unit=UNITS[INPUTS.index(name)],
                median=median,
                low=least,
                high=most,
                minimum=float(values.min()),
                maximum=float(values.max()),
                groups=(VIX_GROUP,),
                definition=declared[name].definition,
            )
        )
    whole_rows = matrix[np.isfinite(matrix).all(axis=1)]
    sample = whole_rows[-8:]
    manifest = Manifest(
        format=FORMAT,
        name=NAME,
        version=VERSION,
        target="the next minutes, the next hour and the coming VIX close, see each output",
        inputs=tuple(inputs),
        outputs=tuple(_outputs()),
        schema_sha256=schema_sha256(names, graph.OUTPUTS),
        graph_sha256=hashlib.sha256(content).hexdigest(),
        opset=export.OPSET,
        versions={
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
        },
        training=Training(
            first=_date(fitted.first),
            last=_date(fitted.last),
            sessions=fitted.sessions,
            rows=fitted.rows,
            seed=settings.seed,
            method="; ".join(f"{name}: {method}" for name, method in served.items()),
            data=data,
            remarks=remarks,
        ),
        self_test=SelfTest(
            inputs=tuple(tuple(row) for row in sample.tolist()),
            outputs=tuple(tuple(row) for row in run(content, sample).tolist()),
            relative_tolerance=1e-4,
            absolute_tolerance=1e-4,
        ),
        metrics=metrics,
        memory=Memory(
            states=graph.states(settings, served),
            group=BARS,
            settle_rows=settle_rows,
            settled_within=SETTLED,
            settle_starts=settle_starts,
        ),
        chosen=chosen,
        calibration=calibration,
        maps=maps,
        map_inputs=tuple(rows.names[k] for k in placed.view.columns),
        blanked=blanked,
        parity=parity,
    )
    out.mkdir(parents=True, exist_ok=True)
    export.replace(graph_path(out, NAME), content)
    export.replace(manifest_path(out, NAME), (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


_WHOLE = tuple(graph.OUTPUTS.index(name) for name in ("neural_regime", "cluster_id"))
"""Labels: two may be as likely, or as near, as each other to the last digit."""


def compare(given: Floats, wanted: Floats) -> Parity:
    """Hold the graph's answers (n, outputs) against PyTorch's.

    Raises
    ------
    ModelError
        An output differs by more than :data:`PARITY` of its range, is missing on one side, or a label differs in more
        than a thousandth of the rows.
    """
    low, high = np.nanquantile(wanted, [0.0, 1.0], axis=0)
    apart = np.where(np.isnan(given) & np.isnan(wanted), 0.0, np.abs(given - wanted))
    off = np.where(np.isnan(apart), np.inf, apart).max(axis=0) / np.maximum(high - low, 1e-2)
    off[list(_WHOLE)] = 0.0
    furthest = int(np.argmax(off))
    labels = (given != wanted)[:, _WHOLE].mean(axis=0)
    if off[furthest] > PARITY or labels.max() > 1e-3:
        wrong = furthest if off[furthest] > PARITY else _WHOLE[int(np.argmax(labels))]
        raise ModelError(
            f"the exported graph does not compute what was trained: {graph.OUTPUTS[wrong]} is off by "
            f"{off[furthest]:.1e} of its range, labels in {labels.max():.1%} of the rows",
            where="export",
            hint="report this: the export and mia_models.training.networks differ",
            then="nothing was written",
        )
    return Parity(rows=len(given), output=graph.OUTPUTS[furthest], largest=float(off[furthest]), allowed=PARITY)


def settle(content: bytes, rows: Rows, names: tuple[str, ...], past: slice, optional: Mask) -> tuple[int, int]:
    """After how many rows a start from zeros is forgotten, on the last rows of ``past``; and from how many starts.

    The least multiple of 256 behind which no output differs by more than :data:`SETTLED` of its range from the walk
    that began long before, from any of the starts, which lie evenly.

    Raises
    ------
    ModelError
        There is a start that was not forgotten at the end of its rows.
    """
    part = slice(max(past.start, past.stop - 60_000), past.stop)
    matrix = raw_inputs(rows, names, part)
    needed = np.concatenate([~optional, np.zeros(len(names) - len(optional), dtype=np.bool_)])
    matrix = matrix[np.isfinite(matrix[:, needed]).all(axis=1)]
    longest = min(_SETTLE_LONGEST, len(matrix) // 2)
    whole = run(content, matrix)
    size = np.maximum(np.ptp(np.nan_to_num(whole), axis=0), 1e-2)
    size[list(_WHOLE)] = np.inf
    unsettled = 0
    starts = np.unique(np.linspace(longest // 4, len(matrix) - longest, _SETTLE_STARTS).astype(np.int64))
    for start in starts:
        cut = slice(int(start), int(start) + longest)
        apart = np.nan_to_num(np.abs(run(content, matrix[cut]) - whole[cut])) / size
        late = np.flatnonzero((apart > SETTLED).any(axis=1))
        unsettled = max(unsettled, int(late[-1]) + 1 if late.size else 0)
    if unsettled == longest:
        raise ModelError(
            f"the state that the graph begins with still matters {longest} rows later",
            where="export",
            hint="train on more rows, or with a smaller rate: the LSTM does not forget",
            then="nothing was written",
        )
    return -(-unsettled // _SETTLE_STEP) * _SETTLE_STEP, len(starts)


def _blanked(
    fitted: judge.Fitted,
    rows: Rows,
    test: slice,
    whole: judge.Predictions,
    served: Mapping[str, str],
    inputs: str,
    missing: Mask,
) -> list[Blanked]:
    """What the served outputs lose when the ``missing`` features are NaN; without outputs that read none of them."""
    without = judge.answers(fitted, rows, test, missing)
    result = []
    for name in TARGETS:
        if not missing.any() or served[name] not in without[name]:
            continue
        target = rows.targets[name][test]
        with_all, found = (judge.loss(name, p[name][served[name]], target) for p in (whole, without))
        known = np.isfinite(with_all) & np.isfinite(found)
        if known.any():
            loss, complete = round(float(found[known].mean()), 5), round(float(with_all[known].mean()), 5)
            result.append(Blanked(output=name, inputs=inputs, count=int(missing.sum()), loss=loss, whole=complete))
    return result


def _chosen_before(chosen: Chosen, hold_out: judge.Fold) -> None:
    """A choice that saw the hold-out is refused: its losses would say nothing."""
    last = None if chosen.period is None else chosen.period[1]
    if last is None or instant(last.removesuffix("Z")) >= instant(hold_out.first):
        raise ModelError(
            f"the features were chosen on bars up to {last or 'nobody knows when'}, "
            f"and the hold-out {hold_out.period} begins on {hold_out.first}",
            where="selection",
            hint=f"choose them again: mia-fast select HISTORY --until {hold_out.first}",
            then="nothing was trained",
        )


def raw_inputs(rows: Rows, names: tuple[str, ...], part: slice) -> Floats:
    """float64 (n, inputs) as the graph takes them."""
    columns = [rows.extra[name][part] for name in names[len(rows.names) :]]
    return np.column_stack([rows.matrix[part].astype(np.float64), *columns])


def expected(
    fitted: judge.Fitted,
    placed: latent.Map,
    served: Mapping[str, str],
    rates: Mapping[str, float],
    matrix: Floats,
    names: tuple[str, ...],
) -> Floats:
    """What PyTorch and NumPy say for rows of the graph's inputs, state from zero: float64 (n, outputs)."""
    p = fitted.preparation
    z = p.apply(matrix[:, : len(p.names)])
    raw = {k: v.astype(np.float64) for k, v in networks.predict(fitted.networks, z).items()}
    mlp, lstm, linear = raw["mlp"], raw["lstm"], raw["linear"]
    with np.errstate(invalid="ignore", divide="ignore"):
        vix = fitted.regression.predict({name: matrix[:, names.index(name)] for name in INPUTS})
    if served[VIX] == "lstm":
        vix = vix * np.exp(lstm[:, 4] * networks.VIX_SCALE)
    reference = p.reference(matrix[:, names.index("vol_historical_5d")])
    pressure = {"cnn": raw["cnn"], "linear": linear[:, 0], "zero": np.zeros(len(z))}[served["cnn_pressure"]]
    ratio = {"mlp": mlp[:, 0], "lstm": lstm[:, 0], "linear": linear[:, 1]}[served["predicted_volatility"]]
    logits = {"mlp": mlp[:, 1:4], "lstm": lstm[:, 1:4], "logistic regression": linear[:, 2:5]}[served[REGIME]]
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    success = [
        1.0
        / (
            1.0
            + np.exp(
                -{
                    "mlp": mlp[:, 4 + k],
                    "logistic regression": linear[:, 5 + k],
                    "base rate": np.full(len(z), np.log(rates[name] / (1 - rates[name]))),
                }[served[name]]
            )
        )
        for k, name in enumerate((LONG, SHORT))
    ]
    points = placed.place(matrix)
    columns = [vix, pressure, reference * np.exp(ratio), chances.argmax(axis=1), chances, *success]
    return np.column_stack([*columns, raw["components"], points, placed.clusters(points)])


def run(content: bytes, matrix: Floats) -> Floats:
    """The graph's answers to rows in order, state from zero."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    feeds = {one.name: np.zeros(one.shape, dtype=np.float32) for one in session.get_inputs()[1:]}
    answers: Floats = session.run([OUTPUT_NAME], {INPUT_NAME: matrix, **feeds})[0]
    return answers


def _optional(rows: Rows, declared: Mapping[str, Declared], before: int) -> Mask:
    """Features that may be missing: other tables' ones, and those with gaps in the rows before the first fold."""
    known = np.isfinite(rows.matrix[: np.searchsorted(rows.known_at, before) : 10]).mean(axis=0)
    return np.array(
        [
            not declared[name].from_bars or share < REQUIRED_COVERAGE
            for name, share in zip(rows.names, known, strict=True)
        ]
    )


def _outputs() -> list[Output]:
    def one(name: str, unit: str, low: float, high: float, meaning: str, group: str = BARS) -> Output:
        return Output(name=name, unit=unit, minimum=low, maximum=high, meaning=meaning, group=group)

    chances = [
        one(f"regime_prob_{name}", "0..1", -1e-6, 1.0 + 1e-6, f"probability that the next hour's regime is {name}")
        for name in REGIMES
    ]
    neural = [one(f"neural_feature_{k}", "-", -1.0, 1.0, f"component {k} of the LSTM's last layer") for k in range(8)]
    axes = [
        one(f"latent_vol_regime_vec_{k + 1}", "-", -1e3, 1e3, f"axis {k + 1} of the volatility regime's map")
        for k in range(latent.DIMENSIONS)
    ]
    low, high = export.LOWEST_VIX, export.HIGHEST_VIX
    return [
        one("predicted_vix", "index points", low, high, "conditional median of the coming VIX close", VIX_GROUP),
        one("cnn_pressure", "-1..1", -1.0, 1.0, "expected return of the next 5 minutes / (3 realised volatilities)"),
        one("predicted_volatility", "annualised fraction", 0.0, 20.0, "realised volatility of the next 30 minutes"),
        one("neural_regime", "0 trend, 1 range, 2 defensive", 0.0, 2.0, "the most probable regime of the next hour"),
        *chances,
        one("trade_success_prob", "0..1", 0.0, 1.0, "probability of +1 ATR before -1 ATR within 30 bars"),
        one("trade_success_prob_short", "0..1", 0.0, 1.0, "probability of -1 ATR before +1 ATR within 30 bars"),
        *neural,
        *axes,
        one("cluster_id", "label", 0.0, 99.0, "nearest KMeans centre on the first two axes of the map"),
    ]


def _date(instant_ns: int) -> dt.date:
    return dt.date(1970, 1, 1) + dt.timedelta(days=instant_ns // (86_400 * 10**9))
