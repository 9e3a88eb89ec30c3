"""Configuration errors name the file, the line and the nearest valid key; shipped files are valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia_fast import config, validate
from mia_fast.errors import ConfigError
from mia_fast.workspace import Workspace, shipped

SHIPPED = (shipped() / "config" / "market_config.yaml").read_text(encoding="utf-8")


def _load(tmp_path: Path, text: str) -> config.MarketConfig:
    path = tmp_path / "market_config.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(config.MarketConfig, path)


def _line(text: str, part: str) -> int:
    return next(k for k, line in enumerate(text.splitlines(), 1) if part in line)


def test_shipped_configuration_is_valid(tmp_path: Path) -> None:
    found, files = validate.configuration(Workspace(tmp_path))
    assert found == []
    assert files == len(list((shipped() / "config").glob("*.yaml")))


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    text = SHIPPED.replace("tick_size:", "tik_size:")
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert str(caught.value.where).endswith(f"market_config.yaml:{_line(text, 'tik_size')}")
    assert "tik_size" in caught.value.what
    assert "did you mean 'tick_size'?" in str(caught.value)
    assert "never replaced by a default" in str(caught.value)


def test_unknown_top_level_key(tmp_path: Path) -> None:
    text = SHIPPED + "max_drawdwn: 0.1\n"
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert str(caught.value.where).endswith(f":{_line(text, 'max_drawdwn')}")
    assert "max_drawdown" in str(caught.value.hint)


@pytest.mark.parametrize("value", [".nan", ".inf", "0", "-0.1", "1.5", "'5 %'", "null"])
def test_a_limit_that_is_no_fraction_is_refused(tmp_path: Path, value: str) -> None:
    text = SHIPPED.replace("max_drawdown: 0.05", f"max_drawdown: {value}")
    assert text != SHIPPED
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert str(caught.value.where).endswith(f":{_line(text, 'max_drawdown:')}")


def test_missing_limit_is_refused(tmp_path: Path) -> None:
    text = "\n".join(line for line in SHIPPED.splitlines() if not line.startswith("max_drawdown"))
    with pytest.raises(ConfigError, match="'max_drawdown' is missing"):
        _load(tmp_path, text)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = SHIPPED + "max_drawdown: 0.9\n"
    with pytest.raises(ConfigError, match="stands twice") as caught:
        _load(tmp_path, text)
    assert str(caught.value.where).endswith(f":{len(text.splitlines())}")


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        _load(tmp_path, "instrument:\n  symbol: [ES\nmax_drawdown: 0.05\n")
    assert ":" in str(caught.value.where)


@pytest.mark.parametrize("text", ["", "just text", "[1, 2]", "~"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        _load(tmp_path, text)


def test_absent_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(config.MarketConfig, tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(config.MarketConfig, path)


@given(st.text(max_size=200))
def test_no_text_gets_past_as_anything_but_a_config_error(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            _load(Path(folder), text)
        except ConfigError:
            return
    pytest.fail(f"{text!r} was accepted")


def test_own_configuration_comes_first_and_is_never_replaced(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    assert place.config("market_config.yaml") == shipped() / "config" / "market_config.yaml"
    (tmp_path / "config").mkdir()
    own = tmp_path / "config" / "market_config.yaml"
    own.write_text("nonsense: 1\n", encoding="utf-8")
    assert place.config("market_config.yaml") == own
    with pytest.raises(ConfigError):
        config.market(place)


def test_digest_moves_with_content(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n", encoding="utf-8")
    before = config.digest(path)
    path.write_text("a: 2\n", encoding="utf-8")
    assert config.digest(path) != before


@pytest.mark.parametrize("value", ["on", "yes", "true", "off", "no", "'0.05'", "5e-2", "0x", "[0.05]"])
def test_a_limit_that_yaml_reads_as_a_switch_or_a_text_is_refused(tmp_path: Path, value: str) -> None:
    text = SHIPPED.replace("max_drawdown: 0.05", f"max_drawdown: {value}")
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert str(caught.value.where).endswith(f":{_line(text, 'max_drawdown:')}")
    if value in ("on", "yes"):
        assert "switches" in str(caught.value.hint)
    if value == "5e-2":
        assert "1.0e-2" in str(caught.value.hint)


def test_an_integer_may_stand_for_a_real_number(tmp_path: Path) -> None:
    found = _load(tmp_path, SHIPPED.replace("max_drawdown: 0.05", "max_drawdown: 1"))
    assert (type(found.max_drawdown), found.max_drawdown) == (float, 1.0)


def _scalars(node: object) -> list[object]:
    """Every scalar node of a YAML tree that holds a number or a switch."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        return [found for _, value in node.value for found in _scalars(value)]
    if isinstance(node, yaml.SequenceNode):
        return [found for value in node.value for found in _scalars(value)]
    assert isinstance(node, yaml.ScalarNode)
    return [node] if node.tag.rpartition(":")[2] in ("int", "float", "bool") else []


@pytest.mark.parametrize(
    "name", ["market_config", "risk", "policy", "journal", "memory", "options", "selection", "alerts"]
)
def test_every_shipped_number_and_switch_refuses_another_kind(tmp_path: Path, name: str) -> None:
    """Each number of each shipped file in turn becomes a switch and a text, each switch a number and a text."""
    import yaml

    text = (shipped() / "config" / f"{name}.yaml").read_text(encoding="utf-8")
    model = validate.models()[f"{name}.yaml"]
    path = tmp_path / f"{name}.yaml"
    values = _scalars(yaml.compose(text))
    assert values
    for node in values:
        start, end = node.start_mark.index, node.end_mark.index  # type: ignore[attr-defined]
        switch = node.tag.endswith("bool")  # type: ignore[attr-defined]
        for wrong in ("1" if switch else "yes", f"'{text[start:end]}'"):
            path.write_text(text[:start] + wrong + text[end:], encoding="utf-8")
            with pytest.raises(ConfigError) as caught:
                config.load(model, path)
            assert caught.value.where == f"{path}:{node.start_mark.line + 1}"  # type: ignore[attr-defined]
