"""Queries and keys of cross-lingual contrast, from translation pairs."""

from __future__ import annotations

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import Opening, Shown
from dist_metaxlm.data.objectives.contrast import ContrastSource
from dist_metaxlm.data.packing.xlco import xlco_batch
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.recipe.schema import CrossLingualContrast


class XlcoSource(ContrastSource[CrossLingualContrast]):
    """Samples are pairs; `mixup` combines two of them into one example."""

    def __init__(self, opening: Opening, objective: CrossLingualContrast) -> None:
        """See `DataSource`."""
        super().__init__(opening, objective)
        self._masker = opening.masker(objective.name)
        self._draw_key = key(*opening.keys(objective.name), "mixup")

    def batch(self, objective: CrossLingualContrast, samples: np.ndarray) -> PackedBatch:
        """See `DataSource`; the first sample number and the number of samples are multiples of `pairs_together`."""
        number, ordinal = self.mixture.lookup(samples)
        return xlco_batch(self._pairs, self._masker, self._draw_key, objective, samples, number, ordinal)

    def shown(self, objective: CrossLingualContrast, sample: int) -> list[Shown]:
        """See `DataSource`: query and key of the example that contains the pair, each at the start of a window."""
        together = objective.pairs_together
        samples = sample // together * together + np.arange(together, dtype=np.int64)
        unmasked = objective.model_copy(update={"mask_rate": 0.0})
        masked, plain = self.batch(objective, samples), self.batch(unmasked, samples)
        assert masked.keys is not None
        assert plain.keys is not None
        return [Shown(masked, plain.tokens.numpy(), "query"), Shown(masked.keys, plain.keys.tokens.numpy(), "key")]
