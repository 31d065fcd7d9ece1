"""The result of a run's phase: its recipe, newest intact checkpoint and weights."""

from __future__ import annotations

from pathlib import Path

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.origins import split_mark
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import begun_phases
from dist_metaxlm.storage.digest import file_digest
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint, newest_checkpoint
from dist_metaxlm.training.checkpointing.manifest import best_step, list_steps
from dist_metaxlm.training.run.run_folder import read_recipe


def phase_checkpoint(run_dir: str | Path, phase: str, data_directory: str | None = None) -> tuple[Recipe, Checkpoint]:
    """Recipe, with its model as the phase trains it, and newest intact checkpoint of a run's phase.

    `data_directory`: its data, if they were moved.

    `phase` may name another checkpoint of it: `meta@400` that of step 400, `meta@best` the one with the best held-out loss.

    Raises:
        UserError: if there is no such run, phase or intact checkpoint, or the data have another tokenizer than the phase
        was trained with.
    """
    asked, (phase, mark) = phase, split_mark(phase)
    folder = Path(run_dir) / phase
    if not Path(run_dir).is_dir():
        raise UserError(f"there is no run in {run_dir}; give its folder with --run_dir")
    if not (folder / "recipe.yaml").is_file():
        known = begun_phases(Path(run_dir))
        has = f"; it has {', '.join(known)}" if known else ""
        raise UserError(
            f"no {phase} phase in {run_dir}{has}; train it with `metaxlm pretrain --phase {phase} "
            f"--run_dir {run_dir}` or give another --run_dir"
        )
    step = None if mark is None else _step_of(folder / "checkpoints", mark, asked)
    checkpoint = newest_checkpoint(folder / "checkpoints", step)
    if checkpoint is None and step is not None:
        steps = ", ".join(map(str, list_steps(folder / "checkpoints"))) or "none"
        raise UserError(f"{asked}: {folder / 'checkpoints'} has no intact checkpoint of step {step}; it has {steps}")
    if checkpoint is None:
        raise UserError(
            f"no intact checkpoint in {folder / 'checkpoints'}; train the {phase} phase again with --resume never"
        )
    recipe = read_recipe(folder / "recipe.yaml", data_directory).as_trained(phase)
    tokenizer, trained = Path(recipe.data.directory) / "tokenizer.model", checkpoint.facts.get("tokenizer")
    prepared = file_digest(tokenizer) if tokenizer.is_file() else None
    if trained is not None and prepared is not None and prepared != trained:
        raise UserError(
            f"{checkpoint.folder} was trained with tokenizer {trained[:12]}, and {tokenizer} is "
            f"{prepared[:12]}; give the folder of the data that it was trained on"
        )
    return recipe, checkpoint


def _step_of(checkpoints: Path, mark: str, asked: str) -> int:
    if mark != "best":
        return int(mark)
    best = best_step(checkpoints)
    if best is None:
        raise UserError(
            f"{asked}: no checkpoint in {checkpoints} has a held-out loss; train with training.heldout_interval and "
            "training.keep_best=true, or name a step"
        )
    return best[0]


def load_weights(
    run_dir: str | Path, phase: str, data_directory: str | None = None
) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """Recipe and fp32 weights, by logical name, of the checkpoint that `phase_checkpoint` finds."""
    recipe, checkpoint = phase_checkpoint(run_dir, phase, data_directory)
    return recipe, dict(checkpoint.tensors("weights"))
