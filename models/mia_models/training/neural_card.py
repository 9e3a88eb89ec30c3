"""The networks' model card, written from the manifest so that its figures are the measured ones."""

from __future__ import annotations

from mia_models.manifest import Chosen, Manifest, Metric
from mia_models.training.card import error_table

_CARD = """\
# Model card: {name} {version}

One graph for every model output; a bar costs one step, the state goes in and comes out. Inputs: {count} numbers,
{features} of them stage-1 features. {candidates} of the catalogue's {all_features} features had values in
{asked_share} of the period's rows; {taken}

## What is served, and what it was measured against

Chosen on {walked} alone: what has the least mean loss there, if it is a baseline or its lead over the best
baseline is sure (the bootstrap of whole sessions has 97.5 % of its leads above zero); else the best baseline that the
graph can compute. *Gain* is over the best baseline of that row, chosen in hindsight, with a 95 % bootstrap interval
that draws whole sessions.

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
calibrates the heads. {choice} Bars are continuous ES minutes, back-adjusted by absolute roll gaps.

{remarks}

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

`latent_vol_regime_vec_1..5`; the first two are the map, `cluster_id` is the nearest KMeans centre on it. It reads
the logarithms of {map_count} levels that bars alone give and that go with the present volatility, each on its own
centre and scale, no price and no clock: {map_inputs}.

{compared} of {hold_out}, 10 neighbours. *Rand index*: adjusted, of three clusters with the regime that came.
*Stability*: of the clusters found in the first and in the second half of the training, applied to these rows.

| method | trustworthiness | continuity | Rand index | stability |
|---|---|---|---|---|
{maps}

{map_verdict}

## What it needs

{required} inputs are required: those that bars alone give in nearly every row, and the seven of
`predicted_vix`, which that output alone needs. The other {optional} (daily closes, the calendar, sessions of
history) may be missing: a NaN there is read as the training median, as in a quarter of the training's
stretches. Infinities, and NaN in what is required, are refused and the state stays as it was.

What the served outputs lose in {hold_out} when inputs are missing as a whole, in the measures above:

| missing | inputs | output | loss | with all |
|---|---|---|---|---|
{blanked}

## The graph itself

Against PyTorch on {parity_rows:,} rows: `{parity_output}` is furthest off, by {parity:.0e} of its range (allowed:
{allowed:.0e}). The state begins with zeros. {settle:,} rows later every output is within {within:.1%} of its range of
what a graph says that began long before: the largest difference from {starts} starts over the last 60,000 rows of the
training. Let so many rows of history run through first.

## Limits

- {months} months are few. Features that mostly vary from month to month (yields, levels of the VIX) get no weight in
  the networks: by {months} values of them a network would tell dates.
- Five minutes ahead the return can hardly be told from chance: {pressure}
- The probabilities of success are hardly better than their base rates: nobody should trade on them alone.
- Regimes are those of the next hour, against the last 60 sessions of before; around halts and week-ends they have
  no label.
- No order flow and no options were at hand for these years: features of them are not candidates.

## Train again

`make networks DATA=folder` in the source tree does all of it: histories of the features, the choice, the training.
By hand, after `pip install 'mia-fast[train,select]'`, with the files of the table above (bars of 2019 to 2021 for the
choice, all four for the training):

```
mia-fast features BARS... HISTORY --cross VIX --cross INDEX --cross YIELDS --events EVENTS --dtype float32
mia-fast select HISTORY --target cnn_pressure --until 2022-01-01
mia-fast train networks --bars BARS ... --vix VIX --index INDEX --cross YIELDS --events EVENTS
```

Without the first two the shipped choice is taken. Seed {seed}. A stopped training goes on from `checkpoints/`.
"""


