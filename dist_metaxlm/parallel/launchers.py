"""Reads each launcher's environment variables into a `Topology`; None if that launcher did not start the process.

Sources: DeepSpeed 0.19 `launcher/launch.py`, PyTorch's docs of torchrun (PET_* are torchrun's options as variables, set by
Kubeflow's PyTorchJob), Kubernetes' docs of Indexed Jobs (JOB_COMPLETION_INDEX), Slurm's man page of srun.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import MutableMapping

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.processes import has_peer, sees_all_processes, started_with
from dist_metaxlm.parallel.topology import Topology, filled_nodes, free_port
from dist_metaxlm.parallel.variables import mpi_size, mpi_size_variable, number_in
from dist_metaxlm.text import pluralize

Environment = MutableMapping[str, str]
HOSTS_VARIABLE = "DIST_METAXLM_HOSTS"
"""Set by metaxlm launch: `node1:8,node2:8`, so that a missing node can be named."""
PEER_SECONDS = 30.0
"""Launchers start the ranks of a machine at once; a rank that is slow to join is a process long before."""
BY_HAND_SECONDS = 60.0
"""Time limit for ranks without a launcher, unless the recipe sets parallel.join_seconds."""
_LOOPBACK = ("localhost", "::1", "ip6-localhost")


def from_environment(env: Environment) -> Topology | None:
    """RANK and WORLD_SIZE, as `deepspeed`, `torchrun` and operators of Kubernetes set them."""
    if not env.get("RANK") or not env.get("WORLD_SIZE"):
        return None
    launcher = (
        "torchrun"
        if "TORCHELASTIC_RUN_ID" in env
        else "deepspeed"
        if "CROSS_RANK" in env
        else ("kubernetes" if "KUBERNETES_SERVICE_HOST" in env or "PET_NNODES" in env else "environment")
    )
    rank, size = number_in(env, "RANK"), number_in(env, "WORLD_SIZE")
    if not env.get("LOCAL_RANK") and 0 <= rank < size:
        if size > 1:
            _one_process_a_pod(env)
        env.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        launcher = "shell" if launcher == "environment" else launcher
    return _ranks(env, launcher)


def from_kubernetes(env: Environment) -> Topology | None:
    """Pods that start one process each: PET_NNODES and PET_NODE_RANK, or an Indexed Job with WORLD_SIZE."""
    if "PET_NNODES" in env and "PET_NODE_RANK" in env:
        _one_process_a_pod(env)
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if f"PET_{name}" in env:
                env.setdefault(name, env[f"PET_{name}"])
        fewest, _, most = env["PET_NNODES"].partition(":")
        if most not in ("", fewest):
            raise UserError(
                f"PET_NNODES={env['PET_NNODES']} requests an elastic number of nodes; start through torchrun, "
                "or give one number"
            )
        rank, size = env["PET_NODE_RANK"], fewest
        number_in(env, "PET_NODE_RANK")
        number_in({"PET_NNODES": fewest}, "PET_NNODES")
    elif "JOB_COMPLETION_INDEX" in env and ("WORLD_SIZE" in env or "MASTER_ADDR" in env):
        if "WORLD_SIZE" not in env:
            raise UserError(
                "JOB_COMPLETION_INDEX and MASTER_ADDR are set, WORLD_SIZE is not; set it to the completions of "
                "the Indexed Job"
            )
        rank, size = env["JOB_COMPLETION_INDEX"], env["WORLD_SIZE"]
        number_in(env, "JOB_COMPLETION_INDEX")
    else:
        return None
    env.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    return _ranks(env, "kubernetes")


def _one_process_a_pod(env: Environment) -> None:
    wanted = env.get("PET_NPROC_PER_NODE", "1")
    if wanted != "1":
        raise UserError(
            f"PET_NPROC_PER_NODE={wanted} requests several processes per pod, but this is the only one; let "
            "torchrun start them (`torchrun -m dist_metaxlm.cli.pretrain ...` reads the PET_ variables itself)"
        )


def from_mpi(env: Environment) -> Topology | None:
    """`mpirun`: ranks by MPI, local ranks by nodes of shared memory, the first node's address by broadcast."""
    expected = mpi_size(env)
    if expected <= 1:
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpirun started this process, but mpi4py finds no MPI library ({str(error).splitlines()[0]}); "
            "install one in the same environment (`pip install mpich`), or add its folder to LD_LIBRARY_PATH"
        ) from None

    world = MPI.COMM_WORLD
    if world.Get_size() == 1:
        if "SLURM_PROCID" in env:
            return None  # this MPI does not support srun's PMI; srun's own variables suffice
        raise UserError(
            f"{mpi_size_variable(env)} announces {expected} ranks, but MPI started one: either mpi4py was built for another "
            f"MPI than this mpirun ({MPI.Get_library_version().splitlines()[0]}), then use the mpirun of that one; or no "
            f"mpirun started this process, then unset {mpi_size_variable(env).partition('=')[0]}"
        )
    node = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.Get_rank())
    port = int(env["MASTER_PORT"]) if env.get("MASTER_PORT", "").isdigit() else free_port()
    address, port = world.bcast((MPI.Get_processor_name(), port) if world.Get_rank() == 0 else None, root=0)
    leaders = world.allgather(node.bcast((world.Get_rank(), MPI.Get_processor_name())))
    order = list(dict.fromkeys(leaders))
    env.update(
        RANK=str(world.Get_rank()),
        WORLD_SIZE=str(world.Get_size()),
        LOCAL_RANK=str(node.Get_rank()),
        LOCAL_WORLD_SIZE=str(node.Get_size()),
        MASTER_ADDR="127.0.0.1" if len(order) == 1 else address,
        MASTER_PORT=str(port),
    )
    return Topology(
        world.Get_rank(),
        world.Get_size(),
        node.Get_rank(),
        node.Get_size(),
        "mpi",
        tuple(order.index(leader) for leader in leaders),
        tuple(name for _, name in order),
    )


