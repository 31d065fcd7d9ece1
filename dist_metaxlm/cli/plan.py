"""Show in which layouts a recipe can run on a cluster, the memory and the time of each, fastest first.

`plan check ROWS.tsv` compares the predictions with published runs; `plan recipes` plans all shipped recipes;
`plan apply` writes the best layout into a recipe.

examples:
  metaxlm plan --recipe xlmr-large --cluster 16x8xH100
  metaxlm plan --recipe modern-base --cluster 8xA100-80GB --top 3
  metaxlm plan --recipe xlmr-xl --cluster 2x8x48GB --price_per_hour 2.5 parallel.tensor=2
  metaxlm plan --recipe xlmr-base --cluster 4x8xH100 --hardware between.bandwidth=12.5e9
  metaxlm plan --recipe my-recipe.yaml --cluster 2x8xH200 --json phases.meta.sequence_length=256
  metaxlm plan --recipe xlmr-xl --cluster 128x8xH100 --simulate 30 --pictures pictures
  metaxlm plan --recipe xlmr-large --cluster 8x8xH100 --scale 8,64,512,1024
  metaxlm plan apply --recipe xlmr-large --cluster 8x8xH100 --output my-large.yaml
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict

from dist_metaxlm.cli import plan_apply, plan_check, plan_recipes
from dist_metaxlm.cli.plan_goodput import add_goodput_options, check_goodput_options, show_scale, show_simulation
from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.invocation import program

WIDTH = 110
"""Least width of the table in characters; a pipe or a narrow terminal would cut it."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("plan"))
    parser.add_argument("--recipe", required=True, help="name of a shipped recipe or a YAML file")
    parser.add_argument(
        "--cluster",
        required=True,
        metavar="NODESxDEVICESxKIND",
        help="such as 16x8xH100, 8xH200 for one node, 8x48GB by memory",
    )
    parser.add_argument("--top", type=int, default=12, help="layouts to show (default: 12); --json has all of them")
    parser.add_argument(
        "--hardware",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a figure of the device or, after inside. or between., of a link, such as between.bandwidth=12.5e9",
    )
    parser.add_argument("--price_per_hour", type=float, metavar="PRICE", help="of one device, for the price of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_goodput_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if words is None else words)
    commands = {"apply": plan_apply.main, "check": plan_check.main, "recipes": plan_recipes.main}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
        return
    arguments = parse(words)
    _check(arguments)
    from dist_metaxlm.planning.cluster import parse_cluster
    from dist_metaxlm.planning.plan import does_not_fit, plan
    from dist_metaxlm.planning.plan_table import plan_table, plan_values, summary
    from dist_metaxlm.planning.speed.reasons import advise, illegal_layouts
    from dist_metaxlm.recipe.load import load_recipe

    recipe, cluster = (
        load_recipe(arguments.recipe, arguments.overrides),
        parse_cluster(arguments.cluster, arguments.hardware),
    )
    fixed = {word.partition("=")[0].partition(".")[2] for word in arguments.overrides if word.startswith("parallel.")}
    if arguments.scale is not None:
        return show_scale(recipe, cluster, fixed, arguments)
    plans = plan(recipe, cluster, fixed)
    if not plans[0].fits:
        raise UserError(does_not_fit(recipe, cluster, plans[0], fixed))
    if arguments.simulate is not None:
        return show_simulation(recipe, cluster, plans[0], arguments)
    price = arguments.price_per_hour
    advice, refused = advise(recipe, cluster, plans, fixed), illegal_layouts(recipe, cluster)
    if arguments.json:
        values = {
            **summary(recipe, cluster),
            "layouts": plan_values(recipe, cluster, plans, price),
            "advice": [asdict(one) for one in advice],
            "illegal": refused,
        }
        print(json.dumps(values, indent=1))
        return
    from rich.console import Console

    console = Console()
    console = console if console.width >= WIDTH else Console(width=WIDTH)
    for renderable in plan_table(recipe, cluster, plans, arguments.top, advice, refused, price):
        console.print(renderable, soft_wrap=isinstance(renderable, str))


def _check(arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} shows no layout; give 1 or more")
    check_goodput_options(arguments)
    price = arguments.price_per_hour
    if price is not None and not (math.isfinite(price) and 0 < price < 1e6):
        raise UserError(f"--price_per_hour {price:g} is not the price of a device hour; give a number above 0, such as 2.5")


if __name__ == "__main__":
    run_command(main)
