"""Which version of a model is served, and how that is changed: at once, on the record, and back again.

``data/models`` of a workspace holds

* ``NAME.onnx`` with its manifest, as ``mia-fast train`` writes them: the version ``own``;
* ``versions/NAME/ID/``, one folder per challenger, never altered; ID is the start of the graph's SHA-256;
* ``served.json``, which names the version in force and those before it. It is replaced in one step.

Without an entry in it, ``own`` is served if it is there, else the model that is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mia_models
from mia_fast import clock
from mia_fast.files import write_json
from mia_fast.workspace import Workspace
from mia_models import manifest as manifests
from mia_models.errors import ModelError

SHIPPED, OWN = "shipped", "own"
MODELS: Final = ("predicted_vix", "networks")
_KEPT: Final = 50


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model that is there."""

    name: str
    version: str
    folder: Path
    served: bool
    trained_to: str
    """Last target date of its training, ISO; ``-`` where its manifest cannot be read."""
    gain: float | None
    """Over the champion it challenged."""
    fault: str | None
    """Why it cannot be served."""


def folder(workspace: Workspace, name: str) -> Path:
    """Where the served version of the model ``name`` lies.

    Raises
    ------
    ModelError
        ``served.json`` is damaged, or the version it names is gone: that is no reason to serve another one.
    """
    return _folder(workspace, name, served(workspace, name))


def served(workspace: Workspace, name: str) -> str:
    """The version in force: ``shipped``, ``own`` or an ID."""
    entry = _read(workspace).get(name)
    if entry is not None:
        return str(entry["version"])
    return OWN if any((workspace.data / "models").glob(f"{name}.*")) else SHIPPED


def versions(workspace: Workspace, name: str) -> list[Version]:
    """Every version of a model that is there: shipped, own, then the challengers by name."""
    current = served(workspace, name)
    names = [SHIPPED]
    if any((workspace.data / "models").glob(f"{name}.*")):
        names.append(OWN)
    challengers = (workspace.data / "models" / "versions" / name).glob("[!.]*")
    names += sorted(path.name for path in challengers if path.is_dir())
    found = []
    for version in names:
        place = _folder(workspace, name, version)
        try:
            manifest = manifests.read(place, name)
        except ModelError as error:
            found.append(Version(name, version, place, version == current, "-", None, error.what))
            continue
        gain = next((metric.gain for metric in manifest.metrics if metric.period == "challenge"), None)
        last = manifest.training.last.isoformat()
        found.append(Version(name, version, place, version == current, last, gain, None))
    return found


def new_folder(workspace: Workspace, name: str, graph_sha256: str) -> Path:
    """Where a challenger with this graph belongs."""
    return workspace.data / "models" / "versions" / name / graph_sha256[:12]


def promote(
    workspace: Workspace, name: str, version: str, *, reason: str, detail: Mapping[str, Any] | None = None
) -> str:
    """Serve ``version`` from now on; the version that was served before.

    The model is loaded and asked its test rows first, then the journal takes the swap, then it happens. A process that
    has loaded the model keeps what it has.

    Parameters
    ----------
    workspace
        Whose model.
    name, version
        The version is ``shipped``, ``own``, or an ID or its beginning.
    reason
        Why; it is journalled.
    detail
        More for the journal.

    Raises
    ------
    ModelError
        There is no such version, it cannot be served, or it is served already.
    JournalError
        The journal does not take the swap; nothing was changed.
    """
    chosen = _match(workspace, name, version)
    content = _read(workspace)
    before = served(workspace, name)
    if chosen == before:
        raise ModelError(f"{name} {chosen} is served already", where="models", then="nothing was changed")
    history = [*content.get(name, {}).get("before", []), before][-_KEPT:]
    _swap(workspace, content, name, chosen, history, "MODEL_PROMOTED", {"reason": reason, **(detail or {})})
    return before


def rollback(workspace: Workspace, name: str, *, reason: str) -> tuple[str, str]:
    """Serve the version that was served before the present one: (now, before).

    Raises
    ------
    ModelError
        None was served before, or it cannot be served any more.
    JournalError
        The journal does not take the swap; nothing was changed.
    """
    content = _read(workspace)
    history = list(content.get(name, {}).get("before", []))
    if not history:
        raise ModelError(
            f"no other version of {name} was served before",
            where="models",
            hint="mia-fast models list shows what there is; promote one of them",
            then="nothing was changed",
        )
    current, target = served(workspace, name), str(history.pop())
    _swap(workspace, content, name, target, history, "MODEL_ROLLED_BACK", {"reason": reason})
    return target, current


def _swap(
    workspace: Workspace,
    content: dict[str, Any],
    name: str,
    version: str,
    history: list[str],
    code: str,
    detail: Mapping[str, Any],
) -> None:
    from mia_fast import journal
    from mia_fast.loading import load_model

    place = _folder(workspace, name, version)
    model = load_model(workspace, name, place)
    before = served(workspace, name)
    seen = {**detail, "version": version, "before": before, "graph_sha256": model.manifest.graph_sha256}
    row = {"timestamp": clock.now_ns(), "model": name, "code": code, "detail": seen}
    journal.of(workspace).append("training", row)
    content[name] = {"version": version, "before": history}
    write_json(_path(workspace), content, durable=True, wait=True)


def _match(workspace: Workspace, name: str, version: str) -> str:
    names = [found.version for found in versions(workspace, name)]
    matching = [found for found in names if found == version] or [
        found for found in names if found.startswith(version) and version and found not in (SHIPPED, OWN)
    ]
    if len(matching) != 1:
        raise ModelError(
            f"{version!r} names {'no' if not matching else 'more than one'} version of {name}",
            where="VERSION",
            hint=f"the versions are {', '.join(names)}",
            then="nothing was changed",
        )
    return matching[0]


def _folder(workspace: Workspace, name: str, version: str) -> Path:
    if version == SHIPPED:
        return Path(mia_models.__file__).parent / "artifacts"
    own = workspace.data / "models"
    return own if version == OWN else own / "versions" / name / version


def _path(workspace: Workspace) -> Path:
    return workspace.data / "models" / "served.json"


def _read(workspace: Workspace) -> dict[str, Any]:
    path = _path(workspace)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        for name, entry in content.items():
            if not (isinstance(entry["version"], str) and all(isinstance(old, str) for old in entry["before"])):
                raise ValueError(f"the entry of {name} is not one")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"it cannot be told which models are served ({error})",
            where=str(path),
            hint="restore the file, or remove it to serve the shipped models",
            then="the model was not loaded; nothing is predicted without it",
        ) from error
    return content
