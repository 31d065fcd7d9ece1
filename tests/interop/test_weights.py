"""Hugging Face parity: the same weights give the same logits and gradients, and come and go unchanged."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.weights import from_huggingface, huggingface_config, model_config, to_huggingface
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

VOCAB, WINDOW = 320, 40
LENGTHS = [[40], [1, 22, 17], [13, 2, 25], [8, 8, 8, 8, 8]]
FAMILIES: dict[str, dict[str, Any]] = {
    "xlmr": {"layers": 2},
    "xlmr-xl": {"layers": 2, "norm": "pre", "norm_eps": 1e-4},
    "modern": {"family": "modern", "norm": "pre", "layers": 4, "local_window": 10, "global_every": 3, "ffn": 40},
}


def config_of(family: str) -> ModelConfig:
    fields = {"hidden": 48, "heads": 4, "ffn": 96, "vocab_size": VOCAB, "max_positions": 64, "init_std": 0.2}
    return ModelConfig(**(fields | FAMILIES[family]))


def packed_batch() -> PackedBatch:
    """Four windows of 40 tokens that hold documents of many lengths; every fifth token is a target."""
    flat = [length for window in LENGTHS for length in window]
    total = sum(flat)
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(0, total, 5)
    return PackedBatch(
        tokens=torch.randint(5, VOCAB, (total,), generator=generator),
        positions=torch.cat([torch.arange(length) for length in flat]),
        cu_seqlens=torch.tensor([0, *torch.tensor(flat).cumsum(0).tolist()], dtype=torch.int32),
        window=WINDOW,
        samples=torch.arange(len(LENGTHS)),
        languages=torch.zeros(len(LENGTHS), dtype=torch.int64),
        targets=targets,
        target_tokens=torch.randint(5, VOCAB, targets.shape, generator=generator),
    )


def huggingface_model(config: ModelConfig, attention: str = "eager") -> Any:
    """A Hugging Face model of `config` whose every parameter is random, norms and biases too."""
    import transformers

    fields = huggingface_config(config)
    name = fields.pop("architectures")[0]
    fields.pop("model_type")
    model_class = getattr(transformers, name)
    hf_config = model_class.config_class(**fields)
    hf_config._attn_implementation = attention
    model = model_class(hf_config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def saved_state(model: Any) -> dict[str, torch.Tensor]:
    """The state without second copies of tied weights, as `save_pretrained` writes it."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}


