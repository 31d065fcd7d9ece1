"""Why a layout is not the fastest, why a layout is illegal, and what changes to the recipe would gain."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.legality import is_legal, problems, refusal
from dist_metaxlm.planning.plan import Plan, plan, plan_layout
from dist_metaxlm.recipe.layout import Layout, assignment
from dist_metaxlm.recipe.schema import Recipe

_CAUSES = {
    "bubble": ("bubble",),
    "link": ("tensor", "gather", "gradients", "transfer"),
    "small products": ("products", "attention", "head", "elementwise", "launch"),
    "recompute": ("recompute",),
    "optimizer": ("optimizer",),
    "host": ("host", "checkpoint", "waiting"),
}
"""Causes of lost time by the items of a step."""
LEAST_GAIN = 0.005
"""Gains below it are not advised."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change to the recipe and its predicted gain."""

    change: str
    """Fields of the recipe, as `key=value`."""
    gain: float
    """Speed with the change over speed without, minus one."""
    seconds: float
    """Predicted time of all steps with the change."""


def reason_against(best: Plan, other: Plan) -> str:
    """Why `other` loses, in one phrase; empty for the best plan itself."""
    if other is best:
        return ""
    if not other.fits:
        return "memory"
    excess: dict[str, float] = {}
    for cause, names in _CAUSES.items():
        excess[cause] = sum(_seconds(other, name) - _seconds(best, name) for name in names)
    cause, seconds = max(excess.items(), key=lambda item: item[1])
    return cause if seconds > 0 and other.seconds > best.seconds else "equal"


def _seconds(candidate: Plan, item: str) -> float:
    """Seconds of an item in one step of each phase."""
    return sum(time.items.get(item, 0.0) for time in candidate.times.values())


def illegal_layouts(recipe: Recipe, cluster: Cluster) -> dict[str, str]:
    """Illegal layouts near the legal ones, and the sentence with which training refuses each: sizes that are powers of two
    alone, and each ZeRO stage and sequence parallelism with them."""
    asked = recipe.parallel.layout()
    precision = "bf16" if recipe.training.precision == "auto" else recipe.training.precision
    changes: list[dict[str, Any]] = [{"zero_stage": 1, "tensor": 2**power} for power in range(1, 6)]
    changes += [{"zero_stage": 1, "pipeline": 2**power} for power in range(1, 6)]
    changes += [{"zero_stage": stage} for stage in (0, 2, 3)]
    changes += [{"pipeline": 2, "zero_stage": 2}, {"zero_stage": 1, "sequence": True}]
    refused = {}
    for change in changes:
        plain = {"tensor": 1, "pipeline": 1, "sequence": False}
        layout = replace(asked, **{**plain, **change})
        sizes = layout.tensor * layout.pipeline
        if sizes <= cluster.world_size and not is_legal(recipe, layout, cluster, precision=precision):
            name = " ".join(assignment(field, value) for field, value in change.items())
            refused[name] = refusal(problems(recipe, layout, cluster, precision=precision))
    return refused


def own_plan(recipe: Recipe, cluster: Cluster) -> Plan | None:
    """The plan of the recipe's own layout with its own micro-batch; None if it is illegal on the cluster."""
    precision = "bf16" if recipe.training.precision == "auto" else recipe.training.precision
    layout = recipe.parallel.layout(cluster.world_size)
    if not is_legal(recipe, layout, cluster, precision=precision):
        return None
    share = max(
        objective.tokens_per_step // layout.data for phase in recipe.phases.values() for objective in phase.objectives
    )
    longest = max(phase.sequence_length for phase in recipe.phases.values())
    tokens = layout.micro_batch_tokens or max(share, longest)
    return plan_layout(recipe, cluster, replace(layout, micro_batch_tokens=tokens))


