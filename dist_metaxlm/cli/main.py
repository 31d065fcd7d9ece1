"""`metaxlm COMMAND ...`: the common entry point of all commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from dist_metaxlm.errors import EXIT_DONE, UserError, run_command
from dist_metaxlm.invocation import MODULE, SCRIPTS
from dist_metaxlm.text import did_you_mean

COMMANDS = {
    "init": "write a recipe for your own text, sized by the text and this machine",
    "pretrain": "train, resume or continue one phase of a recipe, under any launcher",
    "prepare": "corpus, held-out split, tokenizer and token store of a recipe",
    "evaluate": "evaluate phases of a run or Hugging Face encoders, and write the report",
    "convert": "write a phase as a Hugging Face folder, or read one",
    "plan": "layouts in which a recipe fits on a cluster, and the memory of each",
    "benchmark": "measure training, data, scaling and kernels on this machine",
    "study": "train and compare many runs: two phases against one",
    "launch": "start a command on the nodes of a hostfile; the Slurm batch script",
    "preflight": "check the nodes of a hostfile before a long run",
}
"""The commands and a line for each, in the order in which they are used."""
assert COMMANDS.keys() == SCRIPTS.keys()


def usage() -> str:
    """The text of `metaxlm --help`."""
    lines = [f"  {name:<10} {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metaxlm [--help] [--version] COMMAND ...",
            "",
            "Two-phase pretraining of cross-lingual encoders.",
            "",
            "commands:",
            *lines,
            "",
            "`metaxlm COMMAND --help` has options and examples. To train with several ranks on this machine:",
            "  deepspeed --module dist_metaxlm.cli.pretrain --phase meta",
            "  torchrun --nproc_per_node 2 -m dist_metaxlm.cli.pretrain --phase meta",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command named by the first word with the remaining words; without words, print the help.

    Errors: UserError for an unknown command, and the errors of the command.
    """
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return EXIT_DONE
    name, *rest = words
    if name == "--version":
        from importlib.metadata import version

        print(f"dist-metaxlm {version('dist-metaxlm')}")
        return EXIT_DONE
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UserError(
            f"metaxlm has no {kind} {name}{did_you_mean(name, [*COMMANDS, '--version'])} `metaxlm --help` lists them"
        )
    return import_module(f"{MODULE}.{name}").main(rest) or EXIT_DONE


def run() -> None:
    """The entry point of the `metaxlm` command."""
    run_command(main)
