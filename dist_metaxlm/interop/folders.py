"""Hugging Face folders: configuration, safetensors weights and tokenizer, written and read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tokenizer_import import import_tokenizer
from dist_metaxlm.interop.tokenizers import export_tokenizer
from dist_metaxlm.interop.weights import from_huggingface, huggingface_config, model_config, to_huggingface
from dist_metaxlm.recipe.schema import ModelConfig

SHARD_BYTES = 5 * 10**9
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
LOGICAL_CONFIG, LOGICAL_TOKENIZER = "model_config.json", "tokenizer.model"

State = dict[str, torch.Tensor]


def export_folder(state: State, config: ModelConfig, tokenizer_model_path: str | Path, directory: str | Path,
                  shard_bytes: int = SHARD_BYTES) -> None:
    """Write a folder that `AutoModelForMaskedLM` and `AutoTokenizer` open with `from_pretrained`.

    The folder appears under its name only when it is complete. Weights keep their dtype; over `shard_bytes` bytes
    they go into several files with an index.

    Raises:
        UserError: if `directory` holds anything already, or the tokenizer does not match the model's vocabulary.
    """
    target = Path(directory)
    partial = _claim(target)
    try:
        max_length = config.max_positions
        export_tokenizer(tokenizer_model_path, partial, max_length)
        _check_vocabulary(partial, tokenizer_model_path, config)
        _write_json(partial / CONFIG, huggingface_config(config))
        _write_weights(to_huggingface(state, config), partial, shard_bytes)
        _publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def import_folder(directory: str | Path) -> tuple[ModelConfig, State]:
    """Shape and weights, by our names, of a Hugging Face folder with safetensors weights.

    Raises:
        UserError: for a folder without configuration or safetensors weights, with damaged or missing files, or with
        tensors that the configuration does not ask for.
    """
    folder = Path(directory)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}; give a folder that save_pretrained wrote")
    try:
        config = model_config(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}); copy the folder again") from None
    return config, from_huggingface(dict(_read_weights(folder)), config)


def import_run(directory: str | Path, output: str | Path) -> ModelConfig:
    """Convert a Hugging Face folder to `output`: model.safetensors by our names in fp32, model_config.json, tokenizer.model.

    The last is there where the folder has XLM-R's sentencepiece.bpe.model; `data.tokenizer.path` may name it.
    """
    from safetensors.torch import save_file

    config, state = import_folder(directory)
    tokenizer = import_tokenizer(directory, config)
    target = Path(output)
    partial = _claim(target)
    try:
        save_file({name: tensor.float().contiguous() for name, tensor in state.items()}, partial / WEIGHTS)
        _write_json(partial / LOGICAL_CONFIG, config.model_dump(mode="json"))
        if tokenizer is not None:
            (partial / LOGICAL_TOKENIZER).write_bytes(tokenizer)
        _publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return config


def read_import(directory: str | Path) -> tuple[ModelConfig, State, bytes | None]:
    """What `import_run` wrote: shape, fp32 weights by our names, and the tokenizer model where there is one.

    Raises:
        UserError: when the folder is not an import.
    """
    from safetensors.torch import load_file

    folder = Path(directory)
    if not (folder / LOGICAL_CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no imported model; make one with `python launch/convert.py import --input FOLDER "
                        f"--output {folder}`")
    config = ModelConfig.model_validate_json((folder / LOGICAL_CONFIG).read_text(encoding="utf-8"))
    tokenizer = folder / LOGICAL_TOKENIZER
    return config, load_file(folder / WEIGHTS), tokenizer.read_bytes() if tokenizer.is_file() else None


def fill_mask(directory: str | Path, texts: dict[str, str], top: int = 5) -> dict[str, list[tuple[str, float]]]:
    """The `top` likeliest tokens for the first `<mask>` of each text, with probabilities, by transformers, offline.

    Opens the folder as a user would: AutoModelForMaskedLM and AutoTokenizer.
    Raises UserError for a text without `<mask>`.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    model = AutoModelForMaskedLM.from_pretrained(str(directory), local_files_only=True).eval()
    answers = {}
    for name, text in texts.items():
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
        if len(places) == 0:
            raise UserError(f"text {name!r} has no {tokenizer.mask_token}; write it where the word is missing")
        with torch.inference_mode():
            probabilities = model(**inputs).logits[0, places[0]].float().softmax(0)
        values, ids = probabilities.topk(top)
        answers[name] = [(tokenizer.convert_ids_to_tokens(int(token)).replace("▁", " "), float(value))
                         for token, value in zip(ids, values, strict=True)]
    return answers


def remove_export(directory: str | Path) -> None:
    """Remove an earlier export; UserError for a folder that is not one, so that no other data is lost."""
    target = Path(directory)
    if not target.exists():
        return
    if any(target.iterdir()) and not ((target / "config.json").is_file() and any(target.glob("model*.safetensors"))):
        raise UserError(f"{target} is not an earlier export (no config.json and model.safetensors); give another folder")
    shutil.rmtree(target)


def _claim(target: Path) -> Path:
    """An empty folder beside `target` to fill; UserError if `target` is taken."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; give another folder or remove it")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _publish(partial: Path, target: Path) -> None:
    for path in partial.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    os.replace(partial, target)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_vocabulary(folder: Path, model_path: str | Path, config: ModelConfig) -> None:
    from tokenizers import Tokenizer

    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    if size != config.vocab_size:
        raise UserError(f"{model_path} has {size} token ids with <mask> and the model {config.vocab_size}; "
                        "give the tokenizer that the model was trained with")


def _write_weights(state: State, folder: Path, shard_bytes: int) -> None:
    """One safetensors file, or several with an index; one shard at a time is copied in memory."""
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    places = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # A copy of its own for each: safetensors refuses views that share memory.
        save_file({name: state[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in names},
                  folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in state.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a folder, one after the other."""
    from safetensors import SafetensorError, safe_open

    for file, expected in _weight_files(folder).items():
        path = folder / file
        try:
            with safe_open(path, framework="pt") as tensors:
                absent = sorted(expected - set(tensors.keys()))
                if absent:
                    raise UserError(f"{path} lacks {', '.join(absent[:3])}, which {INDEX} places there; "
                                    "copy the folder again")
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); copy it again") from error


def _weight_files(folder: Path) -> dict[str, set[str]]:
    """File name -> names of the tensors that must be in it."""
    if (folder / INDEX).is_file():
        try:
            places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files: dict[str, set[str]] = {}
            for name, file in places.items():
                files.setdefault(file, set()).add(name)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / INDEX} is not an index of weights; copy the folder again") from error
    elif (folder / WEIGHTS).is_file():
        files = {WEIGHTS: set()}
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise UserError(f"{folder} has only .bin or .pt weights, which can run code when they are loaded; write them anew "
                        "as safetensors with model.save_pretrained(folder)")
    else:
        raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}; give a folder that save_pretrained wrote")
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{folder} lacks the file {file} that {INDEX} names; copy the folder again")
    return files
