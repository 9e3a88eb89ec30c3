"""The page of definitions is what the catalogue declares."""

from __future__ import annotations

from mia_fast.features import page
from mia_fast.features.catalogue import read
from mia_fast.workspace import Workspace, shipped


def test_the_page_is_the_catalogue() -> None:
    text = (shipped() / "docs" / "features.md").read_text(encoding="utf-8")
    assert text == page.markdown(read(Workspace(shipped()))), "run: make docs"


def test_every_feature_and_every_refused_name_stands_on_it() -> None:
    catalogue = read(Workspace(shipped()))
    text = page.markdown(catalogue)
    for name in (*catalogue.names, *catalogue.refused):
        assert f"\n| `{name}` | " in text
