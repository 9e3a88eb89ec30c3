"""A replay's saved state: whole or not there, checked before it is believed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mia_fast.errors import StateError
from mia_fast.files import replacing

_KIND = b"mia-fast checkpoint "
_MAGIC = _KIND + b"2\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a replay stands after ``row`` bars."""

    row: int
    features: bytes
    """State of the feature engine."""
    state: dict[str, Any]
    """Account, counters and risk state, JSON-safe."""

    def write(self, path: Path) -> None:
        """Replace the file at ``path``; on disk when this returns."""
        head = json.dumps({"row": self.row, "state": self.state, "features": len(self.features)}).encode()
        body = len(head).to_bytes(8, "little") + head + self.features
        with replacing(path, durable=True) as temporary:
            temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """The checkpoint at ``path``; None if there is none.

        Raises
        ------
        StateError
            It is there but damaged.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if content.startswith(_KIND) and not content.startswith(_MAGIC):
            raise StateError(
                "the checkpoint is of another version of mia-fast",
                where=str(path),
                hint="run again with --fresh to start this replay from its first bar, or resume it with that version",
                then="nothing was started",
            )
        start = len(_MAGIC) + 32
        body = content[start:]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != content[len(_MAGIC) : start]:
            raise StateError(
                "the checkpoint is damaged: its checksum does not match",
                where=str(path),
                hint="run again with --fresh to start this replay from its first bar",
                then="nothing was started",
            )
        size = int.from_bytes(body[:8], "little")
        head = json.loads(body[8 : 8 + size])
        return cls(head["row"], body[8 + size :], head["state"])
