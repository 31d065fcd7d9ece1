"""Settings of the watchdog that ends a run without progress (docs/reliability.md)."""

from __future__ import annotations

from pydantic import Field

from dist_metaxlm.recipe.section import Section


class WatchdogConfig(Section):
    """How long a rank may take for one operation before all ranks are ended, with exit code 75 and their stacks kept."""

    enabled: bool = True
    """false: no watchdog, for a debugger."""
    limit_seconds: float = Field(30.0, gt=0)
    """Least limit of an operation of a step."""
    step_factor: float = Field(5.0, ge=1)
    """The limit is at least this many times the 99th percentile of the last 200 step times."""
    start_seconds: float = Field(1800.0, gt=0)
    """Limit of the start, with compilation, and of the first three steps."""
    save_seconds: float = Field(1800.0, gt=0)
    """Limit of saving a checkpoint, also in the background."""
    evaluate_seconds: float = Field(1800.0, gt=0)
    """Limit of a probe or a held-out measurement."""
