"""The target mix of an objective in a phase of a recipe, in samples of that objective.

The recipe counts in training tokens of the phase: those of all masked-LM objectives together.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from dist_metaxlm.data.sampling.shares import Mix
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import AlphaPoint, Objective, PhaseConfig
from dist_metaxlm.recipe.stages import stages
from dist_metaxlm.text import pluralize


def language_mix(
    phase: PhaseConfig,
    objective: str,
    languages: Sequence[str],
    tokens: Sequence[Sequence[int]],
    weights: Sequence[Sequence[int]],
) -> Mix:
    """The mix of `languages` for an objective on windows of text: their sources have `tokens`, and share a language's
    windows by `weights`.

    Raises UserError if repetition caps or unlocks leave a part of the phase without text.
    """
    windows = [sum(count // phase.sequence_length for count in counts) for counts in tokens]
    late = {language: point.tokens for point in phase.unlock for language in point.languages}
    mix = _mix(
        phase,
        objective,
        phase.alpha,
        [sum(counts) for counts in tokens],
        [late.get(language, 0) for language in languages],
        phase.max_repetitions,
        windows,
        weights,
        _fixed(phase, languages),
    )
    _check(mix, phase, objective, f"text in languages {_listed(languages)}", "max_repetitions")
    return mix


def pair_mix(phase: PhaseConfig, objective: str, pairs: Sequence[str], counts: Sequence[int], samples: Sequence[int]) -> Mix:
    """The mix of language `pairs` for an objective on them: `counts` translations, `samples` (windows or pairs) an epoch.

    Raises UserError if repetition caps or unlocks leave a part of the phase without translations.
    """
    late = {language: point.tokens for point in phase.unlock for language in point.languages}
    unlocks = [max(late.get(side, 0) for side in pair.split("-")) for pair in pairs]
    mix = _mix(phase, objective, phase.pair_alpha, counts, unlocks, phase.pair_max_repetitions, samples, None)
    _check(mix, phase, objective, f"translations in {_listed(pairs)}", "pair_max_repetitions")
    return mix


def samples_per_token(phase: PhaseConfig, name: str) -> Fraction:
    """Samples of an objective per training token of a phase without schedules, on average."""
    tokens = sum((_a_step(phase, objective, objective.tokens_per_step) for objective in phase.objectives), Fraction(0))
    return _taken(phase, name) / tokens if tokens else Fraction(0)


def samples_after(phase: PhaseConfig, name: str, tokens: int) -> Fraction:
    """Samples of an objective in the first `tokens` training tokens of a phase."""
    total, own = Fraction(0), stages(phase)
    for stage, following in zip(own, [*own[1:], None], strict=True):
        end = tokens if following is None else min(tokens, following.tokens)
        total += max(0, end - stage.tokens) * samples_per_token(stage.phase, name)
    return total


def _samples_of(phase: PhaseConfig, name: str) -> Fraction:
    """Samples of an objective in all steps of a phase."""
    total, own = Fraction(0), stages(phase)
    for stage, following in zip(own, [*own[1:], None], strict=True):
        end = phase.total_steps if following is None else min(phase.total_steps, following.first_step)
        total += max(0, end - stage.first_step) * _taken(stage.phase, name)
    return total


def _steps_for(phase: PhaseConfig, name: str, samples: int) -> tuple[int, int]:
    """(steps, training tokens) that take so many samples of an objective."""
    own = stages(phase)
    left = Fraction(samples)
    for stage, following in zip(own, [*own[1:], None], strict=True):
        taken = _taken(stage.phase, name)
        steps = None if following is None else following.first_step - stage.first_step
        if steps is None or left < steps * taken:
            rate = samples_per_token(stage.phase, name)
            return stage.first_step + int(left / taken), stage.tokens + (int(left / rate) if rate else 0)
        left -= steps * taken
    raise AssertionError("the last stage has no end")


def _taken(phase: PhaseConfig, name: str) -> Fraction:
    """Samples of an objective in a step; with `draw` the mean over steps."""
    objective = next(objective for objective in phase.objectives if objective.name == name)
    return _a_step(phase, objective, objective.samples_per_step(phase.sequence_length))


def _a_step(phase: PhaseConfig, objective: Objective, amount: int) -> Fraction:
    """Amount per step for an objective that uses `amount` in each step it is part of; with `draw` the mean over steps."""
    if phase.mixing == "sum":
        return Fraction(amount)
    return Fraction(objective.weight) * amount / sum(Fraction(other.weight) for other in phase.objectives)


def _fixed(phase: PhaseConfig, languages: Sequence[str]) -> dict[int, float]:
    unknown = [language for language in phase.shares if language not in languages]
    if unknown:
        raise UserError(f"shares names {unknown[0]!r}, which has no text in the store; the store has {_listed(languages)}")
    if phase.shares and len(phase.shares) == len(languages):
        raise UserError(
            f"shares gives every language of the phase a share, {sum(phase.shares.values()):g} together; take "
            "one out, which then has the rest"
        )
    return {list(languages).index(language): share for language, share in phase.shares.items()}


def _mix(
    phase: PhaseConfig,
    name: str,
    alpha: float | list[AlphaPoint],
    counts: Sequence[int],
    unlocks: Sequence[int],
    repetitions: float | None,
    samples: Sequence[int],
    parts: Sequence[Sequence[int]] | None,
    fixed: dict[int, float] | None = None,
) -> Mix:
    def sample(after: int) -> int:
        return round(samples_after(phase, name, after))

    points = [(0, alpha)] if isinstance(alpha, float) else [(point.tokens, point.alpha) for point in alpha]
    limits = None if repetitions is None else [int(Fraction(repetitions) * count) for count in samples]
    length = round(_samples_of(phase, name))
    return Mix(
        counts,
        [(sample(tokens), value) for tokens, value in points],
        [sample(tokens) for tokens in unlocks],
        limits,
        length,
        parts,
        fixed,
    )


def _check(mix: Mix, phase: PhaseConfig, name: str, what: str, field: str) -> None:
    assert mix.unlocks is not None
    if min(mix.unlocks):
        raise UserError(
            f"{name}: all {what} is locked at the start of the phase; take a language out of unlock, or name "
            "one in languages that no unlock holds back"
        )
    longest = mix.longest()
    if longest is None:
        return
    steps, trained = _steps_for(phase, name, longest)
    tokens = f" or {trained:,} tokens" if trained else ""
    size = f"{sum(mix.counts):,} {'pairs' if mix.parts is None else 'tokens'}"
    raise UserError(
        f"{name}: there are {size} of {what}; with {field} {getattr(phase, field)} what is unlocked lasts for "
        f"{pluralize(steps, 'step', ',')}{tokens}, and the phase has "
        f"{pluralize(phase.total_steps, 'step', ',')}; set it to that length at most, raise {field}, or add text"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
