"""The map of volatility regimes: parametric t-SNE, its clusters, and what it is compared with.

A network places each row in five dimensions, the first two of which are a map by themselves: the loss is the divergence
of t-SNE (van der Maaten 2009, "Learning a Parametric Embedding by Preserving Local Structure") in two dimensions plus
the one in five. Unlike t-SNE itself it can place a new row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mia_models.errors import ModelError
from mia_models.manifest import MapQuality
from mia_models.training import prepare
from mia_models.training.rows import Floats, Integers, Mask, Singles

DIMENSIONS = 5
_RELATED = 0.6
_DISTINCT = 50
_PERPLEXITY = 10.0
_PRINCIPAL_STEPS, _PRINCIPAL_BATCH = 300, 1024
_NEIGHBOURS = 10
_ANCHORS = ("volatility_rolling_30", prepare.REFERENCE)
"""The present volatility: the first of these that is among the features."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class View:
    """What the map reads: logarithms of levels, so that a calm year and a crash lie apart.

    The networks' inputs have the volatility's level taken out, since by it they would tell dates; a map of volatility
    regimes needs it. So it has its own columns, centres and scales. ``columns`` int64 (k,) of the features; the rest
    float64 (k,): the least value a logarithm is taken of, the median and half the distance of the 16 % and 84 %
    quantiles of the logarithms.
    """

    columns: Integers
    floor: Floats
    centre: Floats
    scale: Floats

    def apply(self, matrix: Singles | Floats) -> Singles:
        """float32 (n, k) from raw features (n, features); a missing value is 0, the median. The graph's twin."""
        with np.errstate(invalid="ignore"):
            logs = np.log(np.maximum(matrix[:, self.columns].astype(np.float64), self.floor))
        z = (logs - self.centre) / self.scale
        return np.clip(np.where(np.isnan(z), 0.0, z), -prepare.CLIP, prepare.CLIP).astype(np.float32)


@dataclass(frozen=True)
class Map:
    """The encoder and its clusters; ``centres`` float64 (k, 2) on the map."""

    view: View
    encoder: nn.Sequential
    centres: Floats

    def place(self, matrix: Singles | Floats) -> Floats:
        """float64 (n, 5) for rows of raw features (n, features)."""
        return _placed(self.encoder, self.view.apply(matrix))

    def clusters(self, placed: Floats) -> Integers:
        """The nearest centre on the map, int64 (n,)."""
        return nearest(placed[:, :2], self.centres)


def _placed(encoder: nn.Sequential, z: Singles) -> Floats:
    with torch.inference_mode():
        found: Floats = encoder(torch.from_numpy(z)).double().numpy()
    return found


def nearest(points: Floats, centres: Floats) -> Integers:
    """Index of the nearest centre, int64 (n,)."""
    distance = ((points[:, None, :] - centres) ** 2).sum(axis=2)
    closest: Integers = distance.argmin(axis=1)
    return closest


def view(names: Sequence[str], matrix: Singles, from_bars: Mask, prices: Mask) -> View:
    """Choose what the map reads, on training rows (n, features) with NaN where missing.

    A column is taken if bars alone give it, it is no price, positive (zero in at most 5 % of the rows), no label (more
    than 50 values), and its logarithm correlates with that of the present volatility by more than 0.6 in size.

    Raises
    ------
    ModelError
        Fewer than :data:`DIMENSIONS` columns are left.
    """
    anchor = np.log(np.maximum(matrix[:, list(names).index(next(a for a in _ANCHORS if a in names))], 1e-4))
    columns, floors, logs = [], [], []
    for k in np.flatnonzero(from_bars & ~prices):
        x = matrix[:, k].astype(np.float64)
        known = x[np.isfinite(x)]
        if not known.size or known.min() < 0 or (known <= 0).mean() > 0.05 or len(np.unique(known)) <= _DISTINCT:
            continue
        floor = float(np.quantile(known[known > 0], 0.002))
        log = np.log(np.maximum(x, floor))
        both = np.isfinite(log) & np.isfinite(anchor)
        if log[both].std() > 0 and abs(np.corrcoef(log[both], anchor[both])[0, 1]) > _RELATED:
            columns.append(int(k))
            floors.append(floor)
            logs.append(log)
    if len(columns) < DIMENSIONS:
        raise ModelError(
            f"{len(columns)} features go with the present volatility: too few for a map",
            where="features",
            hint="choose more features of volatility",
            then="nothing was written",
        )
    low, centre, high = np.nanquantile(np.column_stack(logs), [0.16, 0.5, 0.84], axis=0)
    scale = (high - low) / 2.0
    return View(np.array(columns), np.array(floors), centre, np.where(scale > 1e-9, scale, 1.0))


