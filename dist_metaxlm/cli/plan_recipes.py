"""Plan all shipped recipes on several clusters: the fastest layout of each, as a Markdown table.

examples:
  metaxlm plan recipes
  metaxlm plan recipes --devices 8 64 --kinds H200 --recipes xlmr-base xlmr-xl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import program

ON_NODE = 8
"""Devices of a node."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=f"{program('plan')} recipes")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64, 512, 1024], help="sizes of the clusters")
    parser.add_argument("--kinds", nargs="+", default=["H100", "H200"], help="kinds of devices")
    parser.add_argument("--recipes", nargs="+", default=[], help="names or YAML files (default: all shipped recipes)")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    arguments = parse(words)
    from dist_metaxlm.planning.cluster import Cluster
    from dist_metaxlm.planning.hardware import device_named
    from dist_metaxlm.planning.plan_table import recipes_markdown
    from dist_metaxlm.recipe.load import load_recipe, shipped_recipes

    for devices in arguments.devices:
        if devices < 1 or (devices > ON_NODE and devices % ON_NODE):
            raise UserError(f"--devices {devices} fills no nodes of {ON_NODE}; give 1 to {ON_NODE} or a multiple of it")
    clusters = [
        Cluster(max(1, devices // ON_NODE), min(devices, ON_NODE), device_named(kind))
        for kind in arguments.kinds
        for devices in arguments.devices
    ]
    recipes = [load_recipe(name, []) for name in arguments.recipes or shipped_recipes()]
    print(recipes_markdown(recipes, clusters))
