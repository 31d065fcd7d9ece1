"""The arms of the two-phase study: recipes that differ only in the settings that define the arm.

All arms of a seed start from the same weights, read the same prepared data with the same tokenizer, take steps of the
same size and see N tokens in total (the `cross only` arm N - n1). No arm uses contrast or denoising word alignment:
contrast sentences do not count towards the token budget, and both objectives optimise alignment directly, which is what
the study measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.objectives.causal_lm import CausalLM
from dist_metaxlm.recipe.schema import MaskedLM, PhaseConfig, Recipe
from dist_metaxlm.recipe.stages import stages
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.loop.schedule import learning_rate_at

TWO_PHASE, JOINT, MATCHED, CROSS_ONLY, META_ONLY = "meta+cross", "joint", "joint matched", "cross only", "meta only"
JOINT_TWICE, REVERSED, REPLAY, WITH_CLM = "joint+joint", "reversed", "meta+cross replay", "meta+cross clm"
DEFAULT = (TWO_PHASE, JOINT, MATCHED, CROSS_ONLY, META_ONLY)
"""Arms of a study unless others are asked for."""
MEANING = {
    TWO_PHASE: "English for n1 tokens, then all languages for N - n1",
    JOINT: "all languages for N tokens",
    MATCHED: "one phase of N tokens with the amounts of English, other languages and translations that meta+cross sees",
    CROSS_ONLY: "all languages for N - n1 tokens: equal multilingual compute",
    META_ONLY: "English for N tokens",
    JOINT_TWICE: "all languages for n1 tokens and, after the restart of meta+cross, for N - n1: the control of the restart",
    REVERSED: "all languages for N - n1 tokens, then English for n1",
    REPLAY: "meta+cross whose second phase has the overall English share of its text in place of the recipe's",
    WITH_CLM: "meta+cross whose first phase predicts next tokens (clm) in place of masked ones (mlm)",
}
SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "tiny": (
        3_276_800,
        {"model.layers": 4, "model.hidden": 96, "model.heads": 4, "model.ffn": 256, "model.vocab_size": 8000},
    ),
    "small": (
        200_000_000,
        {"model.layers": 6, "model.hidden": 384, "model.heads": 6, "model.ffn": 1024, "model.vocab_size": 32000},
    ),
    "base": (
        10_000_000_000,
        {"model.layers": 12, "model.hidden": 768, "model.heads": 12, "model.ffn": 2048, "model.vocab_size": 64000},
    ),
}
"""Size -> (N in tokens, recipe fields): about 1M, 23M and 135M parameters. Our choice, not from the paper."""


@dataclass(frozen=True)
class Arm:
    """One training run of the study."""

    kind: str
    """One of MEANING."""
    ratio: float | None
    """n1/N, for the arms that depend on it."""
    seed: int
    """Seed of weights, data order and masks."""
    recipe: Recipe
    """What is trained."""
    phases: tuple[str, ...]
    """Phases to run, in order; the last one is evaluated."""

    @property
    def label(self) -> str:
        """Name of the arm in tables, the same for all seeds."""
        return self.kind if self.ratio is None else f"{self.kind} {self.ratio:g}"

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.label.replace(' ', '-')}-seed{self.seed}"

    @property
    def tokens(self) -> int:
        """Tokens that it trains on."""
        return sum(phase.total_tokens for phase in self.recipe.phases.values())


def study_arms(
    base: Recipe,
    tokens: int,
    ratios: Sequence[float],
    seeds: Sequence[int],
    english: float,
    points: int = 5,
    kinds: Sequence[str] = DEFAULT,
) -> list[Arm]:
    """The arms of these kinds, seed by seed, so that a study stopped early has complete seeds.

    Args:
        base: source of model, data, optimiser and, in its `meta` and `cross` phases, languages, objectives and schedules.
        tokens: N.
        ratios: n1/N, each between 0 and 1.
        seeds: of the runs.
        english: English share of the mlm windows of the `cross` phase.
        points: checkpoints per phase at which curves are measured, including the last one.
        kinds: keys of MEANING.

    Errors: UserError for a ratio, a budget or a recipe that does not allow a study.
    """
    _check(base, ratios, seeds)
    many = _without_contrast(base.phase("cross"))
    size = many.tokens_per_step
    english_phase = _english(base.phase("meta"), size)
    steps = tokens // size
    if steps < 4:
        raise UserError(
            f"{tokens} tokens are {pluralize(steps, 'step')} of {size} tokens; give at least --tokens {4 * size}"
        )
    arms = []
    for seed in seeds:
        arms.append(_arm(JOINT, None, seed, base, {"joint": _lasting(many, steps)}, points))
        arms.append(_arm(META_ONLY, None, seed, base, {"meta": _lasting(english_phase, steps)}, points))
        for ratio in ratios:
            first = min(max(1, round(ratio * steps)), steps - 1)
            meta, cross = _lasting(english_phase, first), _lasting(many, steps - first)
            arms.append(_arm(TWO_PHASE, ratio, seed, base, {"meta": meta, "cross": cross}, points))
            arms.append(_arm(CROSS_ONLY, ratio, seed, base, {"joint": cross}, points))
            arms.append(_arm(MATCHED, ratio, seed, base, {"joint": _matched(many, steps, first, english)}, points))
            for kind, phases in _controls(many, english_phase, steps, first, english).items():
                if kind in kinds:
                    arms.append(_arm(kind, ratio, seed, base, phases, points))
    return [arm for arm in arms if arm.kind in kinds]


def _controls(
    many: PhaseConfig, english_phase: PhaseConfig, steps: int, first: int, english: float
) -> dict[str, dict[str, PhaseConfig]]:
    """Phases of the arms that separate the effects of two phases: restart, order, English in the second phase, objective."""
    meta, cross = _lasting(english_phase, first), _lasting(many, steps - first)
    share = _overall_english(many, steps, first, english)
    replay = PhaseConfig.model_validate(
        cross.model_dump(mode="json") | {"shares": {**cross.model_dump(mode="json")["shares"], "en": share}}
    )
    causal = PhaseConfig.model_validate(
        meta.model_dump(mode="json") | {"objectives": [CausalLM(batch_tokens=many.tokens_per_step).model_dump(mode="json")]}
    )
    return {
        JOINT_TWICE: {"meta": _lasting(many, first), "cross": cross},
        REVERSED: {"meta": cross, "cross": meta},
        REPLAY: {"meta": meta, "cross": replay},
        WITH_CLM: {"meta": causal, "cross": cross},
    }


def learning_rate_sum(arm: Arm) -> float:
    """Sum of the learning rate over all steps of an arm, which arms of one budget should share."""
    return sum(
        learning_rate_at(step, phase.total_steps, phase.learning_rate)
        for phase in arm.recipe.phases.values()
        for step in range(phase.total_steps)
    )


def _check(base: Recipe, ratios: Sequence[float], seeds: Sequence[int]) -> None:
    missing = [name for name in ("meta", "cross") if name not in base.phases]
    if missing:
        raise UserError(f"recipe {base.name} has no phase {missing[0]!r}; a two-phase study uses the phases meta and cross")
    wrong = [ratio for ratio in ratios if not 0 < ratio < 1]
    if wrong or not ratios:
        raise UserError(f"--ratios {wrong[0] if wrong else ''} is not between 0 and 1; give shares of N such as 0.5")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, seeds))} are not different numbers from 0 on")
    kept = [objective for objective in base.phase("cross").objectives if not objective.trains_alignment]
    if not any(objective.reads == "text" for objective in kept):
        raise UserError("phases.cross has no objective on text, such as mlm; a study compares the languages of its text")
    for reads in ("text", "pairs"):
        same = [objective.name for objective in kept if objective.reads == reads]
        if len(same) > 1:
            raise UserError(f"phases.cross has {' and '.join(same)}, which both read {reads}; a study uses one, so drop one")
    languages = base.phase("cross").languages
    if languages != "all" and "en" not in languages:
        raise UserError("phases.cross leaves out English, which the single-phase arms must see; add en to it")
    scheduled = [name for name in ("meta", "cross") if len(stages(base.phase(name))) > 1]
    if scheduled:
        raise UserError(
            f"phases.{scheduled[0]} has a schedule of masks, lengths or batches, and a study compares phases without; give "
            "one number for each"
        )
    if base.phase("meta").sequence_length != base.phase("cross").sequence_length:
        raise UserError("phases.meta and phases.cross have different sequence_length; set them to the same value")


def _arm(kind: str, ratio: float | None, seed: int, base: Recipe, phases: dict[str, PhaseConfig], points: int) -> Arm:
    tree = base.model_dump(mode="json")
    shortest = min(phase.total_steps for phase in phases.values())
    tree["name"] = f"{base.name}-study"
    tree["seed"] = seed
    tree["phases"] = {name: phase.model_dump(mode="json") for name, phase in phases.items()}
    interval = max(1, min(-(-phase.total_steps // points) for phase in phases.values()))
    log = max(1, min(base.training.log_interval, shortest // 2, interval))
    every = -(-interval // log) * log
    tree["training"] |= {
        "log_interval": log,
        "checkpoint_interval": every,
        "probe_interval": 0,
        "keep_checkpoints": max(phase.total_steps for phase in phases.values()) // every + 1,
    }
    return Arm(kind, ratio, seed, Recipe.model_validate(tree), tuple(phases))


def _without_contrast(phase: PhaseConfig) -> PhaseConfig:
    tree = phase.model_dump(mode="json")
    tree["objectives"] = [of.model_dump(mode="json") for of in phase.objectives if not of.trains_alignment]
    return PhaseConfig.model_validate(tree)


def _lasting(phase: PhaseConfig, steps: int) -> PhaseConfig:
    tree = phase.model_dump(mode="json") | {"steps": steps, "tokens": None}
    rate = tree["learning_rate"]
    # a warm-up configured for a longer phase must leave steps for the rest of the schedule
    tree["learning_rate"] = rate | {
        "warmup_steps": min(rate["warmup_steps"], steps // 4),
        "decay_steps": min(rate["decay_steps"], steps // 4),
    }
    return PhaseConfig.model_validate(tree)


def _english(phase: PhaseConfig, batch_tokens: int) -> PhaseConfig:
    """The meta phase of the recipe with the batch size of the multilingual phase."""
    tree = phase.model_dump(mode="json")
    tree["objectives"] = [MaskedLM(batch_tokens=batch_tokens).model_dump(mode="json")]
    return PhaseConfig.model_validate(tree)


def _matched(many: PhaseConfig, steps: int, first: int, english: float) -> PhaseConfig:
    """One phase with the tokens of both: total amounts of mlm and tlm, and the overall English share of mlm."""
    size, length = many.tokens_per_step, many.sequence_length
    mlm = sum(of.tokens_per_step for of in many.objectives if of.reads == "text")
    total = first * size + (steps - first) * mlm
    share = _overall_english(many, steps, first, english)
    per_step = min(size, max(length, round(total / steps / length) * length))
    tree = _lasting(many, steps).model_dump(mode="json")
    tokens = {"text": per_step, "pairs": size - per_step}
    tree["objectives"] = [
        of.model_dump(mode="json") | {of.batch_field: tokens[of.reads]} for of in many.objectives if tokens[of.reads]
    ]
    tree["shares"] = {**tree["shares"], "en": share}
    return PhaseConfig.model_validate(tree)


def _overall_english(many: PhaseConfig, steps: int, first: int, english: float) -> float:
    """English share of the text windows of both phases together."""
    mlm = sum(of.tokens_per_step for of in many.objectives if of.reads == "text")
    alone = first * many.tokens_per_step
    return min((alone + (steps - first) * mlm * english) / (alone + (steps - first) * mlm), 0.999)
