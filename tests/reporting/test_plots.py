"""What a chart of many languages names."""

from __future__ import annotations

from dist_metaxlm.reporting.plots import HIGHLIGHTED, _running_mean, _worth_naming, layer_chart, loss_chart


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
