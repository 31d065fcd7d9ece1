"""Summary of a run as one JSON object: losses of its phases, evaluation of its checkpoints, environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml

from dist_metaxlm.errors import UserError
from dist_metaxlm.reporting.baselines import Brief, Standing, baseline_briefs, brief_of, standing
from dist_metaxlm.reporting.metrics import (
    evaluated,
    keys_of,
    mean,
    possible_phases,
    read_json,
    read_metrics,
    series,
    write_json,
)
from dist_metaxlm.reporting.records import Record
from dist_metaxlm.reporting.results import Baselines, Evaluation, FilledMask

LOSS_LINES = 3
"""First and final loss are means over this many logged lines (fewer in a phase with less than twice as many)."""


class ProbeSummary(TypedDict, total=False):
    """Of a phase that was probed."""

    probe_retrieval: float
    probe_seconds: float
    probe_share: float | None
    """Of the phase's time."""


class HeldoutSummary(TypedDict, total=False):
    """Of a phase whose held-out loss was measured."""

    heldout_bits_per_byte: float
    """The last."""
    heldout_best: float
    heldout_best_step: int
    heldout_word_frequencies: float | None
    heldout_share: float | None
    """Of the phase's time."""


class GuardSummary(TypedDict, total=False):
    """Of a phase that logged its guards."""

    guards: dict[str, int]


class PhaseLosses(TypedDict):
    """Losses and speed of a phase; first and final values are means over a few logged lines."""

    first_loss: float | None
    final_loss: float | None
    first_losses: dict[str, float | None]
    final_losses: dict[str, float | None]
    steps: int
    tokens: int | None
    seconds: float | None
    tokens_per_second: float | None


class PhaseSummary(PhaseLosses, ProbeSummary, HeldoutSummary, GuardSummary):
    """A phase in a run's summary."""


class LanguageFigures(TypedDict, total=False):
    """Figures of a language under a checkpoint, as far as they were measured."""

    p_at_1: float
    """Retrieval at the checkpoint's best layer, mean of both directions."""
    candidates: int
    counted: bool
    """Whether the language is part of the mean."""
    perplexity: float | None
    fill_mask_top1: float
    """Share of hidden words that are the first guess."""


class Summary(TypedDict):
    """summary.json of a run; `phases` and `evaluation` contain only what exists so far."""

    recipe: str | None
    parameters: int | None
    loss_lines: int
    phases: dict[str, PhaseSummary]
    evaluation: dict[str, Brief]
    baselines: dict[str, Brief]
    standing: dict[str, Standing]
    retrieval_ratio: float | None
    """Mean P@1 after cross over that of meta."""
    retrieval_ratio_untrained: float | None
    fill_mask: NotRequired[list[FilledMask]]
    environment: NotRequired[dict[str, Any]]
    seconds: float
    """Training of all phases and evaluation of all checkpoints, together."""
    languages: dict[str, dict[str, LanguageFigures]]
    """Language -> checkpoint -> its figures."""


