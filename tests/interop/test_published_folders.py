"""Folders as they are published: other sizes, added tokens, no head, other prefixes, CamemBERT, special ids of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import CONFIG, LOGICAL_TOKENIZER, export_folder, fill_mask, import_run, read_import
from dist_metaxlm.interop.original import FOLDER, ROWS, keep_original, read_original
from dist_metaxlm.modeling.encoder import Encoder

TEXTS = ["the cat sat on the mat", "der Hund lief durch den Garten", "кошка сидит на столе", "le chat dort  sur la chaise"]
SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "initializer_range": 0.2,
    "max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
MODERN = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "initializer_range": 0.2,
    "max_position_embeddings": 40, "local_attention": 6, "global_attn_every_n_layers": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model in its own order, as XLM-R's and CamemBERT's files are, of more than 300 pieces."""
    place = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_prefix=str(place / "m"), vocab_size=350, hard_vocab_limit=False,
        byte_fallback=True, minloglevel=2, num_threads=1, seed_sentencepiece_size=2000,
    )  # fmt: skip
    return place / "m.model"


def tokenizer_of(kind: str, pieces: Path) -> Any:
    """transformers' tokenizer of a class, with the pieces of a file."""
    import transformers

    folder = pieces.parent / kind
    folder.mkdir(exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(pieces.read_bytes())
    return getattr(transformers, f"{kind}Tokenizer").from_pretrained(str(folder), local_files_only=True)


def random_model(name: str, **fields: Any) -> Any:
    """A model of a Hugging Face class, every parameter random."""
    import transformers

    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**(MODERN if "Modern" in name else SMALL), **fields)).eval()
    randomise(model)
    return model


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def our_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    config, weights, _ = read_import(folder)
    encoder = Encoder(config).eval()
    encoder.load_logical(weights)
    tokens = torch.tensor(ids)
    batch = PackedBatch(
        tokens=tokens,
        positions=torch.arange(len(ids)),
        cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
        window=len(ids),
        samples=torch.zeros(1, dtype=torch.int64),
        languages=torch.zeros(1, dtype=torch.int64),
        targets=torch.arange(1),
        target_tokens=tokens[:1],
    )
    with torch.no_grad():
        return encoder.logits(encoder(batch))


def their_logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def export(imported: Path, output: Path, tokenizer: bool = True) -> None:
    """The folder of an import that was not trained."""
    config, weights, model = read_import(imported)
    path = imported / LOGICAL_TOKENIZER if model is not None and tokenizer else None
    export_folder(weights, config, path, output, original=read_original(imported))


def same_weights(one: Path, other: Path) -> None:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", ["XLMRobertaForMaskedLM", "XLMRobertaXLForMaskedLM"])
def test_rows_beyond_the_ids_are_no_candidates_and_come_back(name: str, pieces: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("XLMRoberta", pieces)
    ids = len(tokenizer)
    model = random_model(name, vocab_size=ids + 78)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "given")
    config = import_run(tmp_path / "given", tmp_path / "ours")
    assert config.vocab_size == ids == Tokenizer.load(tmp_path / "ours" / LOGICAL_TOKENIZER).vocab_size
    text = tokenizer(TEXTS[0]).input_ids
    ours, theirs = our_logits(tmp_path / "ours", text), their_logits(model, text)
    assert ours.shape == (len(text), ids)
    torch.testing.assert_close(ours, theirs[:, :ids], atol=1e-4, rtol=1e-4)
    export(tmp_path / "ours", tmp_path / "back")
    same_weights(tmp_path / "back", tmp_path / "given")
    assert json.loads((tmp_path / "back" / CONFIG).read_text())["vocab_size"] == ids + 78
    guesses = fill_mask(tmp_path / "back", {"en": "the <mask> sat"}, top=ids)["en"]
    assert len(guesses) == ids
    assert abs(sum(probability for _, probability in guesses) - 1) < 1e-4


