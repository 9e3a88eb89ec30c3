"""The networks, and how they are trained: in the order of time, with their state carried along.

Three networks that share nothing but their inputs and the walk through the rows:

* ``cnn``: causal convolutions (4 taps, dilations 1, 4, 16: 64 bars) over a projection of each bar; ``cnn_pressure``.
* ``lstm``: one layer; eight components of its last layer (``neural_feature_0..7``) from which the next half hour's
  volatility, the regime and the VIX's move beyond the regression are read. Trained statefully (truncated
  back-propagation through time), because it is served so: an LSTM restarted on each window is another model.
* ``mlp``: two layers on one bar; volatility, regime and the two probabilities of success.

Beside them, ``linear`` heads on the same inputs, fitted without gradients over epochs: ridge for the numbers, logistic
regression for the classes (L-BFGS). They are baselines, what is shipped where a network does not beat them, and the
ground that the networks' volatility stands on: those learn what the linear head leaves.

At last each head is calibrated on the held-out rows: a factor on what it says beyond the linear head or the base rate
(Platt 1999 for probabilities). A head that has learned nothing which lasts is thereby drawn back to its baseline.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mia_models.errors import ModelError
from mia_models.training.rows import LONG, PRESSURE, REGIME, SHORT, VIX, VOLATILITY, Floats, Mask, Singles

DILATIONS, TAPS = (1, 4, 16), 4
PARTS = ("cnn", "lstm", "mlp")
MLP_OUTPUTS = (VOLATILITY, "trend", "range", "defensive", LONG, SHORT)
LINEAR_ROWS = 80_000
VIX_SCALE = 0.06
"""A usual daily change of log VIX: the unit of the LSTM's VIX head."""

Progress = Callable[[str], None]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule; part of every checkpoint's fingerprint."""

    channels: int = 16
    entry: int = 24
    hidden: int = 16
    features: int = 8
    wide: int = 48
    narrow: int = 24
    dropout: float = 0.1
    rate: float = 1e-3
    decay: float = 1e-2
    epochs: int = 8
    patience: int = 2
    streams: int = 32
    steps: int = 48
    blank: float = 0.25
    """Share of the stretches in which every optional input is missing."""
    seed: int = 20220630


def dense(part: nn.ModuleDict, name: str) -> nn.Linear:
    """A linear layer of one of the networks."""
    layer = part[name]
    assert isinstance(layer, nn.Linear)
    return layer


