"""The held-out loss inside training: its figure, its sample, what it leaves alone, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation import probe as probe_module
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss, read_sample
from dist_metaxlm.evaluation.measures.bits import FrequencyTable, bits_per_byte, piece_bytes, token_counts
from dist_metaxlm.evaluation.measures.perplexity import masked_perplexity
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel.groups import Groups
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.loop.heldout import HeldoutMeter, masked_losses

CPU = torch.device("cpu")
INTERVAL = "training.heldout_interval=2"


class Engine:
    """As much of an engine as the measurement needs."""

    device = CPU

    def __init__(self, recipe):
        self.module = PretrainingModel(Encoder(recipe.model, recipe.seed))


@pytest.fixture
def recipe(tiny_recipe):
    return load_recipe(tiny_recipe, ["model.dropout=0.3", INTERVAL])


@pytest.fixture
def tokenizer(tiny_recipe):
    return Tokenizer.load(tiny_recipe.parent / "data" / "tokenizer.model")


def figures_of(engine, recipe, phase):
    return HeldoutMeter(engine, 2, HeldoutLoss(recipe, phase)).at(2, False)["heldout"]


def test_it_is_the_likelihood_of_the_hidden_tokens_over_their_bytes(recipe, tokenizer):
    engine = Engine(recipe)
    measured = figures_of(engine, recipe, "cross")
    sample = read_sample(Path(recipe.data.directory) / "heldout", tokenizer, 32, recipe.training.heldout_tokens)
    assert list(sample) == ["en", "de", "el"]
    for code, sentences in sample.items():
        hidden = [sentence.ids[place] for sentence in sentences for place in sentence.hidden]
        perplexity = masked_perplexity(engine.module.encoder, sentences, tokenizer.mask_id, 32)
        text = "".join(tokenizer.pieces()[token] for token in hidden).replace("▁", " ")
        expected = math.log2(perplexity) * len(hidden) / len(text.encode("utf-8"))
        assert measured["languages"][code] == pytest.approx(expected, rel=1e-6)
    assert measured["bits_per_byte"] == pytest.approx(sum(measured["languages"].values()) / 3)


def test_the_sample_is_that_of_every_phase_and_seed(recipe):
    other = recipe.model_copy(update={"seed": recipe.seed + 1})
    engine = Engine(recipe)
    meta, cross, reseeded = (figures_of(engine, r, p) for r, p in ((recipe, "meta"), (recipe, "cross"), (other, "meta")))
    assert meta["sample"] == cross["sample"] == reseeded["sample"]
    assert meta["languages"] == cross["languages"] == reseeded["languages"]
    assert meta["bits_per_byte"] == meta["languages"]["en"], "meta trains on English only"
    fewer = recipe.model_copy(update={"training": recipe.training.model_copy(update={"heldout_tokens": 256})})
    assert HeldoutLoss(fewer, "meta").sample != meta["sample"]


def test_half_of_a_small_sample_is_english(recipe, tokenizer):
    sample = read_sample(Path(recipe.data.directory) / "heldout", tokenizer, 32, 256)
    tokens = {code: sum(len(sentence.ids) + 2 for sentence in of) for code, of in sample.items()}
    assert 100 < tokens["en"] < 160
    assert 40 < tokens["de"] < 90
    assert 40 < tokens["el"] < 90


def test_word_frequencies_are_those_of_the_phases_training_text(recipe, tokenizer):
    engine = Engine(recipe)
    meta, cross = (figures_of(engine, recipe, phase) for phase in ("meta", "cross"))
    tokens = TokenStore.open(Path(recipe.data.directory) / "store").text("en").tokens
    counts = np.bincount(tokens[~tokenizer.special[tokens]], minlength=tokenizer.vocab_size)
    sample = read_sample(Path(recipe.data.directory) / "heldout", tokenizer, 32, recipe.training.heldout_tokens)
    hidden = [sentence.ids[place] for sentence in sample["en"] for place in sentence.hidden]
    nats = -np.log((counts[hidden] + 1) / (counts.sum() + tokenizer.vocab_size)).sum()
    assert meta["word_frequencies"] == pytest.approx(bits_per_byte(nats, piece_bytes(tokenizer)[hidden].sum()))
    assert set(meta["language_word_frequencies"]) == {"en"}
    assert set(cross["language_word_frequencies"]) == {"en", "de", "el"}
    # cross reads translations too
    assert cross["language_word_frequencies"]["en"] != meta["language_word_frequencies"]["en"]
    assert 0.5 < meta["word_frequencies"] < meta["bits_per_byte"], "an untrained model knows no frequencies"


def test_counts_of_pairs_are_taken_by_side(recipe, tokenizer):
    store = TokenStore.open(Path(recipe.data.directory) / "store")
    corpus = store.bitext("en-de")
    counts = token_counts(store, tokenizer, ["en", "de"], ["en-de"])
    alone = token_counts(store, tokenizer, ["en", "de"], [])
    added = sum(int((counts[code] - alone[code]).sum()) for code in ("en", "de"))
    assert added == int((~tokenizer.special[np.asarray(corpus.tokens)]).sum())
    assert token_counts(store, tokenizer, ["xx"]) == {}


def test_the_most_frequent_words_begin_a_word(tokenizer):
    counts = np.arange(tokenizer.vocab_size)
    table = FrequencyTable(counts, tokenizer)
    best = table.most_frequent(3)
    assert best == sorted(best, reverse=True)
    assert all(tokenizer.pieces()[token][0] == "▁" and tokenizer.pieces()[token][1:].isalpha() for token in best)


def test_it_leaves_the_model_and_the_generator_as_they_were(recipe):
    engine = Engine(recipe)
    engine.module.train()
    before, state = [p.clone() for p in engine.module.parameters()], torch.get_rng_state()
    first, second = (figures_of(engine, recipe, "joint")["languages"] for _ in range(2))
    assert first == second, "dropout was on"
    assert all(module.training for module in engine.module.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(engine.module.parameters(), before, strict=True))


def test_ranks_share_the_sample_and_step_together(recipe, monkeypatch):
    engine = Engine(recipe)
    engine.module.eval()
    whole = HeldoutLoss(recipe, "cross")._nats(lambda *asked: masked_losses(engine, *asked), CPU)
    calls, parts = [], []
    for rank in range(3):
        place = Groups(0, 1, rank, 3)
        monkeypatch.setattr(probe_module, "groups", lambda place=place: place)
        monkeypatch.setattr("dist_metaxlm.evaluation.heldout_loss.groups", lambda place=place: place)
        read = []
        parts.append(
            HeldoutLoss(recipe, "cross")._nats(
                lambda *asked, read=read: read.append(1) or masked_losses(engine, *asked), CPU
            )
        )
        calls.append(len(read))
    assert calls[0] == calls[1] == calls[2]
    assert [sum(of) for of in zip(*parts, strict=True)] == pytest.approx(whole, rel=1e-5)
    assert sum(any(of) for of in parts) > 1, "one rank read everything"


def test_it_comes_every_so_many_steps_and_at_the_end(recipe):
    engine = Engine(recipe)
    meter = HeldoutMeter(engine, 4, lambda read, device: {"bits_per_byte": 1.5, "sample": "s"})
    assert [step for step in range(1, 11) if meter.at(step, step == 10)] == [4, 8, 10]
    assert meter.facts(10) == {"heldout": {"bits_per_byte": 1.5, "sample": "s"}}
    assert meter.facts(11) == {}
    assert HeldoutMeter(engine, 0, None).at(10, True) == {}


def test_without_held_out_text_it_is_refused(recipe, tmp_path, tokenizer):
    (tmp_path / "heldout").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    moved = recipe.model_copy(update={"data": recipe.data.model_copy(update={"directory": str(tmp_path)})})
    with pytest.raises(UserError, match=r"heldout_interval 2 needs held-out text in a language of phase meta, and .* none"):
        HeldoutLoss(moved, "meta")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.heldout_interval=3"], "heldout_interval 3 is not a multiple of log_interval 2; nearest: 4"),
        (["training.keep_best=true"], "keep_best needs a held-out loss, and heldout_interval is 0"),
        (
            ["training.keep_best=true", "training.heldout_interval=8"],
            "checkpoint_interval 4 is not a multiple of heldout_interval 8",
        ),
        (["training.heldout_tokens=5"], "heldout_tokens"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(tiny_recipe, overrides, words):
    with pytest.raises(UserError, match=words):
        load_recipe(tiny_recipe, overrides)
