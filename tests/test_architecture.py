"""Which room may import what (docs/decisions/0001-house.md), read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN_EVERYWHERE = {"pandas", "matplotlib", "pickle", "joblib", "cloudpickle"}
TRAINING_ONLY = {"torch", "onnx", "onnxscript", "safetensors", "sklearn", "stable_baselines3"}


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(top-level name, line, at module level) of each import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0], node.lineno, id(node) in top


def _sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def _allowed(folder: str) -> set[str]:
    common = set(sys.stdlib_module_names) | {"numpy"}
    return common | {
        "kernels/mia_kernels": {"mia_kernels", "numba", "llvmlite", "platformdirs"},
        "models/mia_models": {"mia_models", "mia_kernels", "pydantic", "onnxruntime"} | TRAINING_ONLY,
        "mia_fast": {
            "mia_fast", "mia_models", "mia_kernels", "polars", "pyarrow", "duckdb", "pydantic", "yaml",
            "typer", "rich", "psutil", "tenacity", "numba", "apprise", "prometheus_client", "msgspec",
        },
    }[folder]  # fmt: skip


GENERATORS = {"exchange_calendars": "mia_fast/session_table.py", "sklearn": "mia_fast/memory/learner.py"}
"""A library of an extra that one module may load, inside a function: a generator, and the adaptive learner."""


EXPLAINS = "mia_fast/selection/shap.py"
"""The module that may load LightGBM, the extra ``select``, inside its functions."""


def _draws(path: Path) -> bool:
    """The modules that draw may load matplotlib, the extra ``plot``, inside their functions."""
    return path.name == "plot.py"


def test_matplotlib_loads_inside_functions() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in _sources("mia_fast")
        for name, line, top in _imports(path)
        if name == "matplotlib" and top
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("folder", ["kernels/mia_kernels", "models/mia_models", "mia_fast"])
def test_only_downwards(folder: str) -> None:
    allowed = _allowed(folder)
    bad = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _sources(folder)
        for name, line, top in _imports(path)
        if (name not in allowed or name in FORBIDDEN_EVERYWHERE)
        and not (name in ("matplotlib", "scipy") and _draws(path))
        and not (name == "lightgbm" and path.relative_to(ROOT).as_posix() == EXPLAINS)
        and (top or GENERATORS.get(name) != path.relative_to(ROOT).as_posix())
    ]
    assert not bad, "\n".join(bad)


def test_training_libraries_stay_in_training() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for folder in ("kernels/mia_kernels", "models/mia_models", "mia_fast")
        for path in _sources(folder)
        for name, line, _ in _imports(path)
        if name in TRAINING_ONLY
        and "training" not in path.relative_to(ROOT).as_posix()
        and GENERATORS.get(name) != path.relative_to(ROOT).as_posix()
    ]
    assert not bad, "\n".join(bad)


def test_heavy_libraries_load_at_first_use() -> None:
    heavy = {
        "duckdb",
        "onnxruntime",
        "sklearn",
        "lightgbm",
        "scipy",
        "matplotlib",
        "apprise",
        "prometheus_client",
        *TRAINING_ONLY,
    }
    bad = [
        f"{path.relative_to(ROOT)}:{line} imports {name} at module level"
        for folder in ("kernels/mia_kernels", "models/mia_models", "mia_fast")
        for path in _sources(folder)
        if "training" not in path.parts
        for name, line, top in _imports(path)
        if top and name in heavy
    ]
    assert not bad, "\n".join(bad)


def test_no_module_depends_on_itself_by_way_of_others() -> None:
    """Not even for a type: a protocol beside the one who needs it says what is needed."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in _sources("mia_fast")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    needs: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in modules else node.module for one in full}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        needs[name] = (found & set(modules)) - {name}
    while free := [name for name, others in needs.items() if not others & set(needs)]:
        for name in free:
            del needs[name]
    assert not needs, f"among these is a circle: {sorted(needs)}"
