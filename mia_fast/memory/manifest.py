"""Which features make a state, and in which order: the manifest of the memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mia_fast import config as configs
from mia_fast.errors import ConfigError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.catalogue import Catalogue
from mia_fast.journal.schema import feature_list_digest
from mia_fast.workspace import Workspace

SELECTION: Final = "features/selection.json"
"""Below ``data``: the manifest of the 150, ``{"names": [...], "digest": ...}``; further keys are left alone."""
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


class _Selection(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    names: tuple[str, ...] = Field(min_length=1)
    digest: str


def memory_features(workspace: Workspace) -> MemoryManifest:
    """The manifest in force: ``data/features/selection.json`` if the workspace has one, else the candidates.

    The candidates are the catalogue's features that minute bars alone suffice for. The ``digest`` of a selection is
    that of its names, as :func:`mia_fast.journal.schema.feature_list_digest` gives it.

    Raises
    ------
    ConfigError
        The selection is present but unreadable, was edited, or names a feature that the catalogue lacks; or the
        catalogue is invalid.
    """
    catalogue = catalogues.read(workspace)
    path = workspace.data / SELECTION
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _candidates(catalogue, configs.market(workspace).instrument.tick_size)
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, f"cannot be read ({error})") from error
    try:
        found = _Selection.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise _refused(path, f"is not a selection of features ({str(error).splitlines()[0]})") from error
    unknown = [name for name in found.names if name not in catalogue.names]
    if unknown:
        raise _refused(path, f"names what the catalogue lacks: {', '.join(unknown[:5])}")
    if len(set(found.names)) != len(found.names):
        raise _refused(path, "names a feature twice")
    if found.digest != feature_list_digest(found.names):
        raise _refused(path, "has a digest that is not the one of its names: it was edited")
    return _manifest(catalogue, found.names, "selection")


def _refused(path: Any, what: str) -> ConfigError:
    return ConfigError(
        what,
        where=str(path),
        hint="select the features again, or remove the file to compare by the candidates",
        then="the memory was not opened",
    )


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
