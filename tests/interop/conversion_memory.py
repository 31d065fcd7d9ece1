"""`make check-convert`: what launch/convert.py needs in memory for a model of some size, both ways.

Writes a Hugging Face folder with random weights (a block at a time), imports it, makes a checkpoint of the import (as the
trainer's files lie), exports that, and compares every tensor of the export with the first folder. Each conversion is a
process of its own, which reports its memory before and its highest memory while converting (VmHWM of /proc/self/status;
ru_maxrss would hold what the parent had before the program was started).
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the cat sat on the mat", "der Hund lief durch den Garten", "le chat dort sur la chaise", "кошка сидит на столе"]
MB = 2**20


def status_mb(field: str) -> float:
    """A field of /proc/self/status in MiB: VmRSS (now) or VmHWM (highest)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def child(arguments: list[str]) -> int:
    """Run launch/convert.py in this process and print its memory as the last line."""
    import huggingface_hub  # noqa: F401
    import sentencepiece  # noqa: F401
    import tokenizers  # noqa: F401
    import torch

    import dist_metaxlm.interop.folders
    import dist_metaxlm.training.checkpointing.checkpoint  # noqa: F401
    from dist_metaxlm.modeling.encoder import Encoder
    from dist_metaxlm.recipe.schema import ModelConfig

    with torch.device("meta"):  # torch imports 150 MB of its own code for the first tensors of this kind
        Encoder(ModelConfig(layers=1, hidden=8, heads=2, ffn=8, vocab_size=301))
    before, start, code = status_mb("VmRSS"), time.perf_counter(), 0
    sys.argv = ["convert.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "launch" / "convert.py"), run_name="__main__")
    except SystemExit as stop:
        code = int(stop.code or 0)
    print(
        json.dumps(
            {
                "before_mb": round(before, 1),
                "growth_mb": round(status_mb("VmHWM") - before, 1),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    )
    return code


def convert(*arguments: str) -> dict[str, Any]:
    """launch/convert.py in a process of its own; its memory."""
    done = subprocess.run([sys.executable, __file__, "child", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def make_tokenizer(path: Path, pieces: int) -> None:
    """A SentencePiece model with `pieces` pieces: a trained one, filled up with made-up words."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 10),
        model_prefix=str(path.with_suffix("")),
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    for number in range(pieces - len(model.pieces)):
        model.pieces.add(piece=f"▁#{number:x}", score=-20.0, type=1)
    path.write_bytes(model.SerializeToString())


def make_folder(folder: Path, config: Any, tokenizer: Path) -> None:
    """A Hugging Face folder of `config` with random weights and the tokenizer in it."""
    import torch

    from dist_metaxlm.interop.configs import huggingface_config
    from dist_metaxlm.interop.shard_writer import ShardWriter, write_json
    from dist_metaxlm.interop.tensor_source import BLOCK_BYTES, HeldTensors
    from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE
    from dist_metaxlm.interop.weights import export_steps, planned
    from dist_metaxlm.modeling.encoder import Encoder

    folder.mkdir()
    with torch.device("meta"):
        source = HeldTensors(Encoder(config).state_dict())
    specs = planned(source, export_steps(source, config))
    writer = ShardWriter(folder, specs, "1GB")
    generator = torch.Generator().manual_seed(1)
    for name, spec in specs.items():
        rows = max(1, BLOCK_BYTES * spec.shape[0] // spec.nbytes)
        for first in range(0, spec.shape[0], rows):
            shape = (min(rows, spec.shape[0] - first), *spec.shape[1:])
            writer.write(name, torch.randn(shape, generator=generator), first)
    writer.finish()
    write_json(folder / "config.json", huggingface_config(config))
    (folder / SENTENCEPIECE_FILE).write_bytes(tokenizer.read_bytes())


def make_run(run_dir: Path, imported: Path, config: Any) -> None:
    """A run whose meta phase has one checkpoint: the import's weights, as files of two ranks lie in one."""
    from dist_metaxlm.recipe.load import dump_recipe, load_recipe
    from dist_metaxlm.storage.digest import file_digest
    from dist_metaxlm.storage.tensor_file import FinishedFile
    from dist_metaxlm.training.checkpointing.manifest import write_manifest

    data, step = run_dir / "data", run_dir / "meta" / "checkpoints" / "step-00000001"
    data.mkdir(parents=True)
    step.mkdir(parents=True)
    os.link(imported / "tokenizer.model", data / "tokenizer.model")
    for number, path in enumerate(sorted(imported.glob("*.safetensors"))):
        os.link(path, step / f"weights-{number:05d}.safetensors")
    sealed = {path.name: FinishedFile(path.stat().st_size, file_digest(path)) for path in step.iterdir()}
    write_manifest(step, {"step": 1, "phase": "meta"}, sealed)
    recipe = load_recipe("quickstart", [f"data.directory={data}"])
    recipe = recipe.model_copy(update={"model": config})
    (run_dir / "meta" / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")


def differing(one: Path, other: Path) -> list[str]:
    """Names of tensors that are not the same, type and every bit, in two Hugging Face folders."""
    import torch

    from dist_metaxlm.interop.folders import open_folder
    from dist_metaxlm.interop.tensor_source import row_blocks

    (_, left), (_, right) = open_folder(one), open_folder(other)
    wrong = sorted(set(left) ^ set(right))
    for name in set(left) & set(right):
        if left.spec(name).shape != right.spec(name).shape or left.spec(name).dtype != right.spec(name).dtype:
            wrong.append(name)
            continue
        blocks = zip(row_blocks(left, name), row_blocks(right, name), strict=True)
        if not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for (_, a), (_, b) in blocks):
            wrong.append(name)
    return wrong


def measure(config: Any, place: Path) -> dict[str, Any]:
    """Import and export of a random model of this shape in `place`: sizes and memory in MiB, seconds."""
    from dist_metaxlm.interop.folders import open_folder

    tokenizer, given, imported, run_dir, exported = (
        place / name for name in ("tokenizer.model", "given", "imported", "run", "exported")
    )
    make_tokenizer(tokenizer, config.vocab_size - 1)
    make_folder(given, config, tokenizer)
    sizes = [spec.nbytes for spec in map(open_folder(given)[1].spec, open_folder(given)[1])]
    figures: dict[str, Any] = {
        "model_mb": round(sum(sizes) / MB),
        "tensors": len(sizes),
        "largest_tensor_mb": round(max(sizes) / MB, 1),
    }
    figures["import"] = convert("import", "--input", str(given), "--output", str(imported), "--max_shard_size", "1GB")
    make_run(run_dir, imported, config)
    figures["export"] = convert("export", "--run_dir", str(run_dir), "--phase", "meta", "--output", str(exported))
    figures["differing_tensors"] = differing(given, exported)
    return figures


def main() -> int:
    from dist_metaxlm.recipe.load import load_recipe
    from dist_metaxlm.training.checkpointing.manifest import write_json
    from dist_metaxlm.training.run.environment import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="xlmr-large", help="recipe whose model is generated")
    parser.add_argument("--layers", type=int, help="blocks, if other than the recipe's (at least 3)")
    parser.add_argument("--vocab_size", type=int, help="token ids, if other than the recipe's")
    parser.add_argument("--place", help="folder for about three times the model's size (default: the system's)")
    parser.add_argument("--output", required=True, help="JSON file for the figures")
    arguments = parser.parse_args()
    changes = {name: getattr(arguments, name) for name in ("layers", "vocab_size") if getattr(arguments, name)}
    config = load_recipe(arguments.recipe).model.model_copy(update=changes)
    with tempfile.TemporaryDirectory(dir=arguments.place) as place:
        figures = measure(config, Path(place))
    surroundings = environment()
    del surroundings["command"]  # as typed here, with this machine's paths
    command = " ".join(
        [
            "python tests/interop/conversion_memory.py --recipe",
            arguments.recipe,
            *(f"--{name} {value}" for name, value in changes.items()),
        ]
    )
    write_json(
        Path(arguments.output),
        {"command": command, "model": config.model_dump(mode="json"), **figures, "environment": surroundings},
    )
    print(json.dumps(figures, indent=1))
    return 1 if figures["differing_tensors"] else 0


if __name__ == "__main__":
    raise SystemExit(child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main())
