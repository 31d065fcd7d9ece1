"""Windows of text for next-token prediction."""

from __future__ import annotations

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import Opening, Shown
from dist_metaxlm.data.objectives.text import TextSource
from dist_metaxlm.data.packing.documents import packed_batch
from dist_metaxlm.data.packing.next_token import NextTokens
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.recipe.schema import CausalLM


class NextTokenSource(TextSource[CausalLM]):
    """Samples are windows of one language each; the targets are the tokens after a drawn share of their positions."""

    def __init__(self, opening: Opening, objective: CausalLM) -> None:
        """See `DataSource`."""
        super().__init__(opening, objective)
        count = objective.targets_per_window(opening.phase.sequence_length, opening.phase.mask_rate)
        self._targets = NextTokens(opening.tokenizer.special, count, key(*opening.keys(objective.name), "targets"))

    def batch(self, objective: CausalLM, samples: np.ndarray) -> PackedBatch:
        """See `DataSource`."""
        tokens, documents, languages = self.read(samples)
        return packed_batch(tokens, documents, samples, languages, *self._targets.choose(tokens, samples, documents))

    def shown(self, objective: CausalLM, sample: int) -> list[Shown]:
        """See `DataSource`: nothing is masked, and a target stands after the position that it is shown with."""
        batch = self.batch(objective, np.array([sample], np.int64))
        return [Shown(batch, batch.tokens.numpy())]
