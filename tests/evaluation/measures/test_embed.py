"""Packing and pooling give every sentence the vector it has when it is run alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.special_tokens import BOS, EOS, PAD
from dist_metaxlm.evaluation.measures.embed import embed, mean_pool, pack_sentences
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

CONFIG = ModelConfig(layers=2, hidden=32, heads=2, ffn=64, vocab_size=400, max_positions=32)
SENTENCES = [[10, 11, 12], [300], [], list(range(20, 60)), [7, 7, 7, 7], [10, 11, 12], list(range(100, 129))]


def documents(batch: PackedBatch) -> list[list[int]]:
    bounds = batch.cu_seqlens.tolist()
    return [batch.tokens[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(4, 399), max_size=20), min_size=1, max_size=30),
    st.sampled_from([8, 16, 24]),
    st.integers(1, 100),
)
def test_every_sentence_is_packed_once_and_windows_are_whole(sentences, window, max_tokens):
    seen = []
    for pack in pack_sentences(sentences, window, max_tokens):
        batch = pack.batch
        assert batch.tokens.numel() % window == 0
        assert batch.tokens.numel() <= max(window, max_tokens)
        starts = set(batch.cu_seqlens.tolist())
        assert all(start in starts for start in range(0, batch.tokens.numel() + 1, window))
        for number, tokens in zip(pack.index.tolist(), documents(batch), strict=True):
            if number < 0:
                assert set(tokens) == {PAD}
            else:
                assert tokens == [BOS, *sentences[number][: window - 2], EOS]
                seen.append(number)
        expected = [place for tokens in documents(batch) for place in range(len(tokens))]
        assert batch.positions.tolist() == expected
    assert sorted(seen) == list(range(len(sentences)))


@pytest.mark.parametrize("include_special", [True, False])
def test_packed_vectors_equal_one_sentence_at_a_time(include_special):
    encoder = Encoder(CONFIG, 3)
    packed = embed(encoder, SENTENCES, window=32, max_tokens=64, include_special=include_special)
    assert packed.shape == (3, len(SENTENCES), 32)
    for number, ids in enumerate(SENTENCES):
        tokens = torch.tensor([BOS, *ids[:30], EOS])
        length = tokens.numel()
        none = torch.zeros(0, dtype=torch.int64)
        alone = PackedBatch(
            tokens,
            torch.arange(length),
            torch.tensor([0, length], dtype=torch.int32),
            length,
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
            none,
            none,
        )
        with torch.no_grad():
            states = torch.stack(encoder.hidden_states(alone))
        inside = states if include_special or not ids else states[:, 1:-1]
        torch.testing.assert_close(packed[:, number], inside.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_order_and_company_do_not_matter():
    encoder = Encoder(CONFIG, 3)
    forward = embed(encoder, SENTENCES, window=32, max_tokens=32)
    backward = embed(encoder, SENTENCES[::-1], window=32, max_tokens=4096)
    torch.testing.assert_close(forward, backward.flip(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(forward[:, 0], forward[:, 5], rtol=1e-4, atol=1e-5)


def test_embedding_leaves_the_mode_of_the_model():
    encoder = Encoder(CONFIG.model_copy(update={"dropout": 0.5, "attention_dropout": 0.5}), 3).train()
    first, second = (embed(encoder, SENTENCES, window=32) for _ in range(2))
    assert encoder.training
    assert torch.equal(first, second)


def test_pooling_counts_special_tokens_or_not():
    [pack] = pack_sentences([[5, 6]], window=8, max_tokens=8)
    states = torch.tensor([[8.0], [1], [3], [0], [9], [9], [9], [9]])
    assert mean_pool(states, pack.batch)[0].item() == 3.0
    assert mean_pool(states, pack.batch, include_special=False)[0].item() == 2.0
