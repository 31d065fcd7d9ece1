"""Time of profiled steps by component and pass, and causes of host waits, from the profiler's events.

On a CPU the time of an operator is its own host time without nested operators; on a GPU it is that of its kernels. A
forward operator belongs to the innermost label around it (labels.py); a backward operator to the component of the forward
operator whose autograd node it executes, which the profiler identifies by thread and sequence number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch.autograd.profiler_util import FunctionEvent

from dist_metaxlm.benchmarking.training.labels import COMMUNICATION, DATA, MODULES, PREFIX, STEP

FORWARD, BACKWARD, AGAIN, UPDATE = "forward", "backward", "recomputed", "step"
PASSES = (FORWARD, BACKWARD, AGAIN, UPDATE)
ACCUMULATION = "sums of gradients"
CARRIERS = ("gloo:", "nccl:", "c10d::", "ncclDevKernel", "ncclKernel")
"""Names of collectives and sends: the calls, gloo's own, NCCL's kernels."""
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::equal",
    "aten::unique_consecutive",
)
"""Operators that make the host wait for their result."""
CUDA_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Blocking calls of CUDA."""
_NODE = "autograd::engine::evaluate_function: "
_BACKWARD_SCOPE = 1
_OF_THE_MODEL = frozenset([STEP, *(name for _, name in MODULES)])


@dataclass
class Breakdown:
    """Sums over the profiled steps; microseconds."""

    parts: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    """Component -> pass -> time."""
    operators: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))
    """(operator, component, pass) -> time."""
    waits: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Component -> cause of a host wait -> count."""

    def total(self) -> float:
        """Time that was attributed."""
        return sum(sum(passes.values()) for passes in self.parts.values())


def breakdown(events: Iterable[FunctionEvent], on_device: bool) -> Breakdown:
    """Sum up the `events` (`torch.profiler.profile.events()`, in order of time) of the labelled steps.

    `on_device`: use the time of the kernels; otherwise the host's.
    """
    listed = [event for event in events if not getattr(event, "is_async", False) and _is_host(event)]
    nodes: dict[tuple[int | None, int], str] = {}
    places: dict[int, tuple[str, str] | None] = {}
    for event in listed:
        place = places[id(event)] = _place(event, places, nodes)
        if place is not None and event.sequence_nr >= 0 and place[1] != BACKWARD:
            # Operators without a node have the number of the next one: the last to start with a number created its node.
            nodes[event.thread, event.sequence_nr] = place[0]
    sums = Breakdown()
    for event in listed:
        place = places[id(event)]
        if place is None:
            continue
        time = _device_time(event) if on_device else _host_time(event)
        if time:
            sums.parts[place[0]][place[1]] += time
            sums.operators[event.name.removeprefix(PREFIX), *place] += time
        if event.name in (CUDA_WAITS if on_device else WAITS):
            sums.waits[place[0]][f"{event.name} in {_operator_around(event)}"] += 1
    return sums


def _place(
    event: FunctionEvent, places: dict[int, tuple[str, str] | None], nodes: dict[tuple[int | None, int], str]
) -> tuple[str, str] | None:
    """(component, pass) of an event whose parents are already placed; None outside the labelled steps."""
    parent = event.cpu_parent
    around = places.get(id(parent)) if parent is not None else None
    if around is not None and around[0] == COMMUNICATION:
        return around
    if event.name.startswith(CARRIERS):
        return (COMMUNICATION, UPDATE) if around is not None else None
    if event.name.startswith(PREFIX):
        name = event.name.removeprefix(PREFIX)
        again = around is not None and around[1] in (BACKWARD, AGAIN)
        return name, AGAIN if again else FORWARD if name in _OF_THE_MODEL else UPDATE
    if event.scope == _BACKWARD_SCOPE or event.name.startswith(_NODE):
        if event.name.removeprefix(_NODE) == "torch::autograd::AccumulateGrad":
            return ACCUMULATION, BACKWARD
        known = nodes.get((event.fwd_thread, event.sequence_nr))
        if known is not None:
            return known, BACKWARD
        return around if around is not None and around[1] == BACKWARD else (STEP, BACKWARD)
    return around


def _operator_around(event: FunctionEvent) -> str:
    """The outermost operator that contains the event, below its label."""
    name = event.name
    while event.cpu_parent is not None and not event.cpu_parent.name.startswith(PREFIX):
        event = event.cpu_parent
        name = event.name
    return name.removeprefix(_NODE)


def _is_host(event: FunctionEvent) -> bool:
    return getattr(event.device_type, "name", "CPU") == "CPU"


def _host_time(event: FunctionEvent) -> float:
    """Own time of an operator; time of a label between operators belongs to the interpreter, except waiting."""
    return 0.0 if event.name.startswith(PREFIX) and event.name != PREFIX + DATA else event.self_cpu_time_total


def _device_time(event: FunctionEvent) -> float:
    """Time of the kernels that the event itself launched; the device entry of a label also spans other kernels."""
    return float(sum(kernel.duration for kernel in event.kernels if kernel.name != event.name))


def device_busy(events: Iterable[FunctionEvent]) -> float:
    """Microseconds in which a device ran at least one kernel or copy."""
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if not _is_host(event) and not event.name.startswith(PREFIX)
    ]
    return covered(spans)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
