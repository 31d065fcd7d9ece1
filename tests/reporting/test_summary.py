"""The summary of a hand-written run."""

from __future__ import annotations

import json
import shutil

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.reporting.summary import build_summary, write_summary


def test_phases_are_summed_up(run_dir):
    summary = build_summary(run_dir)
    meta, cross = summary["phases"]["meta"], summary["phases"]["cross"]
    # Steps 10, 20, 30 at the start and 40, 50, 60 at the end.
    assert (meta["first_loss"], meta["final_loss"]) == (pytest.approx(8.0), pytest.approx(5.0))
    assert summary["loss_lines"] == 3
    assert cross["first_loss"] == pytest.approx(24.0)
    assert cross["final_losses"] == pytest.approx({"mlm": 5.0, "tlm": 5.0, "contrast": 5.0})
    assert (meta["steps"], meta["tokens"], meta["seconds"]) == (60, 6000, 30.0)
    assert meta["tokens_per_second"] == pytest.approx(200.0)  # 6000 in 30 s, whatever the lines say of their few steps


def test_probes_are_summed_up(probed_run):
    phases = build_summary(probed_run)["phases"]
    assert (phases["cross"]["probe_retrieval"], phases["cross"]["probe_seconds"]) == (pytest.approx(0.6), pytest.approx(0.9))
    assert phases["cross"]["probe_share"] == pytest.approx(0.03)
    assert "probe_share" not in phases["meta"]


def test_evaluations_are_summed_up(run_dir):
    summary = build_summary(run_dir)
    cross = summary["evaluation"]["cross"]
    assert list(summary["evaluation"]) == ["untrained", "meta", "cross"]
    assert cross["english_perplexity"] == 50.0
    assert cross["english_prose_perplexity"] == 25.0
    assert cross["other_perplexity"] == pytest.approx(100.0)  # geometric mean of 50 and 200; eu has none
    assert (cross["mean_p_at_1"], cross["best_layer"]) == (0.5, 1)
    assert (cross["candidates_min"], cross["languages"]) == (420, 2)
    assert summary["retrieval_ratio"] == pytest.approx(5.0)
    untrained = summary["evaluation"]["untrained"]["mean_p_at_1"]
    assert summary["retrieval_ratio_untrained"] == (pytest.approx(0.5 / untrained) if untrained else None)
    assert summary["parameters"] == 123456
    assert summary["fill_mask"][0]["language"] == "en"
    assert summary["environment"]["versions"] == {"torch": "2.13.0"}


def test_filled_masks_may_be_written_by_language(run_dir):
    path = run_dir / "export" / "fill_mask.json"
    path.write_text(json.dumps({"de": {"text": "<mask>", "predictions": [["Datei", 0.5]]}, "fr": [["fichier", 0.25]]}))
    assert build_summary(run_dir)["fill_mask"] == [
        {"language": "de", "text": "<mask>", "predictions": [{"token": "Datei", "score": 0.5}]},
        {"language": "fr", "predictions": [{"token": "fichier", "score": 0.25}]},
    ]


def test_the_file_holds_the_summary(run_dir):
    assert write_summary(run_dir) == json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def test_a_run_that_has_only_begun(run_dir):
    for name in ("evaluation", "export", "cross"):
        shutil.rmtree(run_dir / name)
    (run_dir / "meta" / "metrics.jsonl").write_text('{"step": 10, "loss": 3.0, "losses": {"mlm": 3.0}}\n')
    summary = build_summary(run_dir)
    assert summary["phases"]["meta"]["first_loss"] == summary["phases"]["meta"]["final_loss"] == 3.0
    assert summary["evaluation"] == {}
    assert summary["retrieval_ratio"] is None
    assert "fill_mask" not in summary


def test_no_run_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        build_summary(tmp_path / "nowhere")


def test_languages_and_the_total_time_are_summed_up(run_dir):
    summary = build_summary(run_dir)
    trained = sum(phase["seconds"] for phase in summary["phases"].values())
    assert summary["seconds"] == pytest.approx(trained + 3 * 1.0)  # three evaluations of a second
    german, basque = summary["languages"]["de"], summary["languages"]["eu"]
    assert german["cross"]["p_at_1"] == pytest.approx(summary["evaluation"]["cross"]["mean_p_at_1"])
    assert (german["cross"]["candidates"], german["cross"]["counted"]) == (450, True)
    assert (basque["meta"]["counted"], basque["meta"]["perplexity"]) == (False, None)
    assert set(german) == {"untrained", "meta", "cross"}
