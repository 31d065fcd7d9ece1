"""Whether a recipe can be cut over the ranks it was started on: every refusal of a layout, before anything else starts."""

from __future__ import annotations

from dist_metaxlm.data.steps import check_batches
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.placement import check_placement
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.schema import ParallelConfig, Recipe
from dist_metaxlm.text import counted


def check_layout(recipe: Recipe, phase_name: str, topology: Topology) -> None:
    """Refuse a layout that cannot work on these ranks and nodes.

    Raises:
        UserError: naming the value at fault and the nearest that is legal.
    """
    world_size = topology.world_size
    layout, model, phase = recipe.parallel, recipe.model, recipe.phase(phase_name)
    tensor, stages = layout.tensor, layout.pipeline
    if stages > model.layers + 2:
        raise UserError(
            f"parallel.pipeline={stages} is more stages than the {counted(model.layers, 'layer')}, embedding "
            f"and head of the model can fill; nearest: parallel.pipeline={model.layers + 2}"
        )
    widths = {"model.heads": model.heads, "model.ffn": model.ffn}
    wrong = [f"{name}={value}" for name, value in widths.items() if value % tensor]
    if world_size % tensor:
        wrong.insert(0, counted(world_size, "rank"))
    if layout.sequence and phase.sequence_length % tensor:
        wrong.append(f"phases.{phase_name}.sequence_length={phase.sequence_length} (parallel.sequence cuts it)")
    if wrong:
        numbers = [world_size, *widths.values(), *([phase.sequence_length] if layout.sequence else [])]
        raise UserError(
            f"parallel.tensor={tensor} does not divide {' nor '.join(wrong)}; nearest that divides: "
            f"parallel.tensor={_nearest_divisor(numbers, tensor)}"
        )
    copies = world_size // tensor
    if copies % stages:
        raise UserError(
            f"parallel.pipeline={stages} does not divide the {counted(copies, 'rank')} left by "
            f"parallel.tensor={tensor} of {world_size}; nearest that divides: "
            f"parallel.pipeline={_nearest_divisor([copies], stages)}"
        )
    check_batches(phase, phase_name, copies // stages)
    check_placement(topology, tensor, stages, layout.tensor_across_nodes)


def _nearest_divisor(numbers: list[int], wanted: int) -> int:
    """The common divisor of `numbers` that is nearest to `wanted`, the smaller one of two; 1 always is one."""
    common = [n for n in range(1, min(numbers) + 1) if not any(number % n for number in numbers)]
    return min(common, key=lambda n: (abs(n - wanted), n))


def layout_name(layout: ParallelConfig, world_size: int) -> str:
    """The layout in a few words for the log, such as `tensor 2 (sequence) x data 4, ZeRO-1`."""
    if world_size == 1:
        return "nothing sharded"
    words = [f"tensor {layout.tensor}{' (sequence)' if layout.sequence else ''}"] if layout.tensor > 1 else []
    words += [f"pipeline {layout.pipeline}"] if layout.pipeline > 1 else []
    copies = world_size // (layout.tensor * layout.pipeline)
    return f"{' x '.join([*words, f'data {copies}'])}, ZeRO-{layout.zero_stage}"
