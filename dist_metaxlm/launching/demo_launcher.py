"""Starts `make demo` on this machine, on as many devices as divide every step evenly.

    python -m dist_metaxlm.launching.demo_launcher [key=value ...]

prints the words before the script (or before `--module dist_metaxlm.cli.pretrain` if the command is `deepspeed`); the
command must be on the PATH. `deepspeed --num_accelerators N` uses the first N devices of the machine, whatever
CUDA_VISIBLE_DEVICES is, so the devices are named.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence

from dist_metaxlm import logs
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.recipe.sharing import undivided
from dist_metaxlm.text import pluralize

logger = logging.getLogger(__name__)


def most_ranks(recipe: Recipe, devices: int) -> int:
    """The largest number of `devices` that divides both phases evenly; all if none does, and training reports why."""
    copy = recipe.parallel.tensor * recipe.parallel.pipeline
    phases = [phase for name, phase in recipe.phases.items() if name in ("meta", "cross")]
    fitting = (
        ranks
        for ranks in range(devices, 0, -1)
        if not ranks % copy and not any(undivided(phase, ranks // copy) for phase in phases)
    )
    return next(fitting, devices)


def command(recipe: Recipe, visible: Sequence[str], cores: int) -> list[str]:
    """The launcher and its options for the devices `visible` (as CUDA_VISIBLE_DEVICES names them), without any for cores.

    Raises:
        UserError: for several devices that are not named by number.
    """
    launcher = ["deepspeed", "--log_level", "error"]
    if not visible:
        return [*launcher, "--num_accelerators", str(min(2, cores))]
    ranks = most_ranks(recipe, len(visible))
    if ranks < len(visible):
        logger.warning(
            f"using {ranks} of {pluralize(len(visible), 'device')}: no larger number divides the batches of recipe "
            f"{recipe.name} evenly"
        )
    if ranks == 1:
        return ["python"]  # which uses the first of them, whatever its name
    if not all(name.isdecimal() for name in visible):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={','.join(visible)} does not name devices by number, which deepspeed "
            "requires; give their numbers (nvidia-smi -L shows them), or only one device"
        )
    return [*launcher, "--include", f"localhost:{','.join(visible[:ranks])}"]


def main() -> None:
    import torch

    logs.set_up(all_to_stderr=True)  # standard output is the command that make runs
    recipe = load_recipe("quickstart", sys.argv[1:])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    # CUDA ignores all devices after the first unknown one.
    visible = named[:devices] if named else [str(number) for number in range(devices)]
    print(shlex.join(command(recipe, visible, os.cpu_count() or 1)))


if __name__ == "__main__":
    run_command(main)
