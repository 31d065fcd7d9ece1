"""Shards cut a corpus file without losing, doubling or tearing anything, wherever the cuts fall."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.store import shards
from dist_metaxlm.preparation.store.shards import documents, pairs, plan, span

QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LETTERS = st.characters(codec="utf-8", exclude_characters="\0\n\r\ufeff\t", exclude_categories=("Cs",))
LINES = st.lists(st.text(LETTERS, max_size=9), min_size=1, max_size=40)


@QUIET
@given(lines=LINES, size=st.integers(1, 40), end=st.sampled_from(["", "\n", "\n\n"]))
def test_text_shards_hold_the_documents_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], size: int, end: str
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", size)
    file = tmp_path / "en.txt"
    file.write_bytes(("a\n" + "\n".join(lines) + end).encode())
    found = plan({"en": [file]}, {})
    assert [document for shard in found for document in documents(shard)] == list(readers.documents([file]))
    spans = [span(shard) for shard in found]
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == file.stat().st_size


@QUIET
@given(lines=LINES, size=st.integers(1, 40))
def test_pair_shards_hold_the_pairs_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], size: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", size)
    file = tmp_path / "en-de.tsv"
    file.write_bytes("".join(f"{line}\t{line[::-1]}\n" for line in ["a", *lines]).encode())
    assert [pair for shard in plan({}, {"en-de": [file]}) for pair in pairs(shard)] == list(readers.pairs([file]))


def test_text_without_blank_lines_is_cut_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 500)
    monkeypatch.setattr(readers, "DOCUMENT_BYTES", 200)
    lines = [f"paragraph number {n}" for n in range(200)]
    (tmp_path / "en.txt").write_text("\n".join(lines))
    found = [list(documents(shard)) for shard in plan({"en": [tmp_path / "en.txt"]}, {})]
    assert len(found) > 5
    assert [line for shard in found for document in shard for line in document] == lines
    assert max(len(document) for shard in found for document in shard) <= 15


def test_a_compressed_file_is_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 10)
    with lzma.open(tmp_path / "en.txt.xz", "wt") as file:
        file.write("one\n\ntwo\n" * 50)
    found = plan({"en": [tmp_path / "en.txt.xz"]}, {})
    assert len(found) == 1
    assert len(list(documents(found[0]))) == 51


def test_errors_name_the_line_of_the_file_not_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    (tmp_path / "en.txt").write_bytes(b"a line\n\n" * 100 + b"ok \xff bad\n" + b"more\n\n" * 50)
    with pytest.raises(UserError, match=r"en\.txt, line 201, byte 4 \(0xFF\) is not UTF-8"):
        [list(documents(shard)) for shard in plan({"en": [tmp_path / "en.txt"]}, {})]
    (tmp_path / "en-de.tsv").write_text("a\tb\n" * 100 + "a b c\n" + "a\tb\n" * 50)
    with pytest.raises(UserError, match=r"en-de\.tsv, line 101 has 1 tab-separated column "):
        [list(pairs(shard)) for shard in plan({}, {"en-de": [tmp_path / "en-de.tsv"]})]


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    monkeypatch.setattr(shards, "LINE_BYTES", 1000)
    (tmp_path / "en.txt").write_text("a\n\n" + "x" * 5000)
    with pytest.raises(UserError, match=r"en\.txt has a line of more than .* at byte"):
        [list(documents(shard)) for shard in plan({"en": [tmp_path / "en.txt"]}, {})]


def test_large_corpora_have_larger_shards_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 10)
    monkeypatch.setattr(shards, "MOST", 20)
    (tmp_path / "en.txt").write_text("word\n\n" * 1000)
    assert len(plan({"en": [tmp_path / "en.txt"]}, {})) == 20