class Networks(nn.Module):
    """The four parts over standardised rows, float32 (time, streams, inputs)."""

    def __init__(self, inputs: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.settings = s
        self.cnn = nn.ModuleDict(
            {
                "entry": nn.Linear(inputs, s.channels),
                **{f"conv_{d}": nn.Conv1d(s.channels, s.channels, TAPS, dilation=d) for d in DILATIONS},
                "head": nn.Linear(2 * s.channels, 1),
            }
        )
        self.lstm = nn.ModuleDict(
            {
                "entry": nn.Linear(inputs, s.entry),
                "cell": nn.LSTM(s.entry, s.hidden),
                "features": nn.Linear(s.hidden, s.features),
                "head": nn.Linear(s.features, 5),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "entry": nn.Linear(inputs, s.wide),
                "second": nn.Linear(s.wide, s.narrow),
                "head": nn.Linear(s.narrow, len(MLP_OUTPUTS)),
            }
        )
        self.linear = nn.ModuleDict({"head": nn.Linear(inputs, 1 + len(MLP_OUTPUTS))})
        nn.init.zeros_(dense(self.linear, "head").weight)
        self.dropout = nn.Dropout(s.dropout)

    def start(self, streams: int) -> list[Tensor]:
        """The state before the first row: past inputs of each convolution, then h and c of the LSTM."""
        s = self.settings
        past = [torch.zeros(streams, s.channels, (TAPS - 1) * d) for d in DILATIONS]
        return [*past, torch.zeros(1, streams, s.hidden), torch.zeros(1, streams, s.hidden)]

    def forward(self, z: Tensor, state: list[Tensor]) -> tuple[Outputs, list[Tensor]]:
        """Outputs (time, streams, ...) by part, and the state behind the last row."""
        following = []
        entry = torch.relu(self.cnn["entry"](z))
        wave = entry.permute(1, 2, 0)
        for d, past in zip(DILATIONS, state, strict=False):
            whole = torch.cat([past, wave], dim=2)
            following.append(whole[:, :, -past.shape[2] :])
            wave = torch.relu(self.cnn[f"conv_{d}"](whole))
        seen = torch.cat([self.dropout(entry), wave.permute(2, 0, 1)], dim=2)
        pressure = torch.tanh(self.cnn["head"](seen))[..., 0]

        hidden, (h, c) = self.lstm["cell"](torch.relu(self.lstm["entry"](z)), (state[-2], state[-1]))
        components = torch.tanh(self.lstm["features"](hidden))
        read = self.lstm["head"](self.dropout(components))

        first = self.dropout(torch.relu(self.mlp["entry"](z)))
        logits = self.mlp["head"](torch.relu(self.mlp["second"](first)))
        linear = self.linear["head"](z)
        outputs = {
            "cnn": pressure,
            "components": components,
            "lstm": torch.cat([read[..., :1] + linear[..., 1:2], read[..., 1:]], dim=2),
            "mlp": torch.cat([logits[..., :1] + linear[..., 1:2], logits[..., 1:]], dim=2),
            "linear": linear,
        }
        return outputs, [*following, h, c]


def losses(outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean loss of each part; rows without a target do not count. ``targets`` are (time, streams)."""
    mlp, lstm = outputs["mlp"], outputs["lstm"]

    def squared(found: Tensor, name: str) -> Tensor:
        known = torch.isfinite(targets[name])
        return ((found - torch.where(known, targets[name], 0.0)) ** 2 * known).sum() / known.sum().clamp(min=1)

    def classes(found: Tensor) -> Tensor:
        known = torch.isfinite(targets[REGIME])
        each = functional.cross_entropy(
            found.reshape(-1, 3), torch.where(known, targets[REGIME], 0.0).long().reshape(-1), reduction="none"
        )
        return (each * known.reshape(-1)).sum() / known.sum().clamp(min=1)

    def yes_no(found: Tensor, name: str) -> Tensor:
        known = torch.isfinite(targets[name])
        each = functional.binary_cross_entropy_with_logits(
            found, torch.where(known, targets[name], 0.0), reduction="none"
        )
        return (each * known).sum() / known.sum().clamp(min=1)

    return {
        "cnn": 10.0 * squared(outputs["cnn"], PRESSURE),
        "lstm": squared(lstm[..., 0], VOLATILITY) + classes(lstm[..., 1:4]) + 0.1 * squared(lstm[..., 4], VIX),
        "mlp": squared(mlp[..., 0], VOLATILITY)
        + classes(mlp[..., 1:4])
        + 3.0 * (yes_no(mlp[..., 4], LONG) + yes_no(mlp[..., 5], SHORT)),
    }


@dataclass(frozen=True)
class Data:
    """Standardised rows in order: ``z`` float32 (n, inputs), targets float32 (n,) in the networks' units."""

    z: Singles
    targets: Mapping[str, Singles]

    def part(self, rows: slice) -> Data:
        return Data(self.z[rows], {name: values[rows] for name, values in self.targets.items()})


def train(
    train_data: Data,
    held: Data,
    optional: Mask,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    progress: Progress = lambda _message: None,
) -> Networks:
    """Train all parts, each stopped where its loss on the held-out rows is least.

    Parameters
    ----------
    train_data, held
        Rows in order; ``held`` lies behind, with a purge between them.
    optional
        bool (inputs,): inputs that may be missing as a whole; they are blanked in a share of the stretches.
    checkpoint
        A safetensors file, written after each epoch and gone on from if it is there: the result is the same to the bit.
    """
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    networks = Networks(train_data.z.shape[1], settings)
    fit_linear(dense(networks.linear, "head"), train_data)
    parameters = {part: list(networks.get_submodule(part).parameters()) for part in PARTS}
    optimiser = torch.optim.AdamW(
        [p for group in parameters.values() for p in group], lr=settings.rate, weight_decay=settings.decay
    )
    run = _Run(networks, optimiser)
    mark = fingerprint(train_data, held, settings)
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint, mark)
        progress(f"going on behind epoch {run.epoch}")
    blank = torch.from_numpy(
        np.concatenate([optional, np.zeros(train_data.z.shape[1] - len(optional), dtype=np.bool_)])
    )
    while run.epoch < settings.epochs and not run.finished(settings.patience):
        generator = torch.Generator().manual_seed(settings.seed + 1000 * (run.epoch + 1))
        torch.manual_seed(settings.seed + run.epoch)
        networks.train()
        for z, targets, state in _walk(train_data, networks, settings, generator):
            gone = torch.rand(z.shape[1], generator=generator) < settings.blank
            z[:, gone] = z[:, gone] * ~blank
            outputs, following = networks(z, state)
            total = torch.stack(list(losses(outputs, targets).values())).sum()
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call, unused-ignore]
            for group in parameters.values():
                nn.utils.clip_grad_norm_(group, 1.0)
            optimiser.step()
            state[:] = [part.detach() for part in following]
        found = evaluate(networks, held)
        run.note(found)
        progress(
            f"epoch {run.epoch} of {settings.epochs}: "
            + ", ".join(
                f"{part} {value:.4f}{'*' if run.best_epoch[part] == run.epoch else ''}" for part, value in found.items()
            )
        )
        if checkpoint is not None:
            run.save(checkpoint, mark)
    networks.load_state_dict(run.best)
    networks.eval()
    calibrate(networks, held)
    return networks


