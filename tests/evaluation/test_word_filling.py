"""Which words are hidden, how guesses are counted, and which examples are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.evaluation.baselines import overlap_retrieval, run_baselines
from dist_metaxlm.evaluation.measures.bits import FrequencyTable
from dist_metaxlm.evaluation.measures.perplexity import MaskedSentence
from dist_metaxlm.evaluation.word_filling import (
    Guess,
    _guesses,
    choose_examples,
    fill_mask_accuracy,
    guess_words,
    hide_words,
    score,
    table_accuracy,
)
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import load_recipe


@pytest.fixture
def recipe(tiny_recipe):
    return load_recipe(tiny_recipe)


@pytest.fixture
def heldout(tiny_recipe):
    return tiny_recipe.parent / "data" / "heldout"


@pytest.fixture
def tokenizer(tiny_recipe):
    return Tokenizer.load(tiny_recipe.parent / "data" / "tokenizer.model")


def test_whole_words_are_hidden_one_in_a_text(heldout, tokenizer):
    words = hide_words(heldout, tokenizer, 32)
    pieces = tokenizer.pieces()
    assert set(words) == {"en", "de", "el"}
    for sentence in (sentence for of in words.values() for sentence in of):
        [place] = sentence.hidden
        assert pieces[sentence.ids[place]][0] == "▁"
        assert pieces[sentence.ids[place]][1:].isalpha()
        after = pieces[sentence.ids[place + 1]] if place + 1 < len(sentence.ids) else "▁"
        assert after[0] == "▁" or not after[0].isalnum()
    assert hide_words(heldout, tokenizer, 32) == words
    fewer = hide_words(heldout, tokenizer, 32, 8)
    assert {code: len(of) for code, of in fewer.items()} == {"en": 8, "de": 4, "el": 4}


def test_a_tie_does_not_count_for_the_model():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 1.0, 2.0, -1.0, 0.5]])
    first, second = _guesses(logits, torch.tensor([0, 2]))
    assert (first.rank, second.rank) == (5, 2)
    assert second.probability == pytest.approx(float(logits[1].softmax(0)[2]))
    assert [token for token, _ in second.tokens] == [1, 3, 2, 5, 0]


def test_guesses_are_those_of_each_sentence_alone(recipe, heldout, tokenizer):
    encoder = Encoder(recipe.model, 5)
    sentences = hide_words(heldout, tokenizer, 32)["de"]
    together = guess_words(encoder, sentences, tokenizer.mask_id, 32)
    for sentence, guess in zip(sentences, together, strict=True):
        [alone] = guess_words(encoder, [sentence], tokenizer.mask_id, 32)
        assert alone.rank == guess.rank
        assert alone.probability == pytest.approx(guess.probability, rel=1e-4)


def test_the_score_is_the_share_of_ranks():
    result = score({"en": [0, 4, 5, 9], "de": [0], "fr": [3, 7, 8]})
    assert result["en"] == {"words": 4, "top1": 0.25, "top5": 0.5}
    assert result["others"] == {"words": 4, "top1": 0.25, "top5": 0.5}
    assert result["languages"]["fr"] == {"words": 3, "top1": 0.0, "top5": pytest.approx(1 / 3)}
    assert score({})["en"] is None


def test_a_table_guesses_its_most_frequent_words(tokenizer):
    begins = [n for n, piece in enumerate(tokenizer.pieces()) if piece[0] == "▁" and piece[1:].isalpha()][:7]
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    counts[begins] = np.arange(7, 0, -1)
    table = FrequencyTable(counts, tokenizer)
    words = {"en": [MaskedSentence([token, 5, 6], [0]) for token in begins], "xx": [MaskedSentence([7, 8, 9], [1])]}
    result = table_accuracy({"en": table}, words)
    assert result["en"] == {"words": 7, "top1": pytest.approx(1 / 7), "top5": pytest.approx(5 / 7)}
    assert result["others"] == {"words": 1, "top1": 0.0, "top5": 0.0}


def test_examples_are_the_surest_right_ones_and_random_ones(heldout, tokenizer):
    words = hide_words(heldout, tokenizer, 32)
    guesses = {
        code: [Guess(n % 3, 1 / (n + 2), [(sentence.ids[0], 0.5)]) for n, sentence in enumerate(of)]
        for code, of in words.items()
    }
    examples = choose_examples(words, guesses, tokenizer)
    assert [example["chosen"] for example in examples] == ["highest probability"] * 4 + ["random"] * 2
    assert [example["language"] == "en" for example in examples] == [True, True, False, False, True, False]
    assert {examples[2]["language"], examples[3]["language"]} == {"de", "el"}, "one of each language"
    assert examples[0]["expected"] != examples[1]["expected"]
    for example in examples:
        assert example["text"].count("<mask>") == 1
        assert "  " not in example["text"]
        whole = example["text"].replace("<mask>", example["expected"])
        assert any(tokenizer.decode(sentence.ids) == whole for sentence in words[example["language"]])


def test_accuracy_is_ready_for_json(recipe, heldout, tokenizer):
    words = hide_words(heldout, tokenizer, 32, 10)
    result = fill_mask_accuracy(Encoder(recipe.model, 5), tokenizer, words, 32)
    assert result["en"]["words"] == 10
    assert set(result) == {"en", "others", "languages", "examples"}


def test_baselines_are_measured_once(recipe, heldout, tokenizer, tmp_path, monkeypatch):
    data = Path(recipe.data.directory)
    first = run_baselines(tmp_path, data, tokenizer, 32, 10)
    assert first["chance"] == pytest.approx(np.mean([1 / of["candidates"] for of in first["overlap"]["retrieval"].values()]))
    assert 0 < first["overlap"]["mean_p_at_1"] < 1
    assert set(first["frequencies"]["perplexity"]) == {"en", "de", "el"}
    assert 1 < first["frequencies"]["perplexity"]["en"] < tokenizer.vocab_size
    monkeypatch.setattr("dist_metaxlm.evaluation.baselines.overlap_retrieval", None)
    assert run_baselines(tmp_path, data, tokenizer, 32, 10) == first
    with pytest.raises(TypeError):
        run_baselines(tmp_path, data, tokenizer, 32, 11)


def test_without_a_store_there_is_no_table(recipe, heldout, tokenizer, tmp_path):
    (tmp_path / "heldout").symlink_to(heldout)
    assert run_baselines(tmp_path / "run", tmp_path, tokenizer, 32, 10)["frequencies"] is None


def test_overlap_finds_sentences_that_share_rare_tokens(tokenizer):
    class Numbers:
        vocab_size = 50

        def encode_batch(self, texts):
            return [[int(word) for word in text.split()] for text in texts]

    rows = [
        {"en": "1 2 10", "xx": "3 4 10"},
        {"en": "1 2 11", "xx": "3 4 11"},
        {"en": "1 2 12", "xx": "3 4 13"},
        {"en": "1 2 14", "xx": "3 4 15"},
    ]
    result = overlap_retrieval(rows, Numbers(), 16, 4)["xx"]
    # The last two share nothing: all candidates are equal, and the first one is taken.
    assert (result["to_english"], result["from_english"], result["counted"]) == (0.5, 0.5, True)
