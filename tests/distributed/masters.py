"""Do the fp32 masters of a half-precision run begin with the values that were carried over or imported, all bits of them?

Part of worker_precision.py, which has started the ranks already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from worker_layouts import CPU, check_tied, close_subgroups

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.interop.folders import LOGICAL_CONFIG
from dist_metaxlm.interop.shard_writer import WEIGHTS
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_values
from dist_metaxlm.modeling.sharding import own_part
from dist_metaxlm.parallel.groups import form_groups
from dist_metaxlm.parallel.process_group import barrier
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.storage.tensor_file import HashedFile, TensorFile
from dist_metaxlm.training.checkpointing.manifest import step_folder, write_manifest
from dist_metaxlm.training.run import run_phase
from dist_metaxlm.training.run.carry_over import HEAD_BIAS, TABLE
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.prepared_data import open_data
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.starting_point import origin_of

REINITIALISED = "carry_over.unseen_embeddings=reinitialise"


def check_masters(job: dict[str, Any], topology: Topology, cases: list[tuple[str, list[str]]]) -> list[list[str]]:
    """For each way into `cross` ("meta" or "imported") with its overrides, what does not begin with the source's value."""
    root, wrong = Path(job["output"]).with_name("masters"), []
    recipe = load_recipe(job["recipe"])
    source = {name: value.detach() for name, value in Encoder(recipe.model, recipe.seed + 1).named_parameters()}
    seen = torch.arange(recipe.model.vocab_size, dtype=torch.uint8) % 2
    if topology.is_first:
        finished_meta(root, recipe, source, seen)
        (root / "imported").mkdir()
        save_file(source, root / "imported" / WEIGHTS)
        (root / "imported" / LOGICAL_CONFIG).write_text(recipe.model.model_dump_json())
    barrier()
    for number, (way, asked) in enumerate(cases):
        cross = load_recipe(job["recipe"], ["training.precision=bf16", *asked])
        expected = reinitialised(cross, source, seen) if REINITIALISED in asked else source
        folder = root / "imported" if way == "imported" else None
        wrong.append(begun(cross, topology, root, str(number), folder, expected))
    return wrong


def finished_meta(root: Path, recipe: Recipe, weights: dict[str, torch.Tensor], seen: torch.Tensor) -> None:
    """A meta phase with `weights` in its last checkpoint."""
    meta = PhaseFolder(root, "meta")
    folder = step_folder(meta.checkpoints, 1)
    folder.mkdir(parents=True)
    (meta.path / "recipe.yaml").write_text(dump_recipe(recipe))
    file = TensorFile(folder / "weights-00000.safetensors", {name: value.shape for name, value in weights.items()})
    for value in weights.values():
        file.append(value)
    progress = HashedFile(folder / "progress-00000.safetensors")
    progress.write(save({"seen": seen}))
    sealed = {"weights-00000.safetensors": file.finalize(), "progress-00000.safetensors": progress.finalize()}
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model").hash
    write_manifest(folder, {"step": 1, "tokenizer": tokenizer, "vocab_size": recipe.model.vocab_size}, sealed)
    meta.finish({"steps": 1})


def reinitialised(recipe: Recipe, source: dict[str, torch.Tensor], seen: torch.Tensor) -> dict[str, torch.Tensor]:
    """`source` with the embeddings of unseen tokens as a fresh model has them."""
    found = dict(source)
    for name in (TABLE, HEAD_BIAS):
        fresh = initial_values(name, source[name].shape, recipe.seed, recipe.model.init_std)
        found[name] = torch.where(seen.bool().view(-1, *[1] * (fresh.dim() - 1)), source[name], fresh)
    return found


def begun(
    recipe: Recipe, topology: Topology, root: Path, name: str, init_from: Path | None, expected: dict[str, torch.Tensor]
) -> list[str]:
    """Names of what this rank holds otherwise than `expected` when training would begin; empty where all is right."""
    wrong, held = [], 0

    def look(engine: Any, *_: Any) -> None:
        nonlocal held
        for name, param in optimizer_state.named_parameters(engine):
            whole = own_part(name, expected[name], engine.module.encoder.shard)
            start, piece = optimizer_state.own_piece(engine, param, None)
            held += piece.numel()
            if piece.dtype != torch.float32 or not torch.equal(piece, whole.flatten()[start : start + piece.numel()]):
                wrong.append(f"master of {name}")
            if param.dtype != torch.bfloat16 or (param.numel() and not torch.equal(param.data, whole.bfloat16())):
                wrong.append(f"rounded {name}")
        check_tied(engine)
        engine.destroy()

    train, finish, run_phase.train, run_phase.finish = run_phase.train, run_phase.finish, look, lambda *_: None
    form_groups(recipe.parallel.tensor, recipe.parallel.pipeline, CPU)
    # Beside the meta phase, in a folder for each case.
    folder = PhaseFolder(root, "cross")
    folder.path = root / name
    folder.checkpoints, folder.metrics = folder.path / "checkpoints", folder.path / "metrics.jsonl"
    folder.path.mkdir(exist_ok=True)
    options = Options("cross", run_dir=str(root), init_from=None if init_from is None else str(init_from))
    tokenizer, data = open_data(recipe, "cross")
    context = RunContext(
        recipe=recipe, options=options, topology=topology, device=CPU, folder=folder, tokenizer=tokenizer, data=data
    )
    run_phase.run_phase(context, origin_of(recipe, folder, options))
    run_phase.train, run_phase.finish = train, finish
    close_subgroups()
    if not count_parameters(recipe.model).total // 8 < held:
        wrong.append(f"only {held} elements")
    return wrong
