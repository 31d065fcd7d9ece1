from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dist_metaxlm.training.carry_over import embedding_statistics


def test_statistics_equal_the_pairwise_definition() -> None:
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) + 0.3
    unseen = torch.zeros(30, dtype=torch.bool)
    unseen[12:] = True
    statistics = embedding_statistics(table, unseen)
    for name, rows in (("seen", table[:12]), ("unseen", table[12:])):
        unit = F.normalize(rows, dim=-1)
        cosines = unit @ unit.T
        count = len(rows)
        off_diagonal = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
        assert statistics[name]["tokens"] == count
        assert statistics[name]["mean_norm"] == pytest.approx(float(rows.norm(dim=-1).mean()), rel=1e-5)
        assert statistics[name]["mean_cosine"] == pytest.approx(float(off_diagonal), abs=1e-5)


def test_collapsed_rows_have_cosine_one_and_an_empty_side_is_left_out() -> None:
    statistics = embedding_statistics(torch.ones(5, 4), torch.zeros(5, dtype=torch.bool))
    assert statistics["seen"]["mean_cosine"] == pytest.approx(1.0)
    assert "unseen" not in statistics
