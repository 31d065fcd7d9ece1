"""Checkpoints without a layout: safetensors by logical parameter name, committed by rename, verified before use.

A checkpoint is a folder `step-00000200` with `weights-RRRRR.safetensors` (fp32), `moments-RRRRR.safetensors` (Adam's
moments as `exp_avg.NAME`, `exp_avg_sq.NAME`), `progress.safetensors` and a manifest. Each parameter is
gathered from the ranks that hold pieces of it (ZeRO, tensor parallelism) to the rank whose turn it is to write, without the
vocabulary's padding; so the writing is shared, and any number of ranks in any layout reads it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import all_reduce, barrier, rank, world_size
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training import optimizer_state
from dist_metaxlm.training.manifest import DamagedCheckpoint, verify_manifest, write_manifest


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    folder: Path
    facts: dict[str, Any]
    """From the manifest: step, phase, tokenizer hash, Adam's step count."""

    @property
    def step(self) -> int:
        """Optimiser steps done when it was saved."""
        return int(self.facts["step"])

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        """All tensors of the files `KIND-*.safetensors` (weights, moments, progress)."""
        tensors: dict[str, torch.Tensor] = {}
        for name in sorted(self.facts["files"]):
            if name.startswith(f"{kind}-"):
                with safe_open(self.folder / name, framework="pt") as file:
                    tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def save_checkpoint(root: Path, engine: Any, facts: dict[str, Any], progress: dict[str, torch.Tensor],
                    keep: int) -> None:
    """Write the checkpoint of `facts["step"]` under `root` (collective); older ones beyond `keep` are removed after it.

    Raises:
        OSError: when the disk is full; the unfinished folder is removed and older checkpoints are untouched.
    """
    target = step_folder(root, facts["step"])
    temporary = target.with_name(f".{target.name}.tmp")
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    failure = _write_shards(temporary, engine, progress)
    # All ranks learn whether one failed before any of them goes on, else the others would wait in a barrier for ever.
    number = int(all_reduce(torch.tensor([failure], device=engine.device), "max"))
    if number:
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(number, os.strerror(number), str(target))
    if rank() == 0:
        try:
            write_manifest(temporary, {**facts, "adam_step": optimizer_state.adam_step(engine), "ranks": world_size()})
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # A folder of this name can only be a damaged one that a resumed run has passed over.
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for old in list_steps(root)[:-keep]:
            shutil.rmtree(step_folder(root, old), ignore_errors=True)
    barrier()


def _write_shards(folder: Path, engine: Any, progress: dict[str, torch.Tensor]) -> int:
    """Write this rank's files; returns 0 or the number of the operating system's error."""
    weights: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    writers = groups().stage_ranks
    for index, (name, param) in enumerate(optimizer_state.named_parameters(engine)):
        writer = writers[index % len(writers)]
        full = {name: optimizer_state.full_weight(engine, name, param, writer)}
        weights |= {key: value.contiguous() for key, value in full.items() if value is not None}
        full = {f"{m}.{name}": optimizer_state.full_moment(engine, name, param, m, writer) for m in optimizer_state.MOMENTS}
        moments |= {key: value.contiguous() for key, value in full.items() if value is not None}
    try:
        save_file(weights, folder / f"weights-{rank():05d}.safetensors")
        save_file(moments, folder / f"moments-{rank():05d}.safetensors")
        if rank() == 0:
            save_file(progress, folder / "progress-00000.safetensors")
    except OSError as error:
        return error.errno or errno.EIO
    except SafetensorError as error:  # wraps what the operating system said: "... (os error 28)"
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else errno.EIO
    return 0


def list_steps(root: Path) -> list[int]:
    """Steps of which there is a checkpoint folder, ascending."""
    if not root.is_dir():
        return []
    names = [path.name.removeprefix("step-") for path in root.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def newest_checkpoint(root: Path, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies (or the one of `step`), the same on all ranks (collective).

    Damaged ones are passed over with a line on standard error.
    """
    chosen = torch.full((1,), -1, dtype=torch.int64)
    if rank() == 0:
        for candidate in reversed(list_steps(root) if step is None else [step]):
            try:
                verify_manifest(step_folder(root, candidate))
            except DamagedCheckpoint as error:
                print(f"warning: checkpoint passed over: {error}", file=sys.stderr)
                continue
            chosen[0] = candidate
            break
    device = "cuda" if torch.cuda.is_available() and world_size() > 1 else "cpu"
    found = int(all_reduce(chosen.to(device), "max"))
    if found < 0:
        return None
    # Every rank reads all files itself, from a disk of its own perhaps, so every rank verifies what it will read.
    return Checkpoint(step_folder(root, found), verify_manifest(step_folder(root, found)))


def restore(engine: Any, checkpoint: Checkpoint) -> None:
    """Weights and Adam state of a checkpoint into an engine, in any layout (collective)."""
    weights, moments = checkpoint.tensors("weights"), checkpoint.tensors("moments")
    optimizer_state.set_adam_step(engine, int(checkpoint.facts["adam_step"]))
    for name, param in optimizer_state.named_parameters(engine):
        optimizer_state.set_full_weight(engine, name, param, weights[name])
        for moment in optimizer_state.MOMENTS:
            optimizer_state.set_full_moment(engine, name, param, moment, moments[f"{moment}.{name}"])


def load_weights(run_dir: str | Path, phase: str) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """Recipe and fp32 weights, by logical name, of the newest checkpoint of a run's phase.

    Raises:
        UserError: when there is no such run, phase or intact checkpoint.
    """
    folder = Path(run_dir) / phase
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"no {phase} phase in {run_dir}; train it with `deepspeed launch/pretrain.py --phase {phase} "
                        f"--run_dir {run_dir}` or name another --run_dir")
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"no intact checkpoint in {folder / 'checkpoints'}; run the {phase} phase again")
    return load_recipe(folder / "recipe.yaml"), checkpoint.tensors("weights")
