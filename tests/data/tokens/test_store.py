"""The token store: what is written is read back, Megatron reads it too, and every kind of damage is named."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from dist_metaxlm.data.special_tokens import BOS, EOS
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.data.tokens import store as store_module
from dist_metaxlm.data.tokens.store import Corpus, TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.store.writer import token_dtype, write_bitext, write_index, write_text
from dist_metaxlm.preparation.tokenizing.training import TextSample, train_tokenizer
from dist_metaxlm.recipe.schema import TokenizerConfig

TEXTS = [f"Text number {n} speaks of {n * n} things and of {'more ' * (n % 7)}words" for n in range(600)]
PAIRS = [(f"a house number {n}", f"das Haus Nummer {n}") for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer({"en": TextSample([*TEXTS, *(side for pair in PAIRS for side in pair)])}, TokenizerConfig(), 340, path)
    return Tokenizer.load(path)


@pytest.fixture
def store(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    text = write_text(folder / "en", TEXTS, tokenizer)
    bitext = write_bitext(folder / "en-de", PAIRS, tokenizer, 64, {})
    manifest.write(
        folder,
        {
            "tokenizer_hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "text": {"en": text},
            "bitext": {"en-de": bitext},
        },
    )
    return folder


def test_documents_come_back_with_their_special_tokens(store: Path, tokenizer: Tokenizer) -> None:
    opened = TokenStore.open(store)
    assert (opened.languages, opened.pairs, opened.vocab_size) == (["en"], ["en-de"], tokenizer.vocab_size)
    corpus = opened.text("en")
    assert len(corpus) == len(TEXTS)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.document_starts.dtype == np.int64
    for number in (0, 17, 599):
        first, last = corpus.document_starts[number : number + 2]
        assert corpus.tokens[first:last].tolist() == [BOS, *tokenizer.encode(TEXTS[number]), EOS]
    about = opened.manifest["text"]["en"]
    assert about == {"documents": 600, "tokens": corpus.tokens.size, "bytes": sum(len(text.encode()) for text in TEXTS)}


def test_pairs_come_back_as_two_sequences(store: Path, tokenizer: Tokenizer) -> None:
    corpus = TokenStore.open(store).bitext("en-de")
    starts, seconds = corpus.document_starts, corpus.second_starts
    assert len(seconds) == len(PAIRS) == len(corpus)
    tokens = corpus.tokens[starts[5] : starts[6]].tolist()
    left, right = map(tokenizer.encode, PAIRS[5])
    assert tokens == [BOS, *left, EOS, *right, EOS]
    assert seconds[5] - starts[5] == len(left) + 2


def test_megatron_reads_what_we_write_and_we_read_what_it_writes(store: Path, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    theirs = IndexedDataset(str(store / "en-de"))
    ours = Corpus(store / "en-de", 2)
    assert len(theirs) == 2 * len(PAIRS)
    assert theirs[10].tolist() == ours.tokens[ours.document_starts[5] : ours.second_starts[5]].tolist()
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.int32)
    for lengths in ([3], [2, 2], [1]):
        builder.add_document(np.arange(sum(lengths)), lengths)
    builder.finalize(str(tmp_path / "m.idx"))
    assert Corpus(tmp_path / "m").document_starts.tolist() == [0, 3, 7, 8]
    with pytest.raises(UserError, match="a document is not a pair"):
        Corpus(tmp_path / "m", 2)


def test_long_pairs_and_empty_sides_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    short = ("a", "b")
    limit = len(tokenizer.encode("a")) + len(tokenizer.encode("b")) + 3
    dropped: dict[str, int] = {}
    counts = write_bitext(tmp_path / "p", [short, ("a a", "b"), ("", "b")], tokenizer, limit, dropped)
    assert (counts["pairs"], counts["bytes"]) == (1, 2)
    assert counts["tokens"] == limit
    assert dropped == {"pairs longer than max_pair_tokens": 1, "pairs with an empty side": 1}


def test_wide_vocabularies_take_int32() -> None:
    assert (token_dtype(65499), token_dtype(65500)) == (np.uint16, np.int32)


def test_an_unfinished_file_is_removed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def texts():
        yield "one"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "en", texts(), tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_missing_store_or_language_is_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prepared data"):
        TokenStore.open(tmp_path / "none")
    with pytest.raises(UserError, match="has no language 'fr'; it has en"):
        TokenStore.open(store).text("fr")


@pytest.mark.parametrize("name", ["en.bin", "en-de.idx"])
def test_cut_off_and_missing_files_are_named_on_opening(store: Path, name: str) -> None:
    whole = (store / name).read_bytes()
    (store / name).write_bytes(whole[:-2])
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes instead of {len(whole)}"):
        TokenStore.open(store)
    (store / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        TokenStore.open(store)


def test_a_flipped_bit_is_found_by_verify(store: Path) -> None:
    assert TokenStore.open(store).verify() == 4
    raw = bytearray((store / "en.bin").read_bytes())
    raw[1001] ^= 4
    (store / "en.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"en\.bin is damaged between bytes 0 and \d+: the checksum"):
        TokenStore.open(store).verify()


def test_verify_names_the_bytes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "BLOCK", 1000)
    content = json.loads((store / "manifest.json").read_text())
    del content["files"], content["format"]
    manifest.write(store, content)
    assert TokenStore.open(store).verify() == 4
    raw = bytearray((store / "en.bin").read_bytes())
    raw[2345] ^= 1
    (store / "en.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"en\.bin is damaged between bytes 2000 and 2999"):
        TokenStore.open(store).verify()


def test_blocks_are_hashed_alike_in_any_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "BLOCK", 10)
    for size in (0, 1, 9, 10, 11, 20, 35):
        data = bytes(range(size))
        (tmp_path / "f").write_bytes(data)
        hasher = manifest.BlockHasher()
        for start in range(0, size, 7):
            hasher.update(data[start : start + 7])
        known = {"size": size, "sha256": [hashlib.sha256(data[at : at + 10]).hexdigest() for at in range(0, size, 10)]}
        assert hasher.description() == manifest.describe_file(tmp_path / "f") == known


@pytest.mark.parametrize("name", ["../en.bin", "/etc/passwd", "a/../../en.bin", "", "a\\b"])
def test_a_manifest_does_not_reach_outside_its_folder(store: Path, name: str) -> None:
    content = json.loads((store / "manifest.json").read_text())
    content["files"][name] = content["files"]["en.bin"]
    (store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json names .* which is no file inside"):
        TokenStore.open(store)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"files": ', '"files": {}, "files": ', "names 'files' twice"),
        ('"en.idx": ', '"en.bin": ', "names 'en.bin' twice"),
        ('"text": {', '"text": {"../en": {}, ', "'../en' in its text is no language code"),
        ('"text": {', '"text": {"fr": {}, ', "no checksums for fr"),
        ('"size": ', '"size": -', "its entry for .* is not a size"),
        ('"vocab_size": ', '"vocabulary": ', "no tokenizer_hash or vocab_size"),
        ('"bitext": ', '"bitext": [], "b": ', "no table"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_named(store: Path, old: str, new: str, said: str) -> None:
    body = (store / "manifest.json").read_text()
    assert old in body
    (store / "manifest.json").write_text(body.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        TokenStore.open(store)


def test_ids_outside_the_vocabulary_are_found_by_verify(store: Path) -> None:
    raw = bytearray((store / "en.bin").read_bytes())
    raw[200:202] = struct.pack("<H", 60000)
    (store / "en.bin").write_bytes(raw)
    content = json.loads((store / "manifest.json").read_text())
    content["files"]["en.bin"] = manifest.describe_file(store / "en.bin")
    (store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"en\.bin has token 60000 at byte 200, which is not in the vocabulary of 340"):
        TokenStore.open(store).verify()


def test_an_empty_corpus_can_be_opened(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert write_text(tmp_path / "en", [], tokenizer) == {"documents": 0, "tokens": 0, "bytes": 0}
    empty = Corpus(tmp_path / "en")
    assert (len(empty), empty.tokens.size, empty.document_starts.tolist()) == (0, 0, [0])


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (0, b"X", "no Megatron index"),
        (9, struct.pack("<Q", 2), "of version 1"),
        (17, b"\x06", "token type 6"),
        (18, struct.pack("<Q", 10**12), "not as long as"),
        (34, struct.pack("<i", -5), "negative length"),
        (34, struct.pack("<i", 1), "pointers do not follow"),
        (34 + 4 * 600 + 8, struct.pack("<q", 0), "pointers do not follow"),
        (34 + 12 * 600, struct.pack("<q", 7), "do not cover"),
    ],
)
def test_an_index_that_contradicts_itself_is_named(store: Path, offset: int, value: bytes, said: str) -> None:
    raw = bytearray((store / "en.idx").read_bytes())
    raw[offset : offset + len(value)] = value
    (store / "en.idx").write_bytes(raw)
    with pytest.raises(UserError, match=rf"en\.idx is damaged: .*{said}"):
        TokenStore.open(store).text("en")


@pytest.mark.parametrize("place", range(3, 13))
@pytest.mark.parametrize("change", [-2, 1, 2**62, -(2**63)])
def test_a_wrong_pointer_is_found_wherever_the_parts_of_the_check_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, change: int
) -> None:
    monkeypatch.setattr(store_module, "_CHUNK", 4)
    (tmp_path / "a.bin").write_bytes(bytes(2 * 13 * 5))
    write_index(tmp_path / "a.idx", [np.full(13, 5, np.int32)], np.uint16, 1)
    assert Corpus(tmp_path / "a").document_starts.tolist() == list(range(0, 70, 5))
    raw = bytearray((tmp_path / "a.idx").read_bytes())
    at = 34 + 4 * 13 + 8 * place
    raw[at : at + 8] = struct.pack("<q", (10 * place + change + 2**63) % 2**64 - 2**63)
    (tmp_path / "a.idx").write_bytes(raw)
    with pytest.raises(UserError, match=r"pointers do not follow"):
        Corpus(tmp_path / "a")


def test_tokens_that_do_not_fit_the_index_are_named(store: Path) -> None:
    (store / "en.bin").write_bytes((store / "en.bin").read_bytes() + b"\0\0")
    with pytest.raises(UserError, match=r"en\.bin has \d+ bytes, but its index counts \d+"):
        Corpus(store / "en")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}'])
def test_a_damaged_or_newer_manifest_is_named(store: Path, content: str) -> None:
    (store / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json (is damaged|has format 99)"):
        TokenStore.open(store)
