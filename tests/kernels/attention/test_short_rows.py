"""Short documents on short rows: the same attention as in windows, and rows in which every token has one place."""

from __future__ import annotations

import random

import pytest
import torch

from dist_metaxlm.kernels.attention import dispatch as attention
from dist_metaxlm.kernels.attention import short_rows
from dist_metaxlm.kernels.attention.dispatch import AttentionPattern, attention_pattern, packed_attention

WINDOW = 128
COST = short_rows.MOVING_COST


@pytest.fixture(autouse=True)
def moving_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_rows, "MOVING_COST", 0)


def lengths_of(windows: int, median: int, seed: int = 3) -> list[int]:
    rng, lengths = random.Random(seed), []
    for _ in range(windows):
        room = WINDOW
        while room:
            lengths.append(min(room, max(1, round(rng.lognormvariate(0, 0.7) * median))))
            room -= lengths[-1]
    return lengths


def pattern_of(
    lengths: list[int], local_window: int | None, dtype: torch.dtype = torch.float64, causal: bool = False
) -> AttentionPattern:
    counts = torch.tensor(lengths)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    cuts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
    return attention_pattern(ids, cuts, WINDOW, local_window, dtype, causal)


def inputs(tokens: int, apart: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    fused = torch.randn(tokens, 2, 3, 4, generator=generator, dtype=dtype)
    return [t.detach().clone() if apart else t for t in fused.requires_grad_(not apart).unbind(2)] + [fused]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("local_window", [None, 7])
@pytest.mark.parametrize("median", [6, 20])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_attention_in_windows(
    apart: bool, local_window: int | None, median: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [*lengths_of(3, median), WINDOW, *lengths_of(3, 5)]
    pattern = pattern_of(lengths, local_window, causal=causal)
    assert pattern.rows is not None
    *tensors, fused = inputs(sum(lengths), apart)
    if apart:
        tensors = [tensor.requires_grad_() for tensor in tensors]
    weights = torch.linspace(-1, 1, tensors[0].numel(), dtype=torch.float64).view(tensors[0].shape)
    ours = packed_attention(*tensors, pattern)
    leaves = tensors if apart else [fused]
    gradients = torch.autograd.grad((ours * weights).sum(), leaves, retain_graph=not apart)
    monkeypatch.setattr(attention, "row_table", lambda *_, **__: None)
    other_pattern = pattern_of(lengths, local_window, causal=causal)
    assert other_pattern.rows is None
    theirs = packed_attention(*tensors, other_pattern)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients, torch.autograd.grad((theirs * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_other_documents_change_no_bit() -> None:
    lengths = lengths_of(4, 8)
    pattern = pattern_of(lengths, None, torch.float32)
    assert pattern.rows is not None
    *tensors, _ = inputs(sum(lengths), True, torch.float32)
    before = packed_attention(*tensors, pattern)
    touched = torch.zeros(sum(lengths), dtype=torch.bool)
    touched[sum(lengths[:5]) : sum(lengths[:7])] = True
    after = packed_attention(*(torch.where(touched.view(-1, 1, 1), 1e4 * tensor, tensor) for tensor in tensors), pattern)
    assert torch.equal(before[~touched], after[~touched])
    assert not torch.equal(before[touched], after[touched])


def test_every_token_has_a_slot_and_every_slot_sees_something() -> None:
    lengths = [*lengths_of(5, 8), WINDOW]
    table = pattern_of(lengths, None).rows
    assert table is not None
    assert table.place.unique().numel() == sum(lengths)
    assert torch.equal(table.source[table.place], torch.arange(sum(lengths)))
    assert [size for _, size, _ in table.parts] == sorted({size for _, size, _ in table.parts})
    assert table.parts[-1][0].stop == table.source.numel() < sum(lengths) * 1.25
    for part, size, mask in table.parts:
        assert mask.shape == ((part.stop - part.start) // size, 1, size, size)
        assert (mask.diagonal(dim1=2, dim2=3) == 0).all()


def test_documents_stay_where_moving_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_rows, "MOVING_COST", COST)
    assert pattern_of(lengths_of(4, 25), None).rows is None
    assert pattern_of([WINDOW] * 3, None).rows is None
    assert pattern_of([WINDOW, 100, 28, 64, 64], None).rows is None
    assert pattern_of([WINDOW] * 3, 9).rows is None
    assert pattern_of(lengths_of(4, 8), None).rows is not None


@pytest.mark.parametrize("window", [5, 48, 100])
def test_rows_are_never_longer_than_a_window(window: int) -> None:
    rows, places = short_rows._packed([window, 1, 3, 2, window // 2, window - 1], window)
    assert max(rows) == window
    assert all(offset < rows[row] for row, offset in places)
