"""The parts of the encoder on each pipeline stage: consecutive, each part once, minimising the cost of the costliest stage.

The parts are the embedding, the blocks and the head (with the final norm). A head over 250,000 ids costs as much
as several blocks, so the last stage may have fewer blocks than the others, or none; so may the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dist_metaxlm.planning.flops import flops_per_token
from dist_metaxlm.recipe.schema import ModelConfig


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


def balanced_stages(costs: Sequence[float], stages: int) -> list[Stage]:
    """Cut parts of `costs` (embedding, blocks, head) into `stages` runs of at least one part each.

    The cut minimises the largest sum of a run, and among such cuts the sum of squares.
    """
    parts = len(costs)
    assert 1 <= stages <= parts, f"{parts} parts cannot be cut into {stages} stages"
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[end]: (largest sum, sum of squares, starts of the runs) of the first `end` parts, for a growing number of runs.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {
        end: (before[end], before[end] ** 2, (0,)) for end in range(1, parts + 1)
    }
    for run in range(2, stages + 1):
        best = {
            end: min(_with_run(best[start], start, before[end] - before[start]) for start in range(run - 1, end))
            for end in range(run, parts + 1)
        }
    bounds = [*best[parts][2], parts]
    return [
        Stage(range(max(start, 1) - 1, min(stop, parts - 1) - 1), start == 0, stop == parts)
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]


def _with_run(cut: tuple[float, float, tuple[int, ...]], start: int, cost: float) -> tuple[float, float, tuple[int, ...]]:
    largest, squares, starts = cut
    return max(largest, cost), squares + cost**2, (*starts, start)


def model_stages(model: ModelConfig, length: float, target_share: float, stages: int) -> list[Stage]:
    """The stages of `model` for documents of `length` tokens."""
    return balanced_stages(part_costs(model, length, target_share), stages)


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
