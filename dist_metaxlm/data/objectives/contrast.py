"""Translation pairs as separate sentences, for objectives that compare sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import DataSource, Opening, Origin
from dist_metaxlm.data.packing.contrast import ContrastPairs
from dist_metaxlm.data.packing.documents import packed_batch
from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.data.sampling.phase_mix import pair_mix
from dist_metaxlm.recipe.schema import PairObjective

PairConfig = TypeVar("PairConfig", bound=PairObjective)


class ContrastSource(DataSource[PairConfig], Generic[PairConfig]):
    """Samples are pairs; each sentence is a document of its own."""

    def __init__(self, opening: Opening, objective: PairConfig) -> None:
        """See `DataSource`."""
        keys, corpora, phase = opening.keys(objective.name), opening.bitexts, opening.phase
        self.names = opening.pairs
        self._pairs = ContrastPairs(corpora, opening.pair_titles, phase.sequence_length, keys)
        counts = [len(corpus) for corpus in corpora]
        self.mixture = Mixture(pair_mix(opening.schedules, objective.name, self.names, counts, counts), key(*keys, "mix"))

    def batch(self, objective: PairConfig, samples: np.ndarray) -> PackedBatch:
        """See `DataSource`."""
        number, ordinal = self.mixture.lookup(samples)
        read = self._pairs.read(number, self._pairs.locate(number, ordinal), objective.max_tokens)
        sentences = np.full(len(read.documents), -1, np.int64)
        sentences[read.pairs] = 2 * samples[:, None] + np.arange(2)
        packed = packed_batch(read.tokens, read.documents, sentences, number[read.leaders // 2])
        return replace(packed, pairs=torch.from_numpy(read.pairs), pair_languages=torch.from_numpy(number))

    def origin(self, sample: int) -> Origin:
        """See `DataSource`: the origin of the pair."""
        number, ordinal = self.locate(sample)
        return Origin(self.names[number[0]], [(0, self._pairs.origin(number, ordinal))])
