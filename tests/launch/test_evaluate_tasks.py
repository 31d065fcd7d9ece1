"""launch/evaluate.py with tasks that have files of their own, on a run and on a Hugging Face folder, in one table."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dist_metaxlm.evaluation.tasks.retrieval import read_parallel
from dist_metaxlm.evaluation.tasks.run import TaskOptions, evaluate_encoders
from dist_metaxlm.evaluation.tasks.text_encoder import exported_phase
from dist_metaxlm.interop.folders import open_folder
from dist_metaxlm.interop.weights import from_huggingface

SCRIPT = Path(__file__).parents[2] / "launch" / "evaluate.py"
PAIRS = "".join(f"the {a} stone\tτο {b} πέτρα\n" for a, b in (("old", "παλιό"), ("small", "μικρό"), ("green", "πράσινο")))


def call(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(leaving.value.code or 0)


@pytest.fixture(scope="module")
def run_dir(tiny_recipe, tmp_path_factory):
    """A run that has only its recipe: its initialisation can be evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copyfile(tiny_recipe, folder / "recipe.yaml")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for folder in ("tatoeba", "udpos"):
        (root / folder).mkdir()
    (root / "tatoeba" / "ell-eng.tsv").write_text(PAIRS, encoding="utf-8")
    for name, text in (("train-en", "the\tDET\nhouse\tNOUN\n"), ("dev-en", "the\tDET\n"), ("test-el", "το\tARTICLE\n")):
        (root / "udpos" / f"{name}.tsv").write_text(text, encoding="utf-8")
    return root


def test_a_run_and_a_folder_of_the_same_weights_score_the_same(run_dir, data, tmp_path, monkeypatch, capsys):
    with exported_phase(run_dir, "untrained") as folder:
        shutil.copytree(folder, tmp_path / "copy")
    assert not folder.exists()
    assert (
        call(
            monkeypatch,
            "--run_dir",
            run_dir,
            "--phase",
            "untrained",
            "--model",
            tmp_path / "copy",
            "--tasks",
            "tatoeba",
            "--task_data",
            data,
            "--output",
            tmp_path / "all.json",
            "--json",
        )
        == 0
    )
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-2:] == [f"{name}: tatoeba: 3 pairs in 1 language" for name in ("untrained", "copy")]
    tasks = json.loads(shown.out)["tasks"]
    ours, copied = (tasks[name]["tatoeba"] for name in ("untrained", "copy"))
    assert ours["languages"] == copied["languages"]
    assert ours["languages"]["el"]["script"] == "Greek"
    written = json.loads((run_dir / "evaluation" / "untrained-tatoeba.json").read_text())
    assert written["languages"] == ours["languages"]
    assert set(json.loads((tmp_path / "all.json").read_text())["encoders"]) == {"untrained", "copy"}


def test_files_of_a_single_task_are_read_once_for_all_encoders(run_dir, data, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "dist_metaxlm.evaluation.tasks.run.read_parallel", lambda *given: reads.append(given[0]) or read_parallel(*given)
    )
    results = evaluate_encoders(str(run_dir), ["untrained"], [], ["tatoeba"], TaskOptions(data))
    assert (list(results), reads) == (["untrained"], ["tatoeba"])


