"""The arguments of `metaxlm pretrain`, in a module that the launcher can import as well."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from dist_metaxlm.command_line import Parser
from dist_metaxlm.invocation import program


class _Print(argparse.Action):
    """Print a text and end, as --help does."""

    text: Callable[[str], str]
    """From the option's value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        """Errors: UserError for an unknown field, or if an installed package's objectives cannot be registered."""
        print(type(self).text(str(values or "")))
        parser.exit()


def _fields(name: str) -> str:
    from dist_metaxlm.recipe.reference.page import as_text

    return as_text(name)


def _schema(_: str) -> str:
    from dist_metaxlm.recipe.reference.json_schema import recipe_schema

    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False)


class _PrintFields(_Print):
    """Print the reference of recipe fields."""

    text = staticmethod(_fields)


class _PrintSchema(_Print):
    """Print the JSON schema of a recipe."""

    text = staticmethod(_schema)


def _add_reference(parser: Parser) -> None:
    """Add the options that print what a recipe may say."""
    parser.add_argument(
        "--fields",
        action=_PrintFields,
        nargs="?",
        metavar="NAME",
        help="print type, unit, default and meaning of the recipe's fields, of all or of NAME, such as training.guards",
    )
    parser.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema of a recipe, for editors")


def _add_for_launchers(parser: Parser) -> None:
    """Add the options that launchers give."""
    parser.add_argument(
        "--expect_world_size",
        type=int,
        metavar="N",
        help="refuse to start with another number of ranks than N (metaxlm launch gives it)",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the deepspeed launcher


def pretrain_parser(description: str | None = None, prog: str | None = None) -> Parser:
    """The parser; use its `parse_intermixed_args`, because recipe fields may appear anywhere.

    `prog`: name of the command in messages; by default this process's.

    Errors: UserError, from parsing, for an unknown argument or an invalid value.
    """
    parser = Parser(description, prog=prog or program("pretrain"))
    parser.add_argument(
        "--phase",
        required=True,
        help="a phase of the recipe; of the shipped ones most have meta: English, cross: all languages, from the run's meta "
        "phase, and joint: both at once",
    )
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="PHASE|FOLDER",
        help="continue from this instead of what the recipe says: a phase of the run (meta, meta@400, meta@best), that of "
        "another run (runs/x/meta@400), an imported model (./imported), or nothing",
    )
    parser.add_argument(
        "--recipe", default="quickstart", help="name of a shipped recipe or a YAML file (default: quickstart)"
    )
    parser.add_argument(
        "--deepspeed_config", help="DeepSpeed JSON (default: from ds_configs/ by the recipe's ZeRO stage and precision)"
    )
    parser.add_argument("--run_dir", help="folder of the run (default: runs/NAME of the recipe)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|STEP",
        help="auto: resume from the newest intact checkpoint; never: set it aside and restart; STEP: from that checkpoint",
    )
    parser.add_argument(
        "--change",
        action="store_true",
        help="continue with another length, learning rate or optimiser than the phase was started with "
        "(phases.*.steps, tokens, learning_rate, optimizer); a finished phase with more steps",
    )
    parser.add_argument(
        "--init_from",
        metavar="FOLDER",
        help="start from a model that metaxlm convert import wrote, whatever the recipe says (for cross: not from meta)",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="run every check of a start (data, run folder, memory), print what it would train, write nothing",
    )
    _add_reference(parser)
    _add_for_launchers(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any field of the recipe, such as phases.meta.steps=20"
    )
    return parser


def from_override(phase: str, value: str | None) -> list[str]:
    """The recipe field that `--from` sets."""
    return [] if value is None else [f"phases.{phase}.from={json.dumps(value, ensure_ascii=False)}"]
