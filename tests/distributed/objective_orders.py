"""Steps whose objectives do not reach every parameter, under ZeRO stages and pipelines, with and without offload.

DeepSpeed keeps gradients from step to step; see dist_metaxlm/deepspeed_adapter/stale_gradients.py.
"""

from __future__ import annotations

from layouts import Case, Layout

_MLM, _TLM = "{name: mlm, batch_tokens: 256}", "{name: tlm, batch_tokens: 128, weight: 0.5}"
_CONTRAST = "{name: contrast, pairs: 16, group: 16, layer: 1, max_tokens: 24}"  # without the upper block and the head
ORDERS = {
    "first objective misses layers": [f"phases.joint.objectives=[{_CONTRAST}, {_MLM}, {_TLM}]"],
    "one drawn a step": ["phases.joint.mixing=draw"],
    "drawn ones miss layers": ["phases.joint.mixing=draw", f"phases.joint.objectives=[{_MLM}, {_CONTRAST}]"],
}
WHOLE = Layout(zero_stage=0, micro_batch_tokens=64)
SHARDED = {
    "ZeRO-1": Layout(zero_stage=1, micro_batch_tokens=64),
    "ZeRO-2": Layout(zero_stage=2, micro_batch_tokens=64),
    "ZeRO-3": Layout(zero_stage=3, micro_batch_tokens=64),
    "pipeline": Layout(pipeline=2, zero_stage=1, micro_batch_tokens=64),
}


def fields(order: str, sharding: str, precision: str) -> list[str]:
    """Overrides of a case besides its layout; of those that are the same with and without offload.

    ZeRO-1 in bf16 has an optimiser of its own in DeepSpeed, and another one with offload, whose norms differ in the last
    bit. That turns the rounding of some weights where gradients are clipped, so there they are not.
    """
    own_optimizer = precision == "bf16" and sharding in ("ZeRO-1", "pipeline")
    return [*ORDERS[order], f"training.precision={precision}", *(["optimizer.clip_norm=0"] if own_optimizer else [])]


def case(order: str, sharding: str, precision: str, offload: bool) -> Case:
    """One run; `sharding` is a key of SHARDED, or `ZeRO-0`."""
    layout = SHARDED.get(sharding, WHOLE)
    extra = [f"parallel.offload_optimizer={str(offload).lower()}"]
    return Case(layout, extra=[*fields(order, sharding, precision), *extra])
