"""Starts the watchdog of a phase as its recipe says."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

import torch

from dist_metaxlm.liveness.operations import Limits
from dist_metaxlm.liveness.watchdog import watched
from dist_metaxlm.parallel.process_group import largest
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.run.run_folder import PhaseFolder


def watchdog(recipe: Recipe, topology: Topology, device: torch.device, folder: PhaseFolder) -> AbstractContextManager[None]:
    """Watches this rank (collective: the ranks agree on the folder of their reports)."""
    config = recipe.training.watchdog
    begun = largest(int(1000 * time.time()), device)
    if not config.enabled:
        return nullcontext()
    name = datetime.fromtimestamp(begun / 1000, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    limits = Limits(
        least=config.limit_seconds,
        factor=config.step_factor,
        start=config.start_seconds,
        save=config.save_seconds,
        evaluate=config.evaluate_seconds,
    )
    return watched(folder.path / "hangs" / name, topology.rank, topology.world_size, limits)
