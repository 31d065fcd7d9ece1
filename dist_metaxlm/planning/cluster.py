"""The devices of a plan and the links between them, from the command line: NODESxDEVICESxKIND and single figures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.hardware import DEVICES, Device, Link, device_named, link_named

LARGEST = 1_000_000
"""Devices of the largest cluster that a plan is made for."""
_EXAMPLE = "write it like 16x8xH100, 8xA100-80GB or, with the memory by hand, 8x48GB"
_BY_HAND = "A100-80GB"
"""Device whose speeds a device given by its memory alone has."""
_TEXTS = ("name", "source")


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal devices."""

    nodes: int
    devices_per_node: int
    device: Device
    links: tuple[Link, Link] | None = None
    """Link inside a node and link between nodes for each device; None: those of the device."""

    @property
    def world_size(self) -> int:
        """All devices."""
        return self.nodes * self.devices_per_node

    @property
    def inside(self) -> Link:
        """Link between devices of a node."""
        return self.links[0] if self.links else link_named(self.device.inside)

    @property
    def between(self) -> Link:
        """Link of each device to other nodes."""
        return self.links[1] if self.links else link_named(self.device.between)

    def ranks_to_nodes(self) -> tuple[int, ...]:
        """Number of the node of each rank; nodes are filled one after another."""
        return tuple(node for node in range(self.nodes) for _ in range(self.devices_per_node))

    def host(self, rank: int) -> str:
        """Placeholder name of the node of a rank."""
        return f"node {rank // self.devices_per_node}"


def parse_cluster(text: str, figures: Sequence[str] = ()) -> Cluster:
    """`16x8xH100` (16 nodes of 8), `8xH100` (one node) or `8x48GB` (memory by hand; speeds of an A100).

    figures: `key=value` for any field of the device, and `inside.` or `between.` and a field of a link, such as
    `memory=64GB`, `bf16_flops=4e14`, `between.bandwidth=12.5e9`; `inside=` and `between=` take the name of a link.

    Raises:
        UserError: for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x((?!x)[A-Za-z][\w-]*|\d+(?:\.\d+)?GB|\d+\.\d+)", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"--cluster {text!r} is not NODESxDEVICESxKIND; {_EXAMPLE}")
    nodes, devices = int(match[1] or 1), int(match[2])
    if nodes < 1 or devices < 1:
        raise UserError(f"--cluster {text!r} has no devices; {_EXAMPLE}")
    if nodes * devices > LARGEST:
        raise UserError(f"--cluster {text!r} has {nodes * devices:,} devices, more than {LARGEST:,}; take fewer")
    device = _by_memory(match[3]) if match[3][0].isdigit() else device_named(match[3])
    return with_figures(Cluster(nodes, devices, device), figures)


def with_figures(cluster: Cluster, figures: Sequence[str]) -> Cluster:
    """The cluster with single figures replaced; `figures` as in `parse_cluster`."""
    device, links = cluster.device, {"inside": cluster.inside, "between": cluster.between}
    for figure in figures:
        key, equals, value = figure.partition("=")
        where, _, field = key.rpartition(".")
        if key in links and equals:
            links[key] = link_named(value)
            device = replace(device, **{key: links[key].name})  # type: ignore[arg-type]
        elif where in links and field in _numbers(Link):
            links[where] = replace(links[where], **{field: _number(figure, field, value)})  # type: ignore[arg-type]
        elif not where and field in _numbers(Device):
            number = _number(figure, field, value)
            whole = round(number) if field in ("memory", "processors") else number
            device = replace(device, **{field: whole})  # type: ignore[arg-type]
        else:
            known = [*_numbers(Device), *(f"{link}.{name}" for link in links for name in _numbers(Link)), *links]
            raise UserError(f"--hardware {figure!r} is no figure of a device or link; known: {', '.join(known)}")
    return replace(cluster, device=device, links=(links["inside"], links["between"]))


def _by_memory(text: str) -> Device:
    """A device of that many GB, with the speeds of an A100."""
    size = float(text.upper().removesuffix("GB"))
    if not 0.1 <= size <= 10_000:
        raise UserError(f"--cluster: {text} is not the memory of a device; give 0.1 to 10,000 GB, such as 8x48GB")
    plain = text.upper() if text.upper().endswith("GB") else f"{text}GB"
    return replace(DEVICES[_BY_HAND], name=plain, memory=round(size * 1e9), source=f"memory by hand, speeds of {_BY_HAND}")


def _numbers(kind: type[Device] | type[Link]) -> list[str]:
    texts = (*_TEXTS, "inside", "between")
    return [item.name for item in fields(kind) if item.name not in texts]


def _number(figure: str, field: str, value: str) -> float:
    """A positive number; `GB` and `TB` are accepted after it."""
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*([GT]B)?", value.strip(), re.IGNORECASE)
    unit = {"": 1.0, "GB": 1e9, "TB": 1e12}
    try:
        number = float(match[1]) * unit[(match[2] or "").upper()] if match else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"--hardware {figure!r} needs a positive number, such as {field}=64GB or {field}=1.5e12")
    if field.endswith("efficiency") and number > 1:
        raise UserError(f"--hardware {figure!r} is a share of a peak; give a number up to 1")
    return number
