"""The prepared data of a recipe: creates missing data before the ranks join, and opens the data for a phase."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.digest_check import DigestCheck
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.process_group import largest
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
        UserError: if the data lack languages or pairs of the phase, or have token ids that the model lacks.
    """
    directory = Path(recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    store = TokenStore.open(directory / "store")
    ids = max(store.vocab_size, tokenizer.vocab_size)
    if ids > recipe.model.vocab_size:
        raise UserError(
            f"the data in {directory} have {ids} token ids and model.vocab_size is {recipe.model.vocab_size}; set "
            f"model.vocab_size to {ids}"
        )
    return tokenizer, PhaseData(store, tokenizer, phase, recipe.phase(phase), recipe.seed)


@contextmanager
def checked_store(recipe: Recipe, topology: Topology, device: torch.device) -> Iterator[DigestCheck]:
    """Compare the token store with its checksums, the first part now and the rest in a thread (collective).

    Raises:
        UserError: naming file and bytes that have changed.
    """
    directory = Path(recipe.data.directory) / "store"
    vocabulary = TokenStore.open(directory).vocab_size
    check = DigestCheck(directory, vocabulary, topology.local_rank, topology.local_world_size)
    check.begin()
    try:
        check.refuse(partial(largest, device=device))
        yield check
    finally:
        check.end()
