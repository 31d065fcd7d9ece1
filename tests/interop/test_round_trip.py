"""Hugging Face folder -> import -> export: the same bytes, and the same logits as Hugging Face's own class on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.interop.folders import export_folder, import_run, open_folder, read_import
from dist_metaxlm.modeling.encoder import Encoder

VOCAB = 331
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
LEARNED = COMMON | {"max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
CLASSES: dict[str, dict[str, Any]] = {
    "XLMRobertaForMaskedLM": LEARNED,
    "XLMRobertaXLForMaskedLM": LEARNED,
    "RobertaForMaskedLM": LEARNED,
    "ModernBertForMaskedLM": COMMON | {"max_position_embeddings": 40, "local_attention": 6, "global_attn_every_n_layers": 2},
}


def random_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of a Hugging Face class, every parameter random."""
    import transformers

    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**CLASSES[name])).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.to(dtype)


def tokens() -> torch.Tensor:
    return torch.randint(5, VOCAB, (23,), generator=torch.Generator().manual_seed(8))


def logits_of(encoder: Encoder) -> torch.Tensor:
    ids = tokens()
    batch = PackedBatch(
        tokens=ids,
        positions=torch.arange(len(ids)),
        cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
        window=len(ids),
        samples=torch.zeros(1, dtype=torch.int64),
        languages=torch.zeros(1, dtype=torch.int64),
        targets=torch.arange(1),
        target_tokens=ids[:1],
    )
    with torch.no_grad():
        return encoder.logits(encoder(batch))


def logits_of_huggingface(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()[None]).logits[0]


def raw(folder: Path) -> dict[str, bytes]:
    """Every tensor of a folder as type, shape and bytes."""
    tensors = open_folder(folder)[1]
    return {
        name: f"{tensor.dtype} {list(tensor.shape)}".encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("name", CLASSES)
def test_bytes_and_logits_through_import_and_export(name, tmp_path):
    import transformers

    model = random_model(name)
    model.save_pretrained(tmp_path / "given", max_shard_size="20KB")
    assert len(list((tmp_path / "given").glob("*.safetensors"))) > 3
    config = import_run(tmp_path / "given", tmp_path / "ours", shard_size="30KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    again, weights, tokenizer = read_import(tmp_path / "ours")
    assert (again, tokenizer) == (config, None)
    encoder = Encoder(config).eval()
    encoder.load_logical(weights)
    theirs = logits_of_huggingface(model)
    assert theirs.std() > 0.5
    torch.testing.assert_close(logits_of(encoder), theirs, atol=1e-4, rtol=1e-4)

    export_folder(weights, config, None, tmp_path / "back")
    assert raw(tmp_path / "back") == raw(tmp_path / "given")
    opened = transformers.AutoModelForMaskedLM.from_pretrained(str(tmp_path / "back"), local_files_only=True).eval()
    # RoBERTa is XLM-R by another name; all others come back as the class they were.
    assert type(opened).__name__ == name.replace("RobertaForMaskedLM", "XLMRobertaForMaskedLM").replace("XLMXLM", "XLM")
    assert torch.equal(logits_of_huggingface(opened), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_is_and_comes_back_from_fp32_masters(dtype, tmp_path):
    import transformers

    random_model("ModernBertForMaskedLM", dtype).save_pretrained(tmp_path / "given")
    config = import_run(tmp_path / "given", tmp_path / "ours")
    weights = read_import(tmp_path / "ours")[1]
    assert {weights.spec(name).dtype for name in weights} == {dtype}
    export_folder(weights, config, None, tmp_path / "back")
    assert raw(tmp_path / "back") == raw(tmp_path / "given")
    masters = {name: tensor.float() for name, tensor in weights.items()}
    export_folder(masters, config, None, tmp_path / "trained", dtype=dtype)
    assert raw(tmp_path / "trained") == raw(tmp_path / "given")
    opened = transformers.AutoModelForMaskedLM.from_pretrained(str(tmp_path / "trained"), local_files_only=True)
    assert opened.dtype == dtype


def test_old_files_with_second_copies_and_a_pooler_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    random_model("XLMRobertaForMaskedLM").save_pretrained(tmp_path / "given")
    import_run(tmp_path / "given", tmp_path / "plain")
    path = tmp_path / "given" / "model.safetensors"
    state = load_file(path)
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"].clone()
    state["lm_head.decoder.bias"] = state.pop("lm_head.bias")
    state["roberta.pooler.dense.weight"] = torch.zeros(24, 24)
    state["roberta.embeddings.position_ids"] = torch.arange(42)
    save_file(state, path)
    import_run(tmp_path / "given", tmp_path / "old")
    plain, old = (read_import(tmp_path / name)[1] for name in ("plain", "old"))
    assert set(plain) == set(old)
    assert all(torch.equal(plain[name], old[name]) for name in plain)
