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
    assert "retrieval after cross: 5.0 times that of meta" in text


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
    print_outcome(summary | {"retrieval_ratio": None}, stream)
    rows = rows_of(stream.getvalue())
    assert not {"retrieval P@1, best layer", "best layer", "languages", "candidates, least"} & set(rows)
    assert "no mean P@1 of untrained, meta, cross: no language has as many candidates" in stream.getvalue()
