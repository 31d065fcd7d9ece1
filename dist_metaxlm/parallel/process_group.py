"""Creates and destroys the process group, and adds the collectives that the trainer needs besides DeepSpeed's."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from dist_metaxlm.errors import GracefulStop, UserError
from dist_metaxlm.parallel.affinity import threads
from dist_metaxlm.parallel.deepspeed_import import import_deepspeed
from dist_metaxlm.parallel.groups import forget_groups, form_groups, groups
from dist_metaxlm.parallel.peer_monitor import PeerMonitor
from dist_metaxlm.parallel.rendezvous import rendezvous
from dist_metaxlm.parallel.topology import Topology, forget_topology
from dist_metaxlm.text import pluralize

_KNOWN = ("Transformer Engine and Apex are not installed", "c10d::broadcast_: an autograd kernel was not registered")
"""Harmless warnings: megatron-core's optimisers and FSDP are imported with its layers but not used; DeepSpeed's pipeline
receives activations into tensors that require gradients (tests/distributed compares these with one process)."""


def check_devices(topology: Topology) -> None:
    """Refuse ranks without a CUDA device of their own on a machine with CUDA devices.

    Raises:
        UserError: naming both numbers, and how to start as many ranks as there are devices.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Other launchers may not set the local size, which then defaults to the job's size.
    counts = topology.launcher in ("deepspeed", "torchrun", "slurm", "mpi")
    if not 0 < devices < (topology.local_world_size if counts else topology.local_rank + 1):
        return
    ranks, node = pluralize(topology.local_world_size, "rank"), os.uname().nodename
    shown = f"{ranks} on {node}, where a rank sees {pluralize(devices, 'CUDA device')}"
    if topology.launcher in ("slurm", "mpi") and devices == 1:
        raise UserError(
            f"{shown}: every rank must see all devices of its node and uses its own; leave out "
            "--gpus-per-task and --gpu-bind (srun --gpus-per-node=N --gpu-bind=none), or what sets "
            "CUDA_VISIBLE_DEVICES for each rank"
        )
    raise UserError(
        f"{shown}: each rank needs one of its own; start {devices} (deepspeed --num_accelerators {devices}, "
        f"torchrun --nproc_per_node {devices}), or compute on the CPU with CUDA_VISIBLE_DEVICES= "
        "DS_ACCELERATOR=cpu"
    )


def pick_device(topology: Topology) -> torch.device:
    """This rank's CUDA device if there are any, else the CPU. Errors: as `check_devices`."""
    check_devices(topology)
    if torch.cuda.is_available():
        torch.cuda.set_device(topology.local_rank)
        return torch.device("cuda", topology.local_rank)
    return torch.device("cpu")


def compute_on_cpu() -> None:
    """Tell DeepSpeed, which else searches for an accelerator and warns. Errors: UserError if it was told something else."""
    chosen = os.environ.get("DS_ACCELERATOR") or "cpu"
    if chosen != "cpu":
        raise UserError(
            f"DS_ACCELERATOR={chosen} is set, but torch finds no CUDA device on {os.uname().nodename}; unset DS_ACCELERATOR "
            "to compute on the CPU, or install a torch that finds the devices"
        )
    os.environ["DS_ACCELERATOR"] = "cpu"


def stay_on_device() -> Callable[[], None] | None:
    """A function that threads using this rank's CUDA device must call first; None on a CPU.

    A thread starts on device 0. Leaving a stream of another device switches back to it and creates a CUDA context there:
    half a gigabyte on device 0 for every rank of the node.
    """
    return partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None


