"""Fake English: the same sentences, cut at the same places, in ids that no English sentence has."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from dist_metaxlm.data.special_tokens import UNK
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.tokenizing.training import TextSample, train_tokenizer
from dist_metaxlm.recipe.schema import TokenizerConfig
from dist_metaxlm.study import fake_language
from dist_metaxlm.study.fake_language import fake

PIECES = 120


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    rng = random.Random(5)
    words = [
        "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randrange(1, 4))) for _ in range(200)
    ] + ["isn't"]
    return [" ".join(rng.choice(words) for _ in range(rng.randrange(2, 9))) for _ in range(400)]


@pytest.fixture(scope="module")
def tokenizer(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("fake") / "english.model"
    config = TokenizerConfig(byte_fallback=False, character_coverage=1.0)
    train_tokenizer({"en": TextSample(sentences)}, config, PIECES + UNK + 2, path)
    path.with_name("doubled.model").write_bytes(fake_language.doubled(path.read_bytes()))
    return Tokenizer.load(path.with_name("doubled.model"))


def test_every_id_is_shifted_by_the_number_of_pieces(tokenizer: Tokenizer, sentences: list[str]) -> None:
    assert tokenizer.vocab_size == 2 * PIECES + UNK + 2
    english, shifted = tokenizer.encode_batch(sentences), tokenizer.encode_batch([fake(text) for text in sentences])
    assert shifted == [[number + PIECES for number in ids] for ids in english]
    assert min(map(min, english)) > UNK
    assert max(map(max, english)) <= UNK + PIECES


def test_only_special_tokens_are_shared(tokenizer: Tokenizer, sentences: list[str]) -> None:
    assert np.flatnonzero(tokenizer.special).tolist() == [0, 1, 2, 3, 2 * PIECES + UNK + 1]
    pieces = tokenizer.pieces()
    assert len(set(pieces)) == len(pieces)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(sentences)] == sentences


def test_the_same_model_gives_the_same_bytes(tokenizer: Tokenizer) -> None:
    model = tokenizer.path.with_name("english.model").read_bytes()
    assert fake_language.doubled(model) == tokenizer.path.read_bytes()


def test_a_character_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="private plane"):
        fake("a \U0001f600")


def test_plain_sentences_are_whole_short_and_different(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(
        "One small house stands here. See https://example.org for it! One small house\tstands here.\n"
        "Return self.value, or None. We don't know well-made things, do we?\n\nToo short. No éclairs stand here now.\n",
        encoding="utf-8",
    )
    found = list(fake_language.plain_sentences([tmp_path / "text.txt"], 4, 10))
    assert found == ["one small house stands here", "we don't know well-made things, do we"]
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no text"):
        list(fake_language.plain_sentences([tmp_path / "empty.txt"], 4, 10))


@pytest.mark.parametrize("parallel", [True, False])
def test_the_halves_are_apart_without_parallel_text(tmp_path: Path, sentences: list[str], parallel: bool) -> None:
    distinct = list(dict.fromkeys(sentences))
    fake_language.write_corpus(tmp_path, distinct, 10, parallel)
    english, shifted = ((tmp_path / f"{name}.txt").read_text(encoding="utf-8").split("\n\n") for name in ("en", "fake"))
    common = {fake(text.strip()) for text in english} & {text.strip() for text in shifted}
    assert len(common) == (len(distinct) if parallel else 0)
    assert len(english) + len(shifted) == len(distinct) * (2 if parallel else 1)
    pairs = (tmp_path / "en-fake.tsv").read_text(encoding="utf-8").splitlines()
    assert [tuple(line.split("\t")) for line in pairs] == [(text, fake(text)) for text in distinct[:10]]