def advise(recipe: Recipe, cluster: Cluster, plans: Sequence[Plan], fixed: Collection[str] = ()) -> list[Advice]:
    """The changes to the recipe's own layout that would gain most, largest first, and fewer nodes if they are faster.

    If its own layout does not fit or is illegal, changes to the best plan.
    """
    own = own_plan(recipe, cluster)
    base = own if own is not None and own.fits else plans[0]
    advice = []
    for change, layout in _changes(base.layout, cluster):
        if not is_legal(recipe, layout, cluster) or any(name in fixed for name in change):
            continue
        changed = plan_layout(recipe, cluster, layout)
        if changed.fits:
            words = " ".join(assignment(name, getattr(changed.layout, name)) for name in change)
            advice.append(_gain(words, base, changed.seconds))
    other = replace(plans[0].layout, micro_batch_tokens=base.layout.micro_batch_tokens) != base.layout
    if plans[0].fits and other:
        advice.append(_gain(" ".join(plans[0].layout.overrides()), base, plans[0].seconds))
    fewer = _fewer_nodes(recipe, cluster, plans)
    if fewer is not None:
        advice.append(_gain(f"{fewer[0]} of {cluster.nodes} nodes", base, fewer[1].seconds))
    best: dict[str, Advice] = {}
    for one in sorted(advice, key=lambda one: -one.gain):
        if one.gain >= LEAST_GAIN:
            best.setdefault(one.change, one)
    return list(best.values())


def _gain(change: str, base: Plan, seconds: float) -> Advice:
    return Advice(change=change, gain=base.seconds / seconds - 1, seconds=seconds)


def _changes(layout: Layout, cluster: Cluster) -> Iterator[tuple[tuple[str, ...], Layout]]:
    """Single changes: the names of the fields, and the layout."""
    yield ("micro_batch_tokens",), replace(layout, micro_batch_tokens=None)
    if layout.recompute != "none":
        off = replace(layout, recompute="none", recompute_every=1)
        yield ("recompute",), off
        yield ("recompute", "micro_batch_tokens"), replace(off, micro_batch_tokens=None)
        if layout.recompute == "blocks":
            yield ("recompute",), replace(layout, recompute="selective", recompute_every=1)
    else:
        for recompute in ("selective", "blocks"):
            larger = replace(layout, recompute=recompute, micro_batch_tokens=None)
            yield ("recompute", "micro_batch_tokens"), larger
    if layout.tensor > 1 and not layout.sequence:
        yield ("sequence",), replace(layout, sequence=True)
    if layout.offload_optimizer:
        yield ("offload_optimizer",), replace(layout, offload_optimizer=False)
    for stage in (1, 2, 3):
        if stage != layout.zero_stage and layout.pipeline == 1:
            yield ("zero_stage",), replace(layout, zero_stage=stage)


def _fewer_nodes(recipe: Recipe, cluster: Cluster, plans: Sequence[Plan]) -> tuple[int, Plan] | None:
    """Half or a quarter of the nodes if one of the best layouts is faster on them than on all; None if not."""
    best = None
    for nodes in (cluster.nodes // 2, cluster.nodes // 4):
        smaller = replace(cluster, nodes=nodes)
        for candidate in plans[:3] if nodes else ():
            layout = replace(candidate.layout, micro_batch_tokens=None).on(smaller.world_size)
            if layout.data and is_legal(recipe, layout, smaller):
                changed = plan_layout(recipe, smaller, layout)
                if changed.fits and changed.seconds < (best[1] if best else plans[0]).seconds:
                    best = nodes, changed
    return best


def best_rate(recipe: Recipe, cluster: Cluster) -> float:
    """Predicted tokens per second of the best layout on all nodes of the cluster, or on a half, a quarter, ... of them.

    0 if the recipe fits on none of them.
    """
    rates, nodes = [0.0], cluster.nodes
    while nodes >= 1:
        try:
            best = plan(recipe, replace(cluster, nodes=nodes))[0]
        except UserError:
            best = None
        if best is not None and best.fits:
            rates.append(tokens_of(recipe) / best.seconds)
        nodes //= 2
    return max(rates)


def tokens_of(recipe: Recipe) -> int:
    """Tokens of all phases."""
    return sum(phase.total_tokens for phase in recipe.phases.values())
