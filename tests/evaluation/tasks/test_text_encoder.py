"""Vectors of any Hugging Face folder: the same as our own encoder's, whatever the batch; tasks of retrieval on them."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.embed import embed
from dist_metaxlm.evaluation.tasks.retrieval import evaluate_parallel, read_parallel
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN, TaskSpec
from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder, batches, exported_phase
from dist_metaxlm.interop.folders import open_folder
from dist_metaxlm.interop.weights import from_huggingface
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import dump_recipe, load_recipe

TEXTS = ["house sees dog", "หมา", "Haus nimmt Stein Haus nimmt Stein", "", "dog " * 200]


@pytest.mark.parametrize("include_special", [True, False])
def test_vectors_are_those_of_our_own_encoder(model_folder, include_special):
    config, tensors = open_folder(model_folder)
    ours = Encoder(config, 0)
    ours.load_state_dict(from_huggingface(tensors, config))
    tokenizer = Tokenizer.load(model_folder.parent / "tokenizer.model")
    expected = embed(ours, [tokenizer.encode(text) for text in TEXTS], window=64, include_special=include_special)
    encoder = TextEncoder(model_folder)
    assert encoder.max_length == 64
    found = encoder.embed(TEXTS, include_special)
    assert found.shape == (3, 5, 32)
    assert torch.allclose(found, expected, atol=2e-5)
    assert torch.allclose(encoder.embed(TEXTS, include_special, max_tokens=1), found, atol=1e-5)


def test_batches_hold_all_sentences_and_no_more_tokens_than_asked():
    lengths = [3, 9, 1, 9, 4, 2]
    found = list(batches(lengths, 12))
    assert sorted(number for batch in found for number in batch) == list(range(6))
    assert all(len(batch) * max(lengths[n] for n in batch) <= 12 for batch in found)
    assert [len(batch) for batch in batches(lengths, 1)] == [1] * 6


def test_a_folder_without_tokenizer_weights_or_config_is_named(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"):
        (tmp_path / "bare" / file).unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        TextEncoder(tmp_path / "bare")
    shutil.copytree(model_folder, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be opened by transformers"):
        TextEncoder(tmp_path / "empty")
    with pytest.raises(UserError, match=r"has no config\.json"):
        TextEncoder(tmp_path)


def test_a_run_with_rms_norm_is_refused_and_leaves_nothing(model_folder, tmp_path, monkeypatch):
    size = Tokenizer.load(model_folder.parent / "tokenizer.model").vocab_size
    recipe = load_recipe(
        "quickstart",
        [
            f"data.directory={model_folder.parent}",
            "model.family=modern",
            "model.norm=pre",
            "model.norm_type=rms",
            f"model.vocab_size={size}",
            "model.hidden=16",
        ],
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(UserError, match="has LayerNorm only"), exported_phase(tmp_path, "untrained"):
        pytest.fail("it was exported")
    assert not list((tmp_path / "temporary").iterdir())


def test_retrieval_over_files(model_folder, task_data):
    encoder = TextEncoder(model_folder)
    pairs = read_parallel("tatoeba", BUILT_IN["tatoeba"], task_data)
    result = evaluate_parallel(encoder, pairs)
    assert list(result["languages"]) == ["de", "th"]
    thai = result["languages"]["th"]
    assert (thai["script"], thai["candidates"], thai["distinct"]) == ("Thai", 48, 48)
    assert len(thai["cosine"]["to_english"]) == len(result["per_layer"]["csls"]) == 3
    assert result["layer"] == 1
    assert result["pooling"] == "mean over tokens with special tokens"
    # an untrained model scores at chance on translations
    assert max(result["per_layer"]["cosine"]) < 0.2
    copies = evaluate_parallel(encoder, {"de": [(a, a) for a, _ in pairs["de"]]}, include_special=False, max_pairs=30)
    # words in another order give another vector only because of the positions, so all is found but nearly
    assert copies["languages"]["de"]["candidates"] == 30
    assert copies["per_layer"]["cosine"][2] > 0.9
    assert copies["per_layer"]["translations"][2] == pytest.approx(1.0, abs=1e-5)
    assert copies["per_layer"]["cka"][2] == pytest.approx(1.0, abs=1e-6)


def test_retrieval_from_two_files_a_language(tmp_path):
    (tmp_path / "tatoeba").mkdir()
    for name, text in (("fr-en.fr", "oui\nnon\n"), ("fr-en.en", "yes\nno\n")):
        (tmp_path / "tatoeba" / name).write_text(text, encoding="utf-8")
    spec = BUILT_IN["tatoeba"]
    assert read_parallel("tatoeba", spec, tmp_path) == {"fr": [("yes", "oui"), ("no", "non")]}
    with pytest.raises(UserError, match="none of the languages de"):
        read_parallel("tatoeba", spec, tmp_path, ["de"])
    (tmp_path / "tatoeba" / "fr-en.en").write_text("yes\n", encoding="utf-8")
    with pytest.raises(UserError, match="ends after line 1"):
        read_parallel("tatoeba", spec, tmp_path)
    alone = TaskSpec(kind="retrieval", test=["tatoeba/fr-{lang}.fr"], pivot=["nothing/{lang}"])
    with pytest.raises(UserError, match="no file"):
        read_parallel("x", alone, tmp_path)


def test_the_vectors_of_the_page_are_those_that_are_evaluated(model_folder, capsys):
    page = (Path(__file__).parents[3] / "docs" / "convert.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1].replace('"exported"', repr(str(model_folder)))
    names = {}
    exec(code, names)
    found = TextEncoder(model_folder).embed(["Where is the station?", "駅はどこですか。"])
    expected = torch.nn.functional.normalize(found[round((len(found) - 1) * 2 / 3)], dim=-1)
    assert torch.allclose(names["vectors"], expected, atol=1e-5)
    assert capsys.readouterr().out.count("\n") >= 2
