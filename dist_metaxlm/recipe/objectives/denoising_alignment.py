"""Configuration of denoising word alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dist_metaxlm.recipe.objectives.base import EncoderPass
from dist_metaxlm.recipe.objectives.windows import MaskedObjective

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import ModelConfig


class DenoisingAlignment(MaskedObjective):
    """Pointing from a masked token to its translation, with self-labelled alignments (XLM-Align, arXiv 2106.06381)."""

    name: Literal["dwa"] = "dwa"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss, over all targets, in the step's loss."""
    batch_tokens: int = Field(gt=0)
    """Tokens of translation pairs a step, over all ranks; a multiple of `sequence_length`."""
    layer: int = Field(gt=0)
    """Block whose output gives the labels, counted from 1 (XLM-Align: 10 of 12)."""
    sinkhorn_iterations: int = Field(2, ge=0)
    """Iterations of optimal transport on the similarities."""
    rounds: int = Field(2, gt=0)
    """Rounds of mutual argmax; later rounds match tokens that have no partner yet."""

    reads = "pairs"
    trains_alignment = True
    needs_whole_model = True

    def model_problems(self, where: str, model: ModelConfig, sequence_length: int) -> list[str]:
        """See `Objective`."""
        if self.layer <= model.layers:
            return []
        return [f"{where}.layer {self.layer} is more than model.layers {model.layers}"]

    def passes(self, sequence_length: int, mask_rate: float) -> list[EncoderPass]:
        """See `Objective`: the masked windows without the head, and the unmasked ones for the labels."""
        return [
            EncoderPass(self.batch_tokens, sequence_length),
            EncoderPass(self.batch_tokens, sequence_length, layers=self.layer, backward=False),
        ]

    def other_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """See `Objective`: the similarities behind the labels, and the pointer."""
        similarities = 2 * model.hidden * sequence_length * self.batch_tokens
        return float(similarities + 6 * self.batch_tokens * model.hidden * (2 * model.hidden + sequence_length))

    def own_parameters(self, model: ModelConfig) -> int:
        """See `Objective`: the pointer's two linear layers, one with a bias."""
        return 2 * model.hidden**2 + model.hidden
