"""The parts of the encoder on each pipeline stage: consecutive, each part once, minimising the cost of the costliest stage.

The parts are the embedding, the blocks and the head (with the final norm). A head over 250,000 ids costs as much
as several blocks, so the last stage may have fewer blocks than the others, or none; so may the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from dist_metaxlm.planning.flops import flops_per_token
from dist_metaxlm.recipe.schema import ModelConfig, Recipe


@dataclass(frozen=True)
class Stage:
    """One stage's parts of the encoder."""

    blocks: range
    """Its blocks, by their index in the whole encoder."""
    first: bool = True
    """Whether it holds the embedding."""
    last: bool = True
    """Whether it holds the final norm and the head, and a copy of the token embedding for it."""


def part_costs(model: ModelConfig, length: float, target_share: float) -> list[float]:
    """Operations per token of the embedding, of each block and of the head, forward and backward.

    length: tokens that a token attends over. target_share: share of tokens that reach the head. The embedding
    lookup is not counted. The local blocks of family modern cost less than its global ones.
    """
    sums = [flops_per_token(model, length, 0.0, layers) for layers in range(model.layers + 1)]
    blocks = [after - before for before, after in zip(sums, sums[1:], strict=False)]
    return [0.0, *blocks, flops_per_token(model, length, target_share, 0)]


def balanced_stages(costs: Sequence[float], stages: int, with_blocks: bool = False) -> list[Stage]:
    """Cut parts of `costs` (embedding, blocks, head) into `stages` runs of at least one part each.

    The cut minimises the largest sum of a run, and among such cuts the sum of squares. `with_blocks`: every run has a block.
    """
    return list(_balanced(tuple(costs), stages, with_blocks))


@lru_cache(maxsize=1024)
def _balanced(costs: tuple[float, ...], stages: int, with_blocks: bool) -> tuple[Stage, ...]:
    parts = len(costs)
    most = parts - 2 if with_blocks else parts
    assert 1 <= stages <= most, f"{parts} parts cannot be cut into {stages} stages"

    def cost_of(start: int, end: int) -> float:
        empty = max(start, 1) >= min(end, parts - 1)
        return math.inf if with_blocks and empty else before[end] - before[start]

    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[end]: (largest sum, sum of squares, starts of the runs) of the first `end` parts, for a growing number of runs.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {
        end: (cost_of(0, end), cost_of(0, end) ** 2, (0,)) for end in range(1, parts + 1)
    }
    for run in range(2, stages + 1):
        best = {
            end: min(_with_run(best[start], start, cost_of(start, end)) for start in range(run - 1, end))
            for end in range(run, parts + 1)
        }
    bounds = [*best[parts][2], parts]
    return tuple(
        Stage(range(max(start, 1) - 1, min(stop, parts - 1) - 1), start == 0, stop == parts)
        for start, stop in zip(bounds, bounds[1:], strict=False)
    )


def _with_run(cut: tuple[float, float, tuple[int, ...]], start: int, cost: float) -> tuple[float, float, tuple[int, ...]]:
    largest, squares, starts = cut
    return max(largest, cost), squares + cost**2, (*starts, start)


def model_stages(
    model: ModelConfig, length: float, target_share: float, stages: int, with_blocks: bool = False
) -> list[Stage]:
    """The stages of `model` for documents of `length` tokens; `with_blocks` as in `balanced_stages`."""
    return balanced_stages(part_costs(model, length, target_share), stages, with_blocks)


def needs_blocks(recipe: Recipe) -> bool:
    """Whether every stage must have a block.

    Muon updates the blocks' matrices in a group of their own, and DeepSpeed 0.19.8 sums the gradient norm over the stages
    once for each group (`scaled_global_norm`): a stage without that group would never answer.
    """
    return recipe.optimizer.name == "muon"


def idle_share(costs: Sequence[float], stages: Sequence[Stage], micro_batches: int) -> float:
    """Share of a step that a stage waits on average, while the pipeline fills and drains and for the costliest stage.

    costs: as from `part_costs`. Of m equal micro-batches the first takes the sum of the stages' costs, each further one adds
    the largest; communication is not counted. With equal costs of p stages this is (p - 1) / (m + p - 1), as in
    PipeDream-Flush (arXiv 2104.04473, section 2.2).
    """
    by_stage = [
        costs[0] * stage.first + sum(costs[1 + block] for block in stage.blocks) + costs[-1] * stage.last for stage in stages
    ]
    step = sum(by_stage) + (micro_batches - 1) * max(by_stage)
    return 1 - micro_batches * sum(by_stage) / len(stages) / step
