"""The facts of a run's checkpoint that its model card tells (interop/model_card.py)."""

from __future__ import annotations

from pathlib import Path

from dist_metaxlm.interop.model_card import CardFacts
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.origins import split_mark
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import read_json, read_metrics
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint


def card_facts(run_dir: Path, phase: str, recipe: Recipe, checkpoint: Checkpoint) -> CardFacts:
    """Facts of `checkpoint` of a phase (`cross`, `meta@best`) from the run's files and the data's manifest."""
    name = split_mark(phase)[0]
    manifest = read_json(Path(recipe.data.directory) / "store" / "manifest.json") or {}
    tokens: dict[str, int] = {}
    for entry in (manifest.get("text") or {}).values():  # one for each source
        tokens[entry["language"]] = tokens.get(entry["language"], 0) + entry["tokens"]
    wanted = recipe.phase(name).languages
    languages: dict[str, int | None] = {**tokens} if tokens else dict.fromkeys(recipe.data.text)
    shown = languages if wanted == "all" else {code: languages.get(code) for code in wanted}
    records = [record for record in read_metrics(run_dir / name / "metrics.jsonl") if record["step"] <= checkpoint.step]
    last = records[-1] if records and records[-1]["step"] == checkpoint.step else None
    figures = {f"training loss, {key}": value for key, value in (last["losses"] if last else {}).items()}
    if last and "heldout" in last:
        figures["held-out text, bits per byte"] = last["heldout"]["bits_per_byte"]
    return CardFacts(
        recipe=recipe,
        phase=phase,
        step=checkpoint.step,
        tokens=int(checkpoint.facts.get("tokens", 0)),
        parameters=count_parameters(recipe.model).total,
        languages=shown,
        pairs=tuple(recipe.data.bitext) if name != "meta" else (),
        evaluation=read_json(run_dir / "evaluation" / f"{phase}.json"),
        environment=read_json(run_dir / "environment.json"),
        figures=figures,
    )
