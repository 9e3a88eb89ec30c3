"""The manifest of the chosen features: ``data/features/selection.json``. Its order is that of every network's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError, model_validator

from mia_fast.config import Model
from mia_fast.errors import ConfigError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.catalogue import Catalogue
from mia_fast.files import write_json
from mia_fast.journal.schema import feature_list_digest
from mia_fast.loading import definitions
from mia_fast.workspace import Workspace

FILE: Final = "selection.json"
IMPORTANCE: Final = "feature_importance.csv"
_AGAIN: Final = "choose the features again: mia-fast select HISTORY"


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
    definitions: tuple[str, ...]
    """What decides the values of each chosen feature, as :func:`mia_fast.loading.definitions` gives it."""
    catalogue: str
    """Digest of the whole catalogue that the features were computed with."""
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
        if not self.names:
            raise ValueError("it names no feature")
        if len(set(self.names)) != len(self.names):
            raise ValueError("it names a feature twice")
        own = {name: getattr(self, name) for name in ("definitions", "shap_values", "coverage", "medians")}
        for name, values in (*own.items(), *(("shap_folds", fold) for fold in self.shap_folds)):
            if len(values) != len(self.names):
                raise ValueError(f"{name} has another length than names")
        return self


def write_selection(selection: Selection, workspace: Workspace) -> Path:
    """Write the manifest; returns where."""
    path = selection_path(workspace)
    write_json(path, selection.model_dump(mode="json"), durable=True, wait=True)
    return path


def read_selection(workspace: Workspace) -> Selection:
    """The selection of a workspace, checked against its catalogue as :func:`read_selection_file` says.

    Raises
    ------
    ConfigError
        There is none, or it cannot be used.
    """
    return read_selection_file(
        selection_path(workspace), catalogues.read(workspace), hint=_AGAIN, then="the selection was not used"
    )


def selection_path(workspace: Workspace) -> Path:
    """Where a workspace keeps its selection, whether there is one or not."""
    return workspace.data / "features" / FILE


def read_selection_file(path: Path, catalogue: Catalogue, *, hint: str, then: str) -> Selection:
    """Read a selection, and make sure that the catalogue still computes its features as when they were chosen.

    Compared is what decides the values of each chosen feature (:func:`mia_fast.loading.definitions`): its row and the
    rows and inputs it rests on. Not the digest of the whole catalogue: rows that no chosen feature reads may change,
    and so may texts, units and ranges, without making the order of a network's input mean anything else.

    Parameters
    ----------
    path
        The file.
    catalogue
        That of the workspace which is to use the selection.
    hint, then
        For the error: what to do about it, and what did not happen.

    Raises
    ------
    ConfigError
        There is no file; it is damaged, was edited or names a feature twice; the catalogue lacks a feature or computes
        one otherwise than when it was chosen.
    """
    try:
        selection = Selection.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError("no features were chosen yet", where=str(path), hint=hint, then=then) from None
    except (OSError, ValueError) as error:  # of pydantic too
        if isinstance(error, ValidationError):
            fault = error.errors()[0]
            what = f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip()
        else:
            what = str(error) or type(error).__name__
        raise ConfigError(f"cannot be used ({what})", where=str(path), hint=hint, then=then) from error
    present = definitions(catalogue, selection.names)
    unknown = [name for name in selection.names if name not in catalogue.names]
    if unknown:
        raise ConfigError(f"names what the catalogue lacks: {_some(unknown)}", where=str(path), hint=hint, then=then)
    changed = [
        name for name, before in zip(selection.names, selection.definitions, strict=True) if present[name] != before
    ]
    if changed:
        raise ConfigError(
            f"the catalogue computes {len(changed)} of the {len(selection.names)} otherwise than when they were "
            f"chosen: {_some(changed)}",
            where=str(path),
            hint=f"{hint}; or restore their rows of feature_sets.yaml",
            then=then,
        )
    return selection


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
