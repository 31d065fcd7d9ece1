"""Open Hugging Face folders for evaluation: fp32 weights, a padding token, one sentence for encoders that cannot be used.

Weights are always computed in fp32, whatever type they are stored in: transformers opens a folder in its stored type, and
AdamW on fp16 or bf16 weights loses most of its updates.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.untrusted import refuse_foreign_kernels, refuse_unsafe_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "spiece.model",
    "vocab.json",
)
HEADS = {
    "tagging": "AutoModelForTokenClassification",
    "classification": "AutoModelForSequenceClassification",
    "questions": "AutoModelForQuestionAnswering",
}
"""Kind of task -> transformers' class with its head; the other kinds use AutoModel."""
_NEEDS_WORDS = {
    "tagging": "the pieces of every word",
    "alignment": "the pieces of every word",
    "questions": "the place of every token in the text",
}
_OWNERS = {
    "xlm-roberta-base": "FacebookAI",
    "xlm-roberta-large": "FacebookAI",
    "bert-base-multilingual-cased": "google-bert",
    "mmBERT-base": "jhu-clsp",
    "mmBERT-small": "jhu-clsp",
    "mdeberta-v3-base": "microsoft",
    "infoxlm-base": "microsoft",
    "infoxlm-large": "microsoft",
}
"""Owners on huggingface.co of encoders that people compare with."""


def check_folder(folder: Path) -> None:
    """Raise UserError if the folder does not exist or has no configuration or no tokenizer."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; encoders are opened from this machine: download the model first, "
            f"{_download(folder)}, or correct the path"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a folder that save_pretrained or metaxlm convert export wrote")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy its files there")
    refuse_unsafe_weights(folder)
    try:
        refuse_foreign_kernels(folder / "config.json", json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} is not JSON ({error}); copy the folder again") from None


def _download(folder: Path) -> str:
    """Advice to download a model: its owner from a path such as `jhu-clsp/mmBERT-base`, or for well-known models."""
    name = folder.name
    parts = folder.parts
    owner = _OWNERS.get(name)
    if owner is None and len(parts) == 2 and parts[0] not in (".", "..", "/", "models") and not Path(parts[0]).is_dir():
        owner = parts[0]
    if owner is None:
        return f"such as by `hf download OWNER/{name} --local-dir models/{name}` with its owner on huggingface.co for OWNER"
    return f"such as by `hf download {owner}/{name} --local-dir models/{name}`, and give models/{name}"


def check_encoder(folder: Path, kinds: Sequence[str]) -> None:
    """Refuse an encoder that cannot run tasks of these kinds, from its configuration and tokenizer alone.

    kinds: of TaskSpec. Errors: UserError as `check_folder`, or naming the encoder, the kind of task and the reason.
    """
    check_folder(folder)
    import transformers

    with opening(folder):
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer = open_tokenizer(folder)
    for kind in kinds:
        _check_kind(folder, config, tokenizer, kind)


def _check_kind(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    import transformers

    auto: Any = getattr(transformers, HEADS.get(kind, "AutoModel"))
    name = f"{folder} ({config.model_type})"
    if type(config) not in auto._model_mapping:
        raise UserError(
            f"{name} has no {auto.__name__.removeprefix('AutoModelFor')} model in transformers, so {kind} tasks cannot run; "
            "leave the tasks out, or give another encoder"
        )
    known = auto._model_mapping[type(config)]
    for model in known if isinstance(known, tuple) else (known,):
        if config.is_encoder_decoder or "decoder_input_ids" in inspect.signature(model.forward).parameters:
            raise UserError(
                f"{name} is an encoder-decoder, and these tasks read the states of an encoder; give an encoder such as XLM-R"
            )
    if getattr(config, "downsampling_rate", 1) != 1 or hasattr(config, "block_sizes"):
        raise UserError(
            f"{name} shortens its input between layers, and these tasks need a state for every token at every layer; give "
            "another encoder"
        )
    if kind in _NEEDS_WORDS and not tokenizer.is_fast:
        raise UserError(
            f"{name} has a slow tokenizer ({type(tokenizer).__name__}), which does not say {_NEEDS_WORDS[kind]}, so {kind} "
            "tasks cannot run; add the tokenizer.json of a fast one, or leave these tasks out"
        )


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with a padding token: of GPT-2 and others without one, the end of text serves as padding.

    Errors: UserError for a tokenizer without any token that can serve; call it under `opening`.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
        if substitute is None:
            raise UserError(
                f"{folder} has a tokenizer without a padding token and without an end-of-text token that could serve; set "
                "pad_token in its tokenizer_config.json"
            )
        # Padding is masked in attention and has no label, so any known token can serve.
        tokenizer.pad_token = substitute
    tokenizer.padding_side = "right"
    return tokenizer


def open_with_head(auto: Any, folder: str, **settings: Any) -> PreTrainedModel:
    """A model with a fresh head and fp32 weights. auto: transformers' class, such as AutoModelForTokenClassification."""
    model: PreTrainedModel = auto.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, **settings
    )
    return model


def takes_segments(model: PreTrainedModel) -> bool:
    """Whether a model distinguishes the two texts of a pair by `token_type_ids`, as BERT does; XLM-R has one segment."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and int(getattr(model.config, "type_vocab_size", 2) or 0) > 1


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest input of a model in tokens: its positions (XLM-R's table has two rows for the offset), or the tokenizer's."""
    positions = int(getattr(config, "max_position_embeddings", 512) or 512)
    if "roberta" in str(getattr(config, "model_type", "")):
        positions -= int(config.pad_token_id) + 1
    return min(positions, int(tokenizer.model_max_length))


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Turn transformers' errors about a folder into one sentence and silence its other output.

    Its table of missing and unexpected weights, such as the pooler's, is expected for every encoder here.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder} needs code of its own (auto_map in config.json or tokenizer_config.json), which is "
                "never run; give a model whose architecture and tokenizer transformers has itself"
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} cannot be opened by transformers ({reason}); give a folder that save_pretrained wrote, "
            "with safetensors weights and its tokenizer"
        ) from None
