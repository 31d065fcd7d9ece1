"""The page of a hand-written run: complete, self-contained, well-formed, the same bytes every time."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest

from dist_metaxlm.reporting.page import SECTIONS, write_report

VOID = {"meta", "br", "use", "path", "line", "rect", "circle", "polyline"}


class Checker(HTMLParser):
    """Collects ids and references; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids.update(value for name, value in attrs if name == "id")
        self.references += [value for name, value in attrs if name in ("href", "xlink:href", "src", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def page(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


@pytest.fixture
def checked(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_every_section_is_there(page):
    assert re.findall(r'<section id="([^"]+)"', page) == list(SECTIONS)


def test_every_chart_is_there(checked, page):
    # Two phases, three objectives by language, layers, throughput.
    assert checked.tags["svg"] == 7
    for name in (
        "loss-meta",
        "loss-cross",
        "languages-cross-mlm",
        "languages-cross-tlm",
        "languages-cross-contrast",
        "layers",
        "throughput",
    ):
        assert f'id="{name}-figure_1"' in page


def test_probes_have_a_chart_and_say_what_they_cost(probed_run):
    page = write_report(probed_run).read_text(encoding="utf-8")
    assert 'id="probe-cross-figure_1"' in page
    assert "probe-meta" not in page
    assert "P@1 among at most 64 strings of a language at layer 1. Cost of the probes: 3.0% of cross." in page
    shutil.rmtree(probed_run / "evaluation")
    assert 'id="probe-cross-figure_1"' in write_report(probed_run).read_text(encoding="utf-8")


def test_nothing_comes_from_elsewhere(checked, page):
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"@import|@font-face|url\((?!#)|\bsrc=", page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(checked.tags)
    assert all(reference.startswith("#") for reference in checked.references)


def test_ids_are_unique_and_references_resolve(checked, page):
    assert [name for name, count in checked.ids.items() if count > 1] == []
    targets = [reference[1:] for reference in checked.references] + re.findall(r"url\(#([^)]+)\)", page)
    assert targets
    assert set(targets) <= set(checked.ids)


def test_colours_are_the_pages_own(page):
    charts = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", charts)
    used = set(re.findall(r"var\(--([a-z-]+)\)", page))
    assert used <= set(re.findall(r"--([a-z-]+):", page))


def test_text_from_the_run_is_escaped(page):
    assert "hand&lt;written&gt;" in page
    assert "hand<written>" not in page
    assert "Save <mark>mask</mark> &amp; &lt;close&gt;" in page


def test_figures_of_the_run_are_shown(page):
    assert "50% of the time, on average over 2 languages" in page
    assert "after cross; 0.01 untrained, 0.10 meta" in page
    assert 'title="layer 1: to English 0.500, from English 0.500, 450 candidates"' in page
    assert page.count('class="few"') == 2 * 3  # eu under meta and cross, three layers each
    assert "2.13.0" in page


def test_the_same_run_gives_the_same_page(run_dir, page):
    assert write_report(run_dir).read_text(encoding="utf-8") == page


def test_a_run_that_has_only_begun_has_a_page(run_dir):
    for name in ("evaluation", "export", "cross"):
        shutil.rmtree(run_dir / name)
    (run_dir / "environment.json").unlink()
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "Not evaluated yet" in page
    shutil.rmtree(run_dir / "meta")
    assert "no phase run yet" in write_report(run_dir).read_text(encoding="utf-8")


def test_an_evaluation_without_counted_languages_has_a_page(run_dir):
    from dist_metaxlm.reporting.metrics import read_json, write_json

    for phase in ("untrained", "meta", "cross"):
        path = run_dir / "evaluation" / f"{phase}.json"
        result = read_json(path)
        for scores in result["retrieval"].values():
            scores["counted"] = False
        write_json(path, {**result, "per_layer_mean": [], "best_layer": None, "mean_p_at_1": None})
    assert 'id="retrieval"' in write_report(run_dir).read_text(encoding="utf-8")


def test_the_lead_names_every_figure_it_is_compared_with(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert (
        "50% of the time, on average over 2 languages and both directions (layer 1); untrained it was 1%, after phase "
        "meta 10%." in page
    )
    assert "after cross; 400 untrained, 100 meta" in page
    assert "from 24.0; mlm 5.00, tlm 5.00, contrast 5.00" in page
    shutil.copytree(run_dir / "cross", run_dir / "joint")
    assert "meta → cross, joint · " in write_report(run_dir).read_text(encoding="utf-8")


def test_a_guess_that_is_a_space_is_seen(run_dir):
    path = run_dir / "export" / "fill_mask.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"file"', '" "'), encoding="utf-8")
    assert "<span>(space)</span>" in write_report(run_dir).read_text(encoding="utf-8")


def test_date_commit_and_host_come_before_the_figures(run_dir):
    from dist_metaxlm.reporting.metrics import read_json, write_json

    path = run_dir / "environment.json"
    about = {**read_json(path), "date": "2026-11-30T10:20:30+00:00", "host": "box7", "commit": "abc1234"}
    write_json(path, about)
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "2026-11-30 10:20 UTC · box7" in page
    assert page.index("commit abc1234") < page.index('class="cards"') < page.index('id="retrieval"')
    assert page.index('id="retrieval"') < page.index('id="sampling"')


def test_the_hidden_word_is_marked_among_the_guesses():
    from dist_metaxlm.reporting.fill_mask import example_panels

    guesses = [{"token": " city", "score": 0.5}, {"token": " town", "score": 0.2}]
    panels = example_panels([{"language": "en", "text": "The <mask>.", "expected": "town", "predictions": guesses}])
    assert "hidden: <b>town</b>" in panels
    assert "✓ <b>town</b>" in panels
    assert "<b>city</b>" not in panels
