"""Where things are: the user's folder, and what the package ships.

An empty folder is a valid workspace. Files are created as they are needed; a configuration file
that the workspace lacks is taken from the shipped ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mia_fast.errors import WorkspaceError

_PACKAGE = Path(__file__).resolve().parent


def shipped() -> Path:
    """The folder with the shipped ``config`` and ``data/sample`` (wheel, or the checkout itself)."""
    inside = _PACKAGE / "_shipped"
    return inside if inside.is_dir() else _PACKAGE.parent


@dataclass(frozen=True, slots=True)
class Workspace:
    """A desk's folder: configuration it edits in ``config``, all that is written in ``data``."""

    root: Path

    @classmethod
    def current(cls, path: AnyWorkspace | None = None) -> Workspace:
        """``path`` (a workspace stays the one it is), else ``MIA_WORKSPACE``, else the current directory."""
        if isinstance(path, Workspace):
            return path
        chosen = path if path is not None else os.environ.get("MIA_WORKSPACE") or "."
        root = Path(chosen).expanduser().resolve()
        if root.exists() and not root.is_dir():
            raise WorkspaceError(
                "the workspace is a file, not a folder",
                where=str(root),
                hint="point --workspace or MIA_WORKSPACE at a folder; it may be empty or not exist yet",
            )
        return cls(root)

    @property
    def data(self) -> Path:
        return self.root / "data"

    def config(self, name: str) -> Path:
        """The configuration file ``name``: the workspace's own if it is there, else the shipped one."""
        own = self.root / "config" / name
        return own if own.exists() else shipped() / "config" / name


AnyWorkspace = Workspace | str | os.PathLike[str]
"""What the public functions take: a workspace, or the path of its folder."""
