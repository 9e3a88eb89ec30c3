"""What tests share: where the real data is, and one kernel cache for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real market data beside the project; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty folder as the workspace."""
    from mia_fast.workspace import Workspace

    monkeypatch.setenv("MIA_WORKSPACE", str(tmp_path))
    return Workspace.current()


@pytest.fixture(autouse=True)
def _own_telemetry():
    """The ring of measurements is the process's: what other tests left in it must not be exported by this one."""
    from mia_fast.telemetry import RECORDER

    RECORDER.drain()
