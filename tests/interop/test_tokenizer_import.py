"""XLM-R's SentencePiece file in our order of ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tokenizer_import import import_tokenizer
from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE
from dist_metaxlm.recipe.schema import ModelConfig

TEXTS = ["the cat sat on the mat", "der Hund lief durch den Garten",
         "кошка сидит на столе", "le chat dort sur la chaise verte", "a 龘 b"]


def config(vocab_size: int) -> ModelConfig:
    return ModelConfig(layers=1, hidden=8, heads=2, ffn=16, vocab_size=vocab_size, max_positions=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in SentencePiece's default order, as XLM-R's is: <unk> <s> </s>, no padding piece."""
    place = tmp_path_factory.mktemp("xlmr")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS[:4] * 20), model_prefix=str(place / "m"),
                                             vocab_size=350, hard_vocab_limit=False, byte_fallback=True, minloglevel=2)
    (place / "m.model").rename(place / SENTENCEPIECE_FILE)
    return place


def test_ids_are_those_of_xlmr(folder: Path, tmp_path: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
    model = import_tokenizer(folder, config(original.get_piece_size() + 2))
    assert model is not None
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = Tokenizer.load(tmp_path / "tokenizer.model")
    for text in TEXTS:
        # fairseq's rule: piece i is id i + 1, the unknown piece (0 in the file) is id 3.
        assert ours.encode(text) == [3 if i == 0 else i + 1 for i in original.encode(text)]
    assert ours.pieces()[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert ours.decode(ours.encode(TEXTS[0])) == TEXTS[0]


def test_our_own_export_comes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
    size = original.get_piece_size() + 2
    once = import_tokenizer(folder, config(size))
    assert once is not None
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(once)
    assert import_tokenizer(tmp_path, config(size)) == once


def test_a_folder_without_one_and_bad_files(folder: Path, tmp_path: Path) -> None:
    assert import_tokenizer(tmp_path, config(400)) is None
    with pytest.raises(UserError, match="the model has vocab_size 999"):
        import_tokenizer(folder, config(999))
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(b"\xff\xff not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        import_tokenizer(tmp_path, config(400))
