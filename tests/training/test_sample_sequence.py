"""What the ranks of a run read, together, is the sample function's sequence: for any store, mix and number of ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.recipe.schema import PhaseConfig
from dist_metaxlm.training.loop.batches import batches

LENGTH, STEPS, VOCAB = 32, 12, 3000
TOKENIZER = SimpleNamespace(
    hash="ab",
    path=Path("t.model"),
    vocab_size=VOCAB,
    mask_id=VOCAB - 1,
    special=np.isin(np.arange(VOCAB), [0, 1, 2, 3, VOCAB - 1]),
    word_begin=np.arange(VOCAB) % 2 == 0,
)


class _Corpus:
    """Documents of random words; of two sequences each where `pairs`."""

    def __init__(self, seed: int, documents: int, pairs: bool) -> None:
        generator = np.random.default_rng(seed)
        sizes = generator.integers(4, 14, documents) + (0 if pairs else 40)
        self.document_starts = np.concatenate([[0], np.cumsum(sizes)])
        self.second_starts = self.document_starts[:-1] + sizes // 2
        self.tokens = generator.integers(4, VOCAB - 1, self.document_starts[-1]).astype(np.uint16)

    def __len__(self) -> int:
        return len(self.document_starts) - 1


@st.composite
def runs(draw: st.DrawFn) -> tuple[SimpleNamespace, PhaseConfig]:
    """A store of a few languages, some with two sources, and a phase with any of the mix's features."""
    text, corpora = {}, {}
    languages = ["de", "en", "sw", "yo"][: draw(st.integers(2, 4))]
    for number, language in enumerate(languages):
        for source in ("", ".web")[: draw(st.integers(1, 2))]:
            name = f"{language}{source}"
            text[name] = {"language": language, "weight": draw(st.sampled_from([0.5, 1.0, 3.0]))} if source else {}
            corpora[name] = _Corpus(number, draw(st.integers(3, 60)), pairs=False)
    bitext = {"de-en": _Corpus(9, draw(st.integers(1, 80)), pairs=True), "en-sw": _Corpus(8, 40, pairs=True)}
    store = SimpleNamespace(
        tokenizer_hash="ab", manifest={"text": text}, pairs=sorted(bitext), text=corpora.get, bitext=bitext.get
    )
    taken = STEPS * 12 * LENGTH
    points = st.lists(st.tuples(st.integers(0, taken), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=3)
    schedule = [{"tokens": tokens, "alpha": alpha} for tokens, alpha in draw(points)]
    windows = sum(len(corpus.tokens) // LENGTH for corpus in corpora.values())
    fields = {
        "steps": STEPS,
        "sequence_length": LENGTH,
        "learning_rate": {"peak": 1e-3},
        "alpha": schedule,
        "pair_alpha": draw(st.sampled_from([0.3, schedule])),
        "mixing": draw(st.sampled_from(["sum", "draw"])),
        # what the caps leave lasts for the phase, just or amply
        "max_repetitions": draw(st.sampled_from([None, STEPS * 8 / windows * 1.1 + 1, 100.0])),
        "objectives": [
            {"name": "mlm", "batch_tokens": 8 * LENGTH},
            {"name": "tlm", "batch_tokens": 4 * LENGTH},
            {"name": "contrast", "pairs": 8, "group": 8, "layer": 1, "max_tokens": 10},
        ],
    }
    late = draw(st.sampled_from([[], languages[3:], languages[2:3]]))
    if late and fields["max_repetitions"] in (None, 100.0):
        fields["unlock"] = [{"tokens": draw(st.integers(1, taken)), "languages": late}]
    return store, PhaseConfig.model_validate(fields)


def read(data: PhaseData, phase: PhaseConfig, first: int, last: int, ranks: int, micro: int | None) -> list[PackedBatch]:
    """The batches of steps first .. last - 1 of all ranks, step after step, rank after rank."""
    plans = [StepPlan(phase, "cross", 7, rank, ranks, micro) for rank in range(ranks)]
    streams = [batches(plan, data, first, last, torch.device("cpu")) for plan in plans]
    return [
        next(stream)
        for step in range(first, last)
        for plan, stream in zip(plans, streams, strict=True)
        for _ in plan.at(step)
    ]


def windows_of(batches: list[PackedBatch], contrast: bool) -> dict[int, tuple[int, ...]]:
    """Sample number -> its tokens, of the batches with targets (mlm and tlm) or of contrast's."""
    found: dict[int, tuple[int, ...]] = {}
    for batch in batches:
        if (batch.pairs is not None) == contrast:
            for number, row in zip(batch.samples.tolist(), batch.tokens.view(-1, batch.window).tolist(), strict=True):
                found[number] = tuple(row)
    return found


@settings(max_examples=20, deadline=None)
@given(run=runs())
def test_ranks_together_read_the_sequence_and_resuming_on_others_goes_on_with_it(
    run: tuple[SimpleNamespace, PhaseConfig],
) -> None:
    store, phase = run
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)  # type: ignore[arg-type]
    resumed = [
        *read(data, phase, 0, 5, 1, None),
        *read(PhaseData(store, TOKENIZER, "cross", phase, 7), phase, 5, 8, 2, 2 * LENGTH),  # type: ignore[arg-type]
        *read(PhaseData(store, TOKENIZER, "cross", phase, 7), phase, 8, STEPS, 4, LENGTH),
    ]  # type: ignore[arg-type]
    plan = StepPlan(phase, "cross", 7, 0, 1, None)
    taken = {objective.name: 0 for objective in phase.objectives}
    for step in range(STEPS):
        for objective, _, turn in plan.objectives_at(step):
            taken[objective.name] = (turn + 1) * (8 if objective.name != "tlm" else 4)
    mlm, tlm, contrast = phase.objectives
    for number, objective in enumerate((mlm, tlm)):
        own = [batch for batch in resumed if batch.pairs is None and _is_tlm(batch, store) == bool(number)]
        expected = data.batch(objective, 0, taken[objective.name]) if taken[objective.name] else None
        assert sorted(windows_of(own, False)) == list(range(taken[objective.name]))
        assert sum(batch.samples.numel() for batch in own) == taken[objective.name]  # none twice
        if expected is not None:
            assert windows_of(own, False) == windows_of([expected], False)
    pairs = sum(batch.pairs.shape[0] for batch in resumed if batch.pairs is not None)
    assert pairs == taken[contrast.name]


def _is_tlm(batch: PackedBatch, store: SimpleNamespace) -> bool:
    """Text documents have 44 tokens and more, pairs 13 at most; so a window of text has two documents at most."""
    return batch.cu_seqlens.numel() - 1 > 2 * batch.samples.numel() or bool((batch.tokens == 1).any())


@settings(max_examples=20, deadline=None)
@given(run=runs())
def test_each_window_once_an_epoch_and_prefixes_of_the_mix_within_a_block(run: tuple[SimpleNamespace, PhaseConfig]) -> None:
    store, phase = run
    data = PhaseData(store, TOKENIZER, "cross", phase, 7)  # type: ignore[arg-type]
    mlm, total = phase.objectives[0], 2048
    text = data._sources["mlm"]
    source, ordinal = text.mixture.lookup(np.arange(total))
    starts = text._windows.locate(source, ordinal)
    for number, name in enumerate(text._corpora):
        tokens = len(store.text(name).tokens)
        count, mine = tokens // LENGTH, source == number
        for epoch in range(int(mine.sum()) // count):
            shown = np.sort(starts[mine & (ordinal // count == epoch)])
            # the order within a block is free, so the last epochs may have gaps; a complete one is a grid on the ring
            if len(shown) == count:
                assert np.all(np.diff(shown) >= LENGTH)
                assert shown[0] + tokens - shown[-1] >= LENGTH
        assert len(np.unique(ordinal[mine])) == mine.sum()
    batch = data.batch(mlm, 0, total)
    shown = batch.tokens.clone()
    shown[batch.targets] = batch.target_tokens
    for sample in range(0, total, 97):
        corpus, runs_of = data.origin(mlm, sample)
        assert corpus == text._corpora[source[sample]]
        assert runs_of[0] == (0, starts[sample])
        assert shown[sample * LENGTH] == store.text(corpus).tokens[starts[sample]]
    for end in (1, 100, 1024, total):
        realised = torch.bincount(batch.languages[:end], minlength=len(data.languages)).numpy()
        asked = np.array(list(data.asked_so_far("mlm", end).values())) * end
        assert np.abs(realised - asked).max() < 1024