def fit_linear(head: nn.Linear, data: Data) -> None:
    """Fit the linear heads on evenly spaced rows: pressure and volatility by ridge, the classes by L-BFGS."""
    stride = max(1, len(data.z) // LINEAR_ROWS)
    z = torch.from_numpy(data.z[::stride]).double()
    targets = {name: torch.from_numpy(values[::stride]).double() for name, values in data.targets.items()}
    head.requires_grad_(requires_grad=False)
    one = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], dim=1)
    for row, name, penalty in ((0, PRESSURE, 1e-1), (1, VOLATILITY, 1e-3)):
        known = torch.isfinite(targets[name])
        x, y = one[known], targets[name][known]
        weight = torch.full((one.shape[1],), penalty * len(x), dtype=torch.float64)
        weight[-1] = 1e-9
        solution = torch.linalg.solve(x.T @ x + torch.diag(weight), x.T @ y)
        head.weight[row], head.bias[row] = solution[:-1].float(), solution[-1].float()
    for rows, name in ((slice(2, 5), REGIME), (slice(5, 6), LONG), (slice(6, 7), SHORT)):
        known = torch.isfinite(targets[name])
        x, y = z[known], targets[name][known]
        size = rows.stop - rows.start
        weights = torch.zeros(size, z.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weights, bias], max_iter=60, line_search_fn="strong_wolfe")

        def value() -> Tensor:
            logits = x @ weights.T + bias  # noqa: B023 - called within this turn of the loop
            if size == 1:  # noqa: B023
                fit = functional.binary_cross_entropy_with_logits(logits[:, 0], y)  # noqa: B023
            else:
                fit = functional.cross_entropy(logits, y.long())  # noqa: B023
            return fit + 3e-3 * (weights**2).sum()  # noqa: B023

        def closure() -> Tensor:
            solver.zero_grad()  # noqa: B023
            total = value()
            total.backward()  # type: ignore[no-untyped-call, unused-ignore]
            return total

        solver.step(closure)  # type: ignore[no-untyped-call, unused-ignore]
        with torch.no_grad():
            head.weight[rows], head.bias[rows] = weights.float(), bias.float()


