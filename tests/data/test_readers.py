"""Readers: documents and pairs from every format and packing, and one clear sentence for each kind of bad file."""

from __future__ import annotations

import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import polib
import pyarrow
import pyarrow.parquet
import pytest

from dist_metaxlm.data import readers, readers_files
from dist_metaxlm.data.readers_evaluation import evaluation_texts
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.data import EvaluationFiles, ReadingConfig

READING = ReadingConfig()
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".xz": lzma.compress, ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True)}


def parquet(path: Path, **columns: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def catalogue(path: Path) -> Path:
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    po += [polib.POEntry(msgid="Delete <b>this</b> page", msgstr="Diese Seite löschen", msgctxt="button"),
           polib.POEntry(msgid="Not done", msgstr=""), polib.POEntry(msgid="Unsure", msgstr="Unsicher", flags=["fuzzy"]),
           polib.POEntry(msgid="%d page", msgid_plural="%d pages", msgstr_plural={0: "%d Seite", 1: "%d Seiten"})]
    (po.save if path.suffix == ".po" else po.save_as_mofile)(str(path))
    return path


def test_blank_lines_and_file_ends_end_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n two \n\n\n\nthree\u2028still three\n".encode())
    (tmp_path / "b.txt").write_text("four", encoding="utf-8")
    found = list(readers.documents([tmp_path / "a.txt", tmp_path / "b.txt"]))
    assert found == [["one", "two"], ["three\u2028still three"], ["four"]]


def test_a_file_without_blank_lines_is_cut_at_a_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "DOCUMENT_BYTES", 10)
    (tmp_path / "a.txt").write_text("12345\n67890\nabc\n" * 2, encoding="utf-8")
    found = list(readers.documents([tmp_path / "a.txt"]))
    assert found == [["12345", "67890"], ["abc", "12345", "67890"], ["abc"]]


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_read_like_plain_ones(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.tsv{suffix}"
    packed = PACKERS[suffix]
    # Two members one after the other, as `cat a.gz b.gz` makes them.
    path.write_bytes(packed(b"a house\tein Haus\n\n") + packed(b" \t leer \n"))
    assert list(readers.pairs([path])) == [("a house", "ein Haus"), ("", "leer")]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_cut_off_archive_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.txt{suffix}"
    packed = PACKERS[suffix](b"".join(b"line %d of some text\n" % number for number in range(5000)))
    path.write_bytes(packed[:int(kept * len(packed))])
    with pytest.raises(UserError, match=f"a.txt{suffix} is not a whole {suffix} file"):
        list(readers.documents([path]))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_that_is_not_compressed_at_all_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("plain text under a wrong name\n" * 9)
    with pytest.raises(UserError, match=f"is not a whole {suffix} file"):
        list(readers.documents([path]))


def test_bytes_that_are_not_utf8_are_named_by_file_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"first\nsecond\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt, line 3, byte 4 \(0xE9\) is not UTF-8"):
        list(readers.documents([path]))


