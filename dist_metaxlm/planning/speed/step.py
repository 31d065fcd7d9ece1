"""Seconds of an optimiser step: stages of a pipeline, communication and what it overlaps with, optimiser, host.

A pipeline's step is that of its busiest stage for all micro-batches, and the others' once for filling and draining (1F1B,
arXiv 2104.04473, section 2.2), divided by the interleaved stages of a rank. Gradients are summed beside the backward pass;
the time that it does not cover is exposed, and the part beside it slows the pass by `CONTENTION` of its own time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.hardware import host_link
from dist_metaxlm.planning.speed.blocks import Items, Part, Ways, stage_part
from dist_metaxlm.planning.speed.collectives import ALL_REDUCE, ONE_WAY, ring_seconds, transfer_seconds
from dist_metaxlm.planning.speed.kernels import memory_speed
from dist_metaxlm.planning.speed.work import Method, Shape, StepTime, Work
from dist_metaxlm.planning.stages import Stage

CONTENTION = 0.27
"""Share of overlapped communication by which the computation beside it is slower: it shares processors and memory."""
OPTIMIZER_BYTES = 30
"""Adam: gradient, weight and two moments in fp32 read, the last three and the half-precision weight written."""
GRADIENT_BYTES = 8
"""A gradient summed, scaled and measured for the norm: read and written once more."""
WAITING = 0.0042
"""Share of a step by which each doubling of the devices lengthens it: the slowest of more devices is slower."""
INTERLEAVED = 0.5
"""Share of the transfers between interleaved stages that no other micro-batch's work covers."""
HOST_MEMORY = 100e9
"""Bytes per second of a node's memory that an offloaded update reaches."""


def step_time(
    shape: Shape, works: Sequence[Work], method: Method, cluster: Cluster, stages: Sequence[Stage] | None = None
) -> StepTime:
    """Time of an optimiser step of all passes of `works` on all devices of the cluster.

    stages: parts of the model by pipeline stage; None: blocks divided evenly, the first stages have one more.
    """
    stages = stages or even_stages(shape.layers, method.pipeline)
    chunks, items, fill, micro_batches = method.software.chunks, Items(float), 0.0, 0
    first: tuple[float, ...] = ()
    backward_seconds = 0.0
    for work in works:
        share = work.tokens / method.data
        count = max(1, math.ceil(share / method.micro_batch_tokens))
        numbers, parts = _parts(shape, work, method, cluster, stages, share / count)
        busiest = max(parts.values(), key=lambda part: part.seconds)
        first = first or tuple(parts[number].seconds for number in numbers)
        whole = sum(parts[number].seconds for number in numbers)
        for number, part in parts.items():
            weight = work.share * count * numbers.count(number) / len(numbers)
            for name, seconds in part.items.items():
                items[name] += weight * seconds
        items["bubble"] += work.share * count * (busiest.seconds - whole / len(numbers))
        backward_seconds += work.share * (count if method.zero_stage >= 2 else 1) * sum(busiest.backward.values())
        fill = max(fill, (whole - busiest.seconds) / chunks)
        micro_batches += count
        if method.pipeline > 1:
            items["transfer"] += work.share * count * _transfer(shape, method, cluster, share / count)
    items["bubble"] += fill
    parameters = max(_own_parameters(shape, method, stage) for stage in stages)
    passes = sum(work.share * max(1, math.ceil(work.tokens / method.data / method.micro_batch_tokens)) for work in works)
    communication = _data_parallel(method, cluster, parameters, passes, len(stages[0].blocks) + 1)
    for name, seconds in _exposed(communication, backward_seconds, sum(items.values())).items():
        items[name] += seconds
    items["optimizer"] += _optimizer(method, cluster, parameters)
    items["host"] += method.software.step_overhead
    loaded = method.software.loader * sum(work.share * work.tokens for work in works) / method.data
    items["host"] += max(0.0, loaded - sum(items.values()))
    items["waiting"] += WAITING * math.log2(cluster.world_size) * sum(items.values()) if cluster.world_size > 1 else 0.0
    return StepTime(
        items=dict(items),
        stages=first,
        micro_batches=micro_batches,
        tokens=sum(work.share * work.tokens for work in works if work.backward),
        flops=sum(work.share * work_flops(shape, work) for work in works),
        devices=cluster.world_size,
        peak=cluster.device.bf16_flops,
    )