def calibrate(networks: Networks, held: Data) -> None:
    """Draw each head towards its baseline as far as the held-out rows ask for; the factors go into the weights."""
    outputs = predict(networks, held.z)

    def factor(found: Singles, wanted: Singles) -> float:
        known = np.isfinite(wanted)
        f, y = found[known].astype(np.float64), wanted[known].astype(np.float64)
        power = float(f @ f)
        return float(np.clip(f @ y / power, 0.0, 1.0)) if power > 0 else 0.0

    def platt(logits: Singles, name: str) -> float:
        known = np.isfinite(held.targets[name])
        if not known.any():
            return 1.0
        x = torch.from_numpy(logits[known]).double()
        y = torch.from_numpy(held.targets[name][known]).double()

        def loss_at(scale: float) -> float:
            if x.ndim == 1:
                return float(functional.binary_cross_entropy_with_logits(x * scale, y))
            return float(functional.cross_entropy(x * scale, y.long()))

        grid = np.linspace(0.0, 1.5, 31)
        return float(grid[int(np.argmin([loss_at(s) for s in grid]))])

    targets = held.targets
    beyond = targets[VOLATILITY] - outputs["linear"][:, 1]
    with torch.no_grad():
        head = dense(networks.cnn, "head")
        scale = factor(np.arctanh(np.clip(outputs["cnn"], -0.999, 0.999)), targets[PRESSURE])
        head.weight.mul_(scale)
        head.bias.mul_(scale)
        linear = dense(networks.linear, "head")
        scale = factor(outputs["linear"][:, 0], targets[PRESSURE])
        linear.weight[0] *= scale
        linear.bias[0] *= scale
        for part, columns in (("mlp", dense(networks.mlp, "head")), ("lstm", dense(networks.lstm, "head"))):
            scales = [factor(outputs[part][:, 0] - outputs["linear"][:, 1], beyond)]
            scales += [platt(outputs[part][:, 1:4], REGIME)] * 3
            if part == "mlp":
                scales += [platt(outputs[part][:, 4], LONG), platt(outputs[part][:, 5], SHORT)]
            else:
                scales += [factor(outputs[part][:, 4], targets[VIX])]
            by = torch.tensor(scales, dtype=torch.float32)
            columns.weight.mul_(by[:, None])
            columns.bias.mul_(by)
        scales = [1.0, 1.0, *[platt(outputs["linear"][:, 2:5], REGIME)] * 3]
        scales += [platt(outputs["linear"][:, 5 + k], name) for k, name in enumerate((LONG, SHORT))]
        by = torch.tensor(scales, dtype=torch.float32)
        linear.weight.mul_(by[:, None])
        linear.bias.mul_(by)


def evaluate(networks: Networks, data: Data) -> dict[str, float]:
    """Mean loss of each part over rows in order, state carried from zero."""
    networks.eval()
    outputs = predict(networks, data.z)
    with torch.inference_mode():
        found = losses(
            {name: torch.from_numpy(value)[:, None] for name, value in outputs.items()},
            {name: torch.from_numpy(value)[:, None] for name, value in data.targets.items()},
        )
    return {part: float(value) for part, value in found.items()}


def predict(networks: Networks, z: Singles, block: int = 8192) -> dict[str, Singles]:
    """Outputs of every part for rows in order, state carried from zero: float32 (n, ...)."""
    networks.eval()
    parts: dict[str, list[Singles]] = {}
    with torch.inference_mode():
        state = networks.start(1)
        for first in range(0, len(z), block):
            outputs, state = networks(torch.from_numpy(z[first : first + block])[:, None], state)
            for name, value in outputs.items():
                parts.setdefault(name, []).append(value[:, 0].numpy())
    return {name: np.concatenate(value) for name, value in parts.items()}


