"""A busy file: what is tried again, when, and what never waits.

Faults are put where the system raises them, on the rename onto the file's name; the waits go to a clock of the test's
own. One test has a real one: a file that is a mount point is busy (EBUSY) until it is unmounted.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mia_fast
from mia_fast import files
from mia_fast.errors import RiskError, WorkspaceError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.frame import write_latest
from mia_fast.options import no_chain, save
from mia_fast.risk.store import Record, StateStore, write_snapshot
from mia_fast.telemetry import is_transient
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
BUSY = ["EBUSY", "ETXTBSY", "EAGAIN", "ESTALE", "EINTR", "ETIMEDOUT", "ENOLCK", "EDEADLK"]
LASTING = ["ENOSPC", "EACCES", "EPERM", "EROFS", "EIO", "EDQUOT", "ENOENT", "ENAMETOOLONG", "EXDEV"]
START = 1_747_144_800_123_456_000


class Disk:
    """A disk on which names ending in ``name`` cannot be taken, ``times`` times; and a clock that only counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: str = "EBUSY"
        self.times = 0
        self.name = ""
        self.waits: list[float] = []
        rename = Path.replace

        def replace(path: Path, target: Path) -> Path:
            if self.times and str(target).endswith(self.name):
                self.times -= 1
                number = getattr(errno, self.error)
                raise OSError(number, os.strerror(number), str(path), None, str(target))
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(time, "sleep", self.waits.append)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("error", BUSY)
def test_a_busy_file_is_tried_again_after_2_4_and_8_seconds(tmp_path: Path, disk: Disk, error: str) -> None:
    path = tmp_path / "a.csv"
    files.write_text(path, "old")
    disk.error, disk.times = error, 3
    begun: list[int] = []

    def write(part: Path) -> None:
        begun.append(part.stat().st_size)
        part.write_text("new")

    files.fill(path, write, durable=True)
    assert disk.waits == [2.0, 4.0, 8.0]
    assert begun == [0, 0, 0, 0], "each attempt begins anew, from an empty file"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_after_three_retries_the_fault_is_raised_and_the_old_file_stays(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    disk.times = 4
    with pytest.raises(OSError, match=re.escape(f"{os.strerror(errno.EBUSY)}: ")) as raised:
        files.write_json(path, {"x": 2}, wait=True)
    assert raised.value.errno == errno.EBUSY
    assert (disk.waits, disk.times) == ([2.0, 4.0, 8.0], 0)
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", LASTING)
def test_what_waiting_does_not_mend_is_raised_at_once(tmp_path: Path, disk: Disk, error: str) -> None:
    disk.error, disk.times = error, 1
    with pytest.raises(OSError) as raised:  # noqa: PT011 - its number is asserted
        files.write_text(tmp_path / "a", "x", wait=True)
    assert raised.value.errno == getattr(errno, error)
    assert not disk.waits


def test_errors_of_the_data_and_real_lasting_faults_are_raised_at_once(tmp_path: Path, disk: Disk) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "a", {"x": float("nan")}, wait=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "folder", "x", wait=True)
    with pytest.raises(OSError, match=r"\(os error 28\)$") as full:
        files.fill(tmp_path / "b", lambda _: pl.DataFrame({"x": [1]}).write_csv("/dev/full"))
    assert full.value.errno is None, "Polars has the number in the text only"
    assert not disk.waits
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", BUSY)
def test_polars_text_of_a_busy_file_is_known(error: str) -> None:
    number = getattr(errno, error)
    assert is_transient(OSError(f"{os.strerror(number)} (os error {number})"))
    assert not is_transient(OSError(f"{os.strerror(number)} (os error {number}) is what they say"))
    assert not is_transient(OSError(f"No space left on device (os error {errno.ENOSPC})"))


MOUNTS = """
import subprocess, sys, time
from pathlib import Path
from mia_fast import files
path, other = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "--bind", other, path], check=True)
waits = []
def sleep(seconds):
    waits.append(seconds)
    if len(waits) == 2:
        subprocess.run(["umount", path], check=True)
time.sleep = sleep
files.write_text(path, "new", durable=True, wait=True)
print(waits, path.read_text())
"""