def from_slurm(env: Environment) -> Topology | None:
    """`srun`: SLURM_PROCID and related variables; the ranks connect to the first host of the step."""
    if "SLURM_PROCID" not in env or number_in(env, "SLURM_NTASKS", 1) <= 1:
        return None
    _check_step(env)
    hosts = expand_hosts(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "")
    sizes = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_NTASKS_PER_NODE") or "1")
    node = number_in(env, "SLURM_NODEID", 0)
    number_in(env, "SLURM_PROCID")
    env.update(
        RANK=env["SLURM_PROCID"],
        WORLD_SIZE=env["SLURM_NTASKS"],
        LOCAL_RANK=env.get("SLURM_LOCALID", "0"),
        LOCAL_WORLD_SIZE=str(sizes[min(node, len(sizes) - 1)]),
    )
    env.setdefault("MASTER_ADDR", hosts[0] if len(hosts) > 1 else "127.0.0.1")
    # All tasks of a job derive the same port from its number without communication; each step has its own port.
    job, step = (number_in(env, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    number = job * 7 + step
    env.setdefault("MASTER_PORT", str(20000 + number % 12000))
    return _ranks(env, "slurm", tuple(sizes), tuple(hosts))


def _check_step(env: Environment) -> None:
    """Refuse a process that Slurm announces several tasks to but that no `srun` of as many tasks has started."""
    tasks = env["SLURM_NTASKS"]
    if not env.get("SLURM_STEP_ID") and not env.get("SLURM_STEPID"):
        reason = "no srun started this process (SLURM_STEP_ID is not set)"
    elif number_in(env, "SLURM_STEP_NUM_TASKS", int(tasks)) != int(tasks):
        reason = f"the srun that started this process has SLURM_STEP_NUM_TASKS={env['SLURM_STEP_NUM_TASKS']}"
    else:
        return
    raise UserError(
        f"SLURM_NTASKS={tasks} announces {tasks} tasks, but {reason}; put `srun --ntasks={tasks}` before the command, or, "
        "for a single process, `env -u SLURM_PROCID`"
    )


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not of the form 2(x3),1; start with srun")
        sizes += [int(match[1])] * int(match[2] or 1)
    return sizes


def expand_hosts(text: str) -> list[str]:
    """Slurm's `gpu[01-03,7],login` as the list of its hosts."""
    hosts: list[str] = []
    for name in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        parts = [_numbers(part[1:-1]) if part.startswith("[") else [part] for part in re.findall(r"\[[^\]]*\]|[^\[]+", name)]
        hosts += ["".join(pieces) for pieces in itertools.product(*parts)]
    return hosts


def _numbers(text: str) -> list[str]:
    """`01-03,7` as 01, 02, 03, 7."""
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def _ranks(env: Environment, launcher: str, sizes: tuple[int, ...] = (), hosts: tuple[str, ...] = ()) -> Topology:
    rank, size = (number_in(env, name) for name in ("RANK", "WORLD_SIZE"))
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}; unset both, or start through a launcher")
    local = number_in(env, "LOCAL_RANK")
    local_name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if env.get(name)), "WORLD_SIZE")
    local_size = number_in(env, local_name)
    if not 0 <= local < local_size <= size:
        raise UserError(
            f"LOCAL_RANK={local} does not fit {local_name}={local_size} and WORLD_SIZE={size}; start through "
            "a launcher, which sets all three"
        )
    if size > 1 and not env.get("MASTER_ADDR"):
        raise UserError(
            f"WORLD_SIZE={size} without MASTER_ADDR; unset RANK and WORLD_SIZE for a single process, or set MASTER_ADDR to "
            "the first node's name, or start through a launcher"
        )
    announced = announced_hosts(env)
    if sum(slots for _, slots in announced) == size:
        sizes, hosts = tuple(slots for _, slots in announced), tuple(name for name, _ in announced)
    return Topology(rank, size, local, local_size, launcher, filled_nodes(sizes) if sum(sizes) == size else (), hosts)


