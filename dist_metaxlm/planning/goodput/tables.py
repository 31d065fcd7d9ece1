"""Simulations and scaling as lines and tables for a terminal (rich renderables)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.goodput.failures import DEVICE_HOURS, SLOW_FACTORS, SLOW_SECONDS
from dist_metaxlm.planning.goodput.intervals import Goodput, Simulation
from dist_metaxlm.planning.goodput.scale import Scaled
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from rich.console import RenderableType


def simulation_lines(recipe: Recipe, cluster: Cluster, result: Simulation) -> list[RenderableType]:
    """Goodput with its interval, where the time goes, and the intervals that were tried."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    job, fleet, seconds = result.job, result.fleet, result.job.step
    lost = ", ".join(f"{name} {share:.2%}" for name, share in result.shares.items())
    table = Table(title="checkpoint intervals", pad_edge=False, box=SIMPLE_HEAD)
    for heading in ("steps", "minutes", "goodput", "95 % of runs", ""):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for one in result.tried:
        table.add_row(
            f"{one.interval:,}",
            f"{one.interval * seconds / 60:,.1f}",
            f"{one.mean:.2%}",
            f"{one.low:.2%} to {one.high:.2%}",
            _remark(one, result),
        )
    return [
        f"{recipe.name} on {pluralize(cluster.world_size, 'device', ',')} of {cluster.device.name}, {result.days:g} days, "
        f"{pluralize(result.seeds, 'run')}",
        f"a step takes {seconds:.3g} s; a checkpoint every {pluralize(job.interval, 'step', ',')} stops training for "
        f"{job.waits:.3g} s and is on the disk {job.write:.3g} s later",
        f"a failure every {fleet.between_failures / 3600:,.3g} h ({fleet.device_hours:,.0f} device hours; Llama 3: "
        f"{DEVICE_HOURS:,.0f}), a restart of {fleet.restart:,.4g} s; a slow device every {fleet.between_slow / 3600:,.3g} h "
        f"for {SLOW_SECONDS[0]:g} s to {SLOW_SECONDS[1] / 3600:g} h, {SLOW_FACTORS[0]} to {SLOW_FACTORS[1]} times slower",
        f"goodput {result.goodput.mean:.2%} (95 % of runs: {result.goodput.low:.2%} to {result.goodput.high:.2%}), "
        f"{result.failures:.1f} failures a run",
        f"time by use: {lost}",
        f"the recipe's steps take {result.recipe_days:.3g} days at this goodput",
        table,
        _closing(result),
    ]


def _remark(one: Goodput, result: Simulation) -> str:
    names = {"recipe": result.job.interval, "best": result.best.interval, "Young": result.young, "Daly": result.daly}
    return ", ".join(name for name, interval in names.items() if interval == one.interval)


def _closing(result: Simulation) -> str:
    gain = result.best.mean - result.goodput.mean
    if gain < 0.0005:
        return f"training.checkpoint_interval={result.job.interval} is within 0.05 % of the best interval"
    return f"training.checkpoint_interval={result.best.interval} gains {gain:.2%} goodput"


def scale_lines(recipe: Recipe, cluster: Cluster, rows: Sequence[Scaled]) -> list[RenderableType]:
    """One row for each number of devices."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"{recipe.name} on {cluster.device.name}, best layout of each size", pad_edge=False, box=SIMPLE_HEAD)
    for heading in ("devices", "TP", "PP", "DP", "ZeRO", "tokens", "GB", "tokens/s", "efficiency", "MFU", "days"):
        table.add_column(heading, justify="right", no_wrap=True)
    lines: list[RenderableType] = []
    for row in rows:
        if row.chosen is None:
            lines.append(f"{row.devices:,} devices: {row.reason}")
            continue
        layout = row.chosen.layout
        table.add_row(
            f"{row.devices:,}",
            *(str(value) for value in (layout.tensor, layout.pipeline, layout.data, layout.zero_stage)),
            f"{row.chosen.micro_batch_tokens:,}",
            f"{row.memory / 1e9:.1f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.efficiency:.0%}",
            f"{row.mfu:.1%}",
            f"{row.days:.3g}",
        )
    batch = "efficiency: tokens/s a device relative to the first row; the batch is the recipe's on every size"
    return [table, batch, *lines]
