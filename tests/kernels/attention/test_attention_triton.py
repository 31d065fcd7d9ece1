"""The Triton kernels in Triton's interpreter, against attention written out in fp64.

bf16 arithmetic of the interpreter is wrong (it works on the bit patterns), so logic is tested in fp32, and bf16 only with
everything upcast as it is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels.attention import dispatch as attention
from dist_metaxlm.kernels.attention.dispatch import AttentionPattern, attention_pattern, packed_attention
from dist_metaxlm.kernels.attention.parts import parts_of
from dist_metaxlm.kernels.attention.tiles import tile_table
from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, token_keys
from dist_metaxlm.kernels.registry import choices

pytest.importorskip("triton")
from dist_metaxlm.kernels.attention import operator

CASES = {
    "one-token documents": ([1] * 9, None),
    "longer than a tile": ([40, 17], None),
    "exact tiles": ([16, 32], None),
    "tail of one": ([33, 1], None),
    "many short documents": ([3, 1, 7, 5, 2, 9, 4, 1, 6], None),
    "short beside long": ([2, 37, 3, 3], None),
    "window of one token": ([5, 20], 1),
    "window edges": ([37, 9], 8),
    "window wider than a tile": ([70], 40),
    "window wider than documents": ([20, 12], 1000),
}
CAUSAL = ["one-token documents", "longer than a tile", "tail of one", "short beside long", *list(CASES)[-4:]]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("DIST_METAXLM_KERNELS", "triton")


def pattern_of(
    lengths: list[int], local_window: int | None, dtype: torch.dtype, rows: int = 16, causal: bool = False
) -> AttentionPattern:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    cuts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    pattern = attention_pattern(ids, cuts, sum(lengths), local_window, dtype, causal)
    for name, side in (("tiles", "earlier"), ("key_tiles", "later")) if causal else (("tiles", "both"),):
        pattern.__dict__[name] = tile_table(cuts, sum(lengths), rows, local_window, side)
    return pattern


def reference(fused: torch.Tensor, pattern: AttentionPattern, dropout: AttentionDropout | None = None) -> torch.Tensor:
    """Masked softmax written out, in fp64."""
    queries, keys, values = fused.double().unbind(2)
    places, ids = torch.arange(fused.shape[0]), pattern.document_ids
    allowed = ids[:, None] == ids[None]
    if pattern.local_window is not None:
        allowed &= (places[:, None] - places[None]).abs() <= pattern.local_window // 2
    if pattern.causal:
        allowed &= places[:, None] >= places[None]
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / queries.shape[2] ** 0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    if dropout is not None:
        stays = dropout.stays(dropout.query_words(weights.shape[0]), dropout.token_keys[1])
        weights = weights * stays / (1 - dropout.rate)
    return torch.einsum("hqk,khd->qhd", weights, values)


def inputs(lengths: list[int], heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), heads, 3, width, dtype=dtype, requires_grad=True)
    return fused, torch.randn(sum(lengths), heads, width, dtype=dtype)


def check(
    lengths: list[int],
    local_window: int | None,
    heads: int,
    width: int,
    dtype: torch.dtype,
    bound: float,
    rows: int = 16,
    rate: float = 0.0,
    causal: bool = False,
) -> None:
    dropout = AttentionDropout(token_keys(torch.arange(sum(lengths)) + 7), -12345, 3, rate) if rate else None
    pattern = pattern_of(lengths, local_window, dtype, rows, causal)
    fused, weights = inputs(lengths, heads, width, dtype)
    ours = packed_attention(*fused.unbind(2), pattern, dropout)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), fused)
    theirs = reference(fused, pattern, dropout)
    (expected,) = torch.autograd.grad((theirs * weights.double()).sum(), fused)
    for name, found, wanted in (("output", ours, theirs), ("gradient", gradient, expected)):
        error = (found.double() - wanted.double()).norm() / wanted.double().norm()
        assert error < bound, f"{name}: {error:.1e}"
    assert choices()["attention"] == "triton"


@pytest.mark.parametrize("backward", ["two_pass", "atomic"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward_equal_the_reference(case: str, backward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, backward)
    check(*CASES[case], heads=2, width=32, dtype=torch.float32, bound=2e-6)


@pytest.mark.parametrize("backward", ["two_pass", "atomic"])
@pytest.mark.parametrize("case", ["one-token documents", "longer than a tile", "short beside long", "window edges"])
def test_dropped_weights_are_those_of_the_reference(case: str, backward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, backward)
    check(*CASES[case], heads=2, width=32, dtype=torch.float32, bound=2e-6, rate=0.4)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("backward", ["two_pass", "atomic"])
@pytest.mark.parametrize("case", CAUSAL)
def test_causal_attention(case: str, backward: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, backward)
    check(*CASES[case], heads=2, width=32, dtype=torch.float32, bound=2e-6, rate=rate, causal=True)


@pytest.mark.parametrize("local_window", [None, 12])
def test_later_tokens_change_no_bit(local_window: int | None) -> None:
    lengths = [3, 40, 5]
    pattern = pattern_of(lengths, local_window, torch.float32, causal=True)
    fused, _ = inputs(lengths, 1, 16, torch.float32)
    with torch.no_grad():
        before = packed_attention(*fused.unbind(2), pattern)
        fused[20:43] = torch.randn(23, 1, 3, 16) * 1e4
        after = packed_attention(*fused.unbind(2), pattern)
    rest = torch.ones(sum(lengths), dtype=torch.bool)
    rest[20:43] = False
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[20:43], after[20:43])


@pytest.mark.parametrize("width", [16, 24, 64, 96, 128])
def test_widths_of_heads(width: int) -> None:
    check([20, 3, 9], None, heads=1, width=width, dtype=torch.float32, bound=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_smaller_than_tiles(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = operator.launch
    monkeypatch.setattr(operator, "launch", lambda *arguments: replace(usual(*arguments), step=16))
    check([75, 2, 20], 24, heads=1, width=32, dtype=torch.float32, bound=2e-6, rows=32, causal=causal)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype: torch.dtype, bound: float) -> None:
    check([20, 3, 9], None, heads=1, width=32, dtype=dtype, bound=bound)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backward", ["two_pass", "atomic"])
def test_gradcheck_in_fp64(backward: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, backward)
    pattern = pattern_of([18, 1, 4], 12, torch.float64, causal=causal)
    fused, _ = inputs([18, 1, 4], 1, 16, torch.float64)
    for dropout in (None, AttentionDropout(token_keys(torch.arange(23)), 99, 0, 0.3)):
        assert torch.autograd.gradcheck(
            lambda x, mask=dropout: packed_attention(*x.unbind(2), pattern, mask), (fused,), fast_mode=True
        )


def test_keys_far_below_and_above_do_not_overflow() -> None:
    pattern = pattern_of([20, 4], None, torch.float32)
    fused, weights = inputs([20, 4], 1, 16, torch.float32)
    fused = (fused.detach() * 40).requires_grad_()
    for backward in (False, True):
        ours = operator.attention_forward(*fused.unbind(2), *operator.table_arguments(pattern), backward, None, 0, 0, 0.0)[0]
        (gradient,) = torch.autograd.grad((ours * weights).sum(), fused)
        assert gradient.isfinite().all()
        torch.testing.assert_close(ours.double(), reference(fused, pattern), rtol=1e-4, atol=1e-3)


def test_other_documents_change_no_bit() -> None:
    lengths = [3, 5, 30, 4]
    pattern = pattern_of(lengths, None, torch.float32)
    fused, _ = inputs(lengths, 1, 16, torch.float32)
    with torch.no_grad():
        before = packed_attention(*fused.unbind(2), pattern)
        fused[3:8] = torch.randn(5, 1, 3, 16) * 1e4
        after = packed_attention(*fused.unbind(2), pattern)
    rest = torch.ones(sum(lengths), dtype=torch.bool)
    rest[3:8] = False
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[3:8], after[3:8])


@pytest.mark.parametrize("backward", ["two_pass", "atomic"])
def test_gradients_of_the_parts_are_that_of_the_product_without_a_copy(
    backward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, backward)
    pattern = pattern_of([9, 3, 20], None, torch.float32)
    fused, weights = inputs([9, 3, 20], 2, 16, torch.float32)
    expected = torch.autograd.grad((packed_attention(*fused.unbind(2), pattern) * weights).sum(), fused)[0]
    with monkeypatch.context() as patch:
        patch.delattr(torch, "stack")
        found = torch.autograd.grad((packed_attention(*parts_of(fused), pattern) * weights).sum(), fused)[0]
    assert torch.equal(found, expected)
    # Gradients that do not lie side by side, or not of one tensor, are put together as ever.
    for change in (lambda part: part * 2, lambda part: part.flip(0)):
        queries, keys, values = parts_of(fused)
        mixed = packed_attention(change(queries), keys, values, pattern)
        found = torch.autograd.grad((mixed * weights).sum(), fused)[0]
        queries, keys, values = fused.unbind(2)
        mixed = packed_attention(change(queries), keys, values, pattern)
        assert torch.equal(found, torch.autograd.grad((mixed * weights).sum(), fused)[0])


def test_it_is_an_operator_like_any_other() -> None:
    fused, _ = inputs([9, 3], 1, 16, torch.float32)
    arguments = [part.detach().requires_grad_() for part in fused.unbind(2)]
    keys = token_keys(torch.arange(12))
    for causal, dropped in ((False, (None, 0, 0, 0.0)), (False, (keys, -5, 1, 0.3)), (True, (None, 0, 0, 0.0))):
        tables = operator.table_arguments(pattern_of([9, 3], None, torch.float32, causal=causal))
        outcome = torch.library.opcheck(operator.attention_forward, (*arguments, *tables, False, *dropped))
        assert set(outcome.values()) == {"SUCCESS"}


class _Context:
    """What the operator's autograd functions need of a context."""

    saved_tensors: tuple[torch.Tensor | None, ...]

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *_: torch.Tensor) -> None:
        """Nothing is differentiated automatically here."""


