"""`convert extend`: old rows stay byte for byte, new rows are means of their old pieces, and the result exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.extension import Extension, extend_import
from dist_metaxlm.interop.folders import export_folder, import_run, read_import
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import ModelConfig

OLD = ["the cat sat on the mat", "der Hund lief durch den Garten", "le chat dort sur la chaise", "кошка сидит на столе"]
NEW = ["ile ẹ̀kọ́ gíga wà ní ìlú", "nyumba kubwa iko mjini leo", "the cat sat", "ＡＢＣ ile ile gíga gíga"]
VOCABULARY = ("embedding.tokens.weight", "head.bias")


def train(lines: list[str], place: Path, rule: str = "nmt_nfkc", kind: str = "unigram") -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_prefix=str(place), vocab_size=350, hard_vocab_limit=False,
        byte_fallback=True, minloglevel=2, num_threads=1, seed_sentencepiece_size=2000, bos_id=0, pad_id=1,
        eos_id=2, unk_id=3, normalization_rule_name=rule, model_type=kind,
    )  # fmt: skip
    return place.with_suffix(".model")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an import of a random model in `imported`, and with `new.model`."""
    folder = tmp_path_factory.mktemp("extension")
    old = train(OLD, folder / "old")
    train(NEW, folder / "new", "identity")
    size = Tokenizer.load(old).vocab_size
    config = ModelConfig(layers=2, hidden=24, heads=3, ffn=40, vocab_size=size, max_positions=40)
    encoder = Encoder(config)
    weights = {name: torch.randn_like(tensor) for name, tensor in encoder.state_dict().items()}
    export_folder(weights, config, old, folder / "published")
    import_run(folder / "published", folder / "imported")
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> Extension:
    return extend_import(place / "imported", place / "new.model", place / "extended")


def test_old_rows_stay_and_new_rows_are_means(place: Path, done: Extension) -> None:
    _, before, _ = read_import(place / "imported")
    config, after, _ = read_import(place / "extended")
    old, new = Tokenizer.load(place / "old.model"), Tokenizer.load(place / "extended" / "tokenizer.model")
    assert config == done.model
    assert config.vocab_size == new.vocab_size == old.vocab_size + done.added
    assert done.added > 10
    for name in before:
        if name not in VOCABULARY:
            assert torch.equal(before[name], after[name])
    for name in VOCABULARY:
        assert torch.equal(before[name][: old.mask_id], after[name][: old.mask_id])
        assert torch.equal(before[name][old.mask_id], after[name][new.mask_id])
    assert new.pieces()[: old.mask_id] == old.pieces()[: old.mask_id]
    piece = next(i for i in range(old.mask_id, new.mask_id) if new.pieces()[i].startswith("▁") and len(new.pieces()[i]) > 3)
    spelled = old.encode(new.pieces()[piece].removeprefix("▁"))
    for name in VOCABULARY:
        assert torch.allclose(after[name][piece], before[name][spelled].mean(0))


def test_the_new_language_has_fewer_tokens_and_pieces_no_text_has_are_left_out(place: Path, done: Extension) -> None:
    old, new = Tokenizer.load(place / "old.model"), Tokenizer.load(place / "extended" / "tokenizer.model")
    assert len(new.encode(NEW[1])) < len(old.encode(NEW[1]))
    assert done.unreachable > 0  # full-width letters, which the model's rule makes plain ones
    assert not any("Ａ" in piece for piece in new.pieces())


def test_an_export_of_it_opens_with_transformers(place: Path, done: Extension) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    config, weights, _ = read_import(place / "extended")
    target = place / "exported"
    export_folder(weights, config, place / "extended" / "tokenizer.model", target)
    tokenizer, ours = AutoTokenizer.from_pretrained(target), Tokenizer.load(place / "extended" / "tokenizer.model")
    for text in (*OLD, *NEW[:3]):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    rows = AutoModelForMaskedLM.from_pretrained(target).get_input_embeddings().weight
    assert torch.equal(rows, weights["embedding.tokens.weight"])


def test_a_recipe_takes_the_model_and_its_tokenizer_from_the_import(place: Path, done: Extension, tiny_recipe: Path) -> None:
    words = [f"model={json.dumps({'from_imported': str(place / 'extended'), 'dropout': 0.25})}"]
    recipe = load_recipe(tiny_recipe, words)
    assert recipe.model == done.model.model_copy(update={"dropout": 0.25})
    assert recipe.data.tokenizer.path == str(place / "extended" / "tokenizer.model")
    with pytest.raises(UserError, match=r"model\.from_imported: .*nowhere holds no imported model; make one with"):
        load_recipe(tiny_recipe, ["model={from_imported: nowhere}"])


def test_what_cannot_be_extended_is_one_sentence(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(UserError, match=r"has no piece that .*imported lacks"):
        extend_import(place / "imported", place / "old.model", target)
    with pytest.raises(UserError, match="is not a unigram model"):
        extend_import(place / "imported", train(NEW, tmp_path / "bpe", kind="bpe"), target)
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        extend_import(place / "imported", place / "published" / "config.json", target)
    assert not target.exists()
