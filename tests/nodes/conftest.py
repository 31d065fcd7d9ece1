"""Four machines for all tests of this folder, the recipes they train, and the losses that one process has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def nodes_possible() -> None:
    """Skips what needs machines where there can be none."""
    from cluster import missing

    reason = missing()
    if reason is not None:
        pytest.skip(f"no nodes here: {reason}")


@pytest.fixture(scope="session")
def cluster(nodes_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """node1 to node4."""
    from cluster import Cluster

    with Cluster(tmp_path_factory.mktemp("cluster"), 4) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(cluster: object) -> dict[str, str]:
    """Slurm on all nodes; the variables that its commands need."""
    from cluster import PACKAGES, SLURM_PACKAGES, missing
    from slurm import start_slurm

    reason = missing({**PACKAGES, **SLURM_PACKAGES})
    if reason is not None:
        pytest.skip(f"no Slurm here: {reason}")
    return start_slurm(cluster)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def quick(nodes_possible: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that make the quickstart recipe short; its data is prepared."""
    from jobs import QUICK

    from dist_metaxlm.errors import UserError
    from dist_metaxlm.preparation.prepare import is_prepared, prepare
    from dist_metaxlm.recipe.load import load_recipe

    if is_prepared(load_recipe("quickstart")):
        return QUICK
    overrides = (*QUICK, "data.tokenizer.sample_bytes=3000000", f"data.directory={tmp_path_factory.mktemp('data')}")
    try:
        prepare(load_recipe("quickstart", list(overrides)), lambda line: None)
    except UserError as error:
        pytest.skip(f"no quickstart corpus: {error}")
    return overrides


@pytest.fixture(scope="session")
def reference(cluster: object, quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Losses of one process with the recipe's ZeRO stage: another optimiser rounds otherwise, and 20 steps of a loss over 8
    pairs make 2e-5 of that."""
    from jobs import PYTHON, joint, losses, train

    run = tmp_path_factory.mktemp("reference")
    train(cluster, [PYTHON, *joint("quickstart", run, *quick)])  # type: ignore[arg-type]
    return losses(run)
