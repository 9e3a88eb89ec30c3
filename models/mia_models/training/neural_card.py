"""The networks' model card, written from the manifest so that its figures are the measured ones."""

from __future__ import annotations

from collections.abc import Mapping

from mia_models.manifest import Manifest, Metric
from mia_models.training.card import error_table

_CARD = """\
# Model card: {name} {version}

One graph for every model output; a bar costs one step, the state goes in and comes out. Inputs: {count} numbers,
{features} of them stage-1 features. {candidates} of the catalogue's {all_features} features had values in
{asked_share} of the period's rows; {taken}

## What is served, and what it was measured against

Chosen by the mean loss of the walk-forward years; the hold-out ({hold_out}) had no say. *Gain* is over the best
baseline of that row, chosen in hindsight, with a 95 % bootstrap interval that draws whole sessions.

| output | served by | measure | loss in {hold_out} | best baseline | gain | 95 % interval |
|---|---|---|---|---|---|---|
{summary}

{verdict}

`trade_success_prob` is the long side's, `trade_success_prob_short` the short side's. `neural_feature_0..7` are the
LSTM's last layer; they have no target of their own: it was trained to read the next half hour's volatility, the
next hour's regime and the VIX from them. A *linear* method is ridge or logistic regression on the same inputs.
For `predicted_vix`, what is served is the regression of `predicted_vix.md`, whose card has the stronger baselines
(linear response, HAR); here it is the mark that the LSTM had to beat.

## Data

Trained on {rows:,} bars of {first} to {last}, {sessions} sessions; the hold-out lies behind. A day is purged
between the rows of a training and what follows. The last eighth of each training decides when to stop and
calibrates the heads. No statistic has seen the hold-out. Bars are continuous ES minutes, back-adjusted by absolute
roll gaps.

| file | SHA-256 |
|---|---|
{files}

## Losses out of sample

By year (each fitted on everything before it) and by the regime that came.

{tables}

## Calibration of the probabilities, {hold_out}

Ten bins of equal count: what was said on average, how often it came.

{calibration}

## The map

`latent_vol_regime_vec_1..5`; the first two are the map, `cluster_id` is the nearest KMeans centre on it. 2,000
rows of the hold-out, 10 neighbours. *Rand index*: adjusted, of three clusters with the regime that came.
*Stability*: of the clusters found in the first and in the second half of the training, applied to these rows.

| method | trustworthiness | continuity | Rand index | stability |
|---|---|---|---|---|
{maps}

{map_verdict}

## What it needs

{required} inputs are required: those that bars alone give in nearly every row, and the seven of
`predicted_vix`, which that output alone needs. The other {optional} (daily closes, the calendar, sessions of
history) may be missing: a NaN there is read as the training median, as in a quarter of the training's
stretches. Infinities, and NaN in what is required, are refused and the state stays as it was. In the first
{settle} rows after a start from zeros the outputs that use the state have not settled.

## Limits

- Three years with one crash. Features that mostly vary from month to month (yields, levels of the VIX) get no
  weight: by some 36 values of them a network would tell dates.
- Five minutes ahead the return can hardly be told from chance: take `cnn_pressure` as a weak prior, if at all. The
  same holds for the probabilities of success.
- Regimes are those of the next hour, against the last 60 sessions of before; around halts and week-ends they have
  no label.
- No order flow and no options were at hand for these years: features of them are not candidates.
- Frames get these outputs (`generate_predictions`, `encode_vol_regime`). The live engine and replays step
  `predicted_vix` alone: they do not carry this graph's state yet.

## Train again

`pip install 'mia-fast[train]'`, then `mia-fast train networks` with the bars, the daily closes and the calendar.
Seed {seed}. A stopped training goes on from `checkpoints/`.
"""


def render(manifest: Manifest, served: Mapping[str, str]) -> str:
    """The card as Markdown."""
    assert manifest.chosen is not None and manifest.memory is not None  # noqa: PT018 - an export always has both
    periods = list(dict.fromkeys(m.period for m in manifest.metrics))
    hold_out = periods[-1]
    last = [m for m in manifest.metrics if m.period == hold_out and m.view == "all bars"]
    chosen = manifest.chosen
    required = sum(bool(part.groups) for part in manifest.inputs)
    return _CARD.format(
        name=manifest.name,
        version=manifest.version,
        count=len(manifest.inputs),
        features=sum(1 for part in manifest.inputs) - sum(part.groups == ("vix",) for part in manifest.inputs[-3:]),
        candidates=chosen.candidates,
        all_features=chosen.features,
        asked_share="at least 60 %",
        taken=f"with fewer than {chosen.asked}, all of them are taken."
        if chosen.all_taken
        else f"the {chosen.asked} with the highest SHAP value are taken.",
        hold_out=hold_out,
        summary="\n".join(
            f"| {m.output} | {served[m.output]} | {m.measure} | {m.errors[m.model]:.4f} | {m.best_baseline} "
            f"({m.errors[m.best_baseline]:.4f}) | {m.gain:+.1%} | {m.gain_low:+.1%} to {m.gain_high:+.1%} |"
            for m in last
        ),
        verdict=_verdict(last, served),
        rows=manifest.training.rows,
        first=manifest.training.first,
        last=manifest.training.last,
        sessions=manifest.training.sessions,
        seed=manifest.training.seed,
        files="\n".join(f"| {part.name} | `{part.sha256[:16]}` |" for part in manifest.training.data),
        tables="\n\n".join(
            f"### {name}: {next(m.measure for m in manifest.metrics if m.output == name)}\n\n"
            + error_table([m for m in manifest.metrics if m.output == name], 4)
            for name in dict.fromkeys(m.output for m in manifest.metrics)
        ),
        calibration="\n\n".join(
            f"**{c.output}**, mean error {c.error:.3f}\n\n| said | "
            + " | ".join(f"{v:.3f}" for v in c.predicted)
            + " |\n|"
            + "---|" * (1 + len(c.predicted))
            + "\n| came | "
            + " | ".join(f"{v:.3f}" for v in c.observed)
            + " |"
            for c in manifest.calibration
        ),
        maps="\n".join(
            f"| {m.method} | {m.trustworthiness:.3f} | {m.continuity:.3f} | {m.rand_index:.3f} | "
            + ("-" if m.stability is None else f"{m.stability:.3f}")
            + " |"
            for m in manifest.maps
        ),
        map_verdict=_map_verdict(manifest),
        required=required,
        optional=len(manifest.inputs) - required,
        settle=manifest.memory.settle_rows,
    )


def _map_verdict(manifest: Manifest) -> str:
    ours, *others = (m for m in manifest.maps if m.stability is not None and "all 5" not in m.method)
    better = [m.method for m in others if m.trustworthiness > ours.trustworthiness]
    if not better:
        return "Of the maps that can place a new row, this one keeps neighbourhoods best."
    return (
        f"**Not reached**: by trustworthiness in two dimensions, {' and '.join(better)} keep neighbourhoods better. "
        "All five dimensions together do so best of what can place a new row."
    )


def _verdict(metrics: list[Metric], served: Mapping[str, str]) -> str:
    networks = {"cnn", "lstm", "mlp"}
    lost = [m.output for m in metrics if served[m.output] not in networks]
    said = (
        f"**A network did not beat its baselines for {', '.join(lost)}**: the baseline is served in the same graph."
        if lost
        else "Every output is served by a network."
    )
    behind = [m.output for m in metrics if m.gain <= 0]
    if behind:
        said += f" On the hold-out, what is served is no better than the best baseline for {', '.join(behind)}."
    return said
