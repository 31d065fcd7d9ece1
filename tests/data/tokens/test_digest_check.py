"""A store that has changed since it was written is noticed before training or beside it, whichever rank reads the block."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens import digest_check, manifest
from dist_metaxlm.data.tokens.digest_check import DigestCheck
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run.prepared_data import open_data

BLOCK = 64


@pytest.fixture
def store(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a store, with small blocks, so that each file has many."""
    place = Path(shutil.copytree(Path(load_recipe(tiny_recipe).data.directory) / "store", tmp_path / "store"))
    monkeypatch.setattr(manifest, "BLOCK", BLOCK)
    describe(place)
    return place


def describe(store: Path) -> None:
    content = json.loads((store / manifest.NAME).read_text(encoding="utf-8"))
    manifest.write(store, {key: value for key, value in content.items() if key not in ("format", "files")})


def checks(store: Path, parts: int) -> list[DigestCheck]:
    every = [DigestCheck(store, TokenStore.open(store).vocab_size, part, parts) for part in range(parts)]
    for check in every:
        check.begin()
    return every


def refuse(every: list[DigestCheck]) -> str:
    """The sentence of all ranks; empty if none is refused."""
    fault, sentences = max(check._fault for check in every), set()
    for check in every:
        try:
            check.refuse(lambda own: max(own, fault))
            sentences.add("")
        except UserError as error:
            sentences.add(str(error))
    (sentence,) = sentences
    return sentence


def change(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("at_once", [0, 1 << 30])
@pytest.mark.parametrize("name", ["en.bin", "en-de.idx"])
def test_any_changed_byte_is_named(
    name: str, at_once: int, parts: int, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_check, "AT_ONCE", at_once)
    monkeypatch.setattr(digest_check, "PAUSE", 0.0)
    intact = checks(store, parts)
    for check in intact:
        check.wait()
    assert refuse(intact) == ""
    position = (store / name).stat().st_size - 3
    change(store / name, position)
    damaged = checks(store, parts)
    for check in damaged:
        check.wait()
    first = position // BLOCK * BLOCK
    last = min(first + BLOCK, (store / name).stat().st_size) - 1
    assert f"{store / name} is damaged between bytes {first} and {last}: the checksum" in refuse(damaged)


def test_zeros_are_noticed_before_training(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_check, "AT_ONCE", 1000)
    (store / "en.bin").write_bytes(bytes((store / "en.bin").stat().st_size))
    (check,) = checks(store, 1)
    assert "en.bin is damaged between bytes 0 and 63" in refuse([check])
    assert check._thread is None


def test_ids_beyond_the_vocabulary_are_noticed_though_the_checksums_fit(store: Path) -> None:
    tokens = np.fromfile(store / "de.bin", np.uint16)
    tokens[5] = TokenStore.open(store).vocab_size
    tokens.tofile(store / "de.bin")
    describe(store)
    assert "has tokens between bytes 0 and 63 that are not in the vocabulary of 380" in refuse(checks(store, 1))


def test_an_end_stops_the_thread(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_check, "AT_ONCE", 0)
    monkeypatch.setattr(digest_check, "PAUSE", 1e9)
    (check,) = checks(store, 1)
    check.end()
    assert check._thread is not None
    assert not check._thread.is_alive()


def test_a_model_with_fewer_ids_than_the_data_is_refused(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"have 380 token ids and model\.vocab_size is 379; set model\.vocab_size to 380"):
        open_data(load_recipe(tiny_recipe, ["model.vocab_size=379"]), "meta")


def test_a_damaged_tokenizer_is_refused_or_has_another_digest(tiny_recipe: Path) -> None:
    path = Path(load_recipe(tiny_recipe).data.directory) / "tokenizer.model"
    content, rng = path.read_bytes(), random.Random(3)
    hashes = {Tokenizer(content, path).hash}
    variants = [b"", bytes(len(content)), *(content[: rng.randrange(len(content))] for _ in range(30))]
    for _ in range(60):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        variants.append(bytes(changed))
    for variant in variants:
        try:
            digest = Tokenizer(variant, path).hash
        except UserError:
            continue
        assert digest not in hashes
