"""The processes that `mpirun` started to prepare one corpus together, on any number of machines.

They share a file system and need only ranks, barriers and broadcasts from MPI.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.variables import mpi_size

Value = TypeVar("Value")

POLL_SECONDS = 0.05


class Ranks:
    """A single process, both first and last."""

    rank, size, local_size = 0, 1, 1
    """Number of this process, how many there are, how many on this machine."""

    @property
    def first(self) -> bool:
        """True on the rank that logs and commits."""
        return self.rank == 0

    def share(self, value: Value) -> Value:
        """The first rank's `value`."""
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """All ranks leave the block together; if one fails, all do."""
        yield


class MPIRanks(Ranks):
    """The ranks of an MPI job."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        self.local_size = self._world.Split_type(MPI.COMM_TYPE_SHARED).Get_size()
        os.environ["RANK"] = str(self.rank)

    def share(self, value: Value) -> Value:
        """The first rank's `value`."""
        shared: Value = self._world.bcast(value)
        return shared

    @contextmanager
    def together(self) -> Iterator[None]:
        """All ranks leave the block together; if one fails, all do, with its UserError or OSError."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed, worst = np.array([failure is not None], np.int32), np.zeros(1, np.int32)
        request = self._world.Iallreduce(failed, worst, op=self._mpi.MAX)
        # MPI's busy waiting would occupy a core that another rank uses
        while not request.Test():
            time.sleep(POLL_SECONDS)
        if worst[0]:
            raise next(error for error in map(_rebuilt, self._world.allgather(_plain(failure))) if error) from failure


def detect_ranks() -> Ranks:
    """The ranks of this process's MPI job, or a single process."""
    if mpi_size(os.environ) > 1:
        return MPIRanks()
    return Ranks()


def _plain(error: Exception | None) -> tuple[object, ...] | None:
    if isinstance(error, OSError):
        return ("os", error.errno, error.strerror, error.filename)
    if error is None:
        return None
    return ("user" if isinstance(error, UserError) else "bug", f"{error}" or type(error).__name__)


def _rebuilt(plain: tuple[object, ...] | None) -> Exception | None:
    if plain is None:
        return None
    if plain[0] == "os":
        return OSError(*plain[1:])
    return UserError(str(plain[1])) if plain[0] == "user" else RuntimeError(plain[1])
