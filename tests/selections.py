"""A selection for tests that need one and do not choose: the given names, with a plausible rest."""

from __future__ import annotations

from collections.abc import Sequence

from mia_fast.features import catalogue as catalogues
from mia_fast.journal.schema import feature_list_digest
from mia_fast.loading import definitions
from mia_fast.selection.manifest import Fold, Selection, Stability
from mia_fast.workspace import Workspace


def selection_of(names: Sequence[str], workspace: Workspace) -> Selection:
    """As a choice under the workspace's catalogue would have left it."""
    catalogue = catalogues.read(workspace)
    count = len(names)
    first, last = "2024-01-02T00:00:00.000000Z", "2024-03-01T00:00:00.000000Z"
    fold = Fold(
        train_rows=900,
        train_end=first,
        test_first=first,
        test_last=last,
        test_rows=100,
        shap_rows=100,
        skill=0.1,
    )
    values = tuple(1.0 / (1 + k) for k in range(count))
    return Selection(
        names=tuple(names),
        digest=feature_list_digest(names),
        definitions=tuple(definitions(catalogue, names).values()),
        catalogue=catalogue.digest,
        all_taken=True,
        asked=150,
        candidates=count,
        features=len(catalogue.names),
        target="cnn_pressure",
        target_unit="-1..1",
        period=(first, last),
        rows=1000,
        rows_used=1000,
        min_coverage=0.6,
        shap_values=values,
        shap_folds=(values,),
        coverage=(1.0,) * count,
        medians=(0.0,) * count,
        not_chosen={},
        not_candidates={},
        stability=Stability(rank_correlation=1.0, overlap={}, folds_selected=(1,) * count),
        folds=(fold,),
        lightgbm="4.7.0",
        settings={},
    )
