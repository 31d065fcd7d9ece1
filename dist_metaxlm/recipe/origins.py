"""What a phase continues from: nothing, an earlier phase of the run, or a folder (`from` of a phase, `--from`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_metaxlm.errors import UserError
from dist_metaxlm.text import did_you_mean

if TYPE_CHECKING:
    from dist_metaxlm.recipe.phase import PhaseConfig
    from dist_metaxlm.recipe.schema import Recipe

PHASE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$"
"""Names of phases: they are names of folders and part of file names."""
RESERVED = ("untrained", "defaults", "nothing", "evaluation", "export")
"""Words that mean something else where a phase is named, and folders of a run."""
NOTHING = "nothing"
BEST = "best"
USUAL = {"meta": NOTHING, "cross": "meta", "joint": NOTHING}
"""What the phases of the shipped recipes continue from unless they say so themselves."""


@dataclass(frozen=True)
class Source:
    """Where the weights of a phase come from."""

    phase: str | None = None
    """An earlier phase of the same run."""
    folder: str | None = None
    """Instead: the folder of a phase of any run, or a model that was imported."""
    mark: str | None = None
    """Its checkpoint: a step, `best`, or None for the newest of a finished phase."""

    def __str__(self) -> str:
        return (self.phase or self.folder or NOTHING) + (f"@{self.mark}" if self.mark else "")


def split_mark(name: str) -> tuple[str, str | None]:
    """(what comes before, `best`, a step or None) of a name such as `meta`, `meta@best`, `meta@400` or `runs/x/meta@400`.

    Raises:
        UserError: for anything else after the @.
    """
    place, at, mark = name.rpartition("@")
    if not at or "/" in mark:
        return name, None
    if mark != BEST and not (mark.isascii() and mark.isdecimal()):
        raise UserError(f"{name}: after the @ comes the step of a checkpoint or `best`, such as {place}@best or {place}@400")
    return place, mark


def read_source(value: str) -> Source | None:
    """The value of `from`; None for `nothing`. A folder has a slash in it or begins with a dot.

    Raises:
        UserError: as `split_mark`, or for a value that is neither a name nor a folder.
    """
    if value == NOTHING:
        return None
    place, mark = split_mark(value)
    if "/" in place or place.startswith((".", "~")):
        return Source(folder=place, mark=mark)
    if not re.match(PHASE_PATTERN, place):
        raise UserError(f"{value!r} is neither a phase nor a folder; give `nothing`, a phase, or a folder such as ./{place}")
    return Source(phase=place, mark=mark)


def source_of(recipe: Recipe, name: str) -> Source | None:
    """What the phase `name` of a recipe continues from; None: nothing."""
    given = recipe.phase(name).from_
    return read_source(USUAL.get(name, NOTHING) if given is None else given)


def successors(recipe: Recipe, name: str) -> list[str]:
    """The phases of a recipe that continue from its phase `name`."""
    return [other for other in recipe.phases if (source := source_of(recipe, other)) is not None and source.phase == name]


def branch_steps(recipe: Recipe, name: str) -> list[int]:
    """Steps of the phase `name` whose checkpoints later phases of the recipe start from."""
    sources = [source_of(recipe, other) for other in recipe.phases]
    marks = [source.mark for source in sources if source is not None and source.phase == name and source.mark is not None]
    return sorted({int(mark) for mark in marks if mark != BEST})


def name_problems(phases: Mapping[str, object]) -> list[str]:
    """Problems with the names of phases."""
    return [
        f"phases.{name}: {name!r} has another meaning here and cannot name a phase; choose another name"
        for name in phases
        if name in RESERVED
    ]


def source_problems(phases: Mapping[str, PhaseConfig], log_interval: int) -> list[str]:
    """Problems with what the phases continue from."""
    problems: list[str] = []
    sources: dict[str, Source] = {}
    for place, (name, phase) in enumerate(phases.items()):
        if phase.from_ is None:
            if place and name not in USUAL:
                previous = list(phases)[place - 1]
                problems.append(
                    f"phases.{name}.from is missing; give what it continues from, such as from: {previous}, or "
                    f"from: {NOTHING}"
                )
            continue
        try:
            source = read_source(phase.from_)
        except UserError as error:
            problems.append(f"phases.{name}.from {error}")
            continue
        if source is not None and source.phase is not None:
            sources[name] = source
    before = {name: source.phase for name, source in sources.items() if source.phase is not None}
    for name, source in sources.items():
        problem = _phase_problem(name, source, phases, before) or _mark_problem(name, source, phases, log_interval)
        problems += [problem] if problem else []
    return problems


def _phase_problem(name: str, source: Source, phases: Mapping[str, PhaseConfig], before: Mapping[str, str]) -> str | None:
    assert source.phase is not None
    if source.phase not in phases:
        hint = did_you_mean(source.phase, list(phases))
        return (
            f"phases.{name}.from {source.phase!r} names no phase of the recipe{hint} its phases are {', '.join(phases)}; a "
            f"folder is written ./{source.phase}"
        )
    chain = [name]
    while chain[-1] in before and len(chain) <= len(phases):
        chain.append(before[chain[-1]])
        if chain[-1] == name:
            return (
                f"phases.{name} is its own ancestor ({' from '.join(chain)}); let one of them start from an earlier phase "
                f"or from: {NOTHING}"
            )
    order = list(phases)
    if order.index(source.phase) > order.index(name):
        return (
            f"phases.{name}.from {source.phase!r}: that phase comes later in the recipe; write phases.{source.phase} before "
            f"phases.{name}, or continue from an earlier one"
        )
    return None


def _mark_problem(name: str, source: Source, phases: Mapping[str, PhaseConfig], log_interval: int) -> str | None:
    """A step that the earlier phase does not reach, or at which it cannot save."""
    if source.mark in (None, BEST):
        return None
    assert source.phase is not None
    assert source.mark is not None
    step, steps = int(source.mark), phases[source.phase].total_steps
    if 0 < step <= steps and (step == steps or step % log_interval == 0):
        return None
    near = min(max(1, round(step / log_interval)) * log_interval, steps)
    return (
        f"phases.{name}.from {source}: phase {source.phase} has {steps} steps and can save only at multiples of "
        f"training.log_interval {log_interval} and at its end; nearest: {source.phase}@{near}"
    )
