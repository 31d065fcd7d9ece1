"""Hugging Face folders: what we write, transformers opens; what it writes, we open; damage is named."""

from __future__ import annotations

import json
import os
import tempfile

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tiny_tokenizer import train_tokenizer

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import export_folder, fill_mask, import_run, read_import
from dist_metaxlm.interop.weights import huggingface_config, to_huggingface
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

LINES = ["the cat sat on the mat", "der Hund lief durch den Garten", "le chat dort sur la chaise", "кошка сидит на столе"]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    train_tokenizer(LINES * 10, folder, 330)
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def vocab_size(tokenizer_path):
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path)).get_piece_size() + 1


@pytest.fixture(params=["post", "pre", "modern"])
def config(request, vocab_size):
    shape = {"layers": 2, "hidden": 16, "heads": 2, "ffn": 24, "vocab_size": vocab_size, "max_positions": 32}
    if request.param == "modern":
        return ModelConfig(family="modern", norm="pre", local_window=8, global_every=2, **shape)
    return ModelConfig(norm=request.param, **shape)


@pytest.fixture
def state(config):
    return {name: value.detach() for name, value in Encoder(config, seed=3).state_dict().items()}


def import_folder(folder):
    """Shape and weights after an import; nothing may stay behind when it fails."""
    with tempfile.TemporaryDirectory() as place:
        try:
            import_run(folder, f"{place}/ours")
        except UserError:
            assert not os.listdir(place)
            raise
        config, weights, _ = read_import(f"{place}/ours")
        return config, dict(weights)


def test_what_is_exported_comes_back_bit_for_bit(state, config, tokenizer_path, tmp_path):
    export_folder(state, config, tokenizer_path, tmp_path / "out")
    again, weights = import_folder(tmp_path / "out")
    for field in ("family", "norm", "layers", "hidden", "heads", "ffn", "vocab_size", "max_positions", "norm_eps"):
        assert getattr(again, field) == getattr(config, field)
    assert set(weights) == set(state)
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert not list(tmp_path.glob(".*"))


def rms_model(vocab_size):
    shape = {"layers": 2, "hidden": 16, "heads": 2, "ffn": 24, "vocab_size": vocab_size, "max_positions": 32}
    return ModelConfig(family="modern", norm="pre", norm_type="rms", **shape)


def test_a_model_with_rms_norm_is_refused_before_anything_is_written(tokenizer_path, vocab_size, tmp_path):
    config = rms_model(vocab_size)
    state = Encoder(config).state_dict()
    with pytest.raises(UserError, match="has LayerNorm only") as caught:
        export_folder(state, config, tokenizer_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    for refused in (lambda: to_huggingface(state, config), lambda: huggingface_config(config)):
        with pytest.raises(UserError, match="has LayerNorm only"):
            refused()


def test_an_import_made_before_there_was_a_choice_of_norms_has_layer_norm(state, config, tokenizer_path, tmp_path):
    export_folder(state, config, tokenizer_path, tmp_path / "out")
    import_run(tmp_path / "out", tmp_path / "ours")
    path = tmp_path / "ours/model_config.json"
    fields = json.loads(path.read_text())
    assert fields.pop("norm_type") == "layer"
    path.write_text(json.dumps(fields))
    assert read_import(tmp_path / "ours")[0].norm_type == "layer"


def test_transformers_fills_a_mask_from_the_folder(state, config, tokenizer_path, tmp_path):
    export_folder(state, config, tokenizer_path, tmp_path / "out")
    answers = fill_mask(tmp_path / "out", {"en": "the <mask> sat", "ru": "кошка <mask>"})
    assert set(answers) == {"en", "ru"}
    for guesses in answers.values():
        probabilities = [probability for _, probability in guesses]
        assert len(guesses) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1
    with pytest.raises(UserError, match="has no <mask>"):
        fill_mask(tmp_path / "out", {"en": "the cat"})


def test_large_weights_are_cut_into_shards_that_both_sides_read(state, config, tokenizer_path, tmp_path):
    from transformers import AutoModelForMaskedLM

    export_folder(state, config, tokenizer_path, tmp_path / "one")
    export_folder(state, config, tokenizer_path, tmp_path / "many", shard_size=8000)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_file(tmp_path / "one/model.safetensors").values())
    weights = import_folder(tmp_path / "many")[1]
    assert all(torch.equal(weights[name], state[name]) for name in state)
    one, many = (AutoModelForMaskedLM.from_pretrained(str(tmp_path / name)) for name in ("one", "many"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), many.state_dict().values(), strict=True))


def test_a_folder_that_holds_something_is_not_touched(state, config, tokenizer_path, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export_folder(state, config, tokenizer_path, tmp_path)
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_failed_export_leaves_nothing_behind(state, config, tokenizer_path, tmp_path):
    other = config.model_copy(update={"vocab_size": config.vocab_size + 1})
    with pytest.raises(UserError, match=r"has shape .* in the model state"):
        export_folder(state, other, tokenizer_path, tmp_path / "out")
    with pytest.raises(UserError, match=f"{config.vocab_size} token ids"):
        export_folder(Encoder(other).state_dict(), other, tokenizer_path, tmp_path / "out")
    with pytest.raises(UserError, match="'much' is not a size"):
        export_folder(state, config, tokenizer_path, tmp_path / "out", shard_size="much")
    assert not list(tmp_path.iterdir())


def test_weights_that_can_run_code_are_refused_with_the_remedy(state, config, tokenizer_path, tmp_path):
    export_folder(state, config, tokenizer_path, tmp_path / "out")
    (tmp_path / "out/model.safetensors").rename(tmp_path / "out/pytorch_model.bin")
    with pytest.raises(UserError, match=r"can run code.*save_pretrained"):
        import_folder(tmp_path / "out")


def test_missing_and_unknown_tensors_are_named(state, config, tokenizer_path, tmp_path):
    export_folder(state, config, tokenizer_path, tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(UserError, match=name):
        import_folder(tmp_path / "out")
    save_file({**tensors, "stranger.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"stranger\.weight"):
        import_folder(tmp_path / "out")


def test_damaged_folders_are_named(state, config, tokenizer_path, tmp_path):
    out = tmp_path / "out"
    export_folder(state, config, tokenizer_path, out, shard_size=8000)
    shard = sorted(out.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(UserError, match="is damaged"):
        import_folder(out)
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks the file {shard.name}"):
        import_folder(out)
    index = out / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"][next(iter(places["weight_map"]))] = "../elsewhere.safetensors"
    index.write_text(json.dumps(places))
    shard.write_bytes(whole)
    with pytest.raises(UserError, match="lacks the file"):
        import_folder(out)
    index.write_text("[]")
    with pytest.raises(UserError, match="not an index"):
        import_folder(out)
    (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        import_folder(out)


def test_import_run_writes_our_names(state, config, tokenizer_path, tmp_path):
    export_folder(state, config, tokenizer_path, tmp_path / "hf")
    import_run(tmp_path / "hf", tmp_path / "ours")
    weights = load_file(tmp_path / "ours/model.safetensors")
    assert set(weights) == set(state)
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert ModelConfig.model_validate_json((tmp_path / "ours/model_config.json").read_text()).layers == config.layers


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5_000], ids=["too deep", "too long a number"])
def test_a_configuration_that_json_cannot_hold_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        import_run(tmp_path, tmp_path / "ours")
