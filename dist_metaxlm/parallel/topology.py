"""Who am I among the ranks: one answer whatever launcher started the process.

Understood today: the environment of `deepspeed` and `torchrun`, MPI through mpi4py, Slurm's `srun`, and a single process.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from dist_metaxlm.errors import UserError

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Topology:
    """Place of this process in the job."""

    rank: int
    """Number of this process, 0 .. world_size - 1."""
    world_size: int
    """Processes of the job."""
    local_rank: int
    """Number of this process on its node."""
    local_world_size: int
    """Processes on this node."""
    launcher: str
    """What started the job: deepspeed or torchrun (`environment`), `mpi`, `slurm`, or `single`."""

    @property
    def nodes(self) -> int:
        """Nodes of the job, taken as equally filled."""
        return max(1, self.world_size // max(1, self.local_world_size))

    @property
    def is_first(self) -> bool:
        """True on the one rank that prints and writes shared files."""
        return self.rank == 0


def detect_topology() -> Topology:
    """Read the launcher's environment and complete it (MASTER_ADDR, MASTER_PORT, RANK, ...) for torch.distributed.

    Raises:
        UserError: when a launcher's variables contradict each other.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _from_environment("environment")
    if any(int(environment.get(name, "1") or 1) > 1 for name in _MPI_SIZES):
        return _from_mpi()
    if int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment:
        return _from_slurm()
    environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment["MASTER_PORT"] = str(free_port())
    return Topology(0, 1, 0, 1, "single")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _from_environment(launcher: str) -> Topology:
    values = {}
    for name, default in (("RANK", None), ("WORLD_SIZE", None), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", None)):
        text = os.environ.get(name, default if default is not None else os.environ.get("LOCAL_SIZE", ""))
        try:
            values[name] = int(text)
        except ValueError:
            if name != "LOCAL_WORLD_SIZE":
                raise UserError(f"{name}={text!r} in the environment is not a number; start through deepspeed, torchrun, "
                                "srun or mpirun") from None
            values[name] = values["WORLD_SIZE"]
    if not 0 <= values["RANK"] < values["WORLD_SIZE"]:
        raise UserError(f"RANK={values['RANK']} does not fit WORLD_SIZE={values['WORLD_SIZE']}; "
                        "unset both or start through a launcher")
    return Topology(values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"], values["LOCAL_WORLD_SIZE"], launcher)


def _from_mpi() -> Topology:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.Get_rank())
    address, port = world.bcast((MPI.Get_processor_name(), free_port()) if world.Get_rank() == 0 else None, root=0)
    if world.Get_size() == node.Get_size():
        address = "127.0.0.1"
    os.environ.update(RANK=str(world.Get_rank()), WORLD_SIZE=str(world.Get_size()), LOCAL_RANK=str(node.Get_rank()),
                      LOCAL_WORLD_SIZE=str(node.Get_size()), MASTER_ADDR=address, MASTER_PORT=str(port))
    return _from_environment("mpi")


def _from_slurm() -> Topology:
    environment = os.environ
    first = environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    # All tasks of a job derive the same port from its number, without talking to each other.
    port = 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000
    per_node = environment.get("SLURM_NTASKS_PER_NODE") or environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0]
    environment.update(RANK=environment["SLURM_PROCID"], WORLD_SIZE=environment["SLURM_NTASKS"],
                       LOCAL_RANK=environment.get("SLURM_LOCALID", "0"), LOCAL_WORLD_SIZE=per_node)
    environment.setdefault("MASTER_ADDR", first)
    environment.setdefault("MASTER_PORT", str(port))
    return _from_environment("slurm")
