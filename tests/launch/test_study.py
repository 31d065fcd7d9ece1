"""launch/study.py: a study of a few steps from end to end, resumed arm by arm; what it says when an arm cannot run."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dist_metaxlm.data.special_tokens import UNK
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import GracefulStop, UserError
from dist_metaxlm.study.fake_english import PIECES
from dist_metaxlm.study.study import StudyOptions, two_phase_study

LAUNCH = Path(__file__).parents[2] / "launch"
SHAPE = ("model.layers=2", "model.hidden=32", "model.heads=2", "model.ffn=64", "model.vocab_size=380")


def options_of(recipe: Path, output: Path) -> StudyOptions:
    data = f"data.directory={recipe.parent / 'data'}"
    return StudyOptions(
        output,
        "tiny",
        str(recipe),
        (*SHAPE, data),
        tokens=2048,
        ratios=(0.5,),
        seeds=(1,),
        kinds=("meta+cross",),
        points=2,
        curve_strings=15,
    )


def call(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(LAUNCH / "study.py"), *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(LAUNCH / "study.py"), run_name="__main__")
    return int(leaving.value.code or 0)


def test_an_arm_from_text_to_report_and_not_a_second_time(tiny_recipe, tmp_path):
    options = options_of(tiny_recipe, tmp_path)
    lines: list[str] = []
    found = two_phase_study(options, lines.append)
    assert any(line.startswith("arm 1 of 1, meta+cross 0.5, seed 1: english_nll") for line in lines)
    result = json.loads((tmp_path / "arms" / "meta+cross-0.5-seed1" / "result.json").read_text())
    assert [point["phase"] for point in result["curve"]] == ["meta", "meta", "cross", "cross"]
    assert [point["tokens"] for point in result["curve"]] == [512, 1024, 1536, 2048]
    assert result["tokens"] == 2048
    assert len(result["final"]["by_layer"]["retrieval"]) == 3
    assert 0.5 < result["english_share"] < 1
    assert found["finished"] == found["asked"] == 1
    assert "no verdict yet" in found["verdict"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    charts = re.findall(r"\((charts/[^)]+\.svg)\)", text)
    assert len(charts) >= 9
    assert all((tmp_path / chart).read_text().startswith("<svg xmlns=") for chart in charts)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(charts)
    assert found["verdict"] in page
    assert not re.search(r"""(src|href)=["']https?:""", page)
    # the second time nothing is trained: a script that is not there would be noticed
    assert two_phase_study(options, lambda line: None, ("no-script",))["results"] == found["results"]
    with pytest.raises(UserError, match="holds a study with another tokens"):
        two_phase_study(replace(options, tokens=4096), lambda line: None, ("no-script",))


