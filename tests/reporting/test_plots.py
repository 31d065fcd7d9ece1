"""What a chart of many languages names."""

from __future__ import annotations

import re

from dist_metaxlm.reporting.plots import HIGHLIGHTED, _running_mean, _worth_naming, heldout_chart, layer_chart, loss_chart


def test_extremes_and_english_are_named():
    final = {f"l{n:02}": float(n) for n in range(40)} | {"en": 12.3}
    named = _worth_naming(final)
    assert len(named) == HIGHLIGHTED
    assert {"l39", "l00", "en"} <= set(named)
    assert named == sorted(named, key=lambda name: -final[name])
    assert _worth_naming({"a": 1.0, "b": 2.0}) == ["b", "a"]


def test_running_mean_starts_with_what_there_is():
    assert _running_mean([4, 2, 0], 2) == [4, 3, 1]


def test_a_chart_is_one_svg_with_text_as_text():
    svg = layer_chart({"meta": [0.01, 0.1], "cross": [0.2, 0.5]})
    assert svg.startswith("<svg ")
    assert svg.rstrip().endswith("</svg>")
    assert ">mean P@1</text>" in svg
    assert "var(--cross)" in svg


def test_one_objective_needs_no_total():
    records = [{"step": 1, "loss": 2.0, "losses": {"mlm": 2.0}}, {"step": 2, "loss": 1.0, "losses": {"mlm": 1.0}}]
    assert ">total</text>" not in loss_chart("meta", records)
    assert ">mlm</text>" in loss_chart("meta", records)


def test_a_phase_that_was_logged_once_is_not_an_empty_chart():
    once = [{"step": 8, "loss": 2.0, "losses": {"mlm": 2.0}}]
    several = [*once, {"step": 9, "loss": 1.0, "losses": {"mlm": 1.0}}]
    assert loss_chart("meta", once).count("<use ") > loss_chart("meta", several).count("<use ")  # the dot
    ticks = re.findall(r">([\d.]+)</text>", loss_chart("meta", once))
    assert {"7", "8", "9"} <= set(ticks)
    assert "7.6" not in ticks


def test_figures_of_curves_that_meet_stand_above_one_another():
    def heights(per_layer):
        found = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(0\.\d\d)</text>', layer_chart(per_layer))
        return {value: float(height) for height, value in found}

    found = heights({"meta": [0.11, 0.1, 0.1], "cross": [0.12, 0.1, 0.1], "joint": [0.5, 0.5, 0.9]})
    assert found["0.11"] - found["0.12"] >= 9  # points of a figure 9.5 high


def test_close_lines_have_separate_labels_with_leaders():
    languages = {"en": 1.000, "de": 1.001, "fr": 1.002, "ru": 1.003, "el": 1.004}
    records = [
        {"step": step, "heldout": {"bits_per_byte": 1.0, "languages": languages, "word_frequencies": 2.0}}
        for step in (10, 20)
    ]
    svg = heldout_chart("meta", records)
    heights = {name: float(height) for height, name in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>([a-z]{2})</text>', svg)}
    assert sorted(heights, key=heights.__getitem__) == ["el", "ru", "fr", "de", "en"]  # from the top, by value
    ordered = sorted(heights.values())
    assert all(lower - upper >= 9 for upper, lower in zip(ordered, ordered[1:], strict=False))
    leaders = re.findall(r'd="M ([\d.]+) ([\d.]+)\s*Q [\d.]+ [\d.]+ ([\d.]+) ([\d.]+)', svg)
    assert len(leaders) == len(languages)
    at_labels = sorted(float(start) for _, start, _, _ in leaders)
    assert all(abs(start - height) < 9 for start, height in zip(at_labels, ordered, strict=True))
    assert len({line_end for _, _, line_end, _ in leaders}) == 1  # all begin where the lines end
    assert max(float(end) for *_, end in leaders) - min(float(end) for *_, end in leaders) < 2