def fingerprint(train_data: Data, held: Data, settings: Settings) -> str:
    """Of the rows and the settings: a checkpoint of others is refused."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for data in (train_data, held):
        digest.update(np.array(data.z.shape).tobytes() + data.z[:: max(1, len(data.z) // 1000)].tobytes())
        for name in sorted(data.targets):
            digest.update(data.targets[name].tobytes())
    return digest.hexdigest()


def _walk(data: Data, networks: Networks, settings: Settings, generator: torch.Generator):  # type: ignore[no-untyped-def]
    """Stretches of ``steps`` rows of all streams; the caller puts the state behind each into the list it was given."""
    streams = min(settings.streams, max(1, len(data.z) // settings.steps))
    length = len(data.z) // streams
    shift = int(torch.randint(0, max(1, len(data.z) - length * streams + 1), (1,), generator=generator))
    part = slice(shift, shift + length * streams)
    z = torch.from_numpy(data.z[part]).reshape(streams, length, -1)
    targets = {name: torch.from_numpy(values[part]).reshape(streams, length) for name, values in data.targets.items()}
    state = networks.start(streams)
    offset = int(torch.randint(0, settings.steps, (1,), generator=generator))
    for first in range(offset, length, settings.steps):
        cut = slice(first, first + settings.steps)
        yield (
            z[:, cut].transpose(0, 1).contiguous(),
            {name: values[:, cut].T.contiguous() for name, values in targets.items()},
            state,
        )


class _Run:
    """Where a training stands; a checkpoint holds all of it."""

    def __init__(self, networks: Networks, optimiser: torch.optim.Optimizer) -> None:
        self.networks, self.optimiser = networks, optimiser
        self.epoch = 0
        self.loss = dict.fromkeys(PARTS, float("inf"))
        self.best_epoch = dict.fromkeys(PARTS, 0)
        self.best = {name: value.clone() for name, value in networks.state_dict().items()}

    def note(self, found: Mapping[str, float]) -> None:
        self.epoch += 1
        now = self.networks.state_dict()
        for part, value in found.items():
            if value < self.loss[part]:
                self.loss[part], self.best_epoch[part] = value, self.epoch
                self.best |= {name: now[name].clone() for name in now if name.startswith(part + ".")}

    def finished(self, patience: int) -> bool:
        return self.epoch - max(self.best_epoch.values()) >= patience and self.epoch > 0

    def save(self, path: Path, mark: str) -> None:
        from safetensors.torch import save

        tensors = {f"now.{name}": value.contiguous() for name, value in self.networks.state_dict().items()}
        tensors |= {f"best.{name}": value.contiguous() for name, value in self.best.items()}
        for index, entry in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value.clone() for key, value in entry.items()}
        about = {"epoch": self.epoch, "loss": self.loss, "best_epoch": self.best_epoch, "fingerprint": mark}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(save(tensors, {"about": json.dumps(about)}))
        temporary.replace(path)

    def restore(self, path: Path, mark: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"the checkpoint cannot be read ({error})",
                where=str(path),
                hint="delete it to begin again",
                then="nothing was trained",
            ) from error
        if not isinstance(about, dict) or about.get("fingerprint") != mark:
            raise ModelError(
                "the checkpoint is of a training on other rows or with other settings",
                where=str(path),
                hint="delete it to begin again, or train with what it was begun with",
                then="nothing was trained",
            )
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise ModelError(
                "the checkpoint holds a non-finite number",
                where=str(path),
                hint="the training has diverged: delete it and use a smaller rate",
                then="nothing was trained",
            )
        self.epoch, self.loss, self.best_epoch = about["epoch"], about["loss"], about["best_epoch"]
        self.networks.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("now.")})
        self.best = {k[5:]: v for k, v in tensors.items() if k.startswith("best.")}
        content = self.optimiser.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                entries.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({"state": entries, "param_groups": content["param_groups"]})


def in_network_units(targets: Mapping[str, Floats], regression: Floats, reference: Floats) -> dict[str, Singles]:
    """Targets as the losses take them: log ratio of the volatility to the ``reference`` (that of the last sessions), of
    the VIX to the regression's prediction in units of :data:`VIX_SCALE`; NaN stays NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        volatility = np.log(np.maximum(targets[VOLATILITY], 1e-3) / reference)
        vix = np.log(targets[VIX] / regression) / VIX_SCALE
    found = {**targets, VOLATILITY: volatility, VIX: np.clip(vix, -5, 5)}
    return {name: values.astype(np.float32) for name, values in found.items()}
