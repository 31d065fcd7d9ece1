"""The time of a recipe's step in a layout on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dist_metaxlm.planning.checkpoint_size import checkpoint_bytes
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.hardware import host_link
from dist_metaxlm.planning.speed.step import step_time
from dist_metaxlm.planning.speed.work import Method, Shape, Software, StepTime, Work
from dist_metaxlm.planning.stages import Stage, model_stages, needs_blocks
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.schema import ModelConfig, PhaseConfig, Recipe

OWN_SOFTWARE = Software(reduce_passes=2, loader=1e-7)
"""What this trainer runs: fused kernels of its own, the head in chunks, kernels started one by one. DeepSpeed 0.19 sends
whole buckets to all ranks (planning/communication.py); a core packs 10 million tokens a second
(docs/results/2026-11-22-data.json)."""
DISK = 2e9
"""Bytes per second that a node writes to its disk or file system, for checkpoints that training waits for."""


def recipe_step_time(
    recipe: Recipe, phase: str, layout: Layout, cluster: Cluster, stages: Sequence[Stage] | None = None
) -> StepTime:
    """Time of a step of `phase` in `layout` (with its micro-batch and its copies of the model) on the cluster."""
    config = recipe.phase(phase)
    if stages is None:
        stages = model_stages(
            recipe.model, config.sequence_length, config.targets_per_token, layout.pipeline, needs_blocks(recipe)
        )
    method = layout_method(recipe, config, layout)
    time = step_time(model_shape(recipe.model), phase_works(config), method, cluster, stages)
    return replace(time, items={**time.items, "checkpoint": _checkpoint(recipe, config, cluster)})


def _checkpoint(recipe: Recipe, phase: PhaseConfig, cluster: Cluster) -> float:
    """Seconds a step for checkpoints: the copy to the host, or the writing where training waits for it."""
    size = checkpoint_bytes(recipe.model, phase)
    if recipe.training.save_in_background:
        seconds = size / cluster.world_size / host_link(cluster.device).speed
    else:
        seconds = size / cluster.nodes / DISK
    return seconds / recipe.training.checkpoint_interval


def model_shape(model: ModelConfig) -> Shape:
    """The shape of an encoder."""
    modern = model.family == "modern"
    return Shape(
        layers=model.layers,
        hidden=model.hidden,
        ffn=model.ffn,
        gated=modern,
        heads=model.heads,
        kv_heads=model.heads,
        head_dim=model.hidden // model.heads,
        vocab=model.vocab_size,
        rotary=modern,
        window=model.local_window if modern else None,
        global_every=model.global_every if modern else 1,
        dense_head=True,
    )


def phase_works(phase: PhaseConfig) -> list[Work]:
    """Encoder passes of a step; with `mixing: draw` each objective's passes take place in its share of the steps."""
    weights = sum(objective.weight for objective in phase.objectives)
    return [
        Work(
            tokens=one.tokens,
            length=one.document,
            targets=one.targets / one.tokens,
            layers=one.layers,
            backward=one.backward,
            causal=one.causal,
            share=objective.weight / weights if phase.mixing == "draw" else 1.0,
        )
        for objective in phase.objectives
        for one in objective.passes(phase.sequence_length, phase.mask_rate)
    ]


def layout_method(recipe: Recipe, phase: PhaseConfig, layout: Layout) -> Method:
    """The layout with the recipe's precision; a micro-batch that is not set is the whole share of a step."""
    whole = max(objective.tokens_per_step // layout.data for objective in phase.objectives) or phase.sequence_length
    precision = recipe.training.precision
    return Method(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        zero_stage=layout.zero_stage,
        sequence=layout.sequence,
        micro_batch_tokens=layout.micro_batch_tokens or whole,
        recompute=layout.recompute,
        recompute_every=layout.recompute_every,
        offload_optimizer=layout.offload_optimizer,
        precision="bf16" if precision == "auto" else precision,
        software=OWN_SOFTWARE,
    )
