"""Model configuration to and from the `config.json` of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.modeling.attention import is_local
from dist_metaxlm.modeling.embedding import POSITION_OFFSET
from dist_metaxlm.recipe.schema import ModelConfig

_SPECIAL_TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}

# A config.json may leave out what equals the default of its class, so those defaults are part of the format
# (transformers 5: models/xlm_roberta, roberta, camembert, xlm_roberta_xl, modernbert).
_XLMR_DEFAULTS = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
}  # fmt: skip
_ROBERTA_DEFAULTS = _XLMR_DEFAULTS | {"vocab_size": 50265}
_CAMEMBERT_DEFAULTS = _XLMR_DEFAULTS
_XL_DEFAULTS = {
    "vocab_size": 250880, "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
    "intermediate_size": 10240, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514, "type_vocab_size": 1, "initializer_range": 0.02, "layer_norm_eps": 1e-5,
}  # fmt: skip
_MODERN_DEFAULTS = {
    "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
    "intermediate_size": 1152, "embedding_dropout": 0.0, "attention_dropout": 0.0,
    "max_position_embeddings": 8192, "initializer_range": 0.02, "norm_eps": 1e-5, "local_attention": 128,
}  # fmt: skip

_LEARNED_POSITIONS = {
    "xlm-roberta": _XLMR_DEFAULTS, "roberta": _ROBERTA_DEFAULTS, "camembert": _CAMEMBERT_DEFAULTS,
    "xlm-roberta-xl": _XL_DEFAULTS,
}  # fmt: skip
_MODERN_SPECIAL_TOKENS = {  # transformers 5: ModernBertConfig
    "bos_token_id": 50281, "eos_token_id": 50282, "pad_token_id": 50283, "cls_token_id": 50281, "sep_token_id": 50282,
}  # fmt: skip
CAMEMBERT = "camembert"

_XLMR_REQUIRED = {
    "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
    "tie_word_embeddings": True, "pad_token_id": 1,
}  # fmt: skip
_MODERN_REQUIRED = {
    "hidden_activation": "gelu", "classifier_activation": "gelu", "norm_bias": False, "attention_bias": False,
    "mlp_bias": False, "classifier_bias": False, "decoder_bias": True, "tie_word_embeddings": True,
}  # fmt: skip


KNOWN_FIELDS = {
    "family", "norm", "norm_type", "layers", "hidden", "heads", "ffn", "vocab_size", "max_positions", "norm_eps", "init_std",
    "embedding_std", "dropout", "attention_dropout", "local_window", "global_every", "rope_theta", "rope_theta_local",
}  # fmt: skip
"""Fields of the model that this module exports, or that a model without them would not differ in."""


def check_exportable(config: ModelConfig) -> None:
    """UserError for a model without a corresponding Hugging Face class, or with a field that the export does not know."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name not in KNOWN_FIELDS and value != field.get_default(call_default_factory=True):
            raise UserError(
                f"a model with model.{name} {value!r} cannot go to Hugging Face, whose classes have no such setting; "
                f"evaluate it on its run's held-out text, or train without model.{name}"
            )
    if config.norm_type == "rms":
        raise UserError(
            "a model with model.norm_type rms cannot go to Hugging Face, whose ModernBertForMaskedLM has "
            "LayerNorm only; evaluate it on its run's held-out text, or train with model.norm_type=layer"
        )


def huggingface_config(config: ModelConfig) -> dict[str, object]:
    """The content of the `config.json` with which Hugging Face opens our weights; UserError if it has no such model."""
    check_exportable(config)
    common: dict[str, object] = {
        **_SPECIAL_TOKENS,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
    }
    return common | (_modern_fields(config) if config.family == "modern" else _xlmr_fields(config))


def _xlmr_fields(config: ModelConfig) -> dict[str, object]:
    post = config.norm == "post"
    return {
        "model_type": "xlm-roberta" if post else "xlm-roberta-xl",
        "architectures": ["XLMRobertaForMaskedLM" if post else "XLMRobertaXLForMaskedLM"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_positions + POSITION_OFFSET,
        "type_vocab_size": 1,
        "layer_norm_eps": config.norm_eps,
    }


def _modern_fields(config: ModelConfig) -> dict[str, object]:
    kinds = ("full_attention", "sliding_attention")
    return {
        "model_type": "modernbert",
        "architectures": ["ModernBertForMaskedLM"],
        "cls_token_id": _SPECIAL_TOKENS["bos_token_id"],
        "sep_token_id": _SPECIAL_TOKENS["eos_token_id"],
        **_MODERN_REQUIRED,
        "embedding_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "max_position_embeddings": config.max_positions,
        "norm_eps": config.norm_eps,
        "local_attention": config.local_window,
        "global_attn_every_n_layers": config.global_every,
        "layer_types": [kinds[is_local(config, index)] for index in range(config.layers)],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in zip(kinds, (config.rope_theta, config.rope_theta_local), strict=True)
        },
    }


