"""Numbers in the environment variables of launchers; imports nothing heavy, because preparing data needs them too."""

from __future__ import annotations

from collections.abc import Mapping

from dist_metaxlm.errors import UserError

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE")


def number_in(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The number in a variable, or `default` if the variable is unset or empty.

    Raises:
        UserError: the value is not a number, or is missing without a default.
    """
    if default is not None and not env.get(name):
        return default
    try:
        return int(env[name])
    except (KeyError, ValueError):
        raise UserError(
            f"{name}={env.get(name)!r} in the environment is not a number; start through deepspeed, torchrun, srun or mpirun"
        ) from None


def mpi_size_variable(env: Mapping[str, str]) -> str:
    """The variable of an mpirun that announces the most ranks, as NAME=VALUE; "" without one."""
    sizes = {name: number_in(env, name, 1) for name in _MPI_SIZES if env.get(name)}
    name = max(sizes, key=sizes.__getitem__, default="")
    return f"{name}={env[name]}" if name else ""


def mpi_size(env: Mapping[str, str]) -> int:
    """Ranks of the MPI job that started this process, by the variables of its mpirun; 1 without one.

    Raises:
        UserError: a variable is not a number from 1.
    """
    sizes = {name: number_in(env, name, 1) for name in _MPI_SIZES}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size} in the environment is no number of ranks; unset it, or start through mpirun")
    return max(sizes.values())
