"""launch/evaluate.py on a small run: results, report, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml
from tiny_tokenizer import train_tokenizer

from dist_metaxlm.evaluation.run import evaluate_run, window_of
from dist_metaxlm.evaluation.tasks.text_encoder import exported_phase
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import load_recipe

SCRIPT = Path(__file__).parents[2] / "launch" / "evaluate.py"
WORDS = [
    "open",
    "close",
    "save",
    "file",
    "name",
    "user",
    "page",
    "list",
    "text",
    "image",
    "search",
    "delete",
    "edit",
    "new",
    "old",
    "first",
    "last",
    "next",
]


def sentence(number: int, upper: bool) -> str:
    words = [WORDS[number % 18], WORDS[number // 18 % 18], WORDS[number * 7 % 18], str(number)]
    return " ".join(words).upper() if upper else " ".join(words)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Tokenizer and held-out strings of two languages, the second one English in capitals."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "heldout" / "text").mkdir(parents=True)
    rows = [{"en": sentence(n, False), "xx": sentence(n, True)} for n in range(60)]
    (folder / "heldout" / "strings.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "heldout" / "text" / "en.txt").write_text("\n\n".join(row["en"] for row in rows), encoding="utf-8")
    corpus = [sentence(n, upper) for n in range(400) for upper in (False, True)]
    train_tokenizer(corpus, folder, 400)
    return folder


@pytest.fixture
def run_dir(tmp_path, data_dir):
    """A run that has only its recipe."""
    size = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model")).GetPieceSize() + 1
    objectives = [{"name": "mlm", "batch_tokens": 64}]
    phase = {"steps": 2, "sequence_length": 32, "objectives": objectives, "learning_rate": {"peak": 0.001}}
    recipe = {
        "name": "small",
        "model": {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": size, "max_positions": 64},
        "data": {"directory": str(data_dir)},
        "phases": {"meta": phase, "cross": phase},
    }
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


@pytest.fixture
def weights(monkeypatch, run_dir):
    """Checkpoints whose weights are another initialisation."""
    recipe = load_recipe(run_dir / "recipe.yaml")
    state = Encoder(recipe.model, 77).state_dict()
    monkeypatch.setattr("dist_metaxlm.training.run.trained_phase.load_weights", lambda *_: (recipe, state))
    return state


def call(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(leaving.value.code or 0)


def test_a_phase_is_evaluated_with_its_weights(run_dir, weights):
    trained = evaluate_run(run_dir, "cross", min_candidates=20)
    fresh = evaluate_run(run_dir, "untrained", min_candidates=20)
    assert json.loads((run_dir / "evaluation" / "cross.json").read_text(encoding="utf-8")) == trained
    assert trained["perplexity"] != fresh["perplexity"]
    assert trained["parameters"] == sum(weight.numel() for weight in weights.values())
    assert trained["retrieval"]["xx"]["candidates"] == 60


def test_windows_are_no_longer_than_what_was_trained_on(run_dir):
    assert window_of(load_recipe(run_dir / "recipe.yaml")) == 32


def test_several_phases_then_the_report(run_dir, weights, monkeypatch, capsys):
    assert call(monkeypatch, "--run_dir", run_dir, "--phase", "untrained", "cross", "--min_candidates", 20) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        "untrained",
        "cross",
        "token overlap (no model)",
        "chance (no model)",
    ]
    assert lines[4].startswith(("cross is better than every baseline: ", "cross is NOT better than every baseline: "))
    assert "(untrained " in lines[4]
    assert call(monkeypatch, "--run_dir", run_dir, "--report") == 0
    assert "report: " in capsys.readouterr().out
    assert {"untrained", "cross"} == set(json.loads((run_dir / "summary.json").read_text())["evaluation"])
    assert (run_dir / "report.html").stat().st_size > 5000


def test_one_phase_prints_its_table(run_dir, monkeypatch, capsys):
    assert call(monkeypatch, "--run_dir", run_dir, "--phase", "untrained", "--tasks", "retrieval") == 0
    text = capsys.readouterr().out
    assert "to English" in text
    assert "perplexity" not in text
    assert "no language has 400 candidates" in text


def test_json_is_all_that_is_printed(run_dir, monkeypatch, capsys):
    call(monkeypatch, "--run_dir", run_dir, "--phase", "untrained", "--tasks", "perplexity", "--json")
    result = json.loads(capsys.readouterr().out)["untrained"]
    assert set(result["perplexity"]) == {"en", "xx"}
    assert "retrieval" not in result
    call(monkeypatch, "--run_dir", run_dir, "--report", "--json")
    assert json.loads(capsys.readouterr().out)["recipe"] == "small"


def test_the_initialisation_is_that_of_the_recipes_seed(run_dir):
    from dist_metaxlm.evaluation.run import load_encoder

    recipe, encoder = load_encoder(run_dir, "untrained")
    again = Encoder(recipe.model, recipe.seed).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phase", "later"], "unknown phase 'later'"),
        (["--phase", "meta", "data.directory=/new"], "data.directory=/new: a run is evaluated with the recipe that it was"),
        (["seed=2", "--phase", "meta"], "evaluate.py does not accept seed=2; `evaluate.py --help` lists"),
        (["--phase", "meta"], "meta"),
        (["--phase", "untrained", "--tasks", "perplexity,guessing"], "unknown task 'guessing'"),
        (["--phase", "untrained", "--tasks", ""], "unknown task ''"),
        ([], "neither --phase nor --report"),
        (["--taks", "perplexity"], "evaluate.py has no option --taks, did you mean --tasks?"),
    ],
)
def test_mistakes_exit_2_with_a_sentence(run_dir, monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, "--run_dir", run_dir, *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (run_dir / "evaluation").exists()


def test_data_that_moved_are_named(run_dir, data_dir, monkeypatch, capsys):
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": {"directory": "/old/place"}}), encoding="utf-8")
    asked = ("--run_dir", run_dir, "--phase", "untrained", "--tasks", "perplexity")
    assert call(monkeypatch, *asked) == 2
    assert "no tokenizer at /old/place/tokenizer.model" in capsys.readouterr().err
    assert call(monkeypatch, *asked, "--data_directory", data_dir) == 0
    with exported_phase(run_dir, "untrained", data_directory=str(data_dir)) as folder:
        assert (folder / "tokenizer.json").is_file()
    assert call(monkeypatch, "--run_dir", run_dir, "--report", "--data_directory", data_dir) == 2
    assert "name one with --phase" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [({"data": {"directory": "nowhere"}}, "no tokenizer at nowhere/tokenizer.model"), ({"vocab_size": 777}, "777")],
)
def test_a_wrong_tokenizer_is_named(run_dir, monkeypatch, capsys, change, message):
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"] = change.get("data", recipe["data"])
    recipe["model"]["vocab_size"] = change.get("vocab_size", recipe["model"]["vocab_size"])
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert call(monkeypatch, "--run_dir", run_dir, "--phase", "untrained") == 2
    assert message in capsys.readouterr().err


def test_no_run_exits_2_in_a_process_of_its_own(tmp_path):
    for arguments in (["--phase", "meta"], ["--report"]):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--run_dir", str(tmp_path / "none"), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: no run at")
        assert done.stdout == ""
