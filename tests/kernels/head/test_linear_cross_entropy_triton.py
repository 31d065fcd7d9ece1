"""The Triton head in the interpreter, against plain cross-entropy in fp64. bf16 is wrong in the interpreter: fp32, fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.head import linear_cross_entropy as reference

pytest.importorskip("triton")
from dist_metaxlm.kernels.head import linear_cross_entropy_triton as module

HIDDEN = 6
ROWS = [("exponentials", {"BLOCK": 16, "num_warps": 1}), ("column_sums", {"ROWS": 4, "BLOCK": 32, "num_warps": 1})]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(registry.VARIABLE, "triton")
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 4)
    for name, configuration in ROWS:
        monkeypatch.setitem(module.CONFIGURATIONS, name, [configuration])


def inputs(rows: int, vocabulary: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, HIDDEN), (vocabulary, HIDDEN), (vocabulary,))
    ]
    tensors[0] *= scale
    return [
        *(tensor.to(dtype).requires_grad_() for tensor in tensors),
        torch.randint(0, vocabulary, (rows,), generator=generator),
    ]


def plain(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(
        F.linear(states.double(), weight.double(), None if bias is None else bias.double()), targets, reduction="none"
    )


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(with_bias: bool) -> None:
    states, weight, bias, targets = inputs(6, 37)
    row_weights = torch.linspace(-1, 2, 6, dtype=torch.float64)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        losses = reference.linear_cross_entropy(*tensors[:2], tensors[2] if with_bias else None, targets, 0)
        return (losses * row_weights).sum()

    tensors = (states, weight, bias) if with_bias else (states, weight)
    assert torch.autograd.gradcheck(loss, tensors, fast_mode=True, nondet_tol=1e-12)


# 37 is no multiple of the tile, 48 is one, 5 is less than one; 60 makes logits of several hundred nats.
@pytest.mark.parametrize(("vocabulary", "scale"), [(37, 1.0), (48, 1.0), (5, 1.0), (100, 60.0)])
def test_equals_plain_cross_entropy(vocabulary: int, scale: float) -> None:
    states, weight, bias, targets = inputs(9, vocabulary, torch.float32, scale)
    ours = reference.linear_cross_entropy(states, weight, bias, targets, 0)
    gradients = torch.autograd.grad(ours.sum() / 9, (states, weight, bias))
    expected = plain(states, weight, bias, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=1e-5)
    for gradient, other in zip(gradients, torch.autograd.grad(expected.mean(), (states, weight, bias)), strict=True):
        torch.testing.assert_close(gradient, other, atol=2e-5, rtol=1e-4)


def test_rising_logits_move_the_offset_of_what_is_written() -> None:
    # Each tile is 40 nats above the one before: every offset but the last is given up again.
    states = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    weight = (torch.arange(64, dtype=torch.float64) // 16 * 40 + torch.linspace(0, 1, 64)).unsqueeze(1).requires_grad_()
    targets = torch.tensor([63, 2])
    losses = reference.linear_cross_entropy(states, weight, None, targets)
    expected = plain(states, weight, None, targets)
    torch.testing.assert_close(losses, expected)
    for gradient, other in zip(
        torch.autograd.grad(losses.sum(), (states, weight)),
        torch.autograd.grad(expected.sum(), (states, weight)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, other)


def test_no_rows_and_no_gradients() -> None:
    states, weight, bias, targets = inputs(3, 37)
    empty = reference.linear_cross_entropy(states[:0], weight, bias, targets[:0])
    assert empty.shape == (0,)
    assert not torch.autograd.grad(empty.sum(), weight)[0].any()
    with torch.no_grad():
        assert not reference.linear_cross_entropy(states, weight, bias, targets).requires_grad
    reference.linear_cross_entropy(states, weight.detach(), bias.detach(), targets).sum().backward()
    assert states.grad is not None


def test_logits_of_one_chunk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, product = [], torch.mm

    def counted(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is not None and out.shape[1] == 37:
            sizes.append(out.shape[0])
        return product(first, second) if out is None else product(first, second, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    states, weight, bias, targets = inputs(10, 37)
    reference.linear_cross_entropy(states, weight, bias, targets, chunk_bytes=4 * 37 * 8)
    assert sizes == [4, 4, 2]


class Group:
    """Two ranks in turn: what one sends is recorded, and replayed to the other when it comes to the same collective."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rank, self.sent, self.count = 0, [[], []], 0
        monkeypatch.setattr(module.dist, "get_rank", lambda group: self.rank)
        monkeypatch.setattr(module.dist, "get_world_size", lambda group: 2)
        monkeypatch.setattr(module.dist, "all_gather_into_tensor", self.gather)
        monkeypatch.setattr(module.dist, "all_reduce", self.reduce)

    def start(self, rank: int) -> None:
        self.rank, self.sent[rank] = rank, []

    def other(self, tensor: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.sent[self.rank].append(tensor.clone())
        others = self.sent[1 - self.rank]
        index = len(self.sent[self.rank]) - 1
        return others[index] if index < len(others) else tensor

    def gather(self, out: torch.Tensor, tensor: torch.Tensor, **_: object) -> None:
        parts = out.view(2, *tensor.shape)
        parts[1 - self.rank], parts[self.rank] = self.other(tensor), tensor

    def reduce(self, tensor: torch.Tensor, **_: object) -> None:
        tensor += self.other(tensor)


@pytest.mark.parametrize("where", ["both", "first", "second"])
def test_two_shards_give_what_the_whole_vocabulary_gives(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """37 ids as 19 and 18 with a row of padding; targets in both shards, or all of them in one."""
    states, weight, bias, targets = inputs(6, 37)
    targets = {"both": targets, "first": targets % 19, "second": 19 + targets % 18}[where]
    expected = plain(states, weight, bias, targets)
    whole = torch.autograd.grad(expected.sum(), (states, weight, bias))
    padded = [torch.cat([t.detach(), 50 * torch.ones_like(t[:1])]) for t in (weight, bias)]
    group, outcomes = Group(monkeypatch), {}
    for turn in range(4):
        rank = turn % 2
        group.start(rank)
        own = [
            states.detach().clone().requires_grad_(),
            *(t[19 * rank : 19 * rank + 19].clone().requires_grad_() for t in padded),
        ]
        losses = reference.linear_cross_entropy(*own, targets, 0, reference.VocabularyShard(19 * rank, 19 - rank, None))
        outcomes[rank] = losses, torch.autograd.grad(losses.sum(), own)
    assert group.count == 4 * 3  # a gather for each of two chunks, and one sum of the states' gradient
    for rank, (losses, (of_states, of_weight, of_bias)) in outcomes.items():
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(of_states, whole[0])
        count = 19 - rank
        torch.testing.assert_close(of_weight[:count], whole[1][19 * rank : 19 * rank + count])
        torch.testing.assert_close(of_bias[:count], whole[2][19 * rank : 19 * rank + count])
        assert not of_weight[count:].any()
        assert not of_bias[count:].any()


def test_over_real_collectives(run_ranks: Callable[..., str]) -> None:
    assert run_ranks(2, Path(__file__).with_name("worker_head.py")).strip() == "same triton"


def test_the_interpreter_refuses_bf16() -> None:
    states, weight, *_ = inputs(3, 37, torch.bfloat16)
    assert not reference.accepts(states, weight)
    assert reference.accepts(states.float(), weight.float())
