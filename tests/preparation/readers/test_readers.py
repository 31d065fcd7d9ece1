"""Readers: lines, packings and places of files, and one clear sentence for each kind of bad file."""

from __future__ import annotations

import gzip
import lzma
import tracemalloc
import typing
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from fsspec.spec import AbstractBufferedFile

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers import files as readers_files
from dist_metaxlm.recipe.data import ReadingConfig

READING = ReadingConfig()
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


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
    path.write_bytes(packed[: int(kept * len(packed))])
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


class Web(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Files as fsspec's HTTP and S3 give them: streams of its own, whose addresses may have a query."""

    protocol = "https"
    FILES: typing.ClassVar = {"https://host/get.txt?download=1": b"one\ntwo\n", "https://host/d/a.TSV.gz?x=[1]": b"z"}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self.FILES:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.FILES[path]), "type": "file"}

    def unstrip_protocol(self, name: str) -> str:
        return name

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        class File(AbstractBufferedFile):  # type: ignore[misc]
            def _fetch_range(self, start: int, end: int) -> bytes:
                return Web.FILES[path][start:end]

        return File(self, path, mode, size=len(self.FILES[path]))


def test_an_address_may_end_in_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Web(), url))
    monkeypatch.setattr(fsspec, "open", lambda url, mode: Web().open(url, mode))
    found = readers.expand(list(Web.FILES), "data.text.en")
    assert found == list(Web.FILES)
    readers.check_formats(found, "text", "data.text.en")
    assert [readers_files.kind(place) for place in found] == [".txt", ".tsv"]
    assert list(readers.documents(found[:1])) == [["one", "two"]]
    assert readers_files.kind("s3://bucket/what?.txt") == ".txt"


def test_globs_inside_of_an_archive_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("en/b.txt", "two\n")
        archive.writestr("en/a.txt.gz", gzip.compress(b"one\n"))
    for chain in (f"zip://en/*::{tmp_path}/c.zip", f"simplecache::zip://en/*::file://{tmp_path}/c.zip"):
        found = readers.expand([chain], "data.text.en")
        assert found == [chain.replace("*", name) for name in ("a.txt.gz", "b.txt")]
        readers.check_formats(found, "text", "data.text.en")
        assert list(readers.documents(found)) == [["one"], ["two"]]
    odd = tmp_path / "a::b.txt"
    odd.write_text("three\n")
    assert list(readers.documents([odd])) == [["three"]]


def test_secrets_in_a_url_are_not_shown() -> None:
    assert readers_files.shown("ftp://me:secret@host/a.txt") == "ftp://host/a.txt"


def test_a_line_that_is_no_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text("a\tb\nonly one\n")
    with pytest.raises(UserError, match=r"p\.tsv, line 2 has 1 tab-separated column "):
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
