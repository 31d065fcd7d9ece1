"""Reading and writing a run's files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.reporting.metrics import check_output, keys_of, mean, read_json, read_metrics, series, write_json


def test_a_cut_last_line_is_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.5}\n{"step": 30, "lo', encoding="utf-8")
    assert [record["step"] for record in read_metrics(path)] == [10, 20]


def test_a_cut_line_that_a_resumed_run_went_on_after_is_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\n{"step": 20, "x": "\xc3\n{"step": 20, "loss": 1.0}\n\n7\n')
    assert read_metrics(path) == [{"step": 10}, {"step": 20, "loss": 1.0}]


def test_a_resumed_run_overwrites_from_where_it_went_back_to(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "run": run} for step, run in ((10, 1), (20, 1), (30, 1), (20, 2), (30, 2), (40, 2))]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert [(record["step"], record["run"]) for record in read_metrics(path)] == [(10, 1), (20, 2), (30, 2), (40, 2)]


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_json(tmp_path / "x.json") is None


def test_series_and_keys_bridge_gaps():
    records = [
        {"step": 1, "losses": {"mlm": 3.0}},
        {"step": 2, "losses": {"tlm": 5.0}},
        {"step": 3, "losses": {"mlm": math.nan}},
        {"step": 4},
        {"step": 5, "losses": {"mlm": 1}},
    ]
    assert series(records, "losses", "mlm") == ([1, 5], [3.0, 1.0])
    assert keys_of(records, "losses") == ["mlm", "tlm"]
    assert mean([1.0, None, math.inf, 3.0]) == 2.0
    assert mean([]) is None


def test_json_is_written_whole_and_standard(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": math.inf, "b": (1, 2.5), 3: "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": None, "b": [1, 2.5], "3": "é"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["b"] == [1, 2.5]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "figures.json")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a folder; give a file in it"):
        check_output(tmp_path / "new")
    with pytest.raises(UserError, match="file is a file, no folder; correct the path"):
        check_output(tmp_path / "file" / "deep" / "figures.json")
