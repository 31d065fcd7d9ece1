"""XLM-R's SentencePiece file in our order of ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tokenizer_import import TOKENIZER_JSON, import_tokenizer
from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE, export_tokenizer
from dist_metaxlm.recipe.schema import ModelConfig

TEXTS = [
    "the cat sat on the mat",
    "der Hund lief durch den Garten",
    "кошка сидит на столе",
    "le chat dort sur la chaise verte",
    "a 龘 b",
]


def config(vocab_size: int) -> ModelConfig:
    return ModelConfig(layers=1, hidden=8, heads=2, ffn=16, vocab_size=vocab_size, max_positions=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in SentencePiece's default order, as XLM-R's is: <unk> <s> </s>, no padding piece."""
    place = tmp_path_factory.mktemp("xlmr")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:4] * 20),
        model_prefix=str(place / "m"),
        vocab_size=350,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers 5 writes for a tokenizer of XLM-R's kind: tokenizer.json and no SentencePiece file."""
    from transformers import XLMRobertaTokenizer

    given, place = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("saved")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:4] * 20),
        model_prefix=str(given / "m"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString((given / "m.model").read_bytes())
    for number in range(300):  # a model has more than 300 pieces
        model.pieces.add(piece=f"▁#{number}", score=-20.0, type=1)
    (given / SENTENCEPIECE_FILE).write_bytes(model.SerializeToString())
    XLMRobertaTokenizer.from_pretrained(str(given), local_files_only=True).save_pretrained(str(place))
    assert not (place / SENTENCEPIECE_FILE).exists()
    return place


def vocabulary_size(folder: Path) -> int:
    return len(json.loads((folder / TOKENIZER_JSON).read_text())["model"]["vocab"])


def test_a_folder_of_transformers_5_gives_the_model_back(saved: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = import_tokenizer(saved, config(vocabulary_size(saved)))
    assert model is not None
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours, theirs = Tokenizer.load(tmp_path / "tokenizer.model"), AutoTokenizer.from_pretrained(str(saved))
    for text in TEXTS:
        assert [0, *ours.encode(text), 2] == theirs(text).input_ids
    assert ours.vocab_size == len(theirs)
    with pytest.raises(UserError, match=r"tokenizer\.json makes .* ids with <mask>, the model has vocab_size 301"):
        import_tokenizer(saved, config(301))
    export_tokenizer(tmp_path / "tokenizer.model", tmp_path / "again")
    again = AutoTokenizer.from_pretrained(str(tmp_path / "again"), local_files_only=True)
    assert [again(text).input_ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]


def test_our_export_comes_back_without_its_sentencepiece_file(folder: Path, tmp_path: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
    size = original.get_piece_size() + 2
    once = import_tokenizer(folder, config(size))
    assert once is not None
    (tmp_path / "m.model").write_bytes(once)
    export_tokenizer(tmp_path / "m.model", tmp_path / "out")
    (tmp_path / "out" / SENTENCEPIECE_FILE).unlink()
    again = import_tokenizer(tmp_path / "out", config(size))
    assert again is not None
    one, other = (sentencepiece.SentencePieceProcessor(model_proto=model) for model in (once, again))
    assert [one.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]  # bytes of the last one, too


def test_byte_level_tokenizers_are_left_out(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    ByteLevelBPETokenizer().save(str(tmp_path / TOKENIZER_JSON))
    assert import_tokenizer(tmp_path, config(400)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["model"]["vocab"].pop(), "is not XLM-R's kind"),
        (lambda content: content["model"]["vocab"].pop(1), "is not XLM-R's kind"),
        (lambda content: content.update(normalizer=1), "is not a tokenizer"),
        (lambda content: content["added_tokens"][0].pop("lstrip"), "is not a tokenizer"),
        (lambda content: content["normalizer"].update(precompiled_charsmap="?"), "is not a tokenizer"),
        (lambda content: content["model"]["vocab"].append(1), "is not a tokenizer"),
        (lambda content: content.update(normalizer={"type": "NFC"}), "is not XLM-R's kind"),
        (lambda content: content.update(pre_tokenizer=None), "gives other ids"),
        (lambda content: content["model"]["vocab"].insert(5, content["model"]["vocab"][6]), "is not a usable"),
    ],
)
def test_a_tokenizer_json_of_another_kind_or_damaged(change: Any, message: str, saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / TOKENIZER_JSON).read_text())
    change(content)
    (tmp_path / TOKENIZER_JSON).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        import_tokenizer(tmp_path, config(vocabulary_size(tmp_path)))


def test_a_tokenizer_json_without_normaliser(saved: Path, tmp_path: Path) -> None:
    """What `XLMRobertaTokenizer(vocab=...)` of transformers 5 saves."""
    from transformers import XLMRobertaTokenizer

    vocabulary = [(piece, score) for piece, score in json.loads((saved / TOKENIZER_JSON).read_text())["model"]["vocab"]]
    theirs = XLMRobertaTokenizer(vocab=vocabulary)
    theirs.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / TOKENIZER_JSON).read_text())["normalizer"] is None
    model = import_tokenizer(tmp_path, config(len(theirs)))
    assert model is not None
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = Tokenizer.load(tmp_path / "tokenizer.model")
    assert ours.normalisation == "identity"
    for text in (*TEXTS, "the  cat ½"):
        assert [0, *ours.encode(text), 2] == theirs(text).input_ids


def test_a_folder_without_one_and_bad_files(folder: Path, tmp_path: Path) -> None:
    assert import_tokenizer(tmp_path, config(400)) is None
    with pytest.raises(UserError, match="the model has vocab_size 301"):
        import_tokenizer(folder, config(301))
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(b"\xff\xff not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        import_tokenizer(tmp_path, config(400))
