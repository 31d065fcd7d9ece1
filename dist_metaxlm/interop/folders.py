"""Hugging Face folders: configuration, safetensors weights and tokenizer, written and read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.configs import CAMEMBERT, fields_to_keep, huggingface_config, model_config
from dist_metaxlm.interop.original import TOKENIZER_FILES, Original, copy_tokenizer, write_original
from dist_metaxlm.interop.shard_writer import INDEX, SHARD_SIZE, WEIGHTS, ShardWriter, write_json
from dist_metaxlm.interop.tensor_source import FileTensors, HeldTensors, TensorSource, row_blocks
from dist_metaxlm.interop.tokenizer_import import FolderTokenizer, read_tokenizer
from dist_metaxlm.interop.tokenizers import export_tokenizer
from dist_metaxlm.interop.untrusted import refuse_foreign_kernels, refuse_unsafe_weights
from dist_metaxlm.interop.weights import Step, export_steps, import_steps, planned, with_fresh_head, with_usual_names
from dist_metaxlm.modeling.sharding import VOCABULARY
from dist_metaxlm.recipe.schema import ModelConfig
from dist_metaxlm.storage.atomic import sync_tree

CONFIG = "config.json"
LOGICAL_CONFIG, LOGICAL_TOKENIZER = "model_config.json", "tokenizer.model"

State = dict[str, torch.Tensor]


def export_folder(
    weights: TensorSource | State,
    config: ModelConfig,
    tokenizer_model_path: str | Path | None,
    directory: str | Path,
    shard_size: int | str = SHARD_SIZE,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    original: Original | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a folder that `AutoModelForMaskedLM` and `AutoTokenizer` open with `from_pretrained`.

    The folder appears under its name only when it is complete, and only then replaces an earlier export (`overwrite`).
    Tensors are read, converted and written one after the other. They keep their dtype unless `dtype` is given; over
    `shard_size` (bytes, or such as "500MB") they go into several files with an index. Without a tokenizer the folder has
    weights and configuration only. Content of the imported folder that `original` keeps is restored, unless
    the tokenizer differs: rows that are not token ids, special ids, added tokens, a tokenizer of its own. `extra`: further
    text files, path in the folder -> content.

    Raises:
        UserError: if `directory` already has other content, `weights` do not match `config`, or the tokenizer does not
        match the model's vocabulary.
        OSError: when the disk is full; nothing is left behind.
    """
    source: TensorSource = HeldTensors(weights) if isinstance(weights, dict) else weights
    export_steps(source, config)  # names and shapes
    kept = Original(config.vocab_size, config.vocab_size)
    if original is not None and original.fits(tokenizer_model_path):
        kept = original
    if kept.ids != config.vocab_size:
        raise UserError(f"the model has vocab_size {config.vocab_size}, but its import has {kept.ids}; import it again")
    source, whole = kept.whole(source), config.model_copy(update={"vocab_size": kept.rows})
    steps = export_steps(source, whole)
    target = Path(directory)
    partial = claim_folder(target, overwrite)
    try:
        if kept.files:
            copy_tokenizer(kept, partial)
        elif tokenizer_model_path is not None:
            export_tokenizer(tokenizer_model_path, partial, config.max_positions, kept.added_tokens)
            _check_vocabulary(partial, tokenizer_model_path, config.vocab_size + len(kept.added_tokens))
        written = _write_weights(source, steps, partial, shard_size, dtype)
        # Without it transformers would load everything in the dtype of the first tensor.
        wide = max((spec.dtype for spec in written.values()), key=lambda kind: kind.itemsize)
        fields = huggingface_config(whole) | dict(kept.config)
        write_json(partial / CONFIG, fields | {"dtype": str(wide).removeprefix("torch.")})
        for name, content in (extra or {}).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(content, encoding="utf-8")
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_folder(directory: str | Path) -> tuple[ModelConfig, FileTensors]:
    """Shape and weights, by Hugging Face's names and not yet read, of a folder that `save_pretrained` wrote.

    Raises:
        UserError: for a folder without configuration or safetensors weights, or with damaged or missing files.
    """
    folder = Path(directory)
    return model_config(_read_config(folder)), _open_weights(folder)


