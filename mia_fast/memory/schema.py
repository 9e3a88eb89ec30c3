"""The tables of ``data/market_memory.db``, and the steps between their versions.

Version 1 is what the contract names and what older systems wrote: ``clusters`` with its two indexes. Version 2 puts
further tables beside it and touches nothing of it. A file is what its tables say: ``schema_version`` is one
of the tables of version 2, so that a file taken back to version 1 is an old file again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLUSTERS: Final = ("cluster_id", "event_type", "features", "timestamp")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: statements that lead to ``version`` and statements that lead back."""

    version: int
    up: tuple[str, ...]
    down: tuple[str, ...]


MIGRATIONS: Final = (
    Migration(
        1,
        (
            "CREATE TABLE IF NOT EXISTS clusters ("
            "cluster_id INTEGER PRIMARY KEY, event_type TEXT, features TEXT, timestamp DATETIME)",
            "CREATE INDEX IF NOT EXISTS idx_clusters_cluster_id ON clusters (cluster_id)",
            "CREATE INDEX IF NOT EXISTS idx_clusters_timestamp ON clusters (timestamp)",
        ),
        (),
    ),
    Migration(
        2,
        (
            "CREATE TABLE schema_version (version INTEGER NOT NULL, generation INTEGER NOT NULL)",
            "INSERT INTO schema_version VALUES (2, 0)",
            "CREATE TABLE manifests ("
            "manifest_id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, names TEXT NOT NULL)",
            # profit in USD; known_ns: when the outcome was known, ns UTC; recalled: pattern_replay_score at the entry
            "CREATE TABLE outcomes (cluster_id INTEGER PRIMARY KEY, profit REAL NOT NULL, known_ns INTEGER NOT NULL, "
            "trade_id TEXT, run_id TEXT NOT NULL DEFAULT '', recalled REAL)",
            "CREATE UNIQUE INDEX idx_outcomes_trade ON outcomes (run_id, trade_id) WHERE trade_id IS NOT NULL",
            # state: float64, little-endian, in the manifest's order; NaN where missing
            "CREATE TABLE vectors (cluster_id INTEGER PRIMARY KEY, manifest_id INTEGER NOT NULL, state BLOB NOT NULL)",
            # Also what another program removes must leave no half of a row, and tell the indexes in memory.
            "CREATE TRIGGER clusters_gone AFTER DELETE ON clusters BEGIN "
            "DELETE FROM outcomes WHERE cluster_id = OLD.cluster_id; "
            "DELETE FROM vectors WHERE cluster_id = OLD.cluster_id; "
            "UPDATE schema_version SET generation = generation + 1; END",
            "CREATE TRIGGER clusters_changed AFTER UPDATE ON clusters BEGIN "
            "UPDATE schema_version SET generation = generation + 1; END",
        ),
        (
            "DROP TRIGGER clusters_changed",
            "DROP TRIGGER clusters_gone",
            "DROP TABLE vectors",
            "DROP TABLE outcomes",
            "DROP TABLE manifests",
            "DROP TABLE schema_version",
        ),
    ),
)

LATEST: Final = MIGRATIONS[-1].version
TABLES: Final = ("clusters", "schema_version", "manifests", "outcomes", "vectors")
