"""The average of checkpoints, as a phase of its own that is evaluated, exported and continued from like any other.

Averages of the last checkpoints at a constant learning rate: arXiv 1803.05407 (SWA), arXiv 2306.03241 (LAWA).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import safetensors.torch
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.original import keep_original
from dist_metaxlm.recipe.load import dump_recipe
from dist_metaxlm.recipe.origins import PHASE_PATTERN, RESERVED, split_mark
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.storage.tensor_file import FinishedFile, HashedFile, TensorFile
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint
from dist_metaxlm.training.checkpointing.disk_space import require_room
from dist_metaxlm.training.checkpointing.manifest import (
    Facts,
    list_steps,
    read_facts,
    step_folder,
    write_json,
    write_manifest,
)
from dist_metaxlm.training.run.initial_weights import differing_fields
from dist_metaxlm.training.run.trained_phase import phase_checkpoint


class Averaged(TypedDict):
    """What `average` reports."""

    run_dir: str
    phase: str
    step: int
    """Of the newest checkpoint in it."""
    checkpoints: list[str]
    folder: str


def last_checkpoints(run_dir: Path, phase: str, count: int) -> list[str]:
    """Names (`meta@400`) of the newest `count` checkpoints of a phase.

    Raises:
        UserError: if it has fewer, or `count` is less than 2.
    """
    if count < 2:
        raise UserError(f"--last {count} is no average; give 2 or more")
    steps = list_steps(run_dir / phase / "checkpoints")
    if len(steps) < count:
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(
            f"--last {count}: phase {phase} of {run_dir} has {len(steps)} checkpoints ({known}); give a smaller number, or "
            "train with a larger training.keep_checkpoints"
        )
    return [f"{phase}@{step}" for step in steps[-count:]]


def average(run_dir: str | Path, checkpoints: Sequence[str], name: str, overwrite: bool = False) -> Averaged:
    """Write the mean of the weights of `checkpoints` (such as `meta@400`) as phase `name` of the run.

    Weights of objectives are averaged where all checkpoints have them. Moments are not: a phase can continue from the
    average with a fresh optimiser, but the average cannot be resumed. Means are taken in fp64, tensor by tensor.

    Raises:
        UserError: for fewer than two checkpoints, one that is missing or damaged, different models or tokenizers, or a name
            that is taken or cannot name a phase.
    """
    run, names = Path(run_dir), list(dict.fromkeys(checkpoints))
    if len(names) < 2:
        raise UserError(
            f"{' '.join(checkpoints) or 'nothing'}: an average needs at least two different checkpoints; name more"
        )
    _check_name(run, name, overwrite)
    opened = [phase_checkpoint(run, checkpoint) for checkpoint in names]
    recipe, parts = opened[-1][0], [checkpoint for _, checkpoint in opened]
    if len({part.folder for part in parts}) < len(parts):
        raise UserError(f"{' '.join(names)}: two of these are the same checkpoint; name each once")
    _check_alike(names, opened)
    step = max(part.step for part in parts)
    target = run / name
    temporary = run / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, step, parts, names, name)
        source = split_mark(names[-1])[0]
        write_text(temporary / "recipe.yaml", dump_recipe(_recipe_with(recipe, source, name)))
        keep_original(run / source, temporary)
        tokens = max(part.facts.get("tokens", 0) for part in parts)
        seconds = max(part.facts.get("seconds", 0.0) for part in parts)
        facts: dict[str, object] = {
            "steps": step,
            "tokens": tokens,
            "seconds": seconds,
            "loss": None,
            "losses": {},
            "ranks": 1,
        }
        write_json(temporary / "done.json", facts)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"run_dir": str(run), "phase": name, "step": step, "checkpoints": names, "folder": str(target)}


def _check_name(run: Path, name: str, overwrite: bool) -> None:
    if not re.match(PHASE_PATTERN, name) or name in RESERVED:
        raise UserError(f"--name {name!r} cannot name a phase: it needs letters, digits, _ and -; choose another one")
    folder = run / name
    if not folder.exists():
        return
    steps = list_steps(folder / "checkpoints")
    is_average = bool(steps) and "average" in (read_facts(step_folder(folder / "checkpoints", steps[-1])) or {})
    if not is_average:
        raise UserError(f"--name {name}: {folder} exists and is no average; choose another name")
    if not overwrite:
        raise UserError(f"--name {name}: {folder} is an earlier average; give --overwrite to replace it, or another name")


def _check_alike(names: Sequence[str], opened: Sequence[tuple[Recipe, Checkpoint]]) -> None:
    recipe, first = opened[0]
    for name, (other, part) in zip(names[1:], opened[1:], strict=True):
        differing = differing_fields(recipe.model, other.model)
        if differing:
            raise UserError(f"{names[0]} and {name} are different models ({differing}); average checkpoints of one model")
        if part.facts["tokenizer"] != first.facts["tokenizer"]:
            raise UserError(f"{names[0]} and {name} were trained with different tokenizers; average checkpoints of one")


def _recipe_with(recipe: Recipe, source: str, name: str) -> Recipe:
    """The recipe with the average as another phase, which has the settings of the phase that it is of."""
    phase = recipe.phase(source).model_copy(update={"from_": source})
    return recipe.model_copy(update={"phases": {**recipe.phases, name: phase}})


def _write(phase: Path, step: int, parts: Sequence[Checkpoint], names: Sequence[str], name: str) -> None:
    """The checkpoint folder of the average."""
    folder = step_folder(phase / "checkpoints", step)
    folder.mkdir(parents=True)
    newest = max(parts, key=lambda part: part.step)
    sealed: dict[str, FinishedFile] = {}
    for kind in ("weights", "objectives"):
        tensors = [part.tensors(kind) for part in parts]
        shared = [key for key in tensors[0] if all(key in of for of in tensors)]
        if not shared:
            continue
        shapes = {key: tuple(tensors[0][key].shape) for key in shared}
        require_room(folder, 4 * sum(torch.Size(shape).numel() for shape in shapes.values()))
        file = TensorFile(folder / f"{kind}-00000.safetensors", shapes)
        try:
            for key in shared:
                total = torch.zeros(shapes[key], dtype=torch.float64)
                for of in tensors:
                    total += of[key]
                file.append((total / len(tensors)).float())
            sealed[f"{kind}-00000.safetensors"] = file.finalize()
        finally:
            file.close_quietly()
    seen = torch.stack([part.tensors("progress")["seen"] for part in parts]).amax(0)
    sealed["progress-00000.safetensors"] = _write_progress(folder, seen)
    kept: Facts = {key: value for key, value in newest.facts.items() if key in _KEPT}  # type: ignore[assignment]
    write_manifest(folder, {**kept, "phase": name, "step": step, "adam_step": 0, "average": list(names)}, sealed)


_KEPT = ("tokens", "seconds", "tokenizer", "vocab_size", "schedule_offset")


def _write_progress(folder: Path, seen: torch.Tensor) -> FinishedFile:
    file = HashedFile(folder / "progress-00000.safetensors")
    try:
        file.write(safetensors.torch.save({"seen": seen}))
        return file.finalize()
    finally:
        file.close_quietly()
