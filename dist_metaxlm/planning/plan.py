"""The layouts in which a recipe can run on a cluster: memory, predicted time, and their order.

Layouts that fit come first, and among them the fastest: the sum over the phases of steps times predicted seconds
(`planning/speed`). Each layout has the micro-batch with the shortest time among those that fit. A field of `parallel` that
is named in `fixed` keeps the recipe's value. If no layout fits as asked, recomputation and then offload are tried.

Pipeline stages are the same as in training (planning/stages.py), phase by phase; memory is that of the fullest rank of any
stage and phase.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.checkpoint_size import shared_bytes
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.legality import is_legal, problems, refusal
from dist_metaxlm.planning.memory import HostMemory, MemoryEstimate, estimate_host_memory, estimate_memory
from dist_metaxlm.planning.parameters import copied_parameters
from dist_metaxlm.planning.speed.recipes import recipe_step_time
from dist_metaxlm.planning.speed.work import StepTime
from dist_metaxlm.planning.stages import Stage, idle_share, model_stages, needs_blocks, part_costs
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.text import pluralize

MEMORY_SHARE = 0.9
"""Share of a device's memory that a plan may fill; the rest is for the runtime, its libraries and fragmentation."""
_SHOWN = ("tensor", "pipeline", "data", "sequence", "zero_stage", "recompute", "offload_optimizer")
"""Fields of a layout in a plan's JSON besides its micro-batch; the others are the recipe's."""
REMEDIES: tuple[dict[str, Any], ...] = (
    {"recompute": "selective"},
    {"recompute": "blocks"},
    {"offload_optimizer": True},
    {"recompute": "selective", "offload_optimizer": True},
    {"recompute": "blocks", "offload_optimizer": True},
)
"""Settings that save memory, in the order in which they are tried if nothing fits without them."""
Stages = dict[str, list[Stage]]
"""Pipeline stages by phase, whose windows and masks may weigh the parts differently."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One legal layout with the fastest micro-batch that fits (or the smallest one, if none does)."""

    layout: Layout
    """With the micro-batch."""
    micro_batches: int
    """Passes of the largest objective that a rank makes in a step."""
    memory: MemoryEstimate
    host: HostMemory
    """Host memory per rank; a node needs this times its number of devices."""
    stage_blocks: dict[str, list[int]]
    """Blocks of each pipeline stage, by phase."""
    idle: float
    """Share of a step in which a stage waits for the others on average, from operation counts alone; worst phase."""
    fits: bool
    times: dict[str, StepTime]
    """Predicted time of a step, by phase."""
    seconds: float
    """Predicted time of all steps of all phases."""

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a rank's micro-batch."""
        assert self.layout.micro_batch_tokens is not None, "a plan has a micro-batch"
        return self.layout.micro_batch_tokens

    def as_dict(self) -> dict[str, object]:
        """Plain values, memory in bytes."""
        return {
            **{name: getattr(self.layout, name) for name in _SHOWN},
            "micro_batch_tokens": self.micro_batch_tokens,
            "micro_batches": self.micro_batches,
            "memory": self.memory.as_dict(),
            "host_memory": self.host.as_dict(),
            "stage_blocks": self.stage_blocks,
            "idle_share": self.idle,
            "fits": self.fits,
            "seconds": self.seconds,
            "phases": {name: time.as_dict() for name, time in self.times.items()},
            "overrides": plan_overrides(self.layout),
        }


def plan_overrides(layout: Layout) -> list[str]:
    """The recipe's fields for the layout, as `key=value`, with recomputation and offload where they are used."""
    words = layout.overrides()
    words += [f"parallel.recompute={layout.recompute}"] if layout.recompute != "none" else []
    words += ["parallel.offload_optimizer=true"] if layout.offload_optimizer else []
    return words


def plan(recipe: Recipe, cluster: Cluster, fixed: Collection[str] = ()) -> list[Plan]:
    """Every legal layout of all devices, best first by the rule above.

    fixed: fields of `parallel` whose value in the recipe is kept.

    Raises:
        UserError: when no layout cuts the recipe's batches evenly, or none agrees with the fixed fields.
    """
    plans = _plans(recipe, cluster, fixed, {})
    if not plans:
        raise _no_layout(recipe, cluster, fixed)
    for remedy in REMEDIES:
        if any(candidate.fits for candidate in plans):
            break
        if not any(name in fixed for name in remedy):
            fitting = [candidate for candidate in _plans(recipe, cluster, fixed, remedy) if candidate.fits]
            plans += fitting
    return sorted(plans, key=_preference)


def least_devices(recipe: Recipe, cluster: Cluster, fixed: Collection[str] = (), most: int = 65536) -> int | None:
    """The least number of devices of the cluster's kind on which the recipe fits: 1, 2, 4, ... on a node, then full nodes.

    None if it does not fit on any of them up to `most` devices.
    """
    node = cluster.devices_per_node
    sizes = [(1, devices) for devices in range(1, node + 1) if node % devices == 0]
    sizes += [(2**power, node) for power in range(1, 20)]
    for nodes, devices in sizes:
        if nodes * devices > most:
            return None
        if _fits(recipe, replace(cluster, nodes=nodes, devices_per_node=devices), fixed):
            return nodes * devices
    return None