def import_run(
    directory: str | Path, output: str | Path, shard_size: int | str = SHARD_SIZE, fresh_head: bool = False
) -> ModelConfig:
    """Convert a Hugging Face folder to `output`: weights by our names, model_config.json, and tokenizer.model if it has one.

    The model has a row for each token id of the tokenizer; its other content goes to `output/original`, for an export
    (interop/original.py). `fresh_head` initialises a head for an encoder that was saved without one.

    Tensors are read, converted and written one after the other and keep their dtype; over `shard_size` (bytes, or such as
    "500MB") they go into several files with an index. The tokenizer is written if the folder has XLM-R's;
    `data.tokenizer.path` may name it.

    Raises:
        UserError: as `open_folder`, and for tensors that are not part of the configuration's model.
        OSError: when the disk is full; nothing is left behind.
    """
    folder = Path(directory)
    whole, files = open_folder(folder)
    source = with_usual_names(files)
    if fresh_head:
        source = with_fresh_head(source, whole)
    steps = import_steps(source, whole)
    hf_config = _read_config(folder)
    tokenizer = read_tokenizer(folder, whole.vocab_size, hf_config["model_type"] == CAMEMBERT)
    original = _original(folder, hf_config, whole.vocab_size, tokenizer)
    inputs = {step.outputs[0]: step.inputs[0] for step in steps if step.outputs[0] in VOCABULARY}
    config = whole.model_copy(update={"vocab_size": original.ids})
    target = Path(output)
    partial = claim_folder(target)
    try:
        _write_weights(original.cut(source, list(inputs.values())), steps, partial, shard_size)
        if tokenizer is not None:
            (partial / LOGICAL_TOKENIZER).write_bytes(tokenizer.model)
        if not original.is_plain:
            beyond = original.rows > original.ids
            rows = {ours: source.read(theirs, original.ids, original.rows) for ours, theirs in inputs.items() if beyond}
            write_original(original, rows, folder, partial)
        write_json(partial / LOGICAL_CONFIG, config.model_dump(mode="json"))
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return config


def _original(folder: Path, hf_config: Mapping[str, object], rows: int, tokenizer: FolderTokenizer | None) -> Original:
    """The folder's content that an export of its model will need."""
    fields, files = fields_to_keep(hf_config), tuple(name for name in TOKENIZER_FILES if (folder / name).is_file())
    if tokenizer is None:
        return Original(rows, rows, config=fields, files=files)
    return Original(
        rows,
        tokenizer.ids,
        tokenizer.order,
        fields,
        hashlib.sha256(tokenizer.model).hexdigest(),
        tokenizer.added,
        files if tokenizer.order else (),
    )


