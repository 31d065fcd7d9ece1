#!/usr/bin/env python3
"""Pretrain one phase of a recipe, under any launcher.

examples:
  deepspeed launch/pretrain.py --phase meta
  deepspeed launch/pretrain.py --phase cross
  deepspeed --num_accelerators 2 launch/pretrain.py --phase joint --run_dir runs/joint phases.joint.steps=100
  torchrun --nproc_per_node 2 launch/pretrain.py --phase meta --recipe my-recipe.yaml seed=2
  python launch/pretrain.py --phase meta --recipe xlmr-base --deepspeed_config ds_configs/zero2_bf16.json
"""

from __future__ import annotations

import argparse
import os
import sys

from dist_metaxlm.errors import run_command


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", required=True, choices=("meta", "cross", "joint"),
                        help="meta: English; cross: all languages, from the run's meta phase; joint: both at once")
    parser.add_argument("--recipe", default="quickstart",
                        help="name of a shipped recipe or a YAML file (default: quickstart)")
    parser.add_argument("--deepspeed_config", help="DeepSpeed JSON (default: from ds_configs/ by the recipe's ZeRO stage "
                                                   "and precision)")
    parser.add_argument("--run_dir", help="folder of the run (default: runs/NAME of the recipe)")
    parser.add_argument("--resume", default="auto", metavar="auto|never|STEP",
                        help="auto: go on from the newest intact checkpoint; never: set it aside and start anew; "
                             "STEP: from that checkpoint")
    parser.add_argument("--change", action="store_true",
                        help="go on with another length, learning rate or optimiser than the phase was started with "
                             "(phases.*.steps, tokens, learning_rate, optimizer); a finished phase with more steps")
    parser.add_argument("--init_from", metavar="FOLDER",
                        help="start from a model that launch/convert.py import wrote (for cross: instead of the meta phase)")
    parser.add_argument("--expect_world_size", type=int, metavar="N",
                        help="refuse to start with another number of ranks than N (launch/nodes/start.py gives it)")
    parser.add_argument("--dry_run", action="store_true",
                        help="check the recipe on these ranks, print where each would run, start nothing")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe, such as "
                                                                          "phases.meta.steps=20")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse()
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"phase {arguments.phase}: loading", file=sys.stderr, flush=True)  # torch and DeepSpeed take seconds
    from dist_metaxlm.evaluation.probe import HeldoutProbe
    from dist_metaxlm.training.pretrain import Options, pretrain

    pretrain(Options(arguments.phase, arguments.recipe, tuple(arguments.overrides), arguments.deepspeed_config,
                     arguments.run_dir, arguments.resume, arguments.init_from, arguments.expect_world_size,
                     arguments.dry_run, arguments.change), HeldoutProbe)


if __name__ == "__main__":
    run_command(main)