def _fits(recipe: Recipe, cluster: Cluster, fixed: Collection[str]) -> bool:
    """Whether any legal layout fits with micro-batches of one window, with or without the remedies."""
    tokens = max(phase.sequence_length for phase in recipe.phases.values())
    budget, precision = int(MEMORY_SHARE * cluster.device.memory), _precision(recipe)
    remedies = [remedy for remedy in REMEDIES if not any(name in fixed for name in remedy)]
    for remedy in (dict[str, Any](), *remedies):
        for layout in _layouts(recipe, cluster, fixed, remedy):
            stages = _stages(recipe, layout.pipeline)
            size = layout.micro_batch_tokens or tokens
            if all(_memory(recipe, name, layout, precision, size, stages[name]).total <= budget for name in stages):
                return True
    return False


def does_not_fit(recipe: Recipe, cluster: Cluster, closest: Plan, fixed: Collection[str] = ()) -> str:
    """The sentence for a recipe that fits in no layout; `closest` is the plan that needs the least memory."""
    have = f"recipe {recipe.name} does not fit on {pluralize(cluster.world_size, 'device')} of {cluster.device.name}"
    need = f"it needs {closest.memory.total / 1e9:,.1f} GB of {MEMORY_SHARE * cluster.device.memory / 1e9:,.1f} GB a device"
    least = least_devices(recipe, cluster, fixed)
    if least is None:
        return f"{have} in any layout, with recomputation and offload: {need}; take devices with more memory"
    return f"{have} in any layout, with recomputation and offload: {need}; take {pluralize(least, 'device')} of this kind"


def plan_layout(recipe: Recipe, cluster: Cluster, layout: Layout, stages: Stages | None = None) -> Plan:
    """The plan of one layout with the micro-batch that it names, or with the fastest that fits."""
    precision = _precision(recipe)
    stages = _stages(recipe, layout.pipeline) if stages is None else stages
    length = max(phase.sequence_length for phase in recipe.phases.values())
    share = max(_share(phase, layout.data) for phase in recipe.phases.values())
    sizes = [layout.micro_batch_tokens] if layout.micro_batch_tokens else _micro_batches(share, length)
    budget = int(MEMORY_SHARE * cluster.device.memory)
    best: tuple[float, int, MemoryEstimate, dict[str, StepTime]] | None = None
    for tokens in sizes:
        memory = max(
            (_memory(recipe, name, layout, precision, tokens, stages[name]) for name in stages),
            key=lambda estimate: estimate.total,
        )
        if memory.total > budget and tokens != sizes[-1]:
            continue
        if best is not None and memory.total > budget:
            break
        sized = replace(layout, micro_batch_tokens=tokens)
        times: dict[str, StepTime] = {
            name: recipe_step_time(recipe, name, sized, cluster, stages[name]) for name in recipe.phases
        }
        seconds = float(sum(phase.total_steps * times[name].seconds for name, phase in recipe.phases.items()))
        if best is not None and seconds >= best[0]:
            break  # the time has one minimum over the sizes
        best = seconds, tokens, memory, times
    assert best is not None, "the smallest micro-batch is always tried"
    return _filled(recipe, layout, precision, stages, best, share, budget)


