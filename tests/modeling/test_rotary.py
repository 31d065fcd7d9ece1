from __future__ import annotations

import torch

from dist_metaxlm.modeling.rotary import rotary_table, rotate


def test_gradcheck_and_norms_kept() -> None:
    torch.manual_seed(0)
    table = rotary_table(torch.tensor([0, 1, 5, 0, 300]), 8, 10000.0, torch.float64)
    states = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, table), (states,))
    turned = rotate(states, table)
    torch.testing.assert_close(turned.norm(dim=-1), states.norm(dim=-1))
    assert torch.equal(turned[0], states[0])


def test_products_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 16, dtype=torch.float64)

    def score(at_query: int, at_key: int) -> torch.Tensor:
        tables = [rotary_table(torch.tensor([at]), 16, 10000.0, torch.float64) for at in (at_query, at_key)]
        return (rotate(query, tables[0]) * rotate(key, tables[1])).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), atol=1e-4, rtol=1e-4)
    assert (score(7, 3) - score(8, 3)).abs() > 1e-3
