"""The prepared data of a recipe: creates missing data before the ranks join, and opens the data for a phase."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.preparation import prepare
from dist_metaxlm.recipe.schema import Recipe

logger = logging.getLogger(__name__)


def prepare_data(recipe: Recipe, topology: Topology, poll_seconds: float = 1.0) -> None:
    """Create missing prepared data on the first rank of each node, outside any process group.

    Under a process group the other ranks would run into its timeout while a large corpus is tokenised.
    """
    if topology.local_rank == 0:
        prepare.prepare(recipe, logger.info)
    while not prepare.is_prepared(recipe):
        # If the preparing rank fails, it exits, and the launcher stops the waiting ranks.
        time.sleep(poll_seconds)


def open_data(recipe: Recipe, phase: str) -> tuple[Tokenizer, PhaseData]:
    """Open the prepared data for `phase`.

    Raises:
        UserError: if the data lack languages or pairs of the phase.
    """
    directory = Path(recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    store = TokenStore.open(directory / "store")
    return tokenizer, PhaseData(store, tokenizer, phase, recipe.phase(phase), recipe.seed)
