"""The parser of the commands: a mistake in the arguments is a sentence with the nearest name, and exit code 2.

argparse prints its whole usage instead.
"""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import as_typed
from dist_metaxlm.text import did_you_mean

_CHOICE = re.compile(r"argument (?P<name>[^:]+): invalid choice: (?P<value>.+) \(choose from (?P<known>.+)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse's parser, but it shows the docstring verbatim and raises UserError instead of printing the usage."""

    def __init__(
        self, description: str | None = None, prog: str | None = None, epilog: str | None = None, add_help: bool = True
    ) -> None:
        """The arguments are argparse's own."""
        super().__init__(
            prog, None, description, epilog, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=add_help
        )
        self._commands: Any = None

    def add_subparsers(self, **settings: Any) -> Any:
        """Same as argparse; subcommand options are included in did-you-mean suggestions."""
        self._commands = super().add_subparsers(**settings)
        return self._commands

    def format_help(self) -> str:
        """The help, with commands in the form that the user typed."""
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error as a UserError in one sentence."""
        raise UserError(self._sentence(message))

    def _sentence(self, message: str) -> str:
        kind, _, words = message.partition(": ")
        if kind == "unrecognized arguments":
            first = next((word.split("=")[0] for word in words.split() if word.startswith("-")), None)
            if first is None:
                return f"{self.prog} does not accept {words}; `{self.prog} --help` lists its arguments"
            parsers = [self, *(self._commands.choices.values() if self._commands else [])]
            options = re.findall(r"(?<![\w-])--?\w+", " ".join(parser.format_usage() for parser in parsers))
            return f"{self.prog} has no option {first}{did_you_mean(first, options)} `{self.prog} --help` lists them"
        if kind == "the following arguments are required":
            return f"{self.prog} needs {words}; `{self.prog} --help` has examples"
        choice = _CHOICE.fullmatch(message)
        if choice is not None:
            value, known = choice["value"].strip("'\""), [word.strip("'\" ") for word in choice["known"].split(",")]
            return f"{choice['name']} {value} is none of {', '.join(known)}{did_you_mean(value, known).rstrip(';')}"
        return f"{message.removeprefix('argument ')}; `{self.prog} --help` lists its arguments"
