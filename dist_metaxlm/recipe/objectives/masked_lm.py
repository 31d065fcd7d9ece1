"""Configuration of masked language modelling."""

from __future__ import annotations

from typing import Literal

from dist_metaxlm.recipe.objectives.windows import MaskedObjective


class MaskedLM(MaskedObjective):
    """Masked language modelling on packed monolingual windows (over several languages: MMLM)."""

    name: Literal["mlm"] = "mlm"
    """Objective."""

    reads = "text"
