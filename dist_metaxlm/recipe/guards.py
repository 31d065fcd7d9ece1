"""Settings of the guards against bad optimiser steps (docs/reliability.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dist_metaxlm.recipe.section import Section


class GuardConfig(Section):
    """What happens to a step whose loss or gradient is not finite, or whose gradient is far larger than before."""

    bad_steps: int = Field(3, gt=0)
    """Steps without an update in a row after which the phase goes back to its last checkpoint."""
    rollbacks: int = Field(3, ge=0)
    """How often a phase goes back; then the run ends with an error."""
    spikes: Literal["clip", "skip"] = "clip"
    """A gradient whose norm is a spike: `clip` counts it, and only `optimizer.clip_norm` limits it; `skip`: no update."""
    sigma: float = Field(6.0, gt=0)
    """A norm is a spike if it exceeds the mean of the norms before it by this many standard deviations."""
    replica_interval: int = Field(100, ge=0)
    """Steps between comparisons of the weights over the data-parallel ranks, which are also made before each checkpoint; 0:
    never."""
    history: int = Field(100, ge=20)
    """Steps over which mean and standard deviation of the norms are taken, with exponentially falling weights."""
