from __future__ import annotations

import random

import pytest
import torch

from dist_metaxlm.kernels.attention.tiles import Side, most_tiles, tile_table


def cuts_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def visible(lengths: list[int], local_window: int | None, side: Side) -> torch.Tensor:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = torch.arange(ids.numel())
    near = (places[:, None] - places[None]).abs() <= (10**9 if local_window is None else local_window // 2)
    after = places[None] - places[:, None]
    sided = {"both": after == after, "earlier": after <= 0, "later": after >= 0}[side]
    return (ids[:, None] == ids[None]) & near & sided


def random_lengths(seed: int, rows: int) -> list[int]:
    rng = random.Random(seed)
    longest = rng.choice([1, 3, rows, 2 * rows + 3, 6 * rows])
    return [rng.randint(rng.choice([0, 1]), longest) for _ in range(rng.randint(1, 40))] + [1]


@pytest.mark.parametrize("side", ["both", "earlier", "later"])
@pytest.mark.parametrize("seed", range(40))
def test_tiles_cover_every_pair_once_and_say_what_all_rows_see(seed: int, side: Side) -> None:
    rows, local_window = 16, random.Random(seed).choice([None, 1, 6, 40])
    lengths = random_lengths(seed, rows)
    tokens, allowed = sum(lengths), visible(lengths, local_window, side)
    table = tile_table(cuts_of(lengths), tokens, rows, local_window, side)
    assert table.tiles.shape == (most_tiles(tokens, len(lengths), rows), 6)
    assert table.tiles.dtype == table.bounds.dtype == torch.int32
    covered = torch.zeros(tokens, dtype=torch.int64)
    for first_row, end_row, first, end, full_first, full_end in table.tiles.tolist():
        covered[first_row:end_row] += 1
        assert end_row - first_row <= rows
        assert not allowed[first_row:end_row, :first].any()
        assert not allowed[first_row:end_row, end:].any()
        if full_first < full_end:
            assert allowed[first_row:end_row, full_first:full_end].all()
    assert (covered == 1).all()
    keys = torch.arange(tokens)
    by_bounds = (keys >= table.bounds[0].unsqueeze(1)) & (keys < table.bounds[1].unsqueeze(1))
    assert torch.equal(by_bounds, allowed)


def test_short_documents_share_tiles_and_long_ones_do_not() -> None:
    table = tile_table(cuts_of([5, 5, 5, 40, 16, 3]), 74, 16, None)
    used = [tile[:4] for tile in table.tiles.tolist() if tile[1]]
    assert sorted(used) == [
        [0, 15, 0, 15],
        [15, 31, 15, 55],
        [31, 47, 15, 55],
        [47, 55, 15, 55],
        [55, 71, 55, 71],
        [71, 74, 71, 74],
    ]
    assert [tile[3] - tile[2] for tile in used] == sorted((tile[3] - tile[2] for tile in used), reverse=True)


def test_grouping_saves_tiles_on_short_documents() -> None:
    rng = random.Random(0)
    lengths = [min(512, max(4, int(rng.lognormvariate(4.1, 0.9)))) for _ in range(800)]
    table = tile_table(cuts_of(lengths), sum(lengths), 128, None)
    used = int((table.tiles[:, 1] > 0).sum())
    assert used < 0.8 * sum(-(-length // 128) for length in lengths)


@pytest.mark.parametrize("lengths", [[17, 1] * 20, [1] * 64, [0, 0, 5, 0], [33], [16] * 4])
def test_the_bound_on_tiles_holds_at_the_extremes(lengths: list[int]) -> None:
    table = tile_table(cuts_of(lengths), sum(lengths), 16, None)
    assert int((table.tiles[:, 1] - table.tiles[:, 0]).sum()) == sum(lengths)
