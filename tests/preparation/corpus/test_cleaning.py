"""The corpus step: every cleaning step on its own and counted, sources by name, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.corpus.cleaning import Counts, LineCleaner
from dist_metaxlm.preparation.corpus.corpus import sources
from dist_metaxlm.preparation.prepare import prepare
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import CleaningConfig, DataConfig, LearningRate, MaskedLM, ModelConfig, PhaseConfig, Recipe

SENTENCE = "An evaluation sentence that is long enough to fill a window of forty-eight letters."


def make(folder: Path, workers: int | None = None, **data: Any) -> tuple[dict[str, Any], list[str]]:
    """Run the corpus step; its manifest and what it logged."""
    phase = PhaseConfig(
        steps=1, sequence_length=16, objectives=[MaskedLM(batch_tokens=16)], learning_rate=LearningRate(peak=1e-3)
    )
    recipe = Recipe(
        name="tiny",
        model=ModelConfig(layers=1, hidden=8, heads=1, ffn=8, vocab_size=400),
        data=DataConfig(directory=str(folder / "data"), **data),
        phases={"meta": phase},
    )
    said: list[str] = []
    prepare(recipe, said.append, until="corpus", workers=workers)
    return manifest.read(folder / "data" / "corpus"), said


def write(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder / name)


def corpus(folder: Path, name: str) -> list[str]:
    return (folder / "data" / "corpus" / name).read_text(encoding="utf-8").splitlines()


def cleaned(line: str, **config: Any) -> tuple[str | None, dict[str, int]]:
    counts = Counts()
    return LineCleaner(CleaningConfig(**config)).clean(line, counts), dict(counts.changed)


def test_unicode_forms() -> None:
    assert cleaned("cafe\u0301 ﬁ") == ("café ﬁ", {"unicode": 1})
    assert cleaned("cafe\u0301 ﬁ", unicode="NFKC") == ("café fi", {"unicode": 1})
    assert cleaned("cafe\u0301 ﬁ", unicode="none") == ("cafe\u0301 ﬁ", {})


def test_control_characters_go_and_joiners_stay() -> None:
    assert cleaned("\ufeffa\x07b\tc\u2028d\u00ade\u202ef\x9b") == ("ab c def", {"control_characters": 1})
    assert cleaned("می\u200cخواهم क्\u200dष") == ("می\u200cخواهم क्\u200dष", {})
    assert cleaned("a\tb", control_characters=False) == ("a\tb", {})


def test_every_character_that_is_taken_out_is_one_that_python_does_not_print() -> None:
    printed = "".join(char for char in map(chr, range(0x110000)) if char.isprintable() and not char.isspace())
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert cleaned(printed, unicode="none") == (printed, {})
    assert set(cleaned(everything, unicode="none")[0] or "") >= set(printed)


def test_lengths_are_of_the_cleaned_line() -> None:
    assert cleaned("ab\x00\x01", min_characters=3)[0] is None
    assert cleaned("  abc ", min_characters=3, max_characters=3)[0] == "abc"
    assert cleaned("abcd", max_characters=3)[0] is None
    with pytest.raises(ValueError, match="max_characters 2 is less than min_characters 3"):
        CleaningConfig(min_characters=3, max_characters=2)


def test_text_steps_are_applied_and_counted(tmp_path: Path) -> None:
    first = write(
        tmp_path, "a.txt", "One e\u0301lan here.", "no", "", "Second document.", "", "x", "", SENTENCE.upper(), "more"
    )
    second = write(tmp_path, "b.txt", "Second document.", "", "One élan here.", "", "One élan here.", "and a new line")
    evaluation = write(tmp_path, "eval.tsv", f"{SENTENCE}\tlabel")
    about, said = make(
        tmp_path,
        text={"en": [first, second]},
        cleaning={"min_characters": 4, "deduplicate": ["documents"], "decontaminate": [evaluation]},
    )
    assert corpus(tmp_path, "text/en.txt") == [
        "One élan here.",
        "",
        "Second document.",
        "",
        "One élan here.",
        "and a new line",
        "",
    ]
    en = about["text"]["en"]
    assert en["read"] == {"documents": 7, "lines": 10}
    assert en["changed_lines"] == {"unicode": 1}
    assert en["dropped"] == {
        "decontaminate": {"documents": 1, "lines": 2},
        "duplicate_documents": {"documents": 2, "lines": 2},
        "length": {"documents": 1, "lines": 2},
    }
    assert en["kept"] == {"documents": 3, "lines": 4, "bytes": 15 + 1 + 16 + 1 + 15 + 1 + 14 + 1}
    assert en["sources"][""]["files"] == [first, second]
    assert about["decontaminated"] == {evaluation: {"en": 1}}
    (row,) = map(json.loads, corpus(tmp_path, "decontaminated.jsonl"))
    assert row == {
        "text": "en",
        "file": first,
        "document": 4,
        "characters": len(SENTENCE) + 4,
        "evaluation_file": evaluation,
        "sentence": SENTENCE,
    }
    assert "en: 3 of 7 documents kept, 0.0 MB" in said
    assert not list((tmp_path / "data" / "corpus").rglob(".*"))


def test_lines_repeat_across_files_and_a_dropped_document_takes_no_line_with_it(tmp_path: Path) -> None:
    text = write(
        tmp_path, "a.txt", "a menu", "first text", "", "a menu", "first text", "", "a menu", "second text", "", "a menu"
    )
    about, _ = make(tmp_path, text={"en": [text]}, cleaning={"deduplicate": ["documents", "lines"]})
    assert corpus(tmp_path, "text/en.txt") == ["a menu", "first text", "", "second text", ""]
    assert about["text"]["en"]["dropped"] == {
        "duplicate_documents": {"documents": 1, "lines": 2},
        "duplicate_lines": {"documents": 1, "lines": 2},
    }


def test_near_duplicates_are_dropped_where_asked(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(100)]
    text = write(tmp_path, "a.txt", " ".join(words), "", " ".join(["other", *words[1:]]))
    about, _ = make(tmp_path, text={"en": [text]}, cleaning={"near_duplicates": {"threshold": 0.8}})
    assert about["text"]["en"]["dropped"] == {"near_duplicates": {"documents": 1, "lines": 1}}
    assert corpus(tmp_path, "text/en.txt") == [" ".join(words), ""]


def test_pairs_stay_or_go_whole(tmp_path: Path) -> None:
    text = write(tmp_path, "a.txt", "Some text.")
    pairs = write(
        tmp_path,
        "a.tsv",
        "a house\tune maison",
        "a house\tune maison",
        "a house\tla maison",
        "empty\t",
        f"x\t{SENTENCE}",
        "tab\x0bmore\tplus",
    )
    evaluation = write(tmp_path, "eval.txt", SENTENCE)
    about, _ = make(tmp_path, text={"en": [text]}, bitext={"en-fr": [pairs]}, cleaning={"decontaminate": [evaluation]})
    assert corpus(tmp_path, "bitext/en-fr.tsv") == ["a house\tune maison", "a house\tla maison", "tab more\tplus"]
    found = about["bitext"]["en-fr"]
    assert found["read"] == {"pairs": 6}
    assert found["kept"] == {"pairs": 3, "bytes": 51}
    assert found["dropped"] == {"decontaminate": {"pairs": 1}, "duplicate_documents": {"pairs": 1}, "length": {"pairs": 1}}


def test_named_sources_keep_their_files_and_share_the_duplicates(tmp_path: Path) -> None:
    wiki, books = write(tmp_path, "w.txt", "shared", "", "wiki only"), write(tmp_path, "b.txt", "books only", "", "shared")
    left, right = write(tmp_path, "m.en", "one", "two"), write(tmp_path, "m.fr", "un", "deux")
    about, _ = make(
        tmp_path,
        text={"en": {"wiki": {"files": [wiki]}, "books": {"files": [books], "weight": 2.5}}},
        bitext={"en-fr": {"web": {"files": [{"moses": [left, right]}]}}},
    )
    assert corpus(tmp_path, "text/en.wiki.txt") == ["shared", "", "wiki only", ""]
    assert corpus(tmp_path, "text/en.books.txt") == ["books only", ""]
    assert corpus(tmp_path, "bitext/en-fr.tsv") == ["one\tun", "two\tdeux"]
    assert about["text"]["en"]["sources"]["books"]["dropped"] == {"duplicate_documents": {"documents": 1, "lines": 1}}
    assert about["text"]["en"]["kept"]["documents"] == 3
    assert about["bitext"]["en-fr"]["sources"]["web"]["files"] == [f"{left} {right}"]


def test_the_corpus_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        text = {
            language: {
                source: {
                    "files": [
                        write(
                            tmp_path,
                            f"{language}{source}.txt",
                            *(f"{language} {n % (30 + number)} of {source}\n" for n in range(60)),
                            SENTENCE,
                        )
                    ]
                }
                for source in ("web", "wiki")
            }
            for number, language in enumerate(("de", "en", "fr"))
        }
        pairs = write(tmp_path, "pairs.tsv", *(f"one {n % 20}\tein {n % 20}" for n in range(50)), f"a\t{SENTENCE}")
        about, said = make(
            folder,
            workers,
            text=text,
            bitext={"en-de": [pairs]},
            cleaning={"decontaminate": [write(tmp_path, "eval.txt", SENTENCE)]},
        )
        root = folder / "data" / "corpus"
        files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        made.append((about, sorted(said[:-1]), files))
    assert made[0] == made[1]
    assert list(made[1][2]) == [
        "bitext/en-de.tsv",
        "decontaminated.jsonl",
        "manifest.json",
        *(f"text/{language}.{source}.txt" for language in ("de", "en", "fr") for source in ("web", "wiki")),
    ]
    assert made[1][0]["decontaminated"] == {str(tmp_path / "eval.txt"): {"de": 2, "en": 2, "en-de": 1, "fr": 2}}


def test_a_mistake_that_another_process_finds_ends_the_step(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_bytes(b"good\nb\xffd\n")
    german = write(tmp_path, "de.txt", *(f"Zeile {n}\n" for n in range(3000)))
    with pytest.raises(UserError, match=r"en\.txt, line 2, byte 2 \(0xFF\) is not UTF-8"):
        make(tmp_path, 2, text={"de": [german], "en": [str(tmp_path / "en.txt")]})
    assert not list((tmp_path / "data").glob("*corpus*"))


def test_a_language_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    text = write(tmp_path, "a.txt", "short", "", "short")
    with pytest.raises(UserError, match=r"data\.text\.en: cleaning left none of 2 documents .*'length': 2"):
        make(tmp_path, text={"en": [text]}, cleaning={"min_characters": 10})
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "settings.json"]
    with pytest.raises(UserError, match=r"data\.text\.en\.web: cleaning left none of 2 documents .*duplicate_documents"):
        make(tmp_path, text={"en": {"wiki": {"files": [text]}, "web": {"files": [text]}}})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text": {"en": {"../x": {"files": ["a.txt"]}}}}, r"source '\.\./x'"),
        ({"text": {"en": {}}}, r"data\.text\.en names no source"),
        (
            {"text": {"en": ["*.txt"], "fr": {"web": {"files": ["a.txt"]}}}},
            r"a\.txt is in data\.text\.en and in data\.text\.fr",
        ),
        (
            {"text": {"en": ["a.txt"]}, "cleaning": {"decontaminate": ["none.tsv"]}},
            r"decontaminate: 'none\.tsv' names no file",
        ),
        ({"text": {"en": ["a.txt"]}, "bitext": {"en-fr": [{"moses": ["a.txt", "*.txt"]}]}}, r"names 1 file and '\*\.txt' 2"),
        ({"text": {"en": {"wiki": {"files": ["none.txt"]}}}}, r"data\.text\.en\.wiki: 'none\.txt' names no file"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.txt", "text")
    write(tmp_path, "b.txt", "text")
    with pytest.raises(UserError, match=said):
        sources(DataConfig(directory="data", **data))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "data.text={en: {wiki: {files: [a.txt], wieght: 2}}}",
            r"unknown key data\.text\.en\.wiki\.wieght, did you mean weight\?",
        ),
        ("data.text={en: {wiki: {files: [a.txt], weight: 0}}}", r"data\.text\.en\.wiki\.weight: .*greater than 0"),
        ("data.text={en: a.txt}", r"data\.text: en: a\.txt is a name instead of a list of files; write en: \[a\.txt\]"),
        ("data.cleaning.dedupliate=[lines]", r"unknown key data\.cleaning\.dedupliate, did you mean deduplicate\?"),
        ("data.cleaning.near_duplicates={treshold: 0.7}", r"treshold, did you mean threshold\?"),
        ("data.reading.pair_columns=[0]", r"data\.reading\.pair_columns"),
    ],
)
def test_mistakes_in_the_recipe_are_named_in_place(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("xlmr-base", [override])