@pytest.mark.parametrize("causal", [False, True])
def test_a_forward_without_dropout_has_the_same_backward(causal: bool) -> None:
    """The CUDA C++ forward has the first nine arguments only."""
    pattern = pattern_of([9, 3], None, torch.float32, causal=causal)
    fused, weights = inputs([9, 3], 1, 16, torch.float32)
    expected = torch.autograd.grad((packed_attention(*fused.unbind(2), pattern) * weights).sum(), fused)[0]
    arguments = (*fused.detach().unbind(2), *operator.table_arguments(pattern), False)
    context = _Context()
    operator.save_for_backward(context, arguments, operator.attention_forward(*arguments, None, 0, 0, 0.0))
    gradients = operator.backward(context, weights, None)
    assert len(gradients) == len(arguments)
    assert torch.equal(torch.stack(gradients[:3], 2), expected)


def test_recomputed_activations_give_the_same_gradients() -> None:
    pattern = pattern_of([9, 3], None, torch.float32)
    fused, weights = inputs([9, 3], 1, 16, torch.float32)
    plain = torch.autograd.grad((packed_attention(*fused.unbind(2), pattern) * weights).sum(), fused)[0]
    again = torch.utils.checkpoint.checkpoint(lambda x: packed_attention(*x.unbind(2), pattern), fused, use_reentrant=False)
    assert torch.equal(plain, torch.autograd.grad((again * weights).sum(), fused)[0])


