"""Encoders as people bring them: half precision, segments, no padding token, encoder-decoders, slow tokenizers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.resume.learning import inputs_of
from dist_metaxlm.evaluation.tasks.classification import Classification
from dist_metaxlm.evaluation.tasks.encoders import check_encoder, check_folder, open_tokenizer, takes_segments
from dist_metaxlm.evaluation.tasks.files import LabelledPair
from dist_metaxlm.evaluation.tasks.finetune import Settings
from dist_metaxlm.evaluation.tasks.questions import Questions
from dist_metaxlm.evaluation.tasks.run import TaskOptions, evaluate_encoders, evaluate_tasks
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN
from dist_metaxlm.evaluation.tasks.tagging import Tagging
from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder

WORDS = ["house", "dog", "river", "sees", "takes", "what"]
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT with two segments and its fast tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SMALL)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2(tmp_path):
    """A causal encoder whose tokenizer has no padding token."""
    import tokenizers

    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<eos>": 0, "<unk>": 1, "house": 2, "dog": 3}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "gpt2"
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>").save_pretrained(
        folder
    )
    config = transformers.GPT2Config(
        vocab_size=4, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_encoders_stored_in_half_precision_have_fp32_weights(model_folder, tmp_path, stored):
    shutil.copytree(model_folder, tmp_path / stored)
    half = transformers.AutoModel.from_pretrained(str(model_folder), dtype=getattr(torch, stored))
    half.save_pretrained(tmp_path / stored)
    assert json.loads((tmp_path / stored / "config.json").read_text())["dtype"] == stored
    for head in (Tagging(BUILT_IN["udpos"]), Classification(BUILT_IN["xnli"]), Questions(BUILT_IN["xquad"])):
        assert {weight.dtype for weight in head.model(str(tmp_path / stored)).parameters()} == {torch.float32}
    assert {weight.dtype for weight in TextEncoder(tmp_path / stored).model.parameters()} == {torch.float32}


def test_bf16_is_autocast_over_fp32_weights(model_folder, task_data):
    torch.set_num_threads(1)
    fast = ("learning_rate=0.01", "epochs=4", "batch_size=16", "precision=bf16")
    result = evaluate_tasks(model_folder, ["xnli"], TaskOptions(task_data, seeds=(3,), settings=fast))["xnli"]
    assert result["settings"]["precision"] == "bf16"
    assert result["table"]["source"]["mean"] > 0.7


def test_segments_of_pairs_and_questions_reach_models_that_have_them(bert, model_folder):
    tokenizer = open_tokenizer(bert)
    pairs = Classification(BUILT_IN["xnli"])
    (pair,) = pairs.features([LabelledPair("house dog", "river", "neutral")], tokenizer, Settings())
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    model = pairs.model(str(bert))
    assert takes_segments(model)
    assert inputs_of([pair], takes_segments(model)) == [pair]
    ours = pairs.model(str(model_folder))
    assert not takes_segments(ours)
    assert "token_type_ids" not in inputs_of([pair], takes_segments(ours))[0]
    batch = pairs.collator(tokenizer)([pair])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("task", ["tatoeba", "udpos", "xnli", "xquad"])
def test_encoders_without_a_padding_token_run(gpt2, task_data, task):
    torch.set_num_threads(1)
    fast = ("epochs=1", "max_train=8", "max_test=4", "max_length=16", "stride=4")
    options = TaskOptions(task_data, seeds=(1,), settings=fast, languages=("de",), max_pairs=4)
    assert "error" not in evaluate_tasks(gpt2, [task], options)[task]


def test_encoders_that_cannot_run_are_refused_before_anything_runs(model_folder, task_data, tmp_path):
    t5 = tmp_path / "t5"
    shutil.copytree(model_folder, t5)
    config = transformers.T5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    config.save_pretrained(t5)
    for task in ("tatoeba", "xnli"):
        with pytest.raises(UserError, match=r"t5 \(t5\) is an encoder-decoder"):
            evaluate_encoders(None, [], [str(model_folder), str(t5)], [task], TaskOptions(task_data), log=pytest.fail)
    canine = tmp_path / "canine"
    transformers.CanineConfig(**SMALL).save_pretrained(canine)
    transformers.CanineTokenizer().save_pretrained(canine)
    with pytest.raises(UserError, match=r"canine \(canine\) shortens its input between layers"):
        check_encoder(canine, ["retrieval"])


def test_slow_tokenizers_run_what_needs_no_words(bert, monkeypatch):
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "is_fast", False)
    check_encoder(bert, ["retrieval", "classification"])
    for kind in ("tagging", "questions", "alignment"):
        with pytest.raises(UserError, match=rf"has a slow tokenizer .*, so {kind} tasks cannot run"):
            check_encoder(bert, [kind])


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("jhu/x", "`hf download jhu/x --local-dir models/x`"),
        ("models/xlm-roberta-base", "`hf download FacebookAI/xlm-roberta-base --local-dir models/xlm-roberta-base`"),
        ("models/unknown", "`hf download OWNER/unknown --local-dir models/unknown` with its owner"),
    ],
)
def test_advice_to_download_names_the_owner(tmp_path, monkeypatch, path, advice):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        check_folder(Path(path))
    assert advice in str(refused.value)


def test_the_layer_of_the_tables_can_be_chosen(model_folder, task_data):
    assert evaluate_tasks(model_folder, ["tatoeba"], TaskOptions(task_data, layer=2))["tatoeba"]["layer"] == 2
    with pytest.raises(UserError, match=r"--layer 3: .* has layers 0 \(the embedding\) to 2"):
        evaluate_tasks(model_folder, ["tatoeba"], TaskOptions(task_data, layer=3))


def test_seeds_must_differ(task_data):
    with pytest.raises(UserError, match="--seeds has 1 more than once"):
        TaskOptions(task_data, seeds=(1, 2, 1))