def test_added_tokens_and_a_padded_vocabulary(pieces: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = tokenizer_of("XLMRoberta", pieces)
    ids = len(tokenizer)
    model = random_model("XLMRobertaForMaskedLM", vocab_size=ids)
    tokenizer.add_tokens(["kürzelA"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<de>", "<fr>"]})
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    randomise(model)
    rows = model.config.vocab_size
    assert rows % 64 == 0
    assert rows > ids + 3
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "given")
    assert import_run(tmp_path / "given", tmp_path / "ours").vocab_size == ids
    export(tmp_path / "ours", tmp_path / "back")
    same_weights(tmp_path / "back", tmp_path / "given")
    again = AutoTokenizer.from_pretrained(str(tmp_path / "back"), local_files_only=True)
    for text in (*TEXTS, "ein kürzelA im <de> Satz", "<fr> le chat"):
        assert again(text).input_ids == tokenizer(text).input_ids
    assert {"<de>", "<fr>"} <= set(again.all_special_tokens) | set(again.get_added_vocab())
    opened = AutoModelForMaskedLM.from_pretrained(str(tmp_path / "back"), local_files_only=True).eval()
    text = tokenizer("<de> der Hund kürzelA").input_ids
    assert torch.equal(their_logits(opened, text), their_logits(model, text))


def test_fewer_rows_than_ids_and_missing_ids_are_refused(pieces: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("XLMRoberta", pieces)
    ids = len(tokenizer)
    random_model("XLMRobertaForMaskedLM", vocab_size=ids - 1).save_pretrained(tmp_path / "few")
    tokenizer.save_pretrained(tmp_path / "few")
    with pytest.raises(UserError, match=f"makes {ids} ids with <mask>, the model has vocab_size {ids - 1}"):
        import_run(tmp_path / "few", tmp_path / "ours")
    random_model("XLMRobertaForMaskedLM", vocab_size=ids + 9).save_pretrained(tmp_path / "gap")
    tokenizer.save_pretrained(tmp_path / "gap")
    content = json.loads((tmp_path / "gap/tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": ids + 1, "content": "gap"})
    (tmp_path / "gap/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"adds tokens at the ids {ids + 1}"):
        import_run(tmp_path / "gap", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("source", ["tokenizer.json", "sentencepiece.bpe.model"])
def test_camembert_has_its_special_ids_elsewhere(source: str, pieces: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = tokenizer_of("Camembert", pieces)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (5, 6, len(tokenizer) - 1)
    model = random_model("CamembertForMaskedLM", vocab_size=len(tokenizer), bos_token_id=5, eos_token_id=6, pad_token_id=1)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "given")
    if source != "tokenizer.json":
        (tmp_path / "given" / source).write_bytes(pieces.read_bytes())
    assert import_run(tmp_path / "given", tmp_path / "ours").vocab_size == len(tokenizer)
    ours = Tokenizer.load(tmp_path / "ours" / LOGICAL_TOKENIZER)
    order = read_original(tmp_path / "ours").order
    columns = [order.get(token, token) for token in range(len(tokenizer))]
    for text in TEXTS:
        mine, theirs = [0, *ours.encode(text), 2], tokenizer(text).input_ids
        assert [columns[token] for token in mine] == theirs
        torch.testing.assert_close(
            our_logits(tmp_path / "ours", mine), their_logits(model, theirs)[:, columns], atol=1e-4, rtol=1e-4
        )
    export(tmp_path / "ours", tmp_path / "back")
    same_weights(tmp_path / "back", tmp_path / "given")
    opened = AutoModelForMaskedLM.from_pretrained(str(tmp_path / "back"), local_files_only=True)
    assert type(opened).__name__ == "CamembertForMaskedLM"
    assert (opened.config.bos_token_id, opened.config.eos_token_id) == (5, 6)
    again = AutoTokenizer.from_pretrained(str(tmp_path / "back"), local_files_only=True)
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]


def test_special_ids_and_a_tokenizer_of_another_kind_survive(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GemmaTokenizer

    model = random_model("ModernBertForMaskedLM", vocab_size=320)
    vocabulary = {piece: n for n, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "a", "b", "ab"])}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[("a", "b")])
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "given")
    assert import_run(tmp_path / "given", tmp_path / "ours").vocab_size == 320
    export(tmp_path / "ours", tmp_path / "back")
    same_weights(tmp_path / "back", tmp_path / "given")
    config = AutoConfig.from_pretrained(str(tmp_path / "back"))
    found = [config.pad_token_id, config.eos_token_id, config.bos_token_id, config.cls_token_id, config.sep_token_id]
    assert found == [0, 1, 2, 2, 1]
    again = AutoTokenizer.from_pretrained(str(tmp_path / "back"), local_files_only=True)
    assert again("ab a<mask>").input_ids == tokenizer("ab a<mask>").input_ids


def test_another_tokenizer_than_the_folders_has_our_special_ids(pieces: Path, tmp_path: Path) -> None:
    import_run_of(pieces, tmp_path)
    own = Tokenizer.load(tmp_path / "xlmr" / LOGICAL_TOKENIZER)
    random_model("ModernBertForMaskedLM", vocab_size=own.vocab_size).save_pretrained(tmp_path / "given")
    import_run(tmp_path / "given", tmp_path / "ours")
    config, weights, _ = read_import(tmp_path / "ours")
    export_folder(weights, config, own.path, tmp_path / "back", original=read_original(tmp_path / "ours"))
    content = json.loads((tmp_path / "back" / CONFIG).read_text())
    assert (content["bos_token_id"], content["pad_token_id"], content["eos_token_id"]) == (0, 1, 2)


def import_run_of(pieces: Path, tmp_path: Path, extra: int = 0) -> None:
    """An imported XLM-R in `tmp_path/xlmr`, with `extra` rows more than ids."""
    tokenizer = tokenizer_of("XLMRoberta", pieces)
    for part in (random_model("XLMRobertaForMaskedLM", vocab_size=len(tokenizer) + extra), tokenizer):
        part.save_pretrained(tmp_path / "xlmr-given")
    import_run(tmp_path / "xlmr-given", tmp_path / "xlmr")


def test_a_phase_keeps_what_its_start_had_and_damage_is_noticed(pieces: Path, tmp_path: Path) -> None:
    import_run_of(pieces, tmp_path, extra=14)
    phases = [tmp_path / "meta", tmp_path / "cross"]
    for before, phase in zip([tmp_path / "xlmr", phases[0]], phases, strict=True):
        phase.mkdir()
        keep_original(before, phase)
        keep_original(before, phase)  # a start that was interrupted
        assert [path.name for path in phase.iterdir()] == [FOLDER]
    config, weights, _ = read_import(tmp_path / "xlmr")
    trained = {name: tensor + 1 for name, tensor in weights.items()}
    original = read_original(phases[1])
    export_folder(trained, config, tmp_path / "xlmr" / LOGICAL_TOKENIZER, tmp_path / "back", original=original)
    given, back = (load_file(tmp_path / name / "model.safetensors") for name in ("xlmr-given", "back"))
    for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.bias"):
        assert torch.equal(back[name][config.vocab_size :], given[name][config.vocab_size :])
        assert torch.equal(back[name][: config.vocab_size], given[name][: config.vocab_size] + 1)
    rows = phases[1] / FOLDER / ROWS
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="another SHA-256"):
        read_original(phases[1])
    (tmp_path / "plain").mkdir()
    keep_original(tmp_path / "plain", phases[1])
    assert not list(phases[1].iterdir())


