"""Evaluation of a phase of a run: its last checkpoint (or the initialisation) on the run's held-out text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.baselines import run_baselines
from dist_metaxlm.evaluation.heldout import MIN_CANDIDATES, TASKS, evaluate_heldout
from dist_metaxlm.evaluation.word_filling import fill_mask_accuracy, hide_words
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.origins import split_mark
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import UNTRAINED, begun_phases, read_json, write_json
from dist_metaxlm.reporting.results import Baselines, Evaluation
from dist_metaxlm.training.run.run_folder import read_recipe

FILL_MASK = "fill_mask"
WINDOW = 128


def evaluate_run(
    run_dir: Path | str,
    phase: str,
    tasks: Sequence[str] = TASKS,
    min_candidates: int = MIN_CANDIDATES,
    data_directory: str | None = None,
) -> Evaluation:
    """Evaluate a phase and write `evaluation/<phase>.json` in the run's folder.

    Args:
        run_dir: folder of the run.
        phase: the newest checkpoint of that phase (`meta@best`: the one with the best held-out loss,
            `meta@400`: that of step 400); `untrained`: the recipe's initialisation.
        tasks: of `TASKS`.
        min_candidates: see `evaluate_heldout`.
        data_directory: folder of the run's prepared data; None: the one in its recipe.

    Raises:
        UserError: no such run, phase, checkpoint, tokenizer, held-out text or task.
    """
    folder = Path(run_dir)
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise UserError(f"unknown task {unknown[0] if unknown else ''!r}; choose from {', '.join(TASKS)}")
    recipe, encoder = load_encoder(folder, phase, data_directory)
    tokenizer = tokenizer_of(folder, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    window, heldout = window_of(recipe), Path(recipe.data.directory) / "heldout"
    trained = recipe.phases.get(phase.split("@")[0])
    result: Evaluation = {
        "phase": phase,
        "parameters": sum(weight.numel() for weight in encoder.parameters()),
        "window": window,
        "languages": None if trained is None else trained.languages,
    }
    on_strings = [task for task in tasks if task != FILL_MASK]
    if on_strings:
        result |= evaluate_heldout(encoder.to(device), tokenizer, heldout, on_strings, window, min_candidates=min_candidates)
    if FILL_MASK in tasks:
        words = hide_words(heldout, tokenizer, window)
        result["fill_mask"] = fill_mask_accuracy(encoder.to(device), tokenizer, words, window)
    result["seconds"] = round(time.perf_counter() - began, 2)
    write_json(folder / "evaluation" / f"{phase}.json", result)
    return result


def baselines_of(run_dir: Path | str, min_candidates: int = MIN_CANDIDATES, data_directory: str | None = None) -> Baselines:
    """What needs no model, on the held-out text of a run; see `run_baselines`."""
    recipe = read_recipe(Path(run_dir) / "recipe.yaml", data_directory)
    tokenizer = tokenizer_of(Path(run_dir), recipe)
    return run_baselines(Path(run_dir), Path(recipe.data.directory), tokenizer, window_of(recipe), min_candidates)


def former_result(run_dir: Path | str, phase: str) -> Evaluation | None:
    """What an earlier evaluation of a phase has written; None without one."""
    result = read_json(Path(run_dir) / "evaluation" / f"{phase}.json")
    return cast(Evaluation, result) if isinstance(result, dict) else None


def load_encoder(run_dir: Path, phase: str, data_directory: str | None = None) -> tuple[Recipe, Encoder]:
    """The recipe of a run and its model with the weights of a phase, on the CPU in fp32."""
    recipe, weights = load_state(run_dir, phase, data_directory=data_directory)
    encoder = Encoder(recipe.model, recipe.seed)
    encoder.load_state_dict(weights)
    return recipe, encoder


def load_state(
    run_dir: Path, phase: str, step: int | None = None, data_directory: str | None = None
) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """The recipe of a run and the weights of a phase: of its newest checkpoint, or of the one after `step` steps."""
    recipe_path = run_dir / "recipe.yaml"
    if not recipe_path.is_file():
        raise UserError(f"no run at {run_dir} (it has no recipe.yaml); give the folder that metaxlm pretrain wrote")
    if phase == UNTRAINED:
        recipe = read_recipe(recipe_path, data_directory)
        return recipe, Encoder(recipe.model, recipe.seed).state_dict()
    from dist_metaxlm.training.checkpointing import checkpoint
    from dist_metaxlm.training.run import trained_phase

    known = dict.fromkeys([*read_recipe(recipe_path).phases, *begun_phases(run_dir)])
    if split_mark(phase)[0] not in known:
        raise UserError(f"unknown phase {phase!r}; choose from {', '.join((UNTRAINED, *known))}")
    if step is None:
        return trained_phase.load_weights(run_dir, phase, data_directory)
    newest = checkpoint.newest_checkpoint(run_dir / phase / "checkpoints", step)
    if newest is None:
        raise UserError(f"no intact checkpoint of step {step} in {run_dir / phase / 'checkpoints'}; name an existing one")
    return read_recipe(run_dir / phase / "recipe.yaml", data_directory).as_trained(phase), dict(newest.tensors("weights"))


def tokenizer_of(run_dir: Path, recipe: Recipe) -> Tokenizer:
    """The tokenizer that a run was trained with. Errors: UserError if it is missing or has another size."""
    model_path = Path(recipe.data.directory) / "tokenizer.model"
    if not model_path.is_file():
        raise UserError(
            f"no tokenizer at {model_path}; run the command in the folder where {run_dir} was started, or, if "
            "the data have moved, name their folder with --data_directory"
        )
    tokenizer = Tokenizer.load(model_path)
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise UserError(
            f"{model_path} has {tokenizer.vocab_size} ids and the run's model.vocab_size is "
            f"{recipe.model.vocab_size}; put the tokenizer back that the run was trained with"
        )
    return tokenizer


def window_of(recipe: Recipe) -> int:
    """Tokens of an evaluation window: no longer than any phase was trained on, so no position is new to a model."""
    return min(WINDOW, recipe.model.max_positions, *(phase.sequence_length for phase in recipe.phases.values()))
