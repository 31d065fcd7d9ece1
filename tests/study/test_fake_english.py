"""The known case without its training: what an untrained model may know, and what one that knows everything shows."""

from __future__ import annotations

import random

import pytest
import torch

from dist_metaxlm.data.special_tokens import UNK
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig
from dist_metaxlm.study.fake_english import PIECES, RECIPE, measure

CONFIG = ModelConfig(**RECIPE["model"])
WINDOW = 64


@pytest.fixture(scope="module")
def sentences() -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(11)
    # as in text, few tokens are frequent and most are rare
    english = [
        [UNK + 1 + min(int(rng.expovariate(0.02)), PIECES - 1) for _ in range(rng.randrange(8, 13))] for _ in range(300)
    ]
    return english, [[token + PIECES for token in ids] for ids in english]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_untrained_model_with_shared_positions_is_at_chance_for_shuffled_languages(sentences, seed):
    found = measure(Encoder(CONFIG, seed), *sentences, WINDOW)
    chance, count = found["same_length_chance"], len(sentences[0])
    assert chance == 5 / count
    # The two directions' hits, each binomial: four standard deviations of their mean
    margin = 4 * (chance / count / 2) ** 0.5
    assert max(found["shuffled"]) < chance + margin
    assert max(found["same_length"]) < chance + margin
    assert max(found["translation"]) < 5 / PIECES
    # with all candidates it sees which sentences are as long, and no more
    assert max(found["retrieval"]) < 2 * chance


def test_a_model_that_takes_both_languages_for_one_is_right_about_everything(sentences):
    encoder = Encoder(CONFIG, 1)
    with torch.no_grad():
        tokens = encoder.embedding.tokens.weight
        tokens[UNK + 1 + PIECES : UNK + 1 + 2 * PIECES] = tokens[UNK + 1 : UNK + 1 + PIECES]
    found = measure(encoder, *sentences, WINDOW)
    assert found["retrieval"] == found["same_length"] == found["translation"] == [1.0] * 4
    assert min(found["shuffled"]) > 0.5  # the same words, if not in their places
