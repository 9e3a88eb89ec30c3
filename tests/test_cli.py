"""The command line as a person meets it: help that teaches, errors with a hint, files where it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from mia_fast.cli.commands import app
from mia_fast.features import catalogue as catalogues
from mia_fast.features.frame import feature_availability
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = shipped() / "data" / "sample"
COMMANDS = (
    "demo", "run", "features", "check-features", "select", "audit", "filter",
    "levels", "export", "simulate", "warmup", "train", "validate",
)  # fmt: skip
WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def _cli(*arguments: str | Path, workspace: Path | None = None, code: int = 0) -> str:
    result = CliRunner(env=WIDE | ({"MIA_WORKSPACE": str(workspace)} if workspace else {})).invoke(
        app, [str(part) for part in arguments]
    )
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def _process(*arguments: str | Path, workspace: Path) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mia_fast", *map(str, arguments)],
        env={**os.environ, **WIDE, "PYTHONPATH": places, "MIA_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        check=False,
    )


def _available(**tables: Path) -> int:
    """How many features these tables of the sample give."""
    return int(
        feature_availability(SAMPLE / "bars.parquet", **tables, workspace=Workspace(shipped()))["available"].sum()
    )


def test_help_lists_every_command_and_each_teaches() -> None:
    overview = _cli("--help")
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", overview), command
        text = _cli(command, "--help")
        assert "Example" in text or command in ("export", "warmup"), command
    assert "reset" in _cli("risk", "--help")


def test_demo_ends_with_the_table_and_the_files(tmp_path: Path) -> None:
    latest = tmp_path / "data" / "features" / "features_latest.csv"
    latest.parent.mkdir(parents=True)
    latest.write_text("the desk's own")
    done = _process("demo", workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "SIMULATED DATA" in text
    brought = {
        "cross": SAMPLE / "cross.parquet",
        "levels": SAMPLE / "chain.parquet",
        "events": SAMPLE / "events.parquet",
    }
    # Forecasts, account and market memory: by the live engine itself.
    made = [feature.name for feature in catalogues.read(Workspace(tmp_path)).features if feature.stage > 1]
    for part in (
        "Bars",
        "2,760",
        "Features",
        f"{_available(**brought) + len(made)} of 350 computed",
        "Decisions",
        "Blocked, by code",
        "Largest drawdown",
        "p99",
    ):
        assert part in text, part
    for name in re.findall(r"^\s+(data/\S+)$", text, flags=re.MULTILINE):
        assert (tmp_path / "demo" / name).is_file(), name
    assert (tmp_path / "demo" / "data" / "mia.duckdb").is_file()
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [latest]
    assert latest.read_text() == "the desk's own"


def test_a_known_error_is_a_panel_with_a_hint_and_status_2(tmp_path: Path) -> None:
    done = _process("features", tmp_path / "none.parquet", workspace=tmp_path)
    assert done.returncode == 2
    assert "DataError" in done.stderr
    assert "What to do" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "demo" / "config").mkdir(parents=True)
    (tmp_path / "demo" / "config" / "market_config.yaml").write_text("max_drawdwn: 1\n")
    done = _process("demo", workspace=tmp_path)
    assert done.returncode == 2
    assert "market_config.yaml:1" in done.stderr
    assert "max_drawdown" in done.stderr


def test_features_shows_the_plan_before_any_work(tmp_path: Path) -> None:
    text = _cli("features", SAMPLE / "bars.parquet", workspace=tmp_path)
    assert f"{_available()} of 350 features can be computed" in text
    assert "null for want of daily (VIX" in text
    assert not (tmp_path / "data").exists()


def test_features_writes_parquet(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    text = _cli("features", SAMPLE / "bars.parquet", out, "--cross", SAMPLE / "cross.parquet", workspace=tmp_path)
    assert f"{_available(cross=SAMPLE / 'cross.parquet')} of 350" in text
    assert "rows/s" in text
    frame = pl.read_parquet(out)
    assert frame.shape == (11_040, 351)
    assert frame["vix_term_1m"].null_count() == 0


def test_levels_of_the_latest_snapshot(tmp_path: Path) -> None:
    text = _cli("levels", SAMPLE / "chain.parquet", workspace=tmp_path)
    assert "OK" in text
    paths = list((tmp_path / "data" / "options_snapshots").glob("levels_*.json"))
    assert len(paths) == 1
    content = json.loads(paths[0].read_text())
    last = pl.read_parquet(SAMPLE / "chain.parquet")["quote_time"].max()
    assert content["timestamp"].startswith(last.strftime("%Y-%m-%dT%H:%M"))  # type: ignore[union-attr]
    assert f"{content['gamma_wall']:,.2f}" in text


def test_export_of_a_new_workspace_writes_the_headers(tmp_path: Path) -> None:
    text = _cli("export", workspace=tmp_path)
    assert "data/logs/trading/decision_log.csv" in text
    header = (tmp_path / "data" / "logs" / "trading" / "decision_log.csv").read_text()
    assert header == "timestamp,trade_id,decision,signal_score,regime_probs\n"


def test_simulate_only_what_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "market"
    text = _cli("simulate", out, "--seed", "3", "--sessions", "1", "--only", "bars", "--warmup-sessions", "1")
    assert "bars.parquet" in text
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "bars.parquet"]
    assert pl.read_parquet(out / "bars.parquet").height == 2760


def test_warmup_says_where_the_kernels_are(tmp_path: Path) -> None:
    from mia_kernels.compile import cache_dir

    text = _cli("warmup", workspace=tmp_path)
    assert "Kernels are ready" in text
    assert str(cache_dir()) in text.replace("\n", "")


def test_validate_finds_retired_names_with_line_and_replacement(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(
        "x = 1\nobs" + "_t = read('dx" + "Feed')\n# 81 " + "dimensions, 320 " + "features\n"
    )
    (tmp_path / "new.py").write_text("observation = 320 + 81\nobs_total = 1\n")
    text = _cli("validate", tmp_path, workspace=tmp_path, code=1)
    assert text.count("old.py:2") == 2
    assert text.count("old.py:3") == 2
    assert "new.py" not in text
    assert "create_observation" in text
    (tmp_path / "old.py").unlink()
    assert "nothing found" in _cli("validate", tmp_path, workspace=tmp_path)


def test_this_tree_has_no_retired_names() -> None:
    assert "nothing found" in _cli("validate", ROOT, workspace=ROOT)


def test_validate_reports_a_broken_configuration(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "risk.yaml").write_text("nonsense: 1\n")
    text = _cli("validate", tmp_path, workspace=tmp_path, code=1)
    assert "risk.yaml" in text
    assert "nonsense" in text


def test_risk_status_and_reset(tmp_path: Path) -> None:
    import mia_fast

    place = Workspace(tmp_path)
    assert mia_fast.stop_trading(0.06, workspace=place) is True
    assert mia_fast.stop_trading(0.01, workspace=place) is True
    assert "LATCHED" in _cli("risk", "status", workspace=tmp_path)
    with pytest.raises(Exception, match="needs a reason"):
        CliRunner(env=WIDE | {"MIA_WORKSPACE": str(tmp_path)}).invoke(
            app, ["risk", "reset", "--reason", " "], catch_exceptions=False
        )
    assert "cleared" in _cli("risk", "reset", "--reason", "test", workspace=tmp_path).lower()
    assert mia_fast.stop_trading(0.01, workspace=place) is False
    assert "DISARMED" in _cli("risk", "status", workspace=tmp_path)


def test_a_period_of_trade_dates(tmp_path: Path) -> None:
    done = _process(
        "run", "--bars", SAMPLE / "bars.parquet", "--events", SAMPLE / "events.parquet",
        "--cross", SAMPLE / "cross.parquet", "--start", "2025-05-14", "--end", "2025-05-14",
        workspace=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1,380 from 2025-05-13 22:01Z to 2025-05-14 21:00Z" in done.stdout
    assert "NO_CHAIN" in done.stdout


def test_version() -> None:
    import mia_fast

    assert _cli("--version").strip() == f"mia-fast {mia_fast.__version__}"


def test_a_path_that_cannot_be_written_is_a_panel_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _process("simulate", tmp_path / "file" / "x", "--only", "events", workspace=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "What to do" in done.stderr


def test_a_configuration_file_under_a_slip_of_its_name_is_not_ignored(tmp_path: Path) -> None:
    own = tmp_path / "demo" / "config"
    own.mkdir(parents=True)
    (own / "market_confg.yaml").write_text("max_drawdown: 0.01\n")
    assert "did you mean 'market_config.yaml'?" in _cli("validate", own, workspace=tmp_path / "demo", code=1)
    done = _process("demo", workspace=tmp_path)
    assert done.returncode == 2
    assert "market_config.yaml" in done.stderr
    assert not (tmp_path / "demo" / "data").exists()


def test_validate_reads_names_of_files_too(tmp_path: Path) -> None:
    (tmp_path / ("obs" + "_t")).write_text("320 " + " features\n")
    text = _cli("validate", tmp_path, workspace=tmp_path, code=1)
    assert "in a file's name" in text
    assert text.count("retired name") == 2


def test_a_lost_store_blocks_until_a_person_has_looked(tmp_path: Path) -> None:
    _process("export", workspace=tmp_path)
    (tmp_path / "data" / "macro_events.csv").write_text(
        "start_time,type,impact,cluster_id\n2099-01-01T00:00:00Z,FOMC,0.9,1\n"
    )
    code = "import mia_fast; print(mia_fast.block_trade(False))"
    places = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    env = {**os.environ, "PYTHONPATH": places, "MIA_WORKSPACE": str(tmp_path)}

    def blocked() -> str:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert blocked() == "False"
    (tmp_path / "data" / "mia.duckdb").write_bytes(b"garbage" * 1000)
    assert blocked() == "True"
    done = _process("acknowledge", "--reason", "test: looked at the quarantine", workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Is: ok" in done.stdout
    assert blocked() == "False"


def test_asking_about_a_mistyped_workspace_does_not_create_it(tmp_path: Path) -> None:
    done = _process("risk", "status", workspace=tmp_path / "nowhere")
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert not (tmp_path / "nowhere").exists()
