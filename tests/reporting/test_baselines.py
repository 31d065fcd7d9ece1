"""Baselines beside a run: in the summary, the tables and the page, and the sentence about them."""

from __future__ import annotations

import io
import json

import pytest

from dist_metaxlm.reporting.baselines import standing
from dist_metaxlm.reporting.page import write_report
from dist_metaxlm.reporting.summary import build_summary
from dist_metaxlm.reporting.table import print_baselines, print_evaluation, print_outcome

WORDS = {"en": {"words": 600, "top1": 0.1, "top5": 0.2}, "others": {"words": 608, "top1": 0.05, "top5": 0.1}}
BASELINES = {
    "key": "k",
    "overlap": {
        "retrieval": {"de": {"candidates": 450, "counted": True, "to_english": 0.25, "from_english": 0.15}},
        "mean_p_at_1": 0.2,
    },
    "chance": 0.0023,
    "frequencies": {
        "perplexity": {"en": 80.0, "de": 90.0},
        "prose_perplexity": {"en": 45.0},
        "fill_mask": {**WORDS, "languages": {}},
    },
}
EXAMPLE = {
    "language": "en",
    "text": "Save the <mask> first",
    "expected": "file",
    "probability": 0.25,
    "rank": 1,
    "predictions": [{"token": " page", "score": 0.5}, {"token": " file", "score": 0.25}],
    "chosen": "highest probability",
}


@pytest.fixture
def compared(run_dir):
    """The run with baselines, and with hidden words; `cross` finds more than the table does."""
    folder = run_dir / "evaluation"
    (folder / "baselines.json").write_text(json.dumps(BASELINES), encoding="utf-8")
    for phase, share, languages in (("untrained", 0.0, None), ("meta", 0.1, ["en"]), ("cross", 0.4, "all")):
        path = folder / f"{phase}.json"
        words = {name: {"words": 600, "top1": share / 2, "top5": share} for name in ("en", "others")}
        result = json.loads(path.read_text(encoding="utf-8"))
        result |= {"fill_mask": {**words, "languages": {}, "examples": [EXAMPLE]}, "languages": languages}
        path.write_text(json.dumps(result), encoding="utf-8")
    return run_dir


def test_a_phase_below_a_baseline_is_told_so(compared):
    summary = build_summary(compared)
    meta, cross = summary["standing"]["meta"], summary["standing"]["cross"]
    assert set(summary["standing"]) == {"meta", "cross"}
    assert meta["not_better"] == [
        "retrieval P@1",
        "English perplexity",
        "English prose perplexity",
        "English words in the first five guesses (%)",
    ]
    assert meta["better"] == [], "meta has trained on English only: nothing about other languages is asked of it"
    assert meta["sentence"].startswith(
        "meta is NOT better than every baseline: retrieval P@1 0.100 (untrained 0.010, token overlap 0.200, chance 0.002)"
    )
    assert cross["not_better"] == ["others' perplexity"]
    assert "English prose perplexity 25.0 (untrained 200, word frequencies 45.0)" in cross["sentence"].split(". Better: ")[1]


def test_a_phase_above_all_of_them_is_told_so():
    briefs = {"cross": {"mean_p_at_1": 0.5, "english_perplexity": 20.0}}
    baselines = {"token overlap": {"mean_p_at_1": 0.2}, "word frequencies": {"english_perplexity": 30.0}}
    outcome = standing("cross", briefs, baselines, "all")
    assert outcome["sentence"] == (
        "cross is better than every baseline: retrieval P@1 0.500 (token overlap 0.200); "
        "English perplexity 20.0 (word frequencies 30.0)"
    )
    equal = standing("cross", {"cross": {"mean_p_at_1": 0.2}}, baselines, "all")
    assert equal["not_better"] == ["retrieval P@1"], "equal is not better"
    assert standing("cross", briefs, {}, "all") == {"better": [], "not_better": [], "sentence": ""}


def test_the_tables_have_them(compared):
    summary, stream = build_summary(compared), io.StringIO()
    print_outcome(summary, stream)
    lines = stream.getvalue().splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line}
    assert rows[""] == ["untrained", "meta", "cross", "word frequencies", "token overlap", "chance"]
    assert rows["English prose perplexity"] == ["200", "50.0", "25.0", "45.0", "–", "–"]
    assert rows["retrieval P@1, best layer"] == ["0.010", "0.100", "0.500", "–", "0.200", "0.002"]
    assert rows["English hidden words, first five"] == ["0.0%", "10.0%", "40.0%", "20.0%", "–", "–"]
    assert lines[-1].startswith("retrieval P@1 after cross: 0.500, 50.0 times the untrained model")
    assert any(line.startswith("meta is NOT better than every baseline") for line in lines)


def test_one_evaluation_has_them_by_language(compared):
    result, stream = json.loads((compared / "evaluation" / "cross.json").read_text(encoding="utf-8")), io.StringIO()
    print_evaluation(result, stream, BASELINES)
    print_baselines({"cross": result}, BASELINES, stream)
    text = stream.getvalue()
    cells = next([cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| de"))
    assert cells[1:-1] == ["de", "50.0", "90.0", "450", "0.500", "0.500", "0.250", "0.150"]
    assert "hidden words found: English 20.0% (40.0% in five guesses), others 20.0% (40.0% in five guesses)" in text
    assert "word frequencies (no model): English perplexity 80.0; others 90.0; English prose 45.0; hidden words" in text
    assert "token overlap (no model): mean P@1 0.200" in text
    assert "cross is NOT better than every baseline: others' perplexity" in text


def test_the_page_has_them(compared):
    page = write_report(compared).read_text(encoding="utf-8")
    assert "<td>word frequencies</td><td>10.0</td><td>20.0</td><td>600</td>" in page
    assert "<td>token overlap</td><td>0.200</td>" in page
    assert "<th>word frequencies</th>" in page
    assert "meta is NOT better than every baseline" in page
    assert "hidden: <b>file</b>, guess number 2, probability 25.0%" in page
    assert "<b>file</b></span>" in page
    assert "<span>page</span>" in page


def test_another_checkpoint_of_a_phase_has_its_column(compared):
    folder = compared / "evaluation"
    (folder / "meta@best.json").write_text((folder / "meta.json").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "meta@best-tatoeba.json").write_text("{}", encoding="utf-8")
    assert list(build_summary(compared)["evaluation"]) == ["untrained", "meta", "meta@best", "cross"]


def test_the_held_out_loss_has_a_chart_with_the_level_of_word_frequencies(compared):
    path = compared / "meta" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    for record in records[1::2]:
        value = 3 - record["step"] / 60
        record["heldout"] = {
            "bits_per_byte": value,
            "languages": {"en": value, "de": 4.0},
            "word_frequencies": 2.25,
            "language_word_frequencies": {"en": 2.25},
            "sample": "s",
            "seconds": 0.3,
        }
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    meta = build_summary(compared)["phases"]["meta"]
    assert meta["heldout_bits_per_byte"] == meta["heldout_best"] == pytest.approx(2.0)
    assert (meta["heldout_best_step"], meta["heldout_word_frequencies"]) == (60, 2.25)
    assert meta["heldout_share"] == pytest.approx(0.9 / 30)
    page = write_report(compared).read_text(encoding="utf-8")
    assert 'id="heldout-meta-figure_1"' in page
    assert "heldout-cross" not in page
    stream = io.StringIO()
    print_outcome(build_summary(compared), stream)
    assert "held-out bits per byte" in stream.getvalue()
