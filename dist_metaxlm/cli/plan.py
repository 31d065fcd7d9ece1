"""Show which layouts a recipe can run in on a cluster and the memory each needs, best first.

examples:
  metaxlm plan --recipe xlmr-large --cluster 16x8xH100
  metaxlm plan --recipe modern-base --cluster 8xA100-80GB --top 3
  metaxlm plan --recipe my-recipe.yaml --cluster 2x8xH200 --json phases.meta.sequence_length=256
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from dist_metaxlm.cli import plan_check
from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import run_command
from dist_metaxlm.invocation import program


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("plan"))
    parser.add_argument("--recipe", required=True, help="name of a shipped recipe or a YAML file")
    parser.add_argument(
        "--cluster", required=True, metavar="NODESxDEVICESxKIND", help="such as 16x8xH100, or 8xH200 for one node"
    )
    parser.add_argument("--top", type=int, default=12, help="layouts to show (default: 12); --json has all of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["check"]:
        plan_check.main(words[1:])
        return
    arguments = parse(words)
    from dist_metaxlm.planning.cluster import parse_cluster
    from dist_metaxlm.planning.plan import plan, plan_table, summary
    from dist_metaxlm.recipe.load import load_recipe

    recipe, cluster = load_recipe(arguments.recipe, arguments.overrides), parse_cluster(arguments.cluster)
    plans = plan(recipe, cluster)
    if arguments.json:
        print(json.dumps({**summary(recipe, cluster), "layouts": [candidate.as_dict() for candidate in plans]}, indent=1))
        return
    from rich.console import Console

    console = Console()
    for renderable in plan_table(recipe, cluster, plans, arguments.top):
        console.print(renderable, soft_wrap=isinstance(renderable, str))


if __name__ == "__main__":
    run_command(main)