def model_config(hf_config: dict[str, Any]) -> ModelConfig:
    """The model that a `config.json` describes; keys that do not change the model are ignored.

    UserError names the first feature that this model does not have.
    """
    model_type = hf_config.get("model_type") if isinstance(hf_config, dict) else None
    try:
        if model_type in _LEARNED_POSITIONS:
            fields = _from_xlmr(hf_config, model_type)
        elif model_type == "modernbert":
            fields = _from_modern(hf_config)
        else:
            raise UserError(
                f"model_type {model_type!r} is not supported; use a folder of {', '.join(_LEARNED_POSITIONS)} or modernbert"
            )
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"the Hugging Face configuration is not usable: {first['loc']} {first['msg']}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the Hugging Face configuration is not usable: {error}; copy config.json again") from error


def fields_to_keep(hf_config: Mapping[str, object]) -> dict[str, object]:
    """Fields of a `config.json` that this model does not have but an export needs.

    These are ids of special tokens, if they differ from ours, and the class of CamemBERT, which names its tokenizer.
    """
    model_type = hf_config["model_type"]
    ours, theirs = dict(_SPECIAL_TOKENS), {**_SPECIAL_TOKENS, **hf_config}
    if model_type == "modernbert":
        ours |= {"cls_token_id": ours["bos_token_id"], "sep_token_id": ours["eos_token_id"]}
        theirs = {**_MODERN_SPECIAL_TOKENS, **hf_config}
    kept = {name: theirs[name] for name in ours if theirs[name] != ours[name]}
    kept |= {name: hf_config[name] for name in ("mask_token_id", "unk_token_id") if name in hf_config}
    if model_type == CAMEMBERT:
        kept |= {"model_type": CAMEMBERT, "architectures": ["CamembertForMaskedLM"]}
    return kept


def _from_xlmr(hf_config: dict[str, Any], model_type: str) -> dict[str, object]:
    post = model_type != "xlm-roberta-xl"
    given = _LEARNED_POSITIONS[model_type] | hf_config
    _require(given, _XLMR_REQUIRED)
    _require(given, {"type_vocab_size": 1})
    return {
        **_shape(given),
        "family": "xlmr",
        "norm": "post" if post else "pre",
        "max_positions": given["max_position_embeddings"] - POSITION_OFFSET,
        "norm_eps": given["layer_norm_eps"],
        "dropout": given["hidden_dropout_prob"],
        "attention_dropout": given["attention_probs_dropout_prob"],
    }


def _from_modern(hf_config: dict[str, Any]) -> dict[str, object]:
    given = _MODERN_DEFAULTS | hf_config
    _require(given, _MODERN_REQUIRED | {"rope_scaling": None})
    return {
        **_shape(given),
        "family": "modern",
        "norm": "pre",
        "max_positions": given["max_position_embeddings"],
        "norm_eps": given["norm_eps"],
        "dropout": given["embedding_dropout"],
        "attention_dropout": given["attention_dropout"],
        "local_window": given["local_attention"],
        "global_every": _global_every(given),
        "rope_theta": _theta(given, "full_attention", "global_rope_theta", 160000.0),
        "rope_theta_local": _theta(given, "sliding_attention", "local_rope_theta", 10000.0),
    }


def _shape(given: Mapping[str, object]) -> dict[str, object]:
    return {
        "layers": given["num_hidden_layers"],
        "hidden": given["hidden_size"],
        "heads": given["num_attention_heads"],
        "ffn": given["intermediate_size"],
        "vocab_size": given["vocab_size"],
        "init_std": given["initializer_range"],
    }


def _require(given: Mapping[str, object], required: Mapping[str, object]) -> None:
    """UserError for the first key that is set to something else; absent or null means the default, which is supported."""
    for key, value in required.items():
        actual = given.get(key)
        if actual is not None and actual != value:
            raise UserError(f"{key} {actual!r} of the Hugging Face configuration is not supported, only {value!r}")


def _global_every(given: dict[str, Any]) -> int:
    """The k of "layers 0, k, 2k, ... are global"."""
    layers: int = given["num_hidden_layers"]
    every: int = given.get("global_attn_every_n_layers") or 3
    kinds = given.get("layer_types")
    if kinds is None:
        return every
    candidates: list[int] = [every, *range(1, layers + 1)]
    for candidate in candidates:
        if all((kind == "full_attention") == (index % candidate == 0) for index, kind in enumerate(kinds)):
            return candidate
    raise UserError(f"layer_types {kinds} is not supported: layers 0, k, 2k, ... must have full attention, others not")


def _theta(given: dict[str, Any], kind: str, old_key: str, default: float) -> float:
    """Rotary base of the layers of `kind`; older configurations have a separate key for each."""
    parameters = (given.get("rope_parameters") or {}).get(kind) or {}
    _require(parameters, {"rope_type": "default"})
    _require({"rope_scaling": given.get("rope_scaling")}, {"rope_scaling": {}})
    return float(parameters.get("rope_theta") or given.get(old_key) or default)
