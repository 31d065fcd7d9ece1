from __future__ import annotations

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.parallel.variables import mpi_size, number_in


@pytest.mark.parametrize(
    ("environment", "size"),
    [({}, 1), ({"PMI_SIZE": ""}, 1), ({"PMI_SIZE": "4"}, 4), ({"MPI_LOCALNRANKS": "2", "OMPI_COMM_WORLD_SIZE": "8"}, 8)],
)
def test_the_size_of_an_mpi_job(environment: dict[str, str], size: int) -> None:
    assert mpi_size(environment) == size


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_a_size_that_is_no_number_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv(name, "four")
    with pytest.raises(UserError, match=rf"{name}='four' in the environment is not a number"):
        detect_topology()


def test_a_missing_number_without_a_default_is_named() -> None:
    with pytest.raises(UserError, match="RANK=None"):
        number_in({}, "RANK")
