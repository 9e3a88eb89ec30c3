"""The challenger: a small network in place of the broken lines of :mod:`mia_models.training.response`.

It gives the intercept and the two slopes of the ES move as free functions of the slow terms and the time of day:
log(V / v) = prior + h0(s) + h1(s) move + h2(s) fall, with h a network of two hidden layers. Five copies are trained,
each stopped early on its own fifth of the training fortnights, and averaged.
"""

from __future__ import annotations

import numpy as np

from mia_models.errors import ModelError
from mia_models.training.response import TERMS, basis, terms
from mia_models.training.samples import Floats, Samples

HIDDEN = 16
COPIES = 5
EPOCHS = 15
PATIENCE = 4
BATCH = 1024
RATE = 3e-3
DECAY = 1e-2
DROPOUT = 0.1
TYPICAL = 0.06
"""Scale of the target: a usual daily change of log VIX."""
_FORTNIGHT = 14


def fit_predict(train: Samples, test: Samples, prior: Floats, seed: int) -> Floats:
    """Train on ``train`` and predict ``test``: index points, float64 (n,). ``prior`` as for the regression."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModelError(
            "training needs PyTorch",
            where="import torch",
            hint="pip install 'mia-fast[train]'",
            then="nothing was trained",
        ) from error

    raw, raw_test = terms(train.columns), terms(test.columns)
    slow = [k for k, name in enumerate(TERMS) if name not in ("move", "fall", "move_x_vix_20d")]
    fast = [TERMS.index("move"), TERMS.index("fall")]
    low, high = np.quantile(raw[:, slow], [0.002, 0.998], axis=0)
    states, states_test = (
        np.column_stack([np.clip(values[:, slow], low, high), basis(rows.columns["minutes_since_vix_close"])[:, 1:]])
        for values, rows in ((raw, train), (raw_test, test))
    )
    centre, scale = states.mean(axis=0), states.std(axis=0)

    def tensor(values: Floats) -> torch.Tensor:
        return torch.tensor(np.ascontiguousarray(values), dtype=torch.float32)

    x, x_test = tensor((states - centre) / scale), tensor((states_test - centre) / scale)
    moves, moves_test = (tensor(np.column_stack([np.ones(len(v)), v[:, fast]])) for v in (raw, raw_test))
    expected, expected_test = (prior[0] + values @ prior[1:] for values in (raw, raw_test))
    y = tensor((np.log(train.target / train.columns["vix_term_1m"]) - expected) / TYPICAL)
    block = train.target_day // _FORTNIGHT % COPIES
    total = torch.zeros(len(x_test))
    for copy in range(COPIES):
        generator = torch.Generator().manual_seed(seed + copy)
        with torch.random.fork_rng():
            torch.manual_seed(seed + copy)
            network = torch.nn.Sequential(
                torch.nn.Linear(x.shape[1], HIDDEN),
                torch.nn.SiLU(),
                torch.nn.Dropout(DROPOUT),
                torch.nn.Linear(HIDDEN, HIDDEN),
                torch.nn.SiLU(),
                torch.nn.Linear(HIDDEN, 3),
            )
            kept, held = (torch.from_numpy(np.flatnonzero(m)) for m in (block != copy, block == copy))
            optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
            best, best_epoch, best_weights = float("inf"), 0, network.state_dict()
            for epoch in range(EPOCHS):
                network.train()
                order = kept[torch.randperm(len(kept), generator=generator)]
                for batch in torch.split(order, BATCH):
                    residual = (network(x[batch]) * moves[batch]).sum(dim=1)
                    loss = torch.nn.functional.smooth_l1_loss(residual, y[batch], beta=0.1)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
                    optimiser.step()
                network.eval()
                with torch.no_grad():
                    held_error = float(((network(x[held]) * moves[held]).sum(dim=1) - y[held]).abs().mean())
                if held_error < best:
                    best, best_epoch = held_error, epoch
                    best_weights = {name: value.clone() for name, value in network.state_dict().items()}
                elif epoch - best_epoch >= PATIENCE:
                    break
            network.load_state_dict(best_weights)
            network.eval()
            with torch.no_grad():
                total += (network(x_test) * moves_test).sum(dim=1) / COPIES
    prediction: Floats = test.columns["vix_term_1m"] * np.exp(
        expected_test + total.numpy().astype(np.float64) * TYPICAL
    )
    return prediction
