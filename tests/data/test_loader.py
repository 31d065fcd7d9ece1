"""The data of a phase: batches by sample number, the same however they are split, with the store's own text in them."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.store.writer import write_bitext, write_text
from dist_metaxlm.recipe.schema import PhaseConfig

VOCAB = 3000
LENGTH = 32
HASH = "ab" * 32


class _Tokenizer:
    """Words are ids: the text "17 230" is the tokens 17 and 230."""

    hash = HASH
    path = Path("tokenizer.model")
    vocab_size = VOCAB
    mask_id = VOCAB - 1
    special = np.isin(np.arange(VOCAB), [0, 1, 2, 3, VOCAB - 1])
    word_begin = np.arange(VOCAB) % 2 == 0

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [[0, *map(int, text.split()), 2] for text in texts]
        return np.concatenate([np.array(row, np.int32) for row in rows]), np.array([len(row) for row in rows])


TOKENIZER = _Tokenizer()


def _texts(seed: int, count: int, longest: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(map(str, generator.integers(4, VOCAB - 1, generator.integers(1, longest)))) for _ in range(count)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A real store: three languages of very different size, two language pairs."""
    folder = tmp_path_factory.mktemp("store")
    sizes = {"de": 120, "en": 900, "sw": 12}
    for number, (language, documents) in enumerate(sizes.items()):
        write_text(folder / language, _texts(number, documents, 60), TOKENIZER)
    for number, pair in enumerate(("de-en", "en-sw")):
        count = 300 - 200 * number
        sides = zip(_texts(number, count, 12), _texts(number + 10, count, 12), strict=True)
        write_bitext(folder / pair, sides, TOKENIZER, 64, {})
    manifest.write(
        folder,
        {
            "tokenizer_hash": HASH,
            "vocab_size": VOCAB,
            "text": {language: {} for language in sizes},
            "bitext": {"de-en": {}, "en-sw": {}},
        },
    )
    return TokenStore.open(folder)


def _phase(**changes: object) -> PhaseConfig:
    objectives = [
        {"name": "mlm", "batch_tokens": 8 * LENGTH},
        {"name": "tlm", "batch_tokens": 4 * LENGTH},
        {"name": "contrast", "pairs": 16, "group": 8, "layer": 1, "max_tokens": 10},
    ]
    fields = {"steps": 10, "sequence_length": LENGTH, "objectives": objectives, "learning_rate": {"peak": 1e-3}}
    return PhaseConfig(**{**fields, **changes})


def _sentences(batch: PackedBatch) -> list[tuple[list[int], list[int], int]]:
    assert batch.pairs is not None
    assert batch.pair_languages is not None
    bounds = batch.cu_seqlens.tolist()
    document = [batch.tokens[start:end].tolist() for start, end in zip(bounds, bounds[1:], strict=False)]
    return [
        (document[one], document[two], language)
        for (one, two), language in zip(batch.pairs.tolist(), batch.pair_languages.tolist(), strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 5000), parts=st.lists(st.integers(1, 9), min_size=1, max_size=5), whole_words=st.booleans())