def announced_hosts(env: Environment) -> list[tuple[str, int]]:
    """(host, ranks) of every node as set by metaxlm launch; empty without it."""
    pairs = [part.rpartition(":") for part in env.get(HOSTS_VARIABLE, "").split(",") if part]
    return [(name, int(slots)) for name, _, slots in pairs if slots.isdigit()]


def check_world_size(topology: Topology, expected: int | None) -> None:
    """Refuse to train on another number of ranks than requested.

    Raises:
        UserError: naming both numbers and the launcher.
    """
    if expected is not None and topology.world_size != expected:
        started = (
            f"{topology.launcher} started {pluralize(topology.world_size, 'rank')} on "
            f"{pluralize(topology.nodes, 'node')} ({os.uname().nodename})"
        )
        raise UserError(
            f"{started}, --expect_world_size is {expected}; check the hostfile and the launcher's "
            "options, or change --expect_world_size"
        )


def check_peers(topology: Topology, seconds: float = PEER_SECONDS) -> None:
    """Refuse to wait for ranks of this machine that nobody has started, such as those of variables left in a shell.

    It returns as soon as another rank is a process here, whether or not that has joined.

    Raises:
        UserError: after `seconds` without one, naming the variables.
    """
    here = _variables_here(topology, os.environ)
    if here is None:
        return
    deadline = time.monotonic() + seconds
    while not has_peer(*here):
        if time.monotonic() > deadline:
            raise UserError(
                f"{by_hand(topology)}, but this process is the only one of them on {os.uname().nodename} after "
                f"{seconds:.0f} s; {remedy_by_hand(topology)}"
            )
        time.sleep(0.2)


def _variables_here(topology: Topology, env: Environment) -> tuple[str, list[str]] | None:
    """Variables of this machine's ranks: the one in which they differ, and those in which they agree.

    None where no other rank need be visible on this machine.
    """
    loopback = env.get("MASTER_ADDR", "") in _LOOPBACK or env.get("MASTER_ADDR", "").startswith("127.")
    if topology.launcher in ("torchrun", "deepspeed", "environment", "shell"):
        number, same = "RANK", ["WORLD_SIZE", "MASTER_PORT"]
        visible = topology.local_world_size > 1 or (topology.world_size > 1 and loopback)
    elif topology.launcher == "slurm":
        number, same = "SLURM_PROCID", ["SLURM_JOB_ID", "SLURM_STEP_ID"]
        visible = topology.local_world_size > 1 and sees_all_processes()
    else:
        return None
    # A process that has set the variables itself, after its start, has peers that do the same.
    began = started_with([number]) or {}
    return (number, same) if visible and began.get(number) == env.get(number) else None


def by_hand(topology: Topology) -> str:
    """The variables that announce the ranks of the job, as the beginning of a sentence."""
    if topology.launcher == "slurm":
        return f"SLURM_NTASKS={topology.world_size} announces {topology.world_size} tasks"
    return f"RANK={topology.rank} and WORLD_SIZE={topology.world_size} announce {topology.world_size} ranks"


def remedy_by_hand(topology: Topology) -> str:
    """What to do where the other ranks of the job were never started."""
    if topology.launcher == "slurm":
        return "start all tasks with srun, or, for a single process, put `env -u SLURM_PROCID` before the command"
    return "start all ranks through a launcher, or, for a single process, unset RANK and WORLD_SIZE"


def join_limit(topology: Topology, seconds: float, chosen: bool) -> float:
    """Seconds to wait for all ranks: `seconds`, or less for ranks without a launcher unless somebody chose the value."""
    return seconds if chosen or topology.launcher != "shell" else min(seconds, BY_HAND_SECONDS)