def _filled(
    recipe: Recipe,
    layout: Layout,
    precision: str,
    stages: Stages,
    best: tuple[float, int, MemoryEstimate, dict[str, StepTime]],
    share: int,
    budget: int,
) -> Plan:
    seconds, tokens, memory, times = best
    parts = [stage for cut in stages.values() for stage in cut]
    shared = max(shared_bytes(recipe.model, phase) for phase in recipe.phases.values())
    background, whole = recipe.training.save_in_background, recipe.whole_model
    return Plan(
        layout=replace(layout, micro_batch_tokens=tokens),
        micro_batches=-(-share // tokens),
        memory=memory,
        host=estimate_host_memory(recipe.model, layout, precision, background, parts, shared, whole),
        stage_blocks={name: [len(stage.blocks) for stage in cut] for name, cut in stages.items()},
        idle=max(_idle(recipe, phase, layout.data, tokens, stages[name]) for name, phase in recipe.phases.items()),
        fits=memory.total <= budget,
        times=times,
        seconds=seconds,
    )


def _micro_batches(share: int, length: int) -> list[int]:
    """Tokens of micro-batches of whole windows: a rank's share of a step, and its halves down to one window."""
    windows, sizes = max(1, -(-share // length)), []
    while windows > 1:
        sizes.append(windows * length)
        windows = -(-windows // 2)
    return [*sizes, length]


def _precision(recipe: Recipe) -> str:
    return "bf16" if recipe.training.precision == "auto" else recipe.training.precision


def _stages(recipe: Recipe, count: int) -> Stages:
    return {
        name: model_stages(recipe.model, phase.sequence_length, phase.targets_per_token, count, needs_blocks(recipe))
        for name, phase in recipe.phases.items()
    }


def _plans(recipe: Recipe, cluster: Cluster, fixed: Collection[str], remedy: dict[str, Any]) -> list[Plan]:
    """All legal layouts with the settings of `remedy`."""
    layouts = list(_layouts(recipe, cluster, fixed, remedy))
    cuts = {count: _stages(recipe, count) for count in {layout.pipeline for layout in layouts}}
    return [plan_layout(recipe, cluster, layout, cuts[layout.pipeline]) for layout in layouts]


def _no_layout(recipe: Recipe, cluster: Cluster, fixed: Collection[str]) -> UserError:
    wrong = problems(recipe, recipe.parallel.layout(), cluster, precision=_precision(recipe)) if fixed else []
    if wrong:
        return UserError(refusal(wrong))
    return UserError(
        f"recipe {recipe.name} cannot be cut over {pluralize(cluster.world_size, 'device')}: no number of "
        "data-parallel ranks divides the windows and pair groups of every phase; take fewer nodes or larger "
        "batches"
    )


def _preference(candidate: Plan) -> tuple[float, ...]:
    layout = candidate.layout
    memory = 0.0 if candidate.fits else float(candidate.memory.total)
    return (not candidate.fits, memory, candidate.seconds, layout.zero_stage == 3, layout.pipeline, layout.tensor)


def _layouts(recipe: Recipe, cluster: Cluster, fixed: Collection[str], remedy: dict[str, Any]) -> Iterator[Layout]:
    """Every legal layout of all devices that has the fixed fields."""
    asked = recipe.parallel.layout()
    micro_batch = asked.micro_batch_tokens if "micro_batch_tokens" in fixed else None
    every = 1 if "recompute" in remedy else asked.recompute_every
    asked = replace(asked, micro_batch_tokens=micro_batch, recompute_every=every, **remedy)
    zero_stages = (asked.zero_stage,) if "zero_stage" in fixed else (0, 1, 2, 3)
    sequences = (asked.sequence,) if "sequence" in fixed else (False, True)
    for tensor, pipeline in _grids(recipe, cluster):
        if ("tensor" in fixed and tensor != asked.tensor) or ("pipeline" in fixed and pipeline != asked.pipeline):
            continue
        for zero_stage, sequence in product(zero_stages, sequences):
            layout = replace(asked, tensor=tensor, pipeline=pipeline, zero_stage=zero_stage, sequence=sequence)
            if is_legal(recipe, layout, cluster, precision=_precision(recipe)):
                yield layout.on(cluster.world_size)


def _grids(recipe: Recipe, cluster: Cluster) -> Iterator[tuple[int, int]]:
    """Tensor ranks and stages whose layout is legal without further methods; if it is not, none with them is legal."""
    asked = replace(recipe.parallel.layout(), zero_stage=1, sequence=False)
    for tensor in range(1, min(recipe.model.heads, cluster.world_size) + 1):
        for pipeline in range(1, recipe.model.layers + 3):  # embedding and head may each have a stage
            if is_legal(recipe, replace(asked, tensor=tensor, pipeline=pipeline), cluster):
                yield tensor, pipeline


def _memory(recipe: Recipe, name: str, layout: Layout, precision: str, tokens: int, stages: list[Stage]) -> MemoryEstimate:
    phase = recipe.phase(name)
    at_once = max(tokens, _group_tokens(phase, layout.data, recipe.model.layers))
    memory = estimate_memory(recipe.model, layout, precision, at_once, phase.targets_per_token, stages)
    return replace(memory, buffers=memory.buffers + _memory_bytes(phase, recipe, precision, tokens, layout.data))


def _idle(recipe: Recipe, phase: PhaseConfig, data: int, tokens: int, stages: list[Stage]) -> float:
    """Idle share of a step by its micro-batches of windows; those of sentence pairs only make it smaller."""
    passes = sum(-(-objective.tokens_per_step // (data * tokens)) for objective in phase.objectives)
    return idle_share(part_costs(recipe.model, phase.sequence_length, phase.targets_per_token), stages, max(1, passes))


def _share(phase: PhaseConfig, data: int) -> int:
    """Tokens per data-parallel rank of the phase's largest objective with a fixed number of tokens."""
    return max(objective.tokens_per_step // data for objective in phase.objectives) or phase.sequence_length


def _group_tokens(phase: PhaseConfig, data: int, layers: int) -> int:
    """Most tokens that a rank trains on at once, as if through all blocks, for an objective whose batch is not cut."""
    return max(objective.uncut_tokens(data) * (objective.last_layer or layers) // layers for objective in phase.objectives)


def _memory_bytes(phase: PhaseConfig, recipe: Recipe, precision: str, micro_batch_tokens: int, data: int) -> int:
    """Memory of objectives on every rank: fp32 copies of weights (and one more in half precision), and buffers."""
    return sum(
        copied_parameters(recipe.model, objective) * (4 if precision == "fp32" else 6)
        + objective.buffer_bytes(recipe.model, micro_batch_tokens, data)
        for objective in phase.objectives
    )
