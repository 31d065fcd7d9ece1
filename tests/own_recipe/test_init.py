"""`metaxlm init`: from files in five formats to a recipe that trains; every wrong turn is one sentence."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

import dist_metaxlm
from dist_metaxlm.cli import init
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import MIN_CANDIDATES
from dist_metaxlm.own_recipe.choices import Wishes, choose
from dist_metaxlm.own_recipe.machine import Machine
from dist_metaxlm.own_recipe.measure import Measured, Size
from dist_metaxlm.own_recipe.sizes import SIZES, parse_parameters, shape_of, total
from dist_metaxlm.own_recipe.sources import ask_sources
from dist_metaxlm.preparation.corpus.heldout import COUNTED_CANDIDATES, shortfalls

GPU = Machine(cores=8, memory=64 * 10**9, gpu="NVIDIA H100", gpu_memory=80 * 10**9)
CPU = Machine(cores=2, memory=8 * 10**9)


def sentences(letters: str) -> list[str]:
    rng = random.Random(1)
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=rng.randint(4, 9))) for _ in range(700)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English as compressed text, Swahili as JSON lines, Norwegian as TSV; pairs as TSV and as two files."""
    folder = tmp_path_factory.mktemp("own")
    english, swahili, norwegian = sentences("abcdefghijk"), sentences("klmnopqrst"), sentences("æøåbcdefg")
    (folder / "en" / "deep").mkdir(parents=True)
    (folder / "en" / "deep" / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(english).encode()))
    (folder / "en" / "notes.pdf").write_bytes(b"%PDF")
    (folder / "sw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in swahili))
    (folder / "no.tsv").write_text("".join(f"{text}\n" for text in norwegian))
    (folder / "en-sw.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(english, swahili, strict=True)))
    for name, side in (("a.en", english), ("a.no", norwegian)):
        (folder / name).write_text("\n".join(side) + "\n")
    return folder


SOURCES = ["en=en", "sw=sw.jsonl", "no=no.tsv", "en-sw=en-sw.tsv", "en-no=a.en,a.no"]


def test_own_files_to_a_trained_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    init.main(["mine.yaml", *SOURCES, "--hours", "0.5"])
    shown = capsys.readouterr().out
    assert "en: 700 documents" in shown
    assert "en-no: 700 pairs" in shown
    assert "no, sw will not count in the headline figure" in shown
    recipe = dist_metaxlm.load_recipe("mine.yaml")
    assert recipe.data.text["en"][""].files == ["en/**/*.txt.gz"]
    assert set(recipe.data.text) == {"en", "sw", "no"}
    assert recipe.data.heldout_strings == 105
    short = dist_metaxlm.load_recipe(
        "mine.yaml", [f"phases.{name}.steps=2" for name in ("meta", "cross")] + ["training.log_interval=2"]
    )
    log: list[str] = []
    assert dist_metaxlm.prepare(short, log=log.append)["languages"] == 3
    assert any("evaluation will have no headline figure" in line for line in log)
    run = dist_metaxlm.pretrain("meta", short, run_dir=folder / "run")
    dist_metaxlm.pretrain("cross", short, run_dir=run)
    last = json.loads((run / "cross" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert set(last["losses"]) == {"mlm", "tlm", "contrast"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["en=en"], "en=en is in the place of the recipe's file; write `metaxlm init mine.yaml en=en"),
        (["mine", "en=en"], r"mine does not end in \.yaml; call it mine\.yaml"),
        (["new.yaml"], "no text is given.*metaxlm init mine.yaml en="),
        (["new.yaml", "en"], "source 'en' is not of the form LANGUAGE=PATH"),
        (["new.yaml", "en=english.txt"], "'english.txt' names no file"),
        (["new.yaml", "en=en/notes.pdf"], "notes.pdf has no known format"),
        (["new.yaml", "en=empty"], "folder empty has no files and none of .txt"),
        (["new.yaml", "en-sw=en-sw.tsv"], "no text is given"),
        (["new.yaml", "en=en", "en-sw=a.en,a.no,sw"], "names 3 files"),
        (["new.yaml", "en=en", "en-sw-no=en-sw.tsv"], "'en-sw-no' is not a pair of two language codes"),
        (["new.yaml", "en=en", "--size", "medium"], "--size medium is none of tiny, small"),
        (["new.yaml", "en=en", "--params", "lots"], "--params 'lots' is not a number of parameters"),
        (["new.yaml", "en=en", "--params", "10"], "cannot be met.*the nearest model has"),
        (["new.yaml", "en=en", "--vocabulary", "20"], "--vocabulary 20 is less than the 301 ids"),
        (["new.yaml", "en=en", "--hours", "-1"], "--hours -1 is not a positive number"),
        (["new.yaml", "en=en", "sw=en"], "is in data.text.en and in data.text.sw"),
        (["old.yaml", "en=en"], r"old\.yaml exists already; give another name, or --overwrite"),
    ],
)
def test_a_wrong_turn_is_one_sentence_and_writes_nothing(
    words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "old.yaml").write_text("mine: true")
    (folder / "empty").mkdir(exist_ok=True)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message) as error:
        init.main(words)
    assert "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before
    assert (folder / "old.yaml").read_text() == "mine: true"


def test_a_terminal_is_asked_until_the_answer_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    questions: list[str] = []
    answers = iter(["english", "en=nothing.txt", "en=en", "en-sw=en-sw.tsv", ""])

    def read(question: str) -> str:
        questions.append(question)
        return next(answers)

    assert ask_sources(read) == ["en=en", "en-sw=en-sw.tsv"]
    assert "not of the form" in questions[1]
    assert "names no file" in questions[2]


def measured(tokens: int, pairs: int) -> Measured:
    text = {code: Size(units=10, characters=4 * tokens, bytes=4 * tokens, whole=True) for code in ("en", "sw")}
    pair = {"en-sw": Size(units=pairs, characters=80 * pairs, bytes=80 * pairs, whole=True)}
    return Measured(text=text, bitext=pair, repeated_words=10**6, characters=100, english_sources={"sw": pairs})


def test_the_text_and_the_machine_decide() -> None:
    small, large = measured(20_000, 100), measured(2_000_000_000, 1_000_000)
    here, there = choose(small, CPU, Wishes()), choose(large, GPU, Wishes())
    assert (here.size, there.size) == ("tiny", "large")
    assert here.model.vocab_size < there.model.vocab_size == 256_000
    assert (here.probes, there.probes) == (False, True)
    assert here.phases["meta"].total_steps < there.phases["meta"].total_steps
    assert there.phases["cross"].total_steps * there.phases["cross"].tokens_per_step <= 20 * total(there.shape, 256_000)
    assert "headline" in here.warnings[0]
    assert not there.warnings
    slow = choose(measured(50_000_000, 1000), CPU, Wishes(hours=1))
    assert slow.hours == pytest.approx(1, abs=0.1)


def test_the_model_must_fit_the_machine() -> None:
    assert "smaller --size" in choose(measured(10**6, 10**4), CPU, Wishes(size="xl", hours=1)).warnings[-1]


@pytest.mark.parametrize(("asked", "vocabulary"), [("40M", 32_000), ("3M", 8_000), ("1.5B", 256_000)])
def test_parameters_are_met(asked: str, vocabulary: int) -> None:
    wanted = parse_parameters(asked)
    assert abs(total(shape_of(wanted, vocabulary), vocabulary) - wanted) < 0.1 * wanted
    assert list(SIZES) == list(init.SIZES)


def test_candidates_are_those_of_evaluation() -> None:
    assert COUNTED_CANDIDATES == MIN_CANDIDATES


def test_prepare_names_the_languages_that_will_not_count() -> None:
    assert list(shortfalls({"en": 600, "sw": 590}, 600)) == []
    (some,) = shortfalls({"en": 600, "sw": 590, "no": 105}, 600)
    assert "1 language with fewer than 400 held-out translations (no 105): they do not count" in some
    (every,) = shortfalls({"en": 100, "sw": 100}, 100)
    assert "no headline figure; raise data.heldout_strings to 476" in every
    (none,) = shortfalls({}, 600)
    assert "no translations with English are held out" in none
