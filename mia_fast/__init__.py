"""mia-fast: market data into features, dealer levels, predictions, a risk verdict and an audit trail.

The functions below are thin calls onto long-lived objects; they load what they need at first use, so
that ``import mia_fast`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mia_fast.version import VERSION

if TYPE_CHECKING:
    from mia_fast.errors import QuarantineWarning as QuarantineWarning
    from mia_fast.features.frame import feature_availability as feature_availability
    from mia_fast.features.frame import generate_features as generate_features
    from mia_fast.features.live import Features as Features
    from mia_fast.features.own import register_kernel as register_kernel
    from mia_fast.journal import flush as flush
    from mia_fast.journal import log_decision as log_decision
    from mia_fast.memory import purge_old_data as purge_old_data
    from mia_fast.memory import recall_patterns as recall_patterns
    from mia_fast.memory import setup_database as setup_database
    from mia_fast.memory import store_pattern as store_pattern
    from mia_fast.options import recalculate_levels as recalculate_levels
    from mia_fast.predict import NeuralPipeline as NeuralPipeline
    from mia_fast.predict import encode_vol_regime as encode_vol_regime
    from mia_fast.retraining import retrain_model as retrain_model
    from mia_fast.risk import block_trade as block_trade
    from mia_fast.risk import stop_trading as stop_trading
    from mia_fast.selection import audit_features as audit_features
    from mia_fast.selection import calculate_shap_weights as calculate_shap_weights
    from mia_fast.selection import create_observation as create_observation
    from mia_fast.selection import filter_features as filter_features
    from mia_fast.workspace import Workspace as Workspace

__version__ = VERSION

_WHERE = {
    "Features": "mia_fast.features.live",
    "NeuralPipeline": "mia_fast.predict",
    "QuarantineWarning": "mia_fast.errors",
    "Workspace": "mia_fast.workspace",
    "audit_features": "mia_fast.selection",
    "block_trade": "mia_fast.risk",
    "calculate_shap_weights": "mia_fast.selection",
    "create_observation": "mia_fast.selection",
    "encode_vol_regime": "mia_fast.predict",
    "feature_availability": "mia_fast.features.frame",
    "filter_features": "mia_fast.selection",
    "flush": "mia_fast.journal",
    "generate_features": "mia_fast.features.frame",
    "log_decision": "mia_fast.journal",
    "purge_old_data": "mia_fast.memory",
    "recalculate_levels": "mia_fast.options",
    "recall_patterns": "mia_fast.memory",
    "register_kernel": "mia_fast.features.own",
    "retrain_model": "mia_fast.retraining",
    "setup_database": "mia_fast.memory",
    "stop_trading": "mia_fast.risk",
    "store_pattern": "mia_fast.memory",
}

__all__ = [*_WHERE, "__version__"]  # noqa: PLE0604 - names of functions loaded on first use


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mia_fast' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
