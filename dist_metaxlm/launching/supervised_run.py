"""What a supervisor knows of the phase that its command trains: checkpoints, hangs, and the steps in which it died."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import MODULE, command_of
from dist_metaxlm.launching.arguments import pretrain_parser
from dist_metaxlm.liveness.reports import hang_sentences
from dist_metaxlm.parallel.topology import free_port
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.reporting.metrics import read_metrics
from dist_metaxlm.training.checkpointing.manifest import list_steps, step_folder
from dist_metaxlm.training.run.run_folder import PhaseFolder

_RENDEZVOUS = ("--rdzv", "--standalone")
_PORTS = ("--master_port", "--master-port")


class SupervisedRun:
    """The phase that `words`, a command line with `metaxlm pretrain` in it, trains."""

    def __init__(self, words: Sequence[str]) -> None:
        """
        Raises:
            UserError: if the command is no training, or its recipe is wrong.
        """
        arguments = pretrain_parser(prog="metaxlm pretrain").parse_intermixed_args(pretrain_words(words))
        self.recipe = load_recipe(arguments.recipe, arguments.overrides, layout_later=True)
        self.phase = str(arguments.phase)
        self.folder = PhaseFolder(arguments.run_dir or Path("runs") / self.recipe.name, self.phase)

    def newest(self) -> tuple[int, int]:
        """(step, time in ns) of the newest checkpoint; (0, 0) without one."""
        step = max(list_steps(self.folder.checkpoints), default=0)
        try:
            return step, step_folder(self.folder.checkpoints, step).stat().st_mtime_ns if step else 0
        except OSError:
            return 0, 0  # just removed

    def hangs(self) -> dict[str, str]:
        """Sentence about each hang so far, by its folder."""
        return hang_sentences(self.folder.path)

    def last_step(self) -> int:
        """The last step in the metrics; 0 without any."""
        records = read_metrics(self.folder.metrics) if self.folder.metrics.is_file() else []
        return int(records[-1]["step"]) if records else 0

    def samples(self, first: int, last: int) -> str:
        """First and last sample of the steps `first` to `last` (from 1), by objective; empty beyond the phase's end."""
        from dist_metaxlm.data.steps import StepPlan

        phase = self.recipe.phase(self.phase)
        plan = StepPlan(phase, self.phase, self.recipe.seed, 0, 1, None)
        ranges = [plan.samples(plan.objectives_at(step - 1)) for step in range(first, min(last, phase.total_steps) + 1)]
        names = {name: None for step in ranges for name in step}
        return ", ".join(
            f"{name} {min(s[name][0] for s in ranges if name in s)} to {max(s[name][1] for s in ranges if name in s)}"
            for name in names
        )


def pretrain_words(words: Sequence[str]) -> list[str]:
    """The words after `pretrain`, its module or its script in a command line.

    Raises:
        UserError: if the command does not train.
    """
    if words and words[0] == "pretrain":
        return list(words[1:])
    for place in range(len(words)):
        rest = tuple("-m" if word == "--module" else word for word in words[place:])
        command, count = command_of(rest)
        if command == "pretrain":
            return list(words[place + count :])
    raise UserError(
        f"--supervise restarts `metaxlm pretrain`, which is not in `{' '.join(words)}`; give a command such as "
        "`-- deepspeed --module dist_metaxlm.cli.pretrain --phase meta`"
    )


def resuming(words: Sequence[str]) -> list[str]:
    """The same command without --resume: after a restart the newest checkpoint counts."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--resume" and not word.startswith("--resume="):
            kept.append(word)
        skip = word == "--resume"
    return kept


def local_command(words: Sequence[str], python: str, attempt: int) -> list[str]:
    """The command of an attempt on this machine: with a port of its own where a launcher opens one.

    A port that the command names is counted up from attempt to attempt, because the last one may still be in use.
    """
    if words[0] == "pretrain":
        return [python, "-u", "-P", "-m", f"{MODULE}.pretrain", *words[1:]]
    command = list(words)
    program = os.path.basename(command[0])
    if program not in ("deepspeed", "torchrun") or any(word.startswith(_RENDEZVOUS) for word in command):
        return command
    for place, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name not in _PORTS:
            continue
        value = value if equals else command[place + 1]
        if not value.isdecimal():
            raise UserError(f"{name} {value} is not a port; give a number from 1024 to 65535")
        port = str(int(value) + attempt)
        command[place : place + 1 if equals else place + 2] = [name, port]
        return command
    return [command[0], "--master_port", str(free_port()), *command[1:]]
