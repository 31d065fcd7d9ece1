"""Whether a layout is legal: the check shared by recipe validation, planner, launchers and training.

`recipe/layout.py` has the rules that do not depend on ranks: incompatible methods, objectives that need whole weights, half
precision without ZeRO. This module has the rules for given ranks: tensor ranks and stages must divide the ranks and fit
the model, the copies of the model must share every batch evenly, and tensor groups stay inside nodes unless the recipe
allows more. For a size that does not fit, the nearest legal layout on the same ranks is searched for and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_metaxlm.parallel.placement import Nodes, describe_crossing, first_crossing
from dist_metaxlm.planning.stages import needs_blocks
from dist_metaxlm.recipe.layout import Layout, Problem, assignment, contradictions
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.recipe.sharing import undivided
from dist_metaxlm.recipe.stages import stages
from dist_metaxlm.text import pluralize

ACROSS = "tensor_across_nodes"


@dataclass(frozen=True, kw_only=True)
class _Misfit:
    """A size that does not fit."""

    field: str
    value: Any
    reason: str
    crosses: bool = False
    """Whether a tensor group crosses nodes, which a recipe may allow."""


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Criteria for checking layouts; arguments as for `problems`."""

    recipe: Recipe
    cluster: Nodes | None
    phases: Mapping[str, PhaseConfig]
    precision: str | None

    def accepts(self, layout: Layout) -> bool:
        """Whether the layout is legal."""
        return self.fits(layout) and not any(undivided(phase, self.copies(layout)) for phase in self.phases.values())

    def fits(self, layout: Layout) -> bool:
        """Whether it is legal, ignoring batches that its copies of the model cannot share."""
        return not contradictions(self.recipe, layout, self.precision) and not any(self.misfits(layout))

    def copies(self, layout: Layout) -> int:
        """Copies of the model on the given ranks, for a layout without misfits; 1 if the ranks are not known."""
        return 1 if self.cluster is None else self.cluster.world_size // (layout.tensor * layout.pipeline)

    def misfits(self, layout: Layout) -> Iterator[_Misfit]:
        """Sizes that do not fit model, windows, ranks or nodes."""
        yield from self._of_tensor(layout)
        yield from self._of_pipeline(layout)

    def _of_tensor(self, layout: Layout) -> Iterator[_Misfit]:
        model, tensor = self.recipe.model, layout.tensor
        ranks = None if self.cluster is None else self.cluster.world_size
        wrong = [pluralize(ranks, "rank")] if ranks is not None and ranks % tensor else []
        wrong += [f"model.{name}={size}" for name, size in (("heads", model.heads), ("ffn", model.ffn)) if size % tensor]
        if layout.sequence:
            wrong += [
                f"phases.{name}.sequence_length={length} (parallel.sequence cuts it)"
                for name, phase in self.phases.items()
                for length in sorted({stage.phase.sequence_length for stage in stages(phase)})
                if length % tensor
            ]
        if wrong:
            reason = f"parallel.tensor={tensor} does not divide {' nor '.join(wrong)}"
            yield _Misfit(field="tensor", value=tensor, reason=reason)
        if self.cluster is None or self.cluster.world_size % tensor or layout.tensor_across_nodes:
            return
        group = first_crossing(self.cluster, tensor)
        if group is not None:
            yield _Misfit(field="tensor", value=tensor, reason=describe_crossing(self.cluster, group), crosses=True)

    def _of_pipeline(self, layout: Layout) -> Iterator[_Misfit]:
        layers, stages, reasons = self.recipe.model.layers, layout.pipeline, []
        if stages > layers + 2:
            reasons.append(f"is more stages than the {pluralize(layers, 'layer')}, embedding and head of the model can fill")
        elif stages > layers and needs_blocks(self.recipe):
            reasons.append(
                f"is more stages than the {pluralize(layers, 'layer')}, and with optimizer.name=muon each needs one"
            )
        if self.cluster is not None:
            ranks = self.cluster.world_size
            left = ranks // layout.tensor if ranks % layout.tensor == 0 else ranks
            if left % stages:
                of = "" if left == ranks else f" left by parallel.tensor={layout.tensor} of {ranks}"
                reasons.append(f"does not divide {'the ' if of else ''}{pluralize(left, 'rank')}{of}")
        if reasons:
            reason = f"parallel.pipeline={stages} {' and '.join(reasons)}"
            yield _Misfit(field="pipeline", value=stages, reason=reason)

    def nearest(self, layout: Layout, accepts: Callable[[Layout], bool]) -> Layout | None:
        """The accepted layout whose tensor ranks and stages are nearest to those of `layout`; at a tie the smaller.

        Layouts that keep the valid one of the two come first. ZeRO stage and sequence parallelism are adjusted if the
        wanted ones are incompatible with it.
        """
        ranks = None if self.cluster is None else self.cluster.world_size
        grid = [
            (tensor, stages)
            for tensor in range(1, self.recipe.model.heads + 1)
            if ranks is None or ranks % tensor == 0
            for stages in range(1, self.recipe.model.layers + 3)
            if ranks is None or ranks // tensor % stages == 0
        ]
        wrong = {misfit.field for misfit in self.misfits(layout)}

        def distance(sizes: tuple[int, int]) -> tuple[int, ...]:
            steps = {"tensor": abs(sizes[0] - layout.tensor), "pipeline": abs(sizes[1] - layout.pipeline)}
            return sum(steps[name] > 0 for name in steps if name not in wrong), sum(steps.values()), *sizes

        grid.sort(key=distance)
        candidates = (self.settled(replace(layout, tensor=tensor, pipeline=stages)) for tensor, stages in grid)
        return next((candidate for candidate in candidates if accepts(candidate)), None)

    def settled(self, layout: Layout) -> Layout:
        """The layout with the remedies of its contradictions applied."""
        while clashes := contradictions(self.recipe, layout, self.precision):
            layout = replace(layout, **{name: value for clash in clashes for name, value in clash.change.items()})
        return layout


