"""Bytes per rank: the ZeRO paper's arithmetic, and what parallelism must and must not change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dist_metaxlm.planning.memory import Layout, estimate_memory, stage_parameters
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.schema import ModelConfig

MODEL = ModelConfig(layers=12, hidden=768, heads=12, ffn=3072, vocab_size=250002)
ALONE = Layout(tensor=1, pipeline=1, data=1, sequence=False, zero_stage=0)
TOTAL = count_parameters(MODEL).total


def estimate(layout, precision="bf16", tokens=8192):
    return estimate_memory(MODEL, layout, precision, tokens, 0.15)


@pytest.mark.parametrize(("stage", "weights", "gradients", "optimizer"), [
    (0, 2, 4, 12), (1, 2, 4, 12 / 64), (2, 2, 4 / 64, 12 / 64), (3, 2 / 64, 4 / 64, 12 / 64)])
def test_zero_stages_divide_what_the_paper_says(stage, weights, gradients, optimizer):
    memory = estimate(replace(ALONE, data=64, zero_stage=stage))
    assert memory.weights == pytest.approx(weights * TOTAL, abs=1)
    assert memory.gradients == pytest.approx(gradients * TOTAL, abs=1)
    assert memory.optimizer == pytest.approx(optimizer * TOTAL, abs=1)


def test_fp32_needs_no_second_copy():
    memory = estimate(ALONE, "fp32")
    assert memory.weights + memory.gradients + memory.optimizer == 16 * TOTAL
    assert memory.buffers == 0


def test_a_deeper_zero_stage_never_needs_more_states():
    layouts = [replace(ALONE, data=8, zero_stage=stage) for stage in (0, 1, 2, 3)]
    states = [memory.weights + memory.gradients + memory.optimizer for memory in map(estimate, layouts)]
    assert states == sorted(states, reverse=True)


def test_tensor_ranks_share_all_but_norms_and_head():
    counts = count_parameters(MODEL)
    whole = counts.positions + counts.embedding_norm + counts.blocks_whole + counts.head
    share = stage_parameters(MODEL, replace(ALONE, tensor=4))
    assert share == pytest.approx(whole + (TOTAL - whole) / 4, abs=4)


def test_both_ends_of_a_pipeline_hold_the_embedding():
    counts = count_parameters(MODEL)
    two = stage_parameters(MODEL, replace(ALONE, pipeline=2))
    assert two > counts.word_embedding + (counts.blocks_split + counts.blocks_whole) / 2
    assert two < TOTAL


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
