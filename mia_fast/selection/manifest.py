"""The manifest of the chosen features: ``data/features/selection.json``. Its order is that of every network's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError, model_validator

from mia_fast.config import Model
from mia_fast.errors import ConfigError
from mia_fast.features.catalogue import Catalogue
from mia_fast.files import write_json
from mia_fast.journal.schema import feature_list_digest
from mia_fast.workspace import Workspace

FILE: Final = "selection.json"
IMPORTANCE: Final = "feature_importance.csv"
_THEN: Final = "the selection was not used"


class Fold(Model):
    """One test block and what its model had seen."""

    train_rows: int
    train_end: str
    """Instant up to which the training rows' targets look, ISO-8601 UTC."""
    test_first: str
    test_last: str
    test_rows: int
    shap_rows: int
    skill: float
    """1 - error / error of the training rows' mean (squared error; log loss and class shares for classes)."""


class Stability(Model):
    """How far the folds agree on the choice."""

    rank_correlation: float
    """Mean of Spearman's correlation over pairs of folds, all candidates."""
    overlap: dict[str, float]
    """k -> mean share that the best k of two folds have in common."""
    folds_selected: tuple[int, ...]
    """Per chosen feature: in how many folds it is among as many as were chosen."""


class Selection(Model):
    """``data/features/selection.json``."""

    names: tuple[str, ...]
    """The chosen features, most important first: the order of every network's input."""
    digest: str
    """Of the names in their order."""
    catalogue: str
    """Digest of the catalogue that the features were computed with."""
    all_taken: bool
    """Fewer candidates than asked for: all of them are in."""
    asked: int
    candidates: int
    """Features with enough values in the period."""
    features: int
    """Features of the catalogue."""
    target: str
    target_unit: str
    period: tuple[str, str]
    """First and last bar, ISO-8601 UTC."""
    rows: int
    """Rows with a target in the period."""
    rows_used: int
    min_coverage: float
    shap_values: tuple[float, ...]
    """Median over the folds of the mean absolute SHAP value on test rows; target's unit (log odds: yes_no, classes)."""
    shap_folds: tuple[tuple[float, ...], ...]
    """The mean absolute SHAP value in each fold: (folds, chosen)."""
    coverage: tuple[float, ...]
    """Share of the period's rows with a value."""
    medians: tuple[float, ...]
    """Of the rows used: what may stand for a missing value, when it is said so."""
    not_chosen: dict[str, float]
    """The other candidates and their SHAP values."""
    not_candidates: dict[str, str]
    """The rest of the catalogue, and why."""
    stability: Stability
    folds: tuple[Fold, ...]
    lightgbm: str
    settings: dict[str, float]

    @model_validator(mode="after")
    def _fits(self) -> Selection:
        if self.digest != feature_list_digest(self.names):
            raise ValueError("the digest is not that of the names: the file was edited")
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError("the names must be there, each once")
        own = {name: getattr(self, name) for name in ("shap_values", "coverage", "medians")}
        for name, values in (*own.items(), *(("shap_folds", fold) for fold in self.shap_folds)):
            if len(values) != len(self.names):
                raise ValueError(f"{name} has another length than names")
        return self


def write_selection(selection: Selection, workspace: Workspace) -> Path:
    """Write the manifest; returns where."""
    path = workspace.data / "features" / FILE
    write_json(path, selection.model_dump(mode="json"), durable=True)
    return path


def read_selection(workspace: Workspace, catalogue: Catalogue | None = None) -> Selection:
    """The selection of a workspace.

    Parameters
    ----------
    workspace
        Where it is.
    catalogue
        Check that the selection was made with this one.

    Raises
    ------
    ConfigError
        There is none; it is damaged or was edited; or the catalogue computes its features otherwise.
    """
    path = workspace.data / "features" / FILE
    again = "choose the features: mia-fast select HISTORY (needs the extra: pip install 'mia-fast[select]')"
    try:
        selection = Selection.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError("no features were chosen yet", where=str(path), hint=again, then=_THEN) from None
    except (OSError, ValueError, ValidationError) as error:
        if isinstance(error, ValidationError):
            fault = error.errors()[0]
            what = f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip()
        else:
            what = str(error) or type(error).__name__
        raise ConfigError(f"cannot be used ({what})", where=str(path), hint=again, then=_THEN) from error
    if catalogue is not None:
        unknown = [name for name in selection.names if name not in catalogue.names]
        if unknown:
            raise ConfigError(
                f"names what the catalogue lacks: {', '.join(unknown)}", where=str(path), hint=again, then=_THEN
            )
    return selection
