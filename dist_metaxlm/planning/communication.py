"""Bytes that leave each node in an optimiser step, by layout: the load of the link between nodes.

The count includes the collectives of a layout as rings (a rank of n sends (n - 1) / n of the data for each pass over it),
with the element size of the training precision. It excludes headers, retries and the small sums of losses and norms.

    data:     the gradients, 2 passes without ZeRO, 3 with it. ZeRO-1 and 2 need only 2 (arXiv 1910.02054, section 7);
              DeepSpeed (0.19, `use_multi_rank_bucket_allreduce`) sends whole buckets to all ranks and gathers the weights
    tensor:   the states [tokens, h] in 4 all-reduces of 2 passes a block (arXiv 1909.08053), one more for the embedding,
              and the states of the targets in the backward pass of the head
    pipeline: the states [tokens, h] forward, their gradients backward; the word embedding's gradient between the two stages
              that hold it, and its new weights once

All objectives of the phase are counted (`mixing: sum`), translation pairs with sentences of maximum length.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_metaxlm.parallel.placement import Placement
from dist_metaxlm.parallel.topology import Topology, filled_nodes
from dist_metaxlm.planning.parameters import count_parameters, stage_parameters
from dist_metaxlm.planning.stages import Stage, model_stages, needs_blocks
from dist_metaxlm.recipe.objectives.base import EncoderPass
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe


@dataclass(frozen=True)
class Traffic:
    """Bytes that nodes send to other nodes in one step."""

    by_node: tuple[int, ...]

    @property
    def total(self) -> int:
        """Of all nodes."""
        return sum(self.by_node)

    @property
    def busiest(self) -> int:
        """Bytes of the node that sends most; a step waits for it."""
        return max(self.by_node)


def predict_traffic(recipe: Recipe, phase: str, nodes: int, ranks_a_node: int) -> Traffic:
    """The traffic of a step of `phase` for the recipe's layout on nodes that are filled one after another."""
    layout, config = recipe.parallel, recipe.phase(phase)
    place = Placement(
        Topology(0, nodes * ranks_a_node, 0, ranks_a_node, "plan", filled_nodes([ranks_a_node] * nodes)),
        layout.tensor,
        layout.pipeline,
    )
    stages = model_stages(
        recipe.model, config.sequence_length, config.targets_per_token, layout.pipeline, needs_blocks(recipe)
    )
    sent = [0.0] * nodes
    size = place.topology.world_size
    for rank in range(size):
        number, data, tensor = place.coordinates(rank)
        above, below = rank + place.data * place.tensor, rank - place.data * place.tensor
        flows = [
            (_ring(rank, data, place.data, place.tensor), _gradients(recipe, config, stages[number], place.data)),
            (_ring(rank, tensor, place.tensor, 1), _inside_blocks(recipe, config, stages[number], place)),
            *(
                (other, _between_stages(recipe, config, place))
                for other in (above, below)
                if place.pipeline > 1 and 0 <= other < size
            ),
        ]
        if place.pipeline > 1 and number in (0, place.pipeline - 1):
            first = number == 0
            other = rank + (size - place.data * place.tensor) * (1 if first else -1)
            # Gradients go both ways, new weights from the first to the last.
            flows.append(
                (
                    other,
                    (2 if first else 1) * _element(recipe) * count_parameters(recipe.model).word_embedding / place.tensor,
                )
            )
        for other, amount in flows:
            if place.topology.link(rank, other) == "network":
                sent[rank // ranks_a_node] += amount
    return Traffic(tuple(round(amount) for amount in sent))


def _ring(rank: int, position: int, members: int, stride: int) -> int:
    """The next rank of a group whose members are `stride` apart."""
    return rank + ((position + 1) % members - position) * stride


def _element(recipe: Recipe) -> int:
    """Bytes of a transferred number; `auto` counts as fp32, its value on CPU."""
    return 2 if recipe.training.precision in ("bf16", "fp16") else 4


def _gradients(recipe: Recipe, phase: PhaseConfig, stage: Stage, data: int) -> float:
    """Bytes that a rank sends to the next in its data-parallel group."""
    parameters = stage_parameters(recipe.model, stage, recipe.parallel.tensor).own
    parameters += sum(objective.own_parameters(recipe.model) for objective in phase.objectives) if stage.last else 0
    passes = 3 if recipe.parallel.zero_stage else 2
    return passes * (data - 1) / data * parameters * _element(recipe)


def _inside_blocks(recipe: Recipe, phase: PhaseConfig, stage: Stage, place: Placement) -> float:
    """Bytes that a rank sends to the next in its tensor group."""
    states = 0.0
    for encoder_pass in _passes(phase):
        tokens, ways = encoder_pass.tokens / place.data, 2 if encoder_pass.backward else 1
        blocks = sum(encoder_pass.layers is None or block < encoder_pass.layers for block in stage.blocks)
        states += tokens * ways * (2 * blocks + stage.first / 2)
        states += tokens * phase.targets_per_token if encoder_pass.targets and stage.last else 0
    return 2 * (place.tensor - 1) / place.tensor * states * recipe.model.hidden * _element(recipe)


def _between_stages(recipe: Recipe, phase: PhaseConfig, place: Placement) -> float:
    """Bytes that a rank sends to its counterpart on a neighbouring stage."""
    split = place.tensor if recipe.parallel.sequence else 1
    tokens = sum(encoder_pass.tokens / place.data for encoder_pass in _passes(phase))
    return tokens * recipe.model.hidden * _element(recipe) / split


def _passes(phase: PhaseConfig) -> list[EncoderPass]:
    """Encoder passes of all objectives in a step."""
    return [
        encoder_pass
        for objective in phase.objectives
        for encoder_pass in objective.passes(phase.sequence_length, phase.mask_rate)
    ]
