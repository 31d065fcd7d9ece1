from __future__ import annotations

import pytest
import torch

from dist_metaxlm.training.engine.orthogonal import orthogonalise, update_of, update_scale

STEPS = 5


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24), (3, 2, 8, 24)])
def test_singular_values_come_near_one_and_the_singular_vectors_stay(shape: tuple[int, ...]) -> None:
    given = matrix(*shape)
    result = orthogonalise(given, STEPS)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.5
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    inner = left.mT @ result @ right.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-10


def test_scale_does_not_matter_and_zero_stays_zero() -> None:
    given = matrix(12, 20)
    torch.testing.assert_close(orthogonalise(1e-3 * given, STEPS), orthogonalise(given, STEPS), rtol=1e-3, atol=1e-3)
    assert not orthogonalise(torch.zeros(4, 6), STEPS).any()


def test_it_is_what_torch_computes() -> None:
    from torch.optim._muon import _zeropower_via_newtonschulz

    given = matrix(32, 48).float()
    theirs = _zeropower_via_newtonschulz(given.clone(), (3.4445, -4.7750, 2.0315), STEPS, 1e-7)  # in bf16
    torch.testing.assert_close(orthogonalise(given, STEPS), theirs.float(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("each_head", [False, True])
def test_queries_keys_and_values_are_matrices_of_their_own(each_head: bool) -> None:
    heads, width, columns = 4, 6, 24
    given = matrix(heads * 3 * width, columns)
    result = update_of("blocks.0.attention.qkv.weight", given, STEPS, heads, each_head).view(heads, 3, width, columns)
    parts = given.view(heads, 3, width, columns)
    for kind in range(3):
        if each_head:
            for head in range(heads):
                wanted = update_scale(width, columns) * orthogonalise(parts[head, kind], STEPS)
                torch.testing.assert_close(result[head, kind], wanted)
        else:
            whole = parts[:, kind].reshape(-1, columns)
            wanted = update_scale(heads * width, columns) * orthogonalise(whole, STEPS)
            torch.testing.assert_close(result[:, kind].reshape(-1, columns), wanted)


def test_other_matrices_are_taken_whole_and_updates_have_the_size_of_adamws() -> None:
    result = update_of("blocks.0.mlp.up.weight", matrix(64, 16), STEPS, 4, False)
    assert 0.1 < result.square().mean().sqrt() < 0.3
