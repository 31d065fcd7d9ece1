"""Builds inputs that run a command if anything in them is executed; the command makes the file `canary`."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dist_metaxlm.interop.folders import export_folder
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig


def pickled(canary: Path) -> bytes:
    """A pickle of protocol 0 that calls os.system: reading it makes the canary."""
    return b"cposix\nsystem\n(S'touch " + bytes(canary) + b"'\ntR."


def torch_file(path: Path, canary: Path) -> None:
    """A file as torch.save writes it, whose pickle makes the canary."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def numpy_file(path: Path, canary: Path) -> None:
    """A .npy file of objects, whose pickle makes the canary."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled(canary))


def code(path: Path, canary: Path) -> None:
    """A Python module that makes the canary when it is imported."""
    path.write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast\n"
        "class Config(PretrainedConfig):\n    model_type = 'strange'\n"
        "class Model(PreTrainedModel):\n    config_class = Config\n"
        "class Tokens(PreTrainedTokenizerFast):\n    pass\n",
        encoding="utf-8",
    )


def model_folder(folder: Path, tokenizer: Path | None) -> Path:
    """A correct Hugging Face folder of a tiny model, to which others add what is hostile."""
    vocabulary = 383 if tokenizer is None else _ids(tokenizer)
    config = ModelConfig(layers=1, hidden=8, heads=2, ffn=8, vocab_size=vocabulary, max_positions=32)
    state: dict[str, torch.Tensor] = {n: v.detach() for n, v in Encoder(config, seed=1).state_dict().items()}
    export_folder(state, config, tokenizer, folder)
    return folder


def _ids(tokenizer: Path) -> int:
    from dist_metaxlm.data.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer).vocab_size


def change_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file, which may not exist yet."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def without_weights(folder: Path) -> None:
    """Remove the safetensors files."""
    for path in folder.glob("*.safetensors"):
        path.unlink()


def gzip_bomb(path: Path, megabytes: int) -> None:
    """A small file that unpacks to one line of many megabytes."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(megabytes):
            file.write(b"a" * (1 << 20))


def plain_tensors(path: Path) -> None:
    """A correct safetensors file."""
    save_file({"x": torch.zeros(2)}, path)
