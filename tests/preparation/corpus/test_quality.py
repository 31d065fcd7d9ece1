"""The quality filter: what it drops in several scripts, and its count in the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_metaxlm.preparation.corpus.cleaning import is_prose
from dist_metaxlm.preparation.prepare import prepare
from dist_metaxlm.recipe.data import QualityFilter
from dist_metaxlm.recipe.load import load_recipe


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["The river is green."], True),
        (["हिन्दी में यह एक वाक्य है।"], True),
        (["我们的房子是绿色的。"], True),
        (["12 34 56 78 | 90 = 7"], False),
        (["menu", "menu", "menu", "text of the page"], False),
        (["menu", "first", "second", "menu"], True),
    ],
)
def test_documents(lines: list[str], kept: bool) -> None:
    assert is_prose(lines, QualityFilter()) is kept


def test_dropped_documents_are_counted(tmp_path: Path, tiny_recipe: Path) -> None:
    text = tmp_path / "en.txt"
    text.write_text("\n\n".join(["The river is green.", "1 2 3 4 5", "A river | 7", "== 99 =="]) + "\n")
    words = [
        f"data.directory={tmp_path / 'data'}",
        f"data.text={{en: [{text}]}}",
        "data.bitext={}",
        "data.heldout_strings=0",
    ]
    recipe = load_recipe(tiny_recipe, [*words, "data.cleaning.quality={}"])
    prepare(recipe, lambda line: None, "corpus")
    about = json.loads((tmp_path / "data" / "corpus" / "manifest.json").read_text())["text"]["en"]
    assert about["dropped"]["quality"] == {"documents": 2, "lines": 2}
    assert about["kept"]["documents"] == 2
