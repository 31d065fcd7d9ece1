"""Schedules inside a phase: mask rate, sequence length and batches as points over tokens, and the stages that they make.

A stage is a range of steps in which nothing changes; within it a phase is a plain one without schedules. A point takes
effect at the first step that begins with at least its tokens, so the stage of a step is a function of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import Field, ModelWrapValidatorHandler

from dist_metaxlm.recipe.section import Section

if TYPE_CHECKING:
    from dist_metaxlm.recipe.phase import PhaseConfig


class Point(Protocol):
    """A point of a schedule."""

    @property
    def tokens(self) -> int:
        """Training tokens of the phase after which it holds."""


P = TypeVar("P", bound=Point)


class MaskPoint(Section):
    """One point of a schedule of mask rates."""

    tokens: int = Field(ge=0)
    """Training tokens of this phase after which `mask_rate` holds."""
    mask_rate: float = Field(gt=0, lt=1)
    """Share of a window's tokens that are targets from here on."""


class LengthPoint(Section):
    """One point of a schedule of sequence lengths."""

    tokens: int = Field(ge=0)
    """Training tokens of this phase after which `sequence_length` holds."""
    sequence_length: int = Field(gt=7)
    """Tokens of a window from here on."""


class BatchPoint(Section):
    """One point of a schedule of batches."""

    tokens: int = Field(ge=0)
    """Training tokens of this phase after which `batch_tokens` holds."""
    batch_tokens: int = Field(gt=0)
    """Tokens of the objective a step from here on, over all ranks."""


@dataclass(frozen=True)
class Stage:
    """Steps of a phase between two changes."""

    first_step: int
    """Steps before it."""
    tokens: int
    """Training tokens of the phase before it."""
    phase: PhaseConfig
    """The phase with the values of this stage and without schedules."""


def points_to_schedule(field: str, schedule: str) -> Callable[[Any, Any, Any], Any]:
    """A validator that reads a list given as `field` as its schedule, whose largest value `field` then has."""

    def read(cls: Any, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get(field), list) and values[field]:
            points = values[field]
            largest = max((p[field] for p in points if isinstance(p, Mapping) and _is_number(p.get(field))), default=None)
            values = {**values, schedule: points} | ({} if largest is None else {field: largest})
            if largest is None:
                values.pop(field)
        return handler(values)

    return read


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def schedule_to_points(field: str, schedule: str) -> Callable[[Any, Callable[[Any], Any]], dict[str, Any]]:
    """A serializer that writes a schedule as `field`, as recipes have it; the inverse of `points_to_schedule`."""

    def write(self: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        points = values.pop(schedule, None)
        return {**values, field: points} if points else values

    return write


def schedule_problems(name: str, points: Sequence[Point]) -> list[str]:
    """What is wrong with the tokens of a schedule."""
    tokens = [point.tokens for point in points]
    if not tokens:
        return []
    if tokens[0]:
        return [f"{name} begins at tokens {tokens[0]}; its first point is the start of the phase, tokens: 0"]
    return order_problems(name, points)


def order_problems(name: str, points: Sequence[Point]) -> list[str]:
    """Points of a schedule that do not come later than the one before."""
    for before, after in pairwise(point.tokens for point in points):
        if after <= before:
            return [f"{name} is not increasing: tokens {after} follows tokens {before}; order its points by tokens"]
    return []


def stages(phase: PhaseConfig) -> list[Stage]:
    """The stages of a phase in order; one, the phase itself, if it has no schedules. Those after its end are included."""
    points = [point.tokens for point in phase.mask_schedule] + [point.tokens for point in phase.length_schedule]
    points += [tokens for objective in phase.objectives for tokens in objective.changes]
    if not points:
        return [Stage(0, 0, phase)]
    result = [Stage(0, 0, _at(phase, 0))]
    for tokens in sorted({*points} - {0}):
        last = result[-1]
        steps = max(0, -(-(tokens - last.tokens) // max(1, last.phase.tokens_per_step)))
        stage = Stage(last.first_step + steps, last.tokens + steps * last.phase.tokens_per_step, _at(phase, tokens))
        if steps == 0:  # two points fall on the same step
            result.pop()
        result.append(stage)
    return result


def _at(phase: PhaseConfig, tokens: int) -> PhaseConfig:
    """The phase with the values that hold after `tokens`."""
    changes: dict[str, Any] = {"mask_schedule": [], "length_schedule": []}
    if phase.mask_schedule:
        changes["mask_rate"] = value_after(phase.mask_schedule, tokens).mask_rate
    if phase.length_schedule:
        changes["sequence_length"] = value_after(phase.length_schedule, tokens).sequence_length
    changes["objectives"] = [objective.after(tokens) for objective in phase.objectives]
    return phase.model_copy(update=changes)


def value_after(points: Sequence[P], tokens: int) -> P:
    """The point of a schedule that holds after `tokens`."""
    return [point for point in points if point.tokens <= tokens][-1]
