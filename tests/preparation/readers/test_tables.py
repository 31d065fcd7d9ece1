"""CSV, JSON arrays, Arrow streams, WebDataset archives, bz2, and `.txt` files with a document a line."""

from __future__ import annotations

import bz2
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.ipc
import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.files import opened
from dist_metaxlm.preparation.readers.problems import Problems
from dist_metaxlm.recipe.data import ReadingConfig

READING = ReadingConfig()


def documents(path: Path, reading: ReadingConfig = READING) -> list[list[str]]:
    return list(readers.documents([path], reading))


def pairs(path: Path) -> list[tuple[str, str]]:
    return list(readers.pairs([path], READING, ("en", "de")))


def test_csv_has_quotes_line_breaks_and_other_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffid,text\r\n1,"one, ""two""\nthree"\r\n2,four\r\n', encoding="utf-8")
    assert documents(path) == [['one, "two"', "three"], ["four"]]
    path.write_text("en;de\nthe river;der Fluss\n", encoding="utf-8")
    assert pairs(path) == [("the river", "der Fluss")]
    with pytest.raises(UserError, match=r"line 2 has no field 'text'; its fields are 'en', 'de'"):
        documents(path)


def test_damaged_csv_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,a,b\n2,c\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2 has 3 cells and the header 2; .* quote cells that contain ','"):
        documents(path)
    report = Problems()
    assert list(readers.documents([path], READING, report)) == [["c"]]
    assert report.records == 1
    path.write_text('id,text\n1,"never closed\n2,c\n')
    with pytest.raises(UserError, match=r"is not CSV .*correct the quotes"):
        documents(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_element_by_element(
    tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_metaxlm.preparation.readers.tables._CHUNK", 7)
    path = tmp_path / "a.json"
    rows = [{"text": f"größe {number}\nnext ]}}", "n": [number]} for number in range(50)]
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert documents(path) == [[f"größe {number}", "next ]}"] for number in range(50)]
    path.write_text(json.dumps([{"en": "a", "de": "b"}]))
    assert pairs(path) == [("a", "b")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a"}, {"text": ', "element 2 is not JSON"),
        ('[{"text": "a"}', "element 2 is not JSON"),
        ('[{"text": "a"}, 7]', "element 2 is not a JSON object with fields but int"),
        ('[{"text": 7}]', "element 1, field 'text' is not text but int"),
        ('[{"text": "' + "x" * 9000 + '"}]', "element 1 has more than 1000 characters"),
    ],
)
def test_damaged_arrays_are_named_by_element(
    tmp_path: Path, content: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_metaxlm.preparation.readers.tables._CHUNK", 512)
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        documents(path, ReadingConfig(max_line_characters=1000))


def test_arrow_streams(tmp_path: Path) -> None:
    path = tmp_path / "data-00000-of-00001.arrow"
    table = pyarrow.table({"text": ["one\ntwo", None], "en": ["a", "c"], "de": ["b", "d"]})
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    assert documents(path) == [["one", "two"]]
    assert pairs(path) == [("a", "b"), ("c", "d")]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"text", b"te\xfft"))
    with pytest.raises(UserError, match="is not a whole Arrow stream"):
        documents(path)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="is not a whole Arrow stream"):
        documents(path)


def test_webdataset_archives(tmp_path: Path) -> None:
    path = tmp_path / "shard-000.tar"
    members = {"1.txt": b"one\ntwo", "1.jpg": b"\xff", "2.json": b'{"text": "three"}', "3.txt": b"\xff"}
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    report = Problems()
    assert list(readers.documents([path], READING, report)) == [["one", "two"], ["three"]]
    assert report.records == 1
    assert "member 3.txt, byte 1 (0xFF) is not UTF-8" in report.quoted[0]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="is not a whole tar archive"):
        documents(path)


def test_a_hub_that_is_not_reached_is_one_sentence() -> None:
    code = (
        "from dist_metaxlm.preparation.readers.paths import expand\n"
        "from dist_metaxlm.errors import UserError\n"
        "try:\n    expand(['hf://datasets/owner/name/data/*.parquet'], 'data.text.en')\n"
        "except UserError as error:\n    print(error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}  # read when the client is imported
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.startswith("data.text.en: 'hf://datasets/owner/name/data/*.parquet' cannot be read ("), done.stderr


def test_an_error_of_a_client_while_reading_is_one_sentence_and_others_are_not_hidden() -> None:
    class NetworkError(Exception):
        pass

    NetworkError.__module__ = "httpx._exceptions"
    fsspec.filesystem("memory").pipe("/a.txt", b"one")
    with pytest.raises(UserError, match=r"memory://a\.txt cannot be read to its end \(gone\)"), opened("memory://a.txt"):
        raise NetworkError("gone")
    with pytest.raises(KeyError), opened("memory://a.txt"):
        raise KeyError("a mistake of ours")


def test_bz2(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.bz2"
    whole = bz2.compress(b"one\n\ntwo\n" * 100)
    path.write_bytes(whole)
    assert len(documents(path)) == 101
    for damaged in (whole[:-8], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is not a whole \.bz2 file"):
            documents(path)


def test_a_document_a_line_is_never_silently_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a line\n" * 100)
    assert len(documents(path)) == 1
    assert "has 100 lines and no blank line, so it is read as one document" in capsys.readouterr().err
    assert len(documents(path, ReadingConfig(txt_lines="documents"))) == 100
    path.write_text("a line\n" * 99 + "\nanother\n")
    assert len(documents(path)) == 2
    assert capsys.readouterr().err == ""
