from __future__ import annotations

import pytest
import torch

from dist_metaxlm.kernels.pointwise import dropout
from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, token_keys
from dist_metaxlm.modeling.dropout import DropoutKey, counter_dropout, dropout_mask


def dropout_key(samples: torch.Tensor, window: int, rate: float, seed: int, step: int, objective: str = "mlm") -> DropoutKey:
    """The key of windows with these sample numbers."""
    return DropoutKey((samples.unsqueeze(1) * window + torch.arange(window)).view(-1), rate, seed, step, objective)


def test_mask_does_not_depend_on_how_samples_are_split() -> None:
    samples = torch.tensor([7, 100, 3, 2**40])
    whole = dropout_mask(dropout_key(samples, 16, 0.3, 1, 5), 2, 24)
    for index in range(4):
        part = dropout_mask(dropout_key(samples[index : index + 1], 16, 0.3, 1, 5), 2, 24)
        assert torch.equal(part, whole[16 * index : 16 * (index + 1)])
    turned = dropout_mask(dropout_key(samples.flip(0), 16, 0.3, 1, 5), 2, 24)
    assert torch.equal(turned[:16], whole[-16:])


def test_mask_changes_with_seed_step_objective_site_sample() -> None:
    def mask(sample: int = 3, seed: int = 1, step: int = 1, site: int = 1, objective: str = "mlm") -> torch.Tensor:
        return dropout_mask(dropout_key(torch.tensor([sample]), 64, 0.5, seed, step, objective), site, 64)

    for other in (mask(sample=4), mask(seed=2), mask(step=2), mask(site=2), mask(objective="tlm")):
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


@pytest.mark.parametrize("words", [1, 100, 2**40], ids=["word by word", "rows", "at once"])
def test_masks_are_the_published_hash_in_parts_of_any_size(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against splitmix64 and murmur3 in Python's integers: no part and no shortcut may change a bit."""
    monkeypatch.setattr(dropout, "PART_WORDS", words)
    mask = dropout.DropoutMask(torch.tensor([0, 5, 2**62 + 11]), -(2**61) - 7, 0.3)
    stays = [
        [
            finished(mixed((position ^ mask.salt) % 2**64) ^ mixed(channel)) % 2**31 >= dropout.threshold(0.3)
            for channel in range(40)
        ]
        for position in mask.positions.tolist()
    ]
    assert mask.stays(40).tolist() == stays
    for dtype in (torch.float32, torch.bfloat16):
        factors = torch.tensor(stays).to(dtype) * dropout.keep_factor(0.3)
        assert torch.equal(mask.apply(torch.ones(3, 40, dtype=dtype)), factors)
    assert mask.stays(0).shape == (3, 0)


def test_masks_of_attention_do_not_depend_on_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = AttentionDropout(token_keys(torch.arange(12) + 2**40), 17, 0, 0.25)
    queries, keys = rule.query_words(3).view(3, 2, 6).transpose(0, 1), rule.token_keys[1].view(2, 1, 6)
    whole = rule.stays(queries, keys)
    assert whole.shape == (2, 3, 6, 6)
    assert 0 < whole.double().mean() < 1
    for words in (1, 7, 40, 120):
        monkeypatch.setattr(dropout, "PART_WORDS", words)
        assert torch.equal(rule.stays(queries, keys), whole)


def mixed(word: int) -> int:
    """The lower half of splitmix64's finaliser."""
    for factor, shift in zip(dropout._MIX_64, (27, 31), strict=True):
        word = (word ^ (word >> shift)) * factor % 2**64
    return (word ^ (word >> 32)) % 2**32


def finished(word: int) -> int:
    """murmur3's finaliser but for its first shift."""
    for factor, shift in zip(dropout._MIX_32, (13, 16), strict=True):
        word = word * factor % 2**32
        word ^= word >> shift
    return word
