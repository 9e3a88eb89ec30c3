"""``config/selection.yaml``: the rules of choosing, filtering, auditing and weighting features."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from mia_fast.config import Model, load
from mia_fast.workspace import Workspace

FILE: Final = "selection.yaml"


class SelectRules(Model):
    """How the 150 are chosen."""

    count: int = Field(ge=1, description="features chosen")
    min_coverage: float = Field(gt=0, le=1, description="fraction of rows with a value")
    target: str
    folds: int = Field(ge=2, le=50, description="test blocks in time order")
    purge_minutes: float = Field(ge=0, description="before each block, for targets of unknown horizon")
    max_rows: int = Field(ge=1000, description="rows used, evenly spaced")
    shap_rows: int = Field(ge=100, description="rows explained, over all blocks")
    trees: int = Field(ge=1)
    leaves: int = Field(ge=2)
    learning_rate: float = Field(gt=0, le=1)
    seed: int = Field(ge=0)


class FilterSettings(Model):
    """What is left out of a feature file, and what is clipped."""

    max_null_ratio: float = Field(ge=0, le=1)
    near_constant: float = Field(gt=0, le=1)
    duplicate: float = Field(gt=0, le=1, description="absolute correlation")
    outlier_z: float = Field(gt=0)
    max_clipped_share: float = Field(default=0.001, ge=0, lt=0.5, description="of the values, at each end")
    max_row_null_ratio: float = Field(ge=0, le=1)


class AuditSettings(Model):
    """How features are audited."""

    outlier_z: float = Field(gt=0)
    reference_share: float = Field(gt=0, lt=1)
    bins: int = Field(ge=2, le=100)


class Weights(Model):
    """The weights of one regime."""

    families: dict[str, float] = Field(default_factory=dict)
    features: dict[str, float] = Field(default_factory=dict)


class SelectionConfig(Model):
    """``config/selection.yaml``."""

    select: SelectRules
    filter: FilterSettings
    audit: AuditSettings
    observation: dict[str, Weights] = Field(min_length=1, description="by regime")


def selection_config(workspace: Workspace) -> SelectionConfig:
    """The desk's ``selection.yaml``."""
    return load(SelectionConfig, workspace.config(FILE))
