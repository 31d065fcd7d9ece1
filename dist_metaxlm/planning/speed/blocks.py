"""Seconds of a micro-batch in the parts of a model on one rank: blocks by the length they attend over, and the head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.speed.collectives import ALL_REDUCE, ring_seconds
from dist_metaxlm.planning.speed.kernels import (
    UNFUSED,
    attention_both_ways,
    loss_seconds,
    memory_speed,
    product_both_ways,
    product_seconds,
)
from dist_metaxlm.planning.speed.work import Method, Shape, Work
from dist_metaxlm.planning.stages import Stage

KERNELS = {True: (14, 24), False: (28, 50)}
"""Kernels of a block forward and backward, by whether they are fused."""
HEAD_KERNELS = (20, 30)
Items = defaultdict[str, float]
Ways = dict[int | None, tuple[Items, Items]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Seconds of one micro-batch by item, forward and backward."""

    forward: Items
    backward: Items

    @cached_property
    def items(self) -> Items:
        """Both ways."""
        both = Items(float, self.forward)
        _add(both, self.backward, 1.0)
        return both

    @cached_property
    def seconds(self) -> float:
        """Of a micro-batch, forward and backward."""
        return sum(self.items.values())


def stage_part(shape: Shape, work: Work, method: Method, cluster: Cluster, stage: Stage, tokens: float, known: Ways) -> Part:
    """A micro-batch of `tokens` tokens on a rank of `stage`; `known`: blocks of the same micro-batch, by window."""
    forward, backward = Items(float), Items(float)
    last = shape.layers if work.layers is None else work.layers
    run = [block for block in stage.blocks if block < last]
    for window, blocks in _by_window(shape, run):
        if window not in known:
            known[window] = block_ways(shape, work, method, cluster, window, tokens)
        ways = known[window]
        again = sum(block % method.recompute_every == 0 for block in blocks) if method.recompute == "blocks" else 0
        _add(forward, ways[0], len(blocks))
        _add(backward, ways[1], len(blocks))
        backward["recompute"] += again * sum(ways[0].values())
        backward["recompute"] += len(blocks) * _selective(shape, method, cluster, ways[0], tokens)
    if stage.first:
        moved = 6 * tokens * shape.hidden * _element(method) / memory_speed(cluster.device)
        forward["elementwise"] += moved / 3
        backward["elementwise"] += 2 * moved / 3
    if stage.last and work.targets:
        _add(forward, *_head(shape, work, method, cluster, tokens, 1 / 3))
        _add(backward, *_head(shape, work, method, cluster, tokens, 2 / 3))
    kernels = KERNELS[method.software.fused]
    head = HEAD_KERNELS if stage.last else (0, 0)
    for items, count, extra in ((forward, kernels[0], head[0]), (backward, kernels[1], head[1])):
        if items is backward and method.recompute == "blocks":
            count += kernels[0]
        if method.software.kernels == "eager":
            launches = (len(run) * count + extra) * cluster.device.launch
            items["launch"] += max(0.0, launches - sum(items.values()))
    return Part(forward=forward, backward=backward if work.backward else Items(float))


def block_ways(
    shape: Shape, work: Work, method: Method, cluster: Cluster, window: int | None, tokens: float
) -> tuple[Items, Items]:
    """Seconds of a block by item, forward and backward."""
    device, software, ranks = cluster.device, method.software, method.tensor
    forward, backward = Items(float), Items(float)
    width = shape.heads * shape.head_dim / ranks
    keys = shape.kv_heads * shape.head_dim / min(ranks, shape.kv_heads)
    inner = shape.ffn / ranks
    for columns, depth in (
        (width + 2 * keys, shape.hidden),
        (shape.hidden, width),
        (inner * (2 if shape.gated else 1), shape.hidden),
        (shape.hidden, inner),
    ):
        one_way, back = product_both_ways(device, method.precision, tokens, columns, depth)
        forward["products"] += one_way
        backward["products"] += back
    attended = min(work.length, window or work.length)
    causal = work.causal and attended == work.length
    one_way, back = attention_both_ways(device, software, method.precision, tokens, attended, width, shape.head_dim, causal)
    forward["attention"] += one_way
    backward["attention"] += back
    one_way, back = elementwise_bytes(shape, method)
    forward["elementwise"] += tokens * one_way / memory_speed(device)
    backward["elementwise"] += tokens * back / memory_speed(device)
    if ranks > 1:
        size = tokens * shape.hidden * _element(method)
        one = ring_seconds(cluster, 2 * size, ranks, 1, ALL_REDUCE, 2) * (1 - software.overlap_tensor)
        forward["tensor"] += one
        backward["tensor"] += one
    return forward, backward


def elementwise_bytes(shape: Shape, method: Method) -> tuple[float, float]:
    """Bytes a token and block of elementwise kernels, forward and backward.

    Norms with residual sums read two tensors of the hidden size and write two (backward five), the activation reads and
    writes those of the feed-forward layer, rotary embedding queries and keys.
    """
    outside = shape.hidden / (method.tensor if method.sequence else 1)
    inner, queries = shape.ffn / method.tensor, (shape.heads + shape.kv_heads) * shape.head_dim / method.tensor
    forward = 8 * outside + (3 if shape.gated else 2) * inner + (2 * queries if shape.rotary else 0)
    backward = 10 * outside + (5 if shape.gated else 3) * inner + (2 * queries if shape.rotary else 0)
    factor = _element(method) * (1.0 if method.software.fused else UNFUSED)
    return factor * forward, factor * backward


def _selective(shape: Shape, method: Method, cluster: Cluster, forward: Items, tokens: float) -> float:
    """Seconds of what `recompute: selective` runs again in a block: attention matrices, or the activation."""
    if method.recompute != "selective":
        return 0.0
    if method.software.flash == 0:
        return float(forward["attention"])
    inner = (3 if shape.gated else 2) * shape.ffn / method.tensor * _element(method)
    return tokens * inner / memory_speed(cluster.device)


def _head(shape: Shape, work: Work, method: Method, cluster: Cluster, tokens: float, share: float) -> tuple[Items, float]:
    """Items of the head, and the share of them to count."""
    device, targets, columns = cluster.device, tokens * work.targets, shape.vocab / method.tensor
    precision = "bf16" if method.precision == "fp8" else method.precision
    items = Items(float)
    items["head"] = sum(product_both_ways(device, precision, targets, columns, shape.hidden))
    items["head"] += loss_seconds(device, method.software, targets * columns)
    if shape.dense_head:
        items["head"] += 3 * product_seconds(device, precision, targets, shape.hidden, shape.hidden)
    if method.tensor > 1:
        size = targets * shape.hidden * _element(method)
        items["tensor"] += ring_seconds(cluster, size, method.tensor, 1, ALL_REDUCE)
    return items, share


def _by_window(shape: Shape, blocks: Sequence[int]) -> list[tuple[int | None, list[int]]]:
    """Blocks that attend over everything, and those that attend over a window."""
    if shape.window is None:
        return [(None, list(blocks))] if blocks else []
    all_over = [block for block in blocks if block % shape.global_every == 0]
    local = [block for block in blocks if block % shape.global_every]
    return [(window, part) for window, part in ((None, all_over), (shape.window, local)) if part]


def _add(items: Items, more: Items, factor: float) -> None:
    for name, seconds in more.items():
        items[name] += seconds * factor


def _element(method: Method) -> int:
    """Bytes of an activation."""
    return 4 if method.precision == "fp32" else 2