@contextmanager
def process_group(
    topology: Topology,
    device: torch.device,
    tensor: int = 1,
    pipeline: int = 1,
    timeout: timedelta = timedelta(minutes=10),
    join_seconds: float = 300.0,
    facts: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Join the job's process group through DeepSpeed (NCCL on CUDA, gloo on CPU) and leave it at the end.

    Inside, the ranks are divided into `pipeline` stages and tensor-parallel groups of `tensor` (parallel/groups.py).

    `join_seconds` limits the wait for all ranks, `timeout` the duration of a collective. Ranks that differ in one of `facts`
    refuse to train together.

    The group must be destroyed: otherwise ZeRO-3 on gloo ends with `terminate called`.
    """
    # One machine, several ranks: each uses its share of the cores, else they compete for all. With CUDA, too: weights
    # are initialised on the CPU, and the optimiser may be offloaded to it.
    torch.set_num_threads(threads(topology))
    if device.type == "cpu":
        compute_on_cpu()
    quiet_engines()
    # DeepSpeed prints while it builds its operators; standard output is reserved (with --json a command prints only JSON).
    with contextlib.redirect_stdout(sys.stderr if os.environ.get("DEEPSPEED_LOG") else io.StringIO()):
        deepspeed = import_deepspeed()
        quiet_engines()
        backend = "nccl" if device.type == "cuda" else "gloo"
        # If bound to its device, NCCL derives later groups from this one; a single rank has no peer for that.
        bound = device if device.type == "cuda" and topology.world_size > 1 else None
        store = rendezvous(topology, join_seconds, facts)
        monitor = PeerMonitor(topology, store, join_seconds) if topology.world_size > 1 else None
        dist.init_process_group(
            backend, store=store, rank=topology.rank, world_size=topology.world_size, timeout=timeout, device_id=bound
        )
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, auto_mpi_discovery=False, verbose=False)
    if dist.get_world_size() != topology.world_size:
        raise RuntimeError(
            f"the process group has {dist.get_world_size()} ranks, the launcher announced {topology.world_size}"
        )
    form_groups(tensor, pipeline, device)
    try:
        yield
    except BaseException as error:
        # No rank waits for a single process, and it may start another run after the error is corrected.
        if isinstance(error, GracefulStop) or topology.world_size == 1:
            _leave(monitor)
        raise
    # Not in a `finally`: after an error peers may be stuck in a collective; this process's disconnect ends them.
    _leave(monitor)


def _leave(monitor: PeerMonitor | None) -> None:
    if monitor is not None:
        monitor.shutdown()
    forget_groups()
    # DeepSpeed's function also clears its cached groups, which a second run in this process would reuse.
    import_deepspeed().comm.destroy_process_group()
    forget_topology()


def quiet_engines() -> None:
    """Keep only warnings of DeepSpeed and megatron-core, which log much at start-up, unless DEEPSPEED_LOG is set."""
    level = os.environ.get("DEEPSPEED_LOG", "ERROR").upper()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    for message in _KNOWN if torch.cuda.is_available() else (*_KNOWN, ".*CUDA_DEVICE_MAX_CONNECTIONS"):
        warnings.filterwarnings("ignore", category=UserWarning, message=message)
    for name in ("DeepSpeed", "deepspeed", "megatron", "torch.distributed"):
        logging.getLogger(name).setLevel(level)


def world_size() -> int:
    """Ranks of the process group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce(tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
    """`tensor` summed (or its maximum, minimum) over all ranks, in place."""
    if world_size() > 1:
        operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
        dist.all_reduce(tensor, op=operations[op])
    return tensor


def largest(value: int, device: torch.device) -> int:
    """The largest `value` of all ranks, whose collectives use tensors on `device` (collective)."""
    return int(all_reduce(torch.tensor([value], device=device), "max"))


def sum_over_batch(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, counted on the batches of one pipeline stage (zeros on the others), summed over the global batch, in place.

    Tensor ranks process the same batch and count the same.
    """
    return all_reduce(tensor).div_(groups().tensor_size)


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """[N, ...] of every data-parallel rank, in their order, as [data size * N, ...].

    No gradient flows to the others' rows.
    """
    grid = groups()
    if grid.data_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(grid.data_size)]
    dist.all_gather(parts, rows.detach().contiguous(), group=grid.data)
    parts[grid.data_rank] = rows
    return torch.cat(parts)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()