def render(manifest: Manifest) -> str:
    """The card as Markdown."""
    chosen, memory, parity = manifest.chosen, manifest.memory, manifest.parity
    assert chosen is not None and memory is not None and parity is not None  # noqa: PT018 - an export has them
    assert chosen.period is not None and memory.settled_within is not None  # noqa: PT018
    periods = list(dict.fromkeys(m.period for m in manifest.metrics))
    hold_out = periods[-1]
    last = [m for m in manifest.metrics if m.period == hold_out and m.view == "all bars"]
    served = {m.output: m.model for m in last}
    training = manifest.training
    required = sum(bool(part.groups) for part in manifest.inputs)
    compared = manifest.maps[0].rows
    return _CARD.format(
        name=manifest.name,
        version=manifest.version,
        count=len(manifest.inputs),
        features=len(manifest.inputs) - sum(part.groups == ("vix",) for part in manifest.inputs[-3:]),
        candidates=chosen.candidates,
        all_features=chosen.features,
        asked_share="at least 60 %",
        taken=f"with fewer than {chosen.asked}, all of them are taken."
        if chosen.all_taken
        else f"the {chosen.asked} with the highest SHAP value are taken.",
        hold_out=hold_out,
        walked=" and ".join(periods[:-1]),
        summary="\n".join(
            f"| {m.output} | {m.model} | {m.measure} | {m.errors[m.model]:.4f} | {m.best_baseline} "
            f"({m.errors[m.best_baseline]:.4f}) | {m.gain:+.1%} | {m.gain_low:+.1%} to {m.gain_high:+.1%} |"
            for m in last
        ),
        verdict=_verdict(last),
        rows=training.rows,
        first=training.first,
        last=training.last,
        sessions=training.sessions,
        seed=training.seed,
        choice=_choice(chosen),
        remarks="\n\n".join(training.remarks) or "Nothing is on record of how often these periods were looked at.",
        files="\n".join(f"| {part.name} | `{part.sha256[:16]}` |" for part in training.data),
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
        map_count=len(manifest.map_inputs),
        map_inputs=", ".join(f"`{name}`" for name in manifest.map_inputs),
        compared=f"{compared:,} rows" if compared is not None else "Rows",
        maps="\n".join(
            f"| {m.method} | {m.trustworthiness:.3f} | {m.continuity:.3f} | {m.rand_index:.3f} | "
            + ("-" if m.stability is None else f"{m.stability:.3f}")
            + " |"
            for m in manifest.maps
        ),
        map_verdict=_map_verdict(manifest),
        required=required,
        optional=len(manifest.inputs) - required,
        blanked="\n".join(
            f"| {b.inputs} | {b.count} | {b.output} | {b.loss:.4f} | {b.whole:.4f} |" for b in manifest.blanked
        ),
        parity_rows=parity.rows,
        parity_output=parity.output,
        parity=parity.largest,
        allowed=parity.allowed,
        settle=memory.settle_rows,
        within=memory.settled_within,
        starts=memory.settle_starts,
        months=(training.last.year - training.first.year) * 12 + training.last.month - training.first.month + 1,
        pressure="`cnn_pressure` is 0 in every row."
        if served["cnn_pressure"] == "zero"
        else "take `cnn_pressure` as a weak prior, if at all.",
    )


def _choice(chosen: Chosen) -> str:
    assert chosen.period is not None
    first, last = (text[:10] for text in chosen.period)
    said = f"The features were chosen on {first} to {last}, before the hold-out."
    if chosen.all_taken:
        return said + " All candidates were taken, so that choice decided nothing but their order."
    return said + (
        " That choice was made once, over the walk-forward years too: their losses flatter whatever reads the features."
    )


def _map_verdict(manifest: Manifest) -> str:
    """Who is better by what, at the three digits that the table shows."""
    ours, whole, *others = (m for m in manifest.maps if m.stability is not None)
    said = []
    measures = {
        "trustworthiness": [m.trustworthiness for m in (ours, *others)],
        "continuity": [m.continuity for m in (ours, *others)],
        "stability of the clusters": [m.stability or 0.0 for m in (ours, *others)],
    }
    for what, values in measures.items():
        own, *rest = (round(value, 3) for value in values)
        better = [m.method for m, value in zip(others, rest, strict=True) if value > own]
        equal = [m.method for m, value in zip(others, rest, strict=True) if value == own]
        if better:
            said.append(f"{what}, {' and '.join(better)} do better")
        else:
            said.append(f"{what}, {' and '.join(equal)} do as well" if equal else f"{what}, this one is best")
    more = whole.trustworthiness > max(m.trustworthiness for m in (ours, *others))
    return (
        f"Of the maps in two dimensions that can place a new row: by {'; by '.join(said)}. With all five axes the "
        f"trustworthiness is {whole.trustworthiness:.3f}, {'more' if more else 'no more'} than in any two of these."
    )


def _verdict(metrics: list[Metric]) -> str:
    networks = {"cnn", "lstm", "mlp"}
    lost = [m.output for m in metrics if m.model not in networks]
    said = (
        f"**No network is sure to beat the baselines for {', '.join(lost)}**: what is served there is "
        + ", ".join(f"{m.model} ({m.output})" for m in metrics if m.output in lost)
        + ", in the same graph."
        if lost
        else "Every output is served by a network."
    )
    constant = [m.output for m in metrics if m.model in {"zero", "base rate"}]
    if constant:
        said += f" {' and '.join(constant)} are thereby the same in every row: nothing was learned that lasts."
    behind = [m.output for m in metrics if m.gain <= 0]
    if behind:
        said += f" On the hold-out, what is served is no better than the best other baseline for {', '.join(behind)}."
    return said
