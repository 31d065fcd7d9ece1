"""Cases of `metaxlm benchmark kernels`: every operator of the registry with the shapes used by the models."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from dist_metaxlm.benchmarking.kernels.peers import Call, head_peers, liger_peers
from dist_metaxlm.kernels.head.linear_cross_entropy import linear_cross_entropy
from dist_metaxlm.kernels.pointwise import activations, norm, rotary
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask


@dataclass(frozen=True)
class KernelCase:
    """One operator on one set of shapes."""

    name: str
    operator: str
    """Name in the registry."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the floating-point inputs; all of them get gradients."""
    call: Call
    """The operator on those inputs (in any dtype)."""
    bytes_moved: tuple[int, int] = (0, 0)
    """Minimum memory traffic of forward and backward in elements: every operand read once, every result written once."""
    operations: int = 0
    """Floating-point operations of forward and backward together; 0 for memory-bound operators."""
    forward_operations: int = 0
    """Of those, the forward pass's; 0 if the passes cannot be separated (the head's forward forms gradients)."""
    peers: dict[str, Call] = field(default_factory=dict)
    """Other implementations, called with the same inputs."""


def kernel_cases(small: bool, device: torch.device) -> list[KernelCase]:
    """All cases; `small` ones finish in seconds on a CPU."""
    tokens, hidden, ffn = (256, 96, 160) if small else (65536, 768, 3072)
    rows, vocabulary = (64, 1000) if small else (4096, 250112)
    from dist_metaxlm.benchmarking.kernels.attention_cases import attention_cases  # it imports this module

    cases = [_head(rows, hidden, vocabulary, device), *attention_cases(small, device)]
    cases += _norms(tokens, hidden, device) + _rms_norms(tokens, hidden, device) + _activations(tokens, ffn, device)
    for case in cases:
        case.peers.update(liger_peers(case.name))
    return [*cases, _rotation(tokens, 2 if small else 12, 32 if small else 64, device)]


def lognormal_lengths(rng: random.Random, window: int, median: int) -> list[int]:
    """Lognormal (sigma 0.9) document lengths that fill a window, at least 4 tokens each; the last is cut."""
    lengths: list[int] = []
    room = window
    while room:
        lengths.append(min(room, max(4, round(rng.lognormvariate(0.0, 0.9) * median))))
        room -= lengths[-1]
    return lengths


def _compiled(call: Call, device: torch.device) -> dict[str, Call]:
    """The call under torch.compile; left out on CPU, where it needs a C++ compiler and half a minute."""
    return {"torch.compile": torch.compile(call)} if device.type == "cuda" else {}


def _head(rows: int, hidden: int, vocabulary: int, device: torch.device) -> KernelCase:
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(1)).to(device)

    def plain(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(states, weight, bias), targets, reduction="sum")

    peers = {"torch": plain, **_compiled(plain, device), **head_peers(targets)}
    return KernelCase(
        "masked-row head",
        "linear_cross_entropy",
        ((rows, hidden), (vocabulary, hidden), (vocabulary,)),
        lambda states, weight, bias: linear_cross_entropy(states, weight, bias, targets).sum(),
        operations=6 * rows * hidden * vocabulary,
        peers=peers,
    )