def test_a_mount_point_is_busy_until_it_is_unmounted(tmp_path: Path) -> None:
    """The system's own EBUSY, in a namespace of the test's own."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*own, "mount", "-t", "tmpfs", "none", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system gives no namespace to mount in")
    path, other = tmp_path / "levels.json", tmp_path / "other"
    path.write_text("old")
    other.write_text("mounted")
    places = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    said = subprocess.run(
        [*own, sys.executable, "-c", MOUNTS, str(path), str(other)],
        env={**os.environ, "PYTHONPATH": places},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "[2.0, 4.0] new\n"
    assert path.read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"levels.json", "other"}


# ---------------------------------------------------------------- what frames call


def _features(workspace: Workspace) -> pl.DataFrame:
    """All of the catalogue's names over 2,000 hours; five hold numbers."""
    rng = np.random.default_rng(2)
    stamps = pl.Series(START + np.arange(2000) * 3_600_000_000_000).cast(pl.Datetime("ns", "UTC"))
    names = catalogues.read(workspace).names
    return pl.DataFrame(
        {
            "timestamp": stamps,
            **{name: rng.normal(size=2000) if k < 5 else [0.0] * 2000 for k, name in enumerate(names)},
        }
    )


def _latent(workspace: Workspace) -> None:
    mia_fast.encode_vol_regime(pl.DataFrame({"rsi_14": [50.0]}), missing="impute", workspace=workspace)


def _importance(workspace: Workspace) -> None:
    frame = _features(workspace)
    mia_fast.calculate_shap_weights(frame, frame[frame.columns[1]], workspace=workspace)


FRAMES: dict[str, Callable[[Workspace], object]] = {
    "features_latest.csv": lambda place: write_latest(_features(place), place),
    "features_audit_final.csv": lambda place: mia_fast.audit_features(_features(place), workspace=place),
    "feature_importance.csv": _importance,
    "selection.json": _importance,
    "latent_vectors.csv": _latent,
    ".json": lambda place: mia_fast.recalculate_levels(None, workspace=place, now_ns=START),
}


@pytest.mark.parametrize("name", FRAMES)
def test_the_files_of_frame_calls_wait_for_a_busy_file(workspace: Workspace, disk: Disk, name: str) -> None:
    disk.name, disk.times = name, 2
    FRAMES[name](workspace)
    assert (disk.waits, disk.times) == ([2.0, 4.0], 0)
    assert len([path for path in workspace.data.rglob(f"*{name}") if path.stat().st_size]) == 1
    assert not [*workspace.data.rglob("*.tmp")]
    assert not [*workspace.data.rglob("*.claim")]


def test_a_filtered_file_waits_too(workspace: Workspace, disk: Disk) -> None:
    _importance(workspace)
    disk.name, disk.times = "features_latest_filtered.csv", 1
    mia_fast.filter_features(_features(workspace), workspace=workspace)
    assert disk.waits == [2.0]
    assert (workspace.data / "features" / "features_latest_filtered.csv").stat().st_size


# ---------------------------------------------------------------- what never waits


def test_in_the_live_path_nothing_sleeps(tmp_path: Path, disk: Disk) -> None:
    """The levels a replay saves, the risk state, risk's snapshots: the first fault is the caller's to judge."""
    place = Workspace(tmp_path)
    disk.times = 3
    with pytest.raises(WorkspaceError, match="levels cannot be written"):
        save(no_chain(START, "CHAIN_MISSING: data=None"), place)
    with pytest.raises(RiskError, match="risk state cannot be written"):
        StateStore(tmp_path).write(Record("a"))
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EBUSY))):
        write_snapshot(tmp_path / "risk_snapshots", START, {"drawdown": 0.06})
    assert (disk.times, disk.waits) == (0, [])


@pytest.mark.parametrize("folder", ["live", "risk"])
def test_no_file_of_the_live_path_is_waited_for(folder: str) -> None:
    waits = re.compile(r"\bfill\(|\bretrying\(|(write_text|write_json|save|save_levels)\([^\n]*wait=True")
    found = [path.name for path in (ROOT / "mia_fast" / folder).glob("*.py") if waits.search(path.read_text())]
    assert not found
