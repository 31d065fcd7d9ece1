"""The micro-batches of a step on the stages of a pipeline: 1F1B (PipeDream-Flush, arXiv 2104.04473, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORWARD = 1 / 3
"""Share of a micro-batch's time in the forward pass; the backward pass has two products for each of the forward pass."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A micro-batch's forward or backward pass on a stage, in seconds from the start of the step."""

    stage: int
    micro_batch: int
    backward: bool
    start: float
    end: float


def one_forward_one_backward(stages: Sequence[float], micro_batches: int) -> list[Pass]:
    """When each pass runs, without communication.

    stages: seconds of a micro-batch, forward and backward, by stage.
    """
    orders = [_order(stage, len(stages), micro_batches) for stage in range(len(stages))]
    ends: dict[tuple[int, int, bool], float] = {}
    free, passes, last = [0.0] * len(stages), [], len(stages) - 1
    while any(orders):
        for stage, order in enumerate(orders):
            while order:
                micro_batch, backward = order[0]
                needs = (stage, micro_batch, False) if stage == last else (stage + 1, micro_batch, True)
                needs = needs if backward else (stage - 1, micro_batch, False)
                if needs[0] >= 0 and needs not in ends:
                    break
                start = max(free[stage], ends.get(needs, 0.0))
                end = start + stages[stage] * ((1 - FORWARD) if backward else FORWARD)
                free[stage] = ends[stage, micro_batch, backward] = end
                passes.append(Pass(stage=stage, micro_batch=micro_batch, backward=backward, start=start, end=end))
                order.pop(0)
    return passes


def _order(stage: int, stages: int, micro_batches: int) -> list[tuple[int, bool]]:
    """(micro-batch, backward) in the order of a stage: forward until the pipeline is full, then one of each in turn."""
    ahead = min(stages - stage - 1, micro_batches)
    order = [(number, False) for number in range(ahead)]
    for number in range(ahead, micro_batches):
        order += [(number, False), (number - ahead, True)]
    return order + [(number, True) for number in range(micro_batches - ahead, micro_batches)]
