"""Starting a phase from a model trained elsewhere, imported by launch/convert.py (XLM-R, XLM-R XL, RoBERTa, ModernBERT)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import read_import
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig, Recipe

FREE = {"dropout", "attention_dropout", "init_std"}
"""Fields of the model that say nothing about the weights' shape or meaning."""


def differing_fields(ours: ModelConfig, theirs: ModelConfig) -> str:
    """Where two models are not the same, as overrides that would make ours theirs; "" where they are."""
    wanted, has = theirs.model_dump(), ours.model_dump()
    return " ".join(f"model.{name}={wanted[name]}" for name in wanted if name not in FREE and has[name] != wanted[name])


def load_initial_weights(encoder: Encoder, recipe: Recipe, folder: str | Path, tokenizer_hash: str) -> str:
    """Put an imported model's weights into `encoder`; returns a line for the log.

    Raises:
        UserError: when the recipe's model differs from the imported one, or the store was made with another tokenizer.
    """
    config, state, tokenizer = read_import(folder)
    differing = differing_fields(recipe.model, config)
    if differing:
        raise UserError(f"--init_from {folder} is a model of another shape; set {differing}")
    if tokenizer is not None:
        digest = hashlib.sha256(tokenizer).hexdigest()
        if digest != tokenizer_hash:
            raise UserError(f"--init_from {folder} has tokenizer {digest[:12]}, the store was made with "
                            f"{tokenizer_hash[:12]}; prepare another data.directory with "
                            f"data.tokenizer.path={Path(folder) / 'tokenizer.model'}")
    encoder.load_logical(state)
    checked = "equal" if tokenizer is not None else "not checked, the import has none"
    return f"weights from {folder}; tokenizer {tokenizer_hash[:12]} ({checked}); optimiser and learning rate start anew"
