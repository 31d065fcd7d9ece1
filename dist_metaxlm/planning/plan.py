"""The layouts in which a recipe can run on a cluster, their requirements, and their ranking.

The order is a rule, not a speed model: layouts that fit before those that do not; ZeRO 0-2 before ZeRO-3, which gathers
the weights in every pass; then fewer pipeline stages, fewer tensor ranks, ZeRO-1 before 2 before 0, and no sequence
parallelism before it. So plain data parallelism with ZeRO-1 is first whenever it fits.

Pipeline stages are the same as in training (planning/stages.py), phase by phase; the figures are those of the fullest rank
of any stage and phase.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, TypedDict

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.checkpoint_size import shared_bytes
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.flops import step_flops
from dist_metaxlm.planning.legality import is_legal
from dist_metaxlm.planning.memory import HostMemory, MemoryEstimate, estimate_host_memory, estimate_memory
from dist_metaxlm.planning.parameters import copied_parameters, count_parameters
from dist_metaxlm.planning.stages import Stage, idle_share, model_stages, needs_blocks, part_costs
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from rich.console import RenderableType


MEMORY_SHARE = 0.9
"""Share of a device's memory that a plan may fill; the rest is for the runtime, its libraries and fragmentation."""
_SHOWN = ("tensor", "pipeline", "data", "sequence", "zero_stage")
"""Fields of a layout in a plan's JSON besides its micro-batch; the others are the recipe's."""
_ZERO_ORDER = {1: 0, 2: 1, 0: 2, 3: 3}
Stages = dict[str, list[Stage]]
"""Pipeline stages by phase, whose windows and masks may weigh the parts differently."""


@dataclass(frozen=True)
class Plan:
    """One legal layout with the largest micro-batch that fits (or the smallest one, if none does)."""

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
            "overrides": self.layout.overrides(),
        }


def plan(recipe: Recipe, cluster: Cluster) -> list[Plan]:
    """Every legal layout of all devices, best first by the rule above.

    Raises:
        UserError: when no layout cuts the recipe's batches evenly.
    """
    precision = "bf16" if recipe.training.precision == "auto" else recipe.training.precision
    layouts = list(_layouts(recipe, cluster, precision))
    cuts: dict[int, Stages] = {
        count: {
            name: model_stages(recipe.model, phase.sequence_length, phase.targets_per_token, count, needs_blocks(recipe))
            for name, phase in recipe.phases.items()
        }
        for count in {layout.pipeline for layout in layouts}
    }
    plans = [_fill(recipe, cluster, layout, precision, cuts[layout.pipeline]) for layout in layouts]
    if not plans:
        raise UserError(
            f"recipe {recipe.name} cannot be cut over {pluralize(cluster.world_size, 'device')}: no number of "
            "data-parallel ranks divides the windows and pair groups of every phase; take fewer nodes or larger "
            "batches"
        )
    return sorted(plans, key=_preference)


def _preference(candidate: Plan) -> tuple[bool | int, ...]:
    layout = candidate.layout
    return (
        not candidate.fits,
        layout.zero_stage == 3,
        layout.pipeline,
        layout.tensor,
        _ZERO_ORDER[layout.zero_stage],
        layout.sequence,
    )


def _layouts(recipe: Recipe, cluster: Cluster, precision: str) -> Iterator[Layout]:
    """Every legal layout of all devices."""
    asked = recipe.parallel.layout()
    for tensor, pipeline in _grids(recipe, cluster):
        for zero_stage, sequence in product((0, 1, 2, 3), (False, True)):
            layout = replace(asked, tensor=tensor, pipeline=pipeline, zero_stage=zero_stage, sequence=sequence)
            if is_legal(recipe, layout, cluster, precision=precision):
                yield layout.on(cluster.world_size)


def _grids(recipe: Recipe, cluster: Cluster) -> Iterator[tuple[int, int]]:
    """Tensor ranks and stages whose layout is legal without further methods; if it is not, none with them is legal."""
    asked = replace(recipe.parallel.layout(), zero_stage=1, sequence=False)
    for tensor in range(1, min(recipe.model.heads, cluster.world_size) + 1):
        for pipeline in range(1, recipe.model.layers + 3):  # embedding and head may each have a stage
            if is_legal(recipe, replace(asked, tensor=tensor, pipeline=pipeline), cluster):
                yield tensor, pipeline


