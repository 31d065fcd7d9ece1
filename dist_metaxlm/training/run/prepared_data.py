"""The prepared data of a recipe: make what is missing of them before the ranks join, and open them for a phase."""

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
    """Make what is missing of the prepared data, on the first rank of each node, outside any process group.

    Under a process group the other ranks would run into its timeout while a large corpus is tokenised.
    """
    if topology.local_rank == 0:
        prepare.prepare(recipe, logger.info)
    while not prepare.is_prepared(recipe):
        # If the preparing rank fails it exits, and the launcher stops those that wait here.
        time.sleep(poll_seconds)


def open_data(recipe: Recipe, phase: str) -> tuple[Tokenizer, PhaseData]:
    """The prepared data as `phase` reads them.

    Raises:
        UserError: when the phase asks for languages or pairs that the data do not have.
    """
    directory = Path(recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    store = TokenStore.open(directory / "store")
    return tokenizer, PhaseData(store, tokenizer, phase, recipe.phase(phase), recipe.seed)