def test_an_arm_that_cannot_run_is_named_with_its_error(tiny_recipe, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys\nprint('error: the disk says no', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(UserError, match=r"arm meta\+cross-0\.5-seed1, phase meta .*code 2: the disk says no; see the full"):
        two_phase_study(options_of(tiny_recipe, tmp_path / "study"), lambda line: None, (str(script),))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_request_to_stop_goes_on_to_the_arms_that_run_at_once(tiny_recipe, tmp_path, jobs):
    up, script = tmp_path / "up", tmp_path / "waits.py"
    up.mkdir()
    script.write_text(
        "import os, pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"cores, said = len(os.sched_getaffinity(0)), pathlib.Path({str(tmp_path)!r}) / str(os.getpid())\n"
        "said.write_text(f'{cores} {os.environ[\"OMP_NUM_THREADS\"]}')\n"
        f"said.rename(pathlib.Path({str(up)!r}) / said.name)  # seen only when whole\ntime.sleep(60)\n"
    )

    def stop() -> None:
        while len(list(up.iterdir())) < jobs:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    before, cores = signal.getsignal(signal.SIGTERM), os.sched_getaffinity(0)
    options = replace(options_of(tiny_recipe, tmp_path / "study"), jobs=jobs, kinds=("meta+cross", "meta only", "joint"))
    with pytest.raises(GracefulStop, match=r"phase (meta|joint), and has saved"):
        two_phase_study(options, lambda line: None, (str(script),))
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.sched_getaffinity(0) == cores
    assert len(list(up.iterdir())) == jobs  # the third arm was not begun
    if len(cores) >= jobs:
        assert {path.read_text() for path in up.iterdir()} == {f"{len(cores) // jobs} {len(cores) // jobs}"}


@pytest.fixture(scope="module")
def plain_text(tmp_path_factory):
    """Sentences of made-up words, as many as the known case needs."""
    rng = random.Random(3)
    words = [
        "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randrange(1, 4))) for _ in range(600)
    ]
    sentences = [" ".join(rng.choice(words) for _ in range(rng.randrange(4, 9))) + "." for _ in range(4200)]
    path = tmp_path_factory.mktemp("plain") / "text.txt"
    path.write_text("\n".join(sentences), encoding="utf-8")
    return path


def test_the_known_case_from_text_to_figures(plain_text, tmp_path, monkeypatch, capsys):
    asked = [
        "fake-english",
        "--text",
        plain_text,
        "--output",
        tmp_path / "case",
        "--no_parallel",
        "--json",
        "phases.joint.steps=4",
        "training.log_interval=2",
        "training.probe_interval=2",
    ]
    assert call(monkeypatch, *asked) == 1, "four steps are not enough"
    found = json.loads(capsys.readouterr().out)
    assert found["reached"] is False
    assert found["case"] == "fake English, no parallel text"
    assert [point["step"] for point in found["curve"]] == [2, 4]
    assert found["candidates"] == 500
    assert found["retrieval"] == found["trained"]["retrieval"][found["layer"]] < 0.1
    assert len(found["untrained"]["translation"]) == 4
    assert found["trained"] != found["untrained"]
    assert str(tmp_path) not in json.dumps({key: part for key, part in found.items() if key != "environment"})
    stored = TokenStore.open(tmp_path / "case" / "data" / "store")
    english, shifted = (stored.text(name).tokens for name in ("en", "fake"))
    assert english.max() <= UNK + PIECES < shifted[shifted > UNK].min()
    # another text, or parallel, is another case
    assert call(monkeypatch, *(word for word in asked if word != "--no_parallel")) == 2
    assert "give another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--text", "nowhere.txt"], "no text at nowhere.txt"), (["--ratios", "0.5"], "study.py has no option --ratios")],
)
def test_mistakes_in_the_known_case_exit_2_with_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, "fake-english", "--output", tmp_path / "case", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "case").exists()


def test_too_little_text_for_the_known_case(tmp_path, monkeypatch, capsys):
    (tmp_path / "few.txt").write_text("One small house stands here.\n")
    assert call(monkeypatch, "fake-english", "--output", tmp_path / "case", "--text", tmp_path / "few.txt") == 2
    assert "has 1 different sentence of 4 to 10 plain words, and 4000 are needed" in capsys.readouterr().err
    assert not (tmp_path / "case").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "huge"], "--size 'huge' is none of tiny, small, base"),
        (["--arms", "joined"], "--arms 'joined' is none of"),
        (["--ratios", "2"], "--ratios 2.0"),
        (["--tokens", "10"], "give at least --tokens"),
        (["--jobs", "0"], "--jobs 0 is not"),
        (
            ["--tasks", "tatoeba", "model.family=modern", "model.norm=pre", "model.norm_type=rms"],
            "--tasks open every arm with transformers, and a model with model.norm_type rms cannot go to Hugging Face",
        ),
        (["--tasks", "udpos"], "task udpos: there is no folder data/xtreme; name the one"),
        (["--tasks", "udops"], "did you mean udpos"),
        (["--tasks", "udpos", "--finetune", "epoch=3"], "--finetune 'epoch=3' is not"),
        (["parallel.tensor=2"], "parallel.tensor=2"),
        (["--recipe", "nothing"], "no recipe 'nothing'"),
        (["model.lairs=2"], "lairs"),
    ],
)
def test_mistakes_exit_2_with_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, "two-phase", "--output", tmp_path / "study", *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no study is named; say which: python launch/study.py two-phase ... or"),
        (("seed=3",), "no study is named; say"),
        (("--json", "phases.cross.alpha=0.3"), "no study is named; say"),
        (("two-fase", "--size", "tiny"), "no study is named, did you mean two-phase? say which"),
    ],
)
def test_without_the_name_of_a_study_one_sentence_asks_for_it(monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
