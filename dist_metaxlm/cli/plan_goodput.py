"""The options of `metaxlm plan` about failures and cluster sizes: --simulate and --scale."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_metaxlm.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dist_metaxlm.planning.cluster import Cluster
    from dist_metaxlm.planning.plan import Plan
    from dist_metaxlm.recipe.schema import Recipe

WIDTH = 110
_SIMULATED = ("mtbf", "restart", "slow_every", "checkpoint_pause", "seeds")
"""Options that need --simulate."""


def add_goodput_options(parser: argparse.ArgumentParser) -> None:
    """Register the options."""
    group = parser.add_argument_group("failures and cluster sizes")
    group.add_argument("--simulate", type=float, metavar="DAYS", help="simulate the best layout with failures for DAYS")
    group.add_argument("--mtbf", type=float, metavar="HOURS", help="device hours between failures (default: 50676, Llama 3)")
    group.add_argument(
        "--restart", type=float, metavar="SECONDS", help="from a failure until training goes on (default: 900)"
    )
    group.add_argument("--slow_every", type=float, metavar="HOURS", help="device hours between slow periods; inf: none")
    group.add_argument("--checkpoint_pause", type=float, metavar="SECONDS", help="of a checkpoint (default: predicted)")
    group.add_argument("--seeds", type=int, metavar="N", help="simulated runs (default: 20)")
    group.add_argument("--scale", metavar="N,N,...", help="best layout on each of these numbers of devices")
    group.add_argument("--pictures", metavar="FOLDER", help="write step.svg and run.svg, or scale.svg, into FOLDER")


def check_goodput_options(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is planned.

    Raises:
        UserError: naming them.
    """
    if arguments.simulate is None:
        given = next((name for name in _SIMULATED if getattr(arguments, name) is not None), None)
        if given:
            raise UserError(f"--{given} is a setting of a simulation; add --simulate DAYS, such as --simulate 30")
        if arguments.pictures is not None and arguments.scale is None:
            raise UserError("--pictures draws a simulation or a scaling table; add --simulate DAYS or --scale 8,64,512")
    elif arguments.scale is not None:
        raise UserError("--simulate and --scale are two questions; give one of them")
    seeds = arguments.seeds
    if seeds is not None and not 1 <= seeds <= 1000:
        raise UserError(f"--seeds {seeds} is not a number of runs; give 1 to 1000")
    pause = arguments.checkpoint_pause
    if pause is not None and not 0 < pause <= 86400:
        raise UserError(f"--checkpoint_pause {pause:g} is not the pause of a checkpoint; give seconds above 0, up to 86400")
    if arguments.pictures is not None and Path(arguments.pictures).exists() and not Path(arguments.pictures).is_dir():
        raise UserError(f"--pictures {arguments.pictures} is a file; give a folder")


def show_scale(recipe: Recipe, cluster: Cluster, fixed: Collection[str], arguments: argparse.Namespace) -> None:
    """Plan all sizes, draw the picture, print the table or JSON."""
    from dist_metaxlm.planning.goodput.scale import parse_sizes, scale
    from dist_metaxlm.planning.goodput.tables import scale_lines

    rows = scale(recipe, cluster, parse_sizes(arguments.scale), fixed)
    if all(row.chosen is None for row in rows):
        raise UserError(rows[-1].reason)
    drawn = []
    if arguments.pictures is not None:
        from dist_metaxlm.planning.goodput.pictures import draw_scale

        drawn = [draw_scale(Path(arguments.pictures) / "scale.svg", rows)]
    if arguments.json:
        device = cluster.device.name
        print(json.dumps({"recipe": recipe.name, "device": device, "scale": [row.as_dict() for row in rows]}, indent=1))
        return
    _print([*scale_lines(recipe, cluster, rows), *(f"wrote {path}" for path in drawn)])


def show_simulation(recipe: Recipe, cluster: Cluster, chosen: Plan, arguments: argparse.Namespace) -> None:
    """Simulate a plan, draw the pictures, print the tables or JSON.

    Raises:
        UserError: for values with which no simulation makes sense.
    """
    from dist_metaxlm.planning.goodput.failures import DEVICE_HOURS, RESTART, Fleet, check_fleet
    from dist_metaxlm.planning.goodput.intervals import planned_job, simulate_plan
    from dist_metaxlm.planning.goodput.tables import simulation_lines
    from dist_metaxlm.planning.plan import plan_overrides

    fleet = Fleet(
        devices=cluster.world_size,
        device_hours=DEVICE_HOURS if arguments.mtbf is None else arguments.mtbf,
        slow_hours=DEVICE_HOURS if arguments.slow_every is None else arguments.slow_every,
        restart=RESTART if arguments.restart is None else arguments.restart,
    )
    check_fleet(fleet, arguments.simulate)
    job = planned_job(recipe, cluster, chosen, arguments.checkpoint_pause)
    steps = sum(phase.total_steps for phase in recipe.phases.values())
    result = simulate_plan(job, fleet, arguments.simulate, arguments.seeds or 20, steps * job.step)
    drawn = []
    if arguments.pictures is not None:
        from dist_metaxlm.planning.goodput.pictures import draw_run, draw_step

        folder, phase = Path(arguments.pictures), next(iter(chosen.times))
        drawn = [draw_step(folder / "step.svg", chosen.times[phase], phase), draw_run(folder / "run.svg", result.example)]
    words = plan_overrides(chosen.layout)
    if arguments.json:
        print(json.dumps({"recipe": recipe.name, "overrides": words, "simulation": result.as_dict()}, indent=1))
        return
    _print([f"layout: {' '.join(words)}", *simulation_lines(recipe, cluster, result), *(f"wrote {path}" for path in drawn)])


def _print(renderables: Sequence[RenderableType]) -> None:
    from rich.console import Console

    console = Console()
    console = console if console.width >= WIDTH else Console(width=WIDTH)
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))