@dataclass(frozen=True)
class RunFiles:
    """Files of a run that the report uses."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    metrics: dict[str, list[Record]]
    """Phase -> metrics records, in the order of training."""
    evaluations: dict[str, Evaluation]
    """`untrained` and phases (or other checkpoints of them, `meta@best`) -> evaluation result."""
    baselines: Baselines
    """Results that need no model."""
    fill_mask: list[FilledMask]
    """Examples: {language, text with <mask>, predictions [{token, score}]}."""


def read_run(run_dir: Path | str) -> RunFiles:
    """Read a run's folder; files that do not exist yet are empty.

    Raises:
        UserError: the folder holds no run.
    """
    folder = Path(run_dir)
    recipe_path = folder / "recipe.yaml"
    if not recipe_path.is_file():
        raise UserError(f"no run at {folder} (it has no recipe.yaml); give the folder that metaxlm pretrain wrote")
    text = recipe_path.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    if not isinstance(recipe, dict):
        raise UserError(f"{recipe_path} holds no settings; it is not the recipe that metaxlm pretrain wrote")
    sections = recipe.get("phases")
    phases = possible_phases(folder, sections if isinstance(sections, dict) else ())
    metrics = {phase: read_metrics(folder / phase / "metrics.jsonl") for phase in phases}
    named = evaluated(folder / "evaluation", phases)
    evaluations = {name: read_json(folder / "evaluation" / f"{name}.json") for name in named}
    return RunFiles(
        folder=folder,
        recipe=recipe,
        recipe_text=text,
        environment=read_json(folder / "environment.json") or {},
        metrics={phase: records for phase, records in metrics.items() if records},
        evaluations={name: result for name, result in evaluations.items() if result},
        baselines=cast(Baselines, read_json(folder / "evaluation" / "baselines.json") or {}),
        fill_mask=_examples(read_json(folder / "export" / "fill_mask.json") or []),
    )


def _examples(raw: Any) -> list[FilledMask]:
    """Filled masks as a list; they may also be written as {language: {text, predictions [[token, score]]}}."""
    entries: list[Any] = (
        raw
        if isinstance(raw, list)
        else [
            {"language": language, **(entry if isinstance(entry, dict) else {"predictions": entry})}
            for language, entry in raw.items()
        ]
    )
    for entry in entries:
        guesses = entry.get("predictions", [])
        entry["predictions"] = [
            guess if isinstance(guess, dict) else {"token": guess[0], "score": guess[1]} for guess in guesses
        ]
    return entries


def write_summary(run_dir: Path | str) -> Summary:
    """Build the summary of a run and write it to `summary.json` in its folder."""
    summary = build_summary(run_dir)
    write_json(Path(run_dir) / "summary.json", summary)
    return summary


def build_summary(run_dir: Path | str) -> Summary:
    """The summary of a run; `phases` and `evaluation` contain only what exists so far."""
    run = read_run(run_dir)
    evaluation = {name: evaluation_brief(result) for name, result in run.evaluations.items()}
    baselines = baseline_briefs(run.baselines)
    summary: Summary = {
        "recipe": run.recipe.get("name"),
        "parameters": next((r["parameters"] for r in run.evaluations.values() if "parameters" in r), None),
        "loss_lines": LOSS_LINES,
        "phases": {phase: _phase(records) for phase, records in run.metrics.items()},
        "evaluation": evaluation,
        "baselines": baselines,
        "standing": {
            name: standing(name, evaluation, baselines, run.evaluations[name].get("languages"))
            for name in evaluation
            if name != "untrained"
        },
        "retrieval_ratio": _ratio(evaluation, "meta"),
        "retrieval_ratio_untrained": _ratio(evaluation, "untrained"),
        "seconds": _total_seconds(run),
        "languages": _by_language(run.evaluations),
    }
    if run.fill_mask:
        summary["fill_mask"] = run.fill_mask
    summary["environment"] = run.environment
    return summary


def _total_seconds(run: RunFiles) -> float:
    training = sum(records[-1].get("seconds") or 0.0 for records in run.metrics.values())
    return training + sum(result.get("seconds") or 0.0 for result in run.evaluations.values())


def _by_language(evaluations: dict[str, Evaluation]) -> dict[str, dict[str, LanguageFigures]]:
    """Figures of every language under every checkpoint."""
    languages: dict[str, dict[str, LanguageFigures]] = {}
    for name, result in evaluations.items():
        for code, scores in result.get("retrieval", {}).items():
            both = [(a + b) / 2 for a, b in zip(scores["to_english"], scores["from_english"], strict=True)]
            best = result.get("best_layer")
            of = languages.setdefault(code, {}).setdefault(name, {})
            of["p_at_1"] = max(both) if best is None else both[best]
            of["candidates"], of["counted"] = scores["candidates"], scores["counted"]
        for code, perplexity in result.get("perplexity", {}).items():
            languages.setdefault(code, {}).setdefault(name, {})["perplexity"] = perplexity
        words = result["fill_mask"]["languages"] if result.get("fill_mask") else {}
        for code, accuracy in words.items():
            if accuracy is not None:
                languages.setdefault(code, {}).setdefault(name, {})["fill_mask_top1"] = accuracy["top1"]
    return languages


def _phase(records: list[Record]) -> PhaseSummary:
    first, final = _ends(records, "loss")
    objectives = {name: _ends(records, "losses", name) for name in keys_of(records, "losses")}
    last = records[-1]
    phase: PhaseLosses = {
        "first_loss": first,
        "final_loss": final,
        "first_losses": {name: ends[0] for name, ends in objectives.items()},
        "final_losses": {name: ends[1] for name, ends in objectives.items()},
        "steps": last["step"],
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds"),
        "tokens_per_second": _speed(records),
    }
    return {**phase, **_probed(records), **_heldout(records), **_guarded(records)}


def _speed(records: list[Record]) -> float | None:
    """Tokens per second over the whole phase; lines cover different numbers of steps, so their values cannot be averaged."""
    last = records[-1]
    if last.get("tokens") and last.get("seconds"):
        return float(last["tokens"] / last["seconds"])
    return mean(series(records, "tokens_per_second")[1])


def _probed(records: list[Record]) -> ProbeSummary:
    """The last probe's retrieval, seconds of all probes and their share of the phase; nothing without probes."""
    scores, seconds = series(records, "probe", "retrieval")[1], sum(series(records, "probe", "seconds")[1])
    if not scores:
        return {}
    return {
        "probe_retrieval": scores[-1],
        "probe_seconds": seconds,
        "probe_share": seconds / records[-1]["seconds"] if records[-1].get("seconds") else None,
    }