def test_keep_going_runs_the_rest_and_exits_2(run_dir, data, monkeypatch, capsys):
    arguments = [
        "--run_dir",
        run_dir,
        "--phase",
        "untrained",
        "--tasks",
        "udpos,xnli,tatoeba,perplexity",
        "--task_data",
        data,
    ]
    assert call(monkeypatch, *arguments, "--keep_going") == 2
    shown = capsys.readouterr().out
    assert "test-el.tsv, line 1 has the label 'ARTICLE'" in shown
    assert "task xnli: no file" in shown
    assert "P@1, layer 1" in shown
    assert "English perplexity" in shown
    assert call(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert "ARTICLE" in shown.err


def test_missing_libraries_are_named_before_anything_is_learnt(run_dir, data, monkeypatch, capsys):
    plain, hidden = importlib.util.find_spec, ("accelerate", "seqeval", "scipy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else plain(name, *rest))
    monkeypatch.setattr("dist_metaxlm.evaluation.tasks.run.evaluate_run_tasks", lambda *_: pytest.fail("an encoder!"))
    assert call(monkeypatch, "--run_dir", run_dir, "--phase", "untrained", "--tasks", "udpos", "--task_data", data) == 2
    assert "tagging tasks need accelerate, seqeval, scipy, missing here; pip" in capsys.readouterr().err


def test_word_alignment_by_gold_in_the_table_and_what_is_wrong_with_it(run_dir, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "alignment" / "el-en"
    folder.mkdir(parents=True)
    for name, text in (("test.en", "the old stone\n"), ("test.el", "το παλιό πέτρα\n"), ("test.gold", "0-0 1-1 2p2\n")):
        (folder / name).write_text(text, encoding="utf-8")
    arguments = ["--run_dir", run_dir, "--phase", "untrained", "--tasks", "alignment", "--task_data", tmp_path]
    assert call(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "AER, layer 1" in shown
    assert "Greek" in shown
    written = json.loads((run_dir / "evaluation" / "untrained-alignment.json").read_text())
    assert (written["extraction"], written["words"], written["languages"]["el"]["base"]) == ("argmax", "mean", 0)
    (folder / "test.gold").write_text("0-0 1-3\n", encoding="utf-8")
    assert call(monkeypatch, *arguments) == 2
    assert "test.gold, line 1: the link 1-3 is outside the 3 words of its second sentence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere", "--tasks", "tatoeba"], "there is no folder nowhere; encoders are opened from this"),
        (["--model", "nowhere"], "--model needs --tasks"),
        (["--model", "nowhere", "--tasks", "perplexity"], "reads a run's held-out text"),
        (["--model", "nowhere", "--tasks", "tatoba"], "unknown task 'tatoba', did you mean tatoeba?"),
        (["--phase", "untrained", "--tasks", "tatoeba"], "need --run_dir"),
        (["--model", "nowhere", "--tasks", "tatoeba", "--max_pairs", "-3"], "--max_pairs -3 leaves no choice"),
        (["--model", "nowhere", "--tasks", "mine", "--tasks_file", "no.yaml"], "no.yaml does not exist"),
    ],
)
def test_mistakes_exit_2_with_a_sentence(monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_an_unknown_language_code_and_a_missing_tokenizer_are_named(run_dir, data, tmp_path, monkeypatch, capsys):
    common = ["--tasks", "tatoeba", "--task_data", data]
    assert call(monkeypatch, "--run_dir", run_dir, "--phase", "untrained", *common, "--languages", "qqq") == 2
    assert "--languages: 'qqq' is no known language code" in capsys.readouterr().err
    with exported_phase(run_dir, "untrained") as folder:
        shutil.copytree(folder, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"):
        os.remove(tmp_path / "bare" / name)
    assert call(monkeypatch, "--model", tmp_path / "bare", *common) == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_the_export_holds_the_phase_and_two_folders_of_one_name_stay_apart(run_dir, data, tmp_path):
    from dist_metaxlm.evaluation.run import load_state

    with exported_phase(run_dir, "untrained") as folder:
        config, tensors = open_folder(folder)
        state = from_huggingface(tensors, config)
        for place in ("a", "b"):
            shutil.copytree(folder, tmp_path / place / "model")
    expected = load_state(run_dir, "untrained")[1]
    assert all(torch.equal(weight, expected[name]) for name, weight in state.items())
    models = [str(tmp_path / place / "model") for place in ("a", "b")]
    assert list(evaluate_encoders(None, [], models, ["tatoeba"], TaskOptions(data))) == models
