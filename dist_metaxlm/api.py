"""The Python API: each function is equivalent to the command of its name and raises UserError if that would exit with 2.

Recipes are passed as objects (`load_recipe`) or, as on the command line, as the name of a shipped recipe or the path of
a YAML file. See docs/python-api.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe

if TYPE_CHECKING:
    from dist_metaxlm.planning.plan import Plan
    from dist_metaxlm.reporting.results import Evaluation, FilledMask
    from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint

__all__ = ["evaluate", "export", "load_recipe", "plan", "prepare", "pretrain"]

DTYPES = ("float32", "bfloat16", "float16")
"""Types of exported weights; checkpoints hold float32."""


class Exported(TypedDict):
    """The result of `export`."""

    output: str
    model: dict[str, object]
    """The recipe's section."""
    parameters: int
    fill_mask: NotRequired[list[FilledMask]]
    commit: NotRequired[str]


def prepare(
    recipe: Recipe | str | Path = "quickstart",
    overrides: Iterable[str] = (),
    *,
    until: str = "store",
    workers: int | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, object]:
    """Prepare the missing data of a recipe in its `data.directory`.

    Args:
        recipe: what to prepare.
        overrides: fields of a recipe given by name, such as `phases.meta.steps=20`.
        until: `corpus`, `heldout`, `tokenizer` or `store`: the last step to run.
        workers: number of parallel processes; None: from the number of cores.
        log: called with a line at each step.

    Returns:
        What was prepared: documents, sentences and tokens by language.

    Raises:
        UserError: as `metaxlm prepare`.
    """
    from dist_metaxlm.preparation import prepare as steps

    loaded = _loaded(recipe, overrides)
    steps.prepare(loaded, log, until, workers)
    return steps.describe(loaded)


def pretrain(
    phase: str,
    recipe: Recipe | str | Path = "quickstart",
    overrides: Iterable[str] = (),
    *,
    run_dir: str | Path | None = None,
    resume: str = "auto",
    init_from: str | Path | None = None,
    deepspeed_config: str | Path | None = None,
    change: bool = False,
) -> Path:
    """Train or resume one phase in this process, or return if it is finished; under a launcher, on all ranks together.

    Several phases can be trained one after the other in one process.

    Args:
        phase: of the recipe, such as `meta`, `cross` or `joint`.
        recipe: what to train; missing data are prepared.
        overrides: fields of a recipe given by name.
        run_dir: folder of the run; None: `runs/NAME` of the recipe.
        resume: `auto`, `never`, or the step of a checkpoint.
        init_from: folder that `metaxlm convert import` wrote.
        deepspeed_config: DeepSpeed JSON; None: the file that matches the recipe.
        change: allow a length, learning rate or optimiser other than those the phase was started with.

    Returns:
        The folder of the run, for `evaluate` and `export`.

    Raises:
        UserError: as `metaxlm pretrain`.
        GracefulStop: after a signal, once everything is saved.
    """
    from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
    from dist_metaxlm.evaluation.probe import HeldoutProbe
    from dist_metaxlm.training.pretrain import Options
    from dist_metaxlm.training.pretrain import pretrain as train

    loaded = _loaded(recipe, overrides)
    folder = Path(run_dir or Path("runs") / loaded.name)
    options = Options(
        phase=phase,
        recipe=loaded.name if isinstance(recipe, Recipe) else str(recipe),
        overrides=() if isinstance(recipe, Recipe) else tuple(overrides),
        deepspeed_config=None if deepspeed_config is None else str(deepspeed_config),
        run_dir=str(folder),
        resume=resume,
        init_from=None if init_from is None else str(init_from),
        change=change,
        loaded=loaded,
    )
    train(options, HeldoutProbe, HeldoutLoss)
    return folder


def evaluate(
    run_dir: str | Path,
    phase: str,
    *,
    tasks: Sequence[str] = ("perplexity", "retrieval", "fill_mask"),
    min_candidates: int = 400,
    data_directory: str | Path | None = None,
) -> Evaluation:
    """Evaluate a phase on the run's held-out text and write `evaluation/PHASE.json` in the run's folder.

    Args:
        run_dir: folder of the run.
        phase: of the run, such as `cross`: its newest checkpoint (`meta@best`: the one with the best held-out loss,
            `meta@400`: that of step 400); `untrained`: the recipe's initialisation.
        tasks: of `perplexity`, `retrieval`, `fill_mask`.
        min_candidates: sentences a language needs to enter the mean P@1.
        data_directory: the prepared data of the run; None: where its recipe says.

    Returns:
        The results, by task.

    Raises:
        UserError: as `metaxlm evaluate`.
    """
    from dist_metaxlm.evaluation.run import evaluate_run

    return evaluate_run(run_dir, phase, tasks, min_candidates, None if data_directory is None else str(data_directory))


