"""Masks: exact counts, no special tokens, whole words, and nothing that depends on the rest of the batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.packing.masking import LONGEST_WORD, Masker, MaskRule

VOCAB = 1000
MASK = VOCAB - 1


def _tokenizer() -> SimpleNamespace:
    """Ids 4..499 begin words, 500..998 go on with them."""
    special = np.zeros(VOCAB, np.bool_)
    special[[0, 1, 2, 3, MASK]] = True
    word_begin = np.zeros(VOCAB, np.bool_)
    word_begin[4:500] = True
    return SimpleNamespace(special=special, word_begin=word_begin, mask_id=MASK)


def _windows(seed: int, windows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4, MASK, (windows, length))
    tokens[generator.random(tokens.shape) < 0.1] = generator.integers(0, 4)
    inner = np.flatnonzero(generator.random(tokens.size) < 0.05)
    return tokens, np.unique(np.concatenate([inner, np.arange(windows) * length]))


CASES = given(
    seed=st.integers(0, 10**6),
    windows=st.integers(1, 9),
    length=st.integers(8, 70),
    share=st.floats(0.05, 0.9),
    whole_words=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@CASES
def test_counts_are_exact_and_specials_stay(seed: int, windows: int, length: int, share: float, whole_words: bool) -> None:
    tokens, documents = _windows(seed, windows, length)
    count = max(1, round(share * length))
    tokenizer = _tokenizer()
    masked = Masker(tokenizer, count, whole_words, 5).mask(tokens, np.arange(windows), documents)
    eligible = ~tokenizer.special[tokens]
    per_window = np.bincount(masked.targets // length, minlength=windows)
    assert np.array_equal(per_window, np.minimum(count, eligible.sum(axis=1)))
    assert np.all(np.diff(masked.targets) > 0)
    assert np.all(eligible.reshape(-1)[masked.targets])
    assert np.array_equal(tokens.reshape(-1)[masked.targets], masked.target_tokens)
    untouched = np.ones(tokens.size, np.bool_)
    untouched[masked.targets] = False
    assert np.array_equal(masked.inputs.reshape(-1)[untouched], tokens.reshape(-1)[untouched])
    seen = masked.inputs.reshape(-1)[masked.targets]
    assert np.all((seen == MASK) | ~tokenizer.special[seen])


@settings(max_examples=60, deadline=None)
@CASES
def test_a_window_is_masked_alike_in_any_batch(
    seed: int, windows: int, length: int, share: float, whole_words: bool
) -> None:
    tokens, documents = _windows(seed, windows, length)
    masker = Masker(_tokenizer(), max(1, round(share * length)), whole_words, 5)
    samples = np.random.default_rng(seed).integers(0, 10**12, windows)
    together = masker.mask(tokens, samples, documents)
    for row in range(windows):
        mine = documents[documents // length == row] - row * length
        alone = masker.mask(tokens[row : row + 1], samples[row : row + 1], mine)
        assert np.array_equal(alone.inputs[0], together.inputs[row])
        chosen = together.targets[together.targets // length == row] - row * length
        assert np.array_equal(alone.targets, chosen)


def test_eighty_ten_ten_and_uniform_positions() -> None:
    length, windows = 128, 4000
    tokens = np.full((windows, length), 7)
    starts = np.arange(windows) * length
    masked = Masker(_tokenizer(), 19, False, 5).mask(tokens, np.arange(windows), starts)
    seen = masked.inputs.reshape(-1)[masked.targets]
    assert seen.size == 19 * windows
    assert np.mean(seen == MASK) == pytest.approx(0.8, abs=0.006)
    assert np.mean(seen == 7) == pytest.approx(0.1, abs=0.005)
    random = np.bincount(seen[(seen != MASK) & (seen != 7)], minlength=VOCAB)
    assert random[:4].sum() == 0
    assert np.sum((random[4:MASK] - random[4:MASK].mean()) ** 2 / random[4:MASK].mean()) < 1150  # 994 +- 45
    places = np.bincount(masked.targets % length, minlength=length)
    assert np.sum((places - places.mean()) ** 2 / places.mean()) < 180  # 127 +- 16


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(20, 80), count=st.integers(1, 19))
def test_whole_words_are_taken_whole_but_for_the_last(seed: int, length: int, count: int) -> None:
    tokens, documents = _windows(seed, 3, length)
    tokenizer = _tokenizer()
    masked = Masker(tokenizer, count, True, 5).mask(tokens, np.arange(3), documents)
    chosen = np.zeros(tokens.size, np.bool_)
    chosen[masked.targets] = True
    for row in range(3):
        partial = 0
        for word in _words(tokens.reshape(-1), documents, tokenizer, row * length, length):
            taken = chosen[word]
            if taken.any() and not taken.all():
                partial += 1
                assert not np.any(np.diff(taken.astype(int)) > 0)  # its first pieces
        assert partial <= 1


def _words(flat: np.ndarray, documents: np.ndarray, tokenizer: SimpleNamespace, start: int, length: int) -> list[list[int]]:
    words: list[list[int]] = []
    previous = None
    for place in range(start, start + length):
        if tokenizer.special[flat[place]]:
            previous = None
            continue
        if previous is None or place in documents or tokenizer.word_begin[flat[place]]:
            words.append([])
        words[-1].append(place)
        previous = place
    return [part for word in words for part in ([word] if len(word) <= LONGEST_WORD else [[place] for place in word])]


def test_script_without_spaces_is_masked_piece_by_piece() -> None:
    tokens = np.full((50, 64), 600)  # no word begins anywhere
    masked = Masker(_tokenizer(), 10, True, 5).mask(tokens, np.arange(50), np.arange(50) * 64)
    assert np.array_equal(np.bincount(masked.targets // 64), np.full(50, 10))
    gaps = np.diff(masked.targets.reshape(50, 10), axis=1)
    assert np.mean(gaps > 1) > 0.5


@settings(max_examples=60, deadline=None)
@CASES
def test_spans_have_exact_counts_and_do_not_depend_on_the_batch(
    seed: int, windows: int, length: int, share: float, whole_words: bool
) -> None:
    tokens, documents = _windows(seed, windows, length)
    count, tokenizer = max(1, round(share * length)), _tokenizer()
    masker = Masker(tokenizer, count, whole_words, 5, MaskRule(span_p=0.2, span_max=6))
    masked = masker.mask(tokens, np.arange(windows), documents)
    eligible = ~tokenizer.special[tokens]
    assert np.array_equal(np.bincount(masked.targets // length, minlength=windows), np.minimum(count, eligible.sum(axis=1)))
    assert np.all(eligible.reshape(-1)[masked.targets])
    last = windows - 1
    own = documents[documents >= last * length] - last * length
    alone = masker.mask(tokens[last:], np.array([last]), own)
    assert np.array_equal(alone.inputs[0], masked.inputs[last])


def test_lengths_of_spans_are_spanberts_and_a_span_is_replaced_as_one() -> None:
    rule = MaskRule(span_p=0.2, span_max=10)
    shares = np.diff(np.concatenate([[0.0], rule.lengths().astype(np.float64) / 2.0**63, [1.0]]))
    assert float((shares * np.arange(1, 11)).sum()) == pytest.approx(3.8, abs=0.01), "SpanBERT's mean"
    tokens = np.full((400, 64), 10)
    masked = Masker(_tokenizer(), 4, False, 5, rule).mask(tokens, np.arange(400), np.arange(400) * 64)
    neighbours = np.flatnonzero(np.diff(masked.targets) == 1)
    hidden = masked.inputs.reshape(-1)[masked.targets] == MASK
    assert (hidden[neighbours] == hidden[neighbours + 1]).mean() > 0.9, "0.68 if each token were drawn by itself"


def test_shares_of_what_the_model_sees() -> None:
    tokens = np.full((300, 64), 10)
    rule = MaskRule(masked_share=0.5, random_share=0.5)
    masked = Masker(_tokenizer(), 32, False, 5, rule).mask(tokens, np.arange(300), np.arange(300) * 64)
    seen = masked.inputs.reshape(-1)[masked.targets]
    assert (seen == MASK).mean() == pytest.approx(0.5, abs=0.02)
    assert (seen == 10).mean() < 0.01
