"""Prepare the data of a recipe: corpus, held-out split, tokenizer and token store; existing results are kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.invocation import program
from dist_metaxlm.text import did_you_mean

EXAMPLES = """examples:
  metaxlm prepare                                     # everything the quickstart recipe needs
  metaxlm prepare --recipe mine.yaml data.directory=data/mine
  metaxlm prepare tokenizer --recipe mine.yaml        # stop after the tokenizer
  mpirun -n 8 metaxlm prepare store --recipe mine.yaml  # over MPI ranks on machines that share data.directory
  metaxlm prepare inspect --phase cross --objective tlm --sample 12345   # the trainer's input
  metaxlm prepare verify --json                       # compare every file with its checksum

commands (default: store): corpus, heldout, tokenizer, store run the missing steps up to that one; verify checks them;
inspect prints a sample.
"""
COMMANDS = ("corpus", "heldout", "tokenizer", "store", "verify", "inspect")


def main(words: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, prog=program("prepare"), epilog=EXAMPLES)
    parser.add_argument(
        "words", nargs="*", metavar="[command] key=value", help="a command, then any field of the recipe as key=value"
    )
    parser.add_argument("--recipe", default="quickstart", help="name of a shipped recipe or a YAML file")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that clean the corpus, and per rank that write the store (default: number of cores)",
    )
    parser.add_argument("--phase", default="meta", help="inspect: phase of the recipe (default: meta)")
    parser.add_argument("--objective", help="inspect: name of an objective (default: the phase's first)")
    parser.add_argument("--sample", type=int, default=0, help="inspect: number of the sample, from 0 (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    arguments = parser.parse_intermixed_args(words)

    from dist_metaxlm.preparation import prepare
    from dist_metaxlm.preparation.workers.communicator import detect_ranks
    from dist_metaxlm.recipe.load import load_recipe

    command, overrides = split(arguments.words)
    recipe = load_recipe(arguments.recipe, overrides)
    if command == "inspect":
        from dist_metaxlm.data import inspection

        sample = inspection.inspect(recipe, arguments.phase, arguments.objective, arguments.sample)
        print(json.dumps(sample, ensure_ascii=False) if arguments.json else inspection.as_text(sample))
        return
    start = time.perf_counter()
    if command == "verify":
        verified = {"verified_files": prepare.verify(recipe)}
    else:
        ranks = detect_ranks()
        prepare.prepare(
            recipe,
            partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True),
            command,
            arguments.workers,
            ranks,
        )
        verified = {}
        if not ranks.first:
            return
    outcome = {"command": command, **prepare.describe(recipe), **verified, "seconds": round(time.perf_counter() - start, 1)}
    if command == "tokenizer":
        outcome["languages"] = prepare.tokenizer_report(recipe)
    print(json.dumps(outcome) if arguments.json else "\n".join(lines(outcome)))


def split(words: list[str]) -> tuple[str, list[str]]:
    """The command (at any position; default `store`) and the overrides.

    Errors: UserError for an unknown command, and for two commands.
    """
    commands = [word for word in words if "=" not in word]
    for word in commands:
        if word not in COMMANDS:
            raise UserError(
                f"unknown command {word!r}{did_you_mean(word, COMMANDS)} give one of {', '.join(COMMANDS)}, or a field "
                "of the recipe as key=value"
            )
    if len(commands) > 1:
        raise UserError(f"{' and '.join(commands)} are {len(commands)} commands; give one")
    return commands[0] if commands else "store", [word for word in words if "=" in word]


def lines(outcome: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """An outcome as readable text, one line per fact."""
    for name, value in outcome.items():
        if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            yield f"{indent}{name}:"
            yield from lines(value, f"{indent}  ")
        elif name == "left_out" and isinstance(value, dict):
            yield f"{indent}{name}: " + ", ".join(f"{count} {what}" for what, count in value.items())
        elif isinstance(value, dict):
            yield f"{indent}{name}: " + ", ".join(f"{part} {known}" for part, known in value.items())
        else:
            yield f"{indent}{name}: {value}"


if __name__ == "__main__":
    run_command(main)