def export(
    run_dir: str | Path,
    phase: str,
    output: str | Path,
    *,
    dtype: str = "float32",
    max_shard_size: int | str = "5GB",
    data_directory: str | Path | None = None,
    overwrite: bool = False,
    fill_mask: Sequence[str] = (),
    sentence_transformers: bool = False,
    push_to_hub: str | None = None,
    private: bool = True,
) -> Exported:
    """Write the newest checkpoint of a phase and its tokenizer as a Hugging Face folder.

    Args:
        run_dir: folder of the run.
        phase: of the run, such as `cross`; with `@best` or `@STEP` another checkpoint than the newest.
        output: folder to write, which must be empty or hold an earlier export (with `overwrite`).
        dtype: `float32`, `bfloat16` or `float16`.
        max_shard_size: size of the largest weights file, in bytes or as text such as `500MB`.
        data_directory: the prepared data of the run; None: where its recipe says.
        overwrite: replace an earlier export.
        fill_mask: languages in which a masked word of a held-out string is filled with the exported model.
        sentence_transformers: write the files with which sentence-transformers opens the folder (mean of the last layer).
        push_to_hub: OWNER/NAME on the Hugging Face hub to which the folder is uploaded as well.
        private: whether a repository that the upload creates is private.

    Returns:
        `output`, `model` (the recipe's section), `parameters`, `fill_mask` and `commit` (address on the hub) if requested.

    Raises:
        UserError: as `metaxlm convert export`.
    """
    from dist_metaxlm.evaluation.fill_mask import fill_words, hide_heldout_words
    from dist_metaxlm.evaluation.run import tokenizer_of
    from dist_metaxlm.interop.hub import check_push, push_folder
    from dist_metaxlm.planning.parameters import count_parameters
    from dist_metaxlm.training.run.trained_phase import phase_checkpoint

    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if push_to_hub is not None:
        check_push(push_to_hub)
    run, data = Path(run_dir), None if data_directory is None else str(data_directory)
    recipe, checkpoint = phase_checkpoint(str(run), phase, data)
    tokenizer = tokenizer_of(run, recipe)
    questions = hide_heldout_words(Path(recipe.data.directory) / "heldout", tokenizer, list(fill_mask)) if fill_mask else {}
    _write_folder(run, phase, recipe, checkpoint, output, max_shard_size, dtype, overwrite, sentence_transformers)
    written: Exported = {
        "output": str(output),
        "model": recipe.model.model_dump(mode="json"),
        "parameters": count_parameters(recipe.model).total,
    }
    if questions:
        written["fill_mask"] = fill_words(output, questions)
    if push_to_hub is not None:
        written["commit"] = push_folder(output, push_to_hub, private)
    return written


def _write_folder(
    run: Path,
    phase: str,
    recipe: Recipe,
    checkpoint: Checkpoint,
    output: str | Path,
    max_shard_size: int | str,
    dtype: str,
    overwrite: bool,
    sentence_transformers: bool,
) -> None:
    """Write the Hugging Face folder of a checkpoint, with its model card."""
    import torch

    from dist_metaxlm.evaluation.card_facts import card_facts
    from dist_metaxlm.evaluation.run import tokenizer_of
    from dist_metaxlm.interop.folders import export_folder
    from dist_metaxlm.interop.model_card import model_card, sentence_transformers_files
    from dist_metaxlm.interop.original import read_original
    from dist_metaxlm.interop.tensor_source import FileTensors
    from dist_metaxlm.recipe.origins import split_mark

    weights = FileTensors([checkpoint.folder / name for name in checkpoint.facts["files"] if name.startswith("weights-")])
    original = read_original(run / split_mark(phase)[0])
    extra = {"README.md": model_card(card_facts(run, phase, recipe, checkpoint))}
    if sentence_transformers:
        extra |= sentence_transformers_files(recipe.model)
    path, kind = tokenizer_of(run, recipe).path, getattr(torch, dtype)
    export_folder(weights, recipe.model, path, output, max_shard_size, kind, overwrite, original, extra)


def plan(recipe: Recipe | str | Path, cluster: str, overrides: Iterable[str] = ()) -> list[Plan]:
    """Every layout in which a recipe fits on a cluster, with the memory of a device, best first.

    Args:
        recipe: what to train.
        cluster: such as `16x8xH100`: nodes, devices of a node, kind.
        overrides: fields of a recipe given by name.

    Raises:
        UserError: as `metaxlm plan`.
    """
    from dist_metaxlm.planning.cluster import parse_cluster
    from dist_metaxlm.planning.plan import plan as layouts

    return layouts(_loaded(recipe, overrides), parse_cluster(cluster))


def _loaded(recipe: Recipe | str | Path, overrides: Iterable[str]) -> Recipe:
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    words = list(overrides)
    if words:
        raise UserError(f"{words[0]}: overrides go with a recipe given by name; give them to load_recipe")
    return recipe
