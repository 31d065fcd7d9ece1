"""Configuration of causal language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dist_metaxlm.recipe.objectives.windows import WindowObjective

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import ModelConfig


class CausalLM(WindowObjective):
    """Next-token prediction on packed monolingual windows; a token attends to its own document up to itself.

    With masked language modelling in one phase: GPT-BERT (arXiv 2410.24159); before it: arXiv 2507.00994.
    """

    name: Literal["clm"] = "clm"
    """Objective."""
    target_share: float = Field(0.3, gt=0, le=1)
    """Share of a window's tokens whose next token is predicted, drawn by sample; it replaces `mask_rate`."""

    reads = "text"
    causal = True

    def targets_per_token(self, mask_rate: float) -> float:
        """See `Objective`."""
        return self.target_share

    def model_problems(self, where: str, model: ModelConfig, sequence_length: int) -> list[str]:
        """See `Objective`: a local layer sees `local_window // 2` earlier tokens."""
        if model.family != "modern" or model.global_every == 1 or model.local_window > 1:
            return []
        return [f"{where}: with model.local_window 1 a local layer shows a token no earlier one; set it to at least 2"]

    def batch_problems(self, sequence_length: int) -> list[str]:
        """See `Objective`."""
        problems = super().batch_problems(sequence_length)
        if self.targets_per_window(sequence_length, 0.0) < 1:
            problems.append(
                f"{self.name} target_share {self.target_share} of sequence_length {sequence_length} is less than one "
                f"target a window; set target_share to at least {1 / sequence_length:.3f}"
            )
        return problems
