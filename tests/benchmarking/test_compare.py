"""Two results of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_metaxlm.cli.benchmark import main
from dist_metaxlm.errors import UserError

RESULT = {
    "recipe": "quickstart",
    "environment": {"device": "CPU"},
    "huggingface_tokens_per_second": 100.0,
    "rows": [
        {"kind": "data", "ranks": 2, "seconds_per_step": 0.5, "tokens_per_second": 800.0, "seconds_of_runs": [0.5]},
        {"kind": "data", "ranks": 4, "seconds_per_step": 0.4, "tokens_per_second": 1000.0, "seconds_of_runs": [0.4]},
    ],
    "milliseconds": {"ours": {"forward": 2.0}},
}


def compare(folder: Path, change, *words: str) -> int:
    after = json.loads(json.dumps(RESULT))
    change(after)
    for name, value in (("a.json", RESULT), ("b.json", after)):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return main(["compare", str(folder / "a.json"), str(folder / "b.json"), *words])


def slow_row(value):
    value["rows"] = [value["rows"][1] | {"tokens_per_second": 900.0}, value["rows"][0]]


def test_regressions_have_exit_code_1_and_names(tmp_path, capsys):
    assert compare(tmp_path, slow_row) == 1
    output = capsys.readouterr().out
    assert "worse by 11.1%: rows / data ranks=4 / tokens_per_second: 1000 -> 900" in output
    assert compare(tmp_path, slow_row, "--tolerance", "0.12") == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda value: None, 0),
        (lambda value: value.update(huggingface_tokens_per_second=1.0), 0),
        (lambda value: value["milliseconds"]["ours"].update(forward=1.0), 0),
        (lambda value: value["milliseconds"]["ours"].update(forward=3.0), 1),
        (lambda value: value["rows"].pop(), 1),
    ],
)
def test_better_figures_and_baselines_are_no_regressions(tmp_path, change, code):
    assert compare(tmp_path, change) == code


def test_other_machines_are_named(tmp_path, capsys):
    assert compare(tmp_path, lambda value: value["environment"].update(device="GPU"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["machines"] == ["device 'CPU' and 'GPU'"]


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (lambda value: value.update(recipe="other"), (), "different measurements"),
        (lambda value: None, ("--tolerance", "-1"), "--tolerance -1"),
        (lambda value: None, ("--tolerance", "nan"), "--tolerance nan"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(tmp_path, change, words, sentence):
    with pytest.raises(UserError, match=sentence):
        compare(tmp_path, change, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, "\x00"])
def test_files_that_are_no_results_are_refused(tmp_path, text):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json"):
        main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
