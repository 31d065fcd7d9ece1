"""Write a commented recipe for your own text, with sizes that fit the text and this machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.invocation import as_typed, program

if TYPE_CHECKING:
    from dist_metaxlm.own_recipe.choices import Choices
    from dist_metaxlm.own_recipe.measure import Measured

EXAMPLES = """examples:
  metaxlm init mine.yaml en=corpus/en sw=corpus/sw.txt.xz en-sw=corpus/en-sw.tsv
  metaxlm init mine.yaml en=corpus/en fr=corpus/fr.jsonl en-fr=corpus/a.en,corpus/a.fr --size small
  metaxlm init mine.yaml en=corpus/en --params 40M --hours 8
  metaxlm init mine.yaml                                 # asks for the sources on a terminal

sources: LANGUAGE=FILE, FOLDER or GLOB for text, PAIR=FILE for translations (two line-by-line files with a comma between
them). The formats are those of docs/data.md, by the file name. A language may be named several times.
"""
SIZES = ("tiny", "small", "base", "large", "xl")


def main(words: Sequence[str] | None = None, read: Callable[[str], str] = input) -> None:
    """Write the recipe and print what was measured and chosen. Errors: UserError, before anything is written."""
    arguments = _parser().parse_intermixed_args(words)
    path = Path(arguments.recipe)
    _check(path, arguments.overwrite, arguments.hours)
    from dist_metaxlm.own_recipe.choices import Wishes, choose
    from dist_metaxlm.own_recipe.machine import this_machine
    from dist_metaxlm.own_recipe.measure import measure
    from dist_metaxlm.own_recipe.sizes import parse_parameters
    from dist_metaxlm.own_recipe.sources import ask_sources, data_section, parse_sources
    from dist_metaxlm.own_recipe.yaml_file import as_yaml, write_recipe

    name = path.stem
    parameters = None if arguments.params is None else parse_parameters(arguments.params)
    sources = arguments.sources or (ask_sources(read) if sys.stdin.isatty() else [])
    text, bitext = parse_sources(sources)
    measured = measure(data_section(text, bitext, f"data/{name}"), lambda line: print(line, file=sys.stderr, flush=True))
    wishes = Wishes(size=arguments.size, parameters=parameters, vocabulary=arguments.vocabulary, hours=arguments.hours)
    choices = choose(measured, this_machine(), wishes)
    write_recipe(path, as_yaml(name, path, text, bitext, measured, choices), arguments.overwrite)
    if arguments.json:
        print(json.dumps(_facts(path, measured, choices)))
    else:
        print(as_typed("\n".join(_lines(path, measured, choices))))


def _parser() -> Parser:
    parser = Parser(__doc__, prog=program("init"), epilog=EXAMPLES)
    parser.add_argument("recipe", help="YAML file to write; its name is the run's name")
    parser.add_argument("sources", nargs="*", metavar="LANGUAGE=PATH", help="text by language, translations by pair")
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--size", choices=SIZES, help="model size (default: by text and machine; tiny without a GPU)")
    dial.add_argument("--params", metavar="N", help="number of parameters instead, such as 40M")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="token ids (default: by the text)")
    parser.add_argument(
        "--hours", type=float, metavar="H", help="longest training time without a GPU, all phases together (default: 2)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    return parser


def _check(path: Path, overwrite: bool, hours: float | None) -> None:
    if "=" in str(path):
        raise UserError(f"{path} is in the place of the recipe's file; write `metaxlm init mine.yaml {path} ...`")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"recipe file {path} does not end in .yaml; call it {path.with_suffix('.yaml')}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", path.stem):
        raise UserError(f"{path.stem!r} cannot be the name of a run; use letters, digits, dots, - and _")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; give another name, or --overwrite")
    if hours is not None and not 0 < hours < float("inf"):
        raise UserError(f"--hours {hours:g} is not a positive number of hours; give one such as 2")


def _facts(path: Path, measured: Measured, choices: Choices) -> dict[str, object]:
    return {
        "recipe": str(path),
        "text": {
            code: {"documents": s.units, "characters": s.characters, "tokens": s.tokens} for code, s in measured.text.items()
        },
        "bitext": {pair: {"pairs": size.units, "tokens": size.tokens} for pair, size in measured.bitext.items()},
        "size": choices.size,
        "vocabulary": choices.model.vocab_size,
        "heldout_strings": choices.heldout_strings,
        "steps": {name: phase.total_steps for name, phase in choices.phases.items()},
        "hours": choices.hours,
        "warnings": list(choices.warnings),
    }


def _lines(path: Path, measured: Measured, choices: Choices) -> list[str]:
    from dist_metaxlm.planning.parameters import count_parameters

    model = choices.model
    lines = [
        f"{code}: {size.units:,} documents, {size.characters:,} characters, about {size.tokens:,} tokens"
        for code, size in measured.text.items()
    ]
    lines += [f"{pair}: {size.units:,} pairs, about {size.tokens:,} tokens" for pair, size in measured.bitext.items()]
    lines.append(
        f"model: {choices.size}, {model.layers} layers x {model.hidden}, vocabulary {model.vocab_size:,}, "
        f"{count_parameters(model).total:,} parameters"
    )
    lines += [f"{name}: {phase.total_steps:,} steps ({choices.reasons[name]})" for name, phase in choices.phases.items()]
    if choices.hours is not None:
        lines.append(f"estimated training time: {choices.hours:.1f} hours on this machine's cores")
    lines += [f"warning: {sentence}" for sentence in choices.warnings]
    first = next(iter(choices.phases))
    return [
        *lines,
        f"wrote {path}; next: metaxlm prepare --recipe {path}, then metaxlm pretrain --phase {first} --recipe {path}",
    ]


if __name__ == "__main__":
    run_command(main)