def test_nul_bytes_are_refused_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nab\0cd\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "ab\\u0000cd"}\n{"text": "\\ud800"}\n')
    with pytest.raises(UserError, match=r"a\.txt, line 2, byte 3 is a NUL byte"):
        list(readers.documents([tmp_path / "a.txt"]))
    with pytest.raises(UserError, match=r"a\.jsonl, line 2, field 'text', character 3 is U\+0000"):
        list(readers.documents([tmp_path / "a.jsonl"], READING))


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.jsonl", "a.txt.gz"])
def test_an_endless_line_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b"short\n" + b"x" * 60_000_000, compresslevel=1))
    else:
        with path.open("wb") as file:
            file.write(b'{"text": "short"}\n')
            file.seek(1 << 30)  # a hole: a gigabyte without a line break that takes no room on the disk
            file.write(b"\n")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"line 2 has more than 1000000 characters; .* data\.reading\.max_line_characters"):
        list(readers.documents([path], ReadingConfig(max_line_characters=1_000_000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


def test_the_line_limit_counts_characters_not_bytes(tmp_path: Path) -> None:
    reading = ReadingConfig(max_line_characters=1000)
    (tmp_path / "a.txt").write_text("語" * 1000 + "\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("語" * 1001 + "\n", encoding="utf-8")
    assert len(next(readers.documents([tmp_path / "a.txt"], reading))[0]) == 1000
    with pytest.raises(UserError, match="more than 1000 characters"):
        list(readers.documents([tmp_path / "b.txt"], reading))


def test_missing_empty_and_blank_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"data\.text\.en: '.*none\*\.txt' names no file"):
        readers.expand([str(tmp_path / "none*.txt")], "data.text.en")
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        readers.expand([str(tmp_path / "empty.txt")], "data.text.en")
    with pytest.raises(UserError, match=r"blank\.txt holds no text"):
        list(readers.documents([tmp_path / "blank.txt"]))


def test_globs_are_sorted_and_name_a_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("x\n")
    found = readers.expand([str(tmp_path / "b.txt"), str(tmp_path / "*.txt")], "data.text.en")
    assert [Path(path).name for path in found] == ["b.txt", "a.txt"]


def test_urls_and_globs_of_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/b.txt": b"two\n", "/corpus/a.txt.gz": gzip.compress(b"one\n"), "/corpus/empty.txt": b""})
    found = readers.expand(["memory://corpus/[ab].*"], "data.text.en")
    assert found == ["memory:///corpus/a.txt.gz", "memory:///corpus/b.txt"]
    assert list(readers.documents(found)) == [["one"], ["two"]]
    with pytest.raises(UserError, match=r"memory:///corpus/empty\.txt is empty"):
        readers.expand(["memory://corpus/e*.txt"], "data.text.en")
    with pytest.raises(UserError, match=r"'memory://corpus/none\.txt' names no file"):
        readers.expand(["memory://corpus/none.txt"], "data.text.en")
    with pytest.raises(UserError, match=r"data\.text\.en: 'nosuch://a\.txt' cannot be read"):
        readers.expand(["nosuch://a.txt"], "data.text.en")


def test_secrets_in_a_url_are_not_shown() -> None:
    assert readers_files.shown("ftp://me:secret@host/a.txt") == "ftp://host/a.txt"


def test_a_line_that_is_no_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text("a\tb\nonly one\n")
    with pytest.raises(UserError, match=r"p\.tsv, line 2 has 1 tab-separated columns"):
        list(readers.pairs([path]))
    with pytest.raises(UserError, match=r"p\.tsv, line 1 has 2 .* no column 3; .* data\.reading\.pair_columns"):
        list(readers.pairs([path], ReadingConfig(pair_columns=(1, 3))))


def test_columns_of_a_tsv_file_are_chosen_by_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text("id 1\ta\tb\tc\nid 2\td\te\n")
    assert list(readers.pairs([path], ReadingConfig(pair_columns=(3, 2)))) == [("b", "a"), ("e", "d")]
    assert list(readers.documents([path], ReadingConfig(text_column=2))) == [["a"], ["d"]]
    with pytest.raises(UserError, match=r"line 2 has 3 tab-separated columns and no column 4"):
        list(readers.documents([path], ReadingConfig(text_column=4)))


def test_a_json_line_is_a_document_of_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"body": "one\n\n two \r\n", "id": 1}, {"body": None}, {"body": "three\u2028\tstill"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = list(readers.documents([path], ReadingConfig(text_field="body")))
    assert found == [["one", "two"], ["three\u2028\tstill"]]
    with pytest.raises(UserError, match=r"line 1 has no field 'text'; there is 'body', 'id': .*data\.reading\.text_field"):
        list(readers.documents([path], READING))


@pytest.mark.parametrize(("line", "said"), [
    ('{"text": "x"', r"line 2, column \d+ is not JSON"), ('["x"]', "line 2 is not a JSON object"),
    ('{"text": 7}', "line 2, field 'text' is not text but int"), ("[" * 100_000, "line 2 has a number or a nesting"),
    ('{"text": ' + "9" * 5000 + "}", "line 2 has a number or a nesting")])
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
        ("a b", "c"), ("d", "e f"), ("g", "j"), ("h", ""), ("i", "l"), ("m", "n")]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1 has no field 'fr'; .* language codes"):
        list(readers.pairs(files, READING, ("en", "fr")))
    with pytest.raises(UserError, match=r"a\.parquet, header has no field 'fr'"):
        list(readers.pairs(files[1:], READING, ("en", "fr")))


def test_parquet_documents_and_damaged_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["one\ntwo", None, "three"], url=["u", "v", "w"])
    assert list(readers.documents([path], READING)) == [["one", "two"], ["three"]]
    with pytest.raises(UserError, match=r"a\.parquet, header has no field 'body'; there is 'text', 'url'"):
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
        sorted(translation for _, translation in expected)]
    path.write_bytes(b'msgid "open\nbroken\n' if suffix == ".po" else path.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"a\{suffix} is not a gettext catalogue"):
        list(readers.pairs([path], READING, ("en", "de")))


def tmx(body: str, doctype: str = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">') -> str:
    return f'<?xml version="1.0"?>\n{doctype}\n<tmx version="1.4"><header/><body>{body}</body></tmx>'


def unit(**sides: str) -> str:
    return "<tu>" + "".join(f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>'
                            for code, text in sides.items()) + "</tu>"


def test_tmx_units_by_language_without_markup(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    path.write_text(tmx(unit(en_US="a <bpt i='1'>&lt;b></bpt>big<ept i='1'>&lt;/b></ept> <hi>house</hi>", fr="une\nmaison")
                        + unit(en="no French") + unit(EN="b &amp; c", fr_CA="d", fr="e")), encoding="utf-8")
    assert list(readers.pairs([path], READING, ("en", "fr"))) == [("a big house", "une maison"), ("b & c", "e")]
    with pytest.raises(UserError, match=r"a\.tmx holds no pairs of en and sw"):
        list(readers.pairs([path], READING, ("en", "sw")))


@pytest.mark.parametrize("doctype", [
    '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>', '<!DOCTYPE tmx [<!ENTITY b SYSTEM "file:///etc/passwd">]>'])
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
    with pytest.raises(UserError, match=r"a\.en ends after line 3 and .*a\.fr\.gz goes on"):
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
    assert [text for _, text in found] == ["a line", "another", "premise", "hypothesis", "0", "one", "two", "three", "four",
                                           "five", "six", "seven", "A house", "B"]
    assert found[-1][0] == str(tmp_path / "a.conllu")
    with pytest.raises(UserError, match=r"decontaminate: .*a\.conllu has no known format"):
        list(evaluation_texts([str(tmp_path / "a.conllu")], 1000))
    with pytest.raises(UserError, match=r"a\.conllu, line 2 has 3 columns and no column 4"):
        list(evaluation_texts([EvaluationFiles(files=[str(tmp_path / "a.conllu")], token_column=4)], 1000))
    (tmp_path / "a.json").write_text('{"data": [\n {"context": }]}')
    with pytest.raises(UserError, match=r"a\.json, line 2, column \d+ is not JSON"):
        list(evaluation_texts([str(tmp_path / "a.json")], 1000))
