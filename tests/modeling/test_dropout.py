from __future__ import annotations

import torch

from dist_metaxlm.modeling.dropout import DropoutKey, counter_dropout, dropout_mask


def dropout_key(samples: torch.Tensor, window: int, rate: float, seed: int, step: int) -> DropoutKey:
    """The key of windows with these sample numbers."""
    return DropoutKey((samples.unsqueeze(1) * window + torch.arange(window)).view(-1), rate, seed, step)


def test_mask_does_not_depend_on_how_samples_are_split() -> None:
    samples = torch.tensor([7, 100, 3, 2**40])
    whole = dropout_mask(dropout_key(samples, 16, 0.3, 1, 5), 2, 24)
    for index in range(4):
        part = dropout_mask(dropout_key(samples[index : index + 1], 16, 0.3, 1, 5), 2, 24)
        assert torch.equal(part, whole[16 * index : 16 * (index + 1)])
    turned = dropout_mask(dropout_key(samples.flip(0), 16, 0.3, 1, 5), 2, 24)
    assert torch.equal(turned[:16], whole[-16:])


def test_mask_changes_with_seed_step_site_sample() -> None:
    def mask(sample: int = 3, seed: int = 1, step: int = 1, site: int = 1) -> torch.Tensor:
        return dropout_mask(dropout_key(torch.tensor([sample]), 64, 0.5, seed, step), site, 64)

    for other in (mask(sample=4), mask(seed=2), mask(step=2), mask(site=2)):
        agreement = (mask() == other).float().mean().item()
        assert 0.45 < agreement < 0.55


def test_rate_is_met_in_rows_and_columns_and_neighbours_are_independent() -> None:
    mask = dropout_mask(dropout_key(torch.arange(32), 64, 0.1, 1, 1), 0, 512).float()
    assert abs(mask.mean().item() - 0.9) < 1e-3
    spread = (0.1 * 0.9) ** 0.5
    for axis, count in ((0, 2048), (1, 512)):
        means = mask.mean(axis)
        assert (means - 0.9).abs().max() < 6 * spread / count**0.5
        assert abs(means.std().item() / (spread / count**0.5) - 1) < 0.15
    centred = (mask - 0.9) / spread
    for shifted in (centred[1:, :] * centred[:-1, :], centred[:, 1:] * centred[:, :-1], centred[8:, 8:] * centred[:-8, :-8]):
        assert abs(shifted.mean().item()) < 6 / shifted.numel() ** 0.5


def test_values_and_gradients_are_scaled() -> None:
    states = torch.ones(64, 32, requires_grad=True)
    key = dropout_key(torch.tensor([0, 1]), 32, 0.25, 1, 1)
    dropped = counter_dropout(states, key, 0)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped)
    assert counter_dropout(states, None, 0) is states
