from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.contrast import contrast_losses, document_keys, mean_pool
from dist_metaxlm.recipe.schema import Contrast, ModelConfig

MODEL = ModelConfig(layers=3, hidden=16, heads=2, ffn=32, vocab_size=400, max_positions=32)
L = 16


def pack(documents: list[list[int]], pairs: list[tuple[int, int]] | None = None) -> PackedBatch:
    """One document a window, the rest of the window an inert document of padding."""
    tokens, positions, starts = [], [], [0]
    for ids in documents:
        for part in (ids, [1] * (L - len(ids))):
            if part:
                tokens += part
                positions += range(len(part))
                starts.append(len(tokens))
    full = [2 * i for i in range(len(documents))]
    chosen = [(full[a], full[b]) for a, b in pairs or [(2 * i, 2 * i + 1) for i in range(len(documents) // 2)]]
    none = torch.zeros(0, dtype=torch.int64)
    return PackedBatch(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(starts, dtype=torch.int32),
        L,
        torch.arange(len(documents)),
        torch.zeros(len(documents), dtype=torch.int64),
        none,
        none,
        torch.tensor(chosen),
        torch.arange(len(chosen)),
    )


def documents(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, L - 1, (count,), generator=generator).tolist()
    return [[0, *torch.randint(10, 390, (n,), generator=generator).tolist(), 2][: L - 1] for n in lengths]


def test_pooling_is_the_mean_over_each_documents_tokens() -> None:
    batch = pack(documents(6))
    states = torch.randn(batch.tokens.numel(), 8)
    pooled = mean_pool(states, batch)
    bounds = batch.cu_seqlens.tolist()
    for index, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        torch.testing.assert_close(pooled[index], states[a:b].mean(0))


def test_loss_is_infonce_in_both_directions() -> None:
    batch = pack(documents(8))
    encoder = Encoder(MODEL, seed=1)
    config = Contrast(pairs=4, group=4, layer=2, temperature=0.1)
    losses, languages = contrast_losses(encoder(batch, last_layer=2), batch, config)
    pooled = F.normalize(mean_pool(encoder.hidden_states(batch)[2], batch), dim=-1)
    left, right = pooled[batch.pairs[:, 0]], pooled[batch.pairs[:, 1]]
    for i in range(4):
        forth = -torch.log_softmax(left[i] @ right.T / 0.1, 0)[i]
        back = -torch.log_softmax(right[i] @ left.T / 0.1, 0)[i]
        torch.testing.assert_close(losses[i], (forth + back) / 2)
    assert languages.tolist() == [0, 1, 2, 3]


def test_blocks_above_the_layer_get_no_gradient() -> None:
    encoder = Encoder(MODEL, seed=1)
    batch = pack(documents(8))
    losses, _ = contrast_losses(encoder(batch, last_layer=2), batch, Contrast(pairs=4, group=4, layer=2))
    losses.sum().backward()
    assert all(p.grad is None for p in encoder.blocks[2].parameters())
    assert all(p.grad is not None for p in encoder.blocks[1].parameters())


def test_keys_are_equal_for_equal_documents_only() -> None:
    texts = documents(40)
    texts[7] = list(texts[3])
    texts[9] = [texts[5][0], *reversed(texts[5][1:-1]), texts[5][-1]]
    keys = document_keys(pack(texts))[::2].tolist()
    assert keys[7] == keys[3]
    assert keys[9] != keys[5]
    assert len(set(keys)) == 39


@pytest.mark.parametrize("side", [0, 1])
def test_translations_of_the_same_sentence_are_no_negatives(side: int) -> None:
    texts = documents(8)
    texts[2 + side] = list(texts[side])
    encoder = Encoder(MODEL, seed=1)
    config = Contrast(pairs=4, group=4, layer=2, temperature=0.1)
    batch = pack(texts)
    losses, _ = contrast_losses(encoder(batch, last_layer=2), batch, config)
    pooled = F.normalize(mean_pool(encoder.hidden_states(batch)[2], batch), dim=-1)
    left, right = pooled[batch.pairs[:, 0]], pooled[batch.pairs[:, 1]]
    kept = [0, 2, 3]
    forth = -torch.log_softmax(left[0] @ right[kept].T / 0.1, 0)[0]
    back = -torch.log_softmax(right[0] @ left[kept].T / 0.1, 0)[0]
    torch.testing.assert_close(losses[0], (forth + back) / 2)
    assert torch.isfinite(losses).all()
