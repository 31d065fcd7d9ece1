"""Readers of each format: what they give, and one clear sentence for each kind of damage."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path

import polib
import pyarrow
import pyarrow.parquet
import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.evaluation import evaluation_texts
from dist_metaxlm.recipe.data import EvaluationFiles, ReadingConfig

READING = ReadingConfig()


def parquet(path: Path, **columns: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def catalogue(path: Path) -> Path:
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    po += [
        polib.POEntry(msgid="Delete <b>this</b> page", msgstr="Diese Seite löschen", msgctxt="button"),
        polib.POEntry(msgid="Not done", msgstr=""),
        polib.POEntry(msgid="Unsure", msgstr="Unsicher", flags=["fuzzy"]),
        polib.POEntry(msgid="%d page", msgid_plural="%d pages", msgstr_plural={0: "%d Seite", 1: "%d Seiten"}),
    ]
    (po.save if path.suffix == ".po" else po.save_as_mofile)(str(path))
    return path


def test_flags_of_an_obsolete_message_are_not_those_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.po"
    path.write_text('#, fuzzy\n#~ msgid "old"\n#~ msgstr "alt"\n\nmsgid "Open the door"\nmsgstr "Öffne die Tür"\n')
    assert list(readers.pairs([path], READING, ("en", "de"))) == [("Open the door", "Öffne die Tür")]


def test_a_json_line_is_a_document_of_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"body": "one\n\n two \r\n", "id": 1}, {"body": None}, {"body": "three\u2028\tstill"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = list(readers.documents([path], ReadingConfig(text_field="body")))
    assert found == [["one", "two"], ["three\u2028\tstill"]]
    with pytest.raises(
        UserError, match=r"line 1 has no field 'text'; its fields are 'body', 'id': .*data\.reading\.text_field"
    ):
        list(readers.documents([path], READING))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"', r"line 2, column \d+ is not JSON"),
        ('["x"]', "line 2 is not a JSON object"),
        ('{"text": 7}', "line 2, field 'text' is not text but int"),
        ("[" * 100_000, "line 2 has a number or a nesting"),
        ('{"text": ' + "9" * 5000 + "}", "line 2 has a number or a nesting"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=said):
        list(readers.documents([tmp_path / "a.jsonl"], READING))


def test_translations_from_json_lines_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"en": "a\\tb", "de": " c "}\n{"translation": {"de": "e\\nf", "en": "d"}}\n')
    parquet(tmp_path / "a.parquet", en=["g", "h", "i"], de=["j", None, "l"], score=[1.0, 2.0, 3.0])
    parquet(tmp_path / "b.parquet", translation=[{"en": "m", "de": "n"}])
    files = [tmp_path / "a.jsonl", tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert list(readers.pairs(files, READING, ("en", "de"))) == [
        ("a b", "c"),
        ("d", "e f"),
        ("g", "j"),
        ("h", ""),
        ("i", "l"),
        ("m", "n"),
    ]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1 has no field 'fr'; .* language codes"):
        list(readers.pairs(files, READING, ("en", "fr")))
    with pytest.raises(UserError, match=r"a\.parquet, header has no field 'fr'"):
        list(readers.pairs(files[1:], READING, ("en", "fr")))


def test_parquet_documents_and_damaged_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["one\ntwo", None, "three"], url=["u", "v", "w"])
    assert list(readers.documents([path], READING)) == [["one", "two"], ["three"]]
    with pytest.raises(UserError, match=r"a\.parquet, header has no field 'body'; its fields are 'text', 'url'"):
        list(readers.documents([path], ReadingConfig(text_field="body")))
    with pytest.raises(UserError, match=r"row 1, field 'number' is not text but int"):
        list(readers.documents([parquet(tmp_path / "n.parquet", number=[1])], ReadingConfig(text_field="number")))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet is not a whole parquet file"):
        list(readers.documents([path], READING))


@pytest.mark.parametrize("suffix", [".po", ".mo"])
def test_gettext_catalogues_give_pairs_and_text(tmp_path: Path, suffix: str) -> None:
    path = catalogue(tmp_path / f"a{suffix}")
    expected = {("Delete this page", "Diese Seite löschen"), ("%d page", "%d Seite"), ("%d pages", "%d Seiten")}
    assert set(readers.pairs([path], READING, ("en", "de"))) == expected
    assert [sorted(document) for document in readers.documents([path], READING)] == [
        sorted(translation for _, translation in expected)
    ]
    path.write_bytes(b'msgid "open\nbroken\n' if suffix == ".po" else path.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"a\{suffix} is not a gettext catalogue"):
        list(readers.pairs([path], READING, ("en", "de")))


def tmx(body: str, doctype: str = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">') -> str:
    return f'<?xml version="1.0"?>\n{doctype}\n<tmx version="1.4"><header/><body>{body}</body></tmx>'


def unit(**sides: str) -> str:
    return (
        "<tu>"
        + "".join(f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>' for code, text in sides.items())
        + "</tu>"
    )


def test_tmx_units_by_language_without_markup(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    path.write_text(
        tmx(
            unit(en_US="a <bpt i='1'>&lt;b></bpt>big<ept i='1'>&lt;/b></ept> <hi>house</hi>", fr="une\nmaison")
            + unit(en="no French")
            + unit(EN="b &amp; c", fr_CA="d", fr="e")
        ),
        encoding="utf-8",
    )
    assert list(readers.pairs([path], READING, ("en", "fr"))) == [("a big house", "une maison"), ("b & c", "e")]
    with pytest.raises(UserError, match=r"a\.tmx holds no pairs of en and sw"):
        list(readers.pairs([path], READING, ("en", "sw")))


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE tmx [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    ],
)
def test_tmx_with_entities_is_refused(tmp_path: Path, doctype: str) -> None:
    path = tmp_path / "a.tmx"
    path.write_text(tmx(unit(en="&b;", fr="x"), doctype))
    with pytest.raises(UserError, match=r"a\.tmx defines XML entities"):
        list(readers.pairs([path], READING, ("en", "fr")))


def test_broken_tmx_and_an_endless_unit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    path.write_text(tmx(unit(en="a", fr="b") + "<tu><tuv>"))
    with pytest.raises(UserError, match=r"a\.tmx is not well-formed XML .* after unit 1"):
        list(readers.pairs([path], READING, ("en", "fr")))
    path.write_text(tmx(unit(en="a", fr="b") + unit(en="x" * 500_000, fr="y")))
    with pytest.raises(UserError, match=r"what comes after translation unit 1 has more than 1000 characters"):
        list(readers.pairs([path], ReadingConfig(max_line_characters=1000), ("en", "fr")))


def test_moses_pairs_and_unequal_files(tmp_path: Path) -> None:
    left, right = tmp_path / "a.en", tmp_path / "a.fr.gz"
    left.write_text("one\n\ntwo\tx\n")
    right.write_bytes(gzip.compress(b"un\n\ndeux\n"))
    assert list(readers.pairs([(left, right)], READING, ("en", "fr"))) == [("one", "un"), ("two x", "deux")]
    right.write_bytes(gzip.compress(b"un\n\ndeux\ntrois\n"))
    with pytest.raises(UserError, match=r"a\.en ends after line 3 and .*a\.fr\.gz continues"):
        list(readers.pairs([(left, right)], READING, ("en", "fr")))


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.text\.en: a\.docx has no known format .* \.txt, \.jsonl"):
        readers.check_formats([Path("a.docx")], "text", "data.text.en")
    with pytest.raises(UserError, match=r"a\.txt\.gz has no known format .* bitext is read from \.tsv.*moses"):
        readers.check_formats([Path("a.txt.gz")], "bitext", "data.bitext.en-fr")


def test_evaluation_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line\n\nanother\n")
    (tmp_path / "a.tsv").write_text("premise\thypothesis\t0\n")
    (tmp_path / "a.jsonl").write_text('{"q": ["one", {"x": "two\\nthree"}], "n": 1}\n')
    (tmp_path / "a.json").write_text('{"data": [\n {"context": "four"},\n {"context": "five"}]}')
    (tmp_path / "b.json").write_text('{"context": "six"}\n{"context": "seven"}\n')
    (tmp_path / "a.conllu").write_text("# id 1\n1\tA\tDET\n2\thouse\tNOUN\n\n1\tB\tX")
    entries = [str(tmp_path / name) for name in ("a.txt", "a.tsv", "a.jsonl", "a.json", "b.json")]
    found = list(evaluation_texts([*entries, EvaluationFiles(files=[str(tmp_path / "a.conllu")], token_column=2)], 1000))
    assert [text for _, text in found] == [
        "a line",
        "another",
        "premise",
        "hypothesis",
        "0",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "A house",
        "B",
    ]
    assert found[-1][0] == str(tmp_path / "a.conllu")
    with pytest.raises(UserError, match=r"decontaminate: .*a\.conllu has no known format"):
        list(evaluation_texts([str(tmp_path / "a.conllu")], 1000))
    with pytest.raises(UserError, match=r"a\.conllu, line 2 has 3 columns and no column 4"):
        list(evaluation_texts([EvaluationFiles(files=[str(tmp_path / "a.conllu")], token_column=4)], 1000))
    (tmp_path / "a.json").write_text('{"data": [\n {"context": }]}')
    with pytest.raises(UserError, match=r"a\.json, line 2, column \d+ is not JSON"):
        list(evaluation_texts([str(tmp_path / "a.json")], 1000))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three bytes changed, inserted, or everything after a place cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(3):
            case 0:
                data[place : place + 1] = rng.randbytes(1)
            case 1:
                data[place:place] = rng.randbytes(3)
            case _:
                del data[max(1, place) :]
    return bytes(data)


@pytest.mark.parametrize(
    "name", ["a.tsv", "a.jsonl", "a.parquet", "a.po", "a.mo", "a.tmx", "a.tsv.gz", "a.tsv.xz", "a.tsv.zst"]
)
def test_damage_ends_in_pairs_or_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        parquet(path, en=["house", "tree", "water"] * 20, de=["Haus", "Baum", "Wasser"] * 20)
    elif name in ("a.po", "a.mo"):
        catalogue(path)
    elif name == "a.tmx":
        path.write_text(tmx("".join(unit(en=f"house {number}", de="Haus") for number in range(9))))
    else:
        plain = b'{"en": "house", "de": "Haus"}\n' * 9 if name == "a.jsonl" else b"house\tHaus\n" * 99
        pack = {
            ".gz": gzip.compress,
            ".xz": lzma.compress,
            ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
        }
        path.write_bytes(pack.get(path.suffix, bytes)(plain))
    content, rng = path.read_bytes(), random.Random(4)
    assert list(readers.pairs([path], READING, ("en", "de")))
    refused: list[str] = []
    for _ in range(60):
        path.write_bytes(damaged(content, rng))
        try:
            list(readers.pairs([path], READING, ("en", "de")))
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(str(path) in sentence for sentence in refused)
