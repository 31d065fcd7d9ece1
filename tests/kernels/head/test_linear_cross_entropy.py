from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dist_metaxlm.kernels.head import linear_cross_entropy as module
from dist_metaxlm.kernels.head.linear_cross_entropy import linear_cross_entropy


def inputs(rows: int, vocabulary: int, dtype: torch.dtype = torch.float64, scale: float = 1.0):
    generator = torch.Generator().manual_seed(1)
    states = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return states, weight, bias, torch.randint(0, vocabulary, (rows,), generator=generator)


@pytest.fixture(params=[1, 3, 256], ids=["chunk-1", "chunk-3", "one-chunk"])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", request.param)
    return request.param


@pytest.mark.parametrize("reduce", ["rows", "sum", "weighted"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(chunk_rows: int, reduce: str, with_bias: bool) -> None:
    states, weight, bias, targets = inputs(7, 11)
    row_weights = torch.linspace(-1, 2, 7, dtype=torch.float64)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        losses = linear_cross_entropy(tensors[0], tensors[1], tensors[2] if with_bias else None, targets, 0)
        return {"rows": losses, "sum": losses.sum() * 0.3, "weighted": (losses * row_weights).sum()}[reduce]

    # A second backward computes the gradients again, in another order of rounding: hence the tolerance between the two.
    tensors = (states, weight, bias) if with_bias else (states, weight)
    assert torch.autograd.gradcheck(loss, tensors, nondet_tol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["flat", "peaked"])
def test_equals_plain_cross_entropy_in_fp32(chunk_rows: int, scale: float) -> None:
    states, weight, bias, targets = inputs(50, 97, torch.float32, scale)
    ours = linear_cross_entropy(states, weight, bias, targets, 0)
    gradients = torch.autograd.grad(ours.sum() / 50, (states, weight, bias))
    plain = F.cross_entropy(F.linear(states, weight, bias), targets, reduction="none")
    expected = torch.autograd.grad(plain.mean(), (states, weight, bias))
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)


def test_bf16_is_as_near_to_fp64_as_its_inputs_allow(chunk_rows: int) -> None:
    states, weight, bias, targets = inputs(50, 97, torch.bfloat16)
    losses = linear_cross_entropy(states, weight, bias, targets, 0)
    assert losses.dtype == torch.float32
    gradients = torch.autograd.grad(losses.sum(), (states, weight, bias))
    exact = [tensor.detach().double().requires_grad_() for tensor in (states, weight, bias)]
    reference = F.cross_entropy(F.linear(*exact), targets, reduction="none")
    expected = torch.autograd.grad(reference.sum(), exact)
    torch.testing.assert_close(losses.double(), reference, atol=0.05, rtol=0.02)
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - other).norm() < 0.02 * other.norm()


def test_a_second_backward_gives_the_same() -> None:
    states, weight, bias, targets = inputs(7, 11)
    total = linear_cross_entropy(states, weight, bias, targets).sum() * 2
    first = torch.autograd.grad(total, (states, weight, bias), retain_graph=True)
    second = torch.autograd.grad(total, (states, weight, bias))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_is_asked_for_is_formed() -> None:
    states, weight, bias, targets = inputs(7, 11)
    losses = linear_cross_entropy(states.detach(), weight, bias.detach(), targets)
    losses.sum().backward()
    assert weight.grad is not None
    assert states.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(states, weight, bias, targets).requires_grad
    assert linear_cross_entropy(states[:0], weight, bias, targets[:0]).shape == (0,)
    empty = torch.autograd.grad(linear_cross_entropy(states[:0], weight, bias, targets[:0]).sum(), weight)
    assert not empty[0].any()


def test_logits_of_one_chunk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = torch.mm

    def counted(*args, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is not None and out.shape[1] == 11:
            sizes.append(out.shape[0])
        return plain(*args, out=out)

    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr(torch, "mm", counted)
    states, weight, bias, targets = inputs(10, 11, torch.float32)
    linear_cross_entropy(states, weight, bias, targets, chunk_bytes=4 * 11 * 4)
    assert sizes == [4, 4, 2]


def test_rows_in_cache_are_rows_of_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(10, 11)
    whole = linear_cross_entropy(*tensors)
    gradients = torch.autograd.grad(whole.sum(), tensors[:3])
    monkeypatch.setattr(module, "CACHE_BYTES", 3 * 11 * 8)
    parts = linear_cross_entropy(*tensors)
    assert torch.equal(whole, parts)
    for one, other in zip(gradients, torch.autograd.grad(parts.sum(), tensors[:3]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("row_weighted", [False, True])
def test_padding_of_a_vocabulary_shard_takes_no_part(
    chunk_rows: int, row_weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shard of one rank: its reductions over the group leave everything as it is.
    monkeypatch.setattr(module.dist, "all_reduce", lambda tensor, **_: tensor)
    states, weight, bias, targets = inputs(9, 12)
    padded_weight, padded_bias = (
        torch.cat([t.detach(), 50 * torch.ones_like(t[:3])]).requires_grad_() for t in (weight, bias)
    )
    factors = torch.linspace(0.5, 2, 9, dtype=torch.float64) if row_weighted else torch.tensor(1.0)
    shard = module.VocabularyShard(0, 12, None)
    ours = linear_cross_entropy(states, padded_weight, padded_bias, targets, 0, shard)
    expected = linear_cross_entropy(states, weight, bias, targets, 0)
    torch.testing.assert_close(ours, expected)
    gradients = torch.autograd.grad((ours * factors).sum(), (states, padded_weight, padded_bias))
    reference = torch.autograd.grad((expected * factors).sum(), (states, weight, bias))
    for gradient, other in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient[: other.shape[0]], other)
        assert not gradient[other.shape[0] :].any()


def test_two_shards_give_what_the_whole_vocabulary_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ranks of a group in turn: what one reduces is recorded, and replayed to the other."""
    states, weight, bias, targets = inputs(9, 11)
    expected = linear_cross_entropy(states, weight, bias, targets)
    reference = torch.autograd.grad(expected.sum(), (states, weight, bias))
    padded = [torch.cat([t.detach(), torch.zeros_like(t[:1])]) for t in (weight, bias)]
    sent: list[list[torch.Tensor]] = [[], []]
    current = 0

    def exchange(tensor: torch.Tensor, op: object = None, group: object = None) -> None:
        sent[current].append(tensor.clone())
        others = sent[1 - current][len(sent[current]) - 1 : len(sent[current])]
        for other in others:
            tensor.copy_(torch.maximum(tensor, other) if op == module.dist.ReduceOp.MAX else tensor + other)

    monkeypatch.setattr(module.dist, "all_reduce", exchange)
    outcomes = []
    # Reductions depend on the ones before: three rounds until both ranks have sent what they would send together.
    for turn in range(8):
        current = turn % 2
        sent[current] = []
        first, rows = (0, 6) if current == 0 else (6, 5)
        part = [t[6 * current : 6 * current + 6].clone().requires_grad_() for t in padded]
        own = states.detach().clone().requires_grad_()
        losses = linear_cross_entropy(own, *part, targets, shard=module.VocabularyShard(first, rows, None))
        outcomes.append((losses, torch.autograd.grad(losses.sum(), (own, *part))))
    for rank, (losses, (of_states, of_weight, of_bias)) in enumerate(outcomes[-2:]):
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(of_states, reference[0])
        own = slice(6 * rank, min(6 * rank + 6, 11))
        torch.testing.assert_close(of_weight[: own.stop - own.start], reference[1][own])
        torch.testing.assert_close(of_bias[: own.stop - own.start], reference[2][own])
