"""From a phase's fields to its mix: tokens become samples, repetitions windows, and refusals are in words."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest

from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.phase_mix import language_mix, pair_mix, samples_per_token
from dist_metaxlm.data.sources import part_weights, text_sources
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import PhaseConfig

LENGTH = 32


def phase(**changes: object) -> PhaseConfig:
    fields = {
        "steps": 100,
        "sequence_length": LENGTH,
        "learning_rate": {"peak": 1.0},
        "objectives": [
            {"name": "mlm", "batch_tokens": 8 * LENGTH},
            {"name": "tlm", "batch_tokens": 4 * LENGTH},
            {"name": "contrast", "pairs": 6, "group": 6, "layer": 1, "max_tokens": 8},
        ],
    }
    return PhaseConfig.model_validate({**fields, **changes})


def test_tokens_of_the_phase_become_samples_of_each_objective() -> None:
    assert samples_per_token(phase(), "mlm") == Fraction(8, 12 * LENGTH)
    assert samples_per_token(phase(), "contrast") == Fraction(6, 12 * LENGTH)
    config = phase(
        alpha=[{"tokens": 0, "alpha": 0.7}, {"tokens": 1200 * LENGTH, "alpha": 0.3}],
        unlock=[{"tokens": 600 * LENGTH, "languages": ["sw"]}],
        max_repetitions=2.5,
        pair_alpha=[{"tokens": 240 * LENGTH, "alpha": 0.1}],
    )
    mix = language_mix(config, "mlm", ["en", "sw"], [[64_000, 33], [32_010]], [[3, 1], [1]])
    assert mix.counts == [64_033, 32_010]
    assert mix.schedule == [(0, 0.7), (800, 0.3)]
    assert mix.unlocks == [0, 400]
    assert mix.limits == [int(2.5 * 2001), int(2.5 * 1000)]
    assert mix.samples == 800
    pairs = pair_mix(config, "contrast", ["de-en", "en-sw"], [50, 70], [50, 70])
    assert pairs.schedule == [(120, 0.1)]
    assert pairs.unlocks == [0, 300]
    assert pairs.limits is None


def test_repetitions_that_cannot_fill_the_phase_name_its_longest_length() -> None:
    with pytest.raises(
        UserError,
        match=re.escape(
            "there are 960 tokens of text in languages en, sw; with max_repetitions 4.0 what is unlocked lasts for 15 steps "
            "or 5,760 tokens, and the phase has 100 steps; set it to that length at most, raise max_repetitions, or add "
            "text"
        ),
    ):
        language_mix(phase(max_repetitions=4.0), "mlm", ["en", "sw"], [[640], [320]], [[1], [1]])
    language_mix(phase(max_repetitions=4.0, steps=15), "mlm", ["en", "sw"], [[640], [320]], [[1], [1]])
    with pytest.raises(UserError, match="contrast: there are 20 pairs of translations in de-en; with pair_max_repetitions"):
        pair_mix(phase(pair_max_repetitions=1.0), "contrast", ["de-en"], [20], [20])


def test_shares_of_all_languages_are_refused_because_they_cannot_hold() -> None:
    fixed = phase(shares={"en": 0.5, "sw": 0.1})
    with pytest.raises(UserError, match=r"shares gives every language of the phase a share, 0\.6 together"):
        language_mix(fixed, "mlm", ["en", "sw"], [[640], [320]], [[1], [1]])
    shares = Mixture(language_mix(fixed, "mlm", ["en", "sw", "yo"], [[640], [320], [64]], [[1], [1], [1]]), 1).shares(0)
    assert shares == pytest.approx([0.5, 0.1, 0.4])


def test_a_phase_that_begins_with_nothing_unlocked_is_refused() -> None:
    locked = phase(unlock=[{"tokens": 64 * LENGTH, "languages": ["en"]}])
    with pytest.raises(UserError, match="tlm: all translations in de-en is locked at the start"):
        pair_mix(locked, "tlm", ["de-en"], [20], [20])
    with pytest.raises(ValueError, match="unlock leaves no language for the start"):
        phase(languages=["en"], unlock=[{"tokens": 5, "languages": ["en"]}])
    with pytest.raises(ValueError, match="unlock names sw, which is not in languages"):
        phase(languages=["en"], unlock=[{"tokens": 5, "languages": ["sw"]}])
    with pytest.raises(ValueError, match="unlock names sw twice"):
        phase(unlock=[{"tokens": 5, "languages": ["sw"]}, {"tokens": 7, "languages": ["sw"]}])
    with pytest.raises(ValueError, match=r"pair_alpha 1\.5 is not between 0"):
        phase(pair_alpha=1.5)


def test_sources_from_the_manifest() -> None:
    sources = text_sources({"en.web": {"language": "en"}, "de": {}, "en.books": {"language": "en", "weight": 2.5}})
    assert {name: [source.corpus for source in parts] for name, parts in sources.items()} == {
        "de": ["de"],
        "en": ["en.books", "en.web"],
    }
    books, web = part_weights(sources["en"], [1000, 500])
    assert books == 5 * web
    small = text_sources({"en.web": {"language": "en", "weight": 0.0001}, "en.wiki": {"language": "en", "weight": 0.0004}})
    web, wiki = part_weights(small["en"], [1000, 500])
    assert wiki == 2 * web
    assert sources["en"][0].title == "source en.books of language en"
    assert sources["de"][0].title == "language de"


def test_the_annealed_recipe_shows_what_it_unlocks() -> None:
    config = load_recipe("annealed").phases["cross"]
    assert config.languages != "all"
    tokens = [[10**12 // (number + 1)] for number in range(len(config.languages))]
    mixture = Mixture(language_mix(config, "mlm", config.languages, tokens, [[1]] * len(tokens)), 1)
    rate = samples_per_token(config, "mlm")
    for point, shown in zip([0, *(point.tokens for point in config.unlock)], [20, 40, 60], strict=True):
        shares = mixture.shares(int((point + 2 * 10**9) * rate))
        assert np.count_nonzero(shares) == shown
        assert shares.sum() == pytest.approx(1.0)
    # flatter from stage to stage
    assert mixture.shares(0)[0] > mixture.shares(int((config.unlock[1].tokens + 2 * 10**9) * rate))[0]