def _parts(
    shape: Shape, work: Work, method: Method, cluster: Cluster, stages: Sequence[Stage], tokens: float
) -> tuple[list[int], dict[int, Part]]:
    """A micro-batch on each stage: the number of an equal stage (as many global and local blocks), and the parts."""
    known: dict[tuple[object, ...], int] = {}
    numbers, parts = [], {}
    ways: Ways = {}
    for number, stage in enumerate(stages):
        run = [block for block in stage.blocks if work.layers is None or block < work.layers]
        all_over = sum(shape.window is None or block % shape.global_every == 0 for block in run)
        again = sum(block % method.recompute_every == 0 for block in run)
        key = (stage.first, stage.last, len(run), all_over, again)
        if key not in known:
            known[key] = number
            parts[number] = stage_part(shape, work, method, cluster, stage, tokens, ways)
        numbers.append(known[key])
    return numbers, parts


def even_stages(layers: int, stages: int) -> list[Stage]:
    """Blocks divided evenly, the embedding on the first stage and the head on the last."""
    bounds = [number * layers // stages for number in range(stages + 1)]
    return [Stage(range(bounds[number], bounds[number + 1]), number == 0, number == stages - 1) for number in range(stages)]


def work_flops(shape: Shape, work: Work) -> float:
    """Operations of a pass: forward and backward once each, head on targets only, half of attention if causal."""
    run = shape.layers if work.layers is None else work.layers
    all_over = run if shape.window is None else -(-run // shape.global_every)
    attended = all_over * work.length + (run - all_over) * min(work.length, shape.window or work.length)
    attention = 12 * shape.heads * shape.head_dim * attended / (2 if work.causal else 1)
    head = 6 * work.targets * shape.hidden * (shape.vocab + (shape.hidden if shape.dense_head else 0))
    total = work.tokens * (6 * run * shape.block_parameters + attention + head)
    return total if work.backward else total / 3


@dataclass(frozen=True, kw_only=True)
class _Communication:
    """Seconds of data-parallel communication in a step."""

    beside: float
    """Beside forward and backward passes."""
    alone: float
    """After them."""
    gather: float
    """ZeRO-3: weights, beside both passes."""


def _data_parallel(method: Method, cluster: Cluster, parameters: float, passes: float, layers: int) -> _Communication:
    size = parameters * (4 if method.precision == "fp32" else 2)
    ranks, stride = method.data, method.tensor

    def ring(times: float, calls: int) -> float:
        return ring_seconds(cluster, size, ranks, stride, times, calls)

    if method.zero_stage == 3:
        each = ring(ONE_WAY, layers)
        return _Communication(beside=passes * each, alone=0.0, gather=2 * passes * each)
    reduced = method.software.reduce_passes
    if method.zero_stage == 2:
        return _Communication(beside=passes * ring(reduced, layers), alone=ring(ONE_WAY, 4), gather=0.0)
    if method.zero_stage == 1:
        alone = CONTENTION if method.software.overlap_gather else 1.0
        return _Communication(beside=ring(reduced, layers), alone=alone * ring(ONE_WAY, 4), gather=0.0)
    return _Communication(beside=ring(ALL_REDUCE, layers), alone=0.0, gather=0.0)


def _exposed(communication: _Communication, backward: float, computed: float) -> Items:
    """Seconds that communication adds to the step, by item."""
    beside = communication.beside
    gradients = CONTENTION * beside + max(0.0, (1 - CONTENTION) * beside - 0.9 * backward) + communication.alone
    gather = communication.gather
    gathers = CONTENTION * gather + max(0.0, (1 - CONTENTION) * gather + beside - 0.9 * computed) if gather else 0.0
    return Items(float, {"gradients": gradients, "gather": gathers})


def _own_parameters(shape: Shape, method: Method, stage: Stage) -> float:
    """Parameters of a rank of a stage."""
    tables = (stage.first + (stage.last and not (stage.first and shape.tied))) * shape.vocab * shape.hidden
    return (len(stage.blocks) * shape.block_parameters + tables) / method.tensor


def _optimizer(method: Method, cluster: Cluster, parameters: float) -> float:
    """Seconds of the update."""
    shard = parameters / (method.data if method.zero_stage >= 1 else 1)
    whole = parameters / (method.data if method.zero_stage >= 2 else 1)
    measured = GRADIENT_BYTES * whole / memory_speed(cluster.device)
    if not method.offload_optimizer:
        return measured + OPTIMIZER_BYTES * shard / memory_speed(cluster.device)
    lane = host_link(cluster.device)
    on_node = min(cluster.devices_per_node, cluster.world_size)
    return measured + 6 * shard / lane.speed + OPTIMIZER_BYTES * shard * on_node / HOST_MEMORY


def _transfer(shape: Shape, method: Method, cluster: Cluster, tokens: float) -> float:
    """Seconds in which a stage waits for the states and gradients of its neighbours in a micro-batch."""
    size = tokens * shape.hidden * (4 if method.precision == "fp32" else 2) / (method.tensor if method.sequence else 1)
    distance = method.data * method.tensor
    exposed = INTERLEAVED if method.software.chunks > 1 else 1.0
    return 2 * method.software.chunks * exposed * transfer_seconds(cluster, size, distance)
