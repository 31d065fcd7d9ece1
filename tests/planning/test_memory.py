"""Bytes per rank: the ZeRO paper's arithmetic, and what parallelism must and must not change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dist_metaxlm.planning.memory import PINNED_ROUNDING, estimate_host_memory, estimate_memory
from dist_metaxlm.planning.parameters import count_parameters, stage_parameters
from dist_metaxlm.planning.stages import Stage, model_stages
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.schema import ModelConfig

MODEL = ModelConfig(layers=12, hidden=768, heads=12, ffn=3072, vocab_size=250002)
ALONE = Layout(zero_stage=0)
TOTAL = count_parameters(MODEL).total


def estimate(layout, precision="bf16", tokens=8192):
    return estimate_memory(MODEL, layout, precision, tokens, 0.15)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2, 4, 12), (1, 2, 4, 12 / 64), (2, 2, 4 / 64, 12 / 64), (3, 2 / 64, 4 / 64, 12 / 64)],
)
def test_zero_stages_divide_what_the_paper_says(stage, weights, gradients, optimizer):
    memory = estimate(replace(ALONE, data=64, zero_stage=stage))
    assert memory.weights == pytest.approx(weights * TOTAL, abs=1)
    assert memory.gradients == pytest.approx(gradients * TOTAL, abs=1)
    assert memory.optimizer == pytest.approx(optimizer * TOTAL, abs=1)


def test_fp32_needs_no_second_copy():
    memory = estimate(ALONE, "fp32")
    assert memory.weights + memory.gradients + memory.optimizer == 16 * TOTAL
    assert memory.buffers == 0


@pytest.mark.parametrize(("stage", "bytes_each"), [(0, 8), (1, 12 / 4), (2, 12 / 4), (3, 8 / 4)])
def test_in_fp32_zero_1_and_2_keep_the_weights_twice(stage, bytes_each):
    """DeepSpeed 0.19.8 clones its share of them, which ZeRO-3 takes as it is."""
    memory = estimate(replace(ALONE, data=1 if stage == 0 else 4, zero_stage=stage), "fp32")
    assert memory.optimizer == pytest.approx(bytes_each * TOTAL, abs=1)


def test_a_deeper_zero_stage_never_needs_more_states():
    layouts = [replace(ALONE, data=8, zero_stage=stage) for stage in (0, 1, 2, 3)]
    states = [memory.weights + memory.gradients + memory.optimizer for memory in map(estimate, layouts)]
    assert states == sorted(states, reverse=True)


def test_stages_have_what_is_theirs_and_the_fullest_counts():
    stages = model_stages(MODEL, 512, 0.15, 4)
    layout = replace(ALONE, pipeline=4, data=2, zero_stage=1)
    found = estimate_memory(MODEL, layout, "bf16", 8192, 0.15, stages=stages)
    # The first stage has the embedding and most micro-batches at once; the head is on another.
    counts, share = count_parameters(MODEL), len(stages[0].blocks) / MODEL.layers
    first = counts.word_embedding + counts.positions + counts.embedding_norm
    first += round((counts.blocks_split + counts.blocks_whole) * share)
    assert found.weights == 2 * first
    assert found.optimizer == 6 * first
    assert found.head == 0
    assert found.activations == 4 * len(stages[0].blocks) * 8192 * 2 * (8 * 768 + 2 * 3072)
    # With a stage of its own the head's copy of the embedding has weights and gradients, and no optimiser states.
    ends = [Stage(range(12), last=False), Stage(range(12, 12), first=False)]
    alone = estimate_memory(MODEL, replace(layout, pipeline=2), "bf16", 8192, 0.15, stages=[ends[0], ends[1]])
    assert alone.head == 0
    tail = counts.final_norm + counts.head + counts.output_bias
    last = estimate_memory(MODEL, replace(ALONE, data=2, zero_stage=1), "bf16", 8192, 0.15, stages=[ends[1]])
    assert (last.weights, last.gradients, last.optimizer, last.activations) == (
        2 * (tail + counts.word_embedding),
        4 * (tail + counts.word_embedding),
        6 * tail,
        0,
    )


def test_a_save_beside_training_needs_host_memory_and_so_does_offload():
    layout, whole = replace(ALONE, data=8, zero_stage=3), [Stage(range(MODEL.layers))]

    def host(background, **offload):
        return estimate_host_memory(MODEL, replace(layout, **offload), "bf16", background, whole)

    saving = -(-12 * TOTAL // 8)
    start = 6 * MODEL.vocab_size * MODEL.hidden  # the token embedding in fp32, and rounded
    assert host(False).as_dict() == {"start": start, "saving": saving, "offload": 0, "total": max(start, saving)}
    assert host(True).saving == PINNED_ROUNDING * host(False).saving
    assert host(True, offload_optimizer=True).offload == 2 * TOTAL


def test_the_host_builds_one_parameter_at_a_time_but_stages_and_whole_models_at_once():
    embedding, ends = MODEL.vocab_size * MODEL.hidden, [Stage(range(MODEL.layers), last=False), Stage(range(0), first=False)]

    def start(layout, precision="bf16", stages=None, **more):
        stages = stages or [Stage(range(MODEL.layers))]
        return estimate_host_memory(MODEL, layout, precision, False, stages, **more).start

    assert start(replace(ALONE, data=64, zero_stage=3)) == start(ALONE) == 6 * embedding
    assert start(ALONE, "fp32") == 4 * embedding
    assert start(replace(ALONE, tensor=2)) == 4 * embedding + 6 * embedding // 2
    assert start(ALONE, whole=True) == 4 * (embedding + TOTAL)
    assert start(replace(ALONE, pipeline=2), stages=ends) == 4 * (embedding + stage_parameters(MODEL, ends[0]).total)


def test_activations_follow_tokens_and_are_divided_by_parallel_ranks():
    one, four = estimate(ALONE, tokens=8192).activations, estimate(ALONE, tokens=32768).activations
    assert four == 4 * one
    assert one == 12 * 8192 * 2 * (8 * 768 + 2 * 3072)
    tensor = estimate(replace(ALONE, tensor=4)).activations
    both = estimate(replace(ALONE, tensor=4, sequence=True)).activations
    assert both == one // 4 < tensor < one


def test_parts_add_up():
    memory = estimate(replace(ALONE, data=8, zero_stage=3))
    assert sum(value for part, value in memory.as_dict().items() if part != "total") == memory.total


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_takes_the_optimiser_off_the_device(stage):
    layout = replace(ALONE, data=8, zero_stage=stage)
    here, there = (
        estimate_memory(MODEL, replace(layout, offload_optimizer=offload), "bf16", 8192, 0.15) for offload in (False, True)
    )
    assert there.optimizer == 0 < here.optimizer
    assert there.gradients == (0 if stage == 3 else here.gradients)
    assert (there.weights, there.activations, there.buffers) == (here.weights, here.activations, here.buffers)


def test_fp16_needs_what_bf16_needs():
    assert estimate(ALONE, "fp16") == estimate(ALONE, "bf16")


def test_recomputing_less_often_keeps_more():
    layouts = [replace(ALONE, recompute="blocks", recompute_every=k) for k in (1, 2, 3, 6, 12)]
    sizes = [estimate_memory(MODEL, layout, "bf16", 8192, 0.15).activations for layout in layouts]
    assert sizes == sorted(sizes)
    assert sizes[-1] < estimate(ALONE).activations * 13 / 12
