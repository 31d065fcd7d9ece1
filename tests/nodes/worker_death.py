"""A job whose second rank is killed while the others form a group with it: gloo would wait ten minutes for its address."""

from __future__ import annotations

import os
import signal

import torch
import torch.distributed as dist

from dist_metaxlm.parallel.environment import complete_environment
from dist_metaxlm.parallel.process_group import barrier, process_group
from dist_metaxlm.parallel.topology import detect_topology

topology = detect_topology()
complete_environment(topology, cuda=False)
with process_group(topology, torch.device("cpu")):
    barrier()
    if topology.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.new_group(list(range(topology.world_size)))
