"""Which features make a state, and in which order: the manifest of the memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from mia_fast import config as configs
from mia_fast.features import catalogue as catalogues
from mia_fast.features.catalogue import Catalogue
from mia_fast.workspace import Workspace

SELECTION: Final = "features/selection.json"
"""Below ``data``: the manifest of the 150."""
_BARS: Final = ("open", "high", "low", "close", "volume")


@dataclass(frozen=True)
class MemoryManifest:
    """The ordered names of a state's values.

    ``digest`` (16 hex digits) covers the names, their order and, for each of them, the rows of the catalogue that
    compute it: states of another digest mean something else and are not compared.
    """

    names: tuple[str, ...]
    digest: str
    source: Literal["selection", "catalogue"]

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Name -> column."""
        return {name: k for k, name in enumerate(self.names)}


def memory_features(workspace: Workspace) -> MemoryManifest:
    """The manifest in force: ``data/features/selection.json`` if the workspace has one, else the candidates.

    The candidates are the catalogue's features that minute bars alone suffice for.

    Raises
    ------
    ConfigError
        The selection is present and cannot be used (:func:`mia_fast.selection.manifest.read_selection_file` says when);
        or the catalogue is invalid.
    """
    from mia_fast.selection.manifest import read_selection_file

    catalogue = catalogues.read(workspace)
    path = workspace.data / SELECTION
    if not path.exists():
        return _candidates(catalogue, configs.market(workspace).instrument.tick_size)
    found = read_selection_file(
        path,
        catalogue,
        hint="choose the features again (mia-fast select), or remove the file to compare by the candidates",
        then="the memory was not opened",
    )
    return _manifest(catalogue, found.names, "selection")


_CANDIDATES: Final[dict[tuple[str, float], MemoryManifest]] = {}


def _candidates(catalogue: Catalogue, tick_size: float) -> MemoryManifest:
    key = (catalogue.digest, tick_size)
    if key not in _CANDIDATES:
        from mia_fast.features.plan import make_plan

        plan = make_plan(catalogue, _BARS, bar_minutes=1.0, tick_size=tick_size)
        names = tuple(name for name in plan.features if name not in plan.missing)
        if len(_CANDIDATES) > 8:
            _CANDIDATES.clear()
        _CANDIDATES[key] = _manifest(catalogue, names, "catalogue")
    return _CANDIDATES[key]


def _manifest(
    catalogue: Catalogue, names: tuple[str, ...], source: Literal["selection", "catalogue"]
) -> MemoryManifest:
    from mia_fast.loading import definitions

    text = json.dumps([names, definitions(catalogue, names)], sort_keys=True)
    return MemoryManifest(names, hashlib.sha256(text.encode()).hexdigest()[:16], source)
