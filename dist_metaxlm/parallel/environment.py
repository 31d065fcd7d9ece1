"""Environment variables of NCCL, gloo and thread pools: set explicitly, logged, and forwarded to other nodes by name.

Values that the user has set are kept. Names: NVIDIA's NCCL guide ("Environment Variables"), torch's distributed docs.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.topology import Topology

_FORWARDED = re.compile(
    r"(NCCL|GLOO|TORCH_NCCL|TORCH_FR|UCX|FI|DIST_METAXLM)_[A-Z0-9_]+|(OMP|MKL)_NUM_THREADS|CUDA_DEVICE_MAX_CONNECTIONS|"
    r"DS_ACCELERATOR|DEEPSPEED_LOG|PYTHONPATH|PYTHONUNBUFFERED|PYTHONHASHSEED|LD_LIBRARY_PATH|TRITON_CACHE_DIR"
)
_SHOWN = re.compile(r"(NCCL|GLOO|TORCH_NCCL|TORCH_FR)_[A-Z0-9_]+|OMP_NUM_THREADS|MASTER_(ADDR|PORT)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_@+=:,./ \[\]{}()^*~#-]")
_SIOCGIFADDR = 0x8915


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the starting shell that are forwarded to other nodes, without tokens and passwords.

    Raises:
        UserError: if a shell on the other node would change a value.
    """
    variables = {name: environment[name] for name in sorted(environment) if _FORWARDED.fullmatch(name)}
    for name, value in variables.items():
        wrong = _UNSAFE.search(value)
        if wrong:
            raise UserError(
                f"{name} holds the character {wrong[0]!r}, which a shell on the way to other nodes would change; "
                f"unset {name}, or give it a plain value"
            )
    return variables


def complete_environment(topology: Topology, cuda: bool, tensor: int = 1) -> None:
    """Set the variables of this rank's collectives that are still unset; call it before joining the process group.

    `tensor`: ranks of a tensor group.

    Raises:
        UserError: when the first node's name cannot be resolved.
    """
    defaults: dict[str, str] = {}
    if topology.nodes > 1:
        interface = interface_towards(os.environ["MASTER_ADDR"])
        # With CUDA too: batches, pieces of checkpoints and stop requests are sent over gloo. By default gloo binds to the
        # address of this node's host name, which is 127.0.1.1 on Debian.
        defaults = {"GLOO_SOCKET_IFNAME": interface}
        if cuda:  # "=" selects exactly this interface, not all with this prefix
            defaults["NCCL_SOCKET_IFNAME"] = f"={interface}"
    if cuda and tensor > 1:
        # One hardware queue per device: collectives then start in the order in which megatron-core issues them and
        # overlap with matrix products (before sm_100). Read when the device is first used.
        defaults["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if cuda:
        # A pipeline sends one tensor after another over the group of all ranks; torch warns about that at every start.
        defaults["TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING"] = "false"
        # The flight recorder keeps the last collectives and dumps them when one times out.
        defaults |= {"NCCL_DEBUG": "WARN", "TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def shown() -> str:
    """The variables that configure this rank's collectives and threads, as one line for the log."""
    return " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if _SHOWN.fullmatch(name))


def interface_towards(host: str) -> str:
    """Name of the interface that routes to `host`; on `host` itself, the first one that is not a loopback.

    Raises:
        UserError: when the name does not resolve, or no interface routes to it.
    """
    addresses = interface_addresses()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing; the kernel picks the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"{os.uname().nodename} has no route to the first node {host!r} ({error.strerror}); give its "
            "address as --master_addr or MASTER_ADDR, or add it to /etc/hosts on every node"
        ) from None
    for name, address in addresses.items():
        if address == own and not address.startswith("127."):
            return name
    outward = [name for name, address in addresses.items() if not address.startswith("127.")]
    if not outward:
        raise UserError(
            f"{os.uname().nodename} has no network interface with an address besides loopback, and the job has "
            "several nodes; bring one up, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
    return outward[0]


def interface_addresses() -> dict[str, str]:
    """IPv4 address of every interface that has one."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an address
            addresses[name] = socket.inet_ntoa(answer[20:24])
    return addresses