def test_autocast_gives_one_dtype() -> None:
    pattern = pattern_of([9, 3], None, torch.float32)
    fused, _ = inputs([9, 3], 1, 16, torch.float32)
    queries, keys, values = fused.unbind(2)
    with torch.autocast("cpu", torch.float16):
        assert packed_attention(queries, keys, values.half(), pattern).dtype == torch.float16
        # Tiles are sized for what attention computes in, not for the parameters.
        assert attention_pattern(pattern.document_ids, pattern.cu_seqlens, 12, None, torch.float32).tiles.rows == 128


def test_recipe_and_variable_choose_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(attention.BACKWARD_VARIABLE, raising=False)
    monkeypatch.setattr(attention, "_recipe_backward", "two_pass")
    assert not attention.uses_atomics()
    attention.choose_backward("atomic")
    assert attention.uses_atomics()
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, "two_pass")
    assert not attention.uses_atomics()
    monkeypatch.setenv(attention.BACKWARD_VARIABLE, "fast")
    with pytest.raises(UserError, match="fast is no variant"):
        attention.uses_atomics()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_compile_makes_one_graph_of_it(backend: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_METAXLM_KERNELS", backend)
    pattern = pattern_of([9, 3], None, torch.float32, causal=causal)
    fused, weights = inputs([9, 3], 1, 16, torch.float32)
    plain = torch.autograd.grad((packed_attention(*fused.unbind(2), pattern) * weights).sum(), fused)[0]
    compiled = torch.compile(lambda x: packed_attention(*x.unbind(2), pattern), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad((compiled(fused) * weights).sum(), fused)[0], plain)