def documents(batch: PackedBatch) -> list[slice]:
    starts = batch.cu_seqlens.tolist()
    return [slice(first, last) for first, last in zip(starts, starts[1:], strict=False)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_equal_those_of_single_documents(family: str, attention: str) -> None:
    config, batch = config_of(family), packed_batch()
    model = huggingface_model(config, attention)
    encoder = Encoder(config).eval()
    encoder.load_state_dict(from_huggingface(saved_state(model), config))
    with torch.no_grad():
        ours = encoder.logits(encoder(batch))
        theirs = torch.cat([model(input_ids=batch.tokens[span][None]).logits[0] for span in documents(batch)])
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal(family: str) -> None:
    """In float64, but for the rotation's cosines, which Hugging Face forms in float32 and every processor differently."""
    config, batch = config_of(family), packed_batch()
    model = huggingface_model(config).double()
    encoder = Encoder(config).double()
    encoder.load_state_dict(from_huggingface(saved_state(model), config))
    losses = encoder.masked_lm_loss(encoder(batch), batch.targets, batch.target_tokens)
    losses.sum().backward()
    logits = torch.cat([model(input_ids=batch.tokens[span][None]).logits[0] for span in documents(batch)])
    expected = torch.nn.functional.cross_entropy(logits[batch.targets], batch.target_tokens, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-6)
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    for name, gradient in to_huggingface(gradients, config).items():
        expected = model.get_parameter(name).grad
        # Of the whole tensor: gradients of keys' biases are zero, and one element may be the difference of large ones.
        assert (gradient - expected).norm() <= 3e-5 * max(expected.norm().item(), 1.0), name


@pytest.mark.parametrize("family", FAMILIES)
def test_import_then_export_gives_the_same_bytes(family: str) -> None:
    config = config_of(family)
    state = saved_state(huggingface_model(config))
    returned = to_huggingface(from_huggingface(state, config), config)
    assert set(returned) == set(state)
    assert all(torch.equal(returned[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_state_loads_and_returns(family: str) -> None:
    config, batch = config_of(family), packed_batch()
    encoder = Encoder(config, seed=9).eval()
    state = to_huggingface(encoder.state_dict(), config)
    model = huggingface_model(config)
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= set(model.all_tied_weights_keys)
    with torch.no_grad():
        span = documents(batch)[2]
        torch.testing.assert_close(
            model(input_ids=batch.tokens[span][None]).logits[0], encoder.logits(encoder(batch))[span], atol=1e-4, rtol=1e-4
        )
    back = from_huggingface(state, config)
    assert all(torch.equal(back[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_returns(family: str) -> None:
    import transformers

    config = config_of(family).model_copy(update={"dropout": 0.1, "attention_dropout": 0.2, "rope_theta": 5e4})
    if config.family == "xlmr":
        config = config_of(family)
    fields = huggingface_config(config)
    assert model_config(fields) == config
    written = transformers.AutoConfig.for_model(**fields)
    assert model_config(written.to_dict()) == config
    assert model_config(written.to_diff_dict()) == config


def test_configurations_of_published_models() -> None:
    base = model_config(
        {
            "model_type": "xlm-roberta",
            "vocab_size": 250002,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "output_past": True,
        }
    )
    assert (base.layers, base.hidden, base.max_positions, base.norm, base.dropout) == (12, 768, 512, "post", 0.1)
    xl = model_config({"model_type": "xlm-roberta-xl"})
    assert (xl.layers, xl.hidden, xl.max_positions, xl.norm) == (36, 2560, 512, "pre")
    old = model_config({"model_type": "modernbert", "global_attn_every_n_layers": 4, "global_rope_theta": 8e4})
    assert (old.global_every, old.rope_theta, old.rope_theta_local, old.local_window) == (4, 8e4, 1e4, 128)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "xlm-roberta", "type_vocab_size": 2}, "type_vocab_size"),
        ({"model_type": "xlm-roberta", "position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"model_type": "xlm-roberta-xl", "hidden_act": "relu"}, "hidden_act"),
        ({"model_type": "xlm-roberta-xl", "is_decoder": True}, "is_decoder"),
        ({"model_type": "xlm-roberta-xl", "hidden_size": 100, "num_attention_heads": 7}, "heads"),
        ({"model_type": "modernbert", "norm_bias": True}, "norm_bias"),
        ({"model_type": "modernbert", "decoder_bias": False}, "decoder_bias"),
        ({"model_type": "modernbert", "layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"model_type": "modernbert", "rope_scaling": {"factor": 2}}, "rope_scaling"),
        ({"model_type": "modernbert", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
    ],
)
def test_unsupported_configuration_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        model_config(fields)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "roberta", "xlm-roberta-xl", "modernbert"])
@pytest.mark.parametrize("value", [None, "many", -1, 0, [1], {"a": 1}, 1e99, True, float("nan")])
def test_a_configuration_with_nonsense_in_it_never_ends_in_a_traceback(model_type: str, value: Any) -> None:
    keys = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "layer_norm_eps",
        "norm_eps",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "attention_dropout",
        "rope_parameters",
        "layer_types",
    )
    for key in keys:
        with contextlib.suppress(UserError):
            model_config({"model_type": model_type, "type_vocab_size": 1, key: value})


def test_what_is_no_configuration_at_all() -> None:
    for content in (None, [], "text", {}, {"model_type": ["roberta"]}, {"model_type": {}}):
        with pytest.raises(UserError, match=r"use a folder of xlm-roberta, roberta, |is not usable"):
            model_config(content)


def test_more_layers_than_tensors_are_refused_before_they_are_counted() -> None:
    config = config_of("xlmr")
    state = to_huggingface(Encoder(config).state_dict(), config)
    with pytest.raises(UserError, match="has 1000000000000 layers and the weights have"):
        from_huggingface(state, config.model_copy(update={"layers": 10**12}))


def test_roberta_is_xlmr_by_another_name() -> None:
    base = model_config({"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1})
    assert (base.family, base.norm, base.vocab_size, base.max_positions) == ("xlmr", "post", 50265, 512)


def test_weights_that_do_not_fit_are_named() -> None:
    config = config_of("xlmr")
    state = to_huggingface(Encoder(config).state_dict(), config)
    words = "roberta.embeddings.word_embeddings.weight"
    copies = state | {"lm_head.decoder.weight": state[words], "lm_head.decoder.bias": state["lm_head.bias"]}
    assert set(from_huggingface(copies, config)) == set(Encoder(config).state_dict())
    with pytest.raises(UserError, match="tied"):
        from_huggingface(copies | {"lm_head.decoder.weight": state[words] + 1}, config)
    with pytest.raises(UserError, match=r"lacks .*word_embeddings"):
        from_huggingface({name: tensor for name, tensor in state.items() if name != words}, config)
    headless = {name.removeprefix("roberta."): tensor for name, tensor in state.items() if not name.startswith("lm_head")}
    with pytest.raises(UserError, match="an encoder without the head of masked language modelling"):
        from_huggingface(headless, config)
    with pytest.raises(UserError, match="unknown adapter"):
        from_huggingface(state | {"adapter": torch.zeros(1)}, config)
    with pytest.raises(UserError, match=r"embedding\.positions\.weight has shape \[66, 48\]"):
        from_huggingface(state, config.model_copy(update={"max_positions": 32}))
    with pytest.raises(UserError, match="does not fit"):
        from_huggingface(state, config.model_copy(update={"heads": 5}))
