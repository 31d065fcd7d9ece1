"""Further readers for damaged_files.py: tables and archives, settings, folders of transformers, variables of a launcher."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import torch
from safetensors.torch import save

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.interop.folders import open_folder
from dist_metaxlm.interop.tokenizer_import import read_tokenizer
from dist_metaxlm.interop.tokenizers import export_tokenizer
from dist_metaxlm.launching.hostfile import read_hostfile
from dist_metaxlm.parallel import launchers
from dist_metaxlm.preparation.readers.paths import expand
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe

ROWS = [{"text": "one\ntwo", "en": "a", "de": "c"}, {"text": 'three, "four"', "en": "b", "de": None}]
CSV = b'text,en,de\n"one\ntwo",a,b\n"three ""four""",c,d\n\nfive,e,f\n'
DEEPSPEED = {
    "train_batch_size": "auto",
    "gradient_clipping": 0.5,
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 5e8,
        "offload_optimizer": {"device": "cpu"},
    },
    "bf16": {"enabled": False},
    "comms_logger": {"enabled": False, "prof_ops": ["all_reduce"]},
}
XLMR = {
    "model_type": "xlm-roberta",
    "architectures": ["XLMRobertaForMaskedLM"],
    "vocab_size": 400,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 42,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VARIABLES = b"RANK=0\nWORLD_SIZE=1\nLOCAL_RANK=0\nSLURM_PROCID=0\nSLURM_NTASKS=1\nSLURM_STEP_ID=0\nPMI_SIZE=1\n"
WEIGHTS = save({"a.weight": torch.ones(3, 2), "b.bias": torch.zeros(5, dtype=torch.bfloat16)})
RECIPE = resources.files("dist_metaxlm.recipe") / "recipes" / "quickstart.yaml"


def _arrow() -> bytes:
    file, table = io.BytesIO(), pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("1.txt", b"one\ntwo\n"), ("2.json", b'{"text": "three"}'), ("3.jpg", b"\xff\xd8")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@cache
def _quickstart() -> Recipe:
    return load_recipe("quickstart")


def _deepspeed(path: Path) -> None:
    follow_file(_quickstart(), str(path))


def _model_folder(name: str) -> Callable[[Path], None]:
    """Open a model's folder in which the file `name` is the damaged one."""

    def read(path: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "config.json").write_text(json.dumps(XLMR))
            (folder / "model.safetensors").write_bytes(WEIGHTS)
            os.replace(path, folder / name)
            path.touch()
            _, tensors = open_folder(folder)
            for tensor in tensors:
                tensors.read(tensor)

    return read


def _variables(path: Path) -> None:
    """The variables of a file, read as those of a launcher."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\0", "").split("\n")
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    for read in (launchers.from_environment, launchers.from_kubernetes, launchers.from_slurm):
        read(dict(given))
    launchers.mpi_size(given)


def _patterns(path: Path) -> None:
    """The lines of a file as patterns below its folder."""
    for name in ("a[1].txt", "b/c [2]/d.txt"):
        (path.parent / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "files" / name).write_text("x\n")
    for line in path.read_text(encoding="utf-8", errors="replace").replace("\0", "").split("\n"):
        if line and not line.startswith("~") and len(line) < 200 and "://" not in line:
            expand([f"{path.parent}/files/{line}"], "f", keep_empty=True)


@cache
def _tokenizer_files() -> dict[str, bytes]:
    """The files of an exported tokenizer."""
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "interop")]
    from tiny_tokenizer import train_tokenizer
    from tokenizer_texts import SENTENCES

    with tempfile.TemporaryDirectory() as place:
        model = train_tokenizer(SENTENCES * 4, Path(place), 740)
        export_tokenizer(model, Path(place) / "exported")
        found = {file.name: file.read_bytes() for file in (Path(place) / "exported").iterdir()}
        return {**found, "tokenizer.model": model.read_bytes()}


def _folder_with(name: str) -> Callable[[Path], None]:
    """Read a tokenizer's folder in which the file `name` is the damaged one."""

    def read(path: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            for other, content in _tokenizer_files().items():
                if other not in ("tokenizer.model", "sentencepiece.bpe.model"):
                    (Path(place) / other).write_bytes(content)
            os.replace(path, Path(place) / name)
            path.touch()
            read_tokenizer(place, 760)

    return read


def samples(documents: Callable[[Path], None], pairs: Callable[[Path], None]) -> list[tuple[str, bytes, Any]]:
    """(name, content, reader) of every further format."""
    lines = b"one\ntwo\n\n" * 40
    array = json.dumps(ROWS).encode()
    found = _tokenizer_files()
    return [
        ("a.csv", CSV, documents),
        ("b.csv", CSV.replace(b",", b";"), pairs),
        ("a.json", array, documents),
        ("b.json", array.replace(b"null", b'"x"'), pairs),
        ("a.arrow", _arrow(), documents),
        ("b.arrow", _arrow(), pairs),
        ("a.tar", _tar(), documents),
        ("a.tar.gz", gzip.compress(_tar()), documents),
        ("a.txt.bz2", bz2.compress(lines), documents),
        ("a.txt.xz", lzma.compress(lines), documents),
        ("a.txt.zst", pyarrow.compress(lines, codec="zstd", asbytes=True), documents),
        ("deepspeed.json", json.dumps(DEEPSPEED).encode(), _deepspeed),
        ("config.json", json.dumps(XLMR).encode(), _model_folder("config.json")),
        ("model.safetensors", WEIGHTS, _model_folder("model.safetensors")),
        ("tokenizer.json", found["tokenizer.json"], _folder_with("tokenizer.json")),
        ("tokenizer_config.json", found["tokenizer_config.json"], _folder_with("tokenizer_config.json")),
        ("tokenizer.model", found["tokenizer.model"], Tokenizer.load),
        ("hostfile", b"node1 slots=2\nnode2 slots=4 # rack 3\n\n", read_hostfile),
        ("recipe.yaml", RECIPE.read_bytes(), load_recipe),
        ("variables", VARIABLES, _variables),
        ("patterns", b"a[1].txt\nb/c [2]/*.txt\n**/d.txt\n", _patterns),
    ]
