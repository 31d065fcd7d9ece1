"""The best layout of a recipe on clusters of several sizes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import LARGEST, Cluster
from dist_metaxlm.planning.plan import Plan, does_not_fit, plan, plan_overrides
from dist_metaxlm.planning.plan_table import cost
from dist_metaxlm.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """The recipe on one number of devices."""

    devices: int
    chosen: Plan | None
    """The fastest layout that fits; None: no layout fits."""
    reason: str
    """Why no layout fits, or is legal; empty otherwise."""
    tokens_per_second: float
    """Over all devices; 0 without a layout, as the other figures."""
    mfu: float
    days: float
    memory: int
    """Bytes of the fullest device."""
    efficiency: float
    """Tokens a second and device, relative to the smallest cluster that fits."""

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        if self.chosen is None:
            return {"devices": self.devices, "fits": False, "reason": self.reason}
        figures = {key: value for key, value in vars(self).items() if key not in ("chosen", "reason")}
        return {**figures, "fits": True, "overrides": plan_overrides(self.chosen.layout)}


def parse_sizes(text: str) -> list[int]:
    """`8,64,512` as increasing numbers of devices.

    Raises:
        UserError: for anything else.
    """
    try:
        sizes = sorted({int(word) for word in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1 or sizes[-1] > LARGEST:
        raise UserError(f"--scale {text!r} is not a list of numbers of devices, 1 to {LARGEST:,}, such as 8,64,512,1024")
    return sizes


def resized(cluster: Cluster, devices: int) -> Cluster:
    """The cluster with another number of devices: full nodes of the same kind, or a part of one node.

    Raises:
        UserError: for a number that is no multiple of the devices of a node.
    """
    each = cluster.devices_per_node
    if devices <= each:
        return replace(cluster, nodes=1, devices_per_node=devices)
    if devices % each:
        raise UserError(f"--scale: {devices:,} devices are not full nodes of {each}; give a multiple of {each}")
    return replace(cluster, nodes=devices // each)


def scale(recipe: Recipe, cluster: Cluster, sizes: Sequence[int], fixed: Collection[str] = ()) -> list[Scaled]:
    """The best layout on each number of devices; the batch is the recipe's on all of them.

    Raises:
        UserError: for a size that is not full nodes.
    """
    rows: list[Scaled] = []
    for place in [resized(cluster, devices) for devices in sizes]:
        first = next((row for row in rows if row.chosen is not None), None)
        rows.append(_row(recipe, place, fixed, first))
    return rows


def _row(recipe: Recipe, cluster: Cluster, fixed: Collection[str], first: Scaled | None) -> Scaled:
    try:
        best = plan(recipe, cluster, fixed)[0]
        reason = "" if best.fits else does_not_fit(recipe, cluster, best, fixed)
    except UserError as error:
        reason = str(error)
    devices = cluster.world_size
    if reason:
        return Scaled(
            devices=devices, chosen=None, reason=reason, tokens_per_second=0, mfu=0, days=0, memory=0, efficiency=0
        )
    figures = cost(recipe, cluster, best)
    speed = figures["tokens_per_second"]
    return Scaled(
        devices=devices,
        chosen=best,
        reason="",
        tokens_per_second=speed,
        mfu=figures["mfu"],
        days=figures["days"],
        memory=best.memory.total,
        efficiency=1.0 if first is None else speed / devices * first.devices / first.tokens_per_second,
    )
