"""Configuration of translation language modelling."""

from __future__ import annotations

from typing import Literal

from dist_metaxlm.recipe.objectives.windows import MaskedObjective


class TranslationLM(MaskedObjective):
    """Masked language modelling on translation pairs packed into windows (TLM, arXiv 1901.07291)."""

    name: Literal["tlm"] = "tlm"
    """Objective."""

    reads = "pairs"