def fit(matrix: Singles, chosen: View, *, steps: int, batch: int, seed: int, progress: Progress) -> Map:
    """Train the encoder on raw rows (n, features) in order, then find the clusters of the map.

    It begins as the principal components: from random weights, axes beyond the second may never come to say anything.
    The rate falls to zero along a cosine.
    """
    z = chosen.apply(matrix)
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = _encoder(z.shape[1])
        generator = torch.Generator().manual_seed(seed)
        source, principal = torch.from_numpy(z), torch.from_numpy(_principal(z))
        optimiser = torch.optim.Adam(encoder.parameters(), lr=2e-3)
        for _ in range(_PRINCIPAL_STEPS):
            rows = torch.randint(0, len(source), (_PRINCIPAL_BATCH,), generator=generator)
            apart = ((encoder(source[rows]) - principal[rows]) ** 2).mean()
            optimiser.zero_grad()
            apart.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
        optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for step in range(steps):
            rows = torch.randint(0, len(source), (batch,), generator=generator)
            x = source[rows]
            wanted = _affinities(x)
            y = encoder(x)
            loss = _divergence(wanted, y[:, :2], 1.0) + _divergence(wanted, y, DIMENSIONS - 1.0)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
            schedule.step()
            if (step + 1) % max(1, steps // 5) == 0:
                progress(f"map: step {step + 1} of {steps}, divergence {float(loss.detach()):.3f}")
    encoder.eval()
    with torch.no_grad():
        placed = encoder(source[:: max(1, len(source) // 20_000)])
        centre, scale = (
            placed.mean(dim=0),
            placed[:, :2].std().clamp(min=1e-6),
        )  # one for all: distances keep their sense
        last = encoder[-1]
        last.weight /= scale
        last.bias -= centre
        last.bias /= scale
    points = _placed(encoder, z[:: max(1, len(z) // 20_000)])[:, :2]
    return Map(chosen, encoder, _most_stable(points, seed))


def compare(found: Map, before: Singles, after: Singles, regime: Floats, *, seed: int) -> tuple[MapQuality, ...]:
    """The map beside PCA, an autoencoder and scikit-learn's TSNE, on rows ``after`` that none of the first three saw.

    Parameters
    ----------
    before, after
        Rows of raw features: of the training, in order, and behind it.
    regime
        float64 of the rows ``after``: the regime that came, NaN where unknown.

    Returns
    -------
    tuple of MapQuality
        Trustworthiness and continuity at 10 neighbours; adjusted Rand index of three clusters with the regime that
        came; and the index of the clusters found in the first and in the second half of the training, both applied to
        the rows ``after``. TSNE cannot place a row, so its map is fitted on ``after`` itself and has no such index.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness
    from sklearn.metrics import adjusted_rand_score

    x, new = found.view.apply(before), found.view.apply(after)
    pca = PCA(2, random_state=seed).fit(x)
    coder = _autoencoder(x, seed)
    maps: list[tuple[str, Floats | None, Floats]] = [
        ("parametric t-SNE, 2 of 5", found.place(before)[:, :2], found.place(after)[:, :2]),
        ("parametric t-SNE, all 5", found.place(before), found.place(after)),
        ("PCA, 2", pca.transform(x), pca.transform(new)),
        ("autoencoder, 2", coder(x), coder(new)),
        (
            "scikit-learn TSNE, 2 (fitted on these rows)",
            None,
            TSNE(2, perplexity=30, random_state=seed).fit_transform(new),
        ),
    ]
    known = np.isfinite(regime)
    result = []
    for name, learned, placed in maps:
        labels = KMeans(3, n_init=4, random_state=seed).fit_predict(placed)
        stability = None
        if learned is not None:
            half = len(learned) // 2
            count = len(found.centres)
            parts = [
                KMeans(count, n_init=4, random_state=seed)
                .fit(learned[cut])
                .predict(np.ascontiguousarray(placed, dtype=learned.dtype))
                for cut in (slice(0, half), slice(half, None))
            ]
            stability = round(float(adjusted_rand_score(*parts)), 4)
        result.append(
            MapQuality(
                method=name,
                rows=len(new),
                trustworthiness=round(float(trustworthiness(new, placed, n_neighbors=_NEIGHBOURS)), 4),
                continuity=round(float(trustworthiness(placed, new, n_neighbors=_NEIGHBOURS)), 4),
                rand_index=round(float(adjusted_rand_score(regime[known], labels[known])), 4),
                stability=stability,
            )
        )
    return tuple(result)


def _encoder(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, DIMENSIONS))


def _principal(z: Singles) -> Singles:
    """The first principal components, float32 (n, 5), in units of the first one's deviation."""
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    found = centred @ directions[:, ::-1][:, :DIMENSIONS]
    scaled: Singles = (found / max(float(found[:, 0].std()), 1e-9)).astype(np.float32)
    return scaled


def _affinities(x: Tensor) -> Tensor:
    """Symmetric neighbour probabilities of t-SNE, (n, n); the widths by bisection for the perplexity."""
    squared = torch.cdist(x, x) ** 2
    squared.fill_diagonal_(float("inf"))
    low, high = torch.full((len(x), 1), 1e-4), torch.full((len(x), 1), 1e4)
    wanted = float(np.log(min(_PERPLEXITY, len(x) / 4)))
    nearest_distance = squared.min(dim=1, keepdim=True).values
    shifted = squared - nearest_distance
    for _ in range(24):
        beta = (low * high).sqrt()
        weight = torch.exp(-shifted * beta)
        total = weight.sum(dim=1, keepdim=True)
        entropy = (
            torch.log(total) + beta * (torch.where(weight > 0, shifted, 0.0) * weight).sum(dim=1, keepdim=True) / total
        )
        wide = entropy > wanted
        low, high = torch.where(wide, beta, low), torch.where(wide, high, beta)
    weight = torch.exp(-shifted * (low * high).sqrt())
    conditional = weight / weight.sum(dim=1, keepdim=True)
    return ((conditional + conditional.T) / (2 * len(x))).clamp(min=1e-12)


def _divergence(wanted: Tensor, y: Tensor, freedom: float) -> Tensor:
    """Kullback-Leibler divergence of Student-t affinities from the wanted ones."""
    size = (y**2).sum(dim=1)
    squared = (size[:, None] + size[None, :] - 2.0 * y @ y.T).clamp(min=0.0)
    kernel = (1.0 + squared / freedom) ** (-(freedom + 1.0) / 2.0)
    kernel = kernel * (1.0 - torch.eye(len(y)))
    found = (kernel / kernel.sum()).clamp(min=1e-12)
    return (wanted * (wanted.log() - found.log())).sum()


def _most_stable(points: Floats, seed: int) -> Floats:
    """KMeans centres, with as many clusters (4 to 7) as two halves of the rows agree on best."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    def centres(rows: Floats, count: int) -> Floats:
        found: Floats = KMeans(count, n_init=4, random_state=seed).fit(rows).cluster_centers_
        return found

    half = len(points) // 2
    scores = {
        count: adjusted_rand_score(*(nearest(points, centres(part, count)) for part in (points[:half], points[half:])))
        for count in range(4, 8)
    }
    return centres(points, max(scores, key=scores.__getitem__))


def _autoencoder(x: Singles, seed: int) -> Callable[[Singles], Floats]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 2))
        outer = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, x.shape[1]))
        optimiser = torch.optim.Adam([*inner.parameters(), *outer.parameters()], lr=2e-3)
        source = torch.from_numpy(x)
        for _ in range(600):
            batch = source[torch.randint(0, len(source), (512,))]
            loss = ((outer(inner(batch)) - batch) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()

    def place(rows: Singles) -> Floats:
        with torch.inference_mode():
            placed: Floats = inner(torch.from_numpy(rows)).double().numpy()
        return placed

    return place
