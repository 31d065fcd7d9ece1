"""What needs no training, measured beside the arms of a study, and the gate: no verdict from models that have learnt too little.

If the best single-phase arm is not above the untrained model and the overlap of tokens in alignment, and at least half a nat
better than a table of word frequencies, differences between arms say nothing about how they were trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.evaluation.baselines import overlap_retrieval
from dist_metaxlm.evaluation.heldout import masked_strings, read_strings
from dist_metaxlm.evaluation.measures.bits import FrequencyTable, token_counts
from dist_metaxlm.evaluation.measures.embed import SPECIALS
from dist_metaxlm.evaluation.measures.retrieval import MIN_PAIRS
from dist_metaxlm.evaluation.run import window_of
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import read_json, write_json
from dist_metaxlm.reporting.results import ArmResult, Gate, GateCheck, StudyBaselines
from dist_metaxlm.study.arms import JOINT, JOINT_TWICE, MATCHED
from dist_metaxlm.study.measures import measure

NATS = 0.5
"""By how much an arm's masked-token loss must be below that of the table of word frequencies."""
SINGLE_PHASE = (JOINT, JOINT_TWICE, MATCHED)
"""Arms that see all languages from the first step on, with the whole budget."""
CANNOT = "this size cannot answer"


def study_baselines(output: Path, recipes: Mapping[int, Recipe], device: torch.device) -> StudyBaselines:
    """The baselines of a study; those of seeds that `output`/baselines.json has are not measured again.

    Args:
        output: folder of the study, with its prepared data.
        recipes: seed -> recipe of an arm, for its initial weights and data.
        device: on which untrained models are measured.

    Returns:
        `untrained` {seed: figures}, `overlap` (retrieval P@1 by shared tokens), `chance` (mean of 1/N over the languages),
        `frequencies` {english_nll, others_nll} of a table of word frequencies, on the same tokens as the arms.
    """
    path = output / "baselines.json"
    known: StudyBaselines | None = read_json(path)
    recipe = next(iter(recipes.values()))
    directory = Path(recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    baselines = known or _without_model(directory, tokenizer, window_of(recipe))
    for seed, of in recipes.items():
        if str(seed) not in baselines["untrained"]:
            encoder = Encoder(of.model, seed).to(device)
            figures = measure(encoder, tokenizer, directory / "heldout", window_of(of))
            names = ("english_nll", "others_nll", "retrieval", "retrieval_csls", "cka", "margin")
            baselines["untrained"][str(seed)] = {name: figures[name] for name in names}  # type: ignore[literal-required]
    write_json(path, baselines)
    return baselines


def _without_model(directory: Path, tokenizer: Tokenizer, window: int) -> StudyBaselines:
    rows = read_strings(directory / "heldout" / "strings.jsonl")
    overlap = [of for of in overlap_retrieval(rows, tokenizer, window, MIN_PAIRS).values() if of["counted"]]
    asked = masked_strings(rows, tokenizer)
    counts = token_counts(TokenStore.open(directory / "store"), tokenizer, list(asked))
    nats: dict[str, float] = {}
    for code, sentences in asked.items():
        hidden = [of.ids[place] for of in sentences for place in of.hidden if place < window - SPECIALS]
        if code in counts and hidden:
            nats[code] = FrequencyTable(counts[code], tokenizer).nats(hidden) / len(hidden)
    others = [value for code, value in nats.items() if code != "en"]
    return {
        "untrained": {},
        "overlap": _mean([(of["to_english"] + of["from_english"]) / 2 for of in overlap]),
        "chance": _mean([1 / of["candidates"] for of in overlap]),
        "frequencies": {"english_nll": nats.get("en"), "others_nll": _mean(others)},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def judge_gate(results: Sequence[ArmResult], baselines: StudyBaselines) -> Gate | None:
    """Whether the best single-phase arm has learnt enough for a verdict; None while none is finished.

    The best arm is the one that passes most checks, of equal ones the one with the highest retrieval. Figures are means over
    its seeds, those of the untrained model over the same seeds.
    """
    gates = []
    for label in dict.fromkeys(result["label"] for result in results if result["kind"] in SINGLE_PHASE):
        runs = [result for result in results if result["label"] == label]
        checks = _checks(runs, baselines)
        retrieval = _figure(runs, "retrieval")
        gates.append((sum(check["passed"] for check in checks), retrieval or 0.0, label, checks))
    if not gates:
        return None
    passed, _, label, checks = max(gates, key=lambda gate: gate[:2])
    return {"passed": passed == len(checks), "arm": label, "checks": checks}


def _checks(runs: Sequence[ArmResult], baselines: StudyBaselines) -> list[GateCheck]:
    """The conditions of one arm; a figure that does not exist does not pass."""
    untrained = [of for seed, of in baselines["untrained"].items() if int(seed) in {run["seed"] for run in runs}]
    checks: list[GateCheck] = []
    for measure_name, other, bar in (
        ("retrieval", "untrained", _mean([v for of in untrained if (v := of.get("retrieval")) is not None])),
        ("retrieval_csls", "untrained", _mean([v for of in untrained if (v := of.get("retrieval_csls")) is not None])),
        ("retrieval", "token overlap", baselines["overlap"]),
    ):
        value = _figure(runs, measure_name)
        passed = value is not None and bar is not None and value > bar
        checks.append({"measure": measure_name, "baseline": other, "value": value, "bar": bar, "passed": passed})
    for name in ("english_nll", "others_nll"):
        table, value = baselines["frequencies"].get(name), _figure(runs, name)
        bar = None if table is None else table - NATS
        passed = value is not None and bar is not None and value <= bar
        other = f"word frequencies - {NATS} nats"
        checks.append({"measure": name, "baseline": other, "value": value, "bar": bar, "passed": passed})
    return checks


def _figure(runs: Sequence[ArmResult], name: str) -> float | None:
    values = [value for run in runs if (value := run["figures"].get(name)) is not None and math.isfinite(value)]
    return _mean(values)


def gate_sentence(gate: Gate) -> str | None:
    """Why there is no verdict; None if the gate is passed."""
    failed = [check for check in gate["checks"] if not check["passed"]]
    if not failed:
        return None
    said = "; ".join(
        f"{check['measure']} {_shown(check['value'])} against {_shown(check['bar'])} ({check['baseline']})"
        for check in failed
    )
    return (
        f"There is no verdict, because {CANNOT}: the best single-phase arm, {gate['arm']}, is not better than what needs no "
        f"training: {said}. Train longer, or use a larger --size or more text."
    )


def _shown(value: float | None) -> str:
    return "no figure" if value is None else f"{value:.3f}"