def _heldout(records: list[Record]) -> HeldoutSummary:
    """The last and the best held-out loss, the level of word frequencies, and the share of time; nothing if not measured."""
    steps, losses = series(records, "heldout", "bits_per_byte")
    if not losses:
        return {}
    last = next(record["heldout"] for record in reversed(records) if "heldout" in record)
    seconds = sum(series(records, "heldout", "seconds")[1])
    return {
        "heldout_bits_per_byte": losses[-1],
        "heldout_best": min(losses),
        "heldout_best_step": steps[losses.index(min(losses))],
        "heldout_word_frequencies": last.get("word_frequencies"),
        "heldout_share": seconds / records[-1]["seconds"] if records[-1].get("seconds") else None,
    }


def _guarded(records: list[Record]) -> GuardSummary:
    """Steps without an update, spikes and returns to a checkpoint; nothing in runs of versions that did not log them."""
    return {"guards": records[-1]["guards"]} if "guards" in records[-1] else {}


def _ends(records: list[Record], *keys: str) -> tuple[float | None, float | None]:
    """Mean of a value over its first and over its last lines."""
    values = series(records, *keys)[1]
    count = max(1, min(LOSS_LINES, len(values) // 2))
    return mean(values[:count]), mean(values[-count:])


def evaluation_brief(result: Evaluation) -> Brief:
    """Main figures of one evaluation."""
    short = brief_of(result)
    if "retrieval" in result:
        counted = [scores for scores in result["retrieval"].values() if scores["counted"]]
        short["mean_p_at_1"] = result["mean_p_at_1"]
        short["best_layer"] = result["best_layer"]
        short["candidates_min"] = min((scores["candidates"] for scores in counted), default=None)
        short["languages"] = len(counted)
    return short


def _ratio(evaluation: dict[str, Brief], baseline: str) -> float | None:
    """Mean P@1 after cross over that of `baseline` (meta or untrained), each at its own best layer."""
    before, after = (evaluation[name].get("mean_p_at_1") if name in evaluation else None for name in (baseline, "cross"))
    return after / before if before and after is not None else None
