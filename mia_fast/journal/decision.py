"""What a decision of the plain call must say before the audit trail takes it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from mia_fast.errors import JournalError
from mia_fast.workspace import Workspace

REGIMES: Final = ("trend", "range", "defensive")
_FILES: Final[dict[Path, str]] = {}
_SIZES: Final[dict[str, tuple[tuple[int, int], int]]] = {}


def check(trade_id: Any, signal_score: Any, regime_probs: Any) -> None:
    """Refuse a line that nobody could read later.

    Raises
    ------
    JournalError
        The name is empty or blank, the score is not a finite number, or a probability is of no regime or outside 0..1.
    """
    if (  # most calls: a microsecond counts here
        type(trade_id) is str
        and trade_id.strip()
        and type(signal_score) is float
        and signal_score - signal_score == 0.0
        and (regime_probs is None or _sound(regime_probs))
    ):
        return
    if not isinstance(trade_id, str) or not trade_id.strip():
        raise _refused(f"trade_id = {trade_id!r} names no trade", "give the desk's name for the trade")
    number = isinstance(signal_score, int | float | np.number) and not isinstance(signal_score, bool)
    if not number or not math.isfinite(signal_score):
        raise _refused(f"signal_score = {signal_score!r} is not a finite number", "0.0 where the policy gave none")
    if regime_probs is None:
        return
    if not isinstance(regime_probs, Mapping):
        raise _refused(f"regime_probs is a {type(regime_probs).__name__}", 'a mapping: {"trend": 0.7, ...}, or None')
    for regime, share in regime_probs.items():
        if regime not in REGIMES:
            raise _refused(f"there is no regime {regime!r}", f"the regimes are {', '.join(REGIMES)}")
        if isinstance(share, bool) or not isinstance(share, int | float | np.number) or share < 0.0 or share > 1.0:
            raise _refused(f"regime_probs[{regime!r}] = {share!r} is no probability", "a number from 0 to 1")


def check_context(workspace: Workspace, count: int) -> None:
    """Refuse a context without names that is not as long as the list of features in force.

    Without ``data/features/selection.json`` no list is in force, and any length passes.

    Raises
    ------
    JournalError
        It is of another length.
    """
    path = _FILES.get(workspace.root)
    if path is None:
        path = _FILES[workspace.root] = os.fspath(workspace.data / "features" / "selection.json")
    try:
        status = os.stat(path)  # noqa: PTH116 - 1 us
    except OSError:
        return
    stamp = status.st_mtime_ns, status.st_size
    held = _SIZES.get(path)
    if held is None or held[0] != stamp:
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - the path is a text here
                held = _SIZES[path] = stamp, len(json.load(file)["names"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _refused(
                f"the context cannot be held against the selection ({error})", "mend or remove selection.json"
            ) from error
    if count != held[1]:
        raise _refused(
            f"the context holds {count} numbers, the list of features in force has {held[1]}",
            "give create_observation's row, or a mapping that names the features",
        )


def _sound(regime_probs: Any) -> bool:
    """Probabilities of regimes and nothing else, without a look at what is wrong."""
    if type(regime_probs) is not dict:
        return False
    for regime, share in regime_probs.items():
        if regime not in REGIMES or type(share) is not float or not 0.0 <= share <= 1.0:
            return False
    return True


def _refused(what: str, hint: str) -> JournalError:
    return JournalError(what, where="log_decision", hint=hint, then="the line was not written")
