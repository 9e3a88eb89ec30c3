"""What is installed: light imports, the public functions, and a wheel that works in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mia_fast

ROOT = Path(__file__).resolve().parents[1]
NEVER = ("torch", "pandas", "matplotlib", "onnx", "safetensors", "stable_baselines3")


def _python(code: str, cwd: Path, path: str | None = None) -> str:
    places = path or os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": places, "MIA_WORKSPACE": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = (*NEVER, "numba", "polars", "pyarrow", "duckdb", "onnxruntime", "sklearn", "lightgbm", "rich", "typer")
    loaded = _python("import sys, mia_fast; print(*sys.modules)", tmp_path).split()
    assert not set(heavy) & set(loaded)


def test_the_core_never_loads_training_or_plotting_libraries(tmp_path: Path) -> None:
    code = (
        "import sys, mia_fast\n"
        "from mia_fast.workspace import shipped\n"
        "sample = shipped() / 'data' / 'sample'\n"
        "frame = mia_fast.generate_features(sample / 'bars.parquet', cross=sample / 'cross.parquet')\n"
        "mia_fast.recalculate_levels(sample / 'chain.parquet')\n"
        "mia_fast.stop_trading(0.01); mia_fast.block_trade(False)\n"
        "mia_fast.log_decision('T1', 'buy', 0.5, {'trend': 1.0})\n"
        "mia_fast.NeuralPipeline()\n"
        "mia_fast.flush()\n"
        "print(*sys.modules)"
    )
    loaded = _python(code, tmp_path).split()
    assert "polars" in loaded
    assert not set(NEVER) & set(loaded)


def test_public_names() -> None:
    for name in mia_fast.__all__:
        assert getattr(mia_fast, name) is not None
        assert name in dir(mia_fast)
    with pytest.raises(AttributeError, match="no attribute 'generate_feature'"):
        mia_fast.generate_feature  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_all_packages_configuration_and_sample(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for expected in (
        "mia_fast/__init__.py",
        "mia_kernels/program.py",
        "mia_models/session.py",
        "mia_models/artifacts/predicted_vix.onnx",
        "mia_models/artifacts/predicted_vix.manifest.json",
        *(f"mia_fast/_shipped/config/{path.name}" for path in (ROOT / "config").iterdir()),
        *(f"mia_fast/_shipped/data/sample/{path.name}" for path in (ROOT / "data" / "sample").iterdir()),
    ):
        assert expected in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "data/"))]
    assert not [name for name in names if "/data/" in name and "/data/sample/" not in name]


def test_wheel_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import mia_fast, mia_fast.workspace as w\n"
        "assert w.shipped().name == '_shipped', w.shipped()\n"
        "frame = mia_fast.generate_features(w.shipped() / 'data' / 'sample' / 'bars.parquet')\n"
        "print(frame.height, frame.width)"
    )
    rows, width = _python(code, empty, str(site)).split()
    assert int(rows) == 11_040
    assert int(width) == 351
    assert (empty / "data" / "features" / "features_latest.csv").exists()
