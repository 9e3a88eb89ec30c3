"""The choice of the 150 features; filter and audit of feature files; the observation a policy sees."""

from __future__ import annotations

from mia_fast.selection.audit import Audit, audit_features, audited
from mia_fast.selection.filter import Filtered, FilterRules, filter_features, filtered
from mia_fast.selection.manifest import Selection, read_selection, read_selection_file
from mia_fast.selection.observation import Observer, create_observation
from mia_fast.selection.shap import calculate_shap_weights, select_features
from mia_fast.selection.targets import TARGETS, Target, make_target

__all__ = [
    "TARGETS",
    "Audit",
    "FilterRules",
    "Filtered",
    "Observer",
    "Selection",
    "Target",
    "audit_features",
    "audited",
    "calculate_shap_weights",
    "create_observation",
    "filter_features",
    "filtered",
    "make_target",
    "read_selection",
    "read_selection_file",
    "select_features",
]
