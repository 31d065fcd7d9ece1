"""The result of a trained arm of the study: its curve over all phases, its last checkpoint in full, its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.evaluation.run import load_state, window_of
from dist_metaxlm.evaluation.tasks.run import TaskOptions, evaluate_run_tasks
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.reporting.metrics import read_metrics, write_json
from dist_metaxlm.reporting.results import ArmResult, CheckpointFigures, CurvePoint, Items, LossPoint, Measured, TaskResult
from dist_metaxlm.study.arms import Arm, learning_rate_sum
from dist_metaxlm.study.measures import measure_items
from dist_metaxlm.training.checkpointing.manifest import list_steps


def arm_result(
    arm: Arm, folder: Path, device: torch.device, curve_strings: int, tasks: Sequence[str], task_options: TaskOptions
) -> ArmResult:
    """The result of a trained arm; also writes items.json, the outcome of every held-out string, into its folder.

    Args:
        arm: the arm.
        folder: its run folder.
        device: on which it is measured.
        curve_strings: held-out strings read at each checkpoint; the last one reads all.
        tasks: names of tasks for the last checkpoint.
        task_options: their files and settings.
    """
    directory = Path(arm.recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")

    def figures(phase: str, step: int | None, most: int | None) -> tuple[CheckpointFigures, Items]:
        recipe, state = load_state(folder, phase, step)
        encoder = Encoder(recipe.model, recipe.seed)
        encoder.load_state_dict(state)
        return measure_items(encoder.to(device), tokenizer, directory / "heldout", window_of(recipe), most)

    curve: list[CurvePoint] = []
    loss: list[LossPoint] = []
    before = 0
    for phase in arm.phases:
        each = arm.recipe.phase(phase).tokens_per_step
        for step in list_steps(folder / phase / "checkpoints"):
            point, _ = figures(phase, step, curve_strings)
            curve.append({"phase": phase, "tokens": before + step * each, **_measures(point)})
        records = read_metrics(folder / phase / "metrics.jsonl")
        loss += [
            {"phase": phase, "tokens": before + record["step"] * each, "losses": record["losses"]} for record in records
        ]
        before += arm.recipe.phase(phase).total_steps * each
    last, items = figures(arm.phases[-1], None, None)
    write_json(folder / "items.json", items)
    done = evaluate_run_tasks(folder, arm.phases[-1], tasks, task_options) if tasks else {}
    return {
        "label": arm.label,
        "kind": arm.kind,
        "ratio": arm.ratio,
        "seed": arm.seed,
        "tokens": arm.tokens,
        "english_share": _english_share(arm, folder),
        "final": last,
        "curve": curve,
        "loss": loss,
        "tasks": done,
        "figures": _figures(last) | _task_figures(done),
        "learning_rate_sum": learning_rate_sum(arm),
        "seconds": sum(read_metrics(folder / phase / "metrics.jsonl")[-1]["seconds"] for phase in arm.phases),
        "recipe": arm.recipe.model_dump(mode="json"),
    }


def _figures(last: Measured) -> dict[str, float | None]:
    return {
        "english_nll": last["english_nll"],
        "others_nll": last["others_nll"],
        "retrieval": last["retrieval"],
        "retrieval_csls": last["retrieval_csls"],
        "cka": last["cka"],
        "margin": last["margin"],
    }


def _measures(figures: Measured) -> Measured:
    return {
        "english_nll": figures["english_nll"],
        "others_nll": figures["others_nll"],
        "retrieval": figures["retrieval"],
        "retrieval_csls": figures["retrieval_csls"],
        "cka": figures["cka"],
        "margin": figures["margin"],
    }


def _english_share(arm: Arm, folder: Path) -> float | None:
    """Actual English share of the text windows of all phases."""
    english = total = 0
    for phase in arm.phases:
        realised = read_metrics(folder / phase / "metrics.jsonl")[-1]["realised"]
        for objective in arm.recipe.phases[phase].objectives:
            counts = realised.get(objective.name, {}) if objective.reads == "text" else {}
            english, total = english + counts.get("en", 0), total + sum(counts.values())
    return english / total if total else None


def _task_figures(tasks: Mapping[str, TaskResult]) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for name, result in tasks.items():
        if result.get("kind") in ("retrieval", "alignment"):
            of = "cosine" if result["kind"] == "retrieval" else "f1"
            figures[f"{name}:others"] = result["per_layer"][of][result["layer"]]
        elif "table" in result:
            table = result["table"]
            for what, interval in (("English", table["source"]), ("others", table["others"]), ("gap", table["gap"])):
                if interval:
                    figures[f"{name}:{what}"] = interval["mean"]
    return figures
