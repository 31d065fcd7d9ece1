"""The choices of a recipe for the user's own text: sizes that fit the text and the machine, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dist_metaxlm.errors import UserError
from dist_metaxlm.own_recipe.machine import Machine
from dist_metaxlm.own_recipe.measure import Measured
from dist_metaxlm.own_recipe.sizes import SIZES, Shape, shape_of, total
from dist_metaxlm.planning.flops import step_flops
from dist_metaxlm.preparation.corpus.heldout import COUNTED_CANDIDATES, MAX_SHARE, PIVOT
from dist_metaxlm.recipe.schema import (
    LEAST_VOCAB,
    Contrast,
    LearningRate,
    MaskedLM,
    ModelConfig,
    Objective,
    PhaseConfig,
    TranslationLM,
)

TOKENS_A_PARAMETER = 20
"""Most tokens for the compute (Hoffmann et al., arXiv 2203.15556)."""
EPOCHS = 4
"""Repetitions that are nearly as good as new text (Muennighoff et al., arXiv 2305.16264)."""
TOKENS_A_PIECE = 250
"""Tokens of text for each token id: the quickstart's ratio."""
LEAST_STEPS, STEPS_OF_A_PHASE = 50, 600
"""Fewest optimiser steps, and the steps that a phase has before its batch grows: the quickstart's."""
LEAST_BATCH, LARGEST_BATCH = 2048, 1 << 20
"""Tokens a step of masked language modelling: the quickstart's, and a bound of ours."""
HELDOUT_STRINGS = 600
"""The quickstart's."""
PROBED_STRINGS = 40
"""Held-out strings from which retrieval is probed while training: a probe needs 10 of a language."""
PROSE_BYTES = 1_100_000
"""Text of a language from which prose is held out (preparation/corpus/heldout.py), with a margin."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user fixed; None: to be chosen."""

    size: str | None = None
    """A name of SIZES."""
    parameters: int | None = None
    """Parameters of the model."""
    vocabulary: int | None = None
    """Token ids."""
    hours: float | None = None
    """Longest training time, for all phases together; applies where the speed of the machine is known."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """All choices."""

    size: str
    """Name of the size, or the number of parameters asked for."""
    shape: Shape
    """Shape of the model."""
    model: ModelConfig
    """The same with its vocabulary."""
    heldout_strings: int
    """Source strings held out."""
    probes: bool
    """Whether retrieval is measured while training."""
    heldout_loss: bool
    """Whether the held-out loss is measured while training."""
    main_language: str
    """Language of the first phase."""
    phases: dict[str, PhaseConfig]
    """The phases, with their steps."""
    reasons: dict[str, str]
    """Phase -> what decided its length."""
    hours: float | None
    """Estimated training time on this machine; None if its speed is not known."""
    warnings: tuple[str, ...]
    """Consequences of little text, each one sentence."""


def choose(measured: Measured, machine: Machine, wishes: Wishes) -> Choices:
    """Choose everything that the text and the machine decide.

    Errors: UserError for a size or vocabulary that is not possible.
    """
    name, shape, vocabulary = _model(measured, machine, wishes)
    model = shape.model(vocabulary)
    main = PIVOT if PIVOT in measured.text else max(measured.text, key=lambda code: measured.text[code].bytes)
    held = min(HELDOUT_STRINGS, int(MAX_SHARE * max(measured.english_sources.values(), default=0)))
    phases, reasons = _phases(measured, model, shape, main, held)
    phases, hours = _within(phases, reasons, model, machine, wishes.hours)
    prose = measured.text[main].bytes >= PROSE_BYTES
    return Choices(
        size=name,
        shape=shape,
        model=model,
        heldout_strings=max(held, 10) if measured.english_sources else HELDOUT_STRINGS,
        probes=bool(measured.english_sources) and held >= PROBED_STRINGS,
        heldout_loss=prose or (bool(measured.english_sources) and held >= PROBED_STRINGS and main == PIVOT),
        main_language=main,
        phases=phases,
        reasons=reasons,
        hours=hours,
        warnings=tuple(_warnings(measured, machine, model, held)),
    )


def _model(measured: Measured, machine: Machine, wishes: Wishes) -> tuple[str, Shape, int]:
    name = wishes.size or _size(measured, machine)
    if wishes.parameters is not None:
        vocabulary = wishes.vocabulary or _vocabulary(measured, min(256_000, max(1000, wishes.parameters // 300)))
        return f"{wishes.parameters:,} parameters", shape_of(wishes.parameters, vocabulary), vocabulary
    shape = SIZES[name]
    vocabulary = wishes.vocabulary or _vocabulary(measured, shape.largest_vocabulary)
    if vocabulary < LEAST_VOCAB:
        raise UserError(f"--vocabulary {vocabulary} is less than the {LEAST_VOCAB} ids that special tokens and bytes need")
    return name, shape, vocabulary


def _size(measured: Measured, machine: Machine) -> str:
    """`tiny` without a GPU, else the largest size that the text can train for its best number of tokens."""
    if machine.gpu is None:
        return "tiny"
    tokens = EPOCHS * measured.text_tokens
    fitting = [
        name for name, shape in SIZES.items() if TOKENS_A_PARAMETER * total(shape, shape.largest_vocabulary) <= tokens
    ]
    return (fitting or ["tiny"])[-1]


def _vocabulary(measured: Measured, largest: int) -> int:
    """Pieces that the text repeats often enough, besides special tokens, bytes and single characters."""
    pieces = min(measured.text_tokens // TOKENS_A_PIECE, measured.repeated_words // 2)
    wanted = min(largest, LEAST_VOCAB + measured.characters + pieces)
    return max(LEAST_VOCAB + 3, wanted // 8 * 8)


def _phases(
    measured: Measured, model: ModelConfig, shape: Shape, main: str, held: int
) -> tuple[dict[str, PhaseConfig], dict[str, str]]:
    """The phases by the rule of tokens, and what decided their lengths."""
    lengths = {"meta": measured.text[main].tokens}
    if len(measured.text) > 1 or measured.bitext:
        lengths["cross"] = measured.text_tokens + measured.pair_tokens
    phases, reasons = {}, {}
    for name, tokens in lengths.items():
        budget, reason = min(
            (TOKENS_A_PARAMETER * total(shape, model.vocab_size), f"{TOKENS_A_PARAMETER} tokens a parameter"),
            (EPOCHS * tokens, f"{EPOCHS} epochs over its text"),
        )
        batch = LEAST_BATCH
        while budget >= 2 * batch * STEPS_OF_A_PHASE * 2 and batch < LARGEST_BATCH:
            batch *= 2
        objectives = _objectives(measured, model, batch, held) if name == "cross" else [MaskedLM(batch_tokens=batch)]
        a_step = sum(objective.tokens_per_step for objective in objectives)
        steps = max(LEAST_STEPS, budget // a_step // 10 * 10)
        phases[name] = _phase(name, objectives, steps, shape, [main] if name == "meta" else "all")
        reasons[name] = reason if budget // a_step >= LEAST_STEPS else f"at least {LEAST_STEPS} steps; the text is short"
    return phases, reasons


def _objectives(measured: Measured, model: ModelConfig, batch: int, held: int) -> list[Objective]:
    """Masked LM, and with translations also on pairs, and contrast if a group can be filled several times."""
    objectives: list[Objective] = [MaskedLM(batch_tokens=batch)]
    pairs = sum(size.units for size in measured.bitext.values()) - held * len(measured.english_sources)
    if measured.bitext:
        objectives.append(TranslationLM(batch_tokens=batch))
    group = next((size for size in (192, 96, 48, 24) if pairs >= 4 * size), 0)
    if group:
        layer = max(1, 3 * model.layers // 4)
        objectives.append(Contrast(pairs=group, group=group, layer=layer, temperature=0.05, max_tokens=48, weight=2.0))
    return objectives


def _phase(name: str, objectives: Sequence[Objective], steps: int, shape: Shape, languages: list[str] | str) -> PhaseConfig:
    peak = float(f"{3e-3 * min(1.0, (128 / shape.hidden) ** 0.5):.1e}")
    rate = LearningRate(peak=peak, warmup_steps=max(5, steps // 30), floor=0.1 if name == "meta" else 0.0)
    return PhaseConfig.model_validate(
        {
            "steps": steps,
            "languages": languages,
            "alpha": 0.3 if name == "meta" else 0.7,
            "pair_alpha": 0.5,
            "sequence_length": shape.window,
            "mask_rate": 0.5 if name == "meta" else 0.3,
            "objectives": list(objectives),
            "learning_rate": rate,
        }
    )


def _within(
    phases: dict[str, PhaseConfig], reasons: dict[str, str], model: ModelConfig, machine: Machine, hours: float | None
) -> tuple[dict[str, PhaseConfig], float | None]:
    """Shorten the phases to the hours, which they share evenly, where the machine's speed is known."""
    if machine.flops is None:
        return phases, None
    seconds = 3600 * (2.0 if hours is None else hours) / len(phases)
    shortened, total_seconds = {}, 0.0
    for name, phase in phases.items():
        of_a_step = step_flops(model, phase) / machine.flops
        steps = max(LEAST_STEPS, int(seconds / of_a_step) // 10 * 10)
        if steps < phase.total_steps:
            rate = phase.learning_rate.model_copy(update={"warmup_steps": max(5, steps // 30)})
            phase = phase.model_copy(update={"steps": steps, "learning_rate": rate})
            reasons[name] = f"about {seconds / 60:.0f} minutes on this machine; {reasons[name]} would be more"
        shortened[name] = phase
        total_seconds += of_a_step * phase.total_steps
    return shortened, total_seconds / 3600


def _warnings(measured: Measured, machine: Machine, model: ModelConfig, held: int) -> list[str]:
    sentences = []
    if PIVOT not in measured.text:
        sentences.append("no English text is given, so the first phase reads the largest language instead of English")
    if not measured.english_sources:
        sentences.append(
            "no translations with English are given, so evaluation has no retrieval and the report no headline figure"
        )
    poor = [code for code, count in measured.english_sources.items() if MAX_SHARE * count < COUNTED_CANDIDATES]
    if poor:
        least = min(poor, key=lambda code: measured.english_sources[code])
        sentences.append(
            f"{', '.join(sorted(poor))} will not count in the headline figure: en-{least} has "
            f"{measured.english_sources[least]:,} distinct English sentences, and {MAX_SHARE:.0%} of them are fewer than "
            f"the {COUNTED_CANDIDATES} that evaluation wants; give about {int(COUNTED_CANDIDATES / MAX_SHARE):,}"
        )
    return sentences + machine.too_small_for(model)
