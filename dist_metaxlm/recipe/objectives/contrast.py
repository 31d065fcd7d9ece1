"""Configuration of sentence contrast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dist_metaxlm.recipe.objectives.base import EncoderPass
from dist_metaxlm.recipe.objectives.pairs import PairObjective, check_group


class Contrast(PairObjective):
    """InfoNCE between the mean-pooled states of a sentence and its translation, both directions."""

    name: Literal["contrast"] = "contrast"
    """Objective."""
    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks; a multiple of `group`."""
    group: int = Field(gt=1)
    """Pairs that serve each other as negatives; fixed here, so the loss does not depend on the layout."""
    temperature: float = Field(0.05, gt=0)
    """Divisor of the cosine similarities."""

    @model_validator(mode="after")
    def _consistent(self) -> Contrast:
        check_group(self.pairs, self.group)
        return self

    @property
    def pairs_of_group(self) -> int | None:
        """See `PairObjective`."""
        return self.group

    def passes(self, sequence_length: int, mask_rate: float) -> list[EncoderPass]:
        """See `Objective`: both sentences of each pair, at maximum length."""
        return [EncoderPass(2 * self.pairs * self.max_tokens, self.max_tokens, layers=self.layer)]

    def uncut_tokens(self, ranks: int) -> int:
        """See `Objective`: both sentences of each pair of a group are kept for the backward pass."""
        return 2 * (self.share_of_group(ranks) or 0) * self.longest