def _norms(tokens: int, hidden: int, device: torch.device) -> list[KernelCase]:
    mask = DropoutMask(torch.arange(tokens, device=device), 2**40 + 77, 0.1)
    vector, matrix, moved = (hidden,), (tokens, hidden), tokens * hidden

    def torch_add_norm(branch: torch.Tensor, residual: torch.Tensor, *affine: torch.Tensor) -> torch.Tensor:
        return torch_norm(residual + F.dropout(branch, 0.1), *affine)

    def torch_norm(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(states, vector, weight, bias, 1e-5)

    ids = torch.randint(0, 1000, (tokens,), generator=torch.Generator().manual_seed(2)).to(device)
    positions = torch.arange(tokens, device=device) % 512
    return [
        KernelCase(
            "dropout + residual + LayerNorm",
            "add_norm",
            (matrix, matrix, vector, vector),
            lambda branch, residual, w, b: norm.add_norm(branch, residual, w, b, 1e-5, mask)[1],
            (4 * moved, 4 * moved),
            peers={"torch": torch_add_norm, **_compiled(torch_add_norm, device)},
        ),
        KernelCase(
            "residual + LayerNorm, both results",
            "add_norm",
            (matrix, matrix, vector, vector),
            lambda branch, residual, w, b: norm.add_norm(branch, residual, w, b, 1e-5),
            (4 * moved, 4 * moved),
        ),
        KernelCase(
            "LayerNorm",
            "norm",
            (matrix, vector, vector),
            lambda states, w, b: norm.norm(states, w, b, 1e-5),
            (2 * moved, 3 * moved),
            peers={"torch": torch_norm, **_compiled(torch_norm, device)},
        ),
        KernelCase(
            "dropout + residual",
            "add",
            (matrix, matrix),
            lambda branch, residual: norm.add(branch, residual, mask),
            (3 * moved, 2 * moved),
        ),
        KernelCase(
            "embedding + position + LayerNorm",
            "embed_norm",
            ((1000, hidden), (512, hidden), vector, vector),
            lambda table, places, w, b: norm.embed_norm(ids, table, positions, places, w, b, 1e-5),
            (4 * moved, 3 * moved),
        ),
    ]


def _rms_norms(tokens: int, hidden: int, device: torch.device) -> list[KernelCase]:
    mask = DropoutMask(torch.arange(tokens, device=device), 2**40 + 78, 0.1)
    vector, matrix, moved = (hidden,), (tokens, hidden), tokens * hidden

    def torch_add_norm(branch: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        summed = residual + F.dropout(branch, 0.1)
        return summed, torch_norm(summed, weight)

    def torch_norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, vector, weight, 1e-5)

    ids = torch.randint(0, 1000, (tokens,), generator=torch.Generator().manual_seed(2)).to(device)
    return [
        KernelCase(
            "dropout + residual + RMSNorm, both results",
            "add_norm",
            (matrix, matrix, vector),
            lambda branch, residual, w: norm.add_norm(branch, residual, w, None, 1e-5, mask, rms=True),
            (4 * moved, 5 * moved),
            peers={"torch": torch_add_norm, **_compiled(torch_add_norm, device)},
        ),
        KernelCase(
            "RMSNorm",
            "norm",
            (matrix, vector),
            lambda states, w: norm.norm(states, w, None, 1e-5, rms=True),
            (2 * moved, 3 * moved),
            peers={"torch": torch_norm, **_compiled(torch_norm, device)},
        ),
        KernelCase(
            "embedding + RMSNorm",
            "embed_norm",
            ((1000, hidden), vector),
            lambda table, weight: norm.embed_norm(ids, table, None, None, weight, None, 1e-5, rms=True),
            (3 * moved, 3 * moved),
        ),
    ]


def _activations(tokens: int, ffn: int, device: torch.device) -> list[KernelCase]:
    matrix, moved = (tokens, ffn), tokens * ffn

    def torch_bias_gelu(states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.gelu(states + bias)

    def torch_geglu(states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return F.gelu(states) * gate

    return [
        KernelCase(
            "bias + GELU",
            "bias_gelu",
            (matrix, (ffn,)),
            activations.bias_gelu,
            (2 * moved, 3 * moved),
            peers=_compiled(torch_bias_gelu, device),
        ),
        KernelCase(
            "GeGLU",
            "geglu",
            (matrix, matrix),
            activations.geglu,
            (3 * moved, 5 * moved),
            peers=_compiled(torch_geglu, device),
        ),
    ]


def _rotation(tokens: int, heads: int, width: int, device: torch.device) -> KernelCase:
    angles = torch.arange(tokens, device=device).unsqueeze(1) * 0.01 * torch.arange(1, width // 2 + 1, device=device)

    def turn(states: torch.Tensor) -> torch.Tensor:
        tables = (table.to(states.dtype).unsqueeze(1) for table in (angles.cos(), angles.sin()))
        return rotary.rotate(states.unbind(2)[0], *tables)

    moved = tokens * heads * width
    return KernelCase("rotation of queries", "rotate", ((tokens, heads, 3, width),), turn, (2 * moved, 2 * moved))
