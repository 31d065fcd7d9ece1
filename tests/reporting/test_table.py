"""Tables for the terminal, as plain text."""

from __future__ import annotations

import io

from dist_metaxlm.reporting.metrics import read_json
from dist_metaxlm.reporting.summary import build_summary
from dist_metaxlm.reporting.table import print_evaluation, print_outcome


def rows_of(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_the_outcome_of_a_run(run_dir):
    stream = io.StringIO()
    print_outcome(build_summary(run_dir), stream)
    text = stream.getvalue()
    rows = rows_of(text)
    assert "\x1b" not in text
    assert rows[""] == ["untrained", "meta", "cross"]
    assert rows["loss, final"] == ["", "5.00", "15.0"]
    assert rows["tlm, final"] == ["", "–", "5.00"]
    assert rows["English perplexity"] == ["400", "100", "50.0"]
    assert rows["retrieval P@1, best layer"] == ["0.010", "0.100", "0.500"]
    assert "0.500, 50.0 times the untrained model (0.010), 5.0 times meta (0.100)" in text


def test_one_evaluation(run_dir):
    result = read_json(run_dir / "evaluation" / "cross.json")
    stream = io.StringIO()
    print_evaluation(result, stream)
    rows = rows_of(stream.getvalue())
    assert rows["en"] == ["50.0", "", "", ""]
    assert rows["de"] == ["50.0", "450", "0.500", "0.500"]
    assert rows["eu"][0] == "–"
    assert "mean P@1 0.500 at layer 1 over 2 languages" in stream.getvalue()


def test_an_evaluation_without_a_mean_says_why(run_dir):
    result = read_json(run_dir / "evaluation" / "cross.json") | {"mean_p_at_1": None, "best_layer": None}
    stream = io.StringIO()
    print_evaluation(result, stream)
    assert "no language has 400 candidates" in stream.getvalue()
    assert "English perplexity 50.0, others 100.0;" in stream.getvalue()


def test_rows_without_any_figure_are_left_out_and_the_reason_is_said(run_dir):
    summary = build_summary(run_dir)
    for of in summary["evaluation"].values():
        of |= {"mean_p_at_1": None, "best_layer": None, "candidates_min": None, "languages": 0}
    stream = io.StringIO()
    print_outcome(summary | {"retrieval_ratio": None, "retrieval_ratio_untrained": None}, stream)
    rows = rows_of(stream.getvalue())
    assert not {"retrieval P@1, best layer", "best layer", "languages", "candidates, least"} & set(rows)
    assert "no mean P@1 of untrained, meta, cross: no language has as many candidates" in stream.getvalue()


def test_the_last_line_compares_with_the_untrained_model_and_with_meta(run_dir):
    summary = build_summary(run_dir)
    for name, score in (("untrained", 0.1), ("meta", 0.05), ("cross", 0.5)):
        summary["evaluation"][name]["mean_p_at_1"] = score
    stream = io.StringIO()
    print_outcome(summary | {"retrieval_ratio": 10.0, "retrieval_ratio_untrained": 5.0}, stream)
    last = stream.getvalue().splitlines()[-1]
    assert last == "retrieval P@1 after cross: 0.500, 5.0 times the untrained model (0.100), 10.0 times meta (0.050)"