def test_any_split_gives_the_whole_batch(store: TokenStore, first: int, parts: list[int], whole_words: bool) -> None:
    phase = _phase(whole_words=whole_words)
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    mlm, tlm, contrast = phase.objectives
    starts = [first + sum(parts[:number]) for number in range(len(parts))]
    for objective in (mlm, tlm):
        whole = data.batch(objective, first, sum(parts))
        pieces = [data.batch(objective, start, count) for start, count in zip(starts, parts, strict=True)]
        shifts = [(start - first) * LENGTH for start in starts]
        for name in ("tokens", "positions", "samples", "languages", "target_tokens"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
        shifted = [piece.targets + shift for piece, shift in zip(pieces, shifts, strict=True)]
        assert torch.equal(torch.cat(shifted), whole.targets)
        borders = [piece.cu_seqlens[:-1] + shift for piece, shift in zip(pieces, shifts, strict=True)]
        assert torch.equal(torch.cat(borders), whole.cu_seqlens[:-1])
    batches = [data.batch(contrast, start, count) for start, count in zip(starts, parts, strict=True)]
    whole = data.batch(contrast, first, sum(parts))
    assert [pair for batch in batches for pair in _sentences(batch)] == _sentences(whole)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_batches_are_well_formed(store: TokenStore, number: int) -> None:
    phase = _phase()
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    batch = data.batch(phase.objectives[number], 123, 40)
    total, bounds = batch.tokens.numel(), batch.cu_seqlens.to(torch.int64)
    assert batch.window == LENGTH
    assert total == LENGTH * batch.languages.numel()
    assert batch.cu_seqlens.dtype == torch.int32
    assert all(
        getattr(batch, name).dtype == torch.int64
        for name in ("tokens", "positions", "samples", "languages", "targets", "target_tokens")
    )
    assert bounds[0] == 0
    assert bounds[-1] == total
    assert bool((bounds[1:] > bounds[:-1]).all())
    assert set(range(0, total, LENGTH)) <= set(bounds.tolist())
    starts = bounds[batch.document_ids]
    assert torch.equal(batch.positions, torch.arange(total) - starts)
    if number == 2:
        assert torch.equal(batch.samples[batch.pairs], torch.arange(246, 326).view(40, 2))
        assert sorted(batch.samples[batch.samples >= 0].tolist()) == list(range(246, 326))
        assert batch.targets.numel() == 0
        assert batch.pairs is not None
        assert batch.pairs.shape == (40, 2)
    else:
        assert torch.equal(batch.samples, torch.arange(123, 163))
        assert not bool(torch.isin(batch.target_tokens, torch.tensor([0, 1, 2, 3, VOCAB - 1])).any())


def test_exact_target_counts(store: TokenStore) -> None:
    phase = _phase(mask_rate=0.2)
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    assert phase.targets_per_window == round(0.2 * LENGTH)
    batch = data.batch(phase.objectives[0], 0, 200)
    assert torch.bincount(batch.targets // LENGTH).tolist() == [phase.targets_per_window] * 200


def test_an_epoch_of_a_language_shows_its_text(store: TokenStore) -> None:
    """Unmasked windows of one epoch of Swahili are, put together, all but less than one window of its tokens."""
    phase = _phase(languages=["sw"], objectives=[{"name": "mlm", "batch_tokens": LENGTH}])
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    tokens = np.asarray(store.text("sw").tokens)
    count = len(tokens) // LENGTH
    batch = data.batch(phase.objectives[0], 0, count)
    shown = batch.tokens.clone()
    shown[batch.targets] = batch.target_tokens
    left = np.bincount(tokens, minlength=VOCAB) - np.bincount(shown.numpy(), minlength=VOCAB)
    assert left.min() >= 0
    assert left.sum() == len(tokens) - count * LENGTH


def test_realised_mix_follows_the_asked_one_and_its_schedule(store: TokenStore) -> None:
    alpha = [{"tokens": 0, "alpha": 1.0}, {"tokens": 12 * LENGTH * 1024, "alpha": 0.0}]
    phase = _phase(alpha=alpha)
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    # mlm takes 8 of the 12 windows of a step, so the point lies at its window 8 * 1024
    before, after = data.asked("mlm", 0), data.asked("mlm", 12 * LENGTH * 1024)
    assert list(before) == data.languages == ["de", "en", "sw"]
    assert before["en"] > 0.8
    assert after == dict.fromkeys(data.languages, pytest.approx(1 / 3))
    for start, asked in ((0, before), (8 * 1024, after)):
        languages = data.batch(phase.objectives[0], start, 1024).languages
        realised = torch.bincount(languages, minlength=3) / 1024
        assert np.allclose(realised, list(asked.values()), atol=3 / 1024)
    counts = np.array([300.0, 100.0]) ** 0.3
    assert list(data.asked("contrast", 10**9).values()) == pytest.approx((counts / counts.sum()).tolist())


def test_order_depends_on_seed_phase_and_objective(store: TokenStore) -> None:
    phase = _phase()
    mlm = phase.objectives[0]
    base = PhaseData(store, TOKENIZER, "cross", phase, 7).batch(mlm, 0, 16)
    assert torch.equal(base.tokens, PhaseData(store, TOKENIZER, "cross", phase, 7).batch(mlm, 0, 16).tokens)
    for name, seed in (("cross", 8), ("meta", 7)):
        assert not torch.equal(base.tokens, PhaseData(store, TOKENIZER, name, phase, seed).batch(mlm, 0, 16).tokens)


def test_threads_may_share_it(store: TokenStore) -> None:
    phase = _phase()
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    expected = [data.batch(phase.objectives[0], 8 * number, 8).tokens for number in range(20)]
    found: dict[int, torch.Tensor] = {}

    def read(offset: int) -> None:
        for number in range(offset, 20, 4):
            found[number] = data.batch(phase.objectives[0], 8 * number, 8).tokens

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(found[number], tokens) for number, tokens in enumerate(expected))


def test_pairs_have_both_sides_among_the_languages(store: TokenStore) -> None:
    assert PhaseData(store, TOKENIZER, "cross", _phase(), 7).pairs == ["de-en", "en-sw"]
    assert PhaseData(store, TOKENIZER, "cross", _phase(languages=["sw", "en"]), 7).pairs == ["en-sw"]
    with pytest.raises(UserError, match=r"both sides in languages \['de', 'sw'\].*de-en, en-sw.*add the missing side"):
        PhaseData(store, TOKENIZER, "cross", _phase(languages=["de", "sw"]), 7)


def test_only_what_the_objectives_need_is_opened(store: TokenStore) -> None:
    class NoPairs(SimpleNamespace):
        def text(self, language: str) -> object:
            return store.text(language)

    bare = NoPairs(tokenizer_hash=HASH, manifest={"text": {"en": {}}}, pairs=[])
    phase = _phase(objectives=[{"name": "mlm", "batch_tokens": LENGTH}])
    data = PhaseData(bare, TOKENIZER, "meta", phase, 7)
    assert data.pairs == []
    assert data.batch(phase.objectives[0], 0, 1).pairs is None
    with pytest.raises(UserError, match="the token store has no translations"):
        PhaseData(bare, TOKENIZER, "cross", _phase(), 7)


def test_user_errors(store: TokenStore) -> None:
    other = _Tokenizer()
    other.hash = "cd" * 32
    with pytest.raises(UserError, match=r"tokenizer abababababab, but tokenizer cdcdcdcdcdcd is given"):
        PhaseData(store, other, "cross", _phase(), 7)
    with pytest.raises(UserError, match=r"'swa' is not in the token store; it has de, en, sw; did you mean sw\?"):
        PhaseData(store, TOKENIZER, "cross", _phase(languages=["en", "swa"]), 7)
    with pytest.raises(UserError, match="languages is an empty list"):
        PhaseData(store, TOKENIZER, "cross", _phase(languages=[]), 7)
    long = _phase(sequence_length=4096, objectives=[{"name": "mlm", "batch_tokens": 4096}], languages=["en", "sw"])
    with pytest.raises(UserError, match=r"language sw has \d+ tokens, less than one window of sequence_length 4096"):
        PhaseData(store, TOKENIZER, "cross", long, 7)
    with pytest.raises(UserError, match=r"mask_rate 0.01 of sequence_length 32 is less than one target"):
        PhaseData(store, TOKENIZER, "cross", _phase(mask_rate=0.01), 7)


def test_sources_of_a_language_share_its_windows_and_are_reported_together(store: TokenStore) -> None:
    entries = {"en": {}, "x.one": {"language": "x", "weight": 3.0}, "x.two": {"language": "x"}}
    corpora = {"en": store.text("en"), "x.one": store.text("de"), "x.two": store.text("de")}
    named = SimpleNamespace(tokenizer_hash=HASH, manifest={"text": entries}, pairs=[], text=corpora.get)
    phase = _phase(objectives=[{"name": "mlm", "batch_tokens": LENGTH}], alpha=0.5)
    data = PhaseData(named, TOKENIZER, "cross", phase, 7)
    assert data.languages == ["en", "x"]
    total = 8 * 1024
    languages = data.batch(phase.objectives[0], 0, total).languages
    sizes = np.array([len(corpora["en"].tokens), 2 * len(corpora["x.one"].tokens)]) ** 0.5
    assert np.bincount(languages) / total == pytest.approx(sizes / sizes.sum(), abs=1e-3)
    assert list(data.asked_so_far("mlm", total).values()) == pytest.approx((sizes / sizes.sum()).tolist())
    taken = [data.origin(phase.objectives[0], sample)[0] for sample in range(0, 2048)]
    assert taken.count("x.one") / taken.count("x.two") == pytest.approx(3.0, rel=0.02)


def test_unlocks_take_a_pair_with_its_later_side(store: TokenStore) -> None:
    phase = _phase(unlock=[{"tokens": 12 * LENGTH * 1024, "languages": ["sw"]}])
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    for objective, name, block in zip(phase.objectives, ("sw", "en-sw", "en-sw"), (8, 4, 16), strict=True):
        assert data.asked(objective.name, 0)[name] == 0.0
        assert data.asked(objective.name, 12 * LENGTH * 1024)[name] > 0
        batch = data.batch(objective, 0, 512)
        late = (data.languages if objective.name == "mlm" else data.pairs).index(name)
        shown = batch.pair_languages if batch.pair_languages is not None else batch.languages
        assert late not in shown
        far = data.batch(objective, 1024 * block, 1024)
        assert late in (far.pair_languages if far.pair_languages is not None else far.languages)
    with pytest.raises(UserError, match=r"'swa' is not in the token store; .*did you mean sw\?"):
        PhaseData(store, TOKENIZER, "cross", _phase(unlock=[{"tokens": 5, "languages": ["swa"]}]), 7)


def test_origin_names_where_a_sample_stands_in_the_store(store: TokenStore) -> None:
    phase = _phase()
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)
    for objective in phase.objectives:
        for sample in range(0, 60, 7):
            corpus, runs = data.origin(objective, sample)
            opened = store.text(corpus) if objective.name == "mlm" else store.bitext(corpus)
            batch = data.batch(objective, sample, 1)
            shown = batch.tokens.clone()
            shown[batch.targets] = batch.target_tokens
            for place, source in runs:
                assert shown[place] == opened.tokens[source]
