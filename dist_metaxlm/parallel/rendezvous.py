"""Rendezvous: a store on the first node, a check that all ranks have joined (missing ones are named), the process group.

Each job and each attempt has its own keys: a restarted rank must not read the address of a dead peer (pytorch#135712), and
two jobs on one port must not join each other.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TypedDict

import torch.distributed as dist

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.launchers import by_hand, remedy_by_hand
from dist_metaxlm.parallel.processes import holder
from dist_metaxlm.parallel.shared_facts import remedy
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.text import pluralize

_POLL_SECONDS = 0.05
_OWN_STORE_SECONDS = 30.0
"""Time limit for a store that listens before this process asks: its own, or that of torchrun's agent, which started it."""
_LINGER_SECONDS = 1.0
"""How long the first rank keeps the store open after a refusal, so that the others can read the reason."""


def rendezvous(topology: Topology, seconds: float, facts: Mapping[str, str] | None = None) -> dist.Store:
    """Wait for all ranks and return the store for `init_process_group` (collective).

    `facts` must be equal on all ranks: versions, and checksums of the training inputs.

    Raises:
        UserError: after `seconds`, naming the missing hosts or ranks, or the port and the process that holds it; at once if
            ranks differ in a fact.
    """
    store = dist.PrefixStore(_job(), _connect(topology, seconds))
    if topology.world_size == 1:
        return store
    own: Announced = {"host": socket.gethostname(), "size": topology.world_size, "facts": dict(facts or {})}
    store.set(f"here/{topology.rank}", json.dumps(own))
    if topology.rank == 0:
        problem = _wait_for_all_ranks(topology, store, seconds)
        store.set("roll", problem or "complete")
        if problem:
            time.sleep(_LINGER_SECONDS)
            raise UserError(problem)
        return store
    try:
        store.wait(["roll"], timedelta(seconds=seconds + _LINGER_SECONDS))
        answer = store.get("roll").decode()
    except (RuntimeError, dist.DistError) as error:
        raise UserError(
            f"the first rank, on {topology.host(0)}, did not answer within {seconds:.0f} s; see its "
            f"output, and check whether another job uses {_place()} ({_first_line(error)})"
        ) from None
    if answer != "complete":
        raise UserError(answer)
    return store


def _job() -> str:
    """Key prefix that distinguishes this attempt of this job from others on the same port."""
    names = ("DIST_METAXLM_JOB", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return "dist_metaxlm/" + "/".join(os.environ.get(name, "-") for name in names)


def _place() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _connect(topology: Topology, seconds: float) -> dist.Store:
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"MASTER_PORT={port!r} is not a port; give a number from 1024 to 65535")
    if topology.world_size == 1:
        # Nobody else connects: an address or port left over from another job does not matter.
        return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent keeps a store on the port already
    host = topology.rank == 0 and not agent
    limit = min(seconds, _OWN_STORE_SECONDS) if host or agent else seconds
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(port), is_master=host, wait_for_workers=False, timeout=timedelta(seconds=limit)
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UserError(_no_store(topology, int(port), host, agent, limit, error)) from None
    store.set_timeout(timedelta(seconds=seconds))
    return store


def _no_store(topology: Topology, port: int, host: bool, agent: bool, seconds: float, error: Exception) -> str:
    """Why the store was neither opened nor reached, and what to do."""
    here, reason = socket.gethostname(), _first_line(error)
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return (
            f"port {port} of {here} is taken by {holder(port)}; give the launcher another one, such as "
            "deepspeed --master_port 29501 or torchrun --master_port 29501"
        )
    if host:
        return (
            f"the first rank, this process on {here}, is not reached at {_place()} within {seconds:.0f} s ({reason}); set "
            f"MASTER_ADDR to an address of this machine; {by_hand(topology)}: if no launcher set them, "
            f"{remedy_by_hand(topology)}"
        )
    if agent:
        return (
            f"no torchrun answers at {_place()} within {seconds:.0f} s ({reason}), although "
            "TORCHELASTIC_USE_AGENT_STORE=True; start again through torchrun, or unset RANK, WORLD_SIZE and TORCHELASTIC_*"
        )
    return (
        f"{here} cannot reach the first node, {topology.host(0)}, at {_place()} within {seconds:.0f} s ({reason}); check "
        f"that its first rank runs and that no firewall is between them; {by_hand(topology)}: if no launcher set them, "
        f"{remedy_by_hand(topology)}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:160]


def _wait_for_all_ranks(topology: Topology, store: dist.Store, seconds: float) -> str | None:
    """Wait for all ranks; returns an error text, or None."""
    deadline, missing = time.monotonic() + seconds, list(range(topology.world_size))
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
        time.sleep(_POLL_SECONDS if missing else 0.0)
    if missing:
        hosts = list(dict.fromkeys(topology.host(rank) for rank in missing))
        return (
            f"{len(missing)} of {topology.world_size} ranks did not join within {seconds:.0f} s: "
            f"{', '.join(hosts[:8])} ({_ranks(missing)}); see the output of these nodes, or start without "
            f"them (parallel.join_seconds sets the time limit){_nobody(topology, missing)}"
        )
    announced: list[Announced] = [json.loads(store.get(f"here/{rank}")) for rank in range(topology.world_size)]
    return next(filter(None, (_difference(rank, other, announced[0]) for rank, other in enumerate(announced))), None)


def _nobody(topology: Topology, missing: list[int]) -> str:
    """A further remedy where no other rank has joined."""
    if len(missing) < topology.world_size - 1 or topology.launcher not in ("environment", "shell", "slurm"):
        return ""
    return f"; {by_hand(topology)}: if no launcher set them, {remedy_by_hand(topology)}"


class Announced(TypedDict):
    """What a rank tells the others when it joins."""

    host: str
    size: int
    """Ranks that it was started for."""
    facts: dict[str, str]


def _difference(rank: int, other: Announced, first: Announced) -> str | None:
    """Error text for the first fact in which a rank differs from the first rank, or None."""
    if other["size"] != first["size"]:
        return (
            f"rank {rank} on {other['host']} was started for {pluralize(other['size'], 'rank')}, rank 0 for "
            f"{first['size']}; start all nodes with the same hostfile"
        )
    for name, value in first["facts"].items():
        if other["facts"].get(name) != value:
            return (
                f"{name} is {other['facts'].get(name)} on {other['host']} (rank {rank}) and {value} on {first['host']} "
                f"(rank 0); {remedy(name)}"
            )
    return None


def _ranks(missing: list[int]) -> str:
    return "rank " + ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
