"""Pretrain one phase of a recipe, under any launcher.

examples:
  deepspeed --module dist_metaxlm.cli.pretrain --phase meta
  deepspeed --module dist_metaxlm.cli.pretrain --phase cross
  deepspeed --num_accelerators 2 --module dist_metaxlm.cli.pretrain --phase joint --run_dir runs/joint phases.joint.steps=100
  torchrun --nproc_per_node 2 -m dist_metaxlm.cli.pretrain --phase meta --recipe my-recipe.yaml seed=2
  torchrun --nproc_per_node 2 -m dist_metaxlm.cli.pretrain --phase decay --recipe decay-branch --from meta@400
  python -m dist_metaxlm.cli.pretrain --phase meta --recipe xlmr-base --deepspeed_config ds_configs/zero2_bf16.json
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.launcher_watch import watch_launcher
from dist_metaxlm.launching.arguments import from_override, pretrain_parser


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    return pretrain_parser(__doc__).parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> None:
    # A launcher that ignores Ctrl-C (as in make demo) passes that on to ranks; a rank must handle it from its start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch_launcher()
    arguments = parse(words)
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"phase {arguments.phase}: loading", file=sys.stderr, flush=True)  # torch and DeepSpeed take seconds
    from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
    from dist_metaxlm.evaluation.probe import HeldoutProbe
    from dist_metaxlm.training.pretrain import Options, pretrain

    if arguments.from_ is not None and arguments.init_from is not None:
        raise UserError(
            f"--from {arguments.from_} and --init_from {arguments.init_from} exclude each other; give one of them"
        )
    pretrain(
        Options(
            arguments.phase,
            arguments.recipe,
            (*arguments.overrides, *from_override(arguments.phase, arguments.from_)),
            arguments.deepspeed_config,
            arguments.run_dir,
            arguments.resume,
            arguments.init_from,
            arguments.expect_world_size,
            arguments.dry_run,
            arguments.change,
        ),
        HeldoutProbe,
        HeldoutLoss,
    )


if __name__ == "__main__":
    run_command(main)
