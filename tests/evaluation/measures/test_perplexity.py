"""Which tokens are hidden, and that the perplexity of models with a known distribution is the known one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.evaluation.measures.perplexity import MaskedSentence, mask_sentence, masked_perplexity, read_prose

VOCABULARY, MASK = 321, 320
SPECIAL = np.isin(np.arange(VOCABULARY), [0, 1, 2, 3, MASK])


class KnownModel(torch.nn.Module):
    """Predicts every token of an unmasked place from its own state; `sharpness` 0 is the uniform model."""

    def __init__(self, sharpness: float = 0.0) -> None:
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(sharpness))
        self.batches: list[PackedBatch] = []

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        self.batches.append(batch)
        return torch.nn.functional.one_hot(batch.tokens, VOCABULARY).float() * self.sharpness

    def masked_lm_loss(self, states, targets, target_tokens):
        return torch.nn.functional.cross_entropy(states[targets], target_tokens, reduction="none")


def sentences(count: int, length: int = 9) -> list[MaskedSentence]:
    ids = torch.randint(4, MASK, (count, length), generator=torch.Generator().manual_seed(1)).tolist()
    return [mask_sentence(f"sentence {n}", row, SPECIAL) for n, row in enumerate(ids)]


def test_masks_follow_from_the_text_alone():
    ids = list(range(10, 50))
    assert mask_sentence("a", ids, SPECIAL) == mask_sentence("a", ids, SPECIAL)
    assert mask_sentence("a", ids, SPECIAL).hidden != mask_sentence("b", ids, SPECIAL).hidden
    assert mask_sentence("a", ids, SPECIAL).ids == ids


def test_the_share_of_hidden_tokens_is_exact_on_average_even_in_short_strings():
    hidden = [len(sentence.hidden) for sentence in sentences(3000, length=5)]
    assert set(hidden) == {0, 1}
    assert np.mean(hidden) == pytest.approx(0.75, abs=0.03)
    places = np.concatenate([sentence.hidden for sentence in sentences(3000, length=5)])
    assert np.bincount(places.astype(int)).min() > 350


def test_special_tokens_are_never_hidden():
    for n in range(50):
        assert set(mask_sentence(str(n), [3, 9, 3, 3, 9], SPECIAL, rate=0.9).hidden) <= {1, 4}


def test_a_uniform_model_has_the_perplexity_of_the_vocabulary():
    assert masked_perplexity(KnownModel(), sentences(300), MASK) == pytest.approx(VOCABULARY, rel=1e-5)


def test_the_model_never_sees_what_it_is_asked_for():
    """A model that copies its input puts all its weight on <mask>, which is never the answer."""
    model = KnownModel(sharpness=50.0)
    assert masked_perplexity(model, sentences(300), MASK, window=16, max_tokens=64) > 1e9
    masked = sum(int((batch.tokens == MASK).sum()) for batch in model.batches)
    assert masked == sum(len(sentence.hidden) for sentence in sentences(300))


def test_batching_does_not_change_the_figure():
    class ById(KnownModel):
        def masked_lm_loss(self, states, targets, target_tokens):
            return target_tokens.float() / 100

    asked = sentences(100)
    mean = np.mean([sentence.ids[place] / 100 for sentence in asked for place in sentence.hidden])
    for window, max_tokens in ((16, 16), (64, 256), (128, 8192)):
        assert masked_perplexity(ById(), asked, MASK, window, max_tokens) == pytest.approx(np.exp(mean), rel=1e-6)


def test_nothing_hidden_is_no_figure():
    assert masked_perplexity(KnownModel(), [MaskedSentence([5, 6], [])], MASK) is None


def test_what_is_cut_is_not_asked():
    long = MaskedSentence(list(range(5, 25)), [2, 18])
    model = KnownModel()
    assert masked_perplexity(model, [long], MASK, window=8) == pytest.approx(VOCABULARY, rel=1e-5)
    assert int((model.batches[0].tokens == MASK).sum()) == 1


def test_prose_is_read_by_documents_and_windows(tmp_path):
    class Words:
        special = SPECIAL

        def encode(self, text):
            return [10 + len(word) for word in text.split()]

    path = tmp_path / "en.txt"
    path.write_text("one two\nthree four five\n\nsix\n\n", encoding="utf-8")
    pieces = read_prose(path, Words(), window=5)
    assert [piece.ids for piece in pieces] == [[13, 13, 15], [14, 14], [13]]
    assert len(read_prose(path, Words(), window=5, max_tokens=2)) == 2
