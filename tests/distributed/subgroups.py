"""Close the process groups of a case, so that one start of ranks can serve many layouts."""

from __future__ import annotations

import gc

import deepspeed
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dist_metaxlm.parallel.groups import forget_groups
from dist_metaxlm.parallel.process_group import barrier


def keep_collections_short() -> None:
    """Leave what the imported libraries hold out of later garbage collections: a million objects, two seconds each time."""
    gc.collect()
    gc.freeze()


def close_subgroups() -> None:
    """End every group but the one of all ranks (collective).

    A gloo group keeps its threads and connections for as long as it exists. Without this, a process that has gone through 28
    layouts has a thousand threads, and two thirds of the time goes into the system.
    """
    gc.collect()  # engines that refer to the groups
    barrier()
    forget_groups()
    for group in [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]:
        deepspeed.comm.destroy_process_group(group)
    barrier()
