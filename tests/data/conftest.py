"""Corpora that several tests of the data room build."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest


def _bitext(sides: list[tuple[int, int]], base: int) -> SimpleNamespace:
    """Pairs with sides of these many words; every word of the corpus has an id of its own, from `base` on."""
    tokens: list[int] = []
    starts, seconds = [0], []
    for first, second in sides:
        tokens += [0, *range(base + len(tokens), base + len(tokens) + first), 2]
        seconds.append(len(tokens))
        tokens += [*range(base + len(tokens), base + len(tokens) + second), 2]
        starts.append(len(tokens))
    return SimpleNamespace(
        tokens=np.array(tokens, np.int32),
        document_starts=np.array(starts, np.int64),
        second_starts=np.array(seconds, np.int64),
    )


@pytest.fixture(scope="session")
def bitext() -> Callable[[list[tuple[int, int]], int], SimpleNamespace]:
    """Makes a bitext in memory from the lengths of its pairs' sides and the first id; as a fixture, because test files
    do not import one another."""
    return _bitext