def _fill(recipe: Recipe, cluster: Cluster, layout: Layout, precision: str, stages: Stages) -> Plan:
    """The layout with the largest micro-batch that fits; windows are halved until it does."""
    length = max(phase.sequence_length for phase in recipe.phases.values())
    share = max(_share(phase, layout.data) for phase in recipe.phases.values())
    # A pipeline is idle unless several micro-batches are in flight.
    windows = max(1, -(-share // length) // (4 * layout.pipeline if layout.pipeline > 1 else 1))
    budget = int(MEMORY_SHARE * cluster.device.memory)
    while True:
        tokens = windows * length
        memory = max(
            (_memory(recipe, name, layout, precision, tokens, stages[name]) for name in stages),
            key=lambda estimate: estimate.total,
        )
        if memory.total <= budget or windows == 1:
            break
        windows = -(-windows // 2)
    parts = [stage for cut in stages.values() for stage in cut]
    shared = max(shared_bytes(recipe.model, phase) for phase in recipe.phases.values())
    background, whole = recipe.training.save_in_background, recipe.whole_model
    host = estimate_host_memory(recipe.model, layout, precision, background, parts, shared, whole)
    idle = max(_idle(recipe, phase, layout.data, tokens, stages[name]) for name, phase in recipe.phases.items())
    blocks = {name: [len(stage.blocks) for stage in cut] for name, cut in stages.items()}
    return Plan(
        replace(layout, micro_batch_tokens=tokens), -(-share // tokens), memory, host, blocks, idle, memory.total <= budget
    )


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


class Work(TypedDict):
    """Work of a phase."""

    steps: int
    tokens_per_step: int
    tokens: int
    flops: float


class PlanInput(TypedDict):
    """What is planned for."""

    recipe: str
    parameters: int
    parameters_without_embeddings: int
    cluster: dict[str, object]
    phases: dict[str, Work]


def summary(recipe: Recipe, cluster: Cluster) -> PlanInput:
    """Summary of the input: the recipe's size, its work by phase, the cluster."""
    counts = count_parameters(recipe.model)
    return {
        "recipe": recipe.name,
        "parameters": counts.total,
        "parameters_without_embeddings": counts.without_embeddings,
        "cluster": {
            "nodes": cluster.nodes,
            "devices_per_node": cluster.devices_per_node,
            "device": cluster.device.name,
            "device_memory": cluster.device.memory,
            "memory_share": MEMORY_SHARE,
        },
        "phases": {
            name: {
                "steps": phase.total_steps,
                "tokens_per_step": phase.tokens_per_step,
                "tokens": phase.total_steps * phase.tokens_per_step,
                "flops": phase.total_steps * step_flops(recipe.model, phase),
            }
            for name, phase in recipe.phases.items()
        },
    }


def plan_table(recipe: Recipe, cluster: Cluster, plans: list[Plan], top: int) -> list[RenderableType]:
    """Lines and one table for a terminal (rich renderables)."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    facts, gigabyte = summary(recipe, cluster), 1e9
    where = f"{cluster.nodes} x {cluster.devices_per_node} x {cluster.device.name}"
    table = Table(title=f"{recipe.name} on {where}, GB a device", pad_edge=False, padding=0, box=SIMPLE_HEAD)
    for heading in ("TP", "PP", "DP", "SP", "ZeRO", "tokens", "passes", "states", "act.", "total", "host", "idle", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in plans[:top]:
        memory, layout = candidate.memory, candidate.layout
        states = memory.weights + memory.gradients + memory.optimizer + memory.buffers
        table.add_row(
            str(layout.tensor),
            str(layout.pipeline),
            str(layout.data),
            "yes" if layout.sequence else "no",
            str(layout.zero_stage),
            f"{candidate.micro_batch_tokens:,}",
            str(candidate.micro_batches),
            f"{states / gigabyte:.1f}",
            f"{(memory.activations + memory.head) / gigabyte:.1f}",
            f"{memory.total / gigabyte:.1f}",
            f"{candidate.host.total / gigabyte:.1f}",
            f"{candidate.idle:.0%}",
            "yes" if candidate.fits else "no",
        )
    fitting = sum(candidate.fits for candidate in plans)
    lines = [
        f"{facts['parameters'] / 1e6:,.1f} M parameters, {facts['parameters_without_embeddings'] / 1e6:,.1f} M without "
        "embeddings; memory is an estimate (planning/memory.py)"
    ]
    lines += [
        f"{name}: {pluralize(work['steps'], 'step', ',')}, {work['tokens'] / 1e9:,.1f} G tokens, {work['flops']:.2e} FLOP"
        for name, work in facts["phases"].items()
    ]
    lines.append(
        "TP, PP, DP: tensor, pipeline, data parallel ranks; SP: sequence parallelism; tokens: of a micro-batch; "
        "host: host memory of a rank at the start, and for saving and offload, at most; idle: share of a step lost while "
        "a pipeline fills and drains"
    )
    closing = f"{fitting} of {pluralize(len(plans), 'legal layout')} fit."
    closing += f" Take the first: {' '.join(plans[0].layout.overrides())}" if fitting else " Take more or larger devices."
    return [*lines, table, closing]
