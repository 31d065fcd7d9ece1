from __future__ import annotations

import math

import pytest
import torch
from dist_metaxlm.kernels.attention import attention_pattern, packed_attention

WINDOW = 24
LENGTHS = [24, 1, 15, 8, 3, 3, 18, 24]


def pattern_of(lengths: list[int], local_window: int | None, dtype: torch.dtype):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return attention_pattern(ids, cu_seqlens, WINDOW, local_window, dtype)


def naive(queries, keys, values, lengths: list[int], local_window: int | None):
    """One document after the other, softmax written out."""
    outputs, first = [], 0
    for length in lengths:
        span = slice(first, first + length)
        scores = torch.einsum("qhd,khd->hqk", queries[span], keys[span]) / math.sqrt(queries.shape[-1])
        if local_window is not None:
            offsets = torch.arange(length)
            scores[:, (offsets[:, None] - offsets[None]).abs() > local_window // 2] = float("-inf")
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values[span]))
        first += length
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", [LENGTHS, [WINDOW] * 3], ids=["packed", "one-per-window"])
@pytest.mark.parametrize("local_window", [None, 1, 8, 9, 1000])
def test_equals_a_loop_over_documents_forward_and_backward(lengths: list[int], local_window: int | None) -> None:
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), 3, 3, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(sum(lengths), 3, 8, dtype=torch.float64)
    ours = packed_attention(*fused.unbind(2), pattern_of(lengths, local_window, torch.float64))
    (gradient,) = torch.autograd.grad((ours * weights).sum(), fused)
    theirs = naive(*fused.unbind(2), lengths, local_window)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), fused)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("local_window", [None, 6])
def test_other_documents_change_no_bit(local_window: int | None) -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    fused = torch.randn(total, 2, 3, 16)
    pattern = pattern_of(LENGTHS, local_window, torch.float32)
    before = packed_attention(*fused.unbind(2), pattern)
    touched = slice(25, 40)
    fused[touched] = torch.randn(15, 2, 3, 16) * 1e4
    after = packed_attention(*fused.unbind(2), pattern)
    rest = torch.ones(total, dtype=torch.bool)
    rest[touched] = False
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[touched], after[touched])


def test_every_token_attends_to_itself_and_mask_is_left_out_where_it_says_nothing() -> None:
    mask = pattern_of(LENGTHS, 1, torch.float32).mask
    assert mask is not None
    assert (mask.squeeze(1).diagonal(dim1=1, dim2=2) == 0).all()
    assert pattern_of([WINDOW, WINDOW], None, torch.float32).mask is None
    assert pattern_of([WINDOW, WINDOW], 2 * WINDOW, torch.float32).mask is None
    assert pattern_of([WINDOW, WINDOW], WINDOW, torch.float32).mask is not None
