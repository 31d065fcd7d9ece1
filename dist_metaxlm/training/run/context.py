"""The constants of a run: command line, recipe, ranks, folder and data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.digest_check import DigestCheck
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.training.loop.heldout import HeldoutMeasure
from dist_metaxlm.training.loop.probing import Probe
from dist_metaxlm.training.run.lease import Lease
from dist_metaxlm.training.run.run_folder import PhaseFolder


@dataclass(frozen=True)
class Options:
    """The command line of `metaxlm pretrain`."""

    phase: str
    recipe: str = "quickstart"
    overrides: tuple[str, ...] = ()
    deepspeed_config: str | None = None
    run_dir: str | None = None
    resume: str = "auto"
    init_from: str | None = None
    expect_world_size: int | None = None
    dry_run: bool = False
    change: bool = False
    loaded: Recipe | None = None
    """The recipe itself, if it is not read from a file; then `recipe` is its name."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One phase of one run on this rank. Complete only inside the process group, after the ranks' nodes are known."""

    recipe: Recipe
    """The recipe with its overrides and the fields that a DeepSpeed file decides."""
    options: Options
    """The command line."""
    topology: Topology
    """This process among the ranks."""
    device: torch.device
    """This rank's device."""
    folder: PhaseFolder
    """The phase's output folder."""
    tokenizer: Tokenizer
    """The tokenizer of the prepared data."""
    data: PhaseData
    """The phase's view of the prepared data."""
    probe: Probe | None = None
    """Measured every `training.probe_interval` steps; None if the recipe has no probes."""
    heldout: HeldoutMeasure | None = None
    """Measured every `training.heldout_interval` steps; None if that is 0."""

    store_check: DigestCheck | None = None
    """Compares the token store with its checksums during training."""
    lease: Lease | None = None
    """The right to write into `folder`; only the first rank has it."""

    @property
    def phase(self) -> PhaseConfig:
        """The phase that is trained."""
        return self.recipe.phase(self.options.phase)