def read_import(directory: str | Path) -> tuple[ModelConfig, FileTensors, bytes | None]:
    """Result of `import_run`: shape, weights by our names, and the tokenizer model if there is one.

    A tensor is read from its file on each access.

    Raises:
        UserError: when the folder is not an import, or is damaged.
    """
    folder = Path(directory)
    if not (folder / LOGICAL_CONFIG).is_file() or not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        places = f"{folder} --output {folder}-imported" if (folder / CONFIG).is_file() else f"FOLDER --output {folder}"
        raise UserError(f"{folder} holds no imported model; make one with `metaxlm convert import --input {places}`")
    try:
        config = ModelConfig.model_validate_json((folder / LOGICAL_CONFIG).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{folder / LOGICAL_CONFIG} is damaged; import the model again") from None
    weights = _open_weights(folder)
    export_steps(weights, config)  # names and shapes
    tokenizer = folder / LOGICAL_TOKENIZER
    return config, weights, tokenizer.read_bytes() if tokenizer.is_file() else None


def fill_mask(directory: str | Path, texts: dict[str, str], top: int = 5) -> dict[str, list[tuple[str, float]]]:
    """The `top` most probable tokens for the first `<mask>` of each text, with probabilities, by transformers, offline.

    Opens the folder as a user would: AutoModelForMaskedLM and AutoTokenizer.
    Raises UserError for a text without `<mask>`.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    model = AutoModelForMaskedLM.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False, use_safetensors=True
    ).eval()
    answers = {}
    for name, text in texts.items():
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
        if len(places) == 0:
            raise UserError(f"text {name!r} has no {tokenizer.mask_token}; write it where the word is missing")
        with torch.inference_mode():
            # Rows of the embedding without a token id are not candidates.
            probabilities = model(**inputs).logits[0, places[0], : len(tokenizer)].float().softmax(0)
        values, ids = probabilities.topk(top)
        answers[name] = [
            (tokenizer.convert_ids_to_tokens(int(token)).replace("▁", " "), float(value))
            for token, value in zip(ids, values, strict=True)
        ]
    return answers


def claim_folder(target: Path, overwrite: bool = False) -> Path:
    """A new empty folder next to `target`; UserError if `target` is in use, or is not an export that may be overwritten."""
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and not overwrite:
        raise UserError(
            f"{target} exists and is not empty; give another folder, remove it, or let an export replace an "
            "earlier one with --overwrite"
        )
    if taken and not ((target / CONFIG).is_file() and any(target.glob("model*.safetensors"))):
        raise UserError(f"{target} is not an earlier export (no {CONFIG} and {WEIGHTS}); give another folder")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish_folder(partial: Path, target: Path) -> None:
    """Give the complete folder `partial` its name."""
    sync_tree(partial)
    if target.exists():  # empty, or an export that may be overwritten
        shutil.rmtree(target)
    os.replace(partial, target)


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}; give a folder that save_pretrained wrote")
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}); copy the folder again") from None
    refuse_foreign_kernels(folder / CONFIG, content)
    return content


def _check_vocabulary(folder: Path, model_path: str | Path, ids: int) -> None:
    from tokenizers import Tokenizer

    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    if size != ids:
        raise UserError(
            f"{model_path} has {size} token ids with <mask> and the model {ids}; "
            "give the tokenizer that the model was trained with"
        )


def write_logical(source: TensorSource, config: ModelConfig, folder: Path, shard_size: int | str) -> None:
    """Write tensors that have our names already, after checking names and shapes, to safetensors files of `folder`."""
    export_steps(source, config)
    _write_weights(source, [Step((name,), (name,)) for name in source.keys()], folder, shard_size)  # noqa: SIM118


def _write_weights(
    source: TensorSource, steps: list[Step], folder: Path, shard_size: int | str, dtype: torch.dtype | None = None
) -> State:
    """Convert step by step into safetensors files of `folder`; returns what was written, as meta tensors."""
    specs = planned(source, steps)
    if dtype is not None:
        specs = {name: spec.to(dtype) for name, spec in specs.items()}
    writer = ShardWriter(folder, specs, shard_size)
    for step in steps:
        if step.convert is None:
            for first, rows in row_blocks(source, step.inputs[0]):
                writer.write(step.outputs[0], rows, first)
            continue
        for name, tensor in zip(step.outputs, step.run([source.read(name) for name in step.inputs]), strict=True):
            writer.write(name, tensor)
    writer.finish()
    return specs


def _open_weights(folder: Path) -> FileTensors:
    """The safetensors files of a folder, whose headers must match its index exactly."""
    places = _index(folder)
    files = sorted(set(places.values())) if places else [WEIGHTS]
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{folder} lacks the file {file} that {INDEX} names; copy the folder again")
    tensors = FileTensors(folder / file for file in files)
    for name, file in places.items():
        if name not in tensors or tensors.path(name).name != file:
            raise UserError(f"{folder / file} lacks {name}, which {INDEX} places there; copy the folder again")
    return tensors


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> file by the folder's index; empty if all weights are in one file."""
    if (folder / INDEX).is_file():
        try:
            places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            if places and all(isinstance(file, str) for file in places.values()):
                return dict(places)
            raise ValueError("no files")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / INDEX} is not an index of weights; copy the folder again") from error
    if (folder / WEIGHTS).is_file():
        return {}
    refuse_unsafe_weights(folder)
    raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}; give a folder that save_pretrained wrote")
