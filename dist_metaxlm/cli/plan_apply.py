"""Write the best layout of a recipe on a cluster into a recipe file, and its DeepSpeed configuration.

examples:
  metaxlm plan apply --recipe xlmr-large --cluster 8x8xH100 --output my-large.yaml
  metaxlm plan apply --recipe my.yaml --cluster 2x8xA100-80GB --choose 3 --output planned.yaml parallel.pipeline=1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import program


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=f"{program('plan')} apply")
    parser.add_argument("--recipe", required=True, help="name of a shipped recipe or a YAML file")
    parser.add_argument("--cluster", required=True, metavar="NODESxDEVICESxKIND", help="such as 16x8xH100")
    parser.add_argument("--output", required=True, metavar="FILE.yaml", help="recipe to write")
    parser.add_argument(
        "--deepspeed_output", metavar="FILE.json", help="DeepSpeed configuration to write (default: --output with .json)"
    )
    parser.add_argument(
        "--choose", type=int, default=1, metavar="N", help="row of the plan's table (default: 1, the fastest)"
    )
    parser.add_argument("--hardware", action="append", default=[], metavar="KEY=VALUE", help="as for metaxlm plan")
    parser.add_argument("--overwrite", action="store_true", help="replace the files if they exist")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str]) -> None:
    arguments = parse(words)
    output = Path(arguments.output)
    engine = Path(arguments.deepspeed_output or output.with_suffix(".json"))
    _check(arguments, output, engine)
    from dist_metaxlm.planning.cluster import parse_cluster
    from dist_metaxlm.planning.goodput.applied import recipe_with_layout
    from dist_metaxlm.planning.plan import does_not_fit, plan
    from dist_metaxlm.recipe.load import load_recipe
    from dist_metaxlm.storage.atomic import write_text

    recipe, cluster = (
        load_recipe(arguments.recipe, arguments.overrides),
        parse_cluster(arguments.cluster, arguments.hardware),
    )
    if recipe.deepspeed is not None:
        raise UserError(f"recipe {recipe.name} has DeepSpeed settings in its section deepspeed; take that section out first")
    fixed = {word.partition("=")[0].partition(".")[2] for word in arguments.overrides if word.startswith("parallel.")}
    plans = plan(recipe, cluster, fixed)
    if not plans[0].fits:
        raise UserError(does_not_fit(recipe, cluster, plans[0], fixed))
    fitting = [candidate for candidate in plans if candidate.fits]
    if arguments.choose > len(fitting):
        raise UserError(f"--choose {arguments.choose}: only {len(fitting)} layouts fit; give 1 to {len(fitting)}")
    chosen = fitting[arguments.choose - 1].layout
    text, written, commented = recipe_with_layout(arguments.recipe, arguments.overrides, chosen)
    from dist_metaxlm.deepspeed_adapter.config_files import shipped_file

    precision = "bf16" if written.training.precision == "auto" else written.training.precision
    name = shipped_file(written, precision, chosen.data)
    configuration = (resources.files("dist_metaxlm.ds_configs") / name).read_text(encoding="utf-8")
    write_text(output, text)
    write_text(engine, configuration)
    lost = "" if commented else " (without the comments of the source, because more than the layout changes)"
    print(f"wrote {output}{lost}: {chosen.name()}, micro-batches of {chosen.micro_batch_tokens:,} tokens")
    print(f"wrote {engine}: {name}, {precision}")
    phase = next(iter(written.phases))
    print(f"start each rank with: metaxlm pretrain --phase {phase} --recipe {output} --deepspeed_config {engine}")


def _check(arguments: argparse.Namespace, output: Path, engine: Path) -> None:
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output {output} is no recipe file; give a name that ends in .yaml")
    if engine.suffix != ".json":
        raise UserError(f"--deepspeed_output {engine} is no DeepSpeed file; give a name that ends in .json")
    if arguments.choose < 1:
        raise UserError(f"--choose {arguments.choose} is no row of the table; give 1 or more")
    for path in (output, engine):
        if path.is_dir() or (path.exists() and not arguments.overwrite):
            raise UserError(f"{path} exists already; give another name, or --overwrite")
