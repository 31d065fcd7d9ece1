"""Masked windows of whole translation pairs, for translation language modelling and denoising word alignment."""

from __future__ import annotations

from typing import Generic

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import Config, DataSource, Opening, Origin, mask_rule
from dist_metaxlm.data.packing.bitext import BitextWindows
from dist_metaxlm.data.packing.documents import packed_batch
from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.data.sampling.phase_mix import pair_mix


class MaskedPairsSource(DataSource[Config], Generic[Config]):
    """Samples are windows of one language pair each."""

    def __init__(self, opening: Opening, objective: Config) -> None:
        """See `DataSource`."""
        opening.check_targets()
        keys, corpora, phase = opening.keys(objective.name), opening.bitexts, opening.phase
        self.names = opening.pairs
        length = phase.sequence_length
        self._windows = opening.once(
            ("windows", keys, length), lambda: BitextWindows(corpora, opening.pair_titles, length, keys)
        )
        counts, windows = [len(corpus) for corpus in corpora], self._windows.counts.tolist()
        self.mixture = opening.once(
            ("mix", keys),
            lambda: Mixture(pair_mix(opening.schedules, objective.name, self.names, counts, windows), key(*keys, "mix")),
        )
        self._masker = opening.masker(objective.name, mask_rule(objective))

    def batch(self, objective: Config, samples: np.ndarray) -> PackedBatch:
        """See `DataSource`."""
        number, ordinal = self.mixture.lookup(samples)
        pairs = self._windows.read(number, ordinal, samples)
        masked = self._masker.mask(pairs.tokens, samples, pairs.documents)
        owner = self.mixture.owner[number]
        return packed_batch(masked.inputs, pairs.documents, samples, owner, masked.targets, masked.target_tokens)

    def origin(self, sample: int) -> Origin:
        """See `DataSource`: the origin of the window's pairs."""
        number, ordinal = self.locate(sample)
        return Origin(self.names[number[0]], self._windows.origin(number, ordinal))
