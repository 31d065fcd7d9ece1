"""Readers: documents and pairs from plain and compressed files, and one clear sentence for each kind of bad file."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from dist_metaxlm.data import readers
from dist_metaxlm.errors import UserError


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


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files_read_like_plain_ones(tmp_path: Path, suffix: str, opener) -> None:
    path = tmp_path / f"a.tsv{suffix}"
    with opener(path, "wb") as file:
        file.write(b"a house\tein Haus\n\n \t leer \n")
    assert list(readers.pairs([path])) == [("a house", "ein Haus"), ("", "leer")]


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_cut_off_archive_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    packed = (gzip if suffix == ".gz" else lzma).compress(b"some text\n" * 1000)
    path.write_bytes(packed[:len(packed) // 2])
    with pytest.raises(UserError, match=f"a.txt{suffix} is not a whole {suffix} file"):
        list(readers.documents([path]))


def test_bytes_that_are_not_utf8_are_named_by_file_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"first\nsecond\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt, line 3, byte 4 \(0xE9\) is not UTF-8"):
        list(readers.documents([path]))


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
    assert [path.name for path in found] == ["b.txt", "a.txt"]


def test_a_line_that_is_no_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text("a\tb\nonly one\n")
    with pytest.raises(UserError, match=r"p\.tsv, line 2 has 1 tab-separated columns"):
        list(readers.pairs([path]))
