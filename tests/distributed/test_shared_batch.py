"""Model-parallel peers get the batch that the first of them has read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def test_peers_get_the_first_ranks_batch(run_ranks: Callable[..., str]) -> None:
    assert run_ranks(4, Path(__file__).with_name("worker_shared_batch.py")) == "equal\n"
