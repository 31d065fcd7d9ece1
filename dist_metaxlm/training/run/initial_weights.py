"""Starting a phase from a model trained elsewhere, imported by metaxlm convert (XLM-R, XLM-R XL, RoBERTa, ModernBERT)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import read_import
from dist_metaxlm.interop.original import keep_original
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig, Recipe
from dist_metaxlm.storage.digest import file_digest
from dist_metaxlm.training.run.run_folder import PhaseFolder

FREE = {"dropout", "attention_dropout", "init_std", "embedding_std"}
"""Fields of the model that do not affect the shape or meaning of the weights."""


def differing_fields(ours: ModelConfig, theirs: ModelConfig) -> str:
    """The differences between two models, as overrides that turn ours into theirs; "" if they are equal."""
    wanted, has = theirs.model_dump(), ours.model_dump()
    return " ".join(f"model.{name}={wanted[name]}" for name in wanted if name not in FREE and has[name] != wanted[name])


def check_initial_weights(recipe: Recipe, folder: str | Path) -> None:
    """Refuse an imported model that the recipe cannot start from, before data are prepared.

    Raises:
        UserError: if the recipe's model differs from the imported one, or its data have, or would get, another tokenizer.
    """
    config, _, tokenizer = read_import(folder)
    differing = differing_fields(recipe.model, config)
    if differing:
        more = ""
        if tokenizer is None and config.vocab_size > recipe.model.vocab_size:
            more = (
                ". If its tokenizer has fewer ids than the embedding has rows, import the model again from a folder that "
                "also has the tokenizer"
            )
        raise UserError(f"--init_from {folder} is a model of another shape; set {differing}{more}")
    if tokenizer is None:
        return
    prepared, named = Path(recipe.data.directory) / "tokenizer.model", recipe.data.tokenizer.path
    source = prepared if prepared.is_file() else Path(named) if named else None
    digest = file_digest(source) if source is not None and source.is_file() else None
    if digest != hashlib.sha256(tokenizer).hexdigest():
        theirs = "one of their own" if digest is None else digest[:12]
        raise UserError(
            f"--init_from {folder} has tokenizer {hashlib.sha256(tokenizer).hexdigest()[:12]}, and the data in "
            f"{recipe.data.directory} have {theirs}; prepare another data.directory with "
            f"data.tokenizer.path={Path(folder) / 'tokenizer.model'}"
        )


def load_initial_weights(encoder: Encoder, recipe: Recipe, folder: str | Path, tokenizer_hash: str) -> str:
    """Put an imported model's weights into `encoder`; returns a line for the log. Errors: as `check_initial_weights`."""
    check_initial_weights(recipe, folder)
    _, state, tokenizer = read_import(folder)
    encoder.load_logical(state)
    checked = "equal" if tokenizer is not None else "not checked, the import has none"
    return f"weights from {folder}; tokenizer {tokenizer_hash[:12]} ({checked}); optimiser and learning rate start fresh"


def keep_import(folder: PhaseFolder, step: int, source: Path | None) -> None:
    """Copy what an export of an imported model needs (interop/original.py) from `source` into a new phase: the import's
    folder, or the phase before."""
    if step == 0:
        keep_original(source, folder.path)
