from __future__ import annotations

import math

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels.attention.dispatch import attention_pattern, packed_attention
from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, token_keys

WINDOW = 24
LENGTHS = [24, 1, 15, 8, 3, 3, 18, 24]


def pattern_of(lengths: list[int], local_window: int | None, dtype: torch.dtype, causal: bool = False):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return attention_pattern(ids, cu_seqlens, WINDOW, local_window, dtype, causal)


def naive(queries, keys, values, lengths: list[int], local_window: int | None, causal: bool = False):
    """One document after the other, softmax written out."""
    outputs, first = [], 0
    for length in lengths:
        span = slice(first, first + length)
        scores = torch.einsum("qhd,khd->hqk", queries[span], keys[span]) / math.sqrt(queries.shape[-1])
        offsets = torch.arange(length)
        before = offsets[:, None] - offsets[None]
        if local_window is not None:
            scores[:, before.abs() > local_window // 2] = float("-inf")
        if causal:
            scores[:, before < 0] = float("-inf")
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values[span]))
        first += length
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", [LENGTHS, [WINDOW] * 3], ids=["packed", "one-per-window"])
@pytest.mark.parametrize("local_window", [None, 1, 8, 9, 1000])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_a_loop_over_documents_forward_and_backward(
    lengths: list[int], local_window: int | None, causal: bool
) -> None:
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), 3, 3, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(sum(lengths), 3, 8, dtype=torch.float64)
    ours = packed_attention(*fused.unbind(2), pattern_of(lengths, local_window, torch.float64, causal))
    (gradient,) = torch.autograd.grad((ours * weights).sum(), fused)
    theirs = naive(*fused.unbind(2), lengths, local_window, causal)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), fused)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_dropout_of_weights() -> None:
    """Against the masks written out: rate, independence of heads, and that what stays is scaled."""
    tokens, heads, rate = 64, 8, 0.25
    ends = torch.tensor([0, tokens], dtype=torch.int32)
    pattern = attention_pattern(torch.zeros(tokens, dtype=torch.int64), ends, tokens, None, torch.float64)
    dropout = AttentionDropout(token_keys(torch.arange(tokens) + 10**6), 17, 4, rate)
    alike, values = torch.zeros(tokens, heads, tokens, dtype=torch.float64), torch.eye(tokens, dtype=torch.float64)
    values = values.unsqueeze(1).expand(tokens, heads, tokens)
    # Equal scores, and values that show each weight: [query, head, key].
    weights = packed_attention(alike, alike, values, pattern, dropout)
    stays = weights > 0
    torch.testing.assert_close(weights[stays], torch.full((int(stays.sum()),), 1 / tokens / (1 - rate), dtype=torch.float64))
    assert abs(stays.double().mean() - (1 - rate)) < 0.01
    assert (stays.double().mean((0, 2)) - (1 - rate)).abs().max() < 0.03
    flat = stays.transpose(0, 1).flatten(1).double()
    assert (torch.corrcoef(flat) - torch.eye(heads, dtype=torch.float64)).abs().max() < 0.07
    assert not torch.equal(stays[:, 0], stays[:, 0].T)
    # Heads are counted over the whole model, whichever rank holds them.
    later = AttentionDropout(dropout.token_keys, 17, 6, rate)
    assert torch.equal(packed_attention(alike[:, 2:], alike[:, 2:], values[:, 2:], pattern, later), weights[:, 2:])


@pytest.mark.parametrize("lengths", [LENGTHS, [WINDOW] * 3], ids=["packed", "one-per-window"])
def test_dropout_of_causal_weights(lengths: list[int]) -> None:
    """Nothing is dropped at rate zero, so the written-out softmax must equal the other path."""
    fused = torch.randn(sum(lengths), 2, 3, 8, dtype=torch.float64)
    pattern = pattern_of(lengths, None, torch.float64, causal=True)
    dropout = AttentionDropout(token_keys(torch.arange(sum(lengths))), 1, 0, 0.0)
    whole = packed_attention(*fused.unbind(2), pattern, dropout)
    torch.testing.assert_close(whole, packed_attention(*fused.unbind(2), pattern))


@pytest.mark.parametrize("lengths", [LENGTHS, [WINDOW] * 8], ids=["packed", "one-per-window"])
@pytest.mark.parametrize("local_window", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_tokens_change_no_bit(lengths: list[int], local_window: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), 2, 3, 16, dtype=dtype)
    pattern = pattern_of(lengths, local_window, dtype, causal=True)
    before = packed_attention(*fused.unbind(2), pattern)
    first = sum(lengths[:2])
    fused[first + 5 : first + lengths[2]] *= 1e4
    after = packed_attention(*fused.unbind(2), pattern)
    rest = torch.ones(sum(lengths), dtype=torch.bool)
    rest[first + 5 : first + lengths[2]] = False
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[~rest], after[~rest])


def test_cuda_with_dropout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_METAXLM_KERNELS", "cuda")
    states = torch.zeros(4, 1, 32)
    dropout = AttentionDropout(token_keys(torch.arange(4)), 1, 0, 0.1)
    with pytest.raises(UserError, match=r"attention_dropout is 0\.1; set it to 0"):
        packed_attention(states, states, states, pattern_of([4], None, torch.float32), dropout)


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