def problems(
    recipe: Recipe, layout: Layout, cluster: Nodes | None = None, phase: str | None = None, precision: str | None = None
) -> list[Problem]:
    """All problems of `layout` for `recipe` on the ranks of `cluster`; empty for a legal one.

    Arguments:
        cluster: the ranks and their nodes; they determine the copies of the model. None: only rules that hold on any ranks.
        phase: the phase that is trained; None: all of the recipe.
        precision: value of `training.precision: auto` on the given devices; None: not known, and nothing is refused.
    """
    judge = _judge(recipe, cluster, phase, precision)
    clashes, misfits = contradictions(recipe, layout, precision), list(judge.misfits(layout))
    if not misfits:
        return [*clashes, *_sharing_problems(judge, judge.settled(layout))]
    near = judge.nearest(layout, judge.accepts)
    remaining: list[Problem] = []
    if near is None:  # batches that no layout of these ranks shares: the nearest layout without them, and their problems
        near = judge.nearest(layout, judge.fits)
        assert near is not None, "one rank a copy, in one stage, divides everything"
        remaining = _sharing_problems(judge, near)
    change = {
        name: getattr(near, name)
        for name in ("tensor", "pipeline", "sequence", "zero_stage")
        if getattr(near, name) != getattr(layout, name)
    }
    remedy = "nearest that fits model and ranks: " if remaining else "nearest legal layout: "
    remedy += " ".join(assignment(name, value) for name, value in change.items())
    across = replace(judge.settled(layout), tensor_across_nodes=True)
    if any(misfit.crosses for misfit in misfits) and judge.accepts(across):
        remedy += f", or {assignment(ACROSS, True)} if you want that"
    sizes = [
        Problem(field=f"parallel.{misfit.field}", value=misfit.value, reason=misfit.reason, remedy=remedy, change=change)
        for misfit in misfits
    ]
    return [*sizes, *clashes, *remaining]


def is_legal(
    recipe: Recipe, layout: Layout, cluster: Nodes | None = None, phase: str | None = None, precision: str | None = None
) -> bool:
    """Whether there are no `problems`, without a search for remedies."""
    return _judge(recipe, cluster, phase, precision).accepts(layout)


def refusal(wrong: Sequence[Problem]) -> str:
    """All problems in one sentence; a remedy that several share is given once, after the last of them."""
    last = {problem.remedy: number for number, problem in enumerate(wrong)}
    return "; ".join(
        problem.message if last[problem.remedy] == number else problem.reason for number, problem in enumerate(wrong)
    )


def _judge(recipe: Recipe, cluster: Nodes | None, phase: str | None, precision: str | None) -> _Judge:
    phases: dict[str, PhaseConfig] = {name: config for name, config in recipe.phases.items() if phase in (None, name)}
    return _Judge(recipe=recipe, cluster=cluster, phases=phases, precision=precision)


def _sharing_problems(judge: _Judge, layout: Layout) -> list[Problem]:
    """Batches that the copies of the model cannot share evenly; none if the sizes of `layout` do not fit at all."""
    if judge.cluster is None or any(judge.misfits(layout)):
        return []
    ranks, copies, each = judge.cluster.world_size, judge.copies(layout), layout.tensor * layout.pipeline
    fewer = max(n for n in range(1, copies + 1) if n == 1 or not any(undivided(p, n) for p in judge.phases.values()))
    sharers, instead = pluralize(copies, "rank"), f"or start {pluralize(fewer, 'rank')}"
    if each > 1:
        sharers = f"{copies} copies of the model ({pluralize(ranks, 'rank')}, {each} to a copy)"
        instead = f"or start {pluralize(fewer * each, 'rank')} ({'1 copy' if fewer == 1 else f'{fewer} copies'})"
    return [
        Problem(
            field=f"phases.{name}.objectives",
            value=copies,
            reason=f"phases.{name} does not divide over {sharers}: {'; '.join(wrong)}",
            remedy=instead,
            change={},
        )
        for name, phase in judge.phases.items()
        if (wrong := undivided(phase, copies))
    ]