HEADLESS = {
    "XLMRobertaModel": "XLMRobertaForMaskedLM",
    "XLMRobertaForSequenceClassification": "XLMRobertaForMaskedLM",
    "XLMRobertaForTokenClassification": "XLMRobertaForMaskedLM",
    "XLMRobertaForQuestionAnswering": "XLMRobertaForMaskedLM",
    "XLMRobertaXLModel": "XLMRobertaXLForMaskedLM",
    "ModernBertModel": "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification": "ModernBertForMaskedLM",
    "ModernBertForTokenClassification": "ModernBertForMaskedLM",
}


@pytest.mark.parametrize("name", HEADLESS)
def test_an_encoder_without_its_head_gets_one_when_asked(name: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = random_model(name, vocab_size=331)
    model.save_pretrained(tmp_path / "given")
    with pytest.raises(UserError, match=r"without the head of masked language modelling.*--fresh_head"):
        import_run(tmp_path / "given", tmp_path / "ours")
    import_run(tmp_path / "given", tmp_path / "ours", fresh_head=True)
    weights = read_import(tmp_path / "ours")[1]
    assert not weights["head.bias"].any()
    assert 0.15 < weights["head.dense.weight"].std() < 0.25
    export(tmp_path / "ours", tmp_path / "back")
    content = json.loads((tmp_path / "back" / CONFIG).read_text())
    assert content["architectures"] == [HEADLESS[name]]
    encoder = AutoModel.from_pretrained(str(tmp_path / "back"), local_files_only=True).eval()
    ids = torch.arange(5, 27)[None]
    with torch.no_grad():
        base = getattr(model, model.base_model_prefix, model)
        assert torch.equal(encoder(ids).last_hidden_state, base(ids).last_hidden_state)


def test_a_fresh_head_is_not_given_to_a_model_that_has_one(tmp_path: Path) -> None:
    random_model("XLMRobertaForMaskedLM", vocab_size=331).save_pretrained(tmp_path / "given")
    import_run(tmp_path / "given", tmp_path / "ours", fresh_head=True)
    export(tmp_path / "ours", tmp_path / "back")
    same_weights(tmp_path / "back", tmp_path / "given")


@pytest.mark.parametrize("name", ["XLMRobertaForMaskedLM", "XLMRobertaXLForMaskedLM", "ModernBertForMaskedLM"])
@pytest.mark.parametrize("outer", ["model.", "module.", "encoder.model."])
def test_names_under_a_prefix_more(outer: str, name: str, tmp_path: Path) -> None:
    random_model(name, vocab_size=331).save_pretrained(tmp_path / "given")
    import_run(tmp_path / "given", tmp_path / "plain")
    path = tmp_path / "given/model.safetensors"
    save_file({outer + tensor: value for tensor, value in load_file(path).items()}, path)
    import_run(tmp_path / "given", tmp_path / "ours")
    same_weights(tmp_path / "ours", tmp_path / "plain")
