"""What must not be in a tree any more, and whether its configuration holds.

The retired names belong to an older state layout. They stand here, in the validator that forbids
them, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mia_fast.clock import now_ns
from mia_fast.config import MarketConfig, Model, load, misspelt
from mia_fast.errors import ConfigError, DataError
from mia_fast.workspace import Workspace

RETIRED: Final = {
    r"\bobs_t\b": "create_observation(data, regime) gives the observation",
    r"\bdxFeed\b": "name the feed in config/inputs.yaml by its columns",
    r"\b320[\s-]+features\b": "the catalogue decides how many features there are",
    r"\b81[\s-]+features\b": "the manifest decides how many features a model takes",
    r"\b81[\s-]+dimensions\b": "the manifest decides how wide an observation is",
}
"""Pattern -> what to write instead."""

_PATTERN = re.compile("|".join(f"({pattern})" for pattern in RETIRED))
_HINTS = list(RETIRED.values())
_SKIPPED = {
    ".git",
    ".hg",
    ".venv",
    "venv",
    "node_modules",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}
_BINARY_PROBE = 8192


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a tree."""

    path: Path
    line: int
    what: str
    hint: str


def retired_names(root: Path) -> tuple[list[Finding], int]:
    """Search every text file below ``root``; returns the findings and the number of files read.

    Folders of tools and version control, binary files and this validator itself are passed over.

    Raises
    ------
    DataError
        There is no such file or folder.
    """
    if not root.exists():
        raise DataError("there is no such file or folder", where=str(root), hint="check the path")
    findings = []
    files = 0
    for path in _files(root):
        try:
            content = path.read_bytes()
        except OSError as error:
            findings.append(Finding(path, 0, f"cannot be read ({error.strerror})", "check its permissions"))
            continue
        for match in _PATTERN.finditer(path.name):
            assert match.lastindex is not None
            findings.append(
                Finding(path, 0, f"retired name {match[0]!r} in a file's name", _HINTS[match.lastindex - 1])
            )
        if b"\0" in content[:_BINARY_PROBE]:
            continue
        files += 1
        text = content.decode("utf-8", errors="replace")
        for match in _PATTERN.finditer(text):
            assert match.lastindex is not None
            line = text.count("\n", 0, match.start()) + 1
            findings.append(Finding(path, line, f"retired name {match[0]!r}", _HINTS[match.lastindex - 1]))
    return findings, files


def models() -> dict[str, type[Model]]:
    """The configuration files by name, each with its model."""
    from mia_fast.alerts.config import AlertsConfig
    from mia_fast.bars.rolls import RollsConfig
    from mia_fast.features import catalogue
    from mia_fast.journal.config import JournalConfig
    from mia_fast.live.policy import PolicyConfig
    from mia_fast.memory.config import MemoryConfig
    from mia_fast.options.config import OptionsConfig
    from mia_fast.risk.config import RiskConfig
    from mia_fast.selection.config import SelectionConfig
    from mia_fast.sessions import SessionsConfig
    from mia_fast.tables import InputsConfig

    return {
        "market_config.yaml": MarketConfig,
        "policy.yaml": PolicyConfig,
        "risk.yaml": RiskConfig,
        "options.yaml": OptionsConfig,
        "inputs.yaml": InputsConfig,
        "journal.yaml": JournalConfig,
        "alerts.yaml": AlertsConfig,
        "memory.yaml": MemoryConfig,
        "feature_sets.yaml": catalogue.Catalogue,
        "sessions.yaml": SessionsConfig,
        "rolls.yaml": RollsConfig,
        "selection.yaml": SelectionConfig,
    }


def configuration(workspace: Workspace) -> tuple[list[Finding], int]:
    """Read every configuration file of a workspace; returns the findings and the number of files."""
    from mia_fast.sessions import Sessions, SessionsConfig

    findings = [
        Finding(path, 0, "this file is not read under its name", f"did you mean {name!r}?")
        for path, name in misspelt(workspace)
    ]
    known = models()
    for name, model in known.items():
        path = workspace.config(name)
        try:
            found = load(model, path)
            if isinstance(found, SessionsConfig):
                for table in dict.fromkeys(found.products.values()):
                    symbol = next(symbol for symbol, name in found.products.items() if name == table)
                    Sessions.load(workspace, symbol).check_ahead(now_ns())
        except ConfigError as error:
            where, _, line = (error.where or str(path)).rpartition(":")
            number = int(line) if line.isdigit() else 0
            findings.append(Finding(Path(where) if number else path, number, error.what, error.hint or ""))
    return findings, len(known)


def _files(root: Path) -> Iterator[Path]:
    own = Path(__file__).resolve()
    if root.is_file():
        yield root
        return
    for path in sorted(root.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in _SKIPPED:
                yield from _files(path)
        elif path.is_file() and path.resolve() != own:
            yield path
