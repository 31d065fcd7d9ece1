"""The measuring script on small trees with known figures, and the pages that are drawn from it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import import_graph
import measure
import picture
import site_pages
import source_figures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of two sub-packages that import each other, one of them lazily."""
    for name, text in {
        "tree/__init__.py": "",
        "tree/low/__init__.py": "",
        "tree/low/base.py": '"""Base."""\n\n\ndef double(value: int) -> int:\n    """Twice."""\n    return 2 * value\n',
        "tree/low/helper.py": "def late(a, b):\n    from tree.high import top\n    return top\n",
        "tree/high/__init__.py": "",
        "tree/high/top.py": "from typing import Any\n\nfrom ..low.helper import late\nfrom tree.low import base\n\n\n"
        "def run(thing: Any) -> None:\n    if thing:\n        raise ValueError(late(base, 1))\n",
        "tests/test_tree.py": "def test():\n    pass\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tree"


def test_figures_of_a_small_tree(tree: Path) -> None:
    figures = measure.measure([tree], tree.parent / "tests")
    assert (figures["files"], figures["functions"], figures["lines"]) == (3, 3, 18)
    assert figures["cycles"] == [0, 0]
    assert figures["lazy_cycles"] == [1, 2]
    assert figures["upward"] == 1
    assert (figures["module_docstrings"], figures["function_docstrings"]) == (33, 33)
    assert (figures["annotated"], figures["any"], figures["raises"]) == (67, 33, 0)
    assert figures["imports"][2] == 3
    assert figures["test_ratio"] == round(2 / 18, 2)


def test_layers_say_which_arrows_point_upwards(tree: Path) -> None:
    (tree.parent / "tests" / "test_architecture.py").write_text('LAYERS = {"low": 0, "high": 1}\n')
    assert measure.layers_near(tree) == {"low": 0, "high": 1}
    assert measure.measure([tree], None)["upward_arrows"] == ["tree.low -> tree.high"]


def test_cycles_are_the_strongly_connected_groups() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    files = {name: Path(name) for name in "abcdef"}
    assert import_graph.cycles(files, edges) == [["a", "b", "c"], ["d", "e"]]
    assert import_graph.upward_by_order(Counter({("a", "b"): 1, ("b", "c"): 1, ("a", "c"): 1})) == []
    assert len(import_graph.upward_by_order(Counter({("a", "b"): 5, ("b", "a"): 1}))) == 1


def test_a_function_is_measured_from_def_to_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "class A:\n    def _f(\n        self,\n        x,\n        *y,\n    ):\n        return [i for i in x if i]\n"
    )
    source, _ = source_figures.measure_file(path)
    (function,) = source.functions
    assert (function.lines, function.parameters, function.branches, function.public) == (6, 2, 1, False)


def test_arrows_that_follow_from_others_are_not_drawn() -> None:
    assert picture.reduced({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}


def test_the_picture_has_every_package_of_the_code(tmp_path: Path) -> None:
    layers = measure.layers_near(ROOT / "dist_metaxlm")
    graph = measure.import_graph_of([ROOT / "dist_metaxlm", ROOT / "kernels"])
    picture.draw(graph, layers, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    names = {import_graph.package_of(name, 2).rpartition(".")[2] for name in graph.files} - {""}
    assert names <= set(layers)
    assert all(re.search(rf">{name}<", text) for name in names)


def test_the_table_of_the_design_page_is_that_of_the_test() -> None:
    section = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## 3. Architecture")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]*) \|", section, re.MULTILINE)
    layers = {name: set(map(int, numbers.split(","))) for numbers, names in rows for name in re.findall(r"`(\w+)`", names)}
    declared = measure.layers_near(ROOT / "dist_metaxlm")
    assert set(layers) == set(declared)
    assert all(layer in layers[name] for name, layer in declared.items())


def test_links_of_top_level_pages_lead_to_pages_of_the_site() -> None:
    pages = site_pages.top_level_pages()
    known = {*pages, *(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))}
    for target in site_pages.TOP_LEVEL.values():
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", pages[target])
        assert set(links) <= known, f"{target}: {set(links) - known}"


def test_the_code_keeps_to_the_figures_of_its_table() -> None:
    """The limits that the published table names; the best of the four other trainers is at or above each of them."""
    graph = measure.import_graph_of([ROOT / "dist_metaxlm", ROOT / "kernels", ROOT / "launch"])
    functions = {
        f"{path.relative_to(ROOT)}:{function.name}": function
        for path in graph.files.values()
        for function in source_figures.measure_file(path)[0].functions
    }
    assert {name: number for name, number in graph.imported.items() if number > 30} == {}
    assert {name: function.lines for name, function in functions.items() if function.lines > 60} == {}
    assert sum(function.has_any for function in functions.values()) <= 0.05 * len(functions)
    assert import_graph.cycles(graph.files, graph.eager) == []
