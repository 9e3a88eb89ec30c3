"""Histories: the features of many files and symbols, on disk, in bounded memory, safe against a kill."""

from __future__ import annotations

from mia_fast.histories.dataset import Manifest, read_manifest
from mia_fast.histories.sources import Survey, expand, survey
from mia_fast.histories.write import Outcome, Preview, Settings, preview, write_history

__all__ = [
    "Manifest",
    "Outcome",
    "Preview",
    "Settings",
    "Survey",
    "expand",
    "preview",
    "read_manifest",
    "survey",
    "write_history",
]
