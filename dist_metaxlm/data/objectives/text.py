"""Windows of text in the phase's languages: unmasked, or masked for masked language modelling."""

from __future__ import annotations

from typing import Generic

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import Config, DataSource, Opening, Origin, mask_rule
from dist_metaxlm.data.packing.documents import packed_batch
from dist_metaxlm.data.packing.windows import Windows
from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.data.sampling.phase_mix import language_mix
from dist_metaxlm.data.sources import part_weights


class TextSource(DataSource[Config], Generic[Config]):
    """Samples are windows of one language each."""

    def __init__(self, opening: Opening, objective: Config) -> None:
        """See `DataSource`."""
        keys, sources, phase = opening.keys(objective.name), opening.sources(), opening.phase
        flat = [source for parts in sources for source in parts]
        self.names = opening.languages
        self._corpora = [source.corpus for source in flat]
        corpora = [opening.store.text(name) for name in self._corpora]
        titles, length = [source.title for source in flat], phase.sequence_length
        self._windows = opening.once(("windows", keys, length), lambda: Windows(corpora, titles, length, keys))
        sizes = iter(len(corpus.tokens) for corpus in corpora)
        tokens = [[next(sizes) for _ in parts] for parts in sources]
        weights = [part_weights(parts, counts) for parts, counts in zip(sources, tokens, strict=True)]
        self.mixture = opening.once(
            ("mix", keys),
            lambda: Mixture(language_mix(opening.schedules, objective.name, self.names, tokens, weights), key(*keys, "mix")),
        )

    def read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([n, L] int64 tokens, [D] int64 first token of each document in the flat batch, [n] int64 languages)."""
        number, ordinal = self.mixture.lookup(samples)
        pieces = self._windows.pieces(number, self._windows.locate(number, ordinal))
        tokens, documents = self._windows.read(pieces, len(samples))
        return tokens, documents, self.mixture.owner[number]

    def batch(self, objective: Config, samples: np.ndarray) -> PackedBatch:
        """See `DataSource`: the windows without targets."""
        tokens, documents, languages = self.read(samples)
        return packed_batch(tokens, documents, samples, languages)

    def origin(self, sample: int) -> Origin:
        """See `DataSource`."""
        number, ordinal = self.locate(sample)
        pieces = self._windows.pieces(number, self._windows.locate(number, ordinal))
        runs = sorted(zip(pieces.destination.tolist(), pieces.source.tolist(), strict=True))
        return Origin(self._corpora[number[0]], runs)


class MaskedTextSource(TextSource[Config], Generic[Config]):
    """The same windows with the phase's masks; the masked tokens are the targets."""

    def __init__(self, opening: Opening, objective: Config) -> None:
        """See `DataSource`."""
        opening.check_targets()
        super().__init__(opening, objective)
        self._masker = opening.masker(objective.name, mask_rule(objective))

    def batch(self, objective: Config, samples: np.ndarray) -> PackedBatch:
        """See `DataSource`."""
        tokens, documents, languages = self.read(samples)
        masked = self._masker.mask(tokens, samples, documents)
        return packed_batch(masked.inputs, documents, samples, languages, masked.targets, masked.target_tokens)
